//! Change streams: what is committed arrives at the sinks, in order and with nothing lost, whatever ends in between.

use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::wait;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

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

/// Makes a database in which a stream `s` from a source `s` to nowhere runs.
pub fn another_database(cluster: &Cluster, database: &str) -> Result<()> {
    cluster.sql(&format!("create database {database}"))?;
    cluster.sql_in(
        database,
        "create extension postern; select postern.create_source('s'); select postern.create_sink('d', 'stub_discard');
         select postern.create_stream('s', 's', 'd')",
    )?;
    running_in(cluster, database, "s")
}

/// Waits until everything that is committed now has been delivered by every stream, of which there is one at least.
pub fn delivered(cluster: &Cluster) -> Result<()> {
    delivered_in(cluster, "postgres")
}

/// [`delivered`], where there is so much that it may take longer than most things.
pub fn delivered_within(cluster: &Cluster, limit: Duration) -> Result<()> {
    delivered_in_within(cluster, "postgres", limit)
}

/// [`delivered`] in another database.
pub fn delivered_in(cluster: &Cluster, database: &str) -> Result<()> {
    delivered_in_within(cluster, database, wait::LIMIT)
}

fn delivered_in_within(cluster: &Cluster, database: &str, limit: Duration) -> Result<()> {
    let sql = |sql: &str| cluster.sql_in(database, sql);
    ensure!(sql("select count(*) from postern.streams")? != "0", "there is no stream that could deliver");
    let now = sql("select pg_current_wal_insert_lsn()")?;
    let all = format!("select bool_and(coalesce(delivered_lsn >= '{now}', false)) from postern.streams");
    wait::until_within(limit, "everything is delivered", || sql(&all).is_ok_and(|all| all == "t"))
        .with_context(|| {
            let seen = sql("select to_jsonb(s) from postern.streams s");
            format!("{seen:?}; {}", cluster.log_tail())
        })
}

/// Process id of the one source's worker.
pub fn worker(cluster: &Cluster) -> Result<i32> {
    let row = cluster.sql("select coalesce(worker_pid, 0), state, last_error from postern.sources")?;
    let (pid, why) = row.split_once('|').unwrap_or((&row, ""));
    let pid = pid.parse().with_context(|| format!("the source is not there: \"{row}\""))?;
    ensure!(pid != 0, "the source has no worker: {why}");
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

/// The ids of the rows in a file.
pub fn ids(path: &PathBuf) -> Result<Vec<i64>> {
    Ok(events(path)?.iter().filter_map(|event| event["Columns"]["id"].as_i64()).collect())
}

/// Waits until the last row of a query has this in it.
pub fn shows(cluster: &Cluster, sql: &str, wanted: &str) -> Result<()> {
    let shown = || cluster.sql(sql);
    wait::until(&format!("{sql} gives {wanted}"), || shown().is_ok_and(|shown| shown.contains(wanted)))
        .with_context(|| format!("{:?}; {}", shown(), cluster.log_tail()))
}

/// Waits until the first source is in this state with this in its last error.
pub fn source_is(cluster: &Cluster, state: &str, error: &str) -> Result<()> {
    let seen = || cluster.sql("select state, last_error from postern.sources order by name limit 1");
    wait::until(&format!("the source is {state}: {error}"), || {
        seen().is_ok_and(|seen| seen.starts_with(&format!("{state}|")) && seen.contains(error))
    })
    .with_context(|| format!("{:?}; {}", seen(), cluster.log_tail()))
}

/// Stops the source `shop`, and waits until its worker has ended.
pub fn stopped(cluster: &Cluster) -> Result<()> {
    stopped_in(cluster, "postgres", "shop")
}

/// [`stopped`] in another database.
pub fn stopped_in(cluster: &Cluster, database: &str, source: &str) -> Result<()> {
    cluster.sql_in(database, &format!("select postern.stop_source('{source}')"))?;
    let state = format!("select state, coalesce(worker_pid, 0) from postern.sources where name = '{source}'");
    wait::until("it has stopped", || cluster.sql_in(database, &state).is_ok_and(|state| state == "stopped|0"))
        .with_context(|| cluster.log_tail())
}

/// Waits until the server has so many replication slots.
pub fn slots(cluster: &Cluster, count: u32) -> Result<()> {
    let sql = "select count(*) from pg_replication_slots";
    wait::until(&format!("there are {count} slots"), || {
        cluster.sql(sql).is_ok_and(|slots| slots == count.to_string())
    })
    .with_context(|| cluster.log_tail())
}

/// Writes so many segments of WAL.
pub fn write_wal(cluster: &Cluster, segments: u32) -> Result<()> {
    cluster.sql("create table if not exists filler (v int)")?;
    for _ in 0..segments {
        cluster.sql("insert into filler values (1)")?;
        cluster.sql("select pg_switch_wal()")?;
    }
    Ok(())
}

/// What the server says of a mistake: its code, its message and what it adds.
pub fn mistake(cluster: &Cluster, database: &str, sql: &str) -> Result<String> {
    let failed = cluster.sql_in(database, sql).err().with_context(|| format!("{sql} is allowed"))?;
    let error = failed.downcast_ref::<postgres::Error>().and_then(postgres::Error::as_db_error);
    let error = error.with_context(|| format!("{sql}: {failed}"))?;
    let more = [error.detail(), error.hint()].into_iter().flatten();
    let said: Vec<_> = [error.code().code(), error.message()].into_iter().chain(more).collect();
    Ok(said.join(" "))
}

/// The stream runs, and its first event is the one of a row that is put into `t` now.
pub fn works(cluster: &Cluster, path: &PathBuf) -> Result<()> {
    running(cluster, "shop to lines")?;
    cluster.sql("insert into t values (1)")?;
    delivered(cluster)?;
    ensure!(ids(path)? == [1], "{:?}", ids(path)?);
    Ok(())
}

pub const QUICK: &str = r#"{"retry":"200ms"}"#;

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
    ensure!(ids(&path)? == [1, 2, 3], "{:?}", ids(&path)?);
    cluster.sql(&format!("select postern.rewind_stream('shop to lines', '{before}')"))?;
    wait::until("all is delivered again", || ids(&path).is_ok_and(|ids| ids == [1, 2, 3, 1, 2, 3]))?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots")? == "1");
    cluster.sql("select postern.drop_stream('shop to lines'); select postern.drop_source('shop')")?;
    slots(&cluster, 0)
}
