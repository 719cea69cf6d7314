//! The pooler as a whole: a first query, large answers, few descriptors, a server that is restarted under it.

use crate::drivers;
use crate::pooling::with_pool;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{machine, process, wait};
use postgres::{Client, NoTls};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// A session through the front, as superuser to database `postgres`, over TCP.
fn through(cluster: &Cluster) -> Result<Client> {
    Ok(cluster.through("postgres", "postgres").connect(NoTls)?)
}

#[test]
fn a_query_passes_through_the_front() -> Result<()> {
    let cluster = Cluster::new("front")?.start()?;
    let row = through(&cluster)?.query_one("select 40 + $1::int", &[&2])?;
    assert_eq!(row.get::<_, i32>(0), 42);
    Ok(())
}

#[test]
fn a_gigabyte_goes_to_a_client_and_the_front_does_not_grow() -> Result<()> {
    let cluster = Cluster::new("large")?.start()?;
    let mut client = through(&cluster)?;
    client.simple_query("SELECT 1")?;
    let front = cluster.front_pid()?;
    let before = process::resident(front)?;
    let mut copy =
        client.copy_out("COPY (SELECT repeat('x', 1048575) FROM generate_series(1, 1024)) TO STDOUT")?;
    let (mut total, mut most, mut buffer) = (0usize, 0, vec![0; 1 << 20]);
    loop {
        let length = copy.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        total += length;
        if total % (64 << 20) < length {
            most = most.max(process::resident(front)?);
        }
    }
    drop(copy);
    assert_eq!(total, 1 << 30, "rows of a megabyte, each with its newline");
    ensure!(most < before + 4096, "the front grew from {before} to {most} kB");
    Ok(())
}

#[test]
fn few_descriptors_mean_fewer_clients_and_the_log_says_so() -> Result<()> {
    let cluster = Cluster::new("few")?;
    cluster.launch_with_files(1400)?;
    cluster.wait_log("the pooler takes at most 144 clients and not 10000")?;
    wait::until("a client gets in", || through(&cluster).is_ok())?;
    let mut clients = Vec::new();
    let refused = loop {
        match through(&cluster) {
            Ok(client) => clients.push(client),
            Err(error) => break format!("{error:#}"),
        }
        ensure!(clients.len() <= 144, "more clients than places");
    };
    ensure!(refused.contains("too many clients"), "{refused}");
    ensure!(clients.len() > 100, "only {} clients", clients.len());
    for client in &mut clients {
        client.simple_query("SELECT 1")?;
    }
    Ok(())
}

#[test]
fn after_a_restart_of_the_server_clients_come_back() -> Result<()> {
    let cluster = Cluster::new("again")?.start()?;
    let mut before = through(&cluster)?;
    before.simple_query("SELECT 1")?;
    cluster.restart(Stop::Fast)?;
    ensure!(before.simple_query("SELECT 1").is_err(), "a session outlived its server");
    wait::until("a new client is served", || {
        through(&cluster).is_ok_and(|mut c| c.simple_query("SELECT 1").is_ok())
    })?;
    // kill -9 of a pooled backend takes the server through recovery, as any backend's would.
    let mut client = through(&cluster)?;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    process::signal_pid(pid, rustix::process::Signal::KILL)?;
    wait::until("served again after the recovery", || {
        through(&cluster).is_ok_and(|mut c| c.simple_query("SELECT 1").is_ok())
    })
}

#[test]
fn psycopg_and_node_postgres_are_served_through_the_front() -> Result<()> {
    let cluster = with_pool("driven", 4, &[])?;
    drivers::psycopg_is_served(cluster.pooler_port)?;
    drivers::node_postgres_is_served(cluster.pooler_port)
}

