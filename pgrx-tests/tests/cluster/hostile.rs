//! Bad input and bad days of the pooler beyond the login: crowds that say nothing, a full disk, clients that do not read or
//! vanish, a front that ends amid everything, and messages that have no business where they come.

mod ends;
mod messages;

use crate::pooling::{text, through, with_pool};
use crate::raw::Raw;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::Target;
use pgrx_tests::script::connection::{Connection, Received};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{process, wait};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

fn descriptors(pid: i32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The cluster's front logs in and serves, in good time.
fn is_served(cluster: &Cluster) -> Result<Duration> {
    let begun = Instant::now();
    ensure!(text(&mut through(cluster).connect(postgres::NoTls)?, "select 'served'")? == "served");
    Ok(begun.elapsed())
}

const CROWD: u32 = 10_000;

/// kB. Sixteen for each of the 2,000 logins that there are at once; a login that waits needs eleven.
const CROWD_MEMORY: u64 = 32 << 10;

/// Connections that say nothing, from several addresses: a pair of these has only so many ports.
fn crowd(cluster: &Cluster, mut meanwhile: impl FnMut(usize) -> Result<()>) -> Result<Vec<TcpStream>> {
    let mut silent = Vec::new();
    for number in 0..CROWD {
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let from = Ipv4Addr::new(127, 0, 1, 1 + (number % 8) as u8);
        rustix::net::bind(&socket, &SocketAddr::new(from.into(), 0))?;
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), cluster.pooler_port);
        rustix::net::connect(&socket, &to).with_context(|| format!("connection {number}"))?;
        silent.push(TcpStream::from(socket));
        meanwhile(silent.len())?;
    }
    Ok(silent)
}

#[test]
fn ten_thousand_who_say_nothing_are_ended_in_time_and_cost_nobody_anything() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let most = limit.maximum.unwrap_or(u64::MAX);
    ensure!(most > 15_000, "the hard limit of open files is {most}, too low for this test and its server");
    let login_timeout = Duration::from_secs(3);
    let cluster = with_pool("crowd", 1, &[("postern.client_login_timeout", "3s")])?;
    cluster.create_extension()?;
    let front = cluster.front_pid()?;
    let mut old = through(&cluster).connect(postgres::NoTls)?;
    // What is made at the first use is there, and stays.
    is_served(&cluster)?;
    let counts = || cluster.sql("select clients, logins from postern.pooler");
    wait::until("only the old client is there", || counts().is_ok_and(|counts| counts == "1|0"))?;
    let (files, before) = (descriptors(front)?, process::anonymous(front)?);
    let (mut slowest, mut late, mut most_memory, mut after) = (Duration::ZERO, 0, 0, Vec::new());
    let mut quick = false;
    for round in 0..2 {
        let silent = crowd(&cluster, |there| {
            if there % 500 == 0 {
                let took = is_served(&cluster)?;
                late += u32::from(took > Duration::from_secs(2));
                slowest = slowest.max(took);
                ensure!(text(&mut old, "select 'well'")? == "well");
                most_memory = most_memory.max(process::anonymous(front)?);
            }
            Ok(())
        })?;
        let all_there = Instant::now();
        // All of them end, the last one when its time is over and no sooner.
        for (number, mut client) in silent.into_iter().enumerate() {
            client.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut byte = [0];
            match client.read(&mut byte) {
                Ok(0) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                other => anyhow::bail!("connection {number} of round {round}: {other:?}"),
            }
        }
        let ended = all_there.elapsed();
        ensure!(ended > login_timeout.mul_f32(0.7), "they were ended after {ended:?}");
        quick |= ended < login_timeout + Duration::from_secs(7);
        wait::until("their descriptors are closed", || descriptors(front).is_ok_and(|count| count <= files))
            .with_context(|| format!("{files} before, {:?} now", descriptors(front)))?;
        wait::until("nobody is logging in", || counts().is_ok_and(|counts| counts == "1|0"))?;
        after.push(process::anonymous(front)?);
    }
    println!("slowest login {slowest:?}; memory {before}, at most {most_memory}, after {after:?} kB");
    ensure!(quick, "they were not ended in time");
    ensure!(late <= 2, "{late} logins were late meanwhile, one by {slowest:?}");
    ensure!(most_memory < before + CROWD_MEMORY, "the front has grown from {before} to {most_memory} kB");
    ensure!(after[1] < after[0] + 4096, "each crowd leaves something: {before} kB, then {after:?}");
    ensure!(cluster.front_pid()? == front && text(&mut old, "select 'well'")? == "well");
    Ok(())
}

