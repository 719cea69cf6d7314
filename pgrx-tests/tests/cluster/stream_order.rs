//! Nothing is lost and nothing overtakes, whatever ends while sessions write.

use crate::stream::{
    another_worker, delivered, delivered_within, events, running, start, terminate_worker, to_file, worker,
};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{process, wait};
use postgres::NoTls;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

/// The place of an event in the stream.
fn place(event: &Value) -> Result<(u64, u64)> {
    let lsn = event["CommitLSN"].as_str().context("CommitLSN")?;
    let (high, low) = lsn.split_once('/').context("an LSN")?;
    let lsn = u64::from_str_radix(high, 16)? << 32 | u64::from_str_radix(low, 16)?;
    Ok((lsn, event["Ordinal"].as_u64().context("Ordinal")?))
}

/// What a file has against what the table `history` has: every row once, in the order of commits, in each session in the order of
/// its writes. How many events came again; with the same UUID and the same content.
fn check(cluster: &Cluster, path: &PathBuf) -> Result<usize> {
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    let (mut doubled, mut last) = (0, (0, 0));
    let mut order: BTreeMap<i64, i64> = BTreeMap::new();
    let mut rows = BTreeSet::new();
    for event in events(path)?.into_iter().filter(|event| event["Table"] == "history") {
        let uuid = event["UUID"].to_string();
        let at = place(&event)?;
        if let Some(first) = seen.get(&uuid) {
            ensure!(first["Columns"] == event["Columns"] && place(first)? == at, "{first} and {event}");
            doubled += 1;
            continue;
        }
        ensure!(at > last, "{last:?} was before {event}");
        last = at;
        let number = |name: &str| event["Columns"][name].as_i64().context("a number");
        let (session, n) = (number("session")?, number("n")?);
        let before = order.insert(session, n);
        ensure!(before.is_none_or(|before| before < n), "{n} of session {session} comes after {before:?}");
        ensure!(rows.insert((session, n)), "{session} {n} has two events of different UUIDs");
        seen.insert(uuid, event);
    }
    let mut session = cluster.connect()?;
    let written: BTreeSet<(i64, i64)> = session
        .query("select session, n from history", &[])?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let lost: Vec<_> = written.difference(&rows).take(5).collect();
    let invented: Vec<_> = rows.difference(&written).take(5).collect();
    ensure!(lost.is_empty() && invented.is_empty(), "lost {lost:?}, invented {invented:?}");
    Ok(doubled)
}

