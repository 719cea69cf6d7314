//! Failover slots (PostgreSQL 17 and later): a standby has the source's slot, and what it does not have is not delivered.

use crate::stream::{delivered, events, running, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{lacking, wait};
use std::path::PathBuf;

/// The ids in a file, each where it came first.
fn ids(path: &PathBuf) -> Result<Vec<i64>> {
    let mut seen = Vec::new();
    for id in events(path)?.iter().filter_map(|event| event["Columns"]["id"].as_i64()) {
        if !seen.contains(&id) {
            seen.push(id);
        }
    }
    Ok(seen)
}

/// A primary that waits for a standby which synchronizes its slots, that standby, which runs, and the file of the one stream.
fn pair(name: &str) -> Result<(Cluster, Cluster, PathBuf)> {
    let primary = start(&format!("{name}-primary"), &[])?;
    primary.sql("create table t (id int primary key)")?;
    let path = to_file(&primary, r#"{"retry":"200ms"}"#)?;
    let standby = primary.standby(&format!("{name}-standby"))?;
    standby.set("wal_level", "logical")?.set("max_worker_processes", "16")?;
    standby.set("sync_replication_slots", "on")?.set("hot_standby_feedback", "on")?;
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", primary.port);
    standby.set("primary_conninfo", &conninfo)?;
    let standby = standby.start()?;
    standby.wait_streaming()?;
    let slot = primary.sql("select slot_name from pg_replication_slots where slot_type = 'physical'")?;
    primary.set("synchronized_standby_slots", &slot)?.reload()?;
    wait::until("the standbys are waited for", || {
        primary.sql("show synchronized_standby_slots").is_ok_and(|now| now == slot)
    })?;
    Ok((primary, standby, path))
}

#[test]
fn after_a_failover_a_stream_goes_on_from_its_slot_with_nothing_lost() -> Result<()> {
    if lacking::before(17, "a failover slot") {
        return Ok(());
    }
    let (primary, standby, path) = pair("failover")?;
    primary.sql("insert into t select generate_series(1, 100)")?;
    delivered(&primary)?;
    // A slot is synchronized once the standby has WAL and catalogs from its position on: which writes bring about.
    wait::until("the standby has the slot", || {
        primary.sql("select pg_log_standby_snapshot()").is_ok()
            && standby
                .sql("select count(*) from pg_replication_slots where synced and not temporary and failover")
                .is_ok_and(|count| count == "1")
    })
    .with_context(|| standby.log_tail())?;
    ensure!(standby.sql("select state from postern.streams")? == "standby");
    primary.sql("insert into t select generate_series(101, 200)")?;
    standby.wait_caught_up(&primary)?;
    primary.kill()?;
    standby.promote()?;
    running(&standby, "shop to lines")?;
    standby.sql("insert into t select generate_series(201, 300)")?;
    delivered(&standby)?;
    ensure!(ids(&path)? == (1..=300).collect::<Vec<_>>(), "{:?}", ids(&path)?);
    let gap = standby.sql("select coalesce(gap, 'none') from postern.streams")?;
    ensure!(gap == "none", "{gap}");
    Ok(())
}

#[test]
fn what_the_standby_of_a_failover_slot_does_not_have_is_not_delivered() -> Result<()> {
    if lacking::before(17, "a failover slot") {
        return Ok(());
    }
    let (primary, standby, path) = pair("synchronized")?;
    primary.sql("insert into t values (1)")?;
    delivered(&primary)?;
    standby.stop(Stop::Fast)?;
    primary.sql("insert into t values (2)")?;
    primary.wait_log("synchronized_standby_slots")?;
    ensure!(ids(&path)? == [1], "{:?}", ids(&path)?);
    ensure!(primary.sql("select state from postern.streams")? == "running");
    standby.start_again()?;
    delivered(&primary)?;
    ensure!(ids(&path)? == [1, 2], "{:?}", ids(&path)?);
    Ok(())
}
