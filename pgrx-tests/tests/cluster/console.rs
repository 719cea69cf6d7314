//! PgBouncer's console, answered by the front, with real clients in the pools.

use crate::pooling::{Doing, with_pool};
use anyhow::{Context, Result, bail};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::drivers::{python_with_exporter, succeeded};
use pgrx_tests::{ports, wait};
use postgres::{Client, NoTls, SimpleQueryMessage};
use std::collections::HashMap;

pub type Row = HashMap<String, String>;

pub fn console(cluster: &Cluster) -> Result<Client> {
    Ok(cluster.through("postgres", "postern").connect(NoTls)?)
}

/// A server, and its console.
pub fn with_console(name: &str) -> Result<(Cluster, Client)> {
    let cluster = Cluster::new(name)?.start()?;
    let console = console(&cluster)?;
    Ok((cluster, console))
}

/// A client of the pool, which has been served.
pub fn client(cluster: &Cluster, name: &str) -> Result<Client> {
    let mut client = cluster.through("postgres", "postgres").application_name(name).connect(NoTls)?;
    client.simple_query("SELECT 1")?;
    Ok(client)
}

/// The rows of an answer, by the simple protocol.
pub fn rows(console: &mut Client, command: &str) -> Result<Vec<Row>> {
    let messages = console.simple_query(command).with_context(|| command.to_owned())?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            let names = row.columns().iter().enumerate();
            let value = |index| row.get(index).unwrap_or("NULL").to_owned();
            Some(names.map(|(index, column)| (column.name().to_owned(), value(index))).collect())
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// The one row of an answer in which columns have these values.
pub fn row(console: &mut Client, command: &str, with: &[(&str, &str)]) -> Result<Row> {
    let rows = rows(console, command)?;
    let mut found = rows.iter().filter(|row| with.iter().all(|(name, value)| row[*name] == *value));
    match (found.next(), found.next()) {
        (Some(row), None) => Ok(row.clone()),
        _ => bail!("{command} has not one row with {with:?}: {rows:?}"),
    }
}

pub fn pool(console: &mut Client) -> Result<Row> {
    row(console, "SHOW POOLS", &[("database", "postgres"), ("user", "postgres")])
}

pub fn code(error: &postgres::Error) -> &str {
    error.code().map_or("none", |code| code.code())
}

/// The SQLSTATE of a command that fails.
pub fn refused(console: &mut Client, command: &str) -> String {
    match console.simple_query(command) {
        Ok(_) => "none".to_owned(),
        Err(error) => code(&error).to_owned(),
    }
}

#[test]
fn the_console_shows_clients_and_servers_as_they_are() -> Result<()> {
    let (cluster, mut console) = with_console("console-shows")?;
    let mut busy = client(&cluster, "busy")?;
    let _idle = client(&cluster, "idle")?;
    let pid: i32 = busy.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    busy.simple_query("BEGIN")?;
    let told = busy.query_one("SELECT pg_backend_pid(), inet_client_port()", &[])?;
    let (busy_pid, busy_port): (i32, i32) = (told.get(0), told.get(1));
    assert!(pid > 0 && busy_port > 0);

    // Two clients that came at once may have had the pool grow, and the second connection may still be logging in.
    wait::until("the idle one's backend is free and the pool grows no more", || {
        pool(&mut console).is_ok_and(|pool| pool["sv_active"] == "1" && pool["sv_login"] == "0")
    })?;
    let shown = pool(&mut console)?;
    assert_eq!((&shown["cl_active"][..], &shown["cl_waiting"][..]), ("2", "0"), "{shown:?}");
    assert_eq!((&shown["sv_active"][..], &shown["pool_mode"][..]), ("1", "transaction"), "{shown:?}");
    let own = row(&mut console, "SHOW POOLS", &[("database", "postern")])?;
    assert_eq!(own["cl_active"], "1");

    // The same by the extended protocol, in binary.
    let extended = console.query("SHOW POOLS", &[])?;
    let found =
        extended.iter().find(|row| row.get::<_, &str>("database") == "postgres").context("no pool")?;
    assert_eq!((found.get::<_, i32>("cl_active"), found.get::<_, i32>("sv_active")), (2, 1));
    assert_eq!(found.get::<_, &str>("pool_mode"), "transaction");

    let client = row(&mut console, "SHOW CLIENTS", &[("application_name", "busy")])?;
    assert_eq!((&client["type"][..], &client["state"][..], &client["user"][..]), ("C", "active", "postgres"));
    assert_eq!((&client["addr"][..], &client["port"]), ("127.0.0.1", &busy_port.to_string()));
    assert_eq!(
        (&client["local_addr"][..], &client["local_port"]),
        ("127.0.0.1", &cluster.pooler_port.to_string())
    );
    let server = row(&mut console, "SHOW SERVERS", &[("remote_pid", &busy_pid.to_string())])?;
    // A second connection may have come for somebody who waited for the first one.
    let servers = rows(&mut console, "SHOW SERVERS")?.len() as u32;
    wait::until("no more is opened", || {
        pool(&mut console).is_ok_and(|pool| {
            let count = |name: &str| pool[name].parse::<u32>().unwrap_or(0);
            pool["sv_login"] == "0" && count("sv_active") + count("sv_idle") == servers
        })
    })?;
    assert_eq!((&server["state"][..], &server["application_name"][..]), ("active", "busy"));
    assert_eq!((&server["link"], &client["link"]), (&client["ptr"], &server["ptr"]));
    assert_eq!(rows(&mut console, "SHOW SERVERS")?.len() as u32, servers);
    let backends = cluster.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> 'passing'",
    )?;
    assert_eq!(backends, servers.to_string());
    // Two clients of the pool and the console's own.
    assert_eq!(rows(&mut console, "SHOW CLIENTS")?.len(), 3);

    let database = row(&mut console, "SHOW DATABASES", &[("name", "postgres")])?;
    assert_eq!(
        (&database["current_connections"], &database["port"]),
        (&servers.to_string(), &cluster.port.to_string())
    );
    assert_eq!((&database["current_client_connections"][..], &database["paused"][..]), ("2", "0"));
    row(&mut console, "SHOW DATABASES", &[("name", "template1"), ("current_connections", "0")])?;
    row(&mut console, "SHOW USERS", &[("name", "postgres"), ("current_client_connections", "2")])?;
    row(&mut console, "SHOW LISTS", &[("list", "used_clients"), ("items", "3")])?;
    row(&mut console, "SHOW LISTS", &[("list", "used_servers"), ("items", &servers.to_string())])?;
    row(&mut console, "SHOW LISTS", &[("list", "pools"), ("items", "2")])?;
    row(&mut console, "SHOW LISTS", &[("list", "login_clients"), ("items", "0")])?;
    row(
        &mut console,
        "SHOW CONFIG",
        &[("key", "max_client_conn"), ("value", "10000"), ("changeable", "no")],
    )?;
    row(&mut console, "SHOW CONFIG", &[("key", "listen_port"), ("value", &cluster.pooler_port.to_string())])?;
    row(&mut console, "SHOW MEM", &[("name", "client_cache"), ("used", "2")])?;
    let version = rows(&mut console, "SHOW VERSION")?;
    assert!(version[0]["version"].starts_with("PgBouncer 1.24.1 (postern "), "{version:?}");
    Ok(())
}

