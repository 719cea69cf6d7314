//! Running `#[pg_test]`s: pgrx's macro turns one into a function of the server and a `#[test]` that calls
//! `pgrx_tests::run_test`. Postern has its own, on this rig, because pgrx's needs cargo-pgrx, which takes minutes to
//! build.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail};
use postgres::Client;
use std::sync::{Mutex, OnceLock};

/// Calls one test function in a transaction that is rolled back. One server serves all tests of the program.
///
/// # Errors
/// When the test fails, or does not fail as `expected_error` says.
pub fn run_test(function: &str, expected_error: Option<&str>, _settings: Vec<&'static str>) -> Result<()> {
    let mut client = server()?.connect()?;
    let outcome = call(&mut client, function);
    match (outcome, expected_error) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(expected)) => bail!("{function} should have failed with: {expected}"),
        (Err(error), expected) => {
            let database = error.as_db_error().map(|e| e.message().to_owned());
            let said = database.unwrap_or_else(|| error.to_string());
            if expected.is_some_and(|expected| said == expected) {
                return Ok(());
            }
            Err(error).with_context(|| format!("{function} failed: {said}"))
        }
    }
}

fn call(client: &mut Client, function: &str) -> Result<(), postgres::Error> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(&format!(
        "CREATE FUNCTION pg_temp.\"{function}\"() RETURNS void LANGUAGE c AS 'postern', '{function}_wrapper'; \
         SELECT pg_temp.\"{function}\"()"
    ))?;
    transaction.rollback()
}

fn server() -> Result<&'static Cluster> {
    static SERVER: OnceLock<Cluster> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_starts_it =
        STARTING.lock().map_err(|_| anyhow::anyhow!("the server for in-server tests did not start"))?;
    if SERVER.get().is_none() {
        let cluster = Cluster::new("in-server")?.start()?;
        cluster.create_extension()?;
        let _ = SERVER.set(cluster);
    }
    SERVER.get().context("just started")
}
