//! The banner: bytes, addresses, sources, reload. PARITY rows S1, S2, S3, S5.

use anyhow::{Context, Result};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{machine, ports, probe, wait};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[test]
fn a_primary_says_master_and_a_standby_says_standby_byte_for_byte() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    let standby = primary.standby("standby")?.start()?;
    assert_eq!(probe::banner(primary.banner_port)?, "MASTER");
    assert_eq!(probe::banner(standby.banner_port)?, "STANDBY");
    standby.promote()?;
    // At once: while it has not been looked at for a moment, the worker's main has a tenth of a second for that.
    wait::until_within(Duration::from_secs(1), "a promotion shows", || {
        probe::banner(standby.banner_port).is_ok_and(|text| text == "MASTER")
    })
}

#[test]
fn nothing_is_read_and_the_server_speaks_first() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    // A client that is silent, one that sends before it reads, one that goes away at once.
    assert_eq!(probe::banner(primary.banner_port)?, "MASTER");
    let mut talker = TcpStream::connect(("127.0.0.1", primary.banner_port))?;
    let mut text = [0; 6];
    talker.read_exact(&mut text)?;
    assert_eq!(&text, b"MASTER");
    let _ = talker.write_all(b"GET / HTTP/1.0\r\n\r\n");
    for _ in 0..1000 {
        drop(TcpStream::connect(("127.0.0.1", primary.banner_port))?);
    }
    assert_eq!(probe::banner(primary.banner_port)?, "MASTER");
    Ok(())
}

#[test]
fn several_addresses_ipv6_and_a_unix_socket_are_served() -> Result<()> {
    let cluster = Cluster::new("many")?;
    let (wild, v6, named) = (ports::free()?, ports::free()?, ports::free()?);
    let path = cluster.socket_directory().join("status.sock");
    let list = format!("*:{wild}, [::1]:{v6}, localhost:{named}, {}", path.display());
    cluster.set("postern.status_listen", &list)?;
    let cluster = cluster.start()?;
    assert_eq!(probe::banner(wild)?, "MASTER");
    assert_eq!(probe::banner(named)?, "MASTER");
    if has_ipv6() {
        assert_eq!(probe::banner_at(format!("[::1]:{v6}").parse()?)?, "MASTER");
        assert_eq!(probe::banner_at(format!("[::1]:{wild}").parse()?)?, "MASTER");
    }
    let mut text = String::new();
    UnixStream::connect(&path)?.read_to_string(&mut text)?;
    assert_eq!(text, "MASTER");
    cluster.stop(Stop::Fast)?;
    assert!(!path.exists(), "the socket's file goes with the server");
    Ok(())
}

#[test]
fn bgw_replstatus_settings_work_as_they_are() -> Result<()> {
    let cluster = Cluster::new("old")?;
    // Its users have no postern.* settings: the default must give way.
    let settings = cluster.data().join("postgresql.conf");
    let without: String = std::fs::read_to_string(&settings)?
        .lines()
        .filter(|l| !l.contains("status_listen"))
        .map(|l| format!("{l}\n"))
        .collect();
    std::fs::write(&settings, without)?;
    let port = ports::free()?;
    cluster.set("bgw_replstatus.port", &port.to_string())?.set("bgw_replstatus.bind", "127.0.0.1")?;
    let cluster = cluster.start()?;
    assert_eq!(probe::banner(port)?, "MASTER");
    assert_eq!(listening(&cluster, "banner")?, format!("127.0.0.1:{port}"));
    // An explicit list is served beside it.
    cluster.set("postern.status_listen", &format!("127.0.0.1:{}", cluster.banner_port))?;
    cluster.reload()?;
    wait::until("both are served", || {
        probe::banner(port).is_ok_and(|text| text == "MASTER")
            && probe::banner(cluster.banner_port).is_ok_and(|text| text == "MASTER")
    })
}

