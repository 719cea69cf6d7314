//! Servers that are set up otherwise than most, and commands of the server's program that only ask.

use crate::neighbours::{CONTRIB, notifications_arrive};
use crate::pooling::{Doing, text, through, words};
use crate::relay::Client;
use crate::stream::{QUICK, define, delivered, ids, running, source_is, start};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::script::connection::{Connection, Target};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{lacking, probe, wait};
use postgres::NoTls;
use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

#[test]
fn with_a_minimal_wal_all_but_streams_works_and_a_stream_says_what_to_set() -> Result<()> {
    let cluster = start("minimal", &[("wal_level", "minimal"), ("max_wal_senders", "0")])?;
    ensure!(probe::banner(cluster.banner_port)? == "MASTER");
    ensure!(probe::code(cluster.http_port, "/status") == 200);
    ensure!(text(&mut through(&cluster).connect(NoTls)?, "show wal_level")? == "minimal");
    notifications_arrive(&cluster)?;
    cluster.sql("create table t (id int primary key)")?;
    define(&cluster, QUICK, "{}")?;
    source_is(&cluster, "failed", "wal_level is minimal: set it to logical and restart the server")
}

/// Runs a program of a stopped server on its data, with this as its standard input.
fn run(cluster: &Cluster, arguments: &[&str], input: &str) -> Result<Output> {
    let mut command = cluster.program("postgres");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

fn both(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn in_single_user_mode_it_does_nothing_and_is_in_nobodys_way() -> Result<()> {
    if lacking::in_server("contrib modules") {
        return Ok(());
    }
    let cluster = Cluster::new("single")?;
    let shares = "select count(*) > 0 as shares from pg_shmem_allocations where name ilike '%postern%'";
    cluster.set("shared_preload_libraries", &format!("postern,{CONTRIB}"))?;
    let data = cluster.data().display().to_string();
    // While it waits for more nothing of it may listen: the query itself asks for that.
    let ports = [cluster.banner_port, cluster.http_port, cluster.agent_port, cluster.pooler_port];
    let mut command = cluster.program("postgres");
    command.args(["--single", "-D", &data, "postgres"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().context("stdin")?;
    let made = cluster.data().join("made");
    writeln!(input, "create table of_a_single_user (id int)")?;
    writeln!(input, "copy (select 41 + 1 as answer) to '{}'", made.display())?;
    input.flush()?;
    wait::until("it has answered", || made.exists())?;
    for port in ports {
        ensure!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "port {port} is open");
    }
    writeln!(input, "select current_setting('postern.pool_size') as pool_size")?;
    writeln!(input, "{shares}")?;
    drop(input);
    let output = child.wait_with_output()?;
    let (said, logged) = both(&output);
    ensure!(output.status.success(), "{said}{logged}");
    ensure!(said.contains("pool_size = \"20\""), "its settings are known: {said}{logged}");
    ensure!(said.contains("shares = \"f\""), "it has no memory: {said}{logged}");
    ensure!(std::fs::read_to_string(made)?.trim() == "42");
    let ours = logged.lines().filter(|line| line.contains("postern") && !line.contains("STATEMENT"));
    ensure!(ours.clone().count() == 0, "{}", ours.collect::<Vec<_>>().join("\n"));
    // And the next server finds what was made.
    let cluster = cluster.start()?;
    ensure!(text(&mut through(&cluster).connect(NoTls)?, "select count(*) from of_a_single_user")? == "0");
    ensure!(cluster.sql(shares)? == "t", "in a server it has memory");
    Ok(())
}

#[test]
fn commands_that_only_ask_get_the_answer_and_nothing_else() -> Result<()> {
    if lacking::in_server("contrib modules") {
        return Ok(());
    }
    let cluster = Cluster::new("asked")?;
    cluster.set("shared_preload_libraries", &format!("postern,{CONTRIB}"))?.set("postern.pool_size", "7")?;
    cluster.set("pg_stat_statements.max", "700")?;
    let data = cluster.data().display().to_string();
    let ask = |setting: &str| -> Result<String> {
        let output = run(&cluster, &["-D", &data, "-C", setting], "")?;
        let (said, logged) = both(&output);
        ensure!(output.status.success() && logged.is_empty(), "{setting}: {said}{logged}");
        Ok(said)
    };
    // A value that is in the configuration is known before libraries are loaded.
    for (setting, value) in
        [("shared_buffers", "2048"), ("postern.pool_size", "7"), ("pg_stat_statements.max", "700")]
    {
        let said = ask(setting)?;
        ensure!(said.trim() == value, "{setting}: {said}");
    }
    // One that is not is known of no library.
    for setting in ["postern.min_pool_size", "pg_stat_statements.track"] {
        let output = run(&cluster, &["-D", &data, "-C", setting], "")?;
        let (said, logged) = both(&output);
        ensure!(!output.status.success() && said.is_empty(), "{setting}: {said}");
        ensure!(logged.contains(&format!("unrecognized configuration parameter \"{setting}\"")), "{logged}");
    }
    // What is computed is so with libraries loaded: the memory of ours is counted.
    let with: u64 = ask("shared_memory_size")?.trim().parse()?;
    let pages: i64 = ask("shared_memory_size_in_huge_pages")?.trim().parse()?;
    ensure!(pages == -1 || (pages > 0 && pages as u64 <= with), "{pages} pages for {with} MB");
    cluster.set("shared_preload_libraries", CONTRIB)?;
    let without: u64 = ask("shared_memory_size")?.trim().parse()?;
    ensure!(with > without, "{with} MB with it, {without} MB without");
    cluster.set("shared_preload_libraries", &format!("postern,{CONTRIB}"))?;
    // It shows the server's own settings only, of no library.
    let output = run(&cluster, &["--describe-config"], "")?;
    let (said, logged) = both(&output);
    ensure!(output.status.success() && logged.is_empty(), "{logged}");
    ensure!(said.lines().any(|line| line.starts_with("shared_buffers\t")), "{said}");
    ensure!(
        said.contains("pg_stat_statements.") == said.contains("postern."),
        "others are shown and ours are not"
    );
    // Nor has any of these left the server unable to start.
    let cluster = cluster.start()?;
    let shown = "select count(*) > 0 from pg_settings where name like ";
    for library in ["postern", "pg_stat_statements", "auto_explain"] {
        ensure!(cluster.sql(&format!("{shown} '{library}.%'"))? == "t", "{library}");
    }
    Ok(())
}

#[test]
fn with_huge_pages_it_starts_and_works() -> Result<()> {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free =
        memory.lines().find_map(|line| line.strip_prefix("HugePages_Free:")?.trim().parse::<u64>().ok());
    // 256 MB of the usual two each: what a server of the rig takes, and as much again.
    let pages = if free.is_some_and(|free| free >= 128) {
        "on"
    } else {
        lacking::say("huge_pages was tested as \"try\" only: this machine has no huge pages to give");
        "try"
    };
    let cluster = start("huge", &[("huge_pages", pages)])?;
    ensure!(cluster.sql("show huge_pages")? == pages);
    ensure!(text(&mut through(&cluster).connect(NoTls)?, "select 1")? == "1");
    notifications_arrive(&cluster)
}

/// The directory of the data gets another name, to which the old one leads, so that the rig finds it; the server hears of the new one
/// only.
fn renamed(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let data = cluster.data();
    let long = data.with_file_name(name);
    std::fs::rename(&data, &long)?;
    std::os::unix::fs::symlink(&long, &data)?;
    cluster.set("data_directory", &long.display().to_string())?;
    Ok(long)
}

#[test]
fn a_data_directory_with_a_long_name_is_one_as_any_other() -> Result<()> {
    // The length of a name of PostgreSQL's, and the longest that a file system takes.
    for length in [64, 255] {
        let cluster = Cluster::new("long")?;
        cluster.set("wal_level", "logical")?.set("max_worker_processes", "16")?;
        let long = renamed(&cluster, &"d".repeat(length))?;
        let cluster = cluster.start()?;
        cluster.create_extension()?;
        ensure!(cluster.sql("show data_directory")? == long.display().to_string());
        ensure!(probe::banner(cluster.banner_port)? == "MASTER");
        ensure!(text(&mut through(&cluster).connect(NoTls)?, "select 1")? == "1");
        notifications_arrive(&cluster)?;
        cluster.sql("create table t (id int primary key)")?;
        cluster.sql(&format!(
            "select postern.create_sink('lines', 'file', '{{\"path\":\"{}/lines.jsonl\"}}');
             select postern.create_source('shop', 'postgres', '{QUICK}');
             select postern.create_stream('shop to lines', 'shop', 'lines')",
            long.display()
        ))?;
        running(&cluster, "shop to lines")?;
        cluster.sql("insert into t values (1)")?;
        delivered(&cluster)?;
        ensure!(ids(&long.join("lines.jsonl"))? == [1]);
    }
    Ok(())
}

#[test]
fn a_server_that_cannot_listen_where_it_should_does_not_start_and_says_why() -> Result<()> {
    for (directories, why) in [("/nonexistent/postern", "/nonexistent/postern"), ("", "no socket created")] {
        let cluster = Cluster::new("no-directory")?;
        cluster.set("unix_socket_directories", directories)?.set("listen_addresses", "")?;
        cluster.launch()?;
        cluster.wait_log("database system is shut down")?;
        let log = cluster.log();
        let fatal = log.lines().any(|line| line.contains("FATAL") && line.contains(why));
        ensure!(fatal && !log.contains("postern:") && !log.contains("panic"), "{log}");
    }
    Ok(())
}

#[test]
fn of_several_socket_directories_the_pooler_takes_one_where_the_server_is() -> Result<()> {
    let cluster = Cluster::new("one-directory")?;
    // The server begins with the first, and goes on without it: no socket has so long a path.
    let long = cluster.socket_directory().join("d".repeat(100)).display().to_string();
    let there = cluster.socket_directory().display().to_string();
    cluster.set("unix_socket_directories", &format!("{long}, {there}"))?.set("listen_addresses", "")?;
    let cluster = cluster.start()?;
    cluster.wait_log("could not create Unix-domain socket in directory")?;
    let mut client = through(&cluster).connect(NoTls).with_context(|| cluster.log_tail())?;
    ensure!(text(&mut client, "select 1")? == "1");
    // Its own socket is beside the server's.
    let beside = Target::unix(cluster.socket_directory(), cluster.pooler_port);
    Client::open(&beside, "postgres", "postgres")?.query("select 1")?;
    ensure!(!cluster.log().contains("could not listen"), "{}", cluster.log_tail());
    Ok(())
}

#[test]
fn without_any_socket_the_pooler_goes_in_by_tcp() -> Result<()> {
    let cluster = Cluster::new("no-socket")?;
    cluster.set("unix_socket_directories", "")?;
    let cluster = cluster.start()?;
    let mut client = through(&cluster).connect(NoTls).with_context(|| cluster.log_tail())?;
    ensure!(text(&mut client, "select 1")? == "1");
    notifications_arrive(&cluster)?;
    ensure!(!cluster.log().contains("could not listen"), "{}", cluster.log_tail());
    Ok(())
}

#[test]
fn where_the_servers_socket_is_taken_away_the_pooler_goes_in_by_tcp() -> Result<()> {
    let cluster = Cluster::new("taken")?.start()?;
    cluster.sql("create role app login; create role other login")?;
    let socket = cluster.socket_directory().join(format!(".s.PGSQL.{}", cluster.port));
    std::fs::remove_file(&socket)?;
    let goes_in = |role: &str| {
        let mut client =
            cluster.through(role, "postgres").connect(NoTls).with_context(|| cluster.log_tail())?;
        ensure!(text(&mut client, "select current_user")? == role);
        Ok(())
    };
    goes_in("app")?;
    // One that nobody listens on any more.
    drop(UnixListener::bind(&socket)?);
    std::fs::set_permissions(&socket, Permissions::from_mode(0o777))?;
    goes_in("other")?;
    std::fs::remove_file(&socket)?;
    // Where there is no other way in, it says what is missing.
    cluster.set("listen_addresses", "")?;
    cluster.restart(Stop::Fast)?;
    std::fs::remove_file(cluster.socket_directory().join(format!(".s.PGSQL.{}", cluster.port)))?;
    wait::until("it says so", || {
        let refused = cluster.through("app", "postgres").connect(NoTls).err();
        refused.is_some_and(|error| words(&error).contains("could not connect to the server: No such file"))
    })
}

#[test]
fn who_else_has_the_servers_socket_is_told_nothing() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        lacking::say("another user's socket in place of the server's was not tested: we are not root");
        return Ok(());
    }
    let cluster = Cluster::new("impostor")?.start()?;
    // The server runs as another user than this test.
    let path = cluster.socket_directory().join(format!(".s.PGSQL.{}", cluster.port));
    std::fs::remove_file(&path)?;
    let impostor = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o777))?;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in impostor.incoming().map_while(Result::ok) {
            let mut said = Vec::new();
            let _ = stream.take(4).read_to_end(&mut said);
            let _ = tell.send(said);
        }
    });
    let config = through(&cluster);
    let client = Doing::start(move || text(&mut config.connect(NoTls)?, "select 1"));
    // It has been tried, and nothing was sent.
    let said = told.recv_timeout(wait::LIMIT).context("the pooler has not tried the socket")?;
    ensure!(said.is_empty(), "{said:?}");
    ensure!(client.value()?.with_context(|| cluster.log_tail())? == "1");
    // Where there is no other way in, it says why.
    cluster.set("listen_addresses", "")?;
    cluster.restart(Stop::Fast)?;
    std::fs::remove_file(&path)?;
    let _impostor = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o777))?;
    wait::until("it says so", || {
        let refused = through(&cluster).connect(NoTls).err();
        refused.map(|error| words(&error)).is_some_and(|words| {
            words.contains(&path.display().to_string()) && words.contains("unix_socket_directories")
        })
    })
}

