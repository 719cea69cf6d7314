//! Replication through the pooler's port: a base backup, a stream of WAL (COPY in both directions), and a standby that follows.

use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{machine, process, wait};
use rustix::process::Signal;
use std::process::{Command, Output};

/// One of the server's programs at the pooler's port.
fn at_the_front(cluster: &Cluster, program: &str) -> Command {
    let mut command = cluster.program(program);
    command.args(["-h", "127.0.0.1", "-p", &cluster.pooler_port.to_string(), "-U", "postgres"]);
    command.env("HOME", "/nonexistent");
    command
}

fn succeeds(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

#[test]
fn a_base_backup_comes_whole_through_the_front() -> Result<()> {
    let cluster = Cluster::new("backup")?.start()?;
    cluster.sql("create table kept as select generate_series(1, 100000) as n")?;
    let target = cluster.socket_directory().join("backup");
    let mut backup = at_the_front(&cluster, "pg_basebackup");
    succeeds(backup.args(["-c", "fast", "-X", "stream", "-D"]).arg(&target))?;
    succeeds(cluster.program("pg_verifybackup").arg(&target))?;
    let table = cluster.sql("select pg_relation_filepath('kept')")?;
    let (own, copied) = (std::fs::read(cluster.data().join(&table)), std::fs::read(target.join(&table))?);
    ensure!(own?.len() == copied.len() && !copied.is_empty());
    Ok(())
}

#[test]
fn wal_streams_through_the_front_and_both_sides_speak() -> Result<()> {
    let cluster = Cluster::new("receivewal")?.start()?;
    let directory = cluster.socket_directory().join("wal");
    std::fs::create_dir(&directory)?;
    machine::give_to_server_user(&directory)?;
    let mut receive = at_the_front(&cluster, "pg_receivewal");
    receive.args(["-n", "-s", "1", "--synchronous", "-S", "front", "-D"]).arg(&directory);
    cluster.sql("select pg_create_physical_replication_slot('front', true)")?;
    let mut receiver = process::start(receive, Signal::INT)?;
    wait::until("it streams", || {
        cluster.sql("select state from pg_stat_replication").is_ok_and(|state| state == "streaming")
    })?;
    cluster.sql("create table t as select generate_series(1, 200000)")?;
    let written = cluster.sql("select pg_current_wal_flush_lsn()")?;
    // What it has written to its disk it says itself, in the other direction of the same COPY.
    let confirmed = format!("select flush_lsn >= '{written}' from pg_stat_replication");
    wait::until("it has told what it has", || cluster.sql(&confirmed).is_ok_and(|has| has == "t"))?;
    receiver.signal(Signal::INT)?;
    ensure!(receiver.wait(wait::LIMIT)?.success());
    let segment = cluster.sql(&format!("select pg_walfile_name('{written}')"))?;
    let own = std::fs::read(cluster.data().join("pg_wal").join(&segment))?;
    let received = std::fs::read(directory.join(format!("{segment}.partial")))?;
    let (_, low) = written.split_once('/').context("an LSN")?;
    let end = usize::from_str_radix(low, 16)? % own.len();
    ensure!(end > 0 && own[..end] == received[..end], "{end} bytes of {segment}");
    Ok(())
}

#[test]
fn a_standby_follows_through_the_front() -> Result<()> {
    let primary = Cluster::new("front-primary")?.start()?;
    let standby = primary.standby("front-standby")?;
    standby.set("primary_conninfo", &format!("host=127.0.0.1 port={} user=postgres", primary.pooler_port))?;
    let standby = standby.start()?;
    standby.wait_streaming()?;
    primary.sql("create table followed as select 42 as n")?;
    wait::until("it has it", || standby.sql("select n from followed").is_ok_and(|n| n == "42"))?;
    // A front that ends takes the stream with it, and the standby finds the next one.
    let front = primary.front_pid()?;
    process::signal_pid(front, Signal::TERM)?;
    wait::until("another front works", || primary.front_pid().is_ok_and(|new| new != front))?;
    primary.sql("insert into followed values (43)")?;
    wait::until("it goes on", || standby.sql("select max(n) from followed").is_ok_and(|n| n == "43"))
}
