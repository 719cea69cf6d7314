//! A sink that fails: it alone is made again, and the other sinks of its source notice nothing.

use crate::stream::{
    another_worker, delivered, events, file, file_sink, ids, running, start, to_file, worker as source_worker,
};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use rustix::fs::{CWD, RenameFlags};
use std::path::{Path, PathBuf};

/// A source `shop` that feeds two files, `one` and `two`.
fn to_two_files(cluster: &Cluster, options: &str) -> Result<[PathBuf; 2]> {
    let paths = ["one", "two"].map(|name| file(cluster, &format!("{name}.jsonl")));
    cluster.sql("create table t (id int primary key)")?;
    cluster.sql(&format!("select postern.create_source('shop', 'postgres', '{options}')"))?;
    for (name, path) in ["one", "two"].iter().zip(&paths) {
        cluster.sql(&format!(
            "select postern.create_sink('{name}', 'file', '{{\"path\":\"{}\",\"sync\":\"10ms\"}}');
             select postern.create_stream('{name}', 'shop', '{name}')",
            path.display()
        ))?;
    }
    running(cluster, "one")?;
    running(cluster, "two")?;
    Ok(paths)
}

/// Where the file was there is now a directory, until [`mend`]. The sink sees that when it has synced the row of this id.
fn spoil(cluster: &Cluster, path: &Path, id: i64) -> Result<PathBuf> {
    let aside = path.with_extension("aside");
    std::fs::rename(path, &aside)?;
    std::fs::create_dir(path)?;
    cluster.sql(&format!("insert into t values ({id})"))?;
    delivered(cluster)?;
    Ok(aside)
}

/// The file grows again where it ended.
fn mend(path: &Path, aside: &Path) -> Result<()> {
    // At once: a sink that found neither would make a new one.
    rustix::fs::renameat_with(CWD, aside, CWD, path, RenameFlags::EXCHANGE)?;
    Ok(std::fs::remove_dir(aside)?)
}

fn stream_is(cluster: &Cluster, name: &str, beginning: &str) -> Result<()> {
    let seen = || {
        cluster.sql(&format!("select state, errors, last_error from postern.streams where name = '{name}'"))
    };
    wait::until(&format!("stream {name} is {beginning}"), || {
        seen().is_ok_and(|seen| seen.starts_with(beginning))
    })
    .with_context(|| format!("{:?}; {}", seen(), cluster.log_tail()))
}

fn worker(cluster: &Cluster) -> Result<String> {
    cluster.sql("select worker_pid, worker_starts, errors from postern.sources")
}

