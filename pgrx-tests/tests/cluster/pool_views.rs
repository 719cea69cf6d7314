//! The pooler in SQL and in metrics: what the views show of pools, clients and server connections, and what an administrator can do.

use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{lacking, probe, wait};
use postgres::error::SqlState;
use postgres::{Client, NoTls};
use std::time::Duration;

fn started(name: &str) -> Result<Cluster> {
    with_pool_size(name, 20)
}

fn with_pool_size(name: &str, size: u32) -> Result<Cluster> {
    let cluster = Cluster::new(name)?;
    cluster.set("postern.pool_size", &size.to_string())?;
    let cluster = cluster.start()?;
    cluster.create_extension()?;
    Ok(cluster)
}

/// A client of the pooler over TCP, by name.
fn through(cluster: &Cluster, name: &str) -> Result<Client> {
    Ok(cluster.through("postgres", "postgres").application_name(name).connect(NoTls)?)
}

/// Waits until a query on the server itself gives a text.
fn shows(cluster: &Cluster, query: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    wait::until(&format!("{query} shows {wanted:?}"), || {
        last = cluster.sql(query).unwrap_or_else(|error| format!("{error:?}"));
        last == wanted
    })
    .with_context(|| format!("it shows {last:?}"))
}

/// Waits until `postern.clients` has such values of a client.
fn client_shows(cluster: &Cluster, name: &str, columns: &str, wanted: &str) -> Result<()> {
    shows(
        cluster,
        &format!("SELECT {columns} FROM postern.clients WHERE application_name = '{name}'"),
        wanted,
    )
}

fn pid_of(cluster: &Cluster, name: &str) -> Result<i32> {
    Ok(cluster.sql(&format!("SELECT pid FROM postern.clients WHERE application_name = '{name}'"))?.parse()?)
}

fn backend_of(client: &mut Client) -> Result<i32> {
    Ok(client.query_one("SELECT pg_backend_pid()", &[])?.get(0))
}

fn is_ended_by_administrator(error: &postgres::Error) -> bool {
    error.code() == Some(&SqlState::ADMIN_SHUTDOWN)
}

#[test]
fn a_client_is_shown_idle_and_active_with_its_backend() -> Result<()> {
    let cluster = with_pool_size("shown", 1)?;
    let mut shop = through(&cluster, "shop")?;
    let columns = "database, role, state, client_addr, client_port > 0, tls, pinned_by, transactions";
    client_shows(&cluster, "shop", columns, "postgres|postgres|idle|127.0.0.1|t|f|{}|0")?;
    let mut transaction = shop.transaction()?;
    let backend: i32 = transaction.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    client_shows(&cluster, "shop", "state, server_pid", &format!("active|{backend}"))?;
    let pair = "SELECT s.state, c.application_name FROM postern.servers s JOIN postern.clients c \
                ON c.pid = s.client_pid AND c.server_pid = s.pid";
    shows(&cluster, pair, "active|shop")?;
    shows(&cluster, "SELECT clients, clients_active, servers, servers_active FROM postern.pools", "1|1|1|1")?;
    transaction.commit()?;
    client_shows(&cluster, "shop", "state, transactions", "idle|1")?;
    client_shows(&cluster, "shop", "connected_at <= state_since AND state_since <= now()", "t")?;
    let pool = "SELECT database, role, pool_mode, size, clients, clients_active, clients_waiting, servers, paused, \
                transactions, swaps FROM postern.pools";
    shows(&cluster, pool, "postgres|postgres|transaction|1|1|0|0|1|f|1|0")?;
    let mut other = through(&cluster, "other")?;
    other.batch_execute("SELECT 1")?;
    shop.batch_execute("SELECT 1")?;
    shows(
        &cluster,
        "SELECT clients, servers, transactions, assignments >= 3, swaps >= 1 FROM postern.pools",
        "2|1|3|t|t",
    )?;
    drop((other, shop));
    shows(&cluster, "SELECT count(*) FROM postern.clients", "0")?;
    // As a session of the server's own that has nothing to do.
    let waits =
        format!("SELECT state, wait_event_type, wait_event FROM pg_stat_activity WHERE pid = {backend}");
    shows(&cluster, &waits, "idle|Client|ClientRead")?;
    shows(&cluster, "SELECT clients, logins_done, worker_problem FROM postern.pooler", "0|2|")
}

