//! What operators do to change streams by hand: slots that they move, make and rewind, names and arguments, publications, limits.

use crate::stream::{delivered, events, file, running, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use std::path::PathBuf;

/// Waits until the first row of a query has this in it.
fn shows(cluster: &Cluster, sql: &str, wanted: &str) -> Result<()> {
    let shown = || cluster.sql(sql);
    wait::until(&format!("{sql} gives {wanted}"), || shown().is_ok_and(|shown| shown.contains(wanted)))
        .with_context(|| format!("{:?}; {}", shown(), cluster.log_tail()))
}

const STATE: &str =
    "select state || ': ' || coalesce(last_error, '') from postern.sources order by name limit 1";

fn ids(path: &PathBuf) -> Result<Vec<i64>> {
    Ok(events(path)?.iter().filter_map(|event| event["Columns"]["id"].as_i64()).collect())
}

fn stopped(cluster: &Cluster) -> Result<()> {
    cluster.sql("select postern.stop_source('shop')")?;
    shows(cluster, "select state || coalesce(worker_pid, 0) from postern.sources", "stopped0")
}

/// Makes a slot of pgoutput; the last argument is two_phase.
fn make_slot(cluster: &Cluster, name: &str, two_phase: bool) -> Result<()> {
    cluster
        .sql(&format!("select pg_create_logical_replication_slot('{name}', 'pgoutput', false, {two_phase})"))
        .map(drop)
}

#[test]
fn what_is_delivered_late_is_written_down_without_a_further_event() -> Result<()> {
    let cluster = start("operator-late", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = file(&cluster, "events.jsonl");
    cluster.sql(&format!(
        "select postern.create_source('shop');
         select postern.create_sink('lines', 'file', '{{\"path\":\"{}\",\"sync\":\"4s\"}}');
         select postern.create_stream('shop to lines', 'shop', 'lines')",
        path.display()
    ))?;
    running(&cluster, "shop to lines")?;
    // The WAL goes on, so that where the stream is changes before the event is delivered.
    cluster.sql("create table noise as select generate_series(1, 1000); insert into t values (1)")?;
    let committed = cluster.sql("select pg_current_wal_insert_lsn()")?;
    let written = format!("select (delivered_lsn >= '{committed}')::text from postern.stream_positions");
    shows(&cluster, &written, "true")?;
    shows(
        &cluster,
        &format!("select (confirmed_flush_lsn >= '{committed}')::text from pg_replication_slots"),
        "true",
    )?;
    ensure!(ids(&path)? == [1]);
    Ok(())
}

#[test]
fn a_slot_that_somebody_moved_or_made_again_is_a_stated_gap() -> Result<()> {
    let cluster = start("operator-moved", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, r#"{"retry":"200ms"}"#)?;
    let mut wanted = Vec::new();
    for (round, moved) in [
        "select pg_replication_slot_advance(slot, pg_current_wal_insert_lsn()) from postern.sources",
        "select pg_drop_replication_slot(slot), pg_create_logical_replication_slot(slot, 'pgoutput') from postern.sources",
    ]
    .iter()
    .enumerate()
    {
        let base = i64::try_from(round)? * 10;
        cluster.sql(&format!(
            "select postern.alter_source('shop', '{{\"lost_slot\":\"stop\"}}'); insert into t values ({})",
            base + 1
        ))?;
        running(&cluster, "shop to lines")?;
        delivered(&cluster)?;
        stopped(&cluster)?;
        cluster.sql(&format!("insert into t values ({})", base + 2))?;
        cluster.sql(moved)?;
        cluster.sql("select postern.start_source('shop')")?;
        shows(&cluster, STATE, "blocked: replication slot")?;
        let said = cluster.sql("select last_error from postern.sources")?;
        ensure!(said.contains("was moved from") && said.contains("are lost; set the source's option \"lost_slot\""), "{said}");
        cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue"}')"#)?;
        running(&cluster, "shop to lines")?;
        let gap = cluster.sql("select gap from postern.streams")?;
        ensure!(gap.contains("by somebody else") && gap.contains("are lost"), "{gap}");
        cluster.sql(&format!("insert into t values ({})", base + 3))?;
        delivered(&cluster)?;
        wanted.extend([base + 1, base + 3]);
        ensure!(ids(&path)? == wanted, "{:?}", ids(&path)?);
    }
    // What Postern has confirmed itself is none.
    let gap = cluster.sql("select gap from postern.streams")?;
    stopped(&cluster)?;
    cluster.sql("select postern.start_source('shop')")?;
    running(&cluster, "shop to lines")?;
    cluster.kill()?;
    cluster.start_again()?;
    running(&cluster, "shop to lines")?;
    ensure!(cluster.sql("select gap from postern.streams")? == gap);
    Ok(())
}

#[test]
fn a_stream_that_is_being_rewound_keeps_what_it_goes_back_to() -> Result<()> {
    let cluster = start("operator-rewound", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    let now = cluster.sql("select pg_current_wal_insert_lsn()")?;
    cluster.sql("insert into t values (2)")?;
    shows(&cluster, &format!("select (confirmed_lsn >= '{now}')::text from postern.sources"), "true")?;
    let mut operator = cluster.connect()?;
    let gone = operator.batch_execute(&format!("select postern.rewind_source('shop', '{now}'::pg_lsn - 1)"));
    let gone = gone.err().context("it goes back to what is gone")?;
    let said =
        gone.as_db_error().map(|error| format!("{} {}", error.message(), error.detail().unwrap_or_default()));
    ensure!(
        said.as_ref().is_some_and(
            |said| said.contains("cannot go back to") && said.contains("what was before is gone")
        ),
        "{said:?}"
    );
    operator.batch_execute(
        "begin; select postern.rewind_source('shop', greatest(s.confirmed_lsn, c.confirmed))
         from postern.sources s join postern.source_states c on c.source = s.name",
    )?;
    cluster.sql("insert into t values (3)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [1, 2, 3]);
    operator.batch_execute("commit")?;
    wait::until("it comes again", || ids(&path).is_ok_and(|ids| ids.len() > 3))?;
    delivered(&cluster)?;
    ensure!(ids(&path)?.ends_with(&[3, 3]) || ids(&path)?.ends_with(&[2, 3]), "{:?}", ids(&path)?);
    Ok(())
}

#[test]
fn the_limit_of_wal_counts_while_a_snapshot_waits() -> Result<()> {
    let cluster = start("operator-snapshot-limit", &[])?;
    cluster.sql(
        r#"create table t (id int primary key); select postern.create_sink('d', 'stub_discard'); select postern.create_sink('e', 'stub_discard');
           select postern.create_source('shop', 'postgres', '{"snapshot": true, "wal_limit": "20MB", "at_wal_limit": "drop"}');
           select postern.create_stream('one', 'shop', 'd'); select postern.create_stream('two', 'shop', 'e', false)"#,
    )?;
    shows(&cluster, STATE, "snapshot: the snapshot begins when")?;
    cluster.sql("create table filler (v int)")?;
    for _ in 0..3 {
        cluster.sql("insert into filler values (1)")?;
        cluster.sql("select pg_switch_wal()")?;
    }
    shows(&cluster, STATE, "it was dropped; changes after")?;
    shows(&cluster, STATE, "set the source's option \"lost_slot\" to \"continue\"")
}

#[test]
fn too_much_wal_is_warned_of_once_also_of_a_source_that_is_stopped() -> Result<()> {
    let cluster = start("operator-warned", &[])?;
    to_file(&cluster, r#"{"wal_limit":"20MB"}"#)?;
    stopped(&cluster)?;
    cluster.sql("create table filler (v int)")?;
    for _ in 0..3 {
        cluster.sql("insert into filler values (1)")?;
        cluster.sql("select pg_switch_wal()")?;
    }
    let at = || cluster.sql("select coalesce(last_error_at::text, '-') from postern.sources");
    shows(&cluster, "select last_error from postern.sources", "more than its wal_limit")?;
    let first = at()?;
    // It is looked at again, and found the same.
    wait::until("it is looked at again", || {
        cluster.sql("select postern.pause_source('shop')").is_ok() && at().is_ok_and(|at| at != first)
    })?;
    let warned = cluster.log().matches("WARNING:  postern: source \"shop\"").count();
    ensure!(warned == 1, "{warned}: {}", cluster.log_tail());
    Ok(())
}

#[test]
fn an_operators_slot_that_was_invalidated_is_left_alone_and_waits() -> Result<()> {
    let cluster =
        start("operator-invalidated", &[("max_slot_wal_keep_size", "16MB"), ("wal_keep_size", "0")])?;
    make_slot(&cluster, "theirs", false)?;
    cluster.sql("create table filler (v int)")?;
    for _ in 0..4 {
        cluster.sql("insert into filler values (1)")?;
        cluster.sql("select pg_switch_wal()")?;
    }
    cluster.sql("checkpoint")?;
    cluster.sql(
        r#"select postern.create_source('shop', 'postgres', '{"slot": "theirs", "lost_slot": "continue"}');
           select postern.create_sink('d', 'stub_discard'); select postern.create_stream('s', 'shop', 'd')"#,
    )?;
    shows(&cluster, STATE, "blocked: replication slot \"theirs\" was invalidated")?;
    cluster.sql(r#"select postern.alter_source('shop', '{"slot": "another"}')"#)?;
    running(&cluster, "s")?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots where slot_name = 'theirs'")? == "1");
    Ok(())
}

#[test]
fn a_slot_of_two_phases_is_refused() -> Result<()> {
    let cluster = start("operator-two-phase", &[])?;
    make_slot(&cluster, "prepared", true)?;
    cluster.sql(
        r#"select postern.create_source('shop', 'postgres', '{"slot": "prepared"}'); select postern.create_sink('d', 'stub_discard');
           select postern.create_stream('s', 'shop', 'd')"#,
    )?;
    shows(&cluster, STATE, "blocked: replication slot \"prepared\" was made with two_phase")
}
