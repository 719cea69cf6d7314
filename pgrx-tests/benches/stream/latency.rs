//! From the sending of an INSERT, which commits by itself, until its event can be read at the other end: a hundred a second.

use super::Bench;
use super::kafka::{TOPIC, broker, sink};
use anyhow::{Context, Result, ensure};
use pgrx_tests::wait;
use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(10);

pub fn run(bench: &Bench) -> Result<()> {
    let path = bench.server.data().join("bench.jsonl");
    let options = format!(r#"{{"path":"{}","rotate_size":0}}"#, path.display());
    measure(bench, "file", "file", &options, |seen| {
        let mut file = None;
        let mut text = Vec::new();
        Ok(Box::new(move || {
            if file.is_none() {
                file = std::fs::File::open(&path).ok();
            }
            if let Some(file) = &mut file {
                file.read_to_end(&mut text)?;
                let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
                text[..whole].split(|byte| *byte == b'\n').filter_map(id).for_each(&seen);
                text.drain(..whole);
            }
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        }))
    })?;
    // The mock answers whoever waits for a record when its time is up, not when there is one.
    match broker(bench)? {
        Some(broker) => to_topic(bench, &broker.address()),
        None => Ok(()),
    }
}

fn to_topic(bench: &Bench, hosts: &str) -> Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", hosts).set("group.id", "bench").set("enable.auto.commit", "false");
    config.set("fetch.wait.max.ms", "100");
    let consumer: BaseConsumer = config.create()?;
    let mut from = TopicPartitionList::new();
    for partition in 0..bench.options.partitions {
        from.add_partition_offset(TOPIC, i32::try_from(partition)?, Offset::Beginning)?;
    }
    consumer.assign(&from)?;
    measure(bench, "real broker", "kafka", &sink(hosts), |seen| {
        Ok(Box::new(move || {
            if let Some(message) = consumer.poll(Duration::from_millis(50)) {
                message?.payload().and_then(id).into_iter().for_each(&seen);
            }
            Ok(())
        }))
    })
}

/// The row that an event is of.
fn id(event: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(event).ok()?;
    let (_, rest) = text.split_once(r#""id":"#)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Looks once for what has arrived.
type Look = Box<dyn FnMut() -> Result<()> + Send>;

fn measure(
    bench: &Bench,
    name: &str,
    kind: &str,
    options: &str,
    reader: impl FnOnce(Box<dyn Fn(usize) + Send>) -> Result<Look>,
) -> Result<()> {
    bench.server.sql("TRUNCATE bench")?;
    let count = usize::try_from(bench.options.seconds * 100)?;
    bench.server.sql("SELECT pg_create_logical_replication_slot('latency', 'pgoutput')")?;
    bench.stream("latency", kind, options)?;
    wait::until("the stream runs", || {
        bench.server.sql("SELECT state FROM postern.streams").is_ok_and(|state| state == "running")
    })
    .with_context(|| {
        let seen =
            bench.server.sql("SELECT to_jsonb(s), to_jsonb(o) FROM postern.streams s, postern.sources o");
        format!("{seen:?}\n{}", bench.server.log_tail())
    })?;
    let (send, seen) = std::sync::mpsc::channel();
    let mut look = reader(Box::new(move |id| {
        let _ = send.send((id, Instant::now()));
    }))?;
    let stop = Arc::new(AtomicBool::new(false));
    let reading = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || -> Result<()> {
            while !stop.load(Relaxed) {
                look()?;
            }
            Ok(())
        }
    });
    let mut client = bench.server.connect()?;
    let insert = client.prepare("INSERT INTO bench VALUES ($1, 1, 'latency', 1, now())")?;
    // The first ones make connections.
    let warm = 100;
    let begun = Instant::now();
    let mut sent = Vec::with_capacity(count + warm);
    for number in 0..count + warm {
        std::thread::sleep((EVERY * u32::try_from(number)?).saturating_sub(begun.elapsed()));
        sent.push(Instant::now());
        client.execute(&insert, &[&i64::try_from(number)?])?;
    }
    let mut delays = vec![None; sent.len()];
    for _ in 0..sent.len() {
        let (id, at) = seen.recv_timeout(Duration::from_secs(30)).context("an event has not arrived")?;
        *delays.get_mut(id).context("an event of nobody")? =
            Some(at.duration_since(sent[id]).as_secs_f64() * 1e3);
    }
    stop.store(true, Relaxed);
    reading.join().map_err(|_| anyhow::anyhow!("the reader has panicked"))??;
    bench.drop_stream()?;
    bench.drop_slot("latency")?;
    let mut delays: Vec<f64> = delays.into_iter().skip(warm).flatten().collect();
    ensure!(delays.len() == count, "{} of {count} have arrived", delays.len());
    delays.sort_by(f64::total_cmp);
    let at = |share: f64| delays.get((delays.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    println!(
        "{name}: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, most {:.1} ms ({count} events)",
        at(0.5),
        at(0.9),
        at(0.99),
        delays.last().copied().unwrap_or(f64::NAN)
    );
    Ok(())
}