#[test]
fn a_client_of_the_unix_socket_has_no_address() -> Result<()> {
    let cluster = started("socket")?;
    let mut config = postgres::Config::new();
    config
        .host_path(cluster.socket_directory())
        .port(cluster.pooler_port)
        .user("postgres")
        .dbname("postgres");
    let _local = config.application_name("local").connect(NoTls)?;
    client_shows(&cluster, "local", "client_addr IS NULL AND client_port IS NULL, state", "t|idle")
}

#[test]
fn what_pins_a_client_is_shown_until_it_is_gone() -> Result<()> {
    if lacking::in_server("contrib modules") {
        return Ok(());
    }
    let cluster = with_pool_size("pins", 1)?;
    let mut client = through(&cluster, "pinned")?;
    for (pin, unpin, name) in [
        ("CREATE TEMP TABLE t (a int)", "DROP TABLE t", "temporary objects"),
        ("SELECT pg_advisory_lock(1)", "SELECT pg_advisory_unlock(1)", "advisory locks"),
        ("SET postern.pool_mode = session", "RESET postern.pool_mode", "session mode"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "CLOSE c", "cursors with hold"),
        ("PREPARE n AS SELECT 'now'::timestamptz", "DEALLOCATE n", "statement with a value of its moment"),
    ] {
        client.batch_execute(pin)?;
        client_shows(&cluster, "pinned", "array_to_string(pinned_by, ','), state", &format!("{name}|idle"))?;
        shows(&cluster, "SELECT state FROM postern.servers", "pinned")?;
        shows(&cluster, "SELECT servers_pinned, clients_active FROM postern.pools", "1|0")?;
        client.batch_execute(unpin)?;
        client_shows(&cluster, "pinned", "pinned_by", "{}")?;
        shows(&cluster, "SELECT servers_pinned FROM postern.pools", "0")?;
    }
    drop(client);
    // What nothing takes back goes with the client, and its backend with it.
    for (pin, name) in [
        ("LOAD 'auto_explain'", "loaded library"),
        ("SELECT setseed(0.5)", "random seed"),
        ("SET seed = 0.5", "random seed"),
    ] {
        let mut client = through(&cluster, "pinned for good")?;
        client.batch_execute(pin)?;
        let pinned = format!("{name}|idle");
        client_shows(&cluster, "pinned for good", "array_to_string(pinned_by, ','), state", &pinned)?;
        let backend = backend_of(&mut client)?;
        client.batch_execute("SELECT 1")?;
        client_shows(&cluster, "pinned for good", "array_to_string(pinned_by, ','), state", &pinned)?;
        shows(&cluster, "SELECT pid, state FROM postern.servers", &format!("{backend}|pinned"))?;
        drop(client);
        shows(&cluster, &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {backend}"), "0")?;
    }
    Ok(())
}

#[test]
fn who_waits_is_shown_with_how_long() -> Result<()> {
    let cluster = with_pool_size("waits", 1)?;
    let (mut first, mut second) = (through(&cluster, "first")?, through(&cluster, "second")?);
    let mut busy = first.transaction()?;
    busy.batch_execute("SELECT 1")?;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| second.batch_execute("SELECT 1"));
        let shown = client_shows(&cluster, "second", "state", "waiting").and_then(|()| {
            let pool = "SELECT clients_waiting, max_wait > '0', servers, servers_active FROM postern.pools";
            shows(&cluster, pool, "1|t|1|1")
        });
        let waited = !waiting.is_finished();
        busy.commit()?;
        waiting.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        assert!(waited, "it waits for the only server connection");
        shown
    })?;
    // Not the wait of before.
    client_shows(&cluster, "second", "state", "idle")?;
    shows(&cluster, "SELECT clients_waiting, max_wait IS NULL, wait > '0' FROM postern.pools", "0|t|t")
}

