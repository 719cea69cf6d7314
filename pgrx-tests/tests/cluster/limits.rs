//! Limits of PgBouncer's kind: how many connections a pool keeps and may have at most.

use crate::pooling::{Doing, pid, pooled, text, through, with_pool};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use postgres::SimpleQueryMessage;
use std::time::{Duration, Instant};

/// A column of a row of the console's answer: the first whose `key` is `value`.
fn console(cluster: &Cluster, sql: &str, (key, value): (&str, &str), column: &str) -> Result<String> {
    let mut console = through(cluster).dbname("postern").connect(postgres::NoTls)?;
    for message in console.simple_query(sql)? {
        if let SimpleQueryMessage::Row(row) = message
            && row.get(key) == Some(value)
        {
            return Ok(row.get(column).context("no such column")?.to_owned());
        }
    }
    anyhow::bail!("{sql}: no row whose {key} is {value}")
}

/// That something holds, again and again for so long.
fn stays(what: &str, time: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        ensure!(holds(), "not any more after {:?}: {what}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_pool_keeps_min_pool_size_connections_while_it_has_a_client() -> Result<()> {
    let settings = [("postern.min_pool_size", "2"), ("postern.server_idle_timeout", "1s")];
    let cluster = with_pool("least", 3, &settings)?;
    let mut watcher = cluster.connect()?;
    ensure!(pooled(&mut watcher)?.is_empty(), "nobody has come yet");
    ensure!(console(&cluster, "SHOW DATABASES", ("name", "postgres"), "min_pool_size")? == "2");
    ensure!(console(&cluster, "SHOW CONFIG", ("key", "min_pool_size"), "value")? == "2");
    let mut client = through(&cluster).connect(postgres::NoTls)?;
    wait::until("there are two", || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 2))?;
    stays("unused ones are kept", Duration::from_secs(3), || {
        pooled(&mut watcher).is_ok_and(|pids| pids.len() == 2)
    })?;
    let ended = pooled(&mut watcher)?[0];
    watcher.execute("select pg_terminate_backend($1)", &[&ended])?;
    wait::until("another is opened for one that has ended", || {
        pooled(&mut watcher).is_ok_and(|pids| pids.len() == 2 && !pids.contains(&ended))
    })?;
    ensure!(text(&mut client, "select 42")? == "42");
    cluster.sql("alter system set postern.min_pool_size = 9")?;
    cluster.sql("select pg_reload_conf()")?;
    wait::until("not more than the pool's size", || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 3))?;
    stays("and no more", Duration::from_secs(2), || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 3))?;
    // None is opened for a pool without clients.
    drop(client);
    wait::until("the client has gone", || {
        console(&cluster, "SHOW DATABASES", ("name", "postgres"), "current_client_connections")
            .is_ok_and(|count| count == "0")
    })?;
    for pid in pooled(&mut watcher)? {
        watcher.execute("select pg_terminate_backend($1)", &[&pid])?;
    }
    wait::until("they have ended", || pooled(&mut watcher).is_ok_and(|pids| pids.is_empty()))?;
    stays("none is opened", Duration::from_secs(2), || pooled(&mut watcher).is_ok_and(|pids| pids.is_empty()))
}

#[test]
fn a_client_that_waits_too_long_gets_a_connection_of_the_reserve() -> Result<()> {
    let settings = [
        ("postern.reserve_pool_size", "1"),
        ("postern.reserve_pool_timeout", "2s"),
        ("log_min_messages", "warning"),
    ];
    let cluster = with_pool("reserve", 1, &settings)?;
    ensure!(console(&cluster, "SHOW DATABASES", ("name", "postgres"), "reserve_pool_size")? == "1");
    ensure!(console(&cluster, "SHOW CONFIG", ("key", "reserve_pool_timeout"), "value")? == "2");
    let mut watcher = cluster.connect()?;
    let mut clients: Vec<_> =
        (0..3).map(|_| through(&cluster).connect(postgres::NoTls)).collect::<Result<_, _>>()?;
    for client in &mut clients {
        client.batch_execute("select 1")?;
    }
    ensure!(pooled(&mut watcher)?.len() == 1, "the reserve is not for a moment's crowd");
    let (mut third, mut second, mut first) =
        (clients.pop().context("three")?, clients.pop().context("two")?, clients.pop().context("one")?);
    first.batch_execute("begin")?;
    let own = pid(&mut first)?;
    let asked = Instant::now();
    second.batch_execute("begin")?;
    let others = pid(&mut second)?;
    ensure!(others != own && asked.elapsed() >= Duration::from_secs(2), "after {:?}", asked.elapsed());
    cluster.wait_log("taking a connection from postern.reserve_pool_size")?;
    let waiting = Doing::start(move || pid(&mut third));
    stays("there are no more than two", Duration::from_secs(4), || {
        pooled(&mut watcher).is_ok_and(|pids| pids.len() == 2)
    })?;
    first.batch_execute("commit")?;
    ensure!(waiting.value()?? == own, "the third is served by the first that comes free");
    second.batch_execute("commit")?;
    // Without a time the reserve is not used.
    cluster.sql("alter system set postern.reserve_pool_timeout = 0")?;
    cluster.sql("alter system set postern.server_idle_timeout = 1")?;
    cluster.sql("select pg_reload_conf()")?;
    wait::until("the unused ones are closed", || pooled(&mut watcher).is_ok_and(|pids| pids.is_empty()))?;
    first.batch_execute("begin")?;
    let waiting = Doing::start(move || pid(&mut second));
    stays("there is one", Duration::from_secs(4), || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 1))?;
    first.batch_execute("commit")?;
    waiting.value()??;
    Ok(())
}
