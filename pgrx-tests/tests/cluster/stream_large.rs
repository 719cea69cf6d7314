//! Large transactions and rows in bounded memory, and WAL without anything for anybody.

use crate::stream::{define, delivered, delivered_within, running, start, to_file, worker};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{process, wait};
use serde_json::Value;
use std::io::{BufRead, BufReader};

/// The most memory that the source's worker has ever had: kB.
fn most_memory(cluster: &Cluster) -> Result<u64> {
    process::most_resident(worker(cluster)?)
}

#[test]
fn a_transaction_of_300000_rows_passes_in_little_memory() -> Result<()> {
    let cluster =
        start("stream-many", &[("postern.stream_buffer_size", "1MB"), ("logical_decoding_work_mem", "4MB")])?;
    cluster.sql("create table t (id int primary key, v text)")?;
    let path = to_file(&cluster, r#"{"ordinal":true}"#)?;
    let before = most_memory(&cluster)?;
    cluster.sql("insert into t select i, repeat('x', 200) from generate_series(1, 300000) i")?;
    // It is about memory: with a library that is not optimized it took 32 s beside other tests.
    delivered_within(&cluster, 6 * wait::LIMIT)?;
    let after = most_memory(&cluster)?;
    let mut lines = 0_u64;
    let mut files = vec![path.clone()];
    let directory = path.parent().context("a directory")?;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry != path && name.starts_with("lines") {
            files.push(entry);
        }
    }
    for file in &files {
        lines += BufReader::new(std::fs::File::open(file)?).lines().count() as u64;
    }
    ensure!(lines == 300_000, "{lines} events in {files:?}");
    ensure!(after - before < 64 * 1024, "from {before} to {after} kB");
    let most: u64 = cluster.sql("select buffered_most from postern.sources")?.parse()?;
    ensure!(most <= 1 << 20, "{most} bytes");
    Ok(())
}