/// Settings with which a server has much to log.
fn talkative(name: &str) -> Result<Cluster> {
    let cluster = Cluster::new(name)?;
    for (setting, value) in [
        ("log_min_messages", "debug1"),
        ("log_statement", "all"),
        ("log_connections", "on"),
        ("log_disconnections", "on"),
        ("postern.pool_size", "2"),
        ("postern.client_login_timeout", "20s"),
    ] {
        cluster.set(setting, value)?;
    }
    Ok(cluster)
}

/// Everything that the pooler logs something about, many times over.
fn works_without_a_log(cluster: &Cluster) -> Result<()> {
    // The rig cannot read there that the front listens.
    wait::until("the front serves", || is_served(cluster).is_ok())?;
    let front = cluster.front_pid()?;
    let mut old = through(cluster).connect(postgres::NoTls)?;
    for round in 0..30 {
        is_served(cluster).with_context(|| format!("round {round}"))?;
        ensure!(through(cluster).user("nobody_at_all").connect(postgres::NoTls).is_err());
        ensure!(old.batch_execute("select 1/0").is_err());
        ensure!(text(&mut old, "select 'well'")? == "well");
        // A login that fails, of which the front's threads have something to say.
        let mut garbage = Connection::open(&Target::tcp(cluster.pooler_port))?;
        garbage.send(b"\0\0\0\x08\0\x09\0\0", None);
        ensure!(!matches!(garbage.receive(Duration::from_secs(10))?, Received::Silence));
    }
    ensure!(cluster.front_pid()? == front, "the same front has served all of it");
    process::signal_pid(front, Signal::TERM)?;
    wait::until("another front serves", || {
        cluster.front_pid().is_ok_and(|new| new != front) && is_served(cluster).is_ok()
    })
}

#[test]
fn where_the_log_s_disk_is_full_clients_are_served_and_let_in() -> Result<()> {
    let full = Path::new("/dev/full");
    // The server's own standard error.
    works_without_a_log(&talkative("full")?.start_with_log(full)?).context("standard error")?;
    // The logging collector's file.
    let cluster = talkative("full-collector")?;
    let directory = cluster.data().join("log");
    std::fs::create_dir(&directory)?;
    pgrx_tests::machine::give_to_server_user(&directory)?;
    std::os::unix::fs::symlink(full, directory.join("full"))?;
    cluster.set("logging_collector", "on")?.set("log_directory", "log")?.set("log_filename", "full")?;
    let cluster = cluster.start()?;
    ensure!(cluster.sql("select pg_current_logfile()")? == "log/full");
    works_without_a_log(&cluster).context("the logging collector")
}

/// Waits for the backend that runs a query.
fn runs(watcher: &mut postgres::Client, query: &str) -> Result<i32> {
    wait::for_value(query, || {
        let row = watcher.query_one(
            "select pid from pg_stat_activity where query = $1 and state = 'active' and pid <> pg_backend_pid()",
            &[&query],
        )?;
        Ok(row.get(0))
    })
}

/// A query whose answer fits into no buffer between the two; its rows are made one by one.
const ENDLESS: &str = "select repeat('x', 1000), generate_series(1, 100000000)";

