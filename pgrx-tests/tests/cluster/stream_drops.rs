//! Streams, sources, the extension and databases that are dropped: nothing is left of them, and nobody else notices.

use crate::stream::{
    QUICK, another_database, define, delivered, events, file_sink, ids, running, slots, source_is, start,
    stopped_in, to_file, worker, works,
};
use anyhow::{Context, Result, anyhow, ensure};
use pgrx_tests::{process, wait};
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn a_stream_that_is_being_dropped_holds_up_neither_its_worker_nor_its_source() -> Result<()> {
    let cluster = start("stream-dropping", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    let mut operator = cluster.connect()?;
    operator.batch_execute("begin; select postern.drop_stream('shop to lines')")?;
    for id in 1..=4 {
        cluster.sql(&format!("insert into t values ({id})"))?;
        delivered(&cluster)?;
        ensure!(ids(&path)?.ends_with(&[id]));
    }
    operator.batch_execute("select postern.drop_source('shop'); commit")?;
    slots(&cluster, 0)
}

#[test]
fn a_publication_that_is_made_while_its_source_is_dropped_goes_with_it() -> Result<()> {
    let cluster = start("stream-publication-race", &[])?;
    cluster.sql("select postern.create_source('shop', 'postgres', '{}')")?;
    // As its worker does it.
    let mut worker = cluster.connect()?;
    worker.batch_execute(
        "begin; create publication postern_shop for all tables;
         insert into postern.made_publications select oid, pubowner, 'shop' from pg_publication",
    )?;
    std::thread::scope(|scope| {
        let dropping = scope.spawn(|| cluster.sql("select postern.drop_source('shop')"));
        wait::until("the drop waits for the worker", || {
            cluster.sql("select count(*) from pg_locks where not granted").is_ok_and(|waiting| waiting == "1")
        })?;
        worker.batch_execute("commit")?;
        dropping.join().map_err(|_| anyhow!("the drop panicked"))??;
        Ok::<_, anyhow::Error>(())
    })?;
    let left = cluster.sql("select coalesce(string_agg(pubname, ', '), '-') from pg_publication")?;
    ensure!(left == "-", "{left}");
    Ok(())
}

#[test]
fn a_long_transaction_holds_up_the_beginning_and_is_named_and_dropping_the_source_works() -> Result<()> {
    let cluster = start("stream-long", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let mut long = cluster.connect()?;
    long.batch_execute("begin; insert into t values (1)")?;
    define(&cluster, QUICK, "{}")?;
    source_is(&cluster, "starting", "transactions that are running")?;
    cluster.sql("select postern.drop_stream('shop to lines'); select postern.drop_source('shop')")?;
    slots(&cluster, 0)?;
    cluster.sql("select postern.drop_sink('lines')")?;
    let path = define(&cluster, QUICK, "{}")?;
    source_is(&cluster, "starting", "transactions that are running")?;
    long.batch_execute("commit")?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (2)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)?.ends_with(&[2]));
    Ok(())
}

#[test]
fn a_source_whose_snapshot_waits_for_a_transaction_can_be_dropped() -> Result<()> {
    let cluster = start("stream-long-snapshot", &[])?;
    cluster.sql(
        r#"create table t (id int primary key); select postern.create_sink('d', 'stub_discard'); select postern.create_sink('e', 'stub_discard');
           select postern.create_source('shop', 'postgres', '{"snapshot": true}');
           select postern.create_stream('one', 'shop', 'd'); select postern.create_stream('two', 'shop', 'e', false)"#,
    )?;
    source_is(&cluster, "snapshot", "the snapshot begins when")?;
    let mut long = cluster.connect()?;
    long.batch_execute("begin; insert into t values (1)")?;
    cluster.sql("select postern.start_stream('two')")?;
    // The snapshot's own is one of them: it begins when the transaction has ended.
    slots(&cluster, 2)?;
    cluster.sql("select postern.drop_stream('one'); select postern.drop_stream('two'); select postern.drop_source('shop')")?;
    slots(&cluster, 0)?;
    Ok(long.batch_execute("commit")?)
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

#[test]
fn a_database_whose_streams_are_stopped_can_be_dropped_and_another_one_streams_on() -> Result<()> {
    let cluster = start("stream-drop-database", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, QUICK)?;
    another_database(&cluster, "other")?;
    let refused = cluster.sql("drop database other with (force)");
    ensure!(
        refused.as_ref().is_err_and(|error| format!("{error:?}").contains("active logical replication slot")),
        "{refused:?}"
    );
    stopped_in(&cluster, "other", "s")?;
    wait::until("it can be dropped", || cluster.sql("drop database other").is_ok())?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots")? == "1", "its slot went with it");
    works(&cluster, &path)
}

#[test]
fn a_dropped_extension_and_a_dropped_database_are_a_line_in_the_log_and_no_error() -> Result<()> {
    let cluster = start("stream-dropped", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    to_file(&cluster, "{}")?;
    another_database(&cluster, "other")?;
    stopped_in(&cluster, "other", "s")?;
    wait::until("the database can be dropped", || cluster.sql("drop database other").is_ok())?;
    cluster.sql("insert into t values (1); drop extension postern cascade; insert into t values (2)")?;
    wait::until_within(Duration::from_secs(50), "slot and worker are gone", || {
        let slots = cluster.sql("select count(*) from pg_replication_slots");
        let workers =
            cluster.sql("select count(*) from pg_stat_activity where backend_type = 'postern stream'");
        slots.is_ok_and(|slots| slots == "0") && workers.is_ok_and(|workers| workers == "0")
    })
    .with_context(|| cluster.log_tail())?;
    cluster.wait_log("database \"other\" is no more")?;
    let log = cluster.log();
    for bad in ["FATAL", "ERROR:  ", "WARNING", "Backtrace"] {
        let lines: Vec<_> = log
            .lines()
            .filter(|line| {
                line.contains(bad)
                    && !line.contains("is being accessed")
                    && !line.contains("is used by an active")
            })
            .collect();
        // A worker that connects in the very moment of the drop ends with the server's own FATAL, once; none is started after it.
        let races =
            lines.iter().filter(|line| line.contains("FATAL:  database") && line.contains("does not exist"));
        ensure!(lines.len() == races.count() && lines.len() <= 1, "{lines:?}\n{log}");
    }
    Ok(())
}