#[test]
fn transactions_are_counted_and_outlive_nobody_elses_pool() -> Result<()> {
    let (cluster, mut console) = with_console("console-stats")?;
    let mut client = client(&cluster, "counted")?;
    let count = |console: &mut Client| -> Result<u64> {
        let row = row(console, "SHOW STATS", &[("database", "postgres")])?;
        Ok(row["total_xact_count"].parse()?)
    };
    // A transaction is counted by its backend when it is over, a moment after the client hears of it.
    wait::until("the first one is counted", || count(&mut console).is_ok_and(|count| count == 1))?;
    for _ in 0..10 {
        client.simple_query("BEGIN; SELECT 1; COMMIT")?;
    }
    wait::until("ten more are counted", || count(&mut console).is_ok_and(|count| count >= 11))?;
    assert_eq!(count(&mut console)?, 11);
    row(&mut console, "SHOW STATS_TOTALS", &[("database", "postgres"), ("xact_count", "11")])?;
    row(&mut console, "SHOW STATS", &[("database", "postern"), ("total_xact_count", "0")])?;
    Ok(())
}

#[test]
fn a_client_that_waits_is_shown_as_waiting() -> Result<()> {
    let cluster = with_pool("console-waits", 1, &[])?;
    let mut console = console(&cluster)?;
    let mut second = client(&cluster, "second")?;
    let mut first = client(&cluster, "first")?;
    first.simple_query("BEGIN; SELECT 1")?;
    let done = Doing::start(move || second.simple_query("SELECT 2").map(|_| second));
    wait::until("the second client is seen to wait", || {
        let shown = pool(&mut console);
        shown.is_ok_and(|shown| {
            shown["cl_waiting"] == "1" && shown["cl_active"] == "1" && shown["sv_active"] == "1"
        })
    })?;
    row(&mut console, "SHOW CLIENTS", &[("application_name", "second"), ("state", "waiting")])?;
    row(&mut console, "SHOW CLIENTS", &[("application_name", "first"), ("state", "active")])?;
    first.simple_query("COMMIT")?;
    let _second = done.value()??;
    assert_eq!(pool(&mut console)?["cl_waiting"], "0");
    Ok(())
}

