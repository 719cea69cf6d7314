//! HTTP checks on a socket: methods, paths, hostile requests, metrics. PARITY row S6.

use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{probe, wait};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn every_path_has_patronis_code_on_a_primary_and_on_a_standby() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    let standby = primary.standby("standby")?.start()?;
    standby.wait_streaming()?;
    wait::until("the standby is healthy", || probe::code(standby.http_port, "/replica") == 200)?;
    wait::until("the primary has been asked", || probe::code(standby.http_port, "/async") == 200)?;
    for (path, on_primary, on_standby) in [
        ("/", 200, 503),
        ("/primary", 200, 503),
        ("/read-write", 200, 503),
        ("/leader", 200, 503),
        ("/replica", 503, 200),
        ("/replica?lag=16MB", 503, 200),
        ("/read-only", 200, 200),
        ("/sync", 503, 503),
        ("/async", 503, 200),
        ("/standby-leader", 503, 503),
        ("/health", 200, 200),
        ("/liveness", 200, 200),
        ("/readiness", 200, 200),
        ("/status", 200, 200),
        ("/stats", 200, 200),
        ("/metrics", 200, 200),
        ("/nonsense", 404, 404),
        ("/replica?lag=many", 400, 400),
    ] {
        for (cluster, code) in [(&primary, on_primary), (&standby, on_standby)] {
            let answer = probe::get(cluster.http_port, path)?;
            assert_eq!(answer.code, code, "{path} on {}: {answer:?}", cluster.name);
            if code >= 400 {
                assert!(!answer.reason().is_empty(), "{path} says why: {answer:?}");
            }
        }
    }
    let body = probe::get(standby.http_port, "/replica")?.json();
    assert_eq!(body["role"], "replica");
    assert_eq!(body["timeline"], 1);
    assert_eq!(body["replication_state"], "streaming");
    Ok(())
}

#[test]
fn head_and_options_answer_like_get_and_others_are_refused() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    let ask = |line: &str| {
        probe::request(primary.http_port, &format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n"))
    };
    let head = ask("HEAD /primary HTTP/1.1")?;
    assert_eq!((head.code, head.body.as_str()), (200, ""));
    assert_eq!(ask("OPTIONS /primary HTTP/1.1")?.code, 200);
    assert_eq!(ask("OPTIONS /replica HTTP/1.1")?.code, 503);
    assert_eq!(ask("POST /primary HTTP/1.1")?.code, 405);
    // What haproxy's `option httpchk` sends, byte for byte.
    assert_eq!(probe::request(primary.http_port, "OPTIONS / HTTP/1.0\r\n\r\n")?.code, 200);
    assert_eq!(probe::request(primary.http_port, "GET /primary HTTP/1.0\r\n\r\n")?.code, 200);
    Ok(())
}

#[test]
fn two_requests_may_share_a_connection() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    let mut stream = TcpStream::connect(("127.0.0.1", primary.http_port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\nGET /replica HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("HTTP/1.1 503"), "{text}");
    Ok(())
}

#[test]
fn hostile_requests_cost_bounded_time_and_harm_nobody() -> Result<()> {
    let primary = Cluster::new("hostile")?.start()?;
    let port = primary.http_port;
    let huge = format!("GET /primary?{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100_000));
    let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(1 << 20));
    for (what, bytes, code) in [
        ("a huge target", huge.as_str(), 431),
        ("too many headers", &many, 431),
        ("a huge header", &long, 431),
        ("no HTTP", "\0\x01\x02\x03 nonsense\r\n\r\n", 400),
        ("a startup packet", "\0\0\0\x08\x04\x52\x16\x2f", 400),
        ("a bad version", "GET / HTTP/9.9\r\n\r\n", 400),
    ] {
        let answer = probe::request(port, bytes)?;
        assert_eq!(answer.code, code, "{what}: {answer:?}");
        assert_eq!(probe::code(port, "/primary"), 200, "after {what}");
    }
    // A body that never comes to its end.
    let mut endless = TcpStream::connect(("127.0.0.1", port))?;
    endless.write_all(b"GET /primary HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")?;
    assert_eq!(probe::code(port, "/primary"), 200);
    Ok(())
}

