//! Bad days of a change stream: each is a clear state and error in `postern.sources`, and all is well again when it is mended.

use crate::stream::{
    QUICK, define, delivered, events, ids, running, source_is, start, stopped, to_file, works,
};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Stop;
use pgrx_tests::wait;

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