#[test]
fn a_source_that_is_not_allowed_gets_nothing_and_is_counted() -> Result<()> {
    let cluster = Cluster::new("allow")?;
    cluster.set("postern.status_allow", "192.0.2.0/24, ::1")?;
    let cluster = cluster.start()?;
    cluster.create_extension()?;
    for port in [cluster.banner_port, cluster.agent_port, cluster.http_port] {
        assert_eq!(probe::banner(port).unwrap_or_default(), "", "nothing is said");
    }
    let refused = "SELECT string_agg(refused::text || served, ' ' ORDER BY kind) FROM postern.listeners WHERE kind <> 'pooler'";
    assert_eq!(cluster.sql(refused)?, "10 10 10");
    cluster.set("postern.status_allow", "127.0.0.0/8")?;
    cluster.reload()?;
    wait::until("the source is let in after a reload", || {
        probe::banner(cluster.banner_port).is_ok_and(|text| text == "MASTER")
    })
}

#[test]
fn a_reload_opens_and_closes_addresses_and_leaves_the_others_alone() -> Result<()> {
    let cluster = Cluster::new("reload")?.start()?;
    let (stays, comes) = (cluster.banner_port, ports::free()?);
    // A connection that waits in the backlog of a listener that were opened anew would be reset.
    let check = std::thread::spawn(move || {
        let deadline = std::time::Instant::now() + Duration::from_secs(3);
        let mut failed = 0;
        while std::time::Instant::now() < deadline {
            failed += u32::from(probe::banner(stays).ok().as_deref() != Some("MASTER"));
        }
        failed
    });
    for round in 0..10 {
        let with = if round % 2 == 0 {
            format!("127.0.0.1:{stays},127.0.0.1:{comes}")
        } else {
            format!("127.0.0.1:{stays}")
        };
        cluster.set("postern.status_listen", &with)?;
        cluster.reload()?;
        let wanted = round % 2 == 0;
        wait::until("the reload takes effect", || probe::banner(comes).is_ok() == wanted)?;
    }
    assert_eq!(check.join().unwrap(), 0, "checks on the other listener failed");
    Ok(())
}

#[test]
fn from_one_address_to_all_and_back_on_the_same_port() -> Result<()> {
    let cluster = Cluster::new("widen")?.start()?;
    let port = cluster.banner_port;
    for list in [format!("*:{port}"), format!("127.0.0.1:{port}"), format!("*:{port}")] {
        cluster.set("postern.status_listen", &list)?;
        cluster.reload()?;
        let wanted = list.replace('*', "0.0.0.0");
        wait::until("the new address is served", || {
            cluster.log().matches(&format!("listens on {wanted}")).count() > 0
        })?;
        wait::until("it answers", || probe::banner(port).is_ok())?;
    }
    Ok(())
}

#[test]
fn a_mistake_in_a_reload_keeps_the_old_value() -> Result<()> {
    let cluster = Cluster::new("mistake")?.start()?;
    cluster.set("postern.status_listen", "5400")?;
    cluster.reload()?;
    cluster.wait_log("invalid value for parameter \"postern.status_listen\": \"5400\"")?;
    assert!(cluster.log().contains("\"5400\" has no valid port"), "{}", cluster.log_tail());
    assert_eq!(probe::banner(cluster.banner_port)?, "MASTER");
    Ok(())
}

#[test]
fn a_taken_port_is_logged_by_name_and_retried_and_harms_nobody() -> Result<()> {
    let taken = TcpListener::bind(("127.0.0.1", ports::free()?))?;
    let port = taken.local_addr()?.port();
    let cluster = Cluster::new("taken")?;
    cluster.set("postern.status_listen", &format!("127.0.0.1:{port},127.0.0.1:{}", cluster.banner_port))?;
    let cluster = cluster.start()?;
    cluster.wait_log(&format!("could not listen on 127.0.0.1:{port} (postern.status_listen)"))?;
    assert_eq!(probe::banner(cluster.banner_port)?, "MASTER", "the other listener works");
    assert_eq!(cluster.sql("SELECT 1")?, "1");
    wait::until("/status says so", || probe::code(cluster.http_port, "/status") == 500)?;
    assert!(probe::get(cluster.http_port, "/status")?.body.contains(&format!("127.0.0.1:{port}: Address")));
    drop(taken);
    wait::until("the port is served once it is free", || {
        probe::banner(port).is_ok_and(|text| text == "MASTER")
    })?;
    let complaints = cluster.log().matches(&format!("could not listen on 127.0.0.1:{port}")).count();
    assert_eq!(complaints, 1, "an error is said once, not once a try");
    Ok(())
}

