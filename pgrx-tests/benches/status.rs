//! The status worker's promises as numbers, each beside a floor in the same run: `cargo bench`, or one of them by
//! name: `cargo bench -- banner`. Prints; asserts nothing, since a machine's noise is no defect.

use anyhow::{Context, Result};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::installation::{Build, install};
use pgrx_tests::process::{self, Process};
use pgrx_tests::{ports, wait};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if let [word, port] = arguments.as_slice()
        && word == "bare-loop"
    {
        return bare_loop(port.parse()?);
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|a| name.contains(a.as_str()));
    let installation = install(Build::Release)?;
    println!("PostgreSQL {}, {} cores", installation.major, std::thread::available_parallelism()?);
    let server = Cluster::with(installation, "bench")?.start()?;
    if wanted("banner-throughput") {
        throughput(&server)?;
    }
    if wanted("banner-crowd") {
        crowd(&server)?;
    }
    if wanted("banner-latency") {
        latency(&server)?;
    }
    if wanted("idle") {
        idle(&server)?;
    }
    drop(server);
    if wanted("pgbench") {
        pgbench()?;
    }
    Ok(())
}

/// The floor: what any program that accepts, sends and closes must do, in a process of its own.
fn bare_loop(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    loop {
        let (mut client, _) = listener.accept()?;
        let _ = client.write_all(b"MASTER");
    }
}

fn start_bare_loop() -> Result<(Process, u16)> {
    let port = ports::free()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare-loop", &port.to_string()]).current_dir("/").stdin(Stdio::null());
    let process = process::start(command, rustix::process::Signal::TERM)?;
    wait::until("the bare loop listens", || check(port).is_ok())?;
    Ok((process, port))
}

fn throughput(server: &Cluster) -> Result<()> {
    let (_bare, bare_port) = start_bare_loop()?;
    for port in [server.banner_port, bare_port] {
        checkers(4, port, ROUND);
    }
    let (mut ours, mut floor, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Alternating, and taking turns in going first.
        let run = |port| checkers(4, port, ROUND).done as f64 / ROUND.as_secs_f64();
        let (banner, bare) = if round % 2 == 0 {
            let banner = run(server.banner_port);
            (banner, run(bare_port))
        } else {
            let bare = run(bare_port);
            (run(server.banner_port), bare)
        };
        ours.push(banner);
        floor.push(bare);
        ratios.push(banner / bare);
    }
    println!(
        "banner-throughput  4 checkers, {ROUNDS} rounds: {:.0} checks/s, bare accept-send-close loop {:.0}, \
         ratio {:.3} (median of rounds {:.3})",
        median(&ours),
        median(&floor),
        median(&ours) / median(&floor),
        median(&ratios)
    );
    Ok(())
}

fn crowd(server: &Cluster) -> Result<()> {
    let time = Duration::from_secs(10);
    let result = checkers(1000, server.banner_port, time);
    println!(
        "banner-crowd       1000 checkers for {} s: {} checks, {} failed{}",
        time.as_secs(),
        result.done,
        result.failed,
        result.first_error.map_or(String::new(), |error| format!(" (first: {error})"))
    );
    Ok(())
}

fn latency(server: &Cluster) -> Result<()> {
    let (_bare, bare_port) = start_bare_loop()?;
    let targets = [("banner", server.banner_port), ("bare loop", bare_port)];
    let mut percentiles = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    for round in 0..2 * ROUNDS {
        // Alternating; one round of each warms up and is not counted.
        let (_, port) = targets[round % 2];
        let mut times = checkers(128, port, ROUND).times;
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
        if round >= 2 {
            percentiles[round % 2].0.push(at(0.50));
            percentiles[round % 2].1.push(at(0.99));
        }
    }
    for ((name, _), (p50s, p99s)) in targets.iter().zip(&percentiles) {
        let (p50, p99) = (median(p50s), median(p99s));
        let worst = p50s.iter().zip(p99s).map(|(p50, p99)| p99 / p50).fold(0.0, f64::max);
        println!(
            "banner-latency     128 checkers, {name}: p50 {p50:.2} ms, p99 {p99:.2} ms, p99/p50 {:.2} (worst round {worst:.2})",
            p99 / p50
        );
    }
    Ok(())
}