#[test]
fn while_a_sink_is_down_little_is_in_memory_and_nothing_more_is_confirmed() -> Result<()> {
    let settings = [("postern.stream_buffer_size", "1MB"), ("logical_decoding_work_mem", "4MB")];
    let cluster = start("stream-down-memory", &settings)?;
    cluster.sql("create table t (id int primary key, v text)")?;
    let path = define(&cluster, r#"{"retry":"200ms","commit_lsn":true}"#, r#"{"rotate_size":"1GB"}"#)?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (-1, '')")?;
    delivered(&cluster)?;
    // Where the file was there is now a directory; the sink notices when it has synced one more row.
    let aside = path.with_extension("aside");
    std::fs::rename(&path, &aside)?;
    std::fs::create_dir(&path)?;
    cluster.sql("insert into t values (0, '')")?;
    delivered(&cluster)?;
    let (pid, before) = (worker(&cluster)?, most_memory(&cluster)?);
    cluster.sql("insert into t select i, repeat('x', 200) from generate_series(1, 100000) i")?;
    let number = |sql: &str| -> Result<u64> { Ok(cluster.sql(sql)?.parse()?) };
    // It is full, and its sink is tried again and again.
    wait::until("there is no more room", || {
        number("select buffered from postern.sources").is_ok_and(|buffered| buffered > 1 << 17)
            && number("select errors from postern.streams").is_ok_and(|errors| errors > 3)
    })
    .with_context(|| {
        format!("{:?}; {}", cluster.sql("select to_jsonb(s) from postern.sources s"), cluster.log_tail())
    })?;
    let most = number("select buffered_most from postern.sources")?;
    ensure!(most <= 1 << 20, "{most} bytes");
    let after = most_memory(&cluster)?;
    ensure!(after - before < 16 * 1024, "from {before} to {after} kB");
    let confirmed = cluster.sql("select confirmed_flush_lsn from pg_replication_slots")?;
    std::fs::remove_dir(&path)?;
    delivered_within(&cluster, 6 * wait::LIMIT)?;
    ensure!(worker(&cluster)? == pid, "it began anew");
    let most = number("select buffered_most from postern.sources")?;
    ensure!(most <= 1 << 20, "{most} bytes");
    let mut next = 1;
    for line in BufReader::new(std::fs::File::open(&path)?).lines() {
        let event: Value = serde_json::from_str(&line?)?;
        ensure!(event["Columns"]["id"] == next, "{event} and not {next}");
        if next == 1 {
            // A slot that is confirmed to the end of a commit does not give that transaction again.
            let commit = event["CommitLSN"].as_str().context("no CommitLSN")?;
            let kept = cluster.sql(&format!("select '{confirmed}'::pg_lsn < '{commit}'"))?;
            ensure!(kept == "t", "{confirmed} was confirmed before {commit} was delivered");
        }
        next += 1;
    }
    ensure!(next == 100_001, "{} events", next - 1);
    Ok(())
}

#[test]
fn a_row_of_100_mb_passes_and_its_memory_is_given_back() -> Result<()> {
    let cluster = start("stream-wide", &[("postern.stream_buffer_size", "1MB")])?;
    cluster.sql("create table t (id int primary key, v text)")?;
    // Both events in one file, or the first would not be looked at.
    let path = define(&cluster, "{}", r#"{"rotate_size":"1GB"}"#)?;
    running(&cluster, "shop to lines")?;
    cluster.sql("insert into t values (1, repeat('0123456789', 10000000)), (2, 'small')")?;
    delivered(&cluster)?;
    let (mut large, mut small) = (String::new(), String::new());
    let mut file = BufReader::new(std::fs::File::open(&path)?);
    file.read_line(&mut large)?;
    file.read_line(&mut small)?;
    ensure!(file.fill_buf()?.is_empty(), "there are more than two events");
    let value = r#""v":""#;
    let start = large.find(value).context("a value")? + value.len();
    let end = start + 100_000_000;
    ensure!(large.len() > end && large.is_char_boundary(end), "{} bytes", large.len());
    ensure!(
        large[..start].contains(r#""id":1,"#) && large[end..].starts_with("\"}"),
        "{} bytes",
        large.len()
    );
    ensure!(large.as_bytes()[start..end].chunks(10).all(|chunk| chunk == b"0123456789"), "another value");
    ensure!(small.contains(r#""id":2,"v":"small""#), "{small}");
    drop(large);
    let after = most_memory(&cluster)?;
    // Its text in the server, in the buffer, as an event and in the sink.
    // 435 MB when it was measured, and a third of that for what differs between machines.
    ensure!(after < 565_000, "{after} kB");
    let pid = worker(&cluster)?;
    let resident = || process::resident(pid);
    wait::until("it is given back", || resident().is_ok_and(|now| now < 250 * 1024))
        .with_context(|| format!("{:?} kB", resident()))
}

#[test]
fn an_idle_database_confirms_while_another_one_writes() -> Result<()> {
    let cluster = start("stream-idle", &[])?;
    cluster.sql("create table t (id int primary key); create table unpublished (id int)")?;
    to_file(&cluster, r#"{"tables":["t"]}"#)?;
    cluster.sql("create database busy")?;
    cluster.sql_in("busy", "create table noise (v text)")?;
    let confirms = |cluster: &Cluster| -> Result<()> {
        let now = cluster.sql("select pg_current_wal_insert_lsn()")?;
        let confirmed =
            || cluster.sql(&format!("select confirmed_flush_lsn >= '{now}' from pg_replication_slots"));
        wait::until("it confirms", || confirmed().is_ok_and(|confirmed| confirmed == "t"))
    };
    for _ in 0..3 {
        cluster.sql_in("busy", "insert into noise select repeat('x', 1000) from generate_series(1, 1000)")?;
        confirms(&cluster)?;
    }
    cluster.sql("insert into unpublished select generate_series(1, 1000)")?;
    confirms(&cluster)?;
    ensure!(cluster.sql("select events from postern.streams")? == "0");
    Ok(())
}
