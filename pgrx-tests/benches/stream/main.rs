//! The change streams beside `pg_recvlogical` and beside a bare Kafka producer, in alternating rounds of the same run:
//! `cargo bench -p postern-rig --bench stream -- [PART…] [--OPTION=VALUE…]`. Prints; asserts nothing, since a machine's noise is no
//! defect.
//!
//! | part | what |
//! |---|---|
//! | `decode` | decoding and encoding to the sink `stub_discard`, and pg_recvlogical with pgoutput on the same WAL |
//! | `kafka` | events of 300 bytes to librdkafka's mock cluster and to a real broker, and a bare producer of the same settings |
//! | `latency` | from a commit to the file or the topic, a hundred a second |
//! | `memory` | what the worker holds over millions of events |

mod decode;
mod kafka;
mod latency;
mod memory;

use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::installation::{Build, install};
use pgrx_tests::wait;
use std::fmt::Display;
use std::time::Duration;

struct Options {
    parts: Vec<String>,
    rounds: usize,
    /// Changes of a round of `decode`, and events of a round of `kafka`.
    changes: u64,
    /// Rows of a transaction: each is a row of `decode`.
    rows: Vec<u64>,
    /// Of `latency`.
    seconds: u64,
    /// Of `memory`.
    events: u64,
    /// Of a topic.
    partitions: u32,
}

const USAGE: &str = "parts: decode kafka latency memory
options: --rounds=3 --changes=1000000 --rows=1,100,10000 --seconds=30 --events=10000000 --partitions=3";

