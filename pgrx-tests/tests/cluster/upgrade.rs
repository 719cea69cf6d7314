//! Updates of the extension and upgrades of the server: what is kept, and what is said where something does not fit.

use crate::stream::{another_to_file, delivered, events, file_sink, running, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::installation::{self, DEFAULT_MAJOR};
use pgrx_tests::{lacking, server, wait};
use std::path::Path;

/// The ids in a file.
fn ids(path: &Path) -> Result<Vec<i64>> {
    Ok(events(&path.to_owned())?.iter().filter_map(|event| event["Columns"]["id"].as_i64()).collect())
}

/// The server's directory of extensions.
fn extensions(cluster: &Cluster) -> Result<std::path::PathBuf> {
    let output = cluster.program("pg_config").arg("--sharedir").output()?;
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("extension"))
}

#[test]
fn an_update_keeps_streams_and_where_versions_differ_the_log_says_what_to_do() -> Result<()> {
    let cluster = start("update", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    // Scripts between versions that never were: 0.0.1 had what is there now, and 99.0.0 adds a view.
    let extensions = extensions(&cluster)?;
    let ours = cluster.sql("select extversion from pg_extension where extname = 'postern'")?;
    std::fs::write(extensions.join(format!("postern--0.0.1--{ours}.sql")), "")?;
    std::fs::write(
        extensions.join(format!("postern--{ours}--99.0.0.sql")),
        "create view postern.of_tomorrow as select 1 as one;",
    )?;
    cluster.sql("update pg_extension set extversion = '0.0.1' where extname = 'postern'")?;
    cluster.restart(Stop::Fast)?;
    cluster.wait_log("has version 0.0.1 of the extension")?;
    cluster.wait_log("run ALTER EXTENSION postern UPDATE in that database")?;
    running(&cluster, "shop to lines")?;
    cluster.sql("alter extension postern update")?;
    ensure!(cluster.sql("select extversion from pg_extension where extname = 'postern'")? == ours);
    cluster.sql("insert into t values (2)")?;
    delivered(&cluster)?;
    cluster.sql("alter extension postern update to '99.0.0'")?;
    ensure!(cluster.sql("select one from postern.of_tomorrow")? == "1");
    cluster.restart(Stop::Fast)?;
    cluster.wait_log("has version 99.0.0 of the extension")?;
    cluster.wait_log("install the library of that version and restart the server")?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (3)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [1, 2, 3], "{:?}", ids(&path)?);
    Ok(())
}

