//! The life of a worker with threads inside a server: signals, stops, crashes, limits. DESIGN rules of the house.

use anyhow::{Context, Result};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{probe, process, wait};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// How long after its end the worker has to be back.
const BACK: Duration = Duration::from_secs(2);

fn answers(cluster: &Cluster) -> bool {
    probe::banner(cluster.banner_port).is_ok_and(|text| text == "MASTER")
}

fn new_worker(cluster: &Cluster, old: i32) -> Result<()> {
    wait::until("another worker answers", || {
        cluster.worker_pid().is_ok_and(|pid| pid != old) && answers(cluster)
    })
    .with_context(|| cluster.log_tail())
}

#[test]
fn a_hundred_thousand_sighups_do_nothing() -> Result<()> {
    let cluster = Cluster::new("sighup")?.start()?;
    let (postmaster, worker) = (cluster.pid()?, cluster.worker_pid()?);
    for round in 0..100_000 {
        process::signal_pid(worker, Signal::HUP)?;
        if round % 1000 == 0 {
            assert!(answers(&cluster));
        }
    }
    // Main has to have seen the last of them: a reload that follows takes effect.
    cluster.set("postern.status_allow", "192.0.2.1")?;
    cluster.reload()?;
    wait::until("a reload takes effect", || {
        probe::banner(cluster.banner_port).is_ok_and(|text| text.is_empty())
    })?;
    assert_eq!((cluster.pid()?, cluster.worker_pid()?), (postmaster, worker), "the same processes");
    assert!(!cluster.log().contains("terminated by signal"), "{}", cluster.log_tail());
    Ok(())
}

#[test]
fn the_worker_does_not_block_drop_database() -> Result<()> {
    let cluster = Cluster::new("drop")?.start()?;
    let mut took = Vec::new();
    for round in 0..5 {
        cluster.sql(&format!("CREATE DATABASE d{round}"))?;
        let before = Instant::now();
        cluster.sql(&format!("DROP DATABASE d{round}"))?;
        took.push(before.elapsed());
        assert!(answers(&cluster));
    }
    // The server waits up to five seconds for whoever is in the database; a loaded machine adds to some of them.
    assert!(took.iter().any(|took| *took < Duration::from_secs(2)), "{took:?}");
    assert!(took.iter().all(|took| *took < wait::LIMIT), "{took:?}");
    Ok(())
}

#[test]
fn a_worker_that_is_terminated_is_back_within_two_seconds() -> Result<()> {
    let cluster = Cluster::new("sigterm")?.start()?;
    cluster.create_extension()?;
    let mut took = Vec::new();
    for _ in 0..3 {
        let worker = cluster.worker_pid()?;
        let before = Instant::now();
        process::signal_pid(worker, Signal::TERM)?;
        new_worker(&cluster, worker)?;
        took.push(before.elapsed());
    }
    // A loaded machine adds to some of them what is not the worker's.
    assert!(took.iter().any(|took| *took < BACK), "{took:?}");
    assert_eq!(cluster.sql("SELECT worker_starts FROM postern.status")?, "4");
    assert_eq!(cluster.sql("SELECT pg_postmaster_start_time() < now()")?, "t", "the server went on");
    assert_eq!(cluster.log().matches("database system is ready").count(), 1);
    Ok(())
}

#[test]
fn a_panic_in_a_task_restarts_the_worker_and_not_the_server() -> Result<()> {
    let cluster = Cluster::new("panic")?.start()?;
    let mut session = cluster.connect()?;
    let worker = cluster.worker_pid()?;
    let _ = probe::get(cluster.http_port, "/test/panic");
    new_worker(&cluster, worker)?;
    assert!(cluster.log().contains("status worker ends to be started again"), "{}", cluster.log_tail());
    wait::until("its HTTP port is back", || probe::code(cluster.http_port, "/liveness") == 200)?;
    let worker = cluster.worker_pid()?;
    let _ = probe::get(cluster.http_port, "/test/fail");
    new_worker(&cluster, worker)?;
    session.simple_query("SELECT 1").context("the session lives on")?;
    Ok(())
}