impl Options {
    fn read() -> Result<Self> {
        let mut options = Self {
            parts: Vec::new(),
            rounds: 3,
            changes: 1_000_000,
            rows: vec![1, 100, 10_000],
            seconds: 30,
            events: 10_000_000,
            partitions: 3,
        };
        for argument in std::env::args().skip(1) {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            match name {
                "--bench" => {}
                "--rounds" => options.rounds = value.parse()?,
                "--changes" => options.changes = value.parse()?,
                "--rows" => options.rows = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--seconds" => options.seconds = value.parse()?,
                "--events" => options.events = value.parse()?,
                "--partitions" => options.partitions = value.parse()?,
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

type Part = fn(&Bench) -> Result<()>;
const PARTS: [(&str, Part); 4] =
    [("decode", decode::run), ("kafka", kafka::run), ("latency", latency::run), ("memory", memory::run)];

fn main() -> Result<()> {
    let options = Options::read()?;
    if !PARTS.iter().any(|(name, _)| options.wants(name)) {
        return Ok(());
    }
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

struct Bench {
    options: Options,
    server: Cluster,
}

/// What the changes of a WAL are.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Insert,
    /// Of one column that is in no index, of rows that were there before.
    Update,
}

/// WAL that is decoded again and again: by copies of a slot that begins before it.
struct Wal {
    changes: u64,
    /// A position after the last of them, and before one more row; and one after that.
    end: String,
    last: String,
}

/// The slot that begins before the WAL of a round.
const SLOT: &str = "wal";

impl Bench {
    fn start(options: Options) -> Result<Self> {
        let installation = install(Build::Release)?;
        println!("PostgreSQL {}, {} cores", installation.major, std::thread::available_parallelism()?);
        let server = Cluster::with(installation, "bench-stream")?;
        for (name, value) in [
            ("wal_level", "logical"),
            ("shared_buffers", "256MB"),
            ("max_wal_size", "8GB"),
            ("wal_keep_size", "0"),
            ("autovacuum", "off"),
            ("max_worker_processes", "16"),
        ] {
            server.set(name, value)?;
        }
        let server = server.start()?;
        server.create_extension()?;
        server.sql(
            "CREATE TABLE bench (id bigint PRIMARY KEY, customer int NOT NULL, note text NOT NULL,
                                 amount numeric(10,2) NOT NULL, at timestamptz NOT NULL)",
        )?;
        server.sql("CREATE PUBLICATION bench FOR TABLE bench WITH (publish = 'insert, update')")?;
        Ok(Self { options, server })
    }

    /// A statement that inserts the rows from `first` to `last`, which may be expressions.
    fn insert(first: impl Display, last: impl Display, note: usize) -> String {
        format!(
            "INSERT INTO bench SELECT i, i % 5000, rpad('order ' || i || ' ', {note}, 'x'), i % 100000 / 100.0, clock_timestamp()
             FROM generate_series({first}, {last}) i"
        )
    }

    /// Writes so many changes, in transactions of so many rows whose note has so many bytes.
    fn write(&self, kind: Kind, changes: u64, rows: u64, note: usize) -> Result<Wal> {
        let mut client = self.server.connect()?;
        client.batch_execute("TRUNCATE bench; SET synchronous_commit = off")?;
        let last = format!("least(n + {rows} - 1, {changes})");
        let change = match kind {
            Kind::Insert => Self::insert("n", &last, note),
            Kind::Update => {
                client.batch_execute(&Self::insert(1, changes, note))?;
                format!("UPDATE bench SET customer = customer + 1 WHERE id BETWEEN n AND {last}")
            }
        };
        client.batch_execute(&format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"))?;
        client.batch_execute(&format!(
            "DO $$ DECLARE n bigint := 1; BEGIN
                 WHILE n <= {changes} LOOP
                     {change};
                     COMMIT;
                     n := n + {rows};
                 END LOOP;
             END $$"
        ))?;
        let end = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?.get(0);
        // Whoever reads to the end is told at once that there is more.
        client.batch_execute("SET synchronous_commit = on")?;
        client.batch_execute(&Self::insert(0, 0, note))?;
        let last = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[])?.get(0);
        Ok(Wal { changes, end, last })
    }

    /// The WAL may go.
    fn forget(&self) -> Result<()> {
        self.server.sql(&format!("SELECT pg_drop_replication_slot('{SLOT}')"))?;
        self.server.sql("CHECKPOINT").map(drop)
    }

    /// A slot that begins where that of the WAL begins.
    fn copy_slot(&self, name: &str) -> Result<()> {
        self.server.sql(&format!("SELECT pg_copy_logical_replication_slot('{SLOT}', '{name}')")).map(drop)
    }

    fn drop_slot(&self, name: &str) -> Result<()> {
        wait::for_value("the slot is dropped", || {
            self.server.sql(&format!("SELECT pg_drop_replication_slot('{name}')")).map(drop)
        })
    }

    /// Makes a source `bench` with that slot and a stream of it, `bench`, to a new sink.
    fn stream(&self, slot: &str, sink: &str, options: &str) -> Result<()> {
        self.server
            .sql(&format!(
                r#"SELECT postern.create_source('bench', 'postgres',
                       '{{"publication":"bench","host":"shop","slot":"{slot}"}}');
                   SELECT postern.create_sink('bench', '{sink}', '{options}');
                   SELECT postern.create_stream('bench', 'bench', 'bench')"#
            ))
            .map(drop)
    }

    fn drop_stream(&self) -> Result<()> {
        let sql = "SELECT postern.drop_stream('bench'); SELECT postern.drop_source('bench'); SELECT postern.drop_sink('bench')";
        self.server.sql(sql).map(drop)
    }

    /// Streams the WAL to a sink: changes a second from the start of the worker's process to the last delivery, and bytes of an event.
    fn streamed(&self, wal: &Wal, sink: &str, options: &str) -> Result<(f64, f64)> {
        self.copy_slot("ours")?;
        self.stream("ours", sink, options)?;
        let mut client = self.server.connect()?;
        let mut seconds = 0.0;
        let (mut events, mut bytes) = (0, 0);
        let look = format!(
            "SELECT extract(epoch FROM s.last_delivered_at - o.worker_started_at)::float8, s.events, s.bytes,
                    coalesce(s.delivered_lsn >= '{}', false)
             FROM postern.streams s JOIN postern.sources o ON o.name = s.source",
            wal.last
        );
        wait::until_within(Duration::from_secs(600), "everything is delivered", || {
            std::thread::sleep(Duration::from_millis(90));
            let Ok(row) = client.query_one(&look, &[]) else { return false };
            if !row.get::<_, bool>(3) {
                return false;
            }
            (seconds, events, bytes) = (row.get(0), row.get::<_, i64>(1), row.get::<_, i64>(2));
            true
        })
        .with_context(|| {
            let seen = self.server.sql("SELECT to_jsonb(s) FROM postern.streams s");
            format!("{seen:?}\n{}", self.server.log_tail())
        })?;
        anyhow::ensure!(events == wal.changes as i64 + 1, "{events} events of {}", wal.changes);
        self.drop_stream()?;
        self.drop_slot("ours")?;
        Ok((wal.changes as f64 / seconds, bytes as f64 / events as f64))
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs two things in turns, the other one first each time; what each gave.
fn alternate(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64>,
    mut theirs: impl FnMut() -> Result<f64>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            b.push(theirs()?);
            a.push(ours()?);
        } else {
            a.push(ours()?);
            b.push(theirs()?);
        }
    }
    Ok((a, b))
}

/// What both gave in thousands a second, and the ratio of each round.
fn show(what: &str, ours: &[f64], theirs: &str, others: &[f64]) {
    let list = |values: &[f64]| {
        values.iter().map(|value| format!("{:.0}", value / 1e3)).collect::<Vec<_>>().join(" ")
    };
    let ratios: Vec<_> = ours.iter().zip(others).map(|(a, b)| a / b).collect();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    println!(
        "{what}: Postern {:.0} k/s ({}), {theirs} {:.0} k/s ({}); ratio {:.2} ({least:.2} to {most:.2})",
        median(ours) / 1e3,
        list(ours),
        median(others) / 1e3,
        list(others),
        median(&ratios)
    );
}
