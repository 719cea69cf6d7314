//! Server connections that cannot be opened in time: what clients hear, when it is tried again, and who does not notice.

use crate::pooling::{Doing, pooled, text, through, with_pool};
use crate::raw::Raw;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::{Connection, Received, Target};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{installation, process, wait};
use postgres::NoTls;
use rustix::process::Signal;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Makes every backend take so many seconds to begin.
fn delay(cluster: &Cluster, watcher: &mut postgres::Client, seconds: u32) -> Result<()> {
    watcher.batch_execute(&format!("alter system set post_auth_delay = {seconds}"))?;
    watcher.batch_execute("select pg_reload_conf()")?;
    wait::until("the postmaster has read it", || {
        let shown = cluster.sql("select setting from pg_settings where name = 'post_auth_delay'");
        shown.is_ok_and(|shown| shown == seconds.to_string())
    })
}

/// In the log as well, where `log` would leave them out.
const WARNINGS: (&str, &str) = ("log_min_messages", "warning");

const TOO_SLOW: &str = "took longer than postern.server_connect_timeout";

#[test]
fn a_server_connection_that_takes_too_long_ends_who_waits_for_the_first_one() -> Result<()> {
    let cluster = with_pool("too-slow", 2, &[("postern.server_connect_timeout", "1s"), WARNINGS])?;
    let mut watcher = cluster.connect()?;
    delay(&cluster, &mut watcher, 4)?;
    let begun = Instant::now();
    let said = Raw::open(cluster.pooler_port).err().context("a welcome")?.to_string();
    let took = begun.elapsed();
    ensure!(said.contains("SFATAL") && said.contains("C08006") && said.contains(TOO_SLOW), "{said}");
    ensure!(took >= Duration::from_secs(1), "after {took:?}");
    cluster.wait_log(TOO_SLOW)?;
    delay(&cluster, &mut watcher, 0)?;
    // A pool that has no connection at all tries again at once.
    let begun = Instant::now();
    wait::until("a client gets in", || Raw::open(cluster.pooler_port).is_ok())?;
    // And not after postern.server_login_retry.
    ensure!(begun.elapsed() < Duration::from_secs(12), "after {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn after_a_failed_server_connection_a_pool_that_has_one_waits_before_the_next() -> Result<()> {
    let pause = Duration::from_secs(8);
    let settings = [("postern.server_connect_timeout", "5s"), ("postern.server_login_retry", "8s"), WARNINGS];
    let cluster = with_pool("retry", 2, &settings)?;
    let mut watcher = cluster.connect()?;
    let mut first = through(&cluster).connect(postgres::NoTls)?;
    let mut second = through(&cluster).connect(postgres::NoTls)?;
    // One more backend may have been opened for somebody's impatience, and one may stay with its client.
    watcher.batch_execute("create extension postern")?;
    wait::until("there is no backend", || {
        watcher.batch_execute("select postern.reconnect()").is_ok()
            && pooled(&mut watcher).is_ok_and(|pids| pids.is_empty())
    })?;
    first.batch_execute("begin")?;
    ensure!(pooled(&mut watcher)?.len() == 1);
    delay(&cluster, &mut watcher, 9)?;
    let asked = Instant::now();
    let waiting = Doing::start(move || text(&mut second, "select 'served'"));
    cluster.wait_log(TOO_SLOW)?;
    delay(&cluster, &mut watcher, 0)?;
    // The backend of the connection that was given up may come to see that only now.
    let mut last = Vec::new();
    wait::until("another is opened, and stays", || {
        std::thread::sleep(Duration::from_millis(300));
        let before = std::mem::replace(&mut last, pooled(&mut watcher).unwrap_or_default());
        last.len() == 2 && last == before
    })?;
    let took = asked.elapsed();
    // It takes five seconds to fail.
    ensure!(took > pause + Duration::from_secs(5), "it was tried again after {took:?}");
    ensure!(took < 4 * pause, "it was tried again after {took:?}");
    ensure!(waiting.value()?? == "served", "the one who waited was served all the same");
    ensure!(text(&mut first, "select 'here'")? == "here", "and the one that had a backend kept it");
    Ok(())
}

#[test]
fn a_login_that_outlives_its_front_takes_nothing_from_the_next_one() -> Result<()> {
    let cluster = with_pool("late-login", 1, &[WARNINGS, ("autovacuum", "off")])?;
    let mut watcher = cluster.connect()?;
    // Before the startup packet is read, so that the token is shown late.
    watcher.batch_execute("alter system set pre_auth_delay = 8")?;
    watcher.batch_execute("select pg_reload_conf()")?;
    wait::until("the postmaster has read it", || {
        text(&mut watcher, "show pre_auth_delay").is_ok_and(|shown| shown == "8s")
    })?;
    let postmaster = cluster.pid()?;
    let children = || process::children(postmaster).into_iter().map(|(pid, _)| pid).collect::<Vec<_>>();
    let new_child = |before: &[i32]| {
        let new = || children().into_iter().find(|pid| !before.contains(pid)).context("no new process");
        wait::for_value("the front has asked for a backend", new)
    };
    wait::until("nobody else comes", || {
        process::children(postmaster).iter().all(|(_, line)| !line.contains("scout"))
    })?;
    let before = children();
    let config = through(&cluster);
    let first = Doing::start(move || config.connect(postgres::NoTls).is_err());
    let late = new_child(&before)?;
    process::signal_pid(late, Signal::STOP)?;
    let old = cluster.front_pid()?;
    process::signal_pid(old, Signal::TERM)?;
    ensure!(first.value()?, "its front has ended before it was welcomed");
    wait::until("another front listens", || {
        cluster.front_pid().is_ok_and(|new| new != old)
            && std::net::TcpStream::connect(("127.0.0.1", cluster.pooler_port)).is_ok()
    })?;
    // Its connection has the number that the late one has, which goes first.
    let before = children();
    let config = through(&cluster);
    let next = Doing::start(move || text(&mut config.connect(postgres::NoTls)?, "select 'welcome'"));
    new_child(&before)?;
    process::signal_pid(late, Signal::CONT)?;
    ensure!(next.value().context("nobody is welcomed any more")?? == "welcome");
    wait::until("the late one has gone", || !process::is_running(late))
}

/// The kernel lets no process take another's descriptors that is not to be looked into: the front gives them, as to every backend where
/// there is no pidfd_getfd(2).
#[test]
fn backends_that_may_not_take_a_clients_socket_are_given_it() -> Result<()> {
    let cluster = with_pool("given", 2, &[])?;
    let named = |name: &str| through(&cluster).application_name(name).connect(NoTls);
    let mut before = named("before")?;
    ensure!(text(&mut before, "select 1")? == "1");
    let mut closed = named("test closed")?;
    let files = std::fs::metadata(format!("/proc/{}/fd", cluster.front_pid()?))?;
    ensure!(files.uid() == 0, "the front's files are its own user's still");
    for round in 0..3 {
        let mut clients =
            (0..6).map(|number| named(&format!("client {round} {number}"))).collect::<Result<Vec<_>, _>>()?;
        for turn in 0..4 {
            // Two at once, on both backends.
            let (first, second) = (turn % 6, (turn + 1 + round) % 6);
            clients[first].batch_execute("begin")?;
            for (number, client) in
                [(first, round), (second, round)].map(|(n, r)| (n, format!("client {r} {n}")))
            {
                ensure!(text(&mut clients[number], "show application_name")? == client);
            }
            clients[first].batch_execute("commit")?;
        }
        ensure!(text(&mut before, "show application_name")? == "before");
        ensure!(text(&mut closed, "show application_name")? == "test closed");
    }
    Ok(())
}

/// A client that has said whom it is, and reads nothing yet.
fn newcomer(cluster: &Cluster) -> Result<Connection> {
    let mut client = Connection::open(&Target::tcp(cluster.pooler_port))?;
    let parameters = ["user", "database"].map(|name| (name.as_bytes().to_vec(), b"postgres".to_vec()));
    client.send(&Message::startup((3, 0), &parameters).bytes, None);
    Ok(client)
}

fn is_let_in(client: &mut Connection, patience: Duration) -> Result<bool> {
    Ok(client.receive(patience)? == Received::Message { tag: b'R', body: vec![0; 4] })
}

/// All that follows until it is ready; it was told only once that it is in.
fn is_welcomed(client: &mut Connection) -> Result<()> {
    loop {
        match client.receive(wait::LIMIT)? {
            Received::Message { tag: b'Z', .. } => return Ok(()),
            Received::Message { tag: b'R' | b'E', body } => {
                anyhow::bail!("{}", String::from_utf8_lossy(&body))
            }
            Received::Message { .. } => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
}

#[test]
fn who_waits_for_a_backend_is_let_in_at_once() -> Result<()> {
    let cluster = with_pool("let-in", 1, &[])?;
    cluster.create_extension()?;
    // That of 15 takes it for an answer; later ones wait for the rest of the welcome, and a server that says no more has not responded.
    let is_ready = |cluster: &Cluster| -> Result<()> {
        if installation::major() == 15 {
            let mut program = cluster.program("pg_isready");
            program.args(["-h", "127.0.0.1", "-p", &cluster.pooler_port.to_string(), "-U", "postgres"]);
            let output = program.args(["-d", "postgres"]).output()?;
            ensure!(output.status.success(), "{output:?}");
        }
        Ok(())
    };
    let patience = Duration::from_secs(20);
    let mut holder = through(&cluster).connect(NoTls)?;
    holder.batch_execute("begin")?;
    let mut client = newcomer(&cluster)?;
    ensure!(is_let_in(&mut client, patience)?, "the pool is full");
    is_ready(&cluster)?;
    holder.batch_execute("commit")?;
    is_welcomed(&mut client)?;
    cluster.sql("select postern.pause()")?;
    let mut client = newcomer(&cluster)?;
    ensure!(is_let_in(&mut client, patience)?, "the pool is paused");
    is_ready(&cluster)?;
    cluster.sql("select postern.resume()")?;
    is_welcomed(&mut client)
}

#[test]
fn who_comes_too_late_for_the_last_backend_is_let_in_soon() -> Result<()> {
    let cluster = with_pool("let-in-late", 1, &[("postern.pool_mode", "session")])?;
    let mut watcher = cluster.connect()?;
    watcher.batch_execute("create extension postern")?;
    drop(through(&cluster).connect(NoTls)?);
    let mut state = |wanted: &str| {
        wait::until(&format!("the server connection is {wanted}"), || {
            text(&mut watcher, "select state from postern.servers").is_ok_and(|state| state == wanted)
        })
    };
    state("idle")?;
    let backend: i32 = cluster.sql("select pid from postern.servers")?.parse()?;
    // While it waits for any client, every one may be its next.
    process::signal_pid(backend, Signal::STOP)?;
    wait::until("the backend stands still", || process::is_stopped(backend))?;
    let mut both = [newcomer(&cluster)?, newcomer(&cluster)?];
    wait::until("both have come", || {
        cluster.sql("select count(*) from postern.clients").is_ok_and(|count| count == "2")
    })?;
    process::signal_pid(backend, Signal::CONT)?;
    for client in &mut both {
        ensure!(is_let_in(client, Duration::from_secs(20))?);
    }
    // One of them has the backend for as long as it stays, and the other is its next.
    let mut welcomed = None;
    for (number, client) in both.iter_mut().enumerate() {
        if client.receive(Duration::from_millis(300))? != Received::Silence {
            ensure!(welcomed.replace(number).is_none(), "both are served");
            is_welcomed(client)?;
        }
    }
    let [first, second] = both;
    let (served, mut waits) =
        if welcomed.context("none is served")? == 0 { (first, second) } else { (second, first) };
    drop(served);
    is_welcomed(&mut waits)
}
