//! What listeners hear when relays, fronts and databases come and go, and when a client does not read or vanishes.

use crate::pooling::with_pool;
use crate::relay::Client;
use anyhow::Result;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::Target;
use pgrx_tests::wait;

/// How many relay workers there are.
fn relays(cluster: &Cluster) -> String {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postern relay'";
    cluster.sql(sql).unwrap_or_default()
}

fn listener(cluster: &Cluster, database: &str, channel: &str) -> Result<Client> {
    let mut client = Client::open(&Target::tcp(cluster.pooler_port), "postgres", database)?;
    client.query(&format!("LISTEN {channel}"))?;
    Ok(client)
}

/// Has the pooler's worker ended, and waits for the next one.
fn new_front(cluster: &Cluster) -> Result<()> {
    let front = cluster.front_pid()?;
    cluster.sql(&format!("SELECT pg_terminate_backend({front})"))?;
    let port = Target::tcp(cluster.pooler_port);
    wait::until("there is a new front", || {
        cluster.front_pid().is_ok_and(|pid| pid != front)
            && Client::open(&port, "postgres", "postgres").is_ok()
    })
}

#[test]
fn the_relay_of_a_front_that_has_ended_gives_the_next_ones_clients_nothing() -> Result<()> {
    let cluster = with_pool("relay_fronts", 2, &[])?;
    cluster.sql("CREATE DATABASE other")?;
    let _before = listener(&cluster, "postgres", "secret")?;
    new_front(&cluster)?;
    // The first channel of the first database, as the other was.
    let mut after = listener(&cluster, "other", "news")?;
    cluster.sql("NOTIFY secret, 'of another database'")?;
    after.hears_nothing()?;
    // Nor twice what it is to hear.
    let mut again = listener(&cluster, "postgres", "secret")?;
    cluster.sql("NOTIFY secret, 'once'")?;
    again.next(1)?;
    again.hears_nothing()?;
    wait::until("there is a relay for each database", || relays(&cluster) == "2")?;
    Ok(())
}
