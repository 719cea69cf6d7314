//! What an operator does by the console: PAUSE, RESUME, KILL, RECONNECT, DISABLE, and what clients notice of it.

use crate::console::{client, code, console, pool, refused, row, rows, with_console};
use crate::pooling::{Doing, with_pool};
use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use postgres::{Client, NoTls};

#[test]
fn a_pause_lets_transactions_end_and_keeps_clients_until_the_resume() -> Result<()> {
    let (cluster, mut console) = with_console("console-pause")?;
    for command in ["PAUSE postgres", "PAUSE"] {
        let mut working = client(&cluster, "working")?;
        let mut other = client(&cluster, "other")?;
        working.simple_query("BEGIN; SELECT 1")?;
        let mut pausing = self::console(&cluster)?;
        let paused = Doing::start(move || pausing.simple_query(command).map(drop));
        assert!(paused.not_yet(), "{command} ends while a transaction runs");
        let (view, shown) = match command {
            "PAUSE" => ("SHOW STATE", [("key", "paused"), ("value", "yes")]),
            _ => ("SHOW DATABASES", [("name", "postgres"), ("paused", "1")]),
        };
        wait::until("the pause has begun", || row(&mut console, view, &shown).is_ok())?;
        let other = Doing::start(move || other.simple_query("SELECT 2").map(|_| other));
        assert!(other.not_yet(), "a client is served in spite of {command}");
        working.simple_query("SELECT 3; COMMIT")?;
        paused.value()??;
        assert_eq!(
            rows(&mut console, "SHOW SERVERS")?.len(),
            0,
            "server connections stay open after {command}"
        );
        let newcomer = cluster.through("postgres", "postgres");
        let newcomer = Doing::start(move || -> Result<Client, postgres::Error> {
            let mut client = newcomer.connect(NoTls)?;
            client.simple_query("SELECT 4")?;
            Ok(client)
        });
        assert!(other.not_yet() && newcomer.not_yet());
        let (all, one) = if command == "PAUSE" { ("yes", "0") } else { ("no", "1") };
        row(&mut console, "SHOW STATE", &[("key", "paused"), ("value", all)])?;
        row(&mut console, "SHOW DATABASES", &[("name", "postgres"), ("paused", one)])?;
        console.simple_query(&command.replace("PAUSE", "RESUME"))?;
        let _other = other.value()??;
        let _newcomer = newcomer.value()??;
        working.simple_query("SELECT 5")?;
        row(&mut console, "SHOW STATE", &[("key", "active"), ("value", "yes")])?;
        row(&mut console, "SHOW DATABASES", &[("name", "postgres"), ("paused", "0")])?;
    }
    assert_eq!(refused(&mut console, "RESUME"), "55000");
    assert_eq!(refused(&mut console, "RESUME postgres"), "55000");
    assert_eq!(refused(&mut console, "PAUSE nowhere"), "3D000");
    cluster.wait_log("pooler console: PAUSE postgres by role \"postgres\"")
}

#[test]
fn a_database_without_clients_can_be_paused_before_they_come() -> Result<()> {
    let (cluster, mut console) = with_console("console-pause-early")?;
    console.simple_query("PAUSE postgres")?;
    let early = cluster.through("postgres", "postgres");
    let early =
        Doing::start(move || early.connect(NoTls).and_then(|mut client| client.simple_query("SELECT 1")));
    assert!(early.not_yet());
    // Nobody else is held up.
    cluster.through("postgres", "template1").connect(NoTls)?.simple_query("SELECT 1")?;
    console.simple_query("RESUME postgres")?;
    early.value()??;
    Ok(())
}

#[test]
fn a_pause_that_waits_is_canceled_or_undone() -> Result<()> {
    let (cluster, mut console) = with_console("console-cancel")?;
    cluster.create_extension()?;
    let mut working = client(&cluster, "working")?;
    working.simple_query("BEGIN; SELECT 1")?;
    let mut pausing = self::console(&cluster)?;
    let token = pausing.cancel_token();
    let mut is_begun = || {
        wait::until("the pause has begun", || {
            row(&mut console, "SHOW DATABASES", &[("name", "postgres"), ("paused", "1")]).is_ok()
        })
    };
    let paused = Doing::start(move || (pausing.simple_query("PAUSE postgres").map(drop), pausing));
    is_begun()?;
    assert!(paused.not_yet());
    token.cancel_query(NoTls)?;
    let (paused, mut pausing) = paused.value()?;
    assert_eq!(paused.as_ref().err().map(code), Some("57014"));
    // A cancel without anything to cancel does nothing to what comes next. The driver does not wait until it has come.
    token.cancel_query(NoTls)?;
    wait::until("the second cancel has come", || {
        cluster.sql("SELECT cancels FROM postern.pooler").is_ok_and(|count| count == "2")
    })?;
    rows(&mut pausing, "SHOW VERSION")?;
    let paused = Doing::start(move || pausing.simple_query("PAUSE postgres").map(drop));
    is_begun()?;
    assert!(paused.not_yet());
    console.simple_query("RESUME postgres")?;
    assert_eq!(paused.value()?.as_ref().err().map(code), Some("55000"));
    working.simple_query("COMMIT")?;
    Ok(())
}

/// A client in the midst of a long query.
fn sleeping(cluster: &Cluster, mut client: Client) -> Result<Doing<Result<(), postgres::Error>>> {
    let running = Doing::start(move || client.simple_query("SELECT pg_sleep(600)").map(drop));
    wait::until("the query runs", || {
        cluster
            .sql("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'")
            .is_ok_and(|n| n == "1")
    })?;
    Ok(running)
}

