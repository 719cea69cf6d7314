//! The pooler with real clients.

use anyhow::Result;
use pgrx_tests::cluster::Cluster;

/// A session through the front, as superuser to database `postgres`, over TCP.
fn through(cluster: &Cluster) -> postgres::Config {
    let mut config = cluster.config();
    config = config.clone();
    let mut through = postgres::Config::new();
    through.host("127.0.0.1").port(cluster.pooler_port).user("postgres").dbname("postgres");
    through.connect_timeout(std::time::Duration::from_secs(5));
    let _ = &mut config;
    through
}

#[test]
fn a_query_passes_through_the_front() -> Result<()> {
    let cluster = Cluster::new("front")?.start()?;
    let mut client = through(&cluster).connect(postgres::NoTls)?;
    let row = client.query_one("select 40 + $1::int", &[&2])?;
    assert_eq!(row.get::<_, i32>(0), 42);
    Ok(())
}