#[test]
fn slow_and_silent_clients_are_ended_in_time_while_others_are_answered() -> Result<()> {
    let primary = Cluster::new("slow")?.start()?;
    let connect = || TcpStream::connect(("127.0.0.1", primary.http_port));
    let started = Instant::now();
    let mut silent = connect()?;
    let mut slow = connect()?;
    slow.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut ended = false;
    for byte in b"GET /primary HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        .iter()
        .cycle()
    {
        let sent = slow.write_all(std::slice::from_ref(byte));
        assert_eq!(probe::code(primary.http_port, "/primary"), 200, "others are answered");
        let closed = matches!(slow.read(&mut [0; 512]), Ok(0));
        if closed || sent.is_err() {
            ended = true;
            break;
        }
        if started.elapsed() > Duration::from_secs(20) {
            break;
        }
    }
    assert!(ended, "a client that sends a byte now and then is ended");
    silent.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest)?;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    Ok(())
}

/// Fails when promtool finds something to say of a scrape.
pub fn promtool_accepts(text: &str) -> Result<()> {
    let said = probe::promtool(text)?;
    assert!(said.is_empty(), "{said}\n{text}");
    Ok(())
}

#[test]
fn promtool_accepts_the_metrics() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    let standby = primary.standby("standby")?.start()?;
    standby.wait_streaming()?;
    wait::until("the standby is healthy", || probe::code(standby.http_port, "/replica") == 200)?;
    probe::banner(primary.banner_port)?;
    for cluster in [&primary, &standby] {
        let answer = probe::get(cluster.http_port, "/metrics")?;
        assert!(answer.head.contains("text/plain; version=0.0.4"), "{}", answer.head);
        promtool_accepts(&answer.body)?;
    }
    let text = probe::get(primary.http_port, "/metrics")?.body;
    let label = format!("{{kind=\"banner\",listener=\"127.0.0.1:{}\"}}", primary.banner_port);
    for line in [
        "postern_server_takes_connections 1".to_owned(),
        "postern_server_in_recovery 0".to_owned(),
        "postern_status_worker_starts_total 1".to_owned(),
        format!("postern_status_checks_total{label} 1"),
        format!("postern_status_listening{label} 1"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    assert!(probe::get(standby.http_port, "/metrics")?.body.contains("postern_wal_receiver_streaming 1"));
    Ok(())
}

#[test]
fn stats_count_what_was_served() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    for _ in 0..5 {
        probe::banner(primary.banner_port)?;
    }
    let stats = probe::get(primary.http_port, "/stats")?.json();
    let listeners = stats["status"]["listeners"].as_array().context("a list of listeners")?;
    let banner = listeners.iter().find(|l| l["kind"] == "banner").context("the banner")?;
    assert_eq!(banner["served"], 5);
    assert_eq!(stats["status"]["worker"]["starts"], 1);
    assert_eq!(stats["clients"]["capacity"], 37);
    Ok(())
}

#[test]
fn a_thousand_honest_checks_at_once_are_all_answered() -> Result<()> {
    let primary = Cluster::new("burst")?.start()?;
    for port in [primary.http_port, primary.agent_port] {
        let together = std::sync::Arc::new(std::sync::Barrier::new(1000));
        let check = |together: std::sync::Arc<std::sync::Barrier>| {
            move || {
                together.wait();
                // Both ports answer this: the agent's ignores what it is sent.
                probe::agent(port, "GET /primary HTTP/1.0\r\n\r\n").is_ok_and(|text| !text.is_empty())
            }
        };
        let clients: Vec<_> = (0..1000)
            .map(|_| {
                std::thread::Builder::new()
                    .stack_size(64 * 1024)
                    .spawn(check(std::sync::Arc::clone(&together)))
            })
            .collect::<Result<_, _>>()?;
        let answered = clients.into_iter().filter_map(|client| client.join().ok()).filter(|ok| *ok).count();
        assert_eq!(answered, 1000);
    }
    Ok(())
}
