//! Real drivers get right answers: from the server itself, which shows that the scripts are right.

use anyhow::Result;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::drivers::{node, python, succeeded};
use pgrx_tests::pgbouncer::{Options, Pgbouncer};

/// The scripts for psycopg 3.
pub const PSYCOPG: [&str; 4] =
    ["psycopg_session.py", "psycopg_prepared.py", "psycopg_copy.py", "psycopg_crowd.py"];

/// The scripts for node-postgres.
pub const NODE_POSTGRES: [&str; 2] = ["pg_session.js", "pg_pool.js"];

/// Runs every script of psycopg 3 against what listens on a port of this machine.
pub fn psycopg_is_served(port: u16) -> Result<()> {
    for script in PSYCOPG {
        succeeded(script, &python(script, &["127.0.0.1", &port.to_string()])?)?;
    }
    Ok(())
}

/// Runs every script of node-postgres against what listens on a port of this machine.
pub fn node_postgres_is_served(port: u16) -> Result<()> {
    for script in NODE_POSTGRES {
        succeeded(script, &node(script, &["127.0.0.1", &port.to_string()])?)?;
    }
    Ok(())
}

fn server(name: &str) -> Result<Cluster> {
    let server = Cluster::new(name)?;
    server.set("max_connections", "80")?;
    server.start()
}

#[test]
fn psycopg_is_served_by_the_server_itself() -> Result<()> {
    psycopg_is_served(server("psycopg")?.port)
}

#[test]
fn node_postgres_is_served_by_the_server_itself() -> Result<()> {
    node_postgres_is_served(server("node-postgres")?.port)
}

#[test]
fn the_crowd_notices_a_pooler_that_mixes_settings_up() -> Result<()> {
    let server = server("mixed-up")?;
    let bouncer = Pgbouncer::start(&server, &Options::default())?;
    let output = python("psycopg_crowd.py", &["127.0.0.1", &bouncer.port.to_string()])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("settings of client"), "{said}");
    Ok(())
}
