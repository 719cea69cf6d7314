//! The demo's two servers: TCP logins by scram-sha-256, fixed ports, streaming replication with slots.

use crate::INTERRUPTED;
use crate::screen::step;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Ports, Stop};
use pgrx_tests::installation::{Build, install};
use pgrx_tests::wait;
use std::sync::atomic::Ordering;

/// Local logins are the rig's own and the replication's; everybody else comes over TCP with a password.
const HBA: &str = "\
local all postgres trust
local replication postgres trust
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256
host replication postgres 127.0.0.1/32 scram-sha-256
";

pub struct Nodes {
    pub primary: Cluster,
    pub standby: Cluster,
}

impl Nodes {
    pub fn start() -> Result<Self> {
        let primary = step("node1, the primary, on 5500", || {
            let ports = Ports { server: 5500, banner: 5400, http: 5480, agent: 5490, pooler: 6432 };
            let primary = Cluster::on_ports(install(Build::Release)?, "node1", ports)?;
            settle(&primary)?;
            let primary = primary.start()?;
            primary.sql(
                "SET password_encryption = 'scram-sha-256'; ALTER ROLE postgres PASSWORD 'postgres'; \
                 CREATE ROLE app LOGIN PASSWORD 'app'",
            )?;
            primary.sql("CREATE DATABASE shop OWNER app")?;
            let mut shop = primary.config().dbname("shop").connect(postgres::NoTls)?;
            shop.batch_execute(
                "CREATE EXTENSION postern; SET ROLE app; \
                 CREATE TABLE orders (id bigint PRIMARY KEY, node text NOT NULL, at timestamptz DEFAULT now())",
            )?;
            Ok(primary)
        })?;
        let standby = step("node2, a streaming standby by pg_basebackup, on 5501", || {
            let ports = Ports { server: 5501, banner: 5401, http: 5481, agent: 5491, pooler: 6442 };
            let standby = primary.standby_on("node2", ports)?;
            settle(&standby)?;
            set_upstream(&standby, &primary)?;
            let standby = standby.start()?;
            standby.wait_streaming()?;
            Ok(standby)
        })?;
        step("node2 counts as healthy", || {
            wait::until("node2 is healthy", || pgrx_tests::probe::code(standby.http_port, "/replica") == 200)
        })?;
        Ok(Self { primary, standby })
    }

    /// Starts a stopped node as a standby of the other, and waits until it streams and counts as healthy.
    pub fn rejoin(&self, node: &Cluster, of: &Cluster) -> Result<()> {
        node.follow(of)?;
        set_upstream(node, of)?;
        node.start_again()?;
        node.wait_streaming()?;
        wait::until("it counts as healthy", || pgrx_tests::probe::code(node.http_port, "/replica") == 200)
    }

    /// How many of these orders a node has.
    pub fn count_of(&self, node: &Cluster, ids: &[i64]) -> Result<usize> {
        let mut shop = node.config().dbname("shop").connect(postgres::NoTls)?;
        let row = shop.query_one("SELECT count(*) FROM orders WHERE id = ANY ($1)", &[&ids])?;
        Ok(usize::try_from(row.get::<_, i64>(0))?)
    }

    /// A query in `shop` as lines `column: value`.
    pub fn table(&self, node: &Cluster, sql: &str) -> Result<Vec<String>> {
        let mut shop = node.config().dbname("shop").connect(postgres::NoTls)?;
        let messages = shop.simple_query(sql)?;
        let row = messages.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.context("no row")?;
        let names = row.columns().iter().map(|column| column.name());
        Ok(names.enumerate().map(|(i, name)| format!("{name:<14} {}", row.get(i).unwrap_or("-"))).collect())
    }

    pub fn stop(self) -> Result<()> {
        self.standby.stop(Stop::Fast)?;
        self.primary.stop(Stop::Fast)
    }
}

fn settle(node: &Cluster) -> Result<()> {
    node.set("listen_addresses", "localhost")?;
    node.set("fsync", "on")?;
    node.set("max_connections", "120")?;
    node.set("wal_level", "logical")?;
    node.set("max_worker_processes", "16")?;
    node.set("postern.status_listen", &format!("localhost:{}", node.banner_port))?;
    node.set("postern.http_listen", &format!("localhost:{}", node.http_port))?;
    node.set("postern.pooler_listen", &format!("localhost:{}", node.pooler_port))?;
    // 6433 beside 6432, 6443 beside 6442.
    node.set("postern.relay_listen", &format!("localhost:{}", node.pooler_port + 1))?;
    node.set("postern.agent_listen", &format!("localhost:{}", node.agent_port))?;
    node.set_hba(HBA)
}

fn set_upstream(node: &Cluster, of: &Cluster) -> Result<()> {
    let upstream = format!("host=127.0.0.1 port={} user=postgres password=postgres", of.port);
    node.set("primary_conninfo", &upstream).map(drop)
}

/// The demo's ports are promised, so a taken one is said before anything is built or started.
pub fn ports_are_free() -> Result<()> {
    for port in [5400, 5401, 5480, 5481, 5490, 5491, 5500, 5501, 5999, 6432, 6433, 6442, 6443, 9092] {
        ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
        std::net::TcpListener::bind(("127.0.0.1", port))
            .with_context(|| format!("the demo needs port {port}; what uses it now must end first"))?;
    }
    Ok(())
}