#[test]
fn kill_ends_an_idle_and_a_busy_client_and_nobody_else() -> Result<()> {
    let cluster = started("kill")?;
    let mut idle = through(&cluster, "idle")?;
    idle.batch_execute("SELECT 1")?;
    let mut bystander = through(&cluster, "bystander")?;
    bystander.batch_execute("SELECT 1")?;
    client_shows(&cluster, "idle", "state", "idle")?;
    assert_eq!(cluster.sql(&format!("SELECT postern.kill({})", pid_of(&cluster, "idle")?))?, "t");
    shows(&cluster, "SELECT count(*) FROM postern.clients WHERE application_name = 'idle'", "0")?;
    let error = idle.batch_execute("SELECT 1").unwrap_err();
    assert!(is_ended_by_administrator(&error), "{error:?}");

    // psql reads what it is told before it looks whether the connection has ended.
    let mut psql = cluster.program("psql");
    let port = cluster.pooler_port;
    psql.arg(format!("host=127.0.0.1 port={port} user=postgres dbname=postgres application_name=busy"));
    psql.args(["-X", "-v", "VERBOSITY=verbose", "-c", "SELECT pg_sleep(600)"]);
    let sleeping = std::thread::spawn(move || psql.output());
    shows(
        &cluster,
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'busy' AND wait_event = 'PgSleep'",
        "1",
    )?;
    assert_eq!(cluster.sql(&format!("SELECT postern.kill({})", pid_of(&cluster, "busy")?))?, "t");
    wait::until("the busy client is ended", || sleeping.is_finished())?;
    let output = sleeping.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("FATAL:  57P01: terminating connection due to administrator command"), "{said}");
    shows(&cluster, "SELECT string_agg(application_name, ',') FROM postern.clients", "bystander")?;
    assert!(backend_of(&mut bystander)? > 0);
    Ok(())
}

