//! Logging in through the pooler: what a client hears is what it hears at the server's own port.

mod changes;
mod hba;
mod hostile;
mod limits;
mod methods;
mod options;
mod raw;
mod system_user;

use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use postgres::{Client, Config, NoTls};
use std::time::Duration;

/// A client at one of the cluster's ports, over TCP.
pub fn at(port: u16, role: &str, database: &str) -> Config {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(role).dbname(database).connect_timeout(Duration::from_secs(20));
    config
}

/// The same over the Unix socket of that port.
fn at_socket(cluster: &Cluster, port: u16, role: &str, database: &str) -> Config {
    let mut config = Config::new();
    config.host_path(cluster.socket_directory()).port(port).user(role).dbname(database);
    config.connect_timeout(Duration::from_secs(20));
    config
}

fn with_password(mut config: Config, password: &str) -> Config {
    config.password(password);
    config
}

/// Logs in and asks who it is: that, or the error in full.
fn said(config: &Config) -> String {
    let asked = config.connect(NoTls).and_then(|mut client| {
        let row = client.query_one("select session_user::text, current_database()::text", &[])?;
        Ok(format!("in as {} to {}", row.get::<_, String>(0), row.get::<_, String>(1)))
    });
    asked.unwrap_or_else(|error| told(&error))
}

/// An error as the server words it, or as the driver does.
fn told(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!(
            "{} {}: {} | {} | {}",
            error.severity(),
            error.code().code(),
            error.message(),
            error.detail().unwrap_or_default(),
            error.hint().unwrap_or_default()
        ),
        None => format!("{error:#}"),
    }
}

/// The SQLSTATE of a failed attempt; empty when it did not fail.
fn code(config: &Config) -> String {
    match config.connect(NoTls).and_then(|mut client| client.simple_query("select 1").map(drop)) {
        Ok(()) => String::new(),
        Err(error) => error.code().map_or_else(|| told(&error), |code| code.code().to_owned()),
    }
}

/// Waits until an attempt says what it should.
fn until_said(config: &Config, wanted: &str) -> Result<()> {
    let mut last = String::new();
    wait::until(wanted, || {
        last = said(config);
        last.contains(wanted)
    })
    .with_context(|| last)
}

/// The backend that serves a client now.
fn backend(client: &mut Client) -> Result<i32> {
    Ok(client.query_one("select pg_backend_pid()", &[])?.get(0))
}

/// How often the log says something.
fn times(cluster: &Cluster, text: &str) -> usize {
    cluster.log().matches(text).count()
}
