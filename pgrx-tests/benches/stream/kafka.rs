//! To Kafka, beside a bare producer of the same library with the same settings that sends as many events of the same size.

use super::{Bench, Kind, alternate, show};
use anyhow::{Context, Result, ensure};
use pgrx_tests::kafka::{self, Broker};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::DeliveryResult;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer, ProducerContext};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// Bytes of a note: an event has 300 then.
const NOTE: usize = 13;
const EVENT: usize = 300;

/// The topic's name.
pub const TOPIC: &str = "bench";

/// Keeps the mock's brokers, which are threads of this process.
pub struct Mock(MockCluster<'static, DefaultProducerContext>);

impl Mock {
    pub fn start(partitions: u32) -> Result<Self> {
        let cluster = MockCluster::new(1)?;
        cluster.create_topic(TOPIC, i32::try_from(partitions)?, 1)?;
        Ok(Self(cluster))
    }

    pub fn hosts(&self) -> String {
        self.0.bootstrap_servers()
    }
}

/// Options of a sink.
pub fn sink(hosts: &str) -> String {
    format!(r#"{{"hosts":"{hosts}","topicFallback":"{TOPIC}"}}"#)
}

/// A real broker with the topic; says why when there is none.
pub fn broker(bench: &Bench) -> Result<Option<Broker>> {
    if let Some(why) = kafka::unavailable() {
        println!("no real broker: {why}");
        return Ok(None);
    }
    let broker = Broker::start("bench")?;
    broker.create_topic(TOPIC, bench.options.partitions)?;
    Ok(Some(broker))
}

pub fn run(bench: &Bench) -> Result<()> {
    bench.write(Kind::Insert, bench.options.changes, 100, NOTE).and_then(|wal| {
        let against = |name: &str, hosts: &str| -> Result<()> {
            let mut size = 0.0;
            let ours = || {
                let (rate, bytes) = bench.streamed(&wal, "kafka", &sink(hosts))?;
                size = bytes;
                Ok(rate)
            };
            let (ours, theirs) = alternate(bench.options.rounds, ours, || bare(hosts, wal.changes))?;
            show(&format!("{name}, events of {size:.0} bytes"), &ours, "a bare producer", &theirs);
            Ok(())
        };
        let mock = Mock::start(bench.options.partitions)?;
        against("mock", &mock.hosts())?;
        drop(mock);
        match broker(bench)? {
            Some(broker) => against("real broker", &broker.address()),
            None => Ok(()),
        }
    })?;
    bench.forget()
}

/// Counts what has arrived.
#[derive(Clone, Default)]
struct Arrived(Arc<AtomicU64>);

impl ClientContext for Arrived {}

impl ProducerContext for Arrived {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        if result.is_ok() {
            self.0.fetch_add(1, Relaxed);
        }
    }
}

/// Events a second, from before the producer is made until the last one has been confirmed.
fn bare(hosts: &str, events: u64) -> Result<f64> {
    let began = Instant::now();
    let arrived = Arrived::default();
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", hosts),
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("linger.ms", "5"),
        ("batch.num.messages", "10000"),
        ("compression.type", "none"),
        ("partitioner", "murmur2_random"),
        ("queue.buffering.max.messages", "0"),
        ("queue.buffering.max.kbytes", "32768"),
    ] {
        config.set(name, value);
    }
    let producer: BaseProducer<Arrived> = config.create_with_context(arrived.clone())?;
    let payload = [b'x'; EVENT];
    for number in 0..events {
        let key = format!(r#"{{"id":{number}}}"#);
        let mut record = BaseRecord::to(TOPIC).key(&key).payload(&payload[..]);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((error, back)) => {
                    let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                    ensure!(full, "a bare producer: {error}");
                    record = back;
                    producer.poll(Duration::from_millis(1));
                }
            }
        }
        if number % 1000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(120)).context("a bare producer")?;
    let seconds = began.elapsed().as_secs_f64();
    let count = arrived.0.load(Relaxed);
    ensure!(count == events, "{count} of {events} have arrived");
    Ok(events as f64 / seconds)
}
