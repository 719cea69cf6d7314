//! The rig itself: what it starts never outlives it.

use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{process, wait};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Makes [`holds_a_server`] do so.
const HOLD: &str = "POSTERN_TEST_HOLD";

#[test]
fn a_panic_ends_the_server_and_removes_its_files() -> Result<()> {
    let (tell, told) = channel();
    let test = std::thread::spawn(move || {
        let cluster = Cluster::new("panics").unwrap().start().unwrap();
        tell.send((cluster.pid().unwrap(), cluster.data(), cluster.socket_directory().to_owned())).unwrap();
        panic!("on purpose");
    });
    assert!(test.join().is_err());
    let (pid, data, sockets) = told.recv()?;
    assert!(!process::is_running(pid));
    assert!(!data.exists() && !sockets.exists());
    Ok(())
}

#[test]
fn a_killed_program_takes_its_servers_along() -> Result<()> {
    let mut program = Command::new(std::env::current_exe()?)
        .args(["--exact", "rig::holds_a_server", "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(program.stdout.take().context("stdout")?);
    let line =
        output.lines().map_while(Result::ok).find(|l| l.contains("holding ")).context("it has started")?;
    let mut words = line.split("holding ").nth(1).context("a line")?.split_whitespace();
    let pid: i32 = words.next().context("a pid")?.parse()?;
    let data = PathBuf::from(words.next().context("a path")?);
    program.kill()?;
    program.wait()?;
    wait::until("the server has ended", || !process::is_running(pid))?;
    // Its files are swept by the next program that makes a cluster.
    let _next = Cluster::new("sweeps")?;
    assert!(!data.exists());
    Ok(())
}

/// Part of the test above, in a program of its own; by itself it does nothing.
#[test]
fn holds_a_server() -> Result<()> {
    if std::env::var_os(HOLD).is_some() {
        let cluster = Cluster::new("held")?.start()?;
        println!("holding {} {}", cluster.pid()?, cluster.data().display());
        std::thread::sleep(Duration::from_secs(60));
    }
    Ok(())
}
