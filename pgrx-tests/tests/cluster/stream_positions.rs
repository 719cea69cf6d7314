//! Where a stream is, is written down when it is delivered, and an idle source comes to rest.

use crate::stream::{define, delivered, events, ids, running, shows, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::wait;
use std::time::{Duration, Instant};

#[test]
fn what_is_delivered_late_is_written_down_without_a_further_event() -> Result<()> {
    let cluster = start("stream-late", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = define(&cluster, r#"{"commit_lsn":true}"#, r#"{"sync":"4s"}"#)?;
    running(&cluster, "shop to lines")?;
    let now = || cluster.sql("select pg_current_wal_insert_lsn()");
    let written = |column: &str, lsn: &str| {
        shows(&cluster, &format!("select ({column} >= '{lsn}')::text from postern.stream_positions"), "true")
    };
    cluster.sql("insert into t values (1)")?;
    written("delivered_lsn", &now()?)?;
    let event = events(&path)?.pop().context("an event")?;
    written("commit_lsn", event["CommitLSN"].as_str().context("CommitLSN")?)?;
    // The WAL goes on a little, so that where the stream is changes while the event is on its way.
    cluster.sql("select txid_current()")?;
    shows(&cluster, &format!("select (received_lsn >= '{}')::text from postern.sources", now()?), "true")?;
    cluster.sql("insert into t values (2)")?;
    let committed = now()?;
    written("delivered_lsn", &committed)?;
    let confirmed = format!("select (confirmed_flush_lsn >= '{committed}')::text from pg_replication_slots");
    shows(&cluster, &confirmed, "true")?;
    ensure!(ids(&path)? == [1, 2]);
    Ok(())
}

#[test]
fn an_idle_source_comes_to_rest() -> Result<()> {
    let cluster = start("stream-idle", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    to_file(&cluster, "{}")?;
    cluster.sql("insert into t select generate_series(1, 1000); checkpoint")?;
    delivered(&cluster)?;
    // What it writes down is WAL itself: that must not make it write again.
    let mut last = (String::new(), Instant::now());
    wait::until_within(Duration::from_secs(60), "nothing is written down for 15 seconds", || {
        let written = cluster.sql("select xmin from postern.source_states").unwrap_or_default();
        if written.is_empty() || written != last.0 {
            last = (written, Instant::now());
        }
        last.1.elapsed() >= Duration::from_secs(15)
    })
    .with_context(|| cluster.log_tail())
}
