//! The notification relay beside the server's own LISTEN and beside a bare fan-out loop, in alternating rounds of the same run:
//! `cargo bench -p postern-rig --bench relay -- [PART…] [--OPTION=VALUE…]`. Prints; asserts nothing, since a machine's noise is no defect.
//!
//! | part | what |
//! |---|---|
//! | `rate` | NOTIFYs that commit a second: with one native listener, with a thousand through the pooler, with a thousand native ones |
//! | `deliveries` | notifications given to a thousand listeners a second, and what a bare loop does: one send for each |
//! | `latency` | from NOTIFY to a listener's socket, one listener, a low rate |
//! | `channels` | the same with 10,000 listeners on 10,000 channels, one notified at a time |

use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::installation::{Build, install};
use rustix::event::epoll;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

struct Options {
    parts: Vec<String>,
    rounds: usize,
    seconds: u64,
    listeners: usize,
    channels: usize,
}

const USAGE: &str = "parts: rate deliveries latency channels\noptions: --rounds=3 --seconds=10 --listeners=1000 --channels=10000";

impl Options {
    fn read() -> Result<Self> {
        let mut options =
            Self { parts: Vec::new(), rounds: 3, seconds: 10, listeners: 1000, channels: 10_000 };
        for argument in std::env::args().skip(1) {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            match name {
                "--bench" => {}
                "--rounds" => options.rounds = value.parse()?,
                "--seconds" => options.seconds = value.parse()?,
                "--listeners" => options.listeners = value.parse()?,
                "--channels" => options.channels = value.parse()?,
                part if !part.starts_with("--") => options.parts.push(part.to_owned()),
                _ => anyhow::bail!("{argument}\n{USAGE}"),
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn main() -> Result<()> {
    let options = Options::read()?;
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let installation = install(Build::Release)?;
    println!("PostgreSQL {}, {} cores", installation.major, std::thread::available_parallelism()?);
    let server = Cluster::with(installation, "bench-relay")?;
    server.set("max_connections", &(options.listeners + 50).to_string())?;
    server.set("postern.max_client_connections", &(options.channels + 100).to_string())?;
    server.set("postern.relay_max_channels", &(options.channels + 100).to_string())?;
    let server = server.start()?;
    let bench = Bench { options, server };
    let parts: [(&str, Part); 4] =
        [("rate", rate), ("deliveries", deliveries), ("latency", latency), ("channels", channels)];
    for (name, part) in parts {
        if bench.options.wants(name) {
            println!("\n=== {name}");
            part(&bench)?;
        }
    }
    Ok(())
}

type Part = fn(&Bench) -> Result<()>;

struct Bench {
    options: Options,
    server: Cluster,
}

/// Protocol 3.0, user and database postgres.
const STARTUP: &[u8] = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";

struct Client(TcpStream);

impl Client {
    fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut client = Self(stream);
        client.0.write_all(STARTUP)?;
        client.end_of_answer()?;
        Ok(client)
    }

    /// Reads to an idle ReadyForQuery.
    fn end_of_answer(&mut self) -> Result<()> {
        let mut input = Vec::new();
        let mut buffer = [0; 8192];
        while !input.ends_with(b"Z\0\0\0\x05I") {
            let length = self.0.read(&mut buffer)?;
            ensure!(length > 0, "closed: {}", String::from_utf8_lossy(&input));
            input.extend(&buffer[..length]);
        }
        ensure!(!input.starts_with(b"E"), "{}", String::from_utf8_lossy(&input));
        Ok(())
    }

    fn query(&mut self, sql: &str) -> Result<()> {
        let mut message = vec![b'Q'];
        message.extend((sql.len() as u32 + 5).to_be_bytes());
        message.extend(sql.as_bytes());
        message.push(0);
        self.0.write_all(&message)?;
        self.end_of_answer()
    }
}

/// Sixteen bytes, so that every notification is as long as the others.
fn payload(number: u64) -> String {
    format!("{number:016}")
}

/// The bytes of a notification on `bench`.
const NOTIFICATION: u64 = 1 + 4 + 4 + 6 + 17;

/// Listeners whose bytes a thread of its own counts.
struct Crowd {
    received: Arc<Vec<AtomicU64>>,
    closed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Crowd {
    /// Of sockets that are to be read from here on.
    fn of(streams: Vec<TcpStream>) -> Result<Self> {
        let received: Arc<Vec<AtomicU64>> = Arc::new(streams.iter().map(|_| AtomicU64::new(0)).collect());
        let (closed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, stream) in streams.iter().enumerate() {
            stream.set_nonblocking(true)?;
            epoll::add(&queue, stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
        }
        let thread = std::thread::spawn({
            let (received, closed, stop) = (Arc::clone(&received), Arc::clone(&closed), Arc::clone(&stop));
            move || {
                let mut buffer = vec![0; 1 << 18];
                let mut events = Vec::with_capacity(256);
                while !stop.load(Relaxed) {
                    let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                    events.clear();
                    let _ = epoll::wait(&queue, rustix::buffer::spare_capacity(&mut events), Some(&wait));
                    for event in &events {
                        let number = event.data.u64() as usize;
                        match (&streams[number]).read(&mut buffer) {
                            Ok(0) => {
                                closed.fetch_add(1, Relaxed);
                                let _ = epoll::delete(&queue, &streams[number]);
                            }
                            Ok(length) => {
                                received[number].fetch_add(length as u64, Relaxed);
                            }
                            Err(_) => {}
                        }
                    }
                }
            }
        });
        Ok(Self { received, closed, stop, thread: Some(thread) })
    }

    fn listen(port: u16, count: usize) -> Result<Self> {
        let open = |_| {
            let mut client = Client::open(port)?;
            client.query("LISTEN bench")?;
            Ok(client.0)
        };
        Self::of((0..count).map(open).collect::<Result<_>>()?)
    }

    /// Waits until every listener has so many bytes; how long it took. The fewest, when it takes longer than a minute.
    fn wait_for(&self, bytes: u64) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let least = self.received.iter().map(|count| count.load(Relaxed)).min().unwrap_or(0);
            let most = self.received.iter().map(|count| count.load(Relaxed)).max().unwrap_or(0);
            if least >= bytes {
                ensure!(most == bytes, "a listener has {most} bytes of {bytes}");
                return Ok(began.elapsed());
            }
            ensure!(
                began.elapsed() < Duration::from_secs(60),
                "the slowest listener has {least} bytes of {bytes}; {} were closed",
                self.closed.load(Relaxed)
            );
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// NOTIFYs of one client for so long: how many.
fn notify(port: u16, time: Duration) -> Result<u64> {
    let mut client = Client::open(port)?;
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < time {
        client.query(&format!("NOTIFY bench, '{}'", payload(count)))?;
        count += 1;
    }
    Ok(count)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn rate(bench: &Bench) -> Result<()> {
    let (native, pooler) = (bench.server.port, bench.server.pooler_port);
    let time = Duration::from_secs(bench.options.seconds);
    let many = bench.options.listeners;
    let run = |port: u16, listeners: usize, time: Duration| -> Result<f64> {
        let crowd = Crowd::listen(port, listeners)?;
        let count = notify(native, time)?;
        let behind = crowd.wait_for(count * NOTIFICATION)?;
        let rate = count as f64 / time.as_secs_f64();
        println!(
            "{} {listeners:>5} listeners: {rate:>7.0} NOTIFYs/s; everybody has all of it {:.2} s later, {} cut off",
            if port == native { "native " } else { "relayed" },
            behind.as_secs_f64(),
            crowd.closed.load(Relaxed)
        );
        Ok(rate)
    };
    let (mut one, mut all) = (Vec::new(), Vec::new());
    for round in 0..bench.options.rounds {
        if round % 2 == 0 {
            one.push(run(native, 1, time)?);
            all.push(run(pooler, many, time)?);
        } else {
            all.push(run(pooler, many, time)?);
            one.push(run(native, 1, time)?);
        }
    }
    let collapsed = run(native, many, Duration::from_secs(2))?;
    let ratios: Vec<f64> = one.iter().zip(&all).map(|(one, all)| all / one).collect();
    println!(
        "median: relayed with {many} {:.2} of native with one; native with {many} {:.4}",
        median(&ratios),
        collapsed / median(&one)
    );
    Ok(())
}

/// What a fan-out service does: one thread, one send for each notification and listener.
fn bare_loop(listeners: usize, notifications: u64) -> Result<Duration> {
    let door = TcpListener::bind("127.0.0.1:0")?;
    let port = door.local_addr()?.port();
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..listeners {
        theirs.push(TcpStream::connect(("127.0.0.1", port))?);
        let stream = door.accept()?.0;
        stream.set_nodelay(true)?;
        ours.push(stream);
    }
    let crowd = Crowd::of(theirs)?;
    let message = [b'A'; NOTIFICATION as usize];
    let began = Instant::now();
    for _ in 0..notifications {
        for stream in &mut ours {
            stream.write_all(&message)?;
        }
    }
    crowd.wait_for(notifications * NOTIFICATION)?;
    Ok(began.elapsed())
}

fn deliveries(bench: &Bench) -> Result<()> {
    let many = bench.options.listeners;
    let crowd = Crowd::listen(bench.server.pooler_port, many)?;
    let mut notifier = Client::open(bench.server.port)?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let mut sent = 0;
    let per_second = |count: u64, time: Duration| (count * many as u64) as f64 / time.as_secs_f64() / 1e6;
    for _ in 0..bench.options.rounds {
        // As many as the ring holds, in transactions of a thousand.
        let count = 20_000;
        let began = Instant::now();
        for _ in 0..count / 1000 {
            notifier.query(&format!(
                "SELECT pg_notify('bench', lpad((g + {sent})::text, 16, '0')) FROM generate_series(1, 1000) g OFFSET 1000"
            ))?;
            sent += 1000;
        }
        crowd.wait_for(sent * NOTIFICATION)?;
        ours.push(per_second(count, began.elapsed()));
        bare.push(per_second(500, bare_loop(many, 500)?));
        println!(
            "relayed {:.2} million deliveries/s, bare loop {:.2}",
            ours.last().copied().unwrap_or(f64::NAN),
            bare.last().copied().unwrap_or(f64::NAN)
        );
    }
    println!("median: {:.1} of the bare loop", median(&ours) / median(&bare));
    Ok(())
}

/// From sending NOTIFY until the listener's socket has the notification: microseconds, sorted.
fn delays(notifier: &mut Client, listener: &mut Client, channel: &str, count: u64) -> Result<Vec<f64>> {
    let mut delays = Vec::new();
    let mut buffer = [0; 4096];
    for number in 0..count {
        std::thread::sleep(Duration::from_millis(2));
        let mut message = vec![b'Q'];
        let sql = format!("NOTIFY {channel}, '{}'", payload(number));
        message.extend((sql.len() as u32 + 5).to_be_bytes());
        message.extend(sql.as_bytes());
        message.push(0);
        let began = Instant::now();
        notifier.0.write_all(&message)?;
        let length = listener.0.read(&mut buffer)?;
        delays.push(began.elapsed().as_secs_f64() * 1e6);
        ensure!(buffer[..length].starts_with(b"A"), "no notification");
        notifier.end_of_answer()?;
    }
    delays.sort_by(f64::total_cmp);
    Ok(delays)
}

fn at(delays: &[f64], share: f64) -> f64 {
    delays.get((delays.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}

fn latency(bench: &Bench) -> Result<()> {
    let (mut fifty, mut ninety_nine) = (Vec::new(), Vec::new());
    for round in 0..bench.options.rounds {
        let measure = |port: u16| -> Result<Vec<f64>> {
            let mut listener = Client::open(port)?;
            listener.query("LISTEN bench")?;
            delays(&mut Client::open(bench.server.port)?, &mut listener, "bench", 1000)
        };
        let (native, relayed) = if round % 2 == 0 {
            let native = measure(bench.server.port)?;
            (native, measure(bench.server.pooler_port)?)
        } else {
            let relayed = measure(bench.server.pooler_port)?;
            (measure(bench.server.port)?, relayed)
        };
        println!(
            "native p50 {:.0} µs, p99 {:.0} µs; relayed p50 {:.0} µs, p99 {:.0} µs",
            at(&native, 0.5),
            at(&native, 0.99),
            at(&relayed, 0.5),
            at(&relayed, 0.99)
        );
        fifty.push(at(&relayed, 0.5) / at(&native, 0.5));
        ninety_nine.push(at(&relayed, 0.99) / at(&native, 0.99));
    }
    println!("median: p50 {:.2} of native, p99 {:.2}", median(&fifty), median(&ninety_nine));
    Ok(())
}

fn channels(bench: &Bench) -> Result<()> {
    let many = bench.options.channels;
    let mut notifier = Client::open(bench.server.port)?;
    let mut listeners: Vec<Client> = Vec::new();
    for count in [10, 100, many / 10, many] {
        while listeners.len() < count {
            let mut client = Client::open(bench.server.pooler_port)?;
            client.query(&format!("LISTEN bench{}", listeners.len()))?;
            listeners.push(client);
        }
        let mut all = Vec::new();
        for turn in 0..10 {
            let number = turn * count / 10;
            let listener = listeners.get_mut(number).context("a listener")?;
            all.extend(delays(&mut notifier, listener, &format!("bench{number}"), 100)?);
        }
        all.sort_by(f64::total_cmp);
        println!(
            "{count:>6} listeners on as many channels: p50 {:.0} µs, p99 {:.0} µs",
            at(&all, 0.5),
            at(&all, 0.99)
        );
    }
    Ok(())
}
