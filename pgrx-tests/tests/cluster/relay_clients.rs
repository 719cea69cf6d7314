//! What listeners hear when relays, fronts and databases come and go, and when a client does not read or vanishes.

use crate::pooling::with_pool;
use crate::relay::Client;
use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::drivers::{go, node, python, python_with_asyncpg, succeeded};
use pgrx_tests::script::connection::{Received, Target};
use pgrx_tests::wait;
use postgres::fallible_iterator::FallibleIterator;

/// How many relay workers there are.
fn relays(cluster: &Cluster) -> String {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postern relay'";
    cluster.sql(sql).unwrap_or_default()
}

fn listener(cluster: &Cluster, database: &str, channel: &str) -> Result<Client> {
    let mut client = Client::open(&Target::tcp(cluster.pooler_port), "postgres", database)?;
    client.query(&format!("LISTEN {channel}"))?;
    Ok(client)
}

/// Has the pooler's worker ended, and waits for the next one.
fn new_front(cluster: &Cluster) -> Result<()> {
    let front = cluster.front_pid()?;
    cluster.sql(&format!("SELECT pg_terminate_backend({front})"))?;
    let port = Target::tcp(cluster.pooler_port);
    wait::until("there is a new front", || {
        cluster.front_pid().is_ok_and(|pid| pid != front)
            && Client::open(&port, "postgres", "postgres").is_ok()
    })
}

#[test]
fn the_relay_of_a_front_that_has_ended_gives_the_next_ones_clients_nothing() -> Result<()> {
    let cluster = with_pool("relay_fronts", 2, &[])?;
    cluster.sql("CREATE DATABASE other")?;
    let _before = listener(&cluster, "postgres", "secret")?;
    new_front(&cluster)?;
    // The first channel of the first database, as the other was.
    let mut after = listener(&cluster, "other", "news")?;
    cluster.sql("NOTIFY secret, 'of another database'")?;
    after.hears_nothing()?;
    // Nor twice what it is to hear.
    let mut again = listener(&cluster, "postgres", "secret")?;
    cluster.sql("NOTIFY secret, 'once'")?;
    again.next(1)?;
    again.hears_nothing()?;
    wait::until("there is a relay for each database", || relays(&cluster) == "2")?;
    Ok(())
}

/// The error with which a connection ends.
fn end_of(client: &mut Client) -> Result<String> {
    let mut last = String::new();
    loop {
        match client.connection.receive(wait::LIMIT)? {
            Received::Message { tag: b'E', body } => last = String::from_utf8_lossy(&body).replace('\0', " "),
            Received::Message { .. } => {}
            Received::Closed { .. } => return Ok(last),
            other => anyhow::bail!("{other:?} after {last}"),
        }
    }
}

/// Listeners of a database: idle, in session mode, with a temporary table, in a transaction.
fn four(cluster: &Cluster, database: &str) -> Result<[Client; 4]> {
    let mut clients = [(); 4].map(|()| listener(cluster, database, "news"));
    for (client, sql) in clients.iter_mut().zip([
        "SELECT 1",
        "SET postern.pool_mode = session",
        "CREATE TEMP TABLE t (x int)",
        "BEGIN",
    ]) {
        if let Ok(client) = client {
            client.query(sql)?;
        }
    }
    let [a, b, c, d] = clients;
    Ok([a?, b?, c?, d?])
}

#[test]
fn listeners_whose_relay_is_ended_hear_it_and_those_of_another_database_do_not() -> Result<()> {
    let cluster = with_pool("relay_ended", 5, &[("log_min_messages", "warning")])?;
    cluster.sql("CREATE DATABASE other")?;
    let mut apart = listener(&cluster, "postgres", "news")?;
    let mut clients = four(&cluster, "other")?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE backend_type = 'postern relay' AND datname = 'other'";
    cluster.sql(end)?;
    let [idle, session, pinned, busy] = &mut clients;
    for (what, client) in [("idle", idle), ("session", session), ("pinned", pinned)] {
        let end = end_of(client)?;
        ensure!(end.contains("VFATAL") && end.contains("CPN002"), "{what}: {end}");
    }
    busy.hears_nothing()?;
    let commit = pgrx_tests::script::frontend::Message::query(b"COMMIT");
    busy.connection.send(&commit.bytes, None);
    let end = end_of(busy)?;
    ensure!(end.contains("CPN002"), "in a transaction: {end}");
    cluster.wait_log("notification relay of database other ended; its 4 listeners are disconnected")?;
    apart.query("SELECT 1")?;
    cluster.sql("NOTIFY news, 'still'")?;
    apart.next(1)?;
    // Somebody listens again.
    let mut again = listener(&cluster, "other", "news")?;
    again.query("NOTIFY news, 'again'")?;
    again.next(1)?;
    wait::until("it is dropped", || cluster.sql("DROP DATABASE IF EXISTS other WITH (FORCE)").is_ok())?;
    let end = end_of(&mut again)?;
    ensure!(end.contains("CPN002") || end.contains("C57P01"), "{end}");
    cluster.sql("NOTIFY news, 'still'")?;
    apart.next(1)?;
    Ok(())
}