#[test]
fn pgbench_is_served_through_the_front_and_its_books_balance() -> Result<()> {
    let cluster = with_pool("pgbench", 3, &[])?;
    let pgbench = |arguments: &[&str]| -> Result<String> {
        let mut pgbench = cluster.program("pgbench");
        pgbench.args(["-h", "127.0.0.1", "-p", &cluster.pooler_port.to_string(), "-U", "postgres"]);
        let output = pgbench.env("HOME", "/nonexistent").args(arguments).arg("postgres").output()?;
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok(said)
    };
    pgbench(&["-i", "-q", "-s", "1"])?;
    // More clients than backends, so that each statement meets one that does not have it. A thread for each: pgbench prepares
    // without letting its other clients go on, and these may have the backends.
    for protocol in ["simple", "extended", "prepared"] {
        let said = pgbench(&["-n", "-M", protocol, "-c", "8", "-j", "8", "-t", "100"])?;
        ensure!(said.contains("number of transactions actually processed: 800/800"), "{protocol}: {said}");
        ensure!(said.contains("number of failed transactions: 0 "), "{protocol}: {said}");
    }
    let said = pgbench(&["-n", "-S", "-C", "-c", "4", "-t", "50"])?;
    ensure!(said.contains("number of transactions actually processed: 200/200"), "{said}");
    let books = cluster.sql(
        "SELECT (SELECT count(*) FROM pgbench_history), a = t AND t = b AND b = d FROM \
         (SELECT sum(abalance) a FROM pgbench_accounts) a, (SELECT sum(tbalance) t FROM pgbench_tellers) t, \
         (SELECT sum(bbalance) b FROM pgbench_branches) b, (SELECT sum(delta) d FROM pgbench_history) d",
    )?;
    assert_eq!(books, "2400|t");
    cluster.create_extension()?;
    let swaps: u64 = cluster.sql("SELECT swaps FROM postern.pools")?.parse()?;
    ensure!(swaps > 800, "backends were not shared: {swaps} swaps");
    Ok(())
}

#[test]
fn a_client_beyond_max_client_connections_hears_which_limit_it_is() -> Result<()> {
    let cluster = with_pool("places", 2, &[("postern.max_client_connections", "3")])?;
    let mut clients = (0..3).map(|_| through(&cluster)).collect::<Result<Vec<_>>>()?;
    let told = || -> Result<postgres::error::DbError> {
        let error = cluster.through("postgres", "postgres").connect(NoTls).err().context("a fourth")?;
        Ok(error.as_db_error().context("the server's words")?.clone())
    };
    let error = told()?;
    assert_eq!((error.severity(), error.code().code()), ("FATAL", "53300"));
    assert_eq!(error.message(), "sorry, too many clients already");
    assert_eq!(
        error.detail(),
        Some(
            "The pooler has 3 clients, as many as postern.max_client_connections and the limit of open files allow."
        )
    );
    for client in &mut clients {
        client.simple_query("SELECT 1")?;
    }
    drop(clients.pop());
    wait::until("a place is free", || through(&cluster).is_ok())
}

/// How long the processor has worked for a process.
fn worked(pid: i32) -> Result<Duration> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

#[test]
fn a_front_without_a_free_descriptor_serves_who_is_there_and_tells_who_comes() -> Result<()> {
    let cluster = with_pool("emfile", 2, &[("log_min_messages", "warning")])?;
    let mut old = through(&cluster)?;
    let row = "SELECT pg_backend_pid()";
    old.simple_query(row)?;
    let front = cluster.front_pid()?;
    let limit = |most: usize| -> Result<()> {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &front.to_string(), &format!("--nofile={most}:")]);
        machine::as_server_user(&mut prlimit)?;
        ensure!(prlimit.status().context("prlimit")?.success());
        Ok(())
    };
    let limits = std::fs::read_to_string(format!("/proc/{front}/limits"))?;
    let before = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit")?;
    let before = before.split_whitespace().nth(3).context("no number")?.parse()?;
    limit(std::fs::read_dir(format!("/proc/{front}/fd"))?.count() + 3)?;
    // More than it can even accept.
    let mut refused = (0..12).map(|_| knock(&cluster, "postgres")).collect::<Result<Vec<_>>>()?;
    let (begun, used) = (Instant::now(), worked(front)?);
    while begun.elapsed() < Duration::from_secs(2) {
        old.simple_query(row).context("the one who is there")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    let used = worked(front)? - used;
    ensure!(used < Duration::from_secs(1), "the front works itself hot: {used:?} of two seconds");
    for (number, client) in refused.iter_mut().enumerate() {
        let mut said = Vec::new();
        client.read_to_end(&mut said).with_context(|| format!("client {number} hears nothing"))?;
        let said = String::from_utf8_lossy(&said).replace('\0', " ");
        ensure!(
            said.contains("FATAL C53000 Mno place for the client"),
            "client {number}: {said}\n{}",
            cluster.log_tail()
        );
    }
    cluster.wait_log("pooler could not accept a client: Too many open files")?;
    limit(before)?;
    wait::until("new clients get in", || through(&cluster).is_ok())?;
    old.simple_query(row)?;
    ensure!(cluster.front_pid()? == front, "it is the same front");
    Ok(())
}

