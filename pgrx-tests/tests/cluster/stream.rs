//! Change streams: what is committed arrives at the sinks, in order and with nothing lost, whatever ends in between.

use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{process, wait};
use rustix::process::Signal;
use serde_json::Value;
use std::path::PathBuf;

/// A server whose WAL can be decoded, with the extension.
pub fn start(name: &str, settings: &[(&str, &str)]) -> Result<Cluster> {
    let cluster = Cluster::new(name)?;
    cluster.set("wal_level", "logical")?.set("max_worker_processes", "16")?;
    for (name, value) in settings {
        cluster.set(name, value)?;
    }
    let cluster = cluster.start()?;
    cluster.create_extension()?;
    Ok(cluster)
}

/// A file that the server may write, in a directory that goes with the cluster.
pub fn file(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.data().join(name)
}

/// A sink into a file of its name, with more options of the sink's, and where that file is.
pub fn file_sink(cluster: &Cluster, name: &str, options: &str) -> Result<PathBuf> {
    let path = file(cluster, &format!("{name}.jsonl"));
    let mut options: Value = serde_json::from_str(options)?;
    options["path"] = path.display().to_string().into();
    cluster.sql(&format!("select postern.create_sink('{name}', 'file', '{options}')"))?;
    Ok(path)
}

/// Defines a source `shop` that feeds a file, with more options of the source's and of the sink's, and waits for nothing.
pub fn define(cluster: &Cluster, source: &str, sink: &str) -> Result<PathBuf> {
    let path = file_sink(cluster, "lines", sink)?;
    cluster.sql(&format!(
        "select postern.create_source('shop', 'postgres', '{source}');
         select postern.create_stream('shop to lines', 'shop', 'lines')"
    ))?;
    Ok(path)
}

/// [`define`], and waits until it runs.
pub fn to_file(cluster: &Cluster, options: &str) -> Result<PathBuf> {
    let path = define(cluster, options, "{}")?;
    running(cluster, "shop to lines")?;
    Ok(path)
}

/// One more source, with these options, that feeds a file of its own, by a stream that runs; all of one name.
pub fn another_to_file(cluster: &Cluster, name: &str, options: &str) -> Result<PathBuf> {
    let path = file_sink(cluster, name, "{}")?;
    cluster.sql(&format!(
        "select postern.create_source('{name}', 'postgres', '{options}');
         select postern.create_stream('{name}', '{name}', '{name}')"
    ))?;
    running(cluster, name)?;
    Ok(path)
}

/// Waits until a stream runs.
pub fn running(cluster: &Cluster, stream: &str) -> Result<()> {
    running_in(cluster, "postgres", stream)
}

/// [`running`] in another database.
pub fn running_in(cluster: &Cluster, database: &str, stream: &str) -> Result<()> {
    let sql = format!("select state, last_error from postern.streams where name = '{stream}'");
    let state = || cluster.sql_in(database, &sql);
    wait::until("the stream runs", || state().is_ok_and(|state| state.starts_with("running")))
        .with_context(|| format!("{:?}; {}", state(), cluster.log_tail()))
}

/// Waits until everything that is committed now has been delivered by every stream, of which there is one at least.
pub fn delivered(cluster: &Cluster) -> Result<()> {
    delivered_in(cluster, "postgres")
}

/// [`delivered`] in another database.
pub fn delivered_in(cluster: &Cluster, database: &str) -> Result<()> {
    let sql = |sql: &str| cluster.sql_in(database, sql);
    ensure!(sql("select count(*) from postern.streams")? != "0", "there is no stream that could deliver");
    let now = sql("select pg_current_wal_insert_lsn()")?;
    let all = format!("select bool_and(coalesce(delivered_lsn >= '{now}', false)) from postern.streams");
    wait::until("everything is delivered", || sql(&all).is_ok_and(|all| all == "t")).with_context(|| {
        let seen = sql("select to_jsonb(s) from postern.streams s");
        format!("{seen:?}; {}", cluster.log_tail())
    })
}

/// Process id of the one source's worker.
pub fn worker(cluster: &Cluster) -> Result<i32> {
    let pid = cluster.sql("select coalesce(worker_pid, 0) from postern.sources")?.parse()?;
    ensure!(pid != 0, "the source has no worker");
    Ok(pid)
}

/// Waits until the source has a worker that is not this one.
pub fn another_worker(cluster: &Cluster, old: i32) -> Result<()> {
    wait::until("it has another worker", || worker(cluster).is_ok_and(|now| now != old))
        .with_context(|| cluster.log_tail())
}

/// Terminates the source's worker, and waits until another one has its stream running.
pub fn terminate_worker(cluster: &Cluster) -> Result<()> {
    let pid = worker(cluster)?;
    cluster.sql(&format!("select pg_terminate_backend({pid})"))?;
    another_worker(cluster, pid)?;
    running(cluster, "shop to lines")
}

