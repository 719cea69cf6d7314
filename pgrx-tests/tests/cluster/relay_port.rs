//! The listen-only port: clients that listen without a server connection.

use crate::pooling::with_pool;
use crate::relay::{Client, note};
use crate::tls::Secured;
use anyhow::{Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::drivers::{node, python, succeeded};
use pgrx_tests::script::connection::{Connection, Received, Target};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{lacking, ports, wait};

/// A server with the port open, and the port.
pub fn with_port(name: &str, settings: &[(&str, &str)]) -> Result<(Cluster, u16)> {
    let port = ports::free()?;
    let address = format!("127.0.0.1:{port}");
    let mut all = vec![("postern.relay_listen", &address[..])];
    all.extend(settings);
    let cluster = with_pool(name, 2, &all)?;
    cluster.sql("CREATE EXTENSION postern")?;
    is_open(port)?;
    Ok((cluster, port))
}

pub fn is_open(port: u16) -> Result<()> {
    let open = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    wait::until("the listen-only port is open", open)
}

pub fn listener(port: u16) -> Result<Client> {
    Client::open(&Target::tcp(port), "postgres", "postgres")
}

/// Server connections that the pooler has opened.
pub fn servers(cluster: &Cluster) -> Result<String> {
    cluster.sql("SELECT count(*) FROM postern.servers")
}

/// The error that a query is answered with.
pub fn error(client: &mut Client, sql: &str) -> Result<String> {
    let (_, error) = client.try_query(sql)?;
    error.ok_or_else(|| anyhow::anyhow!("{sql} was no error"))
}

#[test]
fn a_client_listens_without_a_server_connection() -> Result<()> {
    let (cluster, port) = with_port("port", &[])?;
    let (mut a, mut b) = (listener(port)?, listener(port)?);
    assert_eq!(a.query("LISTEN news")?, "CZ");
    b.query("LISTEN \"News\"; LISTEN NEWS")?;
    cluster.sql("NOTIFY news, 'one'")?;
    for client in [&mut a, &mut b] {
        let heard = client.next(1)?;
        assert_eq!((&heard[0].1[..], &heard[0].2[..]), ("news", "one"));
    }
    // Before the pooled client, which has one, or two where the first is slow.
    assert_eq!(servers(&cluster)?, "0");
    let mut pooled = Client::through(&cluster)?;
    pooled.query("NOTIFY \"News\", 'two'")?;
    assert_eq!(b.next(1)?, [note(pooled.pid, "News", "two")]);
    a.hears_nothing()?;
    a.query("UNLISTEN news")?;
    b.query("UNLISTEN *")?;
    cluster.sql("NOTIFY news")?;
    cluster.sql("NOTIFY \"News\"")?;
    a.hears_nothing()?;
    b.hears_nothing()?;
    let refused = error(&mut a, "SELECT * FROM pg_class")?;
    let named = format!("127.0.0.1:{}", cluster.pooler_port);
    ensure!(refused.contains("0A000") && refused.contains(&named), "{refused}");
    ensure!(servers(&cluster)?.parse::<u32>()? <= 2, "the pooled client's only");
    Ok(())
}

/// What a connection is told of settings before its first ReadyForQuery, in the order of the names.
pub fn told(target: &Target, parameters: &[(&str, &str)]) -> Result<Vec<(String, String)>> {
    let mut connection = Connection::open(target)?;
    let parameters: Vec<_> = parameters
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect();
    connection.send(&Message::startup((3, 0), &parameters).bytes, None);
    let mut told = Vec::new();
    loop {
        match connection.receive(wait::LIMIT)? {
            Received::Message { tag: b'Z', .. } => break,
            Received::Message { tag: b'S', body } => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let mut words = text.split('\0').map(str::to_owned);
                told.push((words.next().unwrap_or_default(), words.next().unwrap_or_default()));
            }
            Received::Message { tag: b'E', body } => {
                anyhow::bail!("{}", String::from_utf8_lossy(&body).replace('\0', " "))
            }
            Received::Message { .. } => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
    told.sort();
    Ok(told)
}

/// The last words of a connection that ends, after whatever came before.
pub fn last_words(client: &mut Client) -> Result<String> {
    let mut words = String::new();
    loop {
        match client.connection.receive(wait::LIMIT)? {
            Received::Message { tag: b'E', body } => {
                words = String::from_utf8_lossy(&body).replace('\0', " ");
            }
            Received::Message { .. } => {}
            Received::Closed { .. } => return Ok(words),
            other => anyhow::bail!("{other:?} after {words}"),
        }
    }
}

/// How many clients of the port there are.
pub fn clients(cluster: &Cluster) -> Result<String> {
    cluster.sql("SELECT count(*) FROM postern.clients WHERE state = 'idle' AND server_pid IS NULL")
}

pub fn listens(cluster: &Cluster) -> Result<String> {
    cluster.sql("SELECT count(*) FROM postern.listens")
}

#[test]
fn the_welcome_is_the_servers_own() -> Result<()> {
    let (cluster, port) =
        with_port("port-welcome", &[("timezone", "Europe/Vienna"), ("datestyle", "sql, dmy")])?;
    cluster.sql("CREATE ROLE plain LOGIN")?;
    cluster.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")?;
    let socket = Target::unix(cluster.socket_directory(), port);
    for parameters in [
        &[("user", "postgres"), ("database", "postgres")][..],
        &[("user", "plain"), ("database", "postgres"), ("application_name", "me"), ("DateStyle", "ISO")],
        &[("user", "plain"), ("database", "latin"), ("options", "-c timezone=UTC -c search_path=a")],
        &[
            ("user", "postgres"),
            ("database", "postgres"),
            ("client_encoding", "utf-8"),
            ("intervalstyle", "iso_8601"),
        ],
    ] {
        let direct = told(&Target::tcp(cluster.port), parameters)?;
        assert_eq!(told(&Target::tcp(port), parameters)?, direct, "{parameters:?}");
        assert_eq!(told(&socket, parameters)?, direct, "{parameters:?}");
    }
    let refused =
        told(&Target::tcp(port), &[("user", "plain"), ("database", "latin"), ("client_encoding", "UTF8")]);
    ensure!(format!("{refused:?}").contains("0A000"), "{refused:?}");
    let nobody = told(&Target::tcp(port), &[("user", "plain"), ("database", "postern")]);
    ensure!(format!("{nobody:?}").contains("3D000"), "{nobody:?}");
    let wal = told(
        &Target::tcp(port),
        &[("user", "postgres"), ("replication", "database"), ("database", "postgres")],
    );
    ensure!(format!("{wal:?}").contains("0A000"), "{wal:?}");
    Ok(())
}

#[test]
fn a_reload_opens_the_port_and_closes_it() -> Result<()> {
    let port = ports::free()?;
    let cluster = with_pool("port-reload", 1, &[])?;
    let try_it = || std::net::TcpStream::connect(("127.0.0.1", port));
    assert!(try_it().is_err());
    cluster.set("postern.relay_listen", &format!("127.0.0.1:{port}"))?.reload()?;
    is_open(port)?;
    let mut client = listener(port)?;
    cluster.set("postern.relay_listen", "")?.reload()?;
    wait::until("the port is closed", || try_it().is_err())?;
    client.query("LISTEN still")?;
    cluster.sql("NOTIFY still")?;
    client.next(1)?;
    Ok(())
}

#[test]
fn transactions_and_what_drivers_send_are_as_at_the_server() -> Result<()> {
    let (cluster, port) = with_port("port-statements", &[])?;
    let (mut here, mut there) =
        (listener(port)?, Client::open(&Target::tcp(cluster.port), "postgres", "postgres")?);
    let long = format!("LISTEN {}", "ä".repeat(40));
    for sql in [
        "LISTEN a; LISTEN b",
        "SELECT pg_listening_channels()",
        "SELECT * FROM pg_listening_channels()",
        "BEGIN",
        "LISTEN c",
        "SELECT pg_listening_channels()",
        "ROLLBACK",
        "BEGIN; UNLISTEN *; LISTEN a; COMMIT",
        "SELECT pg_listening_channels()",
        "BEGIN",
        "BEGIN",
        "LISTEN",
        "LISTEN d",
        "COMMIT",
        "COMMIT",
        "ROLLBACK",
        "DISCARD ALL",
        "SELECT pg_listening_channels()",
        "SELECT 1",
        "SELECT version()",
        "SHOW server_version",
        "SHOW server_version_num",
        "SHOW TimeZone",
        "SHOW transaction isolation level",
        "SHOW standard_conforming_strings",
        "SHOW search_path",
        "SHOW is_superuser",
        "SHOW datestyle",
        "SHOW statement_timeout",
        "SET datestyle TO 'ISO'",
        "SET application_name = 'x'",
        "SET application_name = 'x'; SHOW application_name",
        "RESET application_name",
        "SET client_encoding TO 'UTF8'",
        "SET server_version = '1'",
        "SELECT pg_is_in_recovery()",
        "SELECT current_user",
        "SELECT current_database()",
        "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;",
        "",
        ";;",
        "-- ping",
        &long,
        "UNLISTEN *",
        "LISTEN \"\"",
        "LISTEN 'a'",
        "LISTEN \"a",
        "DEALLOCATE ALL",
        "DEALLOCATE x",
    ] {
        let mut seen = [String::new(), String::new()];
        for (client, seen) in [&mut here, &mut there].into_iter().zip(&mut seen) {
            client.connection.send(&Message::query(sql.as_bytes()).bytes, None);
            loop {
                match client.connection.receive(wait::LIMIT)? {
                    Received::Message { tag: b'Z', body } => {
                        seen.push_str(&format!("Z{}", char::from(body[0])));
                        break;
                    }
                    Received::Message { tag: tag @ (b'E' | b'N'), body } => {
                        let text = String::from_utf8_lossy(&body).into_owned();
                        let fields = text.split('\0').filter(|field| field.starts_with(['S', 'C']));
                        seen.push_str(&format!("{}{:?}", char::from(tag), fields.collect::<Vec<_>>()));
                    }
                    Received::Message { tag, body } => {
                        seen.push_str(&format!("{}{}", char::from(tag), String::from_utf8_lossy(&body)));
                    }
                    other => anyhow::bail!("{other:?}"),
                }
            }
        }
        assert_eq!(seen[0], seen[1], "{sql}");
    }
    Ok(())
}

#[test]
fn a_driver_listens_by_the_extended_protocol() -> Result<()> {
    use postgres::fallible_iterator::FallibleIterator;
    let (cluster, port) = with_port("port-driver", &[])?;
    let mut client = Target::tcp(port).config().connect(postgres::NoTls)?;
    client.execute("LISTEN \"From a driver\"", &[])?;
    let listening: String = client.query_one("SELECT pg_listening_channels()", &[])?.get(0);
    assert_eq!(listening, "From a driver");
    assert_eq!(client.query_one("SELECT 1", &[])?.get::<_, i32>(0), 1);
    let mut transaction = client.transaction()?;
    transaction.execute("LISTEN other", &[])?;
    transaction.rollback()?;
    cluster.sql("SELECT pg_notify('From a driver', 'x'), pg_notify('other', 'y')")?;
    let heard = client.notifications().timeout_iter(wait::LIMIT).next()?;
    assert_eq!(heard.map(|heard| heard.payload().to_owned()), Some("x".to_owned()));
    let refused = client.query("SELECT $1::int", &[&1]).unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("0A000"));
    client.execute("UNLISTEN *", &[])?;
    assert_eq!(listens(&cluster)?, "0");
    Ok(())
}

#[test]
fn real_drivers_only_listen() -> Result<()> {
    let (cluster, port) = with_port("port-drivers", &[])?;
    for port in [cluster.port, port] {
        let arguments = ["127.0.0.1", &port.to_string(), &cluster.port.to_string()];
        succeeded("psycopg_listen.py", &python("psycopg_listen.py", &arguments)?)?;
        succeeded("pg_listen.js", &node("pg_listen.js", &arguments)?)?;
    }
    assert_eq!(servers(&cluster)?, "0");
    Ok(())
}

#[test]
fn clients_are_seen_counted_and_killed() -> Result<()> {
    let (cluster, port) = with_port("port-views", &[("postern.client_idle_timeout", "1")])?;
    cluster.sql("CREATE ROLE few LOGIN CONNECTION LIMIT 1; CREATE ROLE another LOGIN")?;
    cluster.sql("CREATE DATABASE closed")?;
    cluster.sql("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")?;
    let mut few = Client::open(&Target::tcp(port), "few", "postgres")?;
    few.query("SET application_name = 'shown'; LISTEN a")?;
    let row = cluster.sql(
        "SELECT concat_ws(' ', role, database, application_name, state, server_pid, client_addr) FROM postern.clients",
    )?;
    assert_eq!(row, "few postgres shown idle 127.0.0.1");
    let more = Client::open(&Target::tcp(port), "few", "postgres").map(drop);
    ensure!(format!("{more:?}").contains("53300"), "{more:?}");
    let closed = Client::open(&Target::tcp(port), "another", "closed").map(drop);
    ensure!(format!("{closed:?}").contains("42501"), "{closed:?}");
    let shown =
        cluster.through("postgres", "postern").connect(postgres::NoTls)?.simple_query("SHOW CLIENTS")?;
    let is_row = |message: &postgres::SimpleQueryMessage| matches!(message, postgres::SimpleQueryMessage::Row(row) if row.get("user") == Some("few"));
    assert!(shown.iter().any(is_row));
    // Idle clients are looked at, and those of the other port ended.
    let mut ended = Client::open(&Target::tcp(cluster.pooler_port), "another", "postgres")?;
    let words = last_words(&mut ended)?;
    ensure!(words.contains("57P05"), "{words}");
    cluster.sql("NOTIFY a, 'there'")?;
    few.next(1)?;
    assert_eq!(cluster.sql(&format!("SELECT postern.kill({})", few.pid))?, "t");
    let words = last_words(&mut few)?;
    ensure!(words.contains("57P01"), "{words}");
    wait::until("its place is free", || clients(&cluster).is_ok_and(|count| count == "0"))?;
    wait::until("nobody listens", || listens(&cluster).is_ok_and(|count| count == "0"))?;
    Client::open(&Target::tcp(port), "few", "postgres")?;
    Ok(())
}

#[test]
fn listeners_by_tls_and_with_passwords_hear_too() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let port = ports::free()?;
    let address = format!("127.0.0.1:{port}");
    let secured = Secured::with("port-tls", &[("postern.relay_listen", &address)])?;
    is_open(port)?;
    let target = Target::tls(port, &secured.directory.join("ca.crt"));
    let mut clients =
        (0..5).map(|_| Client::open(&target, "postgres", "postgres")).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.query("LISTEN a")?;
    }
    secured.cluster.sql("SELECT pg_notify('a', repeat('x', 7000) || g) FROM generate_series(1, 300) g")?;
    for client in &mut clients {
        assert_eq!(client.next(300)?.len(), 300);
    }
    secured.cluster.set_hba("local all all trust\nhost all all all scram-sha-256\n")?;
    secured.cluster.reload()?;
    let login = |password: &str| {
        let mut config = Target::tcp(port).config();
        config.user("app").password(password).connect(postgres::NoTls)
    };
    wait::until("a password is asked for", || login("wrong").is_err())?;
    login("app")?.batch_execute("LISTEN b")?;
    secured.cluster.stop(Stop::Fast)?;
    for client in &mut clients {
        let words = last_words(client)?;
        ensure!(words.contains("57P01"), "{words}");
    }
    Ok(())
}