/// The bytes of a message.
fn typed(tag: u8, body: &[u8]) -> Vec<u8> {
    Message::typed(tag, body).bytes
}

/// A connection that has said which role it is.
fn knock(cluster: &Cluster, role: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.pooler_port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let parameters = [("user", role), ("database", "postgres")]
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    stream.write_all(&Message::startup((3, 0), &parameters).bytes)?;
    Ok(stream)
}

/// A raw session of its own, after its first ReadyForQuery.
fn raw(cluster: &Cluster) -> Result<TcpStream> {
    let mut stream = knock(cluster, "postgres")?;
    answer(&mut stream)?;
    Ok(stream)
}

#[test]
fn what_a_client_sends_behind_its_goodbye_reaches_nobody_and_leaves_nothing() -> Result<()> {
    let cluster = with_pool("goodbye", 1, &[])?;
    let mut other = through(&cluster)?;
    other.simple_query("SELECT 1")?;
    for _ in 0..5 {
        let query = b"SET work_mem = '77MB'; PREPARE leak AS SELECT 1; SELECT pg_advisory_lock(1)\0";
        let mut batch = typed(b'Q', query);
        batch.extend(typed(b'X', b""));
        batch.extend(typed(b'Q', b"CREATE TABLE leaked ()\0"));
        raw(&cluster)?.write_all(&batch)?;
        // A length that is none, behind the goodbye's type.
        let mut batch = typed(b'Q', b"SET work_mem = '78MB'\0");
        batch.extend(b"X\xff\xff\xff");
        raw(&cluster)?.write_all(&batch)?;
        let row = other.query_one(
            "SELECT current_setting('work_mem'), (SELECT count(*) FROM pg_prepared_statements WHERE name = 'leak'), \
             to_regclass('leaked') IS NULL, (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')",
            &[],
        )?;
        let seen: (String, i64, bool, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!(seen, ("4MB".to_owned(), 0, true, 0));
    }
    Ok(())
}

#[test]
fn clients_that_vanish_amid_a_message_give_their_places_back() -> Result<()> {
    let cluster = Cluster::new("vanish")?;
    cluster.set("postern.max_client_connections", "10")?;
    let cluster = cluster.start()?;
    for round in 0..4 {
        for _ in 0..5 {
            // Those of the round before may be on their way out.
            let mut place = None;
            wait::until("there is a place", || {
                place = raw(&cluster).ok();
                place.is_some()
            })?;
            let mut stream = place.context("no place")?;
            stream.write_all(&typed(b'Q', b"SELECT 1\0")[..1 + round])?;
        }
        wait::until("ten clients get in again", || {
            (0..10).map(|_| through(&cluster)).collect::<Result<Vec<_>>>().is_ok()
        })?;
    }
    Ok(())
}

#[test]
fn an_idle_client_is_ended_also_while_its_backend_stays_with_it() -> Result<()> {
    let cluster = Cluster::new("idle")?;
    cluster.set("postern.client_idle_timeout", "12s")?;
    let cluster = cluster.start()?;
    let mut idle = raw(&cluster)?;
    idle.write_all(&typed(b'Q', b"SELECT 1\0"))?;
    let mut busy = through(&cluster)?;
    let mut said: Vec<u8> = Vec::new();
    idle.set_read_timeout(Some(Duration::from_millis(200)))?;
    wait::until("the idle client is ended", || {
        // One that is not idle stays.
        let served = busy.simple_query("SELECT 1").is_ok();
        let mut buffer = [0; 512];
        match idle.read(&mut buffer) {
            Ok(length) => said.extend(&buffer[..length]),
            Err(_) => return false,
        }
        served && said.windows(19).any(|text| text == b"client_idle_timeout")
    })?;
    busy.simple_query("SELECT 1")?;
    Ok(())
}

/// What comes until ReadyForQuery, that included.
fn answer(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"Z\0\0\0\x05I") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        seen.push(byte[0]);
    }
    Ok(seen)
}