#[test]
fn pg_upgrade_keeps_definitions_and_a_slot_that_it_cannot_keep_is_a_stated_gap() -> Result<()> {
    if lacking::before(DEFAULT_MAJOR + 1, "what an older server is upgraded to") {
        return Ok(());
    }
    let settings = |cluster: &Cluster| -> Result<()> {
        cluster.set("wal_level", "logical")?.set("max_worker_processes", "16")?;
        Ok(())
    };
    let old = Cluster::with(installation::install_another(DEFAULT_MAJOR)?, "old")?;
    settings(&old)?;
    let old = old.start()?;
    old.create_extension()?;
    old.sql("create table t (id int primary key)")?;
    let goes_on = to_file(&old, r#"{"retry":"200ms","lost_slot":"continue"}"#)?;
    another_to_file(&old, "careful", r#"{"retry":"200ms"}"#)?;
    file_sink(&old, "spare", "{}")?;
    old.sql("insert into t values (1)")?;
    delivered(&old)?;
    // The servers' fixes of November 2026 keep a version with each column (pg_attver), which a newer major version of an earlier day does
    // not know: its pg_upgrade then refuses any table whatever.
    let postgres = std::fs::read(installation::install(installation::Build::Test)?.bin.join("postgres"))?;
    if !postgres.windows(9).any(|bytes| bytes == b"pg_attver") {
        lacking::say(&format!(
            "pg_upgrade from {DEFAULT_MAJOR} was tried with what it keeps of a column's version (pg_attver) removed, which this {} cannot read",
            installation::major()
        ));
        old.sql(
            "set allow_system_table_mods = on; update pg_attribute set attoptions = null where attoptions::text like '%pg_attver%'",
        )?;
    }
    let definitions = "select string_agg(name || options, '|' order by name) from postern.source_definitions";
    let defined = old.sql(definitions)?;
    old.stop(Stop::Fast)?;
    let new = upgraded(&old, settings)?;
    let new = new.start()?;
    ensure!(new.sql(definitions)? == defined);
    running(&new, "shop to lines").with_context(|| new.log_tail())?;
    let gap = new.sql("select gap from postern.streams where name = 'shop to lines'")?;
    ensure!(gap.contains("is gone") && gap.contains("are lost"), "{gap}");
    let careful = || new.sql("select state, last_error from postern.sources where name = 'careful'");
    wait::until("the careful one waits for its operator", || {
        careful().is_ok_and(|seen| seen.starts_with("blocked|") && seen.contains("lost_slot"))
    })
    .with_context(|| format!("{:?}", careful()))?;
    new.sql("insert into t values (2)")?;
    let now = new.sql("select pg_current_wal_insert_lsn()")?;
    wait::until("it is delivered", || {
        let has =
            format!("select delivered_lsn >= '{now}' from postern.streams where name = 'shop to lines'");
        new.sql(&has).is_ok_and(|has| has == "t")
    })?;
    ensure!(ids(&goes_on)? == [1, 2], "{:?}", ids(&goes_on)?);
    Ok(())
}

/// A server of this version that pg_upgrade has made of a stopped one.
fn upgraded(old: &Cluster, settings: impl Fn(&Cluster) -> Result<()>) -> Result<Cluster> {
    // 18 has checksums unless it is told not to, and pg_upgrade wants both the same.
    let no_checksums: &[&str] = if installation::major() >= 18 { &["--no-data-checksums"] } else { &[] };
    let new =
        Cluster::made_by_initdb(installation::install(installation::Build::Test)?, "new", no_checksums)?;
    settings(&new)?;
    let mut upgrade = new.program("pg_upgrade");
    upgrade.current_dir(new.socket_directory());
    upgrade.arg("--old-bindir").arg(old.bin()).arg("--new-bindir").arg(new.bin());
    upgrade.arg("--old-datadir").arg(old.data()).arg("--new-datadir").arg(new.data());
    upgrade.args(["--username", "postgres", "--retain", "--socketdir"]).arg(new.socket_directory());
    upgrade.args(["--old-port", &old.port.to_string(), "--new-port", &new.port.to_string()]);
    let output = upgrade.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // One run has one directory of logs.
    let logs = std::fs::read_dir(new.data().join("pg_upgrade_output.d"))?.flatten().next();
    let logs = logs.with_context(|| said.clone())?.path().join("log");
    if !output.status.success() {
        let mut text = said;
        for log in std::fs::read_dir(&logs)?.flatten() {
            text += &std::fs::read_to_string(log.path())?;
        }
        anyhow::bail!("{text}");
    }
    let log = std::fs::read_to_string(logs.join("pg_upgrade_server.log"))?;
    ensure!(!log.contains("listens on"), "nobody is let in meanwhile: {log}");
    Ok(new)
}

/// From 17 on slots are kept, if they have everything; the last that a source's lacks is its own, so it is brought there by hand.
#[test]
fn pg_upgrade_keeps_a_slot_that_was_brought_to_the_end() -> Result<()> {
    if installation::major() != 18 || server::pg_config(17).is_err() {
        lacking::not_run("an upgrade from 17 to 18 without both of them here");
        return Ok(());
    }
    let settings = |cluster: &Cluster| -> Result<()> {
        cluster.set("wal_level", "logical")?.set("max_worker_processes", "16")?;
        Ok(())
    };
    let old = Cluster::with(installation::install_another(17)?, "old-17")?;
    settings(&old)?;
    let old = old.start()?;
    old.create_extension()?;
    old.sql("create table t (id int primary key)")?;
    let path = to_file(&old, r#"{"retry":"200ms","lost_slot":"continue"}"#)?;
    old.sql("insert into t values (1), (2)")?;
    delivered(&old)?;
    let source = old.sql("select name from postern.sources")?;
    old.sql(&format!("select postern.stop_source('{source}')"))?;
    let slot = old.sql("select slot_name from pg_replication_slots")?;
    // What its worker has committed last may not be on disk yet, and a slot goes no further.
    let (forward, has_all) = (
        format!("select pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"),
        "select confirmed_flush_lsn = pg_current_wal_insert_lsn() from pg_replication_slots",
    );
    let state = "select state from postern.sources";
    wait::until("the slot has everything", || {
        old.sql(state).is_ok_and(|state| state == "stopped")
            && old.sql(&forward).is_ok()
            && old.sql(has_all).is_ok_and(|all| all == "t")
    })?;
    old.stop(Stop::Fast)?;
    let new = upgraded(&old, settings)?.start()?;
    ensure!(new.sql("select slot_name from pg_replication_slots")? == slot);
    new.sql(&format!("select postern.start_source('{source}')"))?;
    running(&new, "shop to lines").with_context(|| new.log_tail())?;
    new.sql("insert into t values (3)")?;
    wait::until("it is delivered", || ids(&path).is_ok_and(|ids| ids == [1, 2, 3]))?;
    let gap = new.sql("select gap from postern.streams where name = 'shop to lines'")?;
    ensure!(gap.contains("was moved"), "{gap}");
    Ok(())
}