#[test]
fn a_replication_connection_is_canceled_where_the_servers_socket_is_taken_away() -> Result<()> {
    let cluster = Cluster::new("cancel-taken")?.start()?;
    let mut watcher = cluster.connect()?;
    let at = Target::tcp(cluster.pooler_port);
    let mut replication = Connection::open(&at)?;
    let parameters = [("user", "postgres"), ("database", "postgres"), ("replication", "database")];
    let parameters = parameters.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    replication.send(&Message::startup((3, 0), &parameters).bytes, None);
    replication.until(b'Z', wait::LIMIT)?;
    let (process, key) = replication.key.clone().context("a key")?;
    replication.send(&Message::query(b"select pg_sleep(600)").bytes, None);
    wait::until("it runs", || {
        let runs = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        text(&mut watcher, runs).is_ok_and(|count| count == "1")
    })?;
    std::fs::remove_file(cluster.socket_directory().join(format!(".s.PGSQL.{}", cluster.port)))?;
    Connection::open(&at)?.send(&Message::cancel(&process, &key).bytes, None);
    let said = replication.until(b'Z', Duration::from_secs(10)).err().context("it was not canceled")?;
    ensure!(said.to_string().contains("57014"), "{said}");
    Ok(())
}

#[test]
fn where_the_server_listens_elsewhere_only_the_pooler_says_so() -> Result<()> {
    // The address that the machine would have for others; nothing is sent.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let own = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    let Some(own) = own.ok().filter(|own| !own.ip().is_loopback()) else {
        lacking::say("a server without a loopback address was not tested: this machine has no other");
        return Ok(());
    };
    let cluster = Cluster::new("elsewhere")?;
    cluster.set("unix_socket_directories", "")?.set("listen_addresses", &own.ip().to_string())?;
    let cluster = cluster.start()?;
    let error = through(&cluster).connect(NoTls).err().context("there is no way in")?;
    let words = words(&error);
    ensure!(words.contains("listens neither on a Unix socket nor on a loopback address"), "{words} {error}");
    ensure!(words.contains("unix_socket_directories") && words.contains("listen_addresses"), "{words}");
    ensure!(!words.contains("pg_hba.conf"), "no line of it would help: {words}");
    ensure!(probe::banner(cluster.banner_port)? == "MASTER");
    Ok(())
}