#[test]
fn a_client_that_never_reads_holds_its_own_backend_only_and_can_be_ended() -> Result<()> {
    let cluster = with_pool("unread", 2, &[])?;
    cluster.create_extension()?;
    let mut watcher = cluster.connect()?;
    let mut took = Vec::new();
    for way in ["pg_terminate_backend", "postern.kill", "goes"] {
        let mut stuck = Raw::open(cluster.pooler_port)?;
        stuck.ask(ENDLESS);
        let backend = runs(&mut watcher, ENDLESS)?;
        let blocked = "select count(*) from pg_stat_activity where pid = $1 and wait_event = 'ClientWrite'";
        wait::until("its backend waits for it", || {
            watcher.query_one(blocked, &[&backend]).is_ok_and(|row| row.get::<_, i64>(0) == 1)
        })?;
        let begun = Instant::now();
        for _ in 0..20 {
            is_served(&cluster).context(way)?;
        }
        took.push(begun.elapsed());
        match way {
            "pg_terminate_backend" => {
                watcher.execute("select pg_terminate_backend($1)", &[&backend])?;
            }
            "postern.kill" => {
                let client = "select pid from postern.clients where server_pid = $1";
                let client: i32 = watcher.query_one(client, &[&backend])?.get(0);
                watcher.execute("select postern.kill($1)", &[&client])?;
            }
            _ => drop(stuck),
        }
        wait::until("its backend has ended or serves others", || {
            let row = watcher.query_one(
                "select count(*) from pg_stat_activity where query = $1 and state = 'active' and pid <> pg_backend_pid()",
                &[&ENDLESS],
            );
            row.is_ok_and(|row| row.get::<_, i64>(0) == 0)
        })
        .with_context(|| way.to_owned())?;
        wait::until("its place is free", || {
            let clients = watcher.query_one("select count(*) from postern.clients", &[]);
            clients.is_ok_and(|row| row.get::<_, i64>(0) == 0)
        })
        .with_context(|| way.to_owned())?;
        is_served(&cluster)?;
    }
    // A loaded machine adds to one of them what is not the pooler's.
    let quick = took.iter().filter(|took| **took < Duration::from_secs(10)).count();
    ensure!(quick >= 2, "others took {took:?}");
    Ok(())
}

/// What has been heard so far, up to the end: whole messages, but for the last one.
fn heard(client: &mut Connection) -> Result<Vec<(u8, Vec<u8>)>> {
    let mut messages = Vec::new();
    loop {
        match client.receive(Duration::from_secs(20))? {
            Received::Message { tag, body } => messages.push((tag, body)),
            Received::Closed { .. } => return Ok(messages),
            other => anyhow::bail!("{other:?} after {} messages", messages.len()),
        }
    }
}

/// A raw client that has been let in.
fn client(cluster: &Cluster) -> Result<Connection> {
    Connection::log_in(&Target::tcp(cluster.pooler_port))
}

fn until(client: &mut Connection, wanted: u8) -> Result<Vec<u8>> {
    client.until(wanted, Duration::from_secs(20))
}

#[test]
fn a_backend_that_is_terminated_amid_a_result_ends_its_own_client_with_a_whole_message() -> Result<()> {
    let cluster = with_pool("amid", 2, &[])?;
    let mut watcher = cluster.connect()?;
    let mut other = through(&cluster).connect(postgres::NoTls)?;
    for query in [
        "copy (select repeat('y', 9000) from generate_series(1, 1000) where pg_sleep(0.01) is not null) to stdout",
        "select repeat('y', 9000) from generate_series(1, 1000) where pg_sleep(0.01) is not null",
    ] {
        let mut amid = client(&cluster)?;
        amid.send(&Message::query(query.as_bytes()).bytes, None);
        let backend = runs(&mut watcher, query)?;
        let row = if query.starts_with("copy") { b'd' } else { b'D' };
        let mut rows = vec![(row, until(&mut amid, row)?)];
        watcher.execute("select pg_terminate_backend($1)", &[&backend])?;
        rows.extend(heard(&mut amid)?);
        let Some((b'E', last)) = rows.pop() else {
            anyhow::bail!("the last message after {} rows is no error", rows.len())
        };
        ensure!(last.windows(6).any(|text| text == b"C57P01"), "{}", String::from_utf8_lossy(&last));
        // A line with its newline; a count of columns and a length before the value.
        let whole = if row == b'd' {
            [&[b'y'; 9000][..], b"\n"].concat()
        } else {
            [&[0, 1, 0, 0, 0x23, 0x28][..], &[b'y'; 9000]].concat()
        };
        ensure!(rows.iter().all(|(tag, body)| *tag == row && *body == whole), "{query}");
        ensure!(text(&mut other, "select 'well'")? == "well");
    }
    Ok(())
}