/// Wake-ups and processor time of the whole worker, all threads, with the three kinds of ports open.
fn idle(server: &Cluster) -> Result<()> {
    let worker = server.worker_pid()?;
    std::thread::sleep(Duration::from_secs(2));
    let time = Duration::from_secs(20);
    let (sleeps, ticks) = (process::sleeps(worker)?, processor_ticks(worker)?);
    std::thread::sleep(time);
    let per_second = (process::sleeps(worker)? - sleeps) as f64 / time.as_secs_f64();
    let used = (processor_ticks(worker)? - ticks) as f64 * 10.0;
    println!(
        "idle               {per_second:.2} wake-ups/s, {used:.0} ms of processor time in {} s",
        time.as_secs()
    );
    Ok(())
}

/// User and system time in hundredths of a second (proc(5), /proc/pid/stat).
fn processor_ticks(pid: i32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().context("no fields")?.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// pgbench -S without the library, and with it and everything off.
fn pgbench() -> Result<()> {
    let off = ["postern.status_listen", "postern.agent_listen", "postern.http_listen"];
    let installation = install(Build::Release)?;
    let server = Cluster::with(installation, "pgbench")?.start()?;
    let run = |arguments: &[&str]| -> Result<String> {
        let mut command = server.program("pgbench");
        command.args(["-h", &server.socket_directory().to_string_lossy(), "-p", &server.port.to_string()]);
        let output = command.args(["-U", "postgres"]).args(arguments).arg("postgres").output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    run(&["-i", "-q", "-s", "5"])?;
    let measure = || -> Result<f64> {
        let text = run(&["-n", "-S", "-c", "4", "-j", "2", "-T", "4"])?;
        let line = text.lines().find(|l| l.starts_with("tps = ")).context("no tps")?;
        Ok(line.split_whitespace().nth(2).context("no number")?.parse()?)
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..14 {
        let loaded = round % 2 == 0;
        server.set("shared_preload_libraries", if loaded { "postern" } else { "" })?;
        for setting in off {
            server.set(setting, "")?;
        }
        server.restart(Stop::Fast)?;
        measure()?;
        if loaded { &mut with } else { &mut without }.push(measure()?);
    }
    let spread = |values: &[f64]| {
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        (high - low) / median(values) * 100.0
    };
    println!(
        "pgbench            -S, 4 clients, everything off: {:.0} tps with the library, {:.0} without, ratio {:.3}; \
         spread of rounds {:.1}% and {:.1}%",
        median(&with),
        median(&without),
        median(&with) / median(&without),
        spread(&with),
        spread(&without)
    );
    Ok(())
}

#[derive(Default)]
struct Checked {
    done: u64,
    failed: u64,
    times: Vec<Duration>,
    first_error: Option<String>,
}

/// As many checkers at once, each connecting, reading to the end and starting over, for a time.
fn checkers(count: usize, port: u16, time: Duration) -> Checked {
    let stop = Arc::new(AtomicBool::new(false));
    let one = |stop: Arc<AtomicBool>| {
        move || {
            let mut checked = Checked::default();
            while !stop.load(Ordering::Relaxed) {
                let before = Instant::now();
                match check(port) {
                    Ok(()) => {
                        checked.done += 1;
                        checked.times.push(before.elapsed());
                    }
                    Err(error) => {
                        checked.failed += 1;
                        checked.first_error.get_or_insert(format!("{error:#}"));
                    }
                }
            }
            checked
        }
    };
    let threads: Vec<_> = (0..count)
        .filter_map(|_| std::thread::Builder::new().stack_size(128 * 1024).spawn(one(Arc::clone(&stop))).ok())
        .collect();
    std::thread::sleep(time);
    stop.store(true, Ordering::Relaxed);
    let mut all = Checked::default();
    for thread in threads {
        if let Ok(mut checked) = thread.join() {
            all.done += checked.done;
            all.failed += checked.failed;
            all.times.append(&mut checked.times);
            all.first_error = all.first_error.or(checked.first_error);
        }
    }
    all
}

fn check(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = [0; 16];
    let mut length = 0;
    loop {
        match stream.read(&mut text[length..])? {
            0 => break,
            read => length += read,
        }
    }
    anyhow::ensure!(&text[..length] == b"MASTER", "read {:?}", &text[..length]);
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
