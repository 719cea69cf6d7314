//! Clients of the listen-only port that are ended, or end: each hears why, and nobody else is harmed.

use crate::relay::Client;
use crate::relay_port::{clients, error, is_open, last_words, listener, told, with_port};
use anyhow::{Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::script::connection::Target;
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{ports, wait};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

#[test]
fn clients_whose_role_or_database_is_dropped_are_ended() -> Result<()> {
    let (cluster, port) = with_port("port-dropped", &[])?;
    cluster.sql("CREATE ROLE gone LOGIN")?;
    cluster.sql("CREATE DATABASE gone")?;
    let mut there = listener(port)?;
    there.query("LISTEN a")?;
    let mut role = Client::open(&Target::tcp(port), "gone", "postgres")?;
    role.query("LISTEN a")?;
    // It listens to nothing: no relay's end tells it.
    let mut database = Client::open(&Target::tcp(port), "postgres", "gone")?;
    cluster.sql("DROP ROLE gone")?;
    cluster.sql("DROP DATABASE gone")?;
    for client in [&mut role, &mut database] {
        let words = last_words(client)?;
        ensure!(words.contains("57P01"), "{words}");
    }
    cluster.sql("NOTIFY a, 'still'")?;
    there.next(1)?;
    Ok(())
}

#[test]
fn a_client_that_does_not_read_is_ended_and_others_hear_on() -> Result<()> {
    let (cluster, port) = with_port("port-slow", &[("postern.relay_ring_size", "1MB")])?;
    let (mut slow, mut quick, mut stuck) = (listener(port)?, listener(port)?, listener(port)?);
    for client in [&mut slow, &mut quick, &mut stuck] {
        client.query("LISTEN a")?;
    }
    let mut notifier = cluster.connect()?;
    let until = Instant::now() + Duration::from_secs(60);
    let mut sent = 0;
    while cluster.sql("SELECT too_slow FROM postern.relay")? != "2" {
        ensure!(Instant::now() < until, "nobody was too slow after {sent}");
        notifier
            .batch_execute("SELECT pg_notify('a', repeat('x', 7000) || g) FROM generate_series(1, 100) g")?;
        sent += 100;
        quick.wait_for(sent)?;
    }
    let words = last_words(&mut slow)?;
    ensure!(words.contains("PN001"), "{words}");
    let line = "of postgres@postgres ended: terminating connection because it does not read";
    wait::until("the log has both", || cluster.log().matches(line).count() == 2)?;
    wait::until("their places are free", || clients(&cluster).is_ok_and(|count| count == "1"))?;
    Ok(())
}

#[test]
fn listeners_hear_that_their_relay_has_ended() -> Result<()> {
    let (cluster, port) = with_port("port-relay-ended", &[])?;
    let (mut a, mut b, mut idle) = (listener(port)?, listener(port)?, listener(port)?);
    a.query("LISTEN a")?;
    b.query("LISTEN b")?;
    cluster
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'postern relay'")?;
    for client in [&mut a, &mut b] {
        let words = last_words(client)?;
        ensure!(words.contains("PN002"), "{words}");
    }
    // Who listened to nothing has missed nothing.
    idle.query("LISTEN a")?;
    cluster.sql("NOTIFY a")?;
    idle.next(1)?;
    Ok(())
}

#[test]
fn garbage_and_clients_that_vanish_harm_nobody() -> Result<()> {
    let (cluster, port) = with_port("port-hostile", &[])?;
    let mut good = listener(port)?;
    good.query("LISTEN good")?;
    for bytes in [
        &b"\xff\xff\xff\xff\xff\xff"[..],
        b"Q\x00\x00\x00\x01",
        b"Q\x00\x10\x00\x00select",
        b"B\x3f\xff\xff\xff",
    ] {
        let mut bad = listener(port)?;
        bad.query("LISTEN bad")?;
        bad.connection.send(bytes, None);
        let words = last_words(&mut bad)?;
        ensure!(words.contains("FATAL"), "{words}");
    }
    for cut in [b"Q\x00\x00\x00\x20LISTEN hal".as_slice(), b"P\x00", b""] {
        let mut gone = listener(port)?;
        gone.query("BEGIN; LISTEN gone")?;
        gone.connection.send(cut, None);
        drop(gone);
    }
    // As many statements as fit, in one write and more messages than are answered at once.
    let mut eager = listener(port)?;
    let message = Message::query("LISTEN eager;".repeat(600).as_bytes());
    eager.connection.send(&message.bytes.repeat(20), None);
    for _ in 0..20 {
        let (tags, error) = eager.answer()?;
        ensure!(tags.len() == 601 && error.is_none(), "{tags} {error:?}");
    }
    // What it asks it does not read: it is not read from either, and can be ended.
    let (tell, told) = std::sync::mpsc::channel();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let deaf = std::thread::spawn(move || -> Result<()> {
        let mut deaf = listener(port)?;
        tell.send(deaf.pid)?;
        let ask = Message::query("SELECT version();".repeat(400).as_bytes());
        for _ in 0..5000 {
            deaf.connection.send(&ask.bytes, None);
            count.fetch_add(1, Relaxed);
        }
        Ok(())
    });
    let pid = told.recv()?;
    wait::until("it can send no more", || {
        let before = asked.load(Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        before > 0 && asked.load(Relaxed) == before
    })?;
    assert!(!deaf.is_finished(), "all of it was read");
    assert_eq!(cluster.sql(&format!("SELECT postern.kill({pid})"))?, "t");
    wait::until("only two are left", || clients(&cluster).is_ok_and(|count| count == "2"))?;
    cluster.sql("NOTIFY good, 'still'")?;
    good.next(1)?;
    Ok(())
}

#[test]
fn listeners_hear_that_the_server_stops() -> Result<()> {
    let (cluster, port) = with_port("port-stop", &[])?;
    let mut clients = (0..50).map(|_| listener(port)).collect::<Result<Vec<_>>>()?;
    clients[0].query("LISTEN a")?;
    cluster.stop(Stop::Fast)?;
    for client in &mut clients {
        let words = last_words(client)?;
        ensure!(words.contains("57P01"), "{words}");
    }
    Ok(())
}

#[test]
fn a_standby_refuses_as_the_server_does_until_it_is_promoted() -> Result<()> {
    let port = ports::free()?;
    let primary = Cluster::new("port-primary")?.start()?;
    let standby = primary.standby("port-standby")?;
    standby.set("postern.relay_listen", &format!("127.0.0.1:{port}"))?;
    let standby = standby.start()?;
    standby.wait_streaming()?;
    is_open(port)?;
    let startup = [("user", "postgres"), ("database", "postgres")];
    assert_eq!(told(&Target::tcp(port), &startup)?, told(&Target::tcp(standby.port), &startup)?);
    let mut client = listener(port)?;
    let refused = error(&mut client, "LISTEN a")?;
    ensure!(
        refused.contains("25006") && refused.contains("cannot execute LISTEN during recovery"),
        "{refused}"
    );
    client.query("UNLISTEN *")?;
    standby.promote()?;
    wait::until("it is promoted", || standby.sql("SELECT pg_is_in_recovery()").is_ok_and(|is| is == "f"))?;
    client.query("LISTEN a")?;
    standby.sql("NOTIFY a, 'promoted'")?;
    assert_eq!(client.next(1)?[0].2, "promoted");
    Ok(())
}
