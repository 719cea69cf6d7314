//! pgbench -S: protocol × number of clients, plain or with TLS.

use crate::cost::{Snapshot, Syscalls};
use crate::{Bench, Kind, Target, alternating, median, number};
use anyhow::{Context, Result};
use pgrx_tests::machine;
use pgrx_tests::pgbouncer::Pgbouncer;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

/// One transaction in so many has its latency logged: enough for a p99, and cheap.
const SAMPLED: &str = "0.1";

/// What one run of pgbench showed; NaN where nothing is known.
pub struct Round {
    pub tps: f64,
    /// Milliseconds.
    p50: f64,
    p99: f64,
    pub failed: usize,
    /// Processor microseconds and wake-ups a transaction, of the server and the pooler together.
    processor: f64,
    wakeups: f64,
    /// System calls a transaction, in a run that counts them.
    syscalls: f64,
}

/// How pgbench is run.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub arguments: &'a [&'a str],
    pub sslmode: &'a str,
    /// Whether perf counts system calls, which slows them a little.
    pub syscalls: bool,
}

pub fn plain(bench: &Bench) -> Result<()> {
    let bouncer = Pgbouncer::start(&bench.server, &bench.pgbouncer_options())?;
    let targets = bench.targets(&bouncer)?;
    let cells =
        bench.options.protocols.iter().flat_map(|protocol| {
            bench.options.clients.iter().map(move |clients| (protocol.as_str(), *clients))
        });
    header();
    for (protocol, clients) in cells {
        cell(bench, &targets, protocol, clients, "disable")?;
    }
    Ok(())
}

pub fn tls(bench: &Bench) -> Result<()> {
    let mut options = bench.pgbouncer_options();
    options.tls = Some((bench.certificate.clone(), "require".to_owned()));
    let bouncer = Pgbouncer::start(&bench.server, &options)?;
    let mut targets = vec![Bench::pgbouncer(&bouncer)?];
    targets.extend(bench.postern());
    header();
    for protocol in bench.options.protocols.iter().filter(|protocol| *protocol != "extended") {
        for clients in bench.options.clients.iter().filter(|clients| (2..1000).contains(*clients)) {
            cell(bench, &targets, protocol, *clients, "require")?;
        }
    }
    Ok(())
}

fn header() {
    println!(
        "{:<10}{:>7}  {:<10}{:>9}{:>9}{:>12}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}",
        "protocol",
        "clients",
        "",
        "tps",
        "/direct",
        "/PgBouncer",
        "p50 ms",
        "p99 ms",
        "cpu us",
        "wakes",
        "syscalls",
        "failed"
    );
}

fn cell(bench: &Bench, targets: &[Target], protocol: &str, clients: usize, sslmode: &str) -> Result<()> {
    let too_many = |target: &Target| target.kind == Kind::Direct && clients > bench.options.direct_most;
    let targets: Vec<Target> = targets.iter().filter(|target| !too_many(target)).copied().collect();
    let count = clients.to_string();
    let threads = clients.min(2).to_string();
    let arguments = ["-S", "-M", protocol, "-c", &count, "-j", &threads];
    let run = Run { arguments: &arguments, sslmode, syscalls: false };
    let rounds = alternating(&targets, bench.options.rounds, |target| pgbench(bench, target, run))?;
    let tps = |rounds: &[Round]| median(rounds.iter().map(|round| round.tps));
    let of = |kind: Kind| {
        rounds.iter().find(|(target, _)| target.kind == kind).map_or(f64::NAN, |(_, rounds)| tps(rounds))
    };
    for (target, rounds) in &rounds {
        let of_rounds = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
        let syscalls = if bench.options.syscalls {
            pgbench(bench, target, Run { syscalls: true, ..run })?.syscalls
        } else {
            f64::NAN
        };
        println!(
            "{protocol:<10}{clients:>7}  {:<10}{:>9}{:>9}{:>12}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}",
            target.kind,
            number(tps(rounds), 0),
            number(tps(rounds) / of(Kind::Direct), 2),
            number(tps(rounds) / of(Kind::Pgbouncer), 2),
            number(of_rounds(|round| round.p50), 2),
            number(of_rounds(|round| round.p99), 2),
            number(of_rounds(|round| round.processor), 1),
            number(of_rounds(|round| round.wakeups), 2),
            number(syscalls, 2),
            rounds.iter().map(|round| round.failed).sum::<usize>()
        );
    }
    Ok(())
}