#[test]
fn a_server_in_crash_recovery_says_standby_and_then_master() -> Result<()> {
    let primary = Cluster::new("crash")?.start()?;
    primary.sql("CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 1000000) g")?;
    let mut seen = false;
    // Who is slow to ask may miss a recovery.
    for _ in 0..3 {
        primary.kill()?;
        primary.launch()?;
        let mut said = Vec::new();
        wait::until("the server is up", || {
            let now = probe::banner(primary.banner_port).unwrap_or_default();
            if said.last() != Some(&now) && !now.is_empty() {
                said.push(now);
            }
            said.last().is_some_and(|text| text == "MASTER")
        })?;
        assert!(said == ["STANDBY", "MASTER"] || said == ["MASTER"], "{said:?}\n{}", primary.log_tail());
        assert!(primary.log().contains("automatic recovery in progress"));
        seen = said.len() == 2;
        if seen {
            break;
        }
        primary.sql("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 1000000) g")?;
    }
    assert!(seen, "nobody has heard STANDBY");
    Ok(())
}

#[test]
fn a_recovery_that_lasts_is_told_on_every_port() -> Result<()> {
    let primary = Cluster::new("recovery")?.start()?;
    primary.stop(Stop::Immediate)?;
    // A recovery that lasts: the startup process is held up in a restore of the next segment.
    let gate = primary.socket_directory().join("gate");
    std::fs::write(&gate, "")?;
    machine::give_to_server_user(&gate)?;
    let command = format!("while [ -e {} ]; do sleep 0.05; done; false", gate.display());
    primary.set("restore_command", &command)?;
    let signal = primary.data().join("recovery.signal");
    std::fs::write(&signal, "")?;
    machine::give_to_server_user(&signal)?;
    primary.launch()?;
    wait::until("all three ports answer during recovery", || {
        probe::banner(primary.banner_port).is_ok()
            && probe::code(primary.http_port, "/health") != 0
            && probe::agent(primary.agent_port, "").is_ok()
    })?;
    assert_eq!(primary.state(), "starting", "the server takes no connections yet");
    assert_eq!(probe::banner(primary.banner_port)?, "STANDBY");
    assert_eq!(probe::code(primary.http_port, "/health"), 503);
    assert_eq!(probe::code(primary.http_port, "/liveness"), 200);
    assert!(probe::agent(primary.agent_port, "")?.starts_with("down ready #the server is starting up"));
    std::fs::remove_file(&gate)?;
    wait::until("recovery ends in a master", || {
        probe::banner(primary.banner_port).is_ok_and(|text| text == "MASTER")
    })
}

#[test]
fn a_cold_standby_says_standby() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    let standby = primary.standby("cold")?;
    standby.set("hot_standby", "off")?;
    standby.launch()?;
    wait::until("the standby is up", || {
        standby.state() == "standby"
            && probe::banner(standby.banner_port).is_ok()
            && probe::agent(standby.agent_port, "").is_ok_and(|line| line.contains("cold standby"))
            && probe::get(standby.http_port, "/health")
                .is_ok_and(|health| health.reason().contains("hot_standby"))
    })?;
    assert_eq!(probe::banner(standby.banner_port)?, "STANDBY");
    assert!(probe::agent(standby.agent_port, "")?.starts_with("down ready #cold standby"));
    let health = probe::get(standby.http_port, "/health")?;
    assert_eq!(health.code, 503);
    assert!(health.reason().contains("hot_standby is off"), "{health:?}");
    Ok(())
}