#[test]
fn kill_ends_clients_that_stay_or_are_pinned() -> Result<()> {
    let cluster = with_pool_size("staying", 2)?;
    let (mut first, mut second) = (through(&cluster, "first")?, through(&cluster, "second")?);
    let (mut one, mut two) = (first.transaction()?, second.transaction()?);
    one.batch_execute("SELECT 1")?;
    two.batch_execute("SELECT 1")?;
    one.commit()?;
    shows(&cluster, "SELECT servers_idle, servers_active FROM postern.pools", "1|1")?;
    two.commit()?;
    shows(&cluster, "SELECT servers_idle, servers_staying FROM postern.pools", "1|1")?;
    let backends = cluster.sql("SELECT array_agg(pid ORDER BY pid) FROM postern.servers")?;
    assert_eq!(cluster.sql(&format!("SELECT postern.kill({})", pid_of(&cluster, "second")?))?, "t");
    shows(&cluster, "SELECT string_agg(application_name, ',') FROM postern.clients", "first")?;
    let error = second.batch_execute("SELECT 1").unwrap_err();
    assert!(is_ended_by_administrator(&error), "{error:?}");
    assert_eq!(cluster.sql("SELECT array_agg(pid ORDER BY pid) FROM postern.servers")?, backends);

    first.batch_execute("SELECT pg_advisory_lock(1)")?;
    client_shows(&cluster, "first", "pinned_by", "{\"advisory locks\"}")?;
    assert_eq!(cluster.sql(&format!("SELECT postern.kill({})", pid_of(&cluster, "first")?))?, "t");
    shows(&cluster, "SELECT count(*) FROM postern.clients", "0")?;
    let error = first.batch_execute("SELECT 1").unwrap_err();
    assert!(is_ended_by_administrator(&error), "{error:?}");
    shows(&cluster, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0")
}

#[test]
fn kill_finds_a_client_that_moves_between_backends() -> Result<()> {
    let cluster = with_pool_size("moving", 2)?;
    let clients = (0..6).map(|n| through(&cluster, &format!("mover {n}"))).collect::<Result<Vec<_>>>()?;
    let moving: Vec<_> = clients
        .into_iter()
        .map(|mut client| std::thread::spawn(move || while client.batch_execute("SELECT 1").is_ok() {}))
        .collect();
    let mut spared = through(&cluster, "spared")?;
    for (n, killed) in moving.iter().enumerate() {
        let pid = pid_of(&cluster, &format!("mover {n}"))?;
        assert_eq!(cluster.sql(&format!("SELECT postern.kill({pid})"))?, "t");
        client_shows(&cluster, &format!("mover {n}"), "pid", "")?;
        wait::until("it has ended", || killed.is_finished())?;
        let others = moving[n + 1..].iter().filter(|client| client.is_finished()).count();
        assert_eq!(others, 0, "a client that was not meant has ended");
        spared.batch_execute("SELECT 1")?;
    }
    shows(&cluster, "SELECT string_agg(application_name, ',') FROM postern.clients", "spared")
}

#[test]
fn kill_refuses_what_is_no_client() -> Result<()> {
    let cluster = started("nobody")?;
    let _client = through(&cluster, "somebody")?;
    assert_eq!(cluster.sql(&format!("SELECT postern.kill({})", 0x4000_0000 + 77))?, "f");
    assert_eq!(cluster.sql(&format!("SELECT postern.kill({})", 0x4fff_ffff))?, "f");
    let error = format!("{:?}", cluster.sql("SELECT postern.kill(pg_backend_pid())").unwrap_err());
    assert!(error.contains("is not the pid of a client of the pooler"), "{error}");
    Ok(())
}

#[test]
fn a_pause_keeps_clients_waiting_until_resume() -> Result<()> {
    let cluster = started("pause")?;
    let mut client = through(&cluster, "paused")?;
    let before = backend_of(&mut client)?;
    assert_eq!(cluster.sql("SELECT postern.pause('elsewhere'), postern.pause(role => 'nobody')")?, "0|0");
    assert_eq!(cluster.sql("SELECT postern.pause('postgres')")?, "1");
    shows(&cluster, "SELECT paused, servers FROM postern.pools", "t|0")?;
    let waiting = std::thread::spawn(move || backend_of(&mut client));
    let newcomer = {
        let config = cluster.through("postgres", "postgres");
        std::thread::spawn(move || config.connect(NoTls).map(drop))
    };
    shows(&cluster, "SELECT paused, clients, clients_waiting, servers FROM postern.pools", "t|2|2|0")?;
    assert!(!waiting.is_finished() && !newcomer.is_finished());
    assert_eq!(cluster.sql("SELECT postern.resume('elsewhere')")?, "0");
    assert_eq!(cluster.sql("SELECT postern.resume()")?, "1");
    wait::until_within(Duration::from_secs(10), "they are served", || {
        waiting.is_finished() && newcomer.is_finished()
    })?;
    let after = waiting.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    newcomer.join().map_err(|_| anyhow::anyhow!("the newcomer panicked"))??;
    assert_ne!(before, after, "the server connections were closed");
    shows(&cluster, "SELECT paused FROM postern.pools", "f")
}

#[test]
fn a_pause_lets_a_transaction_end_first() -> Result<()> {
    let cluster = started("gentle")?;
    let mut client = through(&cluster, "busy")?;
    let mut transaction = client.transaction()?;
    transaction.batch_execute("SELECT 1")?;
    cluster.sql("SELECT postern.pause()")?;
    transaction.batch_execute("SELECT 2")?;
    shows(&cluster, "SELECT state, retiring FROM postern.servers", "active|t")?;
    transaction.commit()?;
    shows(&cluster, "SELECT count(*) FROM postern.servers", "0")?;
    cluster.sql("SELECT postern.resume()")?;
    client.batch_execute("SELECT 3")?;
    Ok(())
}

#[test]
fn reconnect_gives_clients_new_backends() -> Result<()> {
    let cluster = with_pool_size("reconnect", 1)?;
    let mut client = through(&cluster, "client")?;
    let before = backend_of(&mut client)?;
    assert_eq!(cluster.sql("SELECT postern.reconnect('postgres', 'postgres')")?, "1");
    let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {before}");
    shows(&cluster, &gone, "0")?;
    let after = backend_of(&mut client)?;
    assert_ne!(before, after);
    shows(&cluster, "SELECT servers_idle FROM postern.pools", "1")?;
    assert_eq!(cluster.sql("SELECT postern.disconnect_idle()")?, "1");
    shows(&cluster, "SELECT count(*) FROM postern.servers", "0")?;
    // A server connection that has a client is not idle.
    let mut transaction = client.transaction()?;
    transaction.batch_execute("SELECT 1")?;
    assert_eq!(cluster.sql("SELECT postern.disconnect_idle()")?, "0");
    transaction.commit()?;
    Ok(())
}

#[test]
fn monitors_read_superusers_act_and_others_do_neither() -> Result<()> {
    let cluster = started("rights")?;
    cluster.sql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE ROLE stranger LOGIN")?;
    let as_role = |role: &str| cluster.config().user(role).connect(NoTls);
    let (mut watcher, mut stranger) = (as_role("watcher")?, as_role("stranger")?);
    let refused = |outcome: Result<(), postgres::Error>| {
        outcome.is_err_and(|error| error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE))
    };
    for view in ["pooler", "pools", "clients", "servers"] {
        watcher.batch_execute(&format!("SELECT * FROM postern.{view}"))?;
        assert!(refused(stranger.batch_execute(&format!("SELECT * FROM postern.{view}"))), "{view}");
    }
    for call in ["pause()", "resume()", "reconnect()", "disconnect_idle()", "kill(1073741824)"] {
        assert!(refused(watcher.batch_execute(&format!("SELECT postern.{call}"))), "{call}");
        assert!(refused(stranger.batch_execute(&format!("SELECT postern.{call}"))), "{call}");
        cluster.sql(&format!("SELECT postern.{call}"))?;
    }
    Ok(())
}

