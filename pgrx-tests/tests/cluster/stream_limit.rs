//! The limit of the WAL that waits for a source's sinks: a warning, or the slot goes and the gap is stated.

use crate::stream::{delivered, ids, running, shows, slots, source_is, start, stopped, to_file, write_wal};
use anyhow::{Context, Result, ensure};
use pgrx_tests::wait;

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
    // Its worker or a scout drops it, and the next worker may have found it gone already.
    source_is(&cluster, "blocked", "are lost")?;
    shows(&cluster, "select gap from postern.sources", "it was dropped; changes after")?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots")? == "0");
    ensure!(cluster.sql("select gap from postern.streams where name = 'held'")?.contains("are lost"));
    cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue","wal_limit":"1GB"}')"#)?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (3)")?;
    wait::until("it goes on", || ids(&path).is_ok_and(|ids| ids == [1, 2, 3]))?;
    let gap = cluster.sql("select gap from postern.sources")?;
    ensure!(gap.contains("it was dropped; changes after") && gap.contains("is gone; changes from"), "{gap}");
    Ok(())
}

#[test]
fn a_stopped_source_beyond_the_limit_loses_its_slot_too() -> Result<()> {
    let cluster = start("stream-limit-stopped", &[])?;
    to_file(&cluster, r#"{"wal_limit":"20MB","at_wal_limit":"drop"}"#)?;
    stopped(&cluster)?;
    write_wal(&cluster, 4)?;
    slots(&cluster, 0)?;
    let gap = || cluster.sql("select gap from postern.sources");
    wait::until("the gap is stated", || gap().is_ok_and(|gap| gap.contains("it was dropped")))
        .with_context(|| format!("{:?}", gap()))
}

#[test]
fn the_limit_of_wal_counts_while_a_snapshot_waits() -> Result<()> {
    let cluster = start("stream-snapshot-limit", &[])?;
    cluster.sql(
        r#"create table t (id int primary key); select postern.create_sink('d', 'stub_discard'); select postern.create_sink('e', 'stub_discard');
           select postern.create_source('shop', 'postgres', '{"snapshot": true, "wal_limit": "20MB", "at_wal_limit": "drop"}');
           select postern.create_stream('one', 'shop', 'd'); select postern.create_stream('two', 'shop', 'e', false)"#,
    )?;
    source_is(&cluster, "snapshot", "the snapshot begins when")?;
    write_wal(&cluster, 3)?;
    shows(&cluster, "select gap from postern.sources", "it was dropped; changes after")?;
    source_is(&cluster, "blocked", "set the source's option \"lost_slot\" to \"continue\"")
}

#[test]
fn too_much_wal_is_warned_of_once_also_of_a_source_that_is_stopped() -> Result<()> {
    let cluster = start("stream-warned", &[])?;
    to_file(&cluster, r#"{"wal_limit":"20MB"}"#)?;
    stopped(&cluster)?;
    write_wal(&cluster, 3)?;
    let at = || cluster.sql("select coalesce(last_error_at::text, '-') from postern.sources");
    shows(&cluster, "select last_error from postern.sources", "more than its wal_limit")?;
    let first = at()?;
    // It is looked at again, and found the same.
    wait::until("it is looked at again", || {
        cluster.sql("select postern.pause_source('shop')").is_ok() && at().is_ok_and(|at| at != first)
    })?;
    let warned = cluster.log().matches("WARNING:  postern: source \"shop\"").count();
    ensure!(warned == 1, "{warned}: {}", cluster.log_tail());
    // What becomes of it when that is changed is said, too.
    cluster.sql(r#"select postern.alter_source('shop', '{"at_wal_limit":"drop"}')"#)?;
    shows(&cluster, "select last_error from postern.sources", "it was dropped; changes after")
}

#[test]
fn what_a_blocked_source_waits_for_is_not_forgotten_over_its_limit() -> Result<()> {
    let cluster = start("stream-limit-blocked", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    to_file(&cluster, r#"{"wal_limit":"20MB"}"#)?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    stopped(&cluster)?;
    cluster.sql("insert into t values (2)")?;
    cluster
        .sql("select pg_replication_slot_advance(slot, pg_current_wal_insert_lsn()) from postern.sources")?;
    cluster.sql("select postern.start_source('shop')")?;
    source_is(&cluster, "blocked", "lost_slot")?;
    write_wal(&cluster, 4)?;
    cluster.wait_log("more than its wal_limit of 20971520")?;
    source_is(&cluster, "blocked", "lost_slot")
}
