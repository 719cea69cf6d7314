//! `cargo demo [--once]`: Postern in a cluster of two with haproxy in front, from nothing; what each part answers; what
//! happens to a client's writes during a failover and a failback. Then the cluster stays up until Ctrl-C; with
//! `--once` the program ends, with 0 when all went as it should.

mod nodes;
mod notifying;
mod pooling;
mod screen;
mod streaming;
mod writer;

use anyhow::{Result, ensure};
use nodes::Nodes;
use pgrx_tests::cluster::Stop;
use pgrx_tests::haproxy::{Haproxy, readme_configuration};
use pgrx_tests::installation::{Build, install, major};
use pgrx_tests::{machine, probe, wait};
use screen::{show, step};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use writer::Writer;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let once = std::env::args().any(|argument| argument == "--once");
    match run(once) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if INTERRUPTED.load(Ordering::SeqCst) => {
            println!("\nstopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(once: bool) -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst))?;
    screen::title();
    nodes::ports_are_free()?;
    step("packages", || machine::install(&machine::demo_packages(major()), screen::note))?;
    step(
        "building the extension in release mode (some minutes the first time) and a private copy of the server",
        || install(Build::Release).map(drop),
    )?;
    let nodes = Nodes::start()?;
    let haproxy = step("haproxy on 5999, as README.md has it", || {
        let haproxy = Haproxy::start("demo", &readme_configuration()?)?;
        wait::until("haproxy has checked both", || {
            haproxy.status("s1").starts_with("UP") && haproxy.status("s2").starts_with("DOWN")
        })?;
        Ok(haproxy)
    })?;
    answers(&nodes)?;
    pooling::show_pooling(&nodes)?;
    notifying::show_notifications(&nodes)?;
    let broker = streaming::show_streams(&nodes)?;
    fail_over_and_back(&nodes, &haproxy)?;
    streaming::show_after_failover(&nodes, broker.as_ref())?;
    if !once {
        how_to_connect();
        for node in [&nodes.primary, &nodes.standby] {
            let name = &node.name;
            println!("  {name}: process {}, log {}", node.pid()?, node.log_file().display());
        }
        println!(
            "  kill -INT of a process stops that node; the other one is promoted by SELECT pg_promote() as superuser\n"
        );
        println!("The cluster stays up. Ctrl-C stops it and removes its files.");
        while !INTERRUPTED.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("\nstopping");
    }
    drop(haproxy);
    nodes.stop()?;
    drop(broker);
    Ok(())
}

/// What each part answers.
fn answers(nodes: &Nodes) -> Result<()> {
    screen::heading("What each node answers");
    for node in [&nodes.primary, &nodes.standby] {
        show(&format!("{}: banner on {}", node.name, node.banner_port), &probe::banner(node.banner_port)?);
        show(
            &format!("{}: agent line on {}", node.name, node.agent_port),
            probe::agent(node.agent_port, "")?.trim_end(),
        );
        for path in ["/primary", "/replica?lag=16MB", "/health"] {
            let answer = probe::get(node.http_port, path)?;
            let reason = answer.reason();
            let why = if reason.is_empty() { String::new() } else { format!("  {reason}") };
            show(
                &format!("{}: GET {path} on {}", node.name, node.http_port),
                &format!("{}{why}", answer.code),
            );
        }
    }
    let metrics = probe::get(nodes.standby.http_port, "/metrics")?.body;
    let lag = metrics.lines().find(|l| l.starts_with("postern_replay_lag_bytes")).unwrap_or("no lag yet");
    show("node2: one line of GET /metrics", lag);
    let view =
        "SELECT role, healthy, timeline, wal_receiver, lag_bytes, lag, worker_starts FROM postern.status";
    println!("\n  node2: {view}");
    for line in nodes.table(&nodes.standby, view)? {
        println!("    {line}");
    }
    let once = probe::banner(nodes.primary.banner_port)? == "MASTER"
        && probe::banner(nodes.standby.banner_port)? == "STANDBY";
    ensure!(once, "the banners are wrong");
    ensure!(probe::code(nodes.standby.http_port, "/replica") == 200, "the standby is not healthy");
    Ok(())
}

fn fail_over_and_back(nodes: &Nodes, haproxy: &Haproxy) -> Result<()> {
    screen::heading("A failover under a client's writes through haproxy, and back");
    let writer = Writer::start()?;
    step("a client writes as app to shop through 5999", || writer.wait_for(20))?;

    step("node1 stops (fast), node2 is promoted", || {
        nodes.primary.stop(Stop::Fast)?;
        nodes.standby.promote()
    })?;
    step("the writes go on", || writer.wait_for_node("node2"))?;
    show("node2's banner", &probe::banner(nodes.standby.banner_port)?);
    show("longest time without a write", &format!("{:.1} s", writer.longest_gap().as_secs_f64()));
    step("node1 comes back as a standby of node2", || nodes.rejoin(&nodes.primary, &nodes.standby))?;

    writer.forget_gap();
    step("and back: node2 stops (fast), node1 is promoted", || {
        nodes.primary.wait_caught_up(&nodes.standby)?;
        nodes.standby.stop(Stop::Fast)?;
        nodes.primary.promote()
    })?;
    step("the writes go on", || writer.wait_for_node("node1"))?;
    show("longest time without a write", &format!("{:.1} s", writer.longest_gap().as_secs_f64()));
    step("node2 comes back as a standby of node1", || nodes.rejoin(&nodes.standby, &nodes.primary))?;

    let told = writer.stop()?;
    let kept = nodes.count_of(&nodes.primary, &told.acknowledged)?;
    show("writes acknowledged to the client", &told.acknowledged.len().to_string());
    show("of these in the table", &kept.to_string());
    show("connections that failed and were tried again", &told.failures.to_string());
    ensure!(
        kept == told.acknowledged.len(),
        "{} acknowledged writes are lost",
        told.acknowledged.len() - kept
    );
    wait::until("haproxy sees node1 up and node2 as a standby", || {
        haproxy.status("s1").starts_with("UP") && haproxy.status("s2").starts_with("DOWN")
    })?;
    let both = probe::banner(nodes.primary.banner_port)? == "MASTER"
        && probe::banner(nodes.standby.banner_port)? == "STANDBY";
    ensure!(both, "the banners are wrong at the end");
    Ok(())
}

fn how_to_connect() {
    screen::heading("How to connect");
    println!(
        "  the primary, through haproxy   psql postgresql://app:app@127.0.0.1:5999/shop
  node1, through its pooler      psql postgresql://app:app@127.0.0.1:6432/shop
  node2, through its pooler      psql postgresql://app:app@127.0.0.1:6442/shop
  node1, listen-only             psql postgresql://app:app@127.0.0.1:6433/shop    then: LISTEN demo;
  the events of shop in Kafka    kcat -C -b 127.0.0.1:9092 -t shop    while you write to orders
  the pooler's console           psql postgresql://postgres:postgres@127.0.0.1:6432/postern -c 'SHOW POOLS'
  node1 (primary)                psql postgresql://app:app@127.0.0.1:5500/shop
  node2 (standby)                psql postgresql://app:app@127.0.0.1:5501/shop
  as superuser, Postern's views  psql postgresql://postgres:postgres@127.0.0.1:5500/shop -xc 'TABLE postern.status'
  the banner                     nc 127.0.0.1 5400    nc 127.0.0.1 5401
  the agent line                 nc 127.0.0.1 5490    nc 127.0.0.1 5491
  HTTP                           curl -i http://127.0.0.1:5480/primary    curl http://127.0.0.1:5481/status
"
    );
}