#[test]
fn a_killed_client_is_gone_and_others_stay() -> Result<()> {
    let (cluster, mut console) = with_console("console-kill-client")?;
    let mut idle = client(&cluster, "idle")?;
    let working = client(&cluster, "working")?;
    let mut other = client(&cluster, "other")?;
    let running = sleeping(&cluster, working)?;
    for name in ["idle", "working"] {
        let id = row(&mut console, "SHOW CLIENTS", &[("application_name", name)])?["id"].clone();
        console.simple_query(&format!("KILL_CLIENT {id}"))?;
        wait::until("it is shown no more", || {
            rows(&mut console, "SHOW CLIENTS")
                .is_ok_and(|rows| rows.iter().all(|row| row["application_name"] != name))
        })?;
        assert_eq!(refused(&mut console, &format!("KILL_CLIENT {id}")), "42704");
    }
    assert!(idle.simple_query("SELECT 1").is_err());
    assert!(running.value()?.is_err());
    wait::until("its query has ended too", || {
        cluster
            .sql("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'")
            .is_ok_and(|n| n == "0")
    })?;
    other.simple_query("SELECT 1")?;
    // One of the console's own.
    let mut second = self::console(&cluster)?;
    let own = rows(&mut console, "SHOW CLIENTS")?;
    let newest = own.iter().filter(|row| row["database"] == "postern").map(|row| &row["id"]).max();
    console.simple_query(&format!("KILL_CLIENT {}", newest.context("no console")?))?;
    assert!(second.simple_query("SHOW VERSION").is_err());
    Ok(())
}

#[test]
fn a_killed_database_has_no_clients_and_servers_and_is_paused() -> Result<()> {
    let (cluster, mut console) = with_console("console-kill")?;
    let mut idle = client(&cluster, "idle")?;
    let mut working = client(&cluster, "working")?;
    let mut elsewhere = cluster.through("postgres", "template1").connect(NoTls)?;
    working.simple_query("BEGIN; SELECT 1")?;
    let running = sleeping(&cluster, working)?;
    console.simple_query("KILL postgres")?;
    let error = running.value()?.err().context("a killed query went on")?;
    // The driver overlooks the message when the end comes with it.
    assert!(error.is_closed() || code(&error) == "57P01", "{error}");
    cluster.wait_log("FATAL:  terminating connection due to administrator command")?;
    wait::until("nobody is left", || {
        pool(&mut console)
            .is_ok_and(|pool| pool["cl_active"] == "0" && pool["sv_active"] == "0" && pool["sv_idle"] == "0")
    })?;
    assert!(idle.simple_query("SELECT 1").is_err());
    elsewhere.simple_query("SELECT 1")?;
    row(&mut console, "SHOW DATABASES", &[("name", "postgres"), ("paused", "1")])?;
    console.simple_query("RESUME postgres")?;
    client(&cluster, "after")?;
    Ok(())
}

#[test]
fn reconnect_gives_new_backends_once_the_old_are_free() -> Result<()> {
    let (cluster, mut console) = with_console("console-reconnect")?;
    let mut client = client(&cluster, "somebody")?;
    let pid =
        |client: &mut Client| -> Result<i32> { Ok(client.query_one("SELECT pg_backend_pid()", &[])?.get(0)) };
    client.simple_query("SET work_mem = '7MB'; BEGIN")?;
    let before = pid(&mut client)?;
    console.simple_query("RECONNECT postgres")?;
    row(&mut console, "SHOW SERVERS", &[("remote_pid", &before.to_string()), ("close_needed", "1")])?;
    let mut waiting = self::console(&cluster)?;
    let closed = Doing::start(move || waiting.simple_query("WAIT_CLOSE postgres").map(drop));
    assert!(closed.not_yet(), "it is closed under a transaction");
    assert_eq!(pid(&mut client)?, before, "a transaction keeps its backend");
    client.simple_query("COMMIT")?;
    closed.value()??;
    assert_ne!(pid(&mut client)?, before);
    let kept: String = client.query_one("SHOW work_mem", &[])?.get(0);
    assert_eq!(kept, "7MB");
    Ok(())
}

#[test]
fn a_disabled_database_takes_no_new_clients() -> Result<()> {
    let (cluster, mut console) = with_console("console-disable")?;
    let mut old = client(&cluster, "old")?;
    console.simple_query("DISABLE postgres")?;
    row(&mut console, "SHOW DATABASES", &[("name", "postgres"), ("disabled", "1")])?;
    let error = client(&cluster, "new").err().context("a new client was let in")?;
    assert!(format!("{error:#}").contains("database does not allow connections: postgres"), "{error:#}");
    old.simple_query("SELECT 1")?;
    cluster.through("postgres", "template1").connect(NoTls)?;
    console.simple_query("ENABLE postgres")?;
    client(&cluster, "new")?;
    assert_eq!(refused(&mut console, "DISABLE nowhere"), "3D000");
    Ok(())
}

#[test]
fn a_cancel_of_a_free_backend_leaves_it_as_it_is() -> Result<()> {
    let cluster = with_pool("console-idle-cancel", 1, &[])?;
    let mut console = console(&cluster)?;
    let mut client = client(&cluster, "somebody")?;
    // A client has its answer a moment before its backend lets go of it.
    let idle =
        wait::for_value("the backend is free", || row(&mut console, "SHOW SERVERS", &[("state", "idle")]))?;
    let pid = idle["remote_pid"].clone();
    for _ in 0..3 {
        assert_eq!(cluster.sql(&format!("SELECT pg_cancel_backend({pid})"))?, "t");
        let answered = Doing::start(move || client.simple_query("SELECT 1").map(|_| client));
        client = answered.value()??;
        row(&mut console, "SHOW SERVERS", &[("remote_pid", &pid)])?;
    }
    Ok(())
}