#[test]
fn what_is_left_of_a_failed_copy_holds_no_backend() -> Result<()> {
    let cluster = with_pool("leftover", 1, &[])?;
    cluster.sql("CREATE TABLE numbers (n int)")?;
    // A whole message behind the failing one and in the same packet, a part of one, and a part of a long one.
    for part in [0, 3, 5_000] {
        let mut copying = raw(&cluster)?;
        copying.write_all(&typed(b'Q', b"COPY numbers FROM STDIN\0"))?;
        let mut data = typed(b'd', b"no number\n");
        data.extend(typed(b'd', b"1\n"));
        data.extend(typed(b'c', b""));
        copying.write_all(&data)?;
        let said = answer(&mut copying)?;
        ensure!(said.windows(6).any(|text| text == b"C22P02"), "the COPY has not failed");
        let rest = typed(b'd', &vec![b'x'; 100_000]);
        copying.write_all(&rest[..part])?;
        let mut other = through(&cluster)?;
        other.simple_query("SELECT 1")?;
        if part > 0 {
            copying.write_all(&rest[part..])?;
        }
        copying.write_all(&typed(b'Q', b"SELECT 'still here'\0"))?;
        let said = answer(&mut copying)?;
        ensure!(said.windows(10).any(|text| text == b"still here"), "the client has lost its place");
        other.simple_query("SELECT 1")?;
    }
    Ok(())
}

#[test]
fn hundreds_of_clients_that_go_at_once_hold_up_no_login() -> Result<()> {
    let cluster = Cluster::new("exodus")?.start()?;
    let mut crowd = (0..700).map(|_| knock(&cluster, "postgres")).collect::<Result<Vec<_>>>()?;
    for client in &mut crowd {
        answer(client)?;
    }
    let mut holder = cluster.connect()?;
    holder.batch_execute("CREATE EXTENSION postern")?;
    // The front looks a role up as the server does, so it waits, and meanwhile all the others leave it something to do.
    holder.batch_execute("BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE")?;
    let mut unknown = knock(&cluster, "unknown")?;
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pg_authid'::regclass";
    wait::until("the front waits", || {
        holder.query_one(waits, &[]).is_ok_and(|row| row.get::<_, i64>(0) > 0)
    })?;
    drop(crowd);
    let left = "SELECT count(*) FROM postern.clients";
    wait::until("all have gone", || holder.query_one(left, &[]).is_ok_and(|row| row.get::<_, i64>(0) == 0))?;
    // What needs no look into a catalog is answered by the thread that has heard of them by then.
    for _ in 0..20 {
        let mut old = TcpStream::connect(("127.0.0.1", cluster.pooler_port))?;
        old.write_all(&[0, 0, 0, 8, 0, 1, 0, 0])?;
        old.read_exact(&mut [0])?;
    }
    holder.batch_execute("ROLLBACK")?;
    unknown.read_exact(&mut [0]).context("the login that held the others up has no answer")?;
    raw(&cluster)?;
    Ok(())
}

#[test]
fn a_client_of_whom_a_backend_has_only_seen_a_part_is_not_as_it_left_it() -> Result<()> {
    let cluster = with_pool("part", 2, &[])?;
    let (mut first, mut second) = (through(&cluster)?, through(&cluster)?);
    first.batch_execute("BEGIN")?;
    second.batch_execute("BEGIN; COMMIT")?;
    first.batch_execute("COMMIT")?;
    drop((first, second));
    let mut client = raw(&cluster)?;
    let mut ask = |sql: &str| -> Result<String> {
        let query = typed(b'Q', &[sql.as_bytes(), b"\0"].concat());
        // In pieces, so that either of the two backends has the client and lets it go again before one of them serves it.
        for piece in query.chunks(query.len().div_ceil(4)) {
            client.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(String::from_utf8_lossy(&answer(&mut client)?).into_owned())
    };
    for turn in 100..300 {
        ask(&format!("SET work_mem = '{turn}kB'"))?;
        let said = ask("SHOW work_mem")?;
        ensure!(said.contains(&format!("{turn}kB")), "turn {turn}: {said:?}");
    }
    Ok(())
}
