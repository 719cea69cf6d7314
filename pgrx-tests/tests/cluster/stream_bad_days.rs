//! Bad days of a change stream: each is a clear state and error in `postern.sources`, and all is well again when it is mended.

use crate::stream::{define, delivered, events, running, running_in, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{process, wait};
use rustix::process::Signal;
use std::path::PathBuf;

/// Waits until a source is in this state with this in its last error.
fn source_is(cluster: &Cluster, state: &str, error: &str) -> Result<()> {
    let seen = || cluster.sql("select state, last_error from postern.sources order by name limit 1");
    wait::until(&format!("the source is {state}: {error}"), || {
        seen().is_ok_and(|seen| seen.starts_with(&format!("{state}|")) && seen.contains(error))
    })
    .with_context(|| format!("{:?}; {}", seen(), cluster.log_tail()))
}

/// The ids in a file.
fn ids(path: &PathBuf) -> Result<Vec<i64>> {
    Ok(events(path)?.iter().filter_map(|event| event["Columns"]["id"].as_i64()).collect())
}

/// The stream runs, and its first event is the one of a row that is put into `t` now.
fn works(cluster: &Cluster, path: &PathBuf) -> Result<()> {
    running(cluster, "shop to lines")?;
    cluster.sql("insert into t values (1)")?;
    delivered(cluster)?;
    ensure!(ids(path)? == [1], "{:?}", ids(path)?);
    Ok(())
}

fn stopped(cluster: &Cluster) -> Result<()> {
    cluster.sql("select postern.stop_source('shop')")?;
    wait::until("it has stopped", || {
        let state = cluster.sql("select state, coalesce(worker_pid, 0) from postern.sources");
        state.is_ok_and(|state| state == "stopped|0")
    })
}

/// Writes so many segments of WAL.
fn write_wal(cluster: &Cluster, segments: u32) -> Result<()> {
    cluster.sql("create table if not exists filler (v int)")?;
    for _ in 0..segments {
        cluster.sql("insert into filler values (1)")?;
        cluster.sql("select pg_switch_wal()")?;
    }
    Ok(())
}

const QUICK: &str = r#"{"retry":"200ms"}"#;

#[test]
fn a_wal_level_that_is_too_low_is_said_and_a_restart_with_another_mends_it() -> Result<()> {
    let cluster = start("stream-wal-level", &[("wal_level", "replica")])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = define(&cluster, QUICK, "{}")?;
    source_is(&cluster, "failed", "wal_level")?;
    cluster.set("wal_level", "logical")?.restart(Stop::Fast)?;
    works(&cluster, &path)
}

#[test]
fn a_slot_that_another_process_has_is_waited_for() -> Result<()> {
    let cluster = start("stream-taken", &[])?;
    cluster.sql("create table t (id int primary key); create publication p for all tables")?;
    cluster.sql("select pg_create_logical_replication_slot('taken', 'pgoutput')")?;
    let mut other = cluster.program("pg_recvlogical");
    other.args(["-h", &cluster.socket_directory().to_string_lossy(), "-p", &cluster.port.to_string()]);
    other.args(["-U", "postgres", "-d", "postgres", "--slot", "taken", "--start", "-f", "/dev/null"]);
    other.args(["-o", "proto_version=1", "-o", "publication_names=p"]);
    let mut other = process::start(other, Signal::INT)?;
    wait::until("it has the slot", || {
        cluster.sql("select active from pg_replication_slots").is_ok_and(|active| active == "t")
    })?;
    let path = define(&cluster, r#"{"retry":"200ms","slot":"taken","publication":"p"}"#, "{}")?;
    source_is(&cluster, "failed", "is active for PID")?;
    other.signal(Signal::INT)?;
    other.wait(wait::LIMIT)?;
    works(&cluster, &path)?;
    // Who has not made a slot does not drop it.
    cluster.sql("select postern.drop_stream('shop to lines'); select postern.drop_source('shop')")?;
    wait::until("the slot is free", || {
        cluster.sql("select active from pg_replication_slots").is_ok_and(|active| active == "f")
    })
}

#[test]
fn a_slot_that_was_dropped_by_hand_is_missed_and_going_on_without_it_states_the_gap() -> Result<()> {
    let cluster = start("stream-no-slot", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, QUICK)?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    stopped(&cluster)?;
    cluster.sql("select pg_drop_replication_slot(slot) from postern.sources; insert into t values (2)")?;
    cluster.sql("select postern.start_source('shop')")?;
    source_is(&cluster, "blocked", "is gone")?;
    ensure!(
        cluster.sql("select last_error from postern.sources")?.contains("lost_slot"),
        "it says what to do"
    );
    cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue"}')"#)?;
    running(&cluster, "shop to lines")?;
    let gap = cluster.sql("select gap from postern.streams")?;
    ensure!(gap.contains("is gone") && gap.contains("are lost"), "{gap}");
    cluster.sql("insert into t values (3)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [1, 3]);
    Ok(())
}

#[test]
fn an_invalidated_slot_stops_the_stream_or_goes_on_with_a_gap_as_the_operator_says() -> Result<()> {
    let cluster = start("stream-invalidated", &[("max_slot_wal_keep_size", "16MB"), ("wal_keep_size", "0")])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, QUICK)?;
    for (id, choice) in [(1, "stop"), (2, "continue")] {
        cluster.sql(&format!(r#"select postern.alter_source('shop', '{{"lost_slot":"{choice}"}}')"#))?;
        running(&cluster, "shop to lines")?;
        delivered(&cluster)?;
        stopped(&cluster)?;
        cluster.sql(&format!("insert into t values ({id})"))?;
        write_wal(&cluster, 4)?;
        cluster.sql("checkpoint")?;
        let lost = cluster.sql("select wal_status from postern.sources")?;
        ensure!(lost == "lost", "{lost}");
        cluster.sql("select postern.start_source('shop')")?;
        if choice == "stop" {
            source_is(&cluster, "blocked", "was invalidated")?;
            ensure!(cluster.sql("select coalesce(gap, '-') from postern.streams")? == "-");
            cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue"}')"#)?;
        }
        running(&cluster, "shop to lines")?;
        let gap = cluster.sql("select gap from postern.streams")?;
        ensure!(gap.contains("was invalidated") && gap.contains("max_slot_wal_keep_size"), "{gap}");
        cluster.sql(&format!("insert into t values ({id}0)"))?;
        delivered(&cluster)?;
    }
    ensure!(ids(&path)? == [10, 20], "{:?}", ids(&path)?);
    Ok(())
}

#[test]
fn changes_without_a_publication_are_stated_and_do_not_wedge_the_stream() -> Result<()> {
    let cluster = start("stream-publication-gone", &[])?;
    cluster.sql("create table t (id int primary key); create publication p for table t")?;
    // A slot that is older than the publication of the source.
    cluster
        .sql("select pg_create_logical_replication_slot('older', 'pgoutput'); insert into t values (1)")?;
    let path = to_file(&cluster, r#"{"retry":"200ms","slot":"older","publication":"younger"}"#)?;
    cluster.sql("insert into t values (2)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [2], "{:?}", ids(&path)?);
    source_is(&cluster, "streaming", "there was no publication \"younger\"")?;
    let stated = cluster.sql("select gap from postern.streams")?;
    cluster.sql("drop publication younger")?;
    cluster.sql("insert into t values (3)")?;
    wait::until("another gap is stated", || {
        cluster.sql("select gap from postern.streams").is_ok_and(|gap| gap.len() > stated.len())
    })?;
    cluster.sql("create publication younger for table t; insert into t values (4)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [2, 4], "{:?}", ids(&path)?);
    // Before it was made, and while it was gone: the two are told apart.
    let gap = || cluster.sql("select gap from postern.streams");
    wait::until("both gaps are stated", || {
        gap().is_ok_and(|gap| gap.matches("changes then were not published").count() == 2)
    })
    .with_context(|| format!("{:?}", gap()))
}

#[test]
fn a_dropped_table_and_changed_columns_are_decoded_as_they_were() -> Result<()> {
    let cluster = start("stream-schema", &[])?;
    cluster
        .sql("create table t (id int primary key, a text, b int); create table gone (id int primary key)")?;
    let path = to_file(&cluster, QUICK)?;
    stopped(&cluster)?;
    for statement in [
        "insert into gone values (100)",
        "drop table gone",
        "insert into t values (1, 'x', 1)",
        "alter table t add c timestamptz default '2026-01-01 00:00+00'",
        "insert into t values (2, 'x', 2)",
        "alter table t drop a",
        "update t set b = 20 where id = 1",
        "alter table t rename b to d",
        "insert into t (id, d) values (3, 3)",
        "alter table t alter d type text using d || '!'",
        "insert into t (id, d, c) values (4, '4', null)",
        "alter table t rename to u",
        "begin; insert into u values (5, '5'); alter table u add e int[]; update u set e = '{1}' where id = 5; commit",
        "truncate u",
        "drop table u",
    ] {
        cluster.sql(statement)?;
    }
    cluster.sql("select postern.start_source('shop')")?;
    running(&cluster, "shop to lines")?;
    delivered(&cluster)?;
    let said: Vec<_> = events(&path)?
        .iter()
        .map(|event| format!("{} {}", event["Table"].as_str().unwrap_or_default(), event["Columns"]))
        .collect();
    let c = r#""c":"2026-01-01T00:00:00Z""#;
    let wanted = [
        r#"gone {"id":100}"#.to_owned(),
        r#"t {"a":"x","b":1,"id":1}"#.to_owned(),
        format!(r#"t {{"a":"x","b":2,{c},"id":2}}"#),
        format!(r#"t {{"b":20,{c},"id":1}}"#),
        format!(r#"t {{{c},"d":3,"id":3}}"#),
        r#"t {"c":null,"d":"4","id":4}"#.to_owned(),
        format!(r#"u {{{c},"d":"5","id":5}}"#),
        format!(r#"u {{{c},"d":"5","e":[1],"id":5}}"#),
    ];
    ensure!(said == wanted, "{}", said.join("\n"));
    Ok(())
}

#[test]
fn a_database_whose_streams_are_stopped_can_be_dropped_and_another_one_streams_on() -> Result<()> {
    let cluster = start("stream-drop-database", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, QUICK)?;
    cluster.sql("create database other")?;
    cluster.sql_in(
        "other",
        "create extension postern; select postern.create_source('there'); select postern.create_sink('none', 'stub_discard');
         select postern.create_stream('there', 'there', 'none')",
    )?;
    running_in(&cluster, "other", "there")?;
    let refused = cluster.sql("drop database other with (force)");
    ensure!(
        refused.as_ref().is_err_and(|error| format!("{error:?}").contains("active logical replication slot")),
        "{refused:?}"
    );
    cluster.sql_in("other", "select postern.stop_source('there')")?;
    wait::until("it has stopped", || {
        let state = cluster.sql_in("other", "select state, coalesce(worker_pid, 0) from postern.sources");
        state.is_ok_and(|state| state == "stopped|0")
    })?;
    wait::until("it can be dropped", || cluster.sql("drop database other").is_ok())?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots")? == "1", "its slot went with it");
    works(&cluster, &path)
}

#[test]
fn a_dropped_extension_leaves_no_worker_and_no_slot() -> Result<()> {
    let cluster = start("stream-drop-extension", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    to_file(&cluster, QUICK)?;
    cluster.sql("drop extension postern cascade")?;
    cluster.sql("insert into t values (1)")?;
    wait::until_within(std::time::Duration::from_secs(50), "slot and worker are gone", || {
        let slots = cluster.sql("select count(*) from pg_replication_slots");
        let workers =
            cluster.sql("select count(*) from pg_stat_activity where backend_type = 'postern stream'");
        slots.is_ok_and(|slots| slots == "0") && workers.is_ok_and(|workers| workers == "0")
    })
    .with_context(|| cluster.log_tail())
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
    wait::until("nothing is left of it", || {
        cluster.sql("select count(*) from pg_replication_slots").is_ok_and(|slots| slots == "0")
    })
    .with_context(|| cluster.log_tail())?;
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
fn too_few_slots_are_said_and_one_more_mends_it() -> Result<()> {
    let cluster = start("stream-few-slots", &[("max_replication_slots", "1")])?;
    cluster.sql("create table t (id int primary key)")?;
    cluster.sql("select pg_create_physical_replication_slot('other')")?;
    let path = define(&cluster, QUICK, "{}")?;
    source_is(&cluster, "failed", "all replication slots are in use")?;
    ensure!(cluster.sql("select last_error from postern.sources")?.contains("max_replication_slots"));
    cluster.sql("select pg_drop_replication_slot('other')")?;
    works(&cluster, &path)
}

#[test]
fn too_few_workers_are_said_and_a_restart_with_more_mends_it() -> Result<()> {
    // The server's own and ours that are always there leave one, for whoever comes first.
    let cluster = start("stream-few-workers", &[("max_worker_processes", "5")])?;
    cluster.sql("create table t (id int primary key)")?;
    define(&cluster, QUICK, "{}")?;
    cluster.sql(
        "select postern.create_source('second'); select postern.create_stream('second', 'second', 'lines')",
    )?;
    let waiting = || cluster.sql("select count(*) from postern.sources where state = 'waiting'");
    wait::until("one waits", || waiting().is_ok_and(|waiting| waiting == "1"))
        .with_context(|| format!("{:?} {}", waiting(), cluster.log_tail()))?;
    cluster.wait_log("raise max_worker_processes")?;
    cluster.set("max_worker_processes", "16")?.restart(Stop::Fast)?;
    running(&cluster, "shop to lines")?;
    running(&cluster, "second")
}

#[test]
fn on_a_standby_a_stream_waits_and_after_a_promotion_goes_on_with_a_stated_gap() -> Result<()> {
    let primary = start("stream-primary", &[])?;
    primary.sql("create table t (id int primary key)")?;
    let path = to_file(&primary, r#"{"retry":"200ms","lost_slot":"continue"}"#)?;
    primary.sql("insert into t values (1)")?;
    delivered(&primary)?;
    let standby = primary.standby("stream-standby")?;
    standby.set("wal_level", "logical")?.set("max_worker_processes", "16")?;
    let standby = standby.start()?;
    standby.wait_streaming()?;
    source_is(&standby, "standby", "")?;
    ensure!(standby.sql("select state from postern.streams")? == "standby");
    standby.wait_caught_up(&primary)?;
    primary.stop(Stop::Fast)?;
    standby.promote()?;
    running(&standby, "shop to lines")?;
    let gap = standby.sql("select gap from postern.streams")?;
    ensure!(gap.contains("is gone") && gap.contains("are lost"), "{gap}");
    standby.sql("insert into t values (2)")?;
    delivered(&standby)?;
    ensure!(ids(&path)? == [1, 2], "{:?}", ids(&path)?);
    Ok(())
}

#[test]
fn wal_beyond_its_limit_is_warned_of_or_the_slot_goes_with_a_stated_gap() -> Result<()> {
    let cluster = start("stream-limit", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, r#"{"retry":"200ms","wal_limit":"40MB"}"#)?;
    cluster.sql(
        "select postern.create_sink('none', 'stub_discard'); select postern.create_stream('held', 'shop', 'none');
         select postern.pause_stream('held')",
    )?;
    cluster.sql("insert into t values (1)")?;
    write_wal(&cluster, 5)?;
    source_is(&cluster, "streaming", "more than its wal_limit of 41943040")?;
    cluster.wait_log("more than its wal_limit")?;
    cluster.sql("insert into t values (2)")?;
    wait::until("it goes on all the same", || ids(&path).is_ok_and(|ids| ids == [1, 2]))?;
    cluster.sql(r#"select postern.alter_source('shop', '{"at_wal_limit":"drop"}')"#)?;
    source_is(&cluster, "blocked", "it was dropped; changes after")?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots")? == "0");
    ensure!(cluster.sql("select gap from postern.streams where name = 'held'")?.contains("are lost"));
    cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue","wal_limit":"1GB"}')"#)?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (3)")?;
    wait::until("it goes on", || ids(&path).is_ok_and(|ids| ids == [1, 2, 3]))
}

#[test]
fn a_stopped_source_beyond_the_limit_loses_its_slot_too() -> Result<()> {
    let cluster = start("stream-limit-stopped", &[])?;
    to_file(&cluster, r#"{"wal_limit":"20MB","at_wal_limit":"drop"}"#)?;
    stopped(&cluster)?;
    write_wal(&cluster, 4)?;
    wait::until("its slot is gone", || {
        cluster.sql("select count(*) from pg_replication_slots").is_ok_and(|slots| slots == "0")
    })
    .with_context(|| cluster.log_tail())?;
    let gap = || cluster.sql("select gap from postern.sources");
    wait::until("the gap is stated", || gap().is_ok_and(|gap| gap.contains("it was dropped")))
        .with_context(|| format!("{:?}", gap()))
}

#[test]
fn a_file_that_cannot_be_written_fails_its_stream_until_it_can() -> Result<()> {
    let cluster = start("stream-file", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, r#"{"retry":"200ms"}"#)?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    stopped(&cluster)?;
    // Where the file was there is now a directory.
    let aside = path.with_extension("aside");
    std::fs::rename(&path, &aside)?;
    cluster.sql("select postern.start_source('shop')")?;
    running(&cluster, "shop to lines")?;
    std::fs::create_dir(&path)?;
    cluster.sql("insert into t values (2)")?;
    let state = || cluster.sql("select state, last_error from postern.streams");
    wait::until("it has failed", || {
        state()
            .is_ok_and(|state| state.contains(&path.display().to_string()) && !state.starts_with("running"))
    })
    .with_context(|| format!("{:?}; {}", state(), cluster.log_tail()))?;
    std::fs::remove_dir(&path)?;
    // By itself.
    running(&cluster, "shop to lines")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [2], "{:?}", ids(&path)?);
    ensure!(ids(&aside)? == [1]);
    Ok(())
}