#[test]
fn many_listeners_of_one_channel_all_hear_everything_in_order() -> Result<()> {
    const LISTENERS: usize = 300;
    const NOTIFICATIONS: usize = 2000;
    let settings = [("postern.max_client_connections", "2000"), ("postern.pooler_threads", "2")];
    let (cluster, port) = with_port("port-many", &settings)?;
    let mut clients = (0..LISTENERS).map(|_| listener(port)).collect::<Result<Vec<_>>>()?;
    for (number, client) in clients.iter_mut().enumerate() {
        client.query(&format!("LISTEN a; LISTEN own_{number}"))?;
    }
    assert_eq!(listens(&cluster)?, (2 * LISTENERS).to_string());
    let mut notifier = cluster.connect()?;
    for start in (0..NOTIFICATIONS).step_by(100) {
        let end = start + 99;
        notifier.batch_execute(&format!(
            "SELECT pg_notify('a', g::text) FROM generate_series({start}, {end}) g"
        ))?;
    }
    notifier.batch_execute(&format!(
        "SELECT pg_notify('own_' || g, 'end') FROM generate_series(0, {LISTENERS} - 1) g"
    ))?;
    for (number, client) in clients.iter_mut().enumerate() {
        let heard = client.next(NOTIFICATIONS + 1)?;
        let payloads = heard.iter().map(|(_, _, payload)| payload.clone());
        let expected = (0..NOTIFICATIONS).map(|number| number.to_string()).chain(["end".to_owned()]);
        ensure!(payloads.eq(expected), "client {number} has not heard all in order");
    }
    drop(clients);
    wait::until("nobody listens", || listens(&cluster).is_ok_and(|count| count == "0"))?;
    Ok(())
}
