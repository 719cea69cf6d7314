//! The agent line on a socket, and what a real haproxy makes of it. PARITY row S6.

use anyhow::Result;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::haproxy::Haproxy;
use pgrx_tests::{ports, probe, wait};
use std::io::{Read, Write};
use std::net::TcpStream;

#[test]
fn the_line_is_one_whole_state_whatever_is_sent() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    for send in ["", "hello\n", "GET / HTTP/1.1\r\n\r\n", &"x".repeat(100_000)] {
        assert_eq!(probe::agent(primary.agent_port, send)?, "up ready 100%\n", "{} bytes", send.len());
    }
    Ok(())
}

#[test]
fn the_weight_follows_the_free_connections() -> Result<()> {
    let primary = Cluster::new("busy")?;
    primary.set("max_connections", "23")?.set("superuser_reserved_connections", "3")?;
    let primary = primary.start()?;
    let clients = (0..10).map(|_| primary.connect()).collect::<Result<Vec<_>>>()?;
    wait::until("half of 20 are used", || {
        probe::agent(primary.agent_port, "").is_ok_and(|line| line == "up ready 50%\n")
    })?;
    let more = (0..13).map(|_| primary.connect()).collect::<Result<Vec<_>>>()?;
    // Never 0, which would drain.
    wait::until("it is full", || {
        probe::agent(primary.agent_port, "").is_ok_and(|line| line == "up ready 1%\n")
    })?;
    drop((clients, more));
    wait::until("the weight comes back", || {
        probe::agent(primary.agent_port, "").is_ok_and(|line| line == "up ready 100%\n")
    })
}

#[test]
fn haproxy_takes_the_weight_the_drain_and_its_end() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    let standby = primary.standby("standby")?;
    standby.set("postern.status_max_lag", "1MB")?;
    let standby = standby.start()?;
    standby.wait_streaming()?;
    wait::until("the standby is healthy", || {
        probe::agent(standby.agent_port, "").is_ok_and(|l| l.starts_with("up ready"))
    })?;
    let front = ports::free()?;
    let haproxy = Haproxy::start(
        "agent",
        &format!(
            "listen replicas\n\tmode tcp\n\tbind 127.0.0.1:{front}\n\
             \tserver s1 127.0.0.1:{} weight 200 check agent-check agent-port {} agent-inter 100ms inter 100ms\n",
            standby.port, standby.agent_port
        ),
    )?;
    let state = |status: &str, weight: &str| {
        haproxy.servers().is_ok_and(|servers| servers[0].1.starts_with(status) && servers[0].2 == weight)
    };
    wait::until("the agent's weight is taken", || state("UP", "200"))?;
    standby.sql("SELECT pg_wal_replay_pause()")?;
    primary.sql("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)")?;
    wait::until("a late standby is drained", || haproxy.status("s1").starts_with("DRAIN"))?;
    let line = probe::agent(standby.agent_port, "")?;
    assert!(line.starts_with("up drain #lag ") && line.ends_with(" is beyond 1024kB\n"), "{line}");
    standby.sql("SELECT pg_wal_replay_resume()")?;
    wait::until("it comes back by itself", || haproxy.status("s1").starts_with("UP"))
}

#[test]
fn connections_beyond_the_limit_end_the_oldest_and_checks_go_on() -> Result<()> {
    let primary = Cluster::new("flood")?.start()?;
    // HTTP clients that never send anything; the agent port has the same limit in the same code.
    let mut silent = (0..256)
        .map(|_| TcpStream::connect(("127.0.0.1", primary.http_port)))
        .collect::<Result<Vec<_>, _>>()?;
    wait::until("all are accepted", || probe::code(primary.http_port, "/liveness") == 200)?;
    let mut first = silent.remove(0);
    first.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
    // Ended before its own time limit of 5 s, because others wanted its place.
    assert!(first.write_all(b"").is_ok() && first.read(&mut [0; 1])? == 0, "the oldest is ended");
    assert_eq!(probe::code(primary.http_port, "/primary"), 200);
    Ok(())
}
