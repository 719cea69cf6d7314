//! The pooler beside a direct connection and beside PgBouncer, in alternating rounds of the same run:
//! `cargo bench -p postern-rig --bench pooler -- [PART…] [--OPTION=VALUE…]`. Without parts, all of them, which takes some
//! ten minutes. Prints; asserts nothing, since a machine's noise is no defect.
//!
//! | part | what |
//! |---|---|
//! | `cells` | pgbench -S over plain TCP: protocol × number of clients |
//! | `tls` | the same with sslmode=require, PgBouncer and Postern |
//! | `connect` | connect, log in, SELECT 1, close: trust and SCRAM |
//! | `sessions` | clients with settings and prepared statements of their own |
//! | `idle` | resident memory of an idle client |

mod cells;
mod connect;
mod cost;
mod idle;
mod options;
mod raw;
mod sessions;

use anyhow::{Context, Result};
use options::Options;
use pgrx_tests::certificate::Certificate;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::installation::{Build, install};
use pgrx_tests::pgbouncer::{self, Pgbouncer};
use pgrx_tests::{ports, wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fmt;
use std::process::Command;

fn main() -> Result<()> {
    let options = Options::read(std::env::args().skip(1))?;
    if !PARTS.iter().any(|(name, _)| options.wants(name)) {
        return Ok(());
    }
    raise_file_limit();
    let bench = Bench::start(options)?;
    let mut failed = Vec::new();
    for (name, part) in PARTS {
        if bench.options.wants(name) {
            println!("\n=== {name}");
            // One part that cannot be measured says so; the others are still worth it.
            if let Err(error) = part(&bench) {
                println!("{error:#}");
                failed.push(name);
            }
        }
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(" "));
    Ok(())
}

type Part = fn(&Bench) -> Result<()>;
const PARTS: [(&str, Part); 5] = [
    ("cells", cells::plain),
    ("tls", cells::tls),
    ("connect", connect::run),
    ("sessions", sessions::run),
    ("idle", idle::run),
];

/// What every part measures: one server, and what stands in front of it.
struct Bench {
    options: Options,
    server: Cluster,
    certificate: Certificate,
    /// Postern's pooler, unless it was left out.
    postern: Option<u16>,
}

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Direct,
    Pgbouncer,
    Postern,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Pgbouncer => "PgBouncer",
            Self::Postern => "Postern",
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Target {
    kind: Kind,
    port: u16,
    /// A process that works for it beside the server's own.
    beside: Option<i32>,
}

impl Bench {
    fn start(options: Options) -> Result<Self> {
        let installation = install(Build::Release)?;
        let cores = std::thread::available_parallelism()?;
        println!("PostgreSQL {}, PgBouncer {}, {cores} cores", installation.major, pgbouncer::VERSION);
        let cluster = Cluster::with(installation, "bench")?;
        let certificate = Certificate::self_signed(cluster.socket_directory())?;
        for (name, value) in [
            ("max_connections", "1100"),
            ("shared_buffers", "256MB"),
            ("autovacuum", "off"),
            ("ssl", "on"),
            ("ssl_cert_file", &certificate.certificate.to_string_lossy()),
            ("ssl_key_file", &certificate.key.to_string_lossy()),
        ] {
            cluster.set(name, value)?;
        }
        cluster.set_hba(
            "local all all trust\nhost all bench_scram all scram-sha-256\nhost all all all trust\n",
        )?;
        let postern = if options.without_postern { None } else { Some(ports::free()?) };
        if let Some(port) = postern {
            cluster.set("postern.pooler_listen", &format!("127.0.0.1:{port}"))?;
            cluster.set("postern.pool_size", &options.pool.to_string())?;
            cluster.set("postern.pooler_threads", &options.threads.to_string())?;
            cluster.set("postern.max_prepared_statements", &options.statements.to_string())?;
            let most = (options.idle_clients + 1000).max(10_000);
            cluster.set("postern.max_client_connections", &most.to_string())?;
        }
        let bench = Self { options, server: cluster.start()?, certificate, postern };
        bench.server.sql("CREATE ROLE bench_scram LOGIN PASSWORD 'secret'")?;
        if let Some(port) = postern {
            wait::for_value("Postern's pooler answers", || raw::Client::connect(port)?.query("SELECT 1"))
                .context("is it built in? --without-postern leaves it out")?;
        }
        let scale = bench.options.scale.to_string();
        let mut fill = bench.pgbench();
        fill.args(["-h", &bench.server.socket_directory().to_string_lossy(), "-U", "postgres"]);
        let output = fill
            .args(["-p", &bench.server.port.to_string(), "-i", "-q", "-s", &scale, "postgres"])
            .output()?;
        anyhow::ensure!(output.status.success(), "pgbench -i: {}", String::from_utf8_lossy(&output.stderr));
        Ok(bench)
    }

    /// pgbench as the server user, without TLS unless told.
    fn pgbench(&self) -> Command {
        let mut command = self.server.program("pgbench");
        // libpq looks for certificates at home, where the server user may not look.
        command.env("HOME", "/").env("PGSSLMODE", "disable").env("PGPASSWORD", "secret");
        command
    }

    /// PgBouncer as all parts have it; to be changed.
    fn pgbouncer_options(&self) -> pgbouncer::Options {
        let more = vec![("max_prepared_statements".to_owned(), self.options.statements.to_string())];
        pgbouncer::Options { pool_size: self.options.pool, more, ..pgbouncer::Options::default() }
    }

    fn direct(&self) -> Target {
        Target { kind: Kind::Direct, port: self.server.port, beside: None }
    }

    fn pgbouncer(bouncer: &Pgbouncer) -> Result<Target> {
        Ok(Target { kind: Kind::Pgbouncer, port: bouncer.port, beside: Some(bouncer.pid()?) })
    }

    fn postern(&self) -> Option<Target> {
        self.postern.map(|port| Target { kind: Kind::Postern, port, beside: None })
    }

    /// All three, as far as they are there.
    fn targets(&self, bouncer: &Pgbouncer) -> Result<Vec<Target>> {
        let mut targets = vec![self.direct(), Self::pgbouncer(bouncer)?];
        targets.extend(self.postern());
        Ok(targets)
    }
}

/// Runs `round` for every target in every round, taking turns in going first, and gives each target's results.
fn alternating<T>(
    targets: &[Target],
    rounds: usize,
    mut round: impl FnMut(&Target) -> Result<T>,
) -> Result<Vec<(Target, Vec<T>)>> {
    let mut results: Vec<(Target, Vec<T>)> = targets.iter().map(|target| (*target, Vec::new())).collect();
    for number in 0..rounds {
        for place in 0..targets.len() {
            let (target, results) = &mut results[(number + place) % targets.len()];
            results.push(round(target)?);
        }
    }
    Ok(results)
}

/// Not known as soon as one of the values is not: without the rounds that failed, the rest would look well.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    if sorted.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A number, or a dash where there is none.
fn number(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { "-".to_owned() }
}

/// Thousands of clients are thousands of files, here and in the servers, which inherit the limit.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
