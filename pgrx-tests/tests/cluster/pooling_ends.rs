//! Backends, the pooler and the server that end: who notices, and how it goes on.

use crate::pooling::{code, pooled, text, through, with_pool};
use crate::raw::Raw;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::process::signal_pid;
use pgrx_tests::script::frontend::Message;
use pgrx_tests::wait;
use rustix::process::Signal;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn an_idle_backend_that_is_terminated_goes_unnoticed() -> Result<()> {
    let cluster = with_pool("terminated", 2, &[])?;
    let mut watcher = cluster.connect()?;
    let mut clients: Vec<_> =
        (0..4).map(|_| through(&cluster).connect(postgres::NoTls)).collect::<Result<_, _>>()?;
    for round in 0..10 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.batch_execute(&format!("set state.n = '{number}'"))?;
        }
        let pids = pooled(&mut watcher)?;
        ensure!(!pids.is_empty());
        for pid in pids {
            watcher.execute("select pg_terminate_backend($1)", &[&pid])?;
        }
        // While they end, and when they have.
        if round % 2 == 0 {
            wait::until("they have ended", || {
                // One may just have been opened.
                let _ = watcher.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()",
                    &[],
                );
                pooled(&mut watcher).is_ok_and(|pids| pids.is_empty())
            })?;
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let seen =
                text(client, "show state.n").with_context(|| format!("round {round}, client {number}"))?;
            ensure!(seen == number.to_string());
        }
    }
    Ok(())
}

#[test]
fn a_serving_backend_that_is_terminated_ends_its_own_client_only() -> Result<()> {
    let cluster = with_pool("terminated-serving", 2, &[])?;
    let mut watcher = cluster.connect()?;
    let mut others: Vec<_> =
        (0..3).map(|_| through(&cluster).connect(postgres::NoTls)).collect::<Result<_, _>>()?;
    for state in ["select pg_sleep(30)", "begin; select pg_sleep(30)", "begin"] {
        let mut client = Raw::open(cluster.pooler_port)?;
        client.ask(state);
        let victim = wait::for_value("it is served", || {
            let row = watcher.query_one(
                "select pid from pg_stat_activity where query = $1 and pid <> pg_backend_pid() and \
                 (state = 'active') = (query like '%pg_sleep%')",
                &[&state],
            )?;
            Ok(row.get::<_, i32>(0))
        })?;
        watcher.execute("select pg_terminate_backend($1)", &[&victim])?;
        let said = client.last_words()?;
        ensure!(said.contains("C57P01"), "{state}: {said}\n{}", cluster.log_tail());
        for other in &mut others {
            ensure!(text(other, "select 'well'")? == "well", "{state}");
        }
    }
    Ok(())
}

