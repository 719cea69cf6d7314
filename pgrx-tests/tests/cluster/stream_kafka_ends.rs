//! A real Kafka broker, and whatever ends at random: the worker, the broker, the server, the stream. Nothing is missing.

use crate::stream::{delivered, start, worker};
use crate::stream_kafka::{event, to_kafka};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::dice::{self, Dice};
use pgrx_tests::kafka::{Broker, no_broker};
use pgrx_tests::process::{self, signal_pid};
use pgrx_tests::wait;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// For how long things end at random. `POSTERN_TEST_CHAOS` gives more seconds.
fn chaos() -> Duration {
    let seconds = std::env::var("POSTERN_TEST_CHAOS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(25))
}

/// What ends, by chance. The broker is last: while it is down, it is one of the others.
const ENDS: [&str; 6] = [
    "terminate the worker",
    "kill -9 the worker",
    "restart",
    "kill -9 the server",
    "stop the stream",
    "kill -9 the broker",
];

#[test]
fn nothing_is_missing_and_each_key_is_in_order_whatever_ends() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("stream-chaos")?;
    broker.create_topic("all", 3)?;
    let cluster = start("stream-chaos", &[("fsync", "on")])?;
    cluster.sql("create table t (id int primary key, n bigint); insert into t select i, 0 from generate_series(0, 19) i")?;
    cluster.sql("create table history (at bigserial, id int, n bigint)")?;
    let source = r#"{"publication":"p","retry":"200ms"}"#;
    cluster.sql("create publication p for table t")?;
    to_kafka(&cluster, source, &format!(r#"{{"hosts":"{}","topicFallback":"all"}}"#, broker.address()))?;
    let stop = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| -> Result<()> {
        for writer in 0..3 {
            let (cluster, stop) = (&cluster, &stop);
            scope.spawn(move || write(cluster, stop, writer));
        }
        let worked = end_things(&cluster, &broker);
        stop.store(true, Relaxed);
        worked
    });
    ended?;
    wait::until_within(Duration::from_secs(60), "the server is back", || cluster.sql("select 1").is_ok())?;
    delivered(&cluster).with_context(|| said(&cluster))?;
    compare(&cluster, &broker)
}

/// What the server has logged, but for clients that it turned away while it was down.
fn said(cluster: &Cluster) -> String {
    let log = cluster.log();
    log.lines().filter(|line| !line.contains("] client backend ")).collect::<Vec<_>>().join("\n")
}

/// Counts rows up, one transaction after the other, and notes each in the same transaction.
fn write(cluster: &Cluster, stop: &AtomicBool, writer: usize) {
    let mut count = 0_usize;
    while !stop.load(Relaxed) {
        let Ok(mut client) = cluster.connect() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        while !stop.load(Relaxed) {
            count += 1;
            let id = (count * 7 + writer) % 20;
            let sql = format!(
                "with changed as (update t set n = n + 1 where id = {id} returning id, n)
                 insert into history (id, n) select id, n from changed"
            );
            if client.batch_execute(&sql).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn end_things(cluster: &Cluster, broker: &Broker) -> Result<()> {
    let begun = Instant::now();
    let end_worker = |signal: Signal| -> Result<()> {
        let pid = wait::for_value("the source has a worker", || worker(cluster))
            .with_context(|| cluster.log_tail())?;
        let crashes = || cluster.log().matches("all server processes terminated; reinitializing").count();
        let before = crashes();
        // It may have ended by itself, when its stream was started again.
        let killed = signal_pid(pid, signal).is_ok() && signal == Signal::KILL;
        wait::until("that worker is gone", || !process::is_running(pid))?;
        if killed {
            // A server of 18 that is told to stop while it recovers waits for its checkpointer, minutes long.
            let _ = wait::until_within(Duration::from_secs(5), "the server knows", || crashes() > before);
            wait::until("it has recovered", || cluster.sql("select 1").is_ok())?;
        }
        Ok(())
    };
    let seed = dice::seed();
    eprintln!("POSTERN_TEST_SEED={seed}");
    let mut dice = Dice::new(seed);
    // Each of them at least once.
    let mut first = ENDS.to_vec();
    let (mut round, mut broker_is_down) = (0, false);
    while !first.is_empty() || broker_is_down || begun.elapsed() < chaos() {
        // A moment in which something is delivered; how long differs.
        std::thread::sleep(Duration::from_millis(300 + dice.below(900)));
        let was_down = broker_is_down;
        let is_new = !first.is_empty();
        let end = match is_new {
            true => first.swap_remove(dice.place(&first)),
            false => ENDS[dice.place(&ENDS[..ENDS.len() - usize::from(was_down)])],
        };
        eprintln!("{:?}: {end}", begun.elapsed());
        match end {
            "terminate the worker" => end_worker(Signal::TERM)?,
            "kill -9 the worker" => end_worker(Signal::KILL)?,
            "kill -9 the broker" => {
                broker.kill()?;
                // Now and then until something else has ended too: the first time, and every second time.
                broker_is_down = is_new || dice.below(2) == 0;
                if !broker_is_down {
                    broker.start_again()?;
                }
            }
            "restart" => cluster.restart(Stop::Fast)?,
            "kill -9 the server" => {
                cluster.kill()?;
                cluster.start_again()?;
            }
            _ => {
                wait::until("it is stopped", || {
                    cluster.sql("select postern.stop_stream('shop to topics')").is_ok()
                })?;
                wait::until("it can be started again", || {
                    cluster.sql("select postern.start_stream('shop to topics')").is_ok()
                })?;
            }
        }
        wait::until_within(Duration::from_secs(60), "the server answers", || cluster.sql("select 1").is_ok())
            .with_context(|| format!("after {end:?}: {}", cluster.log_tail()))?;
        if was_down {
            eprintln!("{:?}: the broker comes back", begun.elapsed());
            broker.start_again()?;
            broker_is_down = false;
        }
        round += 1;
    }
    eprintln!("{round} ends in {:?}", begun.elapsed());
    Ok(())
}

/// Every row's history is in the topic, once or more, in order; what comes again comes with the same UUID.
fn compare(cluster: &Cluster, broker: &Broker) -> Result<()> {
    let mut wanted: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for row in cluster.connect()?.query("select id, n from history order by at", &[])? {
        wanted.entry(row.get::<_, i32>(0).into()).or_default().push(row.get(1));
    }
    let mut found: BTreeMap<i64, Vec<(i64, String)>> = BTreeMap::new();
    let mut doubled = 0;
    for record in broker.consume("all")? {
        let event = event(&record)?;
        let number = |name: &str| event["Columns"][name].as_i64().with_context(|| record.payload.clone());
        if event["Action"] == "update" {
            let uuid = event["UUID"].as_str().unwrap_or_default().to_owned();
            found.entry(number("id")?).or_default().push((number("n")?, uuid));
        }
    }
    ensure!(wanted.values().map(Vec::len).sum::<usize>() > 100, "little was written");
    for (id, numbers) in &wanted {
        ensure!(numbers.iter().copied().eq(1..=numbers.len() as i64), "the table's own history of {id}");
        let got = found.get(id).with_context(|| format!("nothing of {id}"))?;
        let mut uuids = BTreeMap::new();
        let mut next = 1;
        for (n, uuid) in got {
            let known = uuids.insert(*n, uuid.clone());
            ensure!(known.as_ref().is_none_or(|known| known == uuid), "row {id} number {n} has two UUIDs");
            doubled += usize::from(known.is_some());
            // What has come may come again from any point on, but nothing is left out.
            ensure!(*n <= next, "row {id}: {n} came before {next}");
            next = next.max(*n + 1);
        }
        ensure!(next == numbers.len() as i64 + 1, "row {id}: {} of {} came", next - 1, numbers.len());
    }
    eprintln!("{doubled} came twice");
    Ok(())
}