#[test]
fn a_killed_worker_restarts_the_server_and_all_is_back() -> Result<()> {
    let cluster = Cluster::new("sigkill")?;
    // Where several things can go wrong at once, all are on: Unix socket files are left behind by a kill.
    let path = cluster.socket_directory().join("status.sock");
    cluster.set("postern.status_listen", &format!("127.0.0.1:{},{}", cluster.banner_port, path.display()))?;
    let cluster = cluster.start()?;
    let worker = cluster.worker_pid()?;
    process::signal_pid(worker, Signal::KILL)?;
    new_worker(&cluster, worker)?;
    wait::until("every port is back", || {
        probe::code(cluster.http_port, "/status") == 200
            && probe::agent(cluster.agent_port, "").is_ok_and(|line| line.starts_with("up ready"))
            && std::os::unix::net::UnixStream::connect(&path).is_ok()
    })?;
    assert!(cluster.log().contains("terminating any other active server processes"));
    cluster.sql("SELECT 1")?;
    Ok(())
}

/// PostgreSQL starts no background worker while it recovers from the crash of a child (maybe_start_bgworkers(),
/// src/backend/postmaster/postmaster.c), so for that time the ports are closed, which every checker takes for down.
#[test]
fn after_the_crash_of_a_backend_nobody_hears_master_until_recovery_is_over() -> Result<()> {
    let cluster = Cluster::new("crash")?.start()?;
    // Enough to replay that the recovery takes a while.
    cluster.sql("CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 500000) g")?;
    let mut session = cluster.connect()?;
    let backend: i32 = session.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let worker = cluster.worker_pid()?;
    process::signal_pid(backend, Signal::KILL)?;
    wait::until("the old worker has ended", || !process::is_running(worker))?;
    wait::until("recovery is over", || {
        let said = probe::banner(cluster.banner_port);
        // The checkpoint at its end. The server says "ready to accept connections" only after it has started its
        // workers, so that one of those may speak before it.
        let log = cluster.log();
        let over = log
            .split_once("all server processes terminated")
            .is_some_and(|(_, after)| after.contains("checkpoint complete"));
        assert!(over || !said.is_ok_and(|text| text == "MASTER"), "MASTER during recovery\n{log}");
        over
    })?;
    new_worker(&cluster, worker)
}

#[test]
fn every_stop_ends_in_time() -> Result<()> {
    let cluster = Cluster::new("stops")?.start()?;
    let mut took = Vec::new();
    for mode in [Stop::Smart, Stop::Fast, Stop::Immediate, Stop::Smart, Stop::Fast, Stop::Immediate] {
        // With checks under way, and clients that hold connections open.
        let _held: Vec<_> = [cluster.http_port, cluster.agent_port, cluster.banner_port]
            .iter()
            .filter_map(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).ok())
            .collect();
        wait::until("it answers", || answers(&cluster))?;
        let before = Instant::now();
        cluster.stop(mode)?;
        took.push((mode, before.elapsed()));
        cluster.start_again()?;
    }
    // A loaded machine adds to some of them what is not the workers'.
    for mode in [Stop::Smart, Stop::Fast, Stop::Immediate] {
        let quick = took.iter().any(|(its, took)| *its == mode && *took < Duration::from_secs(4));
        assert!(quick, "{mode:?}: {took:?}");
    }
    Ok(())
}

#[test]
fn a_killed_postmaster_leaves_nothing_behind() -> Result<()> {
    let cluster = Cluster::new("orphans")?.start()?;
    let children = process::children(cluster.pid()?);
    assert!(children.iter().any(|(_, line)| line.contains("postern status")), "{children:?}");
    cluster.kill()?;
    wait::until("every process of the server has ended", || {
        children.iter().all(|(pid, _)| !process::is_running(*pid))
    })?;
    assert!(probe::banner(cluster.banner_port).is_err(), "the port is closed");
    cluster.start_again()?;
    wait::until("a new server answers on the same ports", || answers(&cluster))
}

#[test]
fn a_full_log_queue_drops_and_counts_and_the_worker_goes_on() -> Result<()> {
    let cluster = Cluster::new("flood")?.start()?;
    cluster.create_extension()?;
    let worker = cluster.worker_pid()?;
    let _ = probe::get(cluster.http_port, "/test/flood-log");
    let dropped = || cluster.sql("SELECT log_lines_dropped FROM postern.status").ok()?.parse::<u64>().ok();
    wait::until("lines are dropped and counted", || dropped().is_some_and(|count| count > 0))?;
    wait::until("the others are written", || {
        let written = cluster.log().matches("postern: flood ").count() as u64;
        dropped().is_some_and(|dropped| dropped + written == 256 * 40)
    })?;
    assert_eq!(cluster.worker_pid()?, worker);
    assert!(probe::get(cluster.http_port, "/metrics")?.body.contains("postern_log_lines_dropped_total"));
    Ok(())
}