#[test]
fn a_fast_shutdown_tells_every_client() -> Result<()> {
    let cluster = with_pool("fast", 2, &[])?;
    let mut idle = Raw::open(cluster.pooler_port)?;
    idle.query("select 1")?;
    let mut block = Raw::open(cluster.pooler_port)?;
    block.query("begin")?;
    let mut busy = busy(&cluster, &mut cluster.connect()?)?;
    let begun = Instant::now();
    cluster.stop(Stop::Fast)?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    let said = busy.last_words()?;
    ensure!(said.contains("C57P01"), "busy: {said}");
    for (name, client) in [("idle", &mut idle), ("in a block", &mut block)] {
        let said = client.last_words()?;
        ensure!(said.contains("C57P01"), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn a_smart_shutdown_ends_when_the_sessions_have_ended() -> Result<()> {
    let cluster = with_pool("smart", 2, &[])?;
    let mut idle = through(&cluster).connect(postgres::NoTls)?;
    idle.batch_execute("select 1")?;
    let mut block = through(&cluster).connect(postgres::NoTls)?;
    block.batch_execute("begin")?;
    cluster.request_stop(Stop::Smart)?;
    wait::until("it is stopping", || cluster.state() == "stopping")?;
    // The transaction in progress is finished, as on a direct connection.
    block.batch_execute("select 1; commit").context("a transaction in progress")?;
    drop(block);
    // An idle one is served for as long as it likes, and no other gets in.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        ensure!(text(&mut idle, "select 'served'").context("an idle client")? == "served");
        let newcomer = through(&cluster).connect(postgres::NoTls);
        ensure!(code(&newcomer.err().context("a new client gets in")?) == "57P03");
    }
    ensure!(cluster.state() == "stopping");
    drop(idle);
    let begun = Instant::now();
    cluster.wait_end()?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    Ok(())
}

/// A client that runs something long, by the watcher's word.
fn busy(cluster: &Cluster, watcher: &mut postgres::Client) -> Result<Raw> {
    let mut busy = Raw::open(cluster.pooler_port)?;
    busy.ask("select pg_sleep(30)");
    wait::until("the query runs", || {
        watcher
            .query_one("select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(30)'", &[])
            .is_ok_and(|row| row.get::<_, i64>(0) == 1)
    })?;
    Ok(busy)
}

#[test]
fn a_pooler_that_is_told_to_end_comes_back_within_a_moment() -> Result<()> {
    // A second until it is started, and what it takes to end and to begin.
    const MOMENT: Duration = Duration::from_secs(3);
    // What no round may take, whatever the machine does.
    const MOST: Duration = Duration::from_secs(10);
    const ROUNDS: usize = 4;
    let cluster = with_pool("back", 2, &[])?;
    let mut watcher = cluster.connect()?;
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..ROUNDS {
        let mut idle = Raw::open(cluster.pooler_port).context("an idle client")?;
        idle.query("select 1")?;
        let mut busy = busy(&cluster, &mut watcher)?;
        let old = cluster.front_pid()?;
        let begun = Instant::now();
        signal_pid(old, Signal::TERM)?;
        wait::until("another one works", || {
            cluster.front_pid().is_ok_and(|new| new != old)
                && through(&cluster)
                    .connect(postgres::NoTls)
                    .is_ok_and(|mut client| text(&mut client, "select 1").is_ok_and(|one| one == "1"))
        })
        .with_context(|| cluster.log_tail())?;
        took.push(begun.elapsed());
        for (name, client) in [("busy", &mut busy), ("idle", &mut idle)] {
            let said = client.last_words()?;
            ensure!(said.contains("C57P01"), "{name}: {said}");
        }
    }
    // A loaded machine adds to some of them what is not the pooler's.
    let quick = took.iter().filter(|took| **took < MOMENT).count();
    ensure!(quick * 2 >= ROUNDS && took.iter().all(|took| *took < MOST), "it took {took:?}");
    // The server has not restarted, and no backend of before is left.
    ensure!(text(&mut watcher, "select 1")? == "1");
    wait::until("only backends of the new one are left", || {
        pooled(&mut watcher).is_ok_and(|pids| pids.len() <= 2)
    })
}

#[test]
fn a_connection_that_its_backend_does_not_know_as_pooled_is_closed_and_opened_anew() -> Result<()> {
    let cluster = with_pool("unclaimed", 1, &[("log_min_messages", "warning")])?;
    let begun = Instant::now();
    let mut client = through(&cluster).application_name("test token").connect(postgres::NoTls)?;
    ensure!(text(&mut client, "select 1")? == "1");
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    cluster.wait_log("the server took the pooler's connection for a client's")?;
    let mut watcher = cluster.connect()?;
    wait::until("the other one has gone", || {
        let sql = "select count(*) from pg_stat_activity where backend_type = 'client backend'";
        text(&mut watcher, &format!("{sql} and pid <> pg_backend_pid()::int")).is_ok_and(|count| count == "1")
    })
}

/// Nobody serves them, so no backend sees them go: they count against limits for as long as they are there.
#[test]
fn clients_that_vanish_while_they_wait_are_let_go() -> Result<()> {
    let cluster = with_pool("vanished", 1, &[])?;
    cluster.create_extension()?;
    cluster.sql("create role few login connection limit 3")?;
    let connect = || cluster.through("few", "postgres").connect(postgres::NoTls);
    let mut busy = connect()?;
    busy.batch_execute("begin")?;
    let begun = || -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", cluster.pooler_port))?;
        let parameters = [("user", "few"), ("database", "postgres")];
        let parameters =
            parameters.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        stream.write_all(&Message::startup((3, 0), &parameters).bytes)?;
        Ok(stream)
    };
    let clients = || cluster.sql("select count(*) from postern.clients");
    for _ in 0..3 {
        let waits = |count: u32| clients().is_ok_and(|clients| clients == count.to_string());
        let waiting: Vec<_> = (0..2).map(|_| begun()).collect::<Result<_>>()?;
        wait::until("they wait", || waits(3))?;
        drop(waiting);
        wait::until("they are gone", || waits(1))?;
    }
    // One that has left something to be done is served, as directly.
    busy.batch_execute("commit")?;
    ensure!(text(&mut connect()?, "select 1")? == "1");
    Ok(())
}