#[test]
fn more_entries_than_the_limit_are_refused_and_the_limit_itself_works() -> Result<()> {
    let cluster = Cluster::new("limit")?;
    let all: Vec<u16> = (0..8).map(|_| ports::free()).collect::<Result<_>>()?;
    let list = |ports: &[u16]| ports.iter().map(|p| format!("127.0.0.1:{p}")).collect::<Vec<_>>().join(",");
    cluster.set("postern.status_listen", &list(&all))?;
    let cluster = cluster.start()?;
    for port in &all {
        wait::until("every entry is served", || probe::banner(*port).is_ok_and(|text| text == "MASTER"))?;
    }
    let nine = list(&[&all[..], &[ports::free()?]].concat());
    let error = cluster.sql(&format!("ALTER SYSTEM SET postern.status_listen = '{nine}'")).unwrap_err();
    let error = format!("{:?}", error.downcast::<postgres::Error>()?.as_db_error().and_then(|e| e.detail()));
    assert!(error.contains("A list may have at most 8 entries, this one has 9"), "{error}");
    Ok(())
}

#[test]
fn a_name_that_does_not_resolve_is_shown_and_opens_nothing_else() -> Result<()> {
    let cluster = Cluster::new("name")?.start()?;
    cluster.set("postern.status_listen", &format!("no-such-host.invalid:{}", cluster.banner_port))?;
    cluster.reload()?;
    wait::until("the old address is closed", || probe::banner(cluster.banner_port).is_err())?;
    wait::until("/status says so", || probe::code(cluster.http_port, "/status") == 500)?;
    let status = probe::get(cluster.http_port, "/status")?.body;
    assert!(status.contains("no-such-host.invalid"), "{status}");
    cluster.set("postern.status_listen", &format!("localhost:{}", cluster.banner_port))?;
    cluster.reload()?;
    wait::until("a name that resolves is served", || probe::banner(cluster.banner_port).is_ok())?;
    wait::until("/status is content", || probe::code(cluster.http_port, "/status") == 200)
}

#[test]
fn a_mistake_at_the_start_is_refused_and_lets_nobody_in() -> Result<()> {
    for (setting, value, detail) in [
        ("postern.status_allow", "10.0.0.0/33", "is not an address range"),
        ("bgw_replstatus.port", "70000", "A port is a number from 0 to 65535"),
    ] {
        let cluster = Cluster::new("mistake")?;
        cluster.set(setting, value)?;
        let error = format!("{:#}", cluster.start().err().context("it should not start")?);
        let fatal = format!("FATAL:  invalid value for parameter \"{setting}\": \"{value}\"");
        assert!(error.contains(&fatal) && error.contains(detail), "{error}");
    }
    Ok(())
}

#[test]
fn a_data_directory_in_another_encoding_changes_nothing() -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let cluster = Cluster::new("latin")?;
    // postmaster.pid names the socket directory.
    let sockets = cluster.socket_directory().join(std::ffi::OsStr::from_bytes(b"d\xe9"));
    std::fs::create_dir(&sockets)?;
    machine::give_to_server_user(&sockets)?;
    let mut line = b"unix_socket_directories = '".to_vec();
    line.extend_from_slice(sockets.as_os_str().as_bytes());
    line.extend_from_slice(b"'\n");
    std::fs::OpenOptions::new()
        .append(true)
        .open(cluster.data().join("postgresql.conf"))?
        .write_all(&line)?;
    cluster.launch()?;
    wait::until("it says MASTER", || probe::banner(cluster.banner_port).is_ok_and(|text| text == "MASTER"))
}

pub fn listening(cluster: &Cluster, kind: &str) -> Result<String> {
    cluster.sql("CREATE EXTENSION IF NOT EXISTS postern")?;
    cluster.sql(&format!(
        "SELECT string_agg(address, ',' ORDER BY address) FROM postern.listeners WHERE kind = '{kind}' AND listening"
    ))
}

fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}
