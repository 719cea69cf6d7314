//! Connect, log in, SELECT 1, close: four clients of pgbench -C.

use crate::cells::{Run, pgbench};
use crate::{Bench, Kind, alternating, median, number};
use anyhow::Result;
use pgrx_tests::machine;
use pgrx_tests::pgbouncer::Pgbouncer;

pub fn run(bench: &Bench) -> Result<()> {
    let script = bench.server.socket_directory().join("one.sql");
    std::fs::write(&script, "SELECT 1;\n")?;
    machine::give_to_server_user(&script)?;
    // As every driver has them at hand: PgBouncer gets the server's secrets in its list, and asks the server for none.
    let secret = bench.server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'bench_scram'")?;
    println!("{:<8}{:<12}{:>12}{:>9}{:>12}{:>8}", "", "", "logins/s", "/direct", "/PgBouncer", "failed");
    for (method, user) in [("trust", "postgres"), ("scram", "bench_scram")] {
        let mut options = bench.pgbouncer_options();
        if method == "scram" {
            options.auth_type = "scram-sha-256".to_owned();
            options.users.push((user.to_owned(), secret.clone()));
        }
        let bouncer = Pgbouncer::start(&bench.server, &options)?;
        let script = script.to_string_lossy();
        let arguments = ["-C", "-c", "4", "-j", "4", "-U", user, "-f", &script];
        let rounds = alternating(&bench.targets(&bouncer)?, bench.options.rounds, |target| {
            pgbench(bench, target, Run { arguments: &arguments, sslmode: "disable", syscalls: false })
        })?;
        let rate = |kind: Kind| {
            let found = rounds.iter().find(|(target, _)| target.kind == kind);
            found.map_or(f64::NAN, |(_, rounds)| median(rounds.iter().map(|round| round.tps)))
        };
        for (target, rounds) in &rounds {
            println!(
                "{method:<8}{:<12}{:>12}{:>9}{:>12}{:>8}",
                target.kind,
                number(rate(target.kind), 0),
                number(rate(target.kind) / rate(Kind::Direct), 2),
                number(rate(target.kind) / rate(Kind::Pgbouncer), 2),
                rounds.iter().map(|round| round.failed).sum::<usize>()
            );
        }
    }
    Ok(())
}