#[test]
fn without_free_descriptors_a_primary_stays_master_and_its_worker_comes_back() -> Result<()> {
    let cluster = Cluster::new("descriptors")?;
    cluster.launch_with_files(128)?;
    wait::until("it answers", || answers(&cluster))?;
    let worker = cluster.worker_pid()?;
    // More than there are descriptors, and more come for those that have had their turn.
    let ports = [cluster.http_port, cluster.agent_port];
    let idle: Vec<_> =
        (0..300).filter_map(|i| std::net::TcpStream::connect(("127.0.0.1", ports[i % 2])).ok()).collect();
    let mut masters = 0;
    wait::until("some checks are answered all the same", || {
        let said = probe::banner(cluster.banner_port);
        assert!(!said.as_ref().is_ok_and(|text| text == "STANDBY"), "a primary says STANDBY");
        masters += u32::from(said.is_ok_and(|text| text == "MASTER"));
        masters >= 200
    })?;
    process::signal_pid(worker, Signal::TERM)?;
    new_worker(&cluster, worker)?;
    drop(idle);
    Ok(())
}

#[test]
fn a_missing_worker_slot_is_named_and_the_server_works() -> Result<()> {
    let cluster = Cluster::new("slots")?;
    cluster.set("max_worker_processes", "0")?;
    let cluster = cluster.start()?;
    let log = cluster.log();
    assert!(log.contains("background worker \"postern status\" has no place"), "{log}");
    assert!(log.contains("max_worker_processes is 0; raise it by at least one"), "{log}");
    cluster.create_extension()?;
    let problem = cluster.sql("SELECT worker_problem FROM postern.status")?;
    assert!(problem.contains("raise max_worker_processes"), "{problem}");
    Ok(())
}

#[test]
fn two_servers_on_one_host_do_not_disturb_each_other() -> Result<()> {
    let one = Cluster::new("one")?.start()?;
    // The second wants a port and a socket of the first, and gets its own others.
    let path = one.socket_directory().join("status.sock");
    one.set("postern.status_listen", &format!("127.0.0.1:{},{}", one.banner_port, path.display()))?;
    one.reload()?;
    wait::until("the socket is there", || path.exists())?;
    let two = Cluster::new("two")?;
    two.set(
        "postern.status_listen",
        &format!("127.0.0.1:{},127.0.0.1:{},{}", one.banner_port, two.banner_port, path.display()),
    )?;
    let two = two.start()?;
    two.wait_log("could not listen on")?;
    assert!(answers(&one) && answers(&two));
    two.stop(Stop::Fast)?;
    assert!(answers(&one) && path.exists(), "the first keeps what is its own");
    Ok(())
}

#[test]
fn an_idle_worker_wakes_less_than_twice_a_second() -> Result<()> {
    let cluster = Cluster::new("idle")?.start()?;
    let worker = cluster.worker_pid()?;
    wait::until("it answers", || answers(&cluster))?;
    let before = process::sleeps(worker)?;
    let time = Duration::from_secs(10);
    std::thread::sleep(time);
    let woken = process::sleeps(worker)? - before;
    assert!(woken < 2 * time.as_secs(), "{woken} wake-ups in {time:?}");
    // With everything off, not even that.
    for setting in ["postern.status_listen", "postern.agent_listen", "postern.http_listen"] {
        cluster.set(setting, "")?;
    }
    cluster.reload()?;
    wait::until("the ports are closed", || probe::banner(cluster.banner_port).is_err())?;
    wait::until("it has come to rest", || {
        let before = process::sleeps(worker).ok();
        std::thread::sleep(Duration::from_secs(1));
        before.is_some() && before == process::sleeps(worker).ok()
    })?;
    let before = process::sleeps(worker)?;
    std::thread::sleep(time);
    let woken = process::sleeps(worker)? - before;
    assert!(woken <= 1, "{woken} wake-ups in {time:?} with everything off");
    Ok(())
}