#[test]
fn settings_are_the_servers_and_reload_reads_them_again() -> Result<()> {
    let (cluster, mut console) = with_console("console-reload")?;
    cluster.set("postern.pool_size", "7")?;
    console.simple_query("RELOAD")?;
    wait::until("the new size holds", || {
        row(&mut console, "SHOW CONFIG", &[("key", "default_pool_size"), ("value", "7")]).is_ok()
    })?;
    let error = console.simple_query("SET default_pool_size = 8").err().context("it was set")?;
    let told = error.as_db_error().context("no error of the console's")?;
    assert_eq!(told.code().code(), "55P02");
    assert!(told.hint().is_some_and(|hint| hint.contains("ALTER SYSTEM SET postern.pool_size")), "{told:?}");
    assert_eq!(refused(&mut console, "SET nonsense = 1"), "42704");
    assert_eq!(refused(&mut console, "SHUTDOWN"), "0A000");
    // A driver's own settings are taken and ignored.
    console.simple_query("SET application_name = 'x'")?;
    Ok(())
}

#[test]
fn superusers_may_do_all_monitors_may_look_and_others_may_not_come_in() -> Result<()> {
    let cluster = Cluster::new("console-access")?.start()?;
    cluster.sql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE ROLE nobody LOGIN")?;
    let mut watcher = cluster.through("watcher", "postern").connect(NoTls)?;
    rows(&mut watcher, "SHOW POOLS")?;
    for command in
        ["PAUSE", "KILL postgres", "RELOAD", "SET pool_mode = session", "KILL_CLIENT 1", "DISABLE postgres"]
    {
        assert_eq!(refused(&mut watcher, command), "42501", "{command}");
    }
    let error = cluster.through("nobody", "postern").connect(NoTls).err().context("nobody was let in")?;
    assert_eq!(code(&error), "42501");
    let error =
        cluster.through("missing", "postern").connect(NoTls).err().context("a missing role was let in")?;
    assert_eq!(code(&error), "28000");
    Ok(())
}

#[test]
fn the_name_that_exporters_have_reaches_the_console_until_there_is_such_a_database() -> Result<()> {
    let cluster = Cluster::new("console-name")?.start()?;
    let connect = || cluster.through("postgres", "pgbouncer").connect(NoTls);
    rows(&mut connect()?, "SHOW VERSION")?;
    cluster.sql("CREATE DATABASE pgbouncer")?;
    let name: String = connect()?.query_one("SELECT current_database()::text", &[])?.get(0);
    assert_eq!(name, "pgbouncer");
    Ok(())
}

#[test]
fn the_console_takes_a_hundred_clients_and_each_hears_of_the_end() -> Result<()> {
    let cluster = Cluster::new("console-crowd")?.start()?;
    let mut crowd = (0..100).map(|_| console(&cluster)).collect::<Result<Vec<_>>>()?;
    let error = cluster.through("postgres", "postern").connect(NoTls).err().context("one too many")?;
    assert_eq!(code(&error), "53300");
    crowd.truncate(50);
    wait::until("there is room again", || console(&cluster).is_ok())?;
    cluster.stop(Stop::Fast)?;
    for mut client in crowd {
        // As above; the next test reads the message itself.
        let error = client.simple_query("SHOW VERSION").err().context("a console without a server")?;
        assert!(error.is_closed() || code(&error) == "57P01", "{error}");
    }
    Ok(())
}

#[test]
fn a_console_hears_why_the_front_ends() -> Result<()> {
    use std::io::{Read, Write};
    let cluster = Cluster::new("console-end")?.start()?;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", cluster.pooler_port))?;
    stream.set_read_timeout(Some(wait::LIMIT))?;
    stream.write_all(b"\0\0\0\x28\0\x03\0\0user\0postgres\0database\0postern\0\0")?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !bytes.ends_with(b"Z\0\0\0\x05I") {
        let count = stream.read(&mut buffer)?;
        anyhow::ensure!(count > 0, "no greeting: {}", String::from_utf8_lossy(&bytes));
        bytes.extend(&buffer[..count]);
    }
    cluster.request_stop(Stop::Fast)?;
    let mut end = Vec::new();
    stream.read_to_end(&mut end)?;
    assert!(String::from_utf8_lossy(&end).contains("57P01"), "{}", String::from_utf8_lossy(&end));
    Ok(())
}

#[test]
fn the_exporter_for_pgbouncer_scrapes_it_unchanged() -> Result<()> {
    let cluster = Cluster::new("console-exporter")?.start()?;
    cluster.sql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")?;
    let _client = client(&cluster, "seen")?;
    let script = "pgbouncer_exporter.py";
    for database in ["postern", "pgbouncer"] {
        let (port, own) = (cluster.pooler_port.to_string(), ports::free()?.to_string());
        let output = python_with_exporter(script, &["127.0.0.1", &port, "watcher", database, &own])?;
        succeeded(script, &output)?;
        let said = String::from_utf8_lossy(&output.stdout);
        for line in [
            "pgbouncer_up 1.0",
            "pgbouncer_pools_client_active_connections{database=\"postgres\",user=\"postgres\"} 1.0",
            "pgbouncer_stats_transactions_total{database=\"postgres\"} 1.0",
            "pgbouncer_config_max_client_conn 10000.0",
        ] {
            assert!(said.lines().any(|said| said == line), "no {line}:\n{said}");
        }
    }
    Ok(())
}
