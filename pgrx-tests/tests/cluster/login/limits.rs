//! Limits of connections, privileges, and a server that is full.

use super::raw::Raw;
use super::{at, code, said, until_said};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use postgres::{Client, NoTls};
use std::sync::mpsc::channel;

#[test]
fn connection_limits_and_privileges_count_clients_as_the_server_counts_sessions() -> Result<()> {
    let cluster = Cluster::new("limits")?;
    // At the server's own port idle connections of the pooler count too, until they end.
    cluster.set("postern.server_idle_timeout", "1s")?;
    let cluster = cluster.start()?;
    for statement in [
        "create role few login connection limit 3",
        "create role zero login connection limit 0",
        "create role boss login superuser connection limit 0",
        "create role plain login",
        "create role other login",
        "create role shut_out login",
        "create role no_login",
        "create database narrow connection limit 2",
        "create database closed allow_connections false",
        "create database private",
        "revoke connect on database private from public",
        "grant connect on database private to plain",
    ] {
        cluster.sql(statement)?;
    }
    // What both ports say of everybody, with nobody else there.
    let cases = || {
        let roles = ["few", "zero", "boss", "plain", "shut_out", "no_login", "no such role"];
        let databases = ["postgres", "narrow", "closed", "private", "no such database"];
        roles.into_iter().flat_map(move |role| databases.into_iter().map(move |database| (role, database)))
    };
    let mut direct = Vec::new();
    for (role, database) in cases() {
        direct.push(said(&at(cluster.port, role, database)));
        wait::until("that session has ended", || {
            let others = "select count(*) from pg_stat_activity where backend_type = 'client backend'";
            cluster.sql(others).is_ok_and(|count| count == "1")
        })?;
    }
    for ((role, database), direct) in cases().zip(direct) {
        // A client that has just gone may still be counted.
        let mut through = String::new();
        wait::until(&format!("{role} hears of {database}: {direct}"), || {
            through = said(&at(cluster.pooler_port, role, database));
            through == direct
        })
        .with_context(|| through)?;
    }
    let narrow = |role: &str| at(cluster.pooler_port, role, "narrow");
    role_limit(&cluster)?;

    // Of a database, over roles and both ports.
    let first = wait::for_value("a client of the database", || Ok(narrow("plain").connect(NoTls)?))?;
    let own = at(cluster.port, "other", "narrow");
    let direct = wait::for_value("a session at the server's own port", || Ok(own.connect(NoTls)?))?;
    until_said(&narrow("other"), "FATAL 53300: too many connections for database \"narrow\"")?;
    assert_eq!(said(&narrow("boss")), "in as boss to narrow", "superusers are not limited");
    drop(direct);
    until_said(&narrow("other"), "in as other")?;
    drop(first);

    // A privilege that is taken away, at the next login.
    let private = at(cluster.pooler_port, "plain", "private");
    assert_eq!(said(&private), "in as plain to private");
    cluster.sql("revoke connect on database private from plain")?;
    assert_eq!(
        said(&private),
        "FATAL 42501: permission denied for database \"private\" | User does not have CONNECT privilege. | "
    );
    Ok(())
}

fn role_limit(cluster: &Cluster) -> Result<()> {
    let few = at(cluster.pooler_port, "few", "postgres");
    let full = "FATAL 53300: too many connections for role \"few\"";
    let fill = |mut there: Vec<Client>| -> Result<Vec<Client>> {
        while there.len() < 3 {
            there.push(wait::for_value("a place for another", || Ok(few.connect(NoTls)?))?);
        }
        Ok(there)
    };
    let mut clients = fill(Vec::new())?;
    for client in &mut clients {
        client.batch_execute("select 1")?;
    }
    assert!(said(&few).starts_with(full), "{}", said(&few));
    assert!(said(&at(cluster.pooler_port, "few", "template1")).starts_with(full), "also to another database");
    // One leaves, one comes; then all vanish without a word.
    clients.pop().context("none")?.close()?;
    let clients = fill(clients)?;
    assert!(said(&few).starts_with(full));
    drop(clients);
    for _ in 0..3 {
        let vanishing: Vec<_> = (0..3)
            .map(|_| {
                wait::for_value("a place after an abrupt end", || {
                    let mut client = super::raw::Raw::tcp(cluster, cluster.pooler_port)?;
                    client.startup(&[("user", "few"), ("database", "postgres")]);
                    let heard = client.hear_all()?;
                    anyhow::ensure!(heard.last().is_some_and(|last| last.starts_with('Z')), "{heard:?}");
                    Ok(client)
                })
            })
            .collect::<Result<_>>()?;
        assert!(said(&few).starts_with(full));
        drop(vanishing);
    }
    // A burst does not get past it.
    let burst = |count: usize| -> Vec<Result<Client, postgres::Error>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(|| few.connect(NoTls))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        })
    };
    let gone =
        || cluster.sql("select count(*) from pg_stat_activity where usename = 'few' and state <> 'idle'");
    wait::until("nobody is served", || gone().is_ok_and(|count| count == "0"))?;
    wait::until("exactly three of twelve get in", || {
        let got = burst(12);
        let (let_in, refused): (Vec<_>, Vec<_>) = got.into_iter().partition(Result::is_ok);
        assert!(let_in.len() <= 3, "{} got in", let_in.len());
        for error in refused.into_iter().filter_map(Result::err) {
            assert!(super::told(&error).starts_with(full), "{}", super::told(&error));
        }
        let_in.len() == 3
    })
}

