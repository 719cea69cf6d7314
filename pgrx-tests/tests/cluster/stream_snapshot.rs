//! What is there before a stream begins comes first, and fits what comes after it.

use crate::stream::{define, delivered, events, running, start, worker};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::process::signal_pid;
use pgrx_tests::wait;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Tables `a`, `b` and `c` with rows, to which somebody writes, and `d`, which is left alone.
fn tables(cluster: &Cluster) -> Result<()> {
    for table in ["a", "b", "c", "d"] {
        cluster.sql(&format!(
            "create table {table} (id int primary key, n int, v text); insert into {table} select i, 0, repeat('x', 100) from generate_series(1, 5000) i"
        ))?;
    }
    Ok(())
}

/// One file, of which a table's rows are safe a second after they came.
const SINK: &str = r#"{"rotate_size":"1GB","sync":"1s"}"#;

fn write(cluster: &Cluster, stop: &AtomicBool) {
    let mut round = 0;
    while !stop.load(Relaxed) {
        let Ok(mut client) = cluster.connect() else { continue };
        while !stop.load(Relaxed) {
            round += 1;
            let (table, id) = (["a", "b", "c"][round % 3], round * 31 % 5000 + 1);
            let sql = format!(
                "update {table} set n = n + 1 where id = {id}; delete from {table} where id = {}; insert into {table} values ({}, 0, 'new')",
                (id * 7) % 5000 + 1,
                10_000 + round
            );
            if client.batch_execute(&sql).is_err() {
                break;
            }
        }
    }
}

/// What somebody has who applies the events, beside what the tables have.
fn compare(cluster: &Cluster, path: &PathBuf) -> Result<()> {
    let mut copies: BTreeMap<String, BTreeMap<i64, i64>> = BTreeMap::new();
    for event in events(path)? {
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let copy = copies.entry(text("Table")).or_default();
        let id = event["Columns"]["id"].as_i64().context("no id")?;
        match &text("Action")[..] {
            "delete" => drop(copy.remove(&id)),
            _ => drop(copy.insert(id, event["Columns"]["n"].as_i64().context("no n")?)),
        }
    }
    for table in ["a", "b", "c"] {
        let rows = cluster.connect()?.query(&format!("select id, n from {table} order by id"), &[])?;
        let wanted: BTreeMap<i64, i64> =
            rows.iter().map(|row| (row.get::<_, i32>(0).into(), row.get::<_, i32>(1).into())).collect();
        let copy = copies.remove(table).unwrap_or_default();
        let differs = wanted.iter().find(|(id, n)| copy.get(id) != Some(n));
        ensure!(copy == wanted, "{table}: {} rows for {}; {differs:?}", copy.len(), wanted.len());
    }
    Ok(())
}

/// What was there and was never changed has come, and once.
fn untouched_came_once(path: &PathBuf) -> Result<()> {
    let events = events(path)?;
    let of_d = events.iter().filter(|event| event["Table"] == "d");
    let mut ids: Vec<_> = of_d.map(|event| event["Columns"]["id"].as_i64()).collect();
    ids.sort_unstable();
    ensure!(ids == (1..=5000).map(Some).collect::<Vec<_>>(), "{} events of d", ids.len());
    Ok(())
}

#[test]
fn a_snapshot_and_the_changes_after_it_make_the_tables() -> Result<()> {
    let cluster = start("stream-snapshot", &[])?;
    tables(&cluster)?;
    let stop = AtomicBool::new(false);
    let path = std::thread::scope(|scope| {
        scope.spawn(|| write(&cluster, &stop));
        let path = define(&cluster, r#"{"snapshot":true}"#, SINK);
        let streams = wait::until("the snapshot is done", || {
            cluster.sql("select snapshot_done from postern.source_states").is_ok_and(|done| done == "t")
        });
        stop.store(true, Relaxed);
        streams.with_context(|| cluster.log_tail()).and(path)
    })?;
    delivered(&cluster)?;
    compare(&cluster, &path)?;
    untouched_came_once(&path)?;
    ensure!(
        cluster.sql("select count(*) from pg_replication_slots")? == "1",
        "the snapshots' own slots are gone"
    );
    Ok(())
}

#[test]
fn a_snapshot_that_is_interrupted_goes_on_with_the_next_table() -> Result<()> {
    let cluster = start("stream-snapshot-again", &[("postern.stream_buffer_size", "1MB")])?;
    tables(&cluster)?;
    let stop = AtomicBool::new(false);
    let path = std::thread::scope(|scope| {
        scope.spawn(|| write(&cluster, &stop));
        let path = define(&cluster, r#"{"snapshot":true,"retry":"100ms"}"#, r#"{"sync":"5s"}"#);
        let ended = (|| {
            // Amid the second table: what it has of it waits for the next sync, and the worker is held in the meantime.
            let pid = wait::for_value("the worker", || worker(&cluster))?;
            cluster.wait_log("snapshot of table \"public\".\"b\"")?;
            signal_pid(pid, Signal::STOP)?;
            let done = cluster.sql(
                "select snapshot_done, (select count(*) from postern.snapshot_tables where delivered) from postern.source_states",
            )?;
            ensure!(done == "f|1", "not amid the second table: {done}");
            signal_pid(pid, Signal::TERM)?;
            signal_pid(pid, Signal::CONT)?;
            wait::until("the snapshot is done", || {
                cluster.sql("select snapshot_done from postern.source_states").is_ok_and(|done| done == "t")
            })
        })();
        stop.store(true, Relaxed);
        ended.with_context(|| cluster.log_tail()).and(path)
    })?;
    delivered(&cluster)?;
    compare(&cluster, &path)?;
    let log = cluster.log();
    let begun = ["a", "b", "c", "d"]
        .map(|table| log.matches(&format!("snapshot of table \"public\".\"{table}\"")).count());
    ensure!(begun == [1, 2, 1, 1], "the one that was interrupted is read again, and no other: {begun:?}");
    untouched_came_once(&path)?;
    Ok(())
}

#[test]
fn a_snapshot_has_the_rows_and_columns_that_the_publication_has() -> Result<()> {
    let cluster = start("stream-snapshot-filter", &[])?;
    cluster.sql(
        "create table t (id int primary key, secret text, n int);
         insert into t select i, 'no', i from generate_series(1, 20) i;
         create publication p for table t (id, n) where (id > 10)",
    )?;
    let path = define(&cluster, r#"{"snapshot":true,"publication":"p"}"#, "{}")?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (5000, 'no', 1), (-1, 'no', 1)")?;
    delivered(&cluster)?;
    let mut found: Vec<_> = events(&path)?.iter().map(|event| event["Columns"].to_string()).collect();
    found[..10].sort_unstable();
    let mut wanted: Vec<_> = (11..=20).map(|id| format!(r#"{{"id":{id},"n":{id}}}"#)).collect();
    wanted.push(r#"{"id":5000,"n":1}"#.to_owned());
    ensure!(found == wanted, "{found:?}");
    Ok(())
}
