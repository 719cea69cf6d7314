//! Real drivers get right answers: from the server itself, which shows that the scripts are right.

use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::drivers::{node, python, succeeded};
use pgrx_tests::pgbouncer::{Options, Pgbouncer};
use pgrx_tests::{lacking, process, wait};
use rustix::process::Signal;
use std::process::Stdio;

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

#[test]
fn a_libpq_of_protocol_3_2_cancels_by_its_long_key() -> Result<()> {
    if lacking::before(18, "protocol 3.2") {
        return Ok(());
    }
    let cluster = server("long-key")?;
    for port in [cluster.port, cluster.pooler_port] {
        let connection = format!(
            "host=127.0.0.1 port={port} user=postgres dbname=postgres min_protocol_version=3.2 max_protocol_version=3.2"
        );
        let said = cluster.data().join(format!("said-{port}"));
        let mut psql = cluster.program("psql");
        psql.args(["-X", "-d", &connection, "-c", "select pg_sleep(60)"]);
        psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&said)?);
        let mut psql = process::start(psql, Signal::KILL)?;
        let sleeping =
            "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(60)'";
        wait::until("it sleeps", || cluster.sql(sleeping).is_ok_and(|count| count == "1"))?;
        psql.signal(Signal::INT)?;
        let status = psql.wait(wait::LIMIT)?;
        let said = std::fs::read_to_string(&said)?;
        ensure!(
            !status.success() && said.contains("canceling statement due to user request"),
            "{status}: {said}"
        );
    }
    Ok(())
}