/// Sessions that write all the time, whatever happens to the server.
struct Writers {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(cluster: &Cluster, sessions: i64) -> Self {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..sessions).map(|session| {
            let (config, stop, commits) = (cluster.config(), Arc::clone(&stop), Arc::clone(&commits));
            std::thread::spawn(move || {
                let mut n = 0_i64;
                let mut client = None;
                while !stop.load(Relaxed) {
                    let Some(open) = client.as_mut() else {
                        client = config.connect(NoTls).ok();
                        std::thread::sleep(std::time::Duration::from_millis(5));
                        continue;
                    };
                    match write(open, session, &mut n) {
                        Ok(()) => {
                            commits.fetch_add(1, Relaxed);
                        }
                        Err(_) => client = None,
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { stop, commits, threads }
    }

    /// Until they have committed so many transactions more.
    fn go_on(&self, commits: u64) -> Result<()> {
        let before = self.commits.load(Relaxed);
        wait::until("sessions have written more", || self.commits.load(Relaxed) >= before + commits)
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            ensure!(thread.join().is_ok(), "a writer has panicked");
        }
        Ok(())
    }
}

/// One transaction: rows, of which one in a subtransaction that stays, one in one that does not.
fn write(client: &mut postgres::Client, session: i64, n: &mut i64) -> Result<(), postgres::Error> {
    let mut next = || {
        *n += 1;
        *n
    };
    let (a, b, c, d) = (next(), next(), next(), next());
    client.batch_execute(&format!(
        "begin; insert into history values ({session}, {a});
         savepoint s; insert into history values ({session}, {b}); rollback to s;
         savepoint s; insert into history values ({session}, {c}); release s;
         insert into history select {session}, {d}; commit"
    ))
}

const HISTORY: &str = "create table history (session bigint, n bigint, primary key (session, n))";
const PLACES: &str = r#"{"ordinal":true,"commit_lsn":true,"retry":"200ms"}"#;

#[test]
fn clean_restarts_under_load_lose_double_and_reorder_nothing() -> Result<()> {
    let cluster = start("stream-clean", &[])?;
    cluster.sql(HISTORY)?;
    let path = to_file(&cluster, PLACES)?;
    let writers = Writers::start(&cluster, 4);
    for _ in 0..2 {
        writers.go_on(100)?;
        cluster.stop(Stop::Fast)?;
        cluster.start_again()?;
        running(&cluster, "shop to lines")?;
        for _ in 0..2 {
            writers.go_on(100)?;
            terminate_worker(&cluster)?;
        }
    }
    writers.go_on(100)?;
    writers.stop()?;
    delivered(&cluster)?;
    let doubled = check(&cluster, &path)?;
    ensure!(doubled == 0, "{doubled} events came twice");
    Ok(())
}

#[test]
fn crashes_under_load_lose_and_reorder_nothing_and_what_comes_twice_is_known_by_its_uuid() -> Result<()> {
    let cluster = start("stream-crash", &[])?;
    cluster.sql(HISTORY)?;
    let path = to_file(&cluster, PLACES)?;
    let writers = Writers::start(&cluster, 4);
    for round in 0..4 {
        writers.go_on(200)?;
        if round % 2 == 0 {
            cluster.stop(Stop::Immediate)?;
            cluster.start_again()?;
        } else {
            let pid = wait::for_value("its worker", || worker(&cluster))?;
            process::signal_pid(pid, Signal::KILL)?;
            another_worker(&cluster, pid)?;
        }
        running(&cluster, "shop to lines")?;
    }
    writers.go_on(200)?;
    writers.stop()?;
    delivered(&cluster)?;
    check(&cluster, &path).map(drop)
}

#[test]
fn transactions_come_in_the_order_in_which_they_commit_across_a_restart() -> Result<()> {
    let cluster = start("stream-interleaved", &[])?;
    cluster.sql(HISTORY)?;
    let path = to_file(&cluster, PLACES)?;
    let (mut early, mut late) = (cluster.connect()?, cluster.connect()?);
    early.batch_execute("begin; insert into history values (1, 1)")?;
    late.batch_execute("begin; insert into history values (2, 1)")?;
    early.batch_execute("savepoint s; insert into history values (1, 2)")?;
    late.batch_execute("insert into history values (2, 2); commit")?;
    delivered(&cluster)?;
    // What the first has written has lower positions than what is delivered.
    terminate_worker(&cluster)?;
    early.batch_execute("release s; insert into history values (1, 3); commit")?;
    delivered(&cluster)?;
    ensure!(check(&cluster, &path)? == 0);
    let order: Vec<_> = events(&path)?
        .iter()
        .map(|event| (event["Columns"]["session"].as_i64(), event["Columns"]["n"].as_i64()))
        .collect();
    let wanted = [(2, 1), (2, 2), (1, 1), (1, 2), (1, 3)].map(|(session, n)| (Some(session), Some(n)));
    ensure!(order == wanted, "{order:?}");
    Ok(())
}

#[test]
fn rows_of_one_copy_are_all_there_though_the_worker_ends_amid_them() -> Result<()> {
    let cluster = start("stream-copy", &[])?;
    cluster.sql(HISTORY)?;
    let path = to_file(&cluster, PLACES)?;
    const ROWS: u64 = 150_000;
    let mut session = cluster.connect()?;
    let given =
        || cluster.sql("select events from postern.streams").and_then(|events| Ok(events.parse::<u64>()?));
    let (mut amid, mut copies) = (0, 0);
    // Who looks late finds all of one given.
    while amid == 0 && copies < 5 {
        let mut copy = session.copy_in("copy history from stdin")?;
        for n in copies * ROWS..(copies + 1) * ROWS {
            writeln!(copy, "1\t{n}")?;
        }
        copy.finish()?;
        copies += 1;
        let all = copies * ROWS;
        for _ in 0..3 {
            let before = given()?;
            wait::until("some are given", || given().is_ok_and(|given| given > before || given >= all))?;
            amid += u32::from(given()? < all);
            terminate_worker(&cluster)?;
        }
        delivered_within(&cluster, 6 * wait::LIMIT)?;
    }
    ensure!(amid > 0, "the worker was never amid them");
    let doubled = check(&cluster, &path)?;
    ensure!(doubled == 0, "{doubled} events came twice");
    let places: BTreeSet<_> = events(&path)?.iter().map(|event| event["CommitLSN"].to_string()).collect();
    ensure!(places.len() as u64 == copies, "each is one transaction");
    Ok(())
}

#[test]
fn a_stop_amid_a_large_transaction_waits_for_nothing_that_nobody_writes_any_more() -> Result<()> {
    let cluster = start("stream-stop-amid", &[])?;
    cluster.sql(HISTORY)?;
    let path = to_file(&cluster, PLACES)?;
    for _ in 0..3 {
        let mut session = cluster.connect()?;
        let load = std::thread::spawn(move || {
            session.batch_execute("insert into history select 1, generate_series(1, 1000000000)")
        });
        let begun = cluster.sql("select pg_current_wal_insert_lsn()")?;
        let written = || cluster.sql(&format!("select pg_current_wal_insert_lsn() - '{begun}' > 30000000"));
        wait::until("much is written", || written().is_ok_and(|written| written == "t"))?;
        cluster.request_stop(Stop::Fast)?;
        cluster.wait_end()?;
        ensure!(load.join().is_ok_and(|load| load.is_err()), "the load was amid its work");
        cluster.start_again()?;
        running(&cluster, "shop to lines")?;
    }
    cluster.sql("insert into history values (2, 1)")?;
    delivered(&cluster)?;
    ensure!(check(&cluster, &path)? == 0);
    Ok(())
}

#[test]
fn a_prepared_transaction_comes_when_it_is_committed_and_not_when_it_is_rolled_back() -> Result<()> {
    let cluster = start("stream-prepared", &[("max_prepared_transactions", "2")])?;
    cluster.sql(HISTORY)?;
    let path = to_file(&cluster, PLACES)?;
    cluster.sql("begin; insert into history values (1, 1), (1, 2); prepare transaction 'stays'")?;
    cluster.sql("begin; insert into history values (2, 1); prepare transaction 'goes'")?;
    cluster.sql("insert into history values (3, 1)")?;
    delivered(&cluster)?;
    cluster.restart(Stop::Fast)?;
    running(&cluster, "shop to lines")?;
    cluster.sql("commit prepared 'stays'")?;
    cluster.sql("rollback prepared 'goes'")?;
    delivered(&cluster)?;
    ensure!(check(&cluster, &path)? == 0);
    let sessions: Vec<_> = events(&path)?.iter().map(|event| event["Columns"]["session"].as_i64()).collect();
    ensure!(sessions == [Some(3), Some(1), Some(1)], "{sessions:?}");
    Ok(())
}

#[test]
fn stops_pauses_and_starts_in_any_order_lose_and_double_nothing_while_sessions_write() -> Result<()> {
    let cluster = start("stream-switched", &[])?;
    cluster.sql(HISTORY)?;
    let path = to_file(&cluster, PLACES)?;
    let writers = Writers::start(&cluster, 3);
    let orders = [
        ["stop", "pause", "start"],
        ["stop", "start", "pause"],
        ["pause", "stop", "start"],
        ["pause", "start", "stop"],
        ["start", "stop", "pause"],
        ["start", "pause", "stop"],
    ];
    let state = || cluster.sql("select state from postern.streams");
    // Each word is followed by the next at once, and then when it has taken effect.
    for waits in [false, true] {
        for word in orders.as_flattened() {
            cluster.sql(&format!("select postern.{word}_stream('shop to lines')"))?;
            writers.go_on(10)?;
            let wanted = match *word {
                "stop" => "stopped",
                "pause" => "paused",
                _ => "running",
            };
            if waits {
                wait::until(wanted, || state().is_ok_and(|state| state == wanted))
                    .with_context(|| format!("{:?}; {}", state(), cluster.log_tail()))?;
                writers.go_on(10)?;
            }
        }
    }
    cluster.sql("select postern.start_stream('shop to lines')")?;
    running(&cluster, "shop to lines")?;
    writers.go_on(10)?;
    writers.stop()?;
    delivered(&cluster)?;
    let doubled = check(&cluster, &path)?;
    ensure!(doubled == 0, "{doubled} events came twice");
    Ok(())
}
