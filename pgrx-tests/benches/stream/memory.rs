//! What the worker holds while millions of events pass. Each tenth is written, and then waited for.

use super::Bench;
use super::kafka::{Mock, sink};
use anyhow::{Context, Result};
use pgrx_tests::{process, wait};
use std::time::{Duration, Instant};

/// Rows of a transaction.
const ROWS: u64 = 1000;

pub fn run(bench: &Bench) -> Result<()> {
    flat(bench, "stub_discard", "{}")?;
    let mock = Mock::start(bench.options.partitions)?;
    flat(bench, "kafka", &sink(&mock.hosts()))
}

fn flat(bench: &Bench, kind: &str, options: &str) -> Result<()> {
    let events = bench.options.events;
    let step = (events / 10).max(ROWS);
    bench.server.sql("TRUNCATE bench")?;
    bench.server.sql("SELECT pg_create_logical_replication_slot('memory', 'pgoutput')")?;
    bench.stream("memory", kind, options)?;
    let pid = wait::for_value("the worker runs", || {
        let running = "SELECT worker_pid FROM postern.sources WHERE state = 'streaming'";
        Ok(bench.server.sql(running)?.parse::<i32>()?)
    })?;
    let mut client = bench.server.connect()?;
    let given = || -> Result<u64> { Ok(bench.server.sql("SELECT events FROM postern.streams")?.parse()?) };
    let begun = Instant::now();
    let (mut written, mut most) = (0, 0);
    let mut looks: Vec<(u64, u64)> = Vec::new();
    while written < events {
        // One that grows is slower and slower to insert into.
        client.batch_execute("TRUNCATE bench")?;
        let end = (written + step).min(events);
        while written < end {
            client.batch_execute(&Bench::insert(written + 1, written + ROWS, 20))?;
            written += ROWS;
            if written % (100 * ROWS) == 0 {
                most = most.max(process::resident(pid)?);
            }
        }
        wait::until_within(Duration::from_secs(600), "the events are given", || {
            given().is_ok_and(|given| given >= written)
        })
        .with_context(|| bench.server.log_tail())?;
        looks.push((process::resident(pid)?, process::anonymous(pid)?));
    }
    let seconds = begun.elapsed().as_secs_f64();
    bench.drop_stream()?;
    bench.drop_slot("memory")?;
    let list = |which: fn(&(u64, u64)) -> u64| {
        looks.iter().map(|look| format!("{:.1}", which(look) as f64 / 1024.0)).collect::<Vec<_>>().join(" ")
    };
    println!("{kind}: MB resident after each {step} of {written} events: {}", list(|look| look.0));
    println!("  of which not shared: {}", list(|look| look.1));
    println!("  the most while writing: {:.1} MB; {:.0} s", most as f64 / 1024.0, seconds);
    Ok(())
}