#[test]
fn a_sink_that_fails_is_made_again_alone_and_lacks_nothing() -> Result<()> {
    let cluster = start("stream-sink-alone", &[])?;
    let [one, two] = to_two_files(&cluster, r#"{"retry":"200ms"}"#)?;
    cluster.sql("insert into t select generate_series(1, 100)")?;
    delivered(&cluster)?;
    let before = worker(&cluster)?;
    let aside = spoil(&cluster, &one, 101)?;
    cluster.sql("insert into t select generate_series(102, 200)")?;
    // Said at once, and once.
    cluster.wait_log("stream \"one\" has failed, and its sink is made again in 200ms: ")?;
    wait::until("the other goes on", || ids(&two).is_ok_and(|ids| ids.len() == 200))?;
    let errors = || cluster.sql("select errors from postern.sinks where name = 'one'");
    wait::until("it has failed again and again", || {
        errors().is_ok_and(|errors| errors.parse::<i64>().is_ok_and(|errors| errors > 2))
    })
    .with_context(|| format!("{:?}", errors()))?;
    let shown = cluster.sql(
        "select string_agg(concat_ws(' ', i.name, t.state = 'running', i.last_error is null, i.errors > 0), ', ' order by i.name)
         from postern.sinks i join postern.streams t on t.sink = i.name",
    )?;
    ensure!(shown == "one f f t, two t t f", "{shown}");
    cluster.sql("insert into t select generate_series(201, 300)")?;
    wait::until("the other goes on", || ids(&two).is_ok_and(|ids| ids.len() == 300))?;
    ensure!(worker(&cluster)? == before, "{} {before}", worker(&cluster)?);
    ensure!(cluster.sql("select state from postern.streams where name = 'two'")? == "running");
    mend(&one, &aside)?;
    running(&cluster, "one")?;
    delivered(&cluster)?;
    let all: Vec<_> = (1..=300).collect();
    ensure!(ids(&one)? == all && ids(&two)? == all, "{:?}", ids(&one)?);
    ensure!(worker(&cluster)? == before, "{} {before}", worker(&cluster)?);
    cluster.wait_log("stream \"one\" delivers again")?;
    Ok(())
}

#[test]
fn a_sink_that_lacks_more_than_memory_holds_gets_it_when_it_is_well() -> Result<()> {
    let cluster = start("stream-sink-much", &[("postern.stream_buffer_size", "1MB")])?;
    let [one, two] = to_two_files(&cluster, r#"{"retry":"200ms"}"#)?;
    cluster.sql("insert into t values (0)")?;
    delivered(&cluster)?;
    let before = worker(&cluster)?;
    let aside = spoil(&cluster, &one, 1)?;
    cluster.sql("insert into t select generate_series(2, 10000)")?;
    wait::until("the other goes on", || ids(&two).is_ok_and(|ids| ids.len() == 10_001))?;
    stream_is(&cluster, "one", "failed|")?;
    ensure!(worker(&cluster)? == before, "nobody is disturbed before it is well");
    mend(&one, &aside)?;
    delivered(&cluster)?;
    let all: Vec<_> = (0..=10_000).collect();
    ensure!(ids(&one)? == all, "{} events", ids(&one)?.len());
    ensure!(ids(&two)? == all, "{} events", ids(&two)?.len());
    Ok(())
}

#[test]
fn a_sink_that_stops_stops_its_stream_and_no_other() -> Result<()> {
    let cluster = start("stream-one-stops", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, r#"{"retry":"200ms"}"#)?;
    let second = file_sink(&cluster, "second", "{}")?;
    cluster.sql("select postern.create_stream('second', 'shop', 'second')")?;
    running(&cluster, "second")?;
    // A directory is where its file is to be.
    std::fs::create_dir(&second)?;
    cluster.sql("insert into t select generate_series(1, 100)")?;
    wait::until("the other one has all", || events(&path).is_ok_and(|events| events.len() == 100))?;
    let state = || cluster.sql("select state, last_error from postern.streams where name = 'second'");
    wait::until("it has failed", || {
        state().is_ok_and(|state| !state.starts_with("running") && state.contains("second.jsonl"))
    })
    .with_context(|| format!("{:?}", state()))?;
    let inserted = cluster.sql("select pg_current_wal_insert_lsn()")?;
    let has = |stream: &str| {
        let sql =
            format!("select delivered_lsn >= '{inserted}' from postern.streams where name = '{stream}'");
        cluster.sql(&sql).is_ok_and(|has| has == "t")
    };
    wait::until("the other one is said to have it", || has("shop to lines"))?;
    ensure!(!has("second"));
    cluster.sql("insert into t select generate_series(101, 200)")?;
    wait::until("the other one goes on", || events(&path).is_ok_and(|events| events.len() == 200))?;
    std::fs::remove_dir(&second)?;
    wait::until("it has caught up", || events(&second).is_ok_and(|events| events.len() == 200))
        .with_context(|| format!("{:?}; {}", state(), cluster.log_tail()))?;
    ensure!(events(&path)?.len() == 200, "and the other one got nothing twice");
    Ok(())
}

#[test]
fn a_stream_that_is_led_to_another_sink_goes_on_there_with_the_next_event() -> Result<()> {
    let cluster = start("stream-led", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let first = to_file(&cluster, r#"{"retry":"200ms"}"#)?;
    let second = file_sink(&cluster, "second", "{}")?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    let old = source_worker(&cluster)?;
    cluster.sql("select postern.alter_stream('shop to lines', 'second')")?;
    // Whoever has the stream at the moment may still take this one, and then the other does not get it.
    cluster.sql("insert into t values (2)")?;
    another_worker(&cluster, old)?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (3)")?;
    delivered(&cluster)?;
    ensure!(cluster.sql("select sink, state from postern.streams")? == "second|running");
    let left = ids(&first)?;
    let all = |second| [left.clone(), second].concat();
    ensure!([1, 2].starts_with(&left) && !left.is_empty(), "{left:?}");
    ensure!(all(ids(&second)?) == [1, 2, 3], "{left:?} {:?}", ids(&second)?);
    // What is switched by the sink's name is its stream, and that of no other sink.
    ensure!(cluster.sql("select postern.stop_sink('lines')")? == "0");
    for (act, state, id) in [("stop", "stopped", 4), ("pause", "paused", 5)] {
        ensure!(cluster.sql(&format!("select postern.{act}_sink('second')"))? == "1");
        wait::until("it has ended", || {
            let seen = "select t.state, coalesce(s.worker_pid, 0) from postern.streams t, postern.sources s";
            cluster.sql(seen).is_ok_and(|seen| seen == format!("{state}|0"))
        })
        .with_context(|| cluster.log_tail())?;
        let before = ids(&second)?;
        cluster.sql(&format!("insert into t values ({id})"))?;
        ensure!(ids(&second)? == before, "{:?}", ids(&second)?);
        ensure!(cluster.sql("select postern.start_sink('second')")? == "1");
        running(&cluster, "shop to lines")?;
        delivered(&cluster)?;
        ensure!(all(ids(&second)?) == (1..=id).collect::<Vec<_>>(), "{left:?} {:?}", ids(&second)?);
    }
    ensure!(ids(&first)? == left, "{:?}", ids(&first)?);
    ensure!(cluster.sql("select coalesce(gap, '-') from postern.streams")? == "-");
    Ok(())
}

#[test]
fn stub_log_writes_each_event_to_the_servers_log_and_cuts_a_long_one() -> Result<()> {
    let cluster = start("stream-log", &[])?;
    cluster.sql("create table t (id int primary key, v text)")?;
    cluster.sql(
        "select postern.create_source('shop'); select postern.create_sink('log', 'stub_log');
         select postern.create_stream('shop to log', 'shop', 'log')",
    )?;
    running(&cluster, "shop to log")?;
    cluster.sql("insert into t values (1, 'a\nb'), (2, repeat('x', 10000)), (3, 'last')")?;
    delivered(&cluster)?;
    cluster.wait_log(r#""Columns":{"id":3,"v":"last"}"#)?;
    let log = cluster.log();
    let line = |id: i64| {
        let its = format!(r#""Columns":{{"id":{id},"#);
        log.lines().find(|line| line.contains(&its)).with_context(|| format!("{id} is not in the log"))
    };
    ensure!(line(1)?.contains(r#"{"id":1,"v":"a\nb"}"#), "{}", line(1)?);
    let long = line(2)?;
    ensure!(long.matches('x').count() > 7000 && long.len() < 9000, "{} bytes: {long}", long.len());
    ensure!(cluster.sql("select events from postern.streams")? == "3");
    Ok(())
}
