//! What a client sees at the pooler's port equals, byte for byte, what it sees at the server's: the scripts of
//! `pgrx-tests/corpus`, replayed at both.

use crate::tls::Secured;
use anyhow::{Context, Result, bail, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::lacking;
use pgrx_tests::script::{self, Noise, Script, Target, staged};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

/// Runs only the scripts whose names contain it.
const ONLY: &str = "POSTERN_TEST_SCRIPT";

/// So many scripts that differ tell enough: one that is stuck takes its time.
const ENOUGH: usize = 10;

/// The port at which clients are to see what they see directly.
fn front(cluster: &Cluster) -> u16 {
    cluster.pooler_port
}

/// Without two-phase commit, which one script is about; errors are what most are about and not logged. PL/pgSQL is there from the
/// start: its settings show in a pooled backend once any client has used it.
fn start(backends: u32) -> Result<Cluster> {
    let cluster = Cluster::new("corpus")?;
    cluster.set("postern.pool_size", &backends.to_string())?;
    for (setting, value) in SETTINGS {
        cluster.set(setting, value)?;
    }
    cluster.start()
}

/// What a pool has where nobody is to wait, and where every backend is to have one client after another.
const AMPLE: u32 = 20;
/// Five play at a time, and each may hold two backends while it waits for a third: with fewer all could wait for each other.
const SHARED: u32 = 11;

const SETTINGS: [(&str, &str); 3] = [
    ("max_prepared_transactions", "0"),
    ("log_min_messages", "log"),
    ("session_preload_libraries", "plpgsql"),
];

fn scripts() -> Result<Vec<Script>> {
    let mut scripts = script::corpus()?;
    if let Ok(only) = std::env::var(ONLY) {
        scripts.retain(|script| script.name.contains(&only));
    }
    Ok(scripts)
}

/// Every one of the scripts at both targets; what differs, and what a script has wrong about the server, in one text.
fn compare(cluster: &Cluster, scripts: Vec<Script>, direct: &Target, front: &Target) -> Result<()> {
    ensure!(!scripts.is_empty(), "there are no such scripts here");
    let mut superuser = cluster.connect()?;
    // A client that is stuck may hold what a teardown wants.
    superuser.batch_execute("set client_min_messages = warning; set statement_timeout = '20s'")?;
    let mut found = Vec::new();
    for script in scripts {
        match equal(&script, &mut superuser, direct, front) {
            Ok(()) => {}
            Err(error) => found.push(format!("{} ({}):\n{error:#}", script.name, script.about)),
        }
        if found.len() == ENOUGH {
            found.push("and more was not looked at".to_owned());
            break;
        }
    }
    ensure!(found.is_empty(), "directly (-) and through the front (+):\n{}", found.join("\n\n"));
    Ok(())
}

fn equal(script: &Script, superuser: &mut postgres::Client, direct: &Target, front: &Target) -> Result<()> {
    let seen = staged(script, superuser, direct)?;
    if let Some(mistake) = mistake(script, &seen) {
        bail!("{mistake}\n{}", seen.text());
    }
    let through = staged(script, superuser, front)?;
    match seen.difference(&through) {
        Some(difference) => bail!("{difference}"),
        None => Ok(()),
    }
}

/// A script that does not do what it was written for would be equal everywhere.
fn mistake(script: &Script, seen: &script::Transcript) -> Option<String> {
    if seen.is_stuck() {
        return Some("the script waits for what never comes".to_owned());
    }
    if seen.errors() != script.errors {
        return Some(format!("the errors are {:?}, not {:?}", seen.errors(), script.errors));
    }
    let unseen = script.sees.iter().find(|text| !seen.sees(text));
    unseen.map(|text| format!("nobody sees {text:?}"))
}

#[test]
fn a_client_over_tcp_sees_the_same_through_the_front() -> Result<()> {
    let cluster = start(AMPLE)?;
    compare(&cluster, scripts()?, &Target::tcp(cluster.port), &Target::tcp(front(&cluster)))
}

#[test]
fn a_client_over_a_unix_socket_sees_the_same_through_the_front() -> Result<()> {
    let cluster = start(AMPLE)?;
    let at = |port| Target::unix(cluster.socket_directory(), port);
    compare(&cluster, scripts()?, &at(cluster.port), &at(front(&cluster)))
}

/// What is about a plain TCP connection: a request for TLS that is refused, and the socket's own tcp_keepalives_* and tcp_user_timeout,
/// which the README lists.
const PLAIN: [&str; 3] = ["startup_ssl_refused", "rules_of_show", "set_all_settings"];

#[test]
fn a_client_over_tls_sees_the_same_through_the_front() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::with("corpus-tls", &SETTINGS)?;
    let at = |port| Target::tls(port, std::path::Path::new(&secured.file("ca.crt")));
    let cluster = &secured.cluster;
    let mut scripts = scripts()?;
    scripts.retain(|script| !PLAIN.contains(&&script.name[..]));
    compare(cluster, scripts, &at(cluster.port), &at(front(cluster)))
}

