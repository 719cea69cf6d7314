//! The relay's limits, each at the limit; standbys.

use crate::pooling::with_pool;
use crate::relay::Client;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::probe;
use pgrx_tests::script::connection::{Received, Target};
use pgrx_tests::wait;

/// The error of a command that fails.
fn error(client: &mut Client, sql: &str) -> Result<String> {
    client.try_query(sql)?.1.with_context(|| format!("{sql} works"))
}

fn at_the_limit(setting: &str) -> Result<()> {
    let cluster = with_pool("relay_limit", 2, &[(setting, "2")])?;
    let (mut a, mut b) = (Client::through(&cluster)?, Client::through(&cluster)?);
    a.query("LISTEN a; LISTEN b")?;
    b.query("BEGIN; CREATE TABLE undone ()")?;
    b.query("LISTEN c")?;
    let said = error(&mut b, "COMMIT")?;
    ensure!(said.contains("C53400") && said.contains(setting), "{said}");
    ensure!(cluster.sql("SELECT to_regclass('undone') IS NULL")? == "t", "the transaction has committed");
    cluster.sql("NOTIFY c; NOTIFY a")?;
    a.next(1)?;
    b.hears_nothing()?;
    a.query("UNLISTEN b")?;
    wait::until("there is room again", || b.try_query("LISTEN c").is_ok_and(|(_, error)| error.is_none()))?;
    cluster.sql("NOTIFY c")?;
    b.next(1)?;
    a.hears_nothing()
}

#[test]
fn one_channel_too_many_is_an_error_that_names_the_setting() -> Result<()> {
    at_the_limit("postern.relay_max_channels")
}

#[test]
fn one_listen_too_many_is_an_error_that_names_the_setting() -> Result<()> {
    at_the_limit("postern.relay_max_listens")
}

#[test]
fn without_a_place_for_its_worker_a_listen_is_an_error_that_names_the_setting() -> Result<()> {
    // The launcher of logical replication and Postern's own two.
    let cluster = with_pool("relay_workers", 2, &[("max_worker_processes", "3")])?;
    let mut client = Client::through(&cluster)?;
    for _ in 0..2 {
        let said = error(&mut client, "LISTEN a")?;
        ensure!(said.contains("C53400") && said.contains("max_worker_processes"), "{said}");
        client.query("SELECT 1")?;
    }
    Ok(())
}

/// With a small ring or a small backlog: who does not read is ended and counted, the others get everything.
fn too_slow(name: &str, settings: &[(&str, &str)]) -> Result<()> {
    let cluster = with_pool(name, 2, settings)?;
    cluster.create_extension()?;
    let mut deaf = Client::through(&cluster)?;
    deaf.query("LISTEN flood")?;
    let mut other = Client::through(&cluster)?;
    other.query("LISTEN flood")?;
    let mut notifier = cluster.connect()?;
    let mut sent = 0;
    wait::until("the one that does not read is ended", || {
        // Less than the ring holds at a time, so that who reads is not too slow.
        let few = notifier.batch_execute(
            "SELECT count(pg_notify('flood', repeat('x', 3000) || g)) FROM generate_series(1, 10) g",
        );
        sent += 10;
        few.is_ok()
            && other.wait_for(sent).is_ok()
            && cluster.sql("SELECT too_slow FROM postern.relay").is_ok_and(|count| count == "1")
    })?;
    loop {
        match deaf.connection.receive(wait::LIMIT)? {
            Received::Message { tag: b'E', body } => {
                let said = String::from_utf8_lossy(&body).replace('\0', " ");
                ensure!(said.contains("CPN001"), "{said}");
                break;
            }
            Received::Message { .. } => {}
            // What it has been sent half of cannot be followed by words.
            Received::Closed { unfinished } => {
                ensure!(!unfinished.is_empty(), "closed without a word");
                break;
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    other.query("SELECT 1")?;
    ensure!(other.notifications.len() == sent);
    Ok(())
}

#[test]
fn who_does_not_read_what_a_small_ring_holds_is_ended_and_counted() -> Result<()> {
    too_slow("relay_ring", &[("postern.relay_ring_size", "64kB")])
}

#[test]
fn who_is_further_behind_than_allowed_is_ended_and_counted() -> Result<()> {
    too_slow("relay_backlog", &[("postern.relay_max_backlog", "64kB")])
}

#[test]
fn how_far_somebody_is_behind_is_shown_until_all_is_read() -> Result<()> {
    let cluster = with_pool("relay_behind", 2, &[])?;
    cluster.create_extension()?;
    let mut slow = Client::through(&cluster)?;
    slow.query("LISTEN flood")?;
    let mut notifier = cluster.connect()?;
    let metric = |name: &str| probe::metric(&probe::get(cluster.http_port, "/metrics")?.body, name);
    let mut sent = 0;
    wait::until("it does not take what it is sent", || {
        let some = notifier.batch_execute(
            "SELECT count(pg_notify('flood', repeat('x', 7000) || g)) FROM generate_series(1, 20) g",
        );
        sent += 20;
        some.is_ok() && metric("postern_relay_backlog_bytes ").is_ok_and(|behind| behind > 1e5)
    })?;
    ensure!(metric("postern_relay_clients_behind ")? == 1.0);
    let shown =
        cluster.sql("SELECT clients_behind, backlog > 100000 AND backlog < ring_size FROM postern.relay")?;
    ensure!(shown == "1|t", "{shown}");
    slow.wait_for(sent)?;
    wait::until("nobody is behind", || {
        metric("postern_relay_clients_behind ").is_ok_and(|count| count == 0.0)
            && metric("postern_relay_backlog_bytes ").is_ok_and(|behind| behind == 0.0)
    })?;
    slow.query("SELECT 1")?;
    ensure!(slow.notifications.len() == sent);
    Ok(())
}

#[test]
fn on_a_standby_listen_fails_as_with_the_server_and_works_after_its_promotion() -> Result<()> {
    let primary = Cluster::new("relay_primary")?.start()?;
    let standby = primary.standby("relay_standby")?.start()?;
    standby.wait_streaming()?;
    let open = |port| Client::open(&Target::tcp(port), "postgres", "postgres");
    let mut through = open(standby.pooler_port)?;
    for sql in ["LISTEN a", "NOTIFY a", "UNLISTEN a"] {
        let [direct, pooled] = [open(standby.port)?, open(standby.pooler_port)?].map(|mut client| {
            // Where in the server's source it is raised may differ.
            client
                .try_query(sql)
                .map(|(tags, error)| (tags, error.map(|e| e.split(" F").next().map(str::to_owned))))
        });
        let (direct, pooled) = (direct?, pooled?);
        ensure!(direct == pooled, "{sql}: directly {direct:?}, through the pooler {pooled:?}");
    }
    ensure!(error(&mut through, "LISTEN a")?.contains("C25006"));
    standby.promote()?;
    through.query("LISTEN a")?;
    through.query("NOTIFY a, 'promoted'")?;
    through.next(1).map(drop)
}