/// The events in a file.
pub fn events(path: &PathBuf) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[test]
fn what_is_committed_arrives_in_order_and_what_is_rolled_back_does_not() -> Result<()> {
    let cluster = start("stream-order", &[])?;
    cluster.sql("create table t (id int primary key, v text)")?;
    let path = to_file(&cluster, r#"{"ordinal":true,"commit_lsn":true}"#)?;
    cluster.sql("insert into t select i, 'v' || i from generate_series(1, 100) i")?;
    cluster.sql("begin; insert into t values (1000, 'never'); rollback")?;
    cluster.sql("begin; update t set v = 'x' where id = 1; delete from t where id = 2; commit")?;
    delivered(&cluster)?;
    let events = events(&path)?;
    ensure!(events.len() == 102, "{} events", events.len());
    for (index, event) in events[..100].iter().enumerate() {
        ensure!(
            event["Action"] == "insert" && event["Table"] == "t" && event["Ordinal"] == index + 1,
            "{event}"
        );
        ensure!(
            event["Columns"]["id"] == index + 1 && event["CommitLSN"] == events[0]["CommitLSN"],
            "{event}"
        );
    }
    ensure!(events[100]["Action"] == "update" && events[100]["Columns"]["v"] == "x");
    ensure!(events[101]["Action"] == "delete" && events[101]["Columns"]["id"] == 2);
    Ok(())
}

#[test]
fn a_restart_of_the_server_loses_and_doubles_nothing() -> Result<()> {
    let cluster = start("stream-restart", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    for round in 0..3 {
        cluster.sql(&format!(
            "insert into t select i from generate_series({}, {}) i",
            round * 1000,
            round * 1000 + 999
        ))?;
        cluster.stop(Stop::Fast)?;
        cluster.start_again()?;
        running(&cluster, "shop to lines")?;
    }
    delivered(&cluster)?;
    let ids: Vec<_> = events(&path)?.iter().map(|event| event["Columns"]["id"].as_i64()).collect();
    ensure!(ids == (0..3000).map(Some).collect::<Vec<_>>(), "{} events", ids.len());
    Ok(())
}

#[test]
fn a_stream_can_be_stopped_started_paused_rewound_and_dropped() -> Result<()> {
    let cluster = start("stream-switch", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, r#"{"retain":"1GB"}"#)?;
    let before = cluster.sql("select pg_current_wal_insert_lsn()")?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    let state = || cluster.sql("select state from postern.streams");
    for word in ["stop", "pause"] {
        cluster.sql(&format!("select postern.{word}_stream('shop to lines')"))?;
        let wanted = if word == "stop" { "stopped" } else { "paused" };
        wait::until("it has stopped", || {
            let pid = cluster.sql("select coalesce(worker_pid, 0) from postern.sources");
            state().is_ok_and(|state| state == wanted) && pid.is_ok_and(|pid| pid == "0")
        })?;
        cluster.sql(&format!("insert into t values ({})", if word == "stop" { 2 } else { 3 }))?;
        cluster.sql("select postern.start_stream('shop to lines')")?;
        running(&cluster, "shop to lines")?;
        delivered(&cluster)?;
    }
    let ids = || -> Result<Vec<i64>> {
        Ok(events(&path)?.iter().filter_map(|event| event["Columns"]["id"].as_i64()).collect())
    };
    ensure!(ids()? == [1, 2, 3], "{:?}", ids()?);
    cluster.sql(&format!("select postern.rewind_stream('shop to lines', '{before}')"))?;
    wait::until("all is delivered again", || ids().is_ok_and(|ids| ids == [1, 2, 3, 1, 2, 3]))?;
    let slots = || cluster.sql("select count(*) from pg_replication_slots");
    ensure!(slots()? == "1");
    cluster.sql("select postern.drop_stream('shop to lines'); select postern.drop_source('shop')")?;
    wait::until("its slot is gone", || slots().is_ok_and(|slots| slots == "0"))?;
    Ok(())
}

#[test]
fn a_source_that_is_made_again_before_its_worker_has_ended_runs() -> Result<()> {
    let cluster = start("stream-again", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    to_file(&cluster, "{}")?;
    let worker = worker(&cluster)?;
    process::signal_pid(worker, Signal::STOP)?;
    cluster.sql(
        "select postern.drop_stream('shop to lines'); select postern.drop_source('shop');
         select postern.drop_sink('lines')",
    )?;
    wait::until("it is seen that it was dropped", || {
        cluster.sql("select count(*) from postern.running_sources()").is_ok_and(|sources| sources == "0")
    })?;
    cluster.sql("select postern.create_source('shop')")?;
    process::signal_pid(worker, Signal::CONT)?;
    let path = file_sink(&cluster, "again", "{}")?;
    cluster.sql("select postern.create_stream('shop to lines', 'shop', 'again')")?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (7)")?;
    delivered(&cluster)?;
    let events = events(&path)?;
    ensure!(events.len() == 1 && events[0]["Columns"]["id"] == 7, "{events:?}");
    Ok(())
}