#[test]
fn a_client_sees_the_same_when_others_use_the_pool() -> Result<()> {
    // Fewer than the clients that there are at a time.
    let cluster = start(SHARED)?;
    cluster.create_extension()?;
    let (direct, front) = (Target::tcp(cluster.port), Target::tcp(front(&cluster)));
    let noise = Noise::start(4, &front, Noise::rehearse(&script::corpus()?, &direct)?);
    let mut scripts = scripts()?;
    scripts.retain(|script| !script.undisturbed);
    let compared = compare(&cluster, scripts, &direct, &front);
    let log = || -> String {
        let log = cluster.log();
        log.lines().filter(|line| line.contains("postern:")).collect::<Vec<_>>().join("\n")
    };
    let played = noise.stop().context("one of the others").with_context(log)?;
    compared.with_context(log)?;
    let counts = cluster
        .sql("select servers, swaps from postern.pools where (database, role) = ('postgres', 'postgres')")?;
    let (servers, swaps) = counts.split_once('|').context("there is no pool")?;
    ensure!(servers.parse::<u32>()? <= SHARED, "{servers} backends");
    println!("{played} scripts of the others, {servers} backends, {swaps} swaps");
    if std::env::var_os(ONLY).is_none() {
        ensure!(played > 50, "the others have played only {played} scripts");
        ensure!(swaps.parse::<u64>()? > 500, "a backend went from one client to another only {swaps} times");
    }
    Ok(())
}

/// Or all of the above would pass whatever the front does.
#[test]
fn one_other_byte_in_any_message_is_a_difference() -> Result<()> {
    let cluster = start(AMPLE)?;
    let mut superuser = cluster.connect()?;
    let target = Target::tcp(cluster.port);
    let script = Script::parse(
        "one",
        "> Parse \"\" \"select 1, 'x'\"\n> Bind \"\" \"\" []\n> Describe portal \"\"\n> Execute \"\"\n> Sync\n> Query \"select 1/0\"",
    )?;
    let seen = staged(&script, &mut superuser, &target)?;
    ensure!(seen.difference(&staged(&script, &mut superuser, &target)?).is_none(), "two replays differ");
    for index in 0..seen.events.len() {
        let mut other = seen.clone();
        match &mut other.events[index].what {
            script::connection::Received::Message { body, .. } if !body.is_empty() => body[0] ^= 1,
            what => *what = script::connection::Received::Silence,
        }
        ensure!(seen.difference(&other).is_some(), "a change of event {index} is not seen");
        let mut other = seen.clone();
        other.events.remove(index);
        ensure!(seen.difference(&other).is_some(), "the lack of event {index} is not seen");
    }
    Ok(())
}

/// A front that forwards every byte is the same, but that the server does not know the client's address; and one that
/// changes a single one is not.
#[test]
fn a_forwarder_shows_in_the_client_s_address_and_a_changed_answer_anywhere() -> Result<()> {
    let cluster = start(AMPLE)?;
    let direct = Target::tcp(cluster.port);
    let plain = Target::tcp(forward(cluster.port, |_| {})?);
    let meddling = Target::tcp(forward(cluster.port, |bytes| {
        // The status byte of ReadyForQuery.
        if let Some(at) = bytes.windows(6).position(|part| part == b"Z\0\0\0\x05I") {
            bytes[at + 5] = b'T';
        }
    })?);
    let mut superuser = cluster.connect()?;
    for (name, forwarded) in
        [("extended_pipeline", true), ("pieces", true), ("cancel", true), ("own_activity", false)]
    {
        let script = script::corpus()?.into_iter().find(|script| script.name == name).context(name)?;
        let answer = equal(&script, &mut superuser, &direct, &plain);
        ensure!(answer.is_ok() == forwarded, "{name} through a forwarder: {answer:?}");
        ensure!(equal(&script, &mut superuser, &direct, &meddling).is_err(), "{name} hides a changed answer");
    }
    Ok(())
}

/// Listens on a port and forwards to another, with a hand in what the server answers. Ends with the program.
fn forward(to: u16, meddle: fn(&mut [u8])) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { return };
            let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
            std::thread::spawn(move || pump(from_client, to_server, |_| {}));
            std::thread::spawn(move || pump(server, client, meddle));
        }
    });
    Ok(port)
}

fn pump(mut from: TcpStream, mut to: TcpStream, meddle: fn(&mut [u8])) {
    let mut buffer = [0; 65536];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        meddle(&mut buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