#[test]
fn the_metrics_have_every_pool_and_promtool_accepts_them() -> Result<()> {
    let cluster = with_pool_size("metrics", 1)?;
    cluster.sql("CREATE ROLE \"o'dd \"\"role\\\" LOGIN SUPERUSER")?;
    let _odd = cluster.through("o'dd \"role\\", "postgres").connect(NoTls)?;
    let mut client = through(&cluster, "client")?;
    client.batch_execute("SELECT 1")?;
    client_shows(&cluster, "client", "transactions", "1")?;
    shows(&cluster, "SELECT servers_idle FROM postern.pools WHERE role = 'postgres'", "1")?;
    let text = probe::get(cluster.http_port, "/metrics")?.body;
    crate::http::promtool_accepts(&text)?;
    let pool = "database=\"postgres\",role=\"postgres\"";
    for line in [
        format!("postern_pooler_clients{{{pool}}} 1"),
        format!("postern_pooler_clients_waiting{{{pool}}} 0"),
        format!("postern_pooler_transactions_total{{{pool}}} 1"),
        format!("postern_pooler_servers{{{pool},state=\"idle\"}} 1"),
        format!("postern_pooler_servers_max{{{pool}}} 1"),
        "postern_pooler_clients{database=\"postgres\",role=\"o'dd \\\"role\\\\\"} 1".to_owned(),
        "postern_pooler_logins_total 2".to_owned(),
        "postern_pooler_logins_failed_total 0".to_owned(),
        "postern_pooler_worker_starts_total 1".to_owned(),
        format!("postern_pooler_listening{{listener=\"127.0.0.1:{}\"}} 1", cluster.pooler_port),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    assert!(text.contains("postern_pooler_clients_max "), "{text}");
    Ok(())
}

#[test]
fn the_pooler_without_a_worker_slot_says_so_and_the_status_worker_runs() -> Result<()> {
    let cluster = Cluster::new("one_slot")?;
    cluster.set("max_worker_processes", "1")?.set("max_logical_replication_workers", "0")?;
    let cluster = cluster.start()?;
    cluster.create_extension()?;
    assert_eq!(cluster.sql("SELECT worker_problem IS NULL FROM postern.status")?, "t");
    let problem = cluster.sql("SELECT worker_problem FROM postern.pooler")?;
    assert!(problem.contains("raise max_worker_processes"), "{problem}");
    assert_eq!(cluster.sql("SELECT count(*) FROM postern.pools, postern.clients, postern.servers")?, "0");
    assert_eq!(probe::code(cluster.http_port, "/metrics"), 200);
    Ok(())
}
