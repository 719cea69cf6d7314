//! The listen-only port: clients that listen without a server connection.

use crate::pooling::with_pool;
use crate::relay::{Client, note};
use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::Target;
use pgrx_tests::{ports, wait};

/// A server with the port open, and the port.
fn with_port(name: &str, settings: &[(&str, &str)]) -> Result<(Cluster, u16)> {
    let port = ports::free()?;
    let address = format!("127.0.0.1:{port}");
    let mut all = vec![("postern.relay_listen", &address[..])];
    all.extend(settings);
    let cluster = with_pool(name, 2, &all)?;
    cluster.sql("CREATE EXTENSION postern")?;
    listens(port)?;
    Ok((cluster, port))
}

fn listens(port: u16) -> Result<()> {
    let open = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    wait::until("the listen-only port is open", open)
}

fn listener(port: u16) -> Result<Client> {
    Client::open(&Target::tcp(port), "postgres", "postgres")
}

/// Server connections that the pooler has opened.
fn servers(cluster: &Cluster) -> Result<String> {
    cluster.sql("SELECT count(*) FROM postern.servers")
}

/// The error that a query is answered with.
fn error(client: &mut Client, sql: &str) -> Result<String> {
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
    assert_eq!(servers(&cluster)?, "1", "the pooled client's");
    let refused = error(&mut a, "SELECT * FROM pg_class")?;
    let named = format!("127.0.0.1:{}", cluster.pooler_port);
    ensure!(refused.contains("0A000") && refused.contains(&named), "{refused}");
    Ok(())
}