#[test]
fn a_client_that_vanishes_amid_anything_leaves_nothing() -> Result<()> {
    // Fewer places than clients that come and go.
    let cluster = with_pool("vanishes", 2, &[("postern.max_client_connections", "12")])?;
    cluster.create_extension()?;
    cluster.sql("create table rows_of_others (a int)")?;
    let mut other = through(&cluster).connect(postgres::NoTls)?;
    let mut watcher = cluster.connect()?;
    let query = |sql: &str| Message::query(sql.as_bytes()).bytes;
    let copying = [query("copy rows_of_others from stdin"), Message::copy_data(b"1\n").bytes].concat();
    let in_block = query("begin; insert into rows_of_others values (2); lock rows_of_others; select 1");
    let failed = [query("begin"), query("lock rows_of_others"), query("select 1/0")].concat();
    let extended = [
        query("begin"),
        Message::parse(b"s", b"insert into rows_of_others values (3)", &[]).bytes,
        Message::bind(b"", b"s", &[], &[], &[]).bytes,
        Message::execute(b"", 0).bytes,
        Message::flush().bytes,
    ]
    .concat();
    let half = [in_block.clone(), query("select 1")[..7].to_vec()].concat();
    let half_copy = [copying.clone(), Message::copy_data(&[b'5'; 9000]).bytes[..4000].to_vec()].concat();
    let states: [(&str, Vec<u8>, u8); 8] = [
        ("amid COPY from it", copying, b'G'),
        ("amid a message of COPY", half_copy, b'G'),
        ("amid COPY to it", query("copy (select generate_series(1, 100000000)) to stdout"), b'd'),
        ("amid a result", query(ENDLESS), b'D'),
        ("in a transaction", in_block, b'Z'),
        ("in a failed one", failed, b'Z'),
        ("amid the extended protocol", extended, b'C'),
        ("amid a message in a transaction", half, b'Z'),
    ];
    for reset in [false, true] {
        for (state, bytes, answer) in &states {
            let mut vanishing = client(&cluster)?;
            vanishing.send(bytes, None);
            until(&mut vanishing, *answer).with_context(|| state.to_string())?;
            if reset {
                // With what it has not read lying there, its system answers with a reset.
                vanishing.send(&query("select 'unread'"), None);
            }
            drop(vanishing);
            let gone = "select (select count(*) from postern.clients), (select count(*) from rows_of_others), \
                        (select count(*) from pg_locks where relation = 'rows_of_others'::regclass and mode like '%Exclusive%'), \
                        (select count(*) from pg_stat_activity where xact_start is not null and pid <> pg_backend_pid())";
            wait::until("nothing is left of it", || {
                watcher
                    .query_one(gone, &[])
                    .is_ok_and(|row| (0..4).map(|column| row.get::<_, i64>(column)).eq([1, 0, 0, 0]))
            })
            .with_context(|| format!("{state}, reset: {reset}"))?;
            ensure!(text(&mut other, "select count(*) from rows_of_others")? == "0", "{state}");
            is_served(&cluster)?;
        }
    }
    let servers = cluster.sql("select count(*) from postern.servers")?;
    ensure!(servers.parse::<u32>()? <= 2, "{servers} server connections");
    Ok(())
}

const SLOW: usize = 1000;

#[test]
fn a_thousand_clients_that_send_a_byte_at_a_time_hold_no_backend() -> Result<()> {
    let cluster = with_pool("bytewise", 2, &[])?;
    let mut slow = (0..SLOW).map(|_| client(&cluster)).collect::<Result<Vec<_>>>()?;
    let mut others =
        (0..3).map(|_| through(&cluster).connect(postgres::NoTls)).collect::<Result<Vec<_>, _>>()?;
    let (mut count, mut late, mut longest) = (0, 0, Duration::ZERO);
    for (number, byte) in Message::query(b"select 'slow'").bytes.iter().enumerate() {
        for client in &mut slow {
            client.send(&[*byte], None);
        }
        // For as long as it takes a backend to be asked for by each of the thousand again and again.
        let tick = Instant::now();
        while tick.elapsed() < Duration::from_millis(300) {
            for other in &mut others {
                let begun = Instant::now();
                ensure!(text(other, "select 'well'")? == "well", "byte {number}");
                longest = longest.max(begun.elapsed());
                late += u32::from(begun.elapsed() > Duration::from_secs(1));
                count += 1;
            }
        }
    }
    println!("the longest that another waited: {longest:?}");
    // A machine that stands still makes one late, and not every one.
    ensure!(late * 20 < count, "of {count} queries {late} were late, one by {longest:?}");
    for client in &mut slow {
        ensure!(until(client, b'D')?.ends_with(b"slow"), "a slow client has lost its query");
        until(client, b'Z')?;
    }
    Ok(())
}
