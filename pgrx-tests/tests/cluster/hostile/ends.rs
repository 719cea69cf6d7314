//! The front's own ends, while everything is going on.

use super::{ENDLESS, client, heard, is_served, runs, until};
use crate::pooling::{text, through, with_pool};
use crate::raw::Raw;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::{Connection, Received};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{process, wait};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Reading = std::thread::JoinHandle<Result<Vec<(u8, Vec<u8>)>>>;

/// Clients in every state that a session can be in, and a thread that reads what each hears last.
struct Everything {
    idle: Raw,
    /// By what each is doing: the last message, or why there is none.
    others: Vec<(&'static str, Reading)>,
    backends: Vec<i32>,
}

const LONG: &str = "select pg_sleep(100)";
const COPY_OUT: &str = "copy (select repeat('o', 9000) from generate_series(1, 100000) where pg_sleep(0.005) is not null) to stdout";

fn everything(cluster: &Cluster, watcher: &mut postgres::Client) -> Result<Everything> {
    watcher.batch_execute("create table if not exists kept (a int); truncate kept")?;
    let mut idle = Raw::open(cluster.pooler_port)?;
    idle.query("select 'idle'")?;
    let (mut block, mut copy_in, mut copy_out, mut long, mut pinned) =
        (client(cluster)?, client(cluster)?, client(cluster)?, client(cluster)?, client(cluster)?);
    let ask = |client: &mut Connection, sql: &str| client.send(&Message::query(sql.as_bytes()).bytes, None);
    ask(&mut pinned, "create temp table of_its_own (a int)");
    until(&mut pinned, b'Z')?;
    ask(&mut block, "begin; insert into kept values (1); select 1");
    until(&mut block, b'Z')?;
    ask(&mut copy_in, "copy kept from stdin");
    until(&mut copy_in, b'G')?;
    copy_in.send(&Message::copy_data(b"2\n").bytes, None);
    ask(&mut copy_out, COPY_OUT);
    until(&mut copy_out, b'd')?;
    ask(&mut long, LONG);
    runs(watcher, LONG)?;
    // Nobody reads what this one is told.
    let mut unread = client(cluster)?;
    ask(&mut unread, ENDLESS);
    runs(watcher, ENDLESS)?;
    let backends = watcher.query("select pid from postern.servers where pid > 0", &[])?;
    let backends: Vec<i32> = backends.iter().map(|row| row.get(0)).collect();
    ensure!(backends.len() >= 6, "{backends:?}");
    let reading = |mut client: Connection| std::thread::spawn(move || heard(&mut client));
    let others = vec![
        ("in a transaction", reading(block)),
        ("amid COPY from it", reading(copy_in)),
        ("amid COPY to it", reading(copy_out)),
        ("amid a query", reading(long)),
        ("pinned", reading(pinned)),
    ];
    // Its connection stays open until its backend has gone.
    std::mem::forget(unread);
    Ok(Everything { idle, others, backends })
}

impl Everything {
    /// What each client heard at last.
    fn last_words(self) -> Result<Vec<(&'static str, String)>> {
        let Self { mut idle, others, .. } = self;
        let mut words = vec![("idle", idle.last_words()?)];
        for (what, reading) in others {
            let messages = reading.join().map_err(|_| anyhow::anyhow!("{what}: a panic"))??;
            for (tag, body) in &messages {
                let own = match tag {
                    b'd' => body.len() == 9001 && body.starts_with(b"ooo"),
                    b'T' => body.windows(8).any(|text| text == b"pg_sleep"),
                    tag => *tag == b'E' || *tag == b'N',
                };
                ensure!(own, "{what} has heard {} {body:?}", *tag as char);
            }
            let last = messages.last().map(|(_, body)| String::from_utf8_lossy(body).replace('\0', " "));
            words.push((what, last.unwrap_or_default()));
        }
        Ok(words)
    }
}

fn backends_are_gone(watcher: &mut postgres::Client, backends: &[i32]) -> Result<()> {
    wait::until("no backend of before is left", || {
        let left =
            watcher.query_one("select count(*) from pg_stat_activity where pid = any($1)", &[&backends]);
        left.is_ok_and(|row| row.get::<_, i64>(0) == 0)
            && backends.iter().all(|pid| !process::is_running(*pid))
    })
}

#[test]
fn a_front_that_ends_tells_every_client_and_leaves_no_backend() -> Result<()> {
    let cluster = with_pool("front-ends", 8, &[("log_min_messages", "warning")])?;
    cluster.create_extension()?;
    let mut watcher = cluster.connect()?;
    for how in ["SIGTERM", "a panic in a task", "a failure"] {
        let everything = everything(&cluster, &mut watcher).context(how)?;
        let old = cluster.front_pid()?;
        let begun = Instant::now();
        let named = |name: &str| through(&cluster).application_name(name).connect(postgres::NoTls).map(drop);
        match how {
            "SIGTERM" => process::signal_pid(old, Signal::TERM)?,
            "a panic in a task" => ensure!(named("test panic").is_err()),
            _ => ensure!(named("test fail").is_err()),
        }
        wait::until("another front serves", || {
            cluster.front_pid().is_ok_and(|new| new != old) && is_served(&cluster).is_ok()
        })
        .context(how)?;
        let took = begun.elapsed();
        println!("{how}: {took:?}");
        ensure!(took < Duration::from_secs(15), "{how}: the new one serves after {took:?}");
        backends_are_gone(&mut watcher, &everything.backends).context(how)?;
        for (what, said) in everything.last_words().context(how)? {
            ensure!(said.contains("C57P01"), "{how}: {what} has heard {said:?}");
        }
        ensure!(watcher.query_one("select count(*) from kept", &[])?.get::<_, i64>(0) == 0, "{how}");
        // What is shown are the new front's own, and all of them are there.
        let leaked = "select pid from postern.servers s where state <> 'opening' and not exists (select from pg_stat_activity a where a.pid = s.pid)";
        wait::until("no server connection is leaked", || {
            watcher.query(leaked, &[]).is_ok_and(|rows| rows.is_empty())
        })
        .context(how)?;
    }
    let log = cluster.log();
    ensure!(log.matches("database system is ready").count() == 1, "the server has not restarted");
    ensure!(
        log.contains("pooler ends to be started again: a task of thread \"postern front\" panicked"),
        "{}",
        cluster.log_tail()
    );
    Ok(())
}

/// Asks for its own name until the connection ends; whatever is not its own answer is an error.
fn asks_on(cluster_port: u16, number: usize, begun: &AtomicBool) -> Result<()> {
    let mut client = Connection::open(&pgrx_tests::script::Target::tcp(cluster_port))?;
    let parameters = ["user", "database"].map(|name| (name.as_bytes().to_vec(), b"postgres".to_vec()));
    client.send(&Message::startup((3, 0), &parameters).bytes, None);
    until(&mut client, b'Z')?;
    for turn in 0.. {
        let own = format!("client {number} turn {turn}");
        client.send(&Message::query(format!("select '{own}'").as_bytes()).bytes, None);
        loop {
            match client.receive(Duration::from_secs(30))? {
                Received::Message { tag: b'D', body } => {
                    ensure!(body.ends_with(own.as_bytes()), "{own} has heard {body:?}");
                }
                Received::Message { tag: b'Z', .. } => break,
                Received::Message { tag: b'T' | b'C', .. } => {}
                Received::Message { tag: b'E' | b'N', body } => {
                    let said = String::from_utf8_lossy(&body).replace('\0', " ");
                    let crash = ["C57P01", "C57P02"].iter().any(|code| said.contains(code));
                    ensure!(crash, "{own}: {said}");
                }
                Received::Closed { .. } => return Ok(()),
                other => anyhow::bail!("{own}: {other:?}"),
            }
        }
        begun.store(true, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn a_front_that_is_killed_takes_the_server_through_recovery_and_all_is_back() -> Result<()> {
    let cluster = with_pool("front-killed", 8, &[])?;
    cluster.create_extension()?;
    let mut watcher = cluster.connect()?;
    let everything = everything(&cluster, &mut watcher)?;
    let port = cluster.pooler_port;
    let asking: Vec<_> = (0..12)
        .map(|number| {
            let begun = std::sync::Arc::new(AtomicBool::new(false));
            let its = std::sync::Arc::clone(&begun);
            (begun, std::thread::spawn(move || asks_on(port, number, &its)))
        })
        .collect();
    wait::until("everybody is served", || asking.iter().all(|(begun, _)| begun.load(Ordering::Relaxed)))?;
    process::signal_pid(cluster.front_pid()?, Signal::KILL)?;
    for (number, (_, asking)) in asking.into_iter().enumerate() {
        asking.join().map_err(|_| anyhow::anyhow!("client {number}: a panic"))??;
    }
    let backends = everything.backends.clone();
    // An error or a closed connection, and nothing that was meant for another.
    for (what, said) in everything.last_words()? {
        ensure!(said.is_empty() || said.contains("C57P0") || what == "amid COPY to it", "{what}: {said}");
    }
    wait::until("served again", || is_served(&cluster).is_ok())?;
    ensure!(cluster.log().contains("terminating any other active server processes"));
    let mut watcher = cluster.connect()?;
    backends_are_gone(&mut watcher, &backends)?;
    ensure!(watcher.query_one("select count(*) from kept", &[])?.get::<_, i64>(0) == 0);
    let mut clients =
        (0..20).map(|_| through(&cluster).connect(postgres::NoTls)).collect::<Result<Vec<_>, _>>()?;
    for client in &mut clients {
        ensure!(text(client, "select 'well'")? == "well");
    }
    Ok(())
}

#[test]
fn a_backend_that_outlives_its_front_touches_nothing_of_the_next_one() -> Result<()> {
    let cluster = with_pool("front-outlived", 1, &[])?;
    cluster.create_extension()?;
    let mut watcher = cluster.connect()?;
    is_served(&cluster)?;
    let old: i32 = watcher.query_one("select pid from postern.servers", &[])?.get(0);
    let front = cluster.front_pid()?;
    process::signal_pid(old, Signal::STOP)?;
    process::signal_pid(front, Signal::TERM)?;
    let mut holder = wait::for_value("another front serves", || {
        ensure!(cluster.front_pid()? != front);
        let mut client = through(&cluster).connect(postgres::NoTls)?;
        client.batch_execute("begin")?;
        Ok(client)
    })?;
    process::signal_pid(old, Signal::CONT)?;
    backends_are_gone(&mut watcher, &[old])?;
    // The old one's number among the connections is the new one's.
    let rows = watcher.query("select pid, state from postern.servers", &[])?;
    let pid: i32 = holder.query_one("select pg_backend_pid()", &[])?.get(0);
    let shown: Vec<(i32, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    ensure!(shown == [(pid, "active")], "{shown:?}, and the client has {pid}");
    holder.batch_execute("commit")?;
    for _ in 0..3 {
        is_served(&cluster)?;
    }
    Ok(())
}