/// One run. Processor time and wake-ups are of the time between the first and the last of pgbench's words on its
/// progress, when all clients are connected and none has left.
pub fn pgbench(bench: &Bench, target: &Target, run: Run) -> Result<Round> {
    let Run { arguments, sslmode, .. } = run;
    let seconds = bench.options.seconds;
    let logs = bench.server.socket_directory().join("latency");
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir(&logs)?;
    machine::give_to_server_user(&logs)?;
    let mut command = bench.pgbench();
    command.args(["-h", "127.0.0.1", "-p", &target.port.to_string(), "-n", "-T", &seconds.to_string()]);
    command.args(["-P", "1", "--log", "--sampling-rate", SAMPLED]);
    command.arg(format!("--log-prefix={}/x", logs.display())).args(arguments).arg("postgres");
    if !arguments.contains(&"-U") {
        command.env("PGUSER", "postgres");
    }
    command.env("PGSSLMODE", sslmode).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (mut failed, mut complaint) = (0, None);
    let (mut first, mut last, mut transactions) = (None, None, 0.0);
    let mut syscalls = None;
    for line in BufReader::new(child.stderr.take().context("stderr")?).lines() {
        let line = line?;
        match progress(&line) {
            Some((time, _)) if time > f64::from(seconds) - 0.5 => {}
            Some((_, tps)) => {
                if run.syscalls && syscalls.is_none() {
                    syscalls = Some(Syscalls::count(bench, target)?);
                }
                let look = Snapshot::take(bench, target)?;
                if let Some(before) = last.as_ref().or(first.as_ref()) {
                    let before: &Snapshot = before;
                    transactions += tps * (look.taken - before.taken).as_secs_f64();
                }
                if first.is_none() { first = Some(look) } else { last = Some(look) }
            }
            None if line.contains("error") || line.contains("fatal") => {
                failed += 1;
                complaint.get_or_insert(line);
            }
            None => {}
        }
    }
    let mut text = String::new();
    child.stdout.take().context("stdout")?.read_to_string(&mut text)?;
    let status = child.wait()?;
    if !status.success() {
        // Some of the clients or all of them were not there: what the others had done is no measure.
        failed = failed.max(1);
        complaint.get_or_insert(status.to_string());
    }
    if let Some(complaint) = complaint {
        println!("{} {}: {complaint}", target.kind, arguments.join(" "));
    }
    let mut times = latencies(&logs)?;
    times.sort_unstable();
    let at = |part: f64| {
        let place = (times.len().saturating_sub(1) as f64 * part) as usize;
        times.get(place).map_or(f64::NAN, |time| *time as f64 / 1e3)
    };
    let used = first.zip(last).map(|(first, last)| first.until(&last));
    let each = |sum: fn(&crate::cost::Used) -> f64| {
        used.as_ref()
            .map_or(f64::NAN, |used| if used.seconds > 0.5 { sum(used) / transactions } else { f64::NAN })
    };
    let tps = if status.success() { tps(&text).unwrap_or(f64::NAN) } else { f64::NAN };
    Ok(Round {
        tps,
        p50: at(0.50),
        p99: at(0.99),
        failed,
        processor: each(|used| used.nanoseconds / 1e3),
        wakeups: each(|used| used.sleeps),
        syscalls: syscalls.and_then(Syscalls::counted).map_or(f64::NAN, |count| count / tps),
    })
}

/// `progress: 1.0 s, 31415.9 tps, …`
fn progress(line: &str) -> Option<(f64, f64)> {
    let mut words = line.strip_prefix("progress: ")?.split_whitespace();
    let time = words.next()?.parse().ok()?;
    let tps = words.nth(1)?.parse().ok()?;
    Some((time, tps))
}

fn tps(text: &str) -> Option<f64> {
    text.lines().find(|line| line.starts_with("tps = "))?.split_whitespace().nth(2)?.parse().ok()
}

/// Microseconds: the third column of pgbench's logs.
fn latencies(directory: &std::path::Path) -> Result<Vec<u64>> {
    let mut times = Vec::new();
    for file in fs::read_dir(directory)? {
        let text = fs::read_to_string(file?.path())?;
        times.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
    }
    fs::remove_dir_all(directory)?;
    Ok(times)
}
