//! SYSTEM_USER (PostgreSQL 16 and later): how the client has shown who it is, and not how its pool's connections have.

use super::{at, at_socket, backend, with_password};
use anyhow::Result;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::lacking;
use postgres::{Client, NoTls};

fn system_user(client: &mut Client) -> Result<Option<String>> {
    Ok(client.query_one("select system_user", &[])?.get(0))
}

#[test]
fn each_of_two_clients_of_one_backend_is_the_user_that_it_has_shown() -> Result<()> {
    if lacking::before(16, "SYSTEM_USER") {
        return Ok(());
    }
    let cluster = Cluster::new("system-user")?;
    cluster.set_hba(
        "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
    )?;
    cluster.set("postern.pool_size", "1")?;
    let cluster = cluster.start()?;
    cluster.sql("create role clerk login password 'secret'")?;
    let shown = |port| with_password(at(port, "clerk", "postgres"), "secret");
    let mut directly = shown(cluster.port).connect(NoTls)?;
    assert_eq!(system_user(&mut directly)?.as_deref(), Some("scram-sha-256:clerk"));
    let mut trusted = at_socket(&cluster, cluster.pooler_port, "clerk", "postgres").connect(NoTls)?;
    assert_eq!(system_user(&mut trusted)?, None, "as directly");
    let mut shown = shown(cluster.pooler_port).connect(NoTls)?;
    assert_eq!(backend(&mut shown)?, backend(&mut trusted)?);
    for _ in 0..10 {
        assert_eq!(system_user(&mut shown)?.as_deref(), Some("scram-sha-256:clerk"));
        // The server has no way back to null: see the README.
        assert_eq!(system_user(&mut trusted)?.as_deref(), Some(""));
    }
    Ok(())
}
