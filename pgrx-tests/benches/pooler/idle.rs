//! What an idle client costs: resident memory of everything that serves it, before and after it has run a query.

use crate::cost::memory;
use crate::raw::Client;
use crate::{Bench, Kind, Target, number};
use anyhow::{Context, Result};
use pgrx_tests::pgbouncer::Pgbouncer;
use rustix::process::{Resource, getrlimit};
use std::time::Duration;

/// A process each: a few tell enough.
const DIRECT: usize = 100;

/// How long memory is given to settle.
const SETTLE: Duration = Duration::from_secs(2);

pub fn run(bench: &Bench) -> Result<()> {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = bench.options.idle_clients.min(usize::try_from(files)?.saturating_sub(500));
    let mut options = bench.pgbouncer_options();
    options.max_clients = u32::try_from(count)? + 100;
    let bouncer = Pgbouncer::start(&bench.server, &options)?;
    println!("{:<12}{:>9}{:>22}{:>22}", "", "clients", "connected, kB each", "has queried, kB each");
    for target in bench.targets(&bouncer)? {
        let count = if target.kind == Kind::Direct { DIRECT.min(count) } else { count };
        // One target that cannot have so many says so; the others are still measured.
        match measure(bench, &target, count) {
            Ok((connected, queried)) => println!(
                "{:<12}{count:>9}{:>22}{:>22}",
                target.kind,
                number(connected / 1024.0, 2),
                number(queried / 1024.0, 2)
            ),
            Err(error) => println!("{:<12}{count:>9}  {error:#}", target.kind),
        }
    }
    Ok(())
}

/// Bytes a client: connected, and after a query each.
fn measure(bench: &Bench, target: &Target, count: usize) -> Result<(f64, f64)> {
    if target.kind != Kind::Direct {
        fill_pool(bench, target.port)?;
    }
    std::thread::sleep(SETTLE);
    let before = memory(bench, target)?;
    let mut clients = Vec::with_capacity(count);
    for number in 0..count {
        clients.push(Client::connect(target.port).with_context(|| format!("client {number}"))?);
    }
    std::thread::sleep(SETTLE);
    let connected = memory(bench, target)?;
    for (number, client) in clients.iter_mut().enumerate() {
        client.query("SELECT 1").with_context(|| format!("the query of client {number}"))?;
    }
    std::thread::sleep(SETTLE);
    let queried = memory(bench, target)?;
    let each = |bytes: u64| (bytes as f64 - before as f64) / count as f64;
    Ok((each(connected), each(queried)))
}

/// The pool's server connections are no client's: they are all there, and have worked, before anything is measured.
fn fill_pool(bench: &Bench, port: u16) -> Result<()> {
    let busy: Vec<_> = (0..2 * bench.options.pool)
        .map(|_| std::thread::spawn(move || Client::connect(port)?.query("SELECT pg_sleep(0.3)")))
        .collect();
    for client in busy {
        client.join().map_err(|_| anyhow::anyhow!("a client has panicked"))??;
    }
    Ok(())
}