#[test]
fn a_cancel_of_a_worker_harms_nobody() -> Result<()> {
    let cluster = with_pool("relay_cancel", 2, &[])?;
    let mut client = listener(&cluster, "postgres", "news")?;
    let front = cluster.front_pid()?;
    let workers =
        "FROM pg_stat_activity WHERE backend_type IN ('postern pooler', 'postern relay', 'postern launcher')";
    let there = || cluster.sql(&format!("SELECT count(*) {workers}"));
    wait::until("all three are there", || there().is_ok_and(|there| there == "3"))?;
    for _ in 0..3 {
        assert_eq!(cluster.sql(&format!("SELECT count(pg_cancel_backend(pid)) {workers}"))?, "3");
        cluster.sql("NOTIFY news, 'still'")?;
        client.next(1)?;
    }
    client.query("SELECT 1; LISTEN more")?;
    assert_eq!(cluster.front_pid()?, front);
    Ok(())
}

#[test]
fn a_database_whose_last_listener_has_gone_can_be_dropped_and_its_relay_ends() -> Result<()> {
    let cluster = with_pool("relay_drop", 2, &[("postern.server_idle_timeout", "1")])?;
    cluster.sql("CREATE DATABASE other")?;
    ensure!(relays(&cluster) == "0");
    let first = listener(&cluster, "other", "a")?;
    let mut second = listener(&cluster, "other", "b")?;
    ensure!(relays(&cluster) == "1");
    drop(first);
    second.query("UNLISTEN *; LISTEN c")?;
    ensure!(relays(&cluster) == "1");
    drop(second);
    wait::until("the pooled backends have gone", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'other' AND backend_type = 'client backend'";
        cluster.sql(sql).is_ok_and(|count| count == "0")
    })?;
    // The server itself waits no longer than five seconds for those who are in it.
    wait::until("it can be dropped", || cluster.sql("DROP DATABASE other").is_ok())?;
    wait::until("the relay has ended", || relays(&cluster) == "0")
}

/// Notifies so much that no socket takes it.
fn flood(cluster: &Cluster, kilobytes: u32) -> Result<()> {
    cluster
        .sql(&format!("SELECT count(pg_notify('flood', repeat('x', 4000) || g)) FROM generate_series(1, {kilobytes} / 4) g"))
        .map(drop)
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up_in_any_mode() -> Result<()> {
    for mode in ["transaction", "session"] {
        let size = if mode == "session" { 2 } else { 1 };
        let cluster = with_pool(&format!("relay_deaf_{mode}"), size, &[])?;
        let mut deaf = listener(&cluster, "postgres", "flood")?;
        deaf.query(&format!("SET postern.pool_mode = {mode}"))?;
        let mut other = Client::through(&cluster)?;
        other.query("LISTEN news")?;
        deaf.query("SELECT 1")?;
        for _ in 0..3 {
            flood(&cluster, 8000)?;
            let began = std::time::Instant::now();
            other.query("SELECT 1")?;
            cluster.sql("NOTIFY news")?;
            other.next(1)?;
            let took = began.elapsed();
            ensure!(took < std::time::Duration::from_secs(15), "in {mode} mode: {took:?}");
        }
        // It vanishes amid being written to.
        drop(deaf);
        drop(other);
        wait::until("nobody listens any more", || relays(&cluster) == "0")?;
    }
    Ok(())
}

#[test]
fn real_clients_listen_through_the_pooler_as_directly() -> Result<()> {
    let cluster = with_pool("relay_drivers", 2, &[])?;
    for port in [cluster.port, cluster.pooler_port] {
        let address = ["127.0.0.1".to_owned(), port.to_string()];
        let address = address.each_ref().map(String::as_str);
        succeeded("psycopg_notify.py", &python("psycopg_notify.py", &address)?)?;
        succeeded("pg_notify.js", &node("pg_notify.js", &address)?)?;
        succeeded("asyncpg_notify.py", &python_with_asyncpg("asyncpg_notify.py", &address)?)?;
        if let Some(output) = go("go_notify", &address)? {
            succeeded("go_notify", &output)?;
        }

        let url = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
        let mut psql = cluster.program("psql");
        psql.env("HOME", "/nonexistent").args([
            "-X",
            "-d",
            &url,
            "-c",
            "LISTEN news",
            "-c",
            "NOTIFY news, 'by psql'",
        ]);
        let said = psql.output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(said.contains("Asynchronous notification \"news\" with payload \"by psql\""), "psql: {said}");

        let mut client: postgres::Client = url.parse::<postgres::Config>()?.connect(postgres::NoTls)?;
        client.batch_execute("LISTEN news")?;
        cluster.sql("NOTIFY news, 'by another'")?;
        let mut notifications = client.notifications();
        let next = notifications.timeout_iter(wait::LIMIT).next()?;
        ensure!(next.is_some_and(|next| next.channel() == "news" && next.payload() == "by another"));
    }
    Ok(())
}