#[test]
fn clients_of_a_full_server_wait_and_get_in_when_a_place_is_free() -> Result<()> {
    let cluster = Cluster::new("full")?;
    cluster.set("max_connections", "12")?;
    cluster.set("superuser_reserved_connections", "3")?;
    cluster.set("max_wal_senders", "0")?;
    cluster.set("wal_level", "minimal")?;
    let cluster = cluster.start()?;
    cluster.sql("create role app login")?;
    let direct = at(cluster.port, "app", "postgres");
    let mut sessions = Vec::new();
    wait::until("the server is full", || match direct.connect(NoTls) {
        Ok(session) => {
            sessions.push(session);
            false
        }
        Err(_) => sessions.len() == 9,
    })?;
    assert_eq!(code(&direct), "53300");
    let (worker, port) = (cluster.front_pid()?, cluster.pooler_port);
    let (done, results) = channel();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let done = done.clone();
            std::thread::spawn(move || done.send(said(&at(port, "app", "postgres"))))
        })
        .collect();
    cluster.wait_log("no server connection for database \"postgres\" as \"app\"")?;
    assert!(results.try_recv().is_err(), "nobody is let in or turned away");
    // What is reserved stays so: the pooler does not take it, superusers do.
    assert_eq!(cluster.sql("select count(*) from pg_stat_activity where usename = 'app'")?, "9");
    assert_eq!(said(&at(port, "postgres", "postgres")), "in as postgres to postgres");
    // The superuser's connection has taken a place of its own.
    sessions.truncate(7);
    for _ in &waiting {
        let result = results.recv_timeout(wait::LIMIT).with_context(|| cluster.log_tail())?;
        assert_eq!(result, "in as app to postgres");
    }
    for thread in waiting {
        let _ = thread.join();
    }
    assert_eq!(cluster.front_pid()?, worker);
    Ok(())
}

#[test]
fn who_is_refused_after_its_authentication_hears_of_that_first() -> Result<()> {
    let cluster = Cluster::new("granted")?;
    cluster.set("postern.query_wait_timeout", "1s")?;
    let cluster = cluster.start()?;
    cluster.create_extension()?;
    for statement in [
        "create role plain login",
        "create role no_login",
        "create database closed allow_connections false",
        "create database private",
        "revoke connect on database private from public",
    ] {
        cluster.sql(statement)?;
    }
    let heard = |port: u16, role: &str, database: &str| -> Result<Vec<String>> {
        let mut client = Raw::tcp(&cluster, port)?;
        client.startup(&[("user", role), ("database", database)]);
        client.hear_all()
    };
    for (role, database) in
        [("plain", "private"), ("plain", "closed"), ("plain", "nowhere"), ("no_login", "postgres")]
    {
        let (own, pooled) =
            (heard(cluster.port, role, database)?, heard(cluster.pooler_port, role, database)?);
        ensure!(own == pooled, "{role} to {database}: {own:#?} directly, {pooled:#?} through the pooler");
        ensure!(own[0] == "authentication 0" && own[1].starts_with("E: "), "{own:?}");
    }
    // Nobody has welcomed this one when it has waited for too long.
    cluster.sql("select postern.pause()")?;
    let late = heard(cluster.pooler_port, "plain", "postgres")?;
    ensure!(late[0] == "authentication 0" && late[1].contains("query_wait_timeout"), "{late:?}");
    Ok(())
}
