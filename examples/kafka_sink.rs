//! How many events a second the Kafka sink takes to librdkafka's own mock of a cluster, beside a bare producer of the same client with the
//! same settings: `cargo run --release --no-default-features --features kafka --example kafka_sink`.
//!
//! Events of 300 bytes, a key each; the better of three rounds of each, in turns.

use postern::stream::sink::{self, Event, Given, Setting};
use rdkafka::config::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

const EVENTS: u64 = 1_000_000;
const SIZE: usize = 300;
const BUFFER: usize = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = MockCluster::new(1)?;
    cluster.create_topic("events", 4, 1)?;
    let hosts = cluster.bootstrap_servers();
    let (mut best_sink, mut best_bare) = (0.0_f64, 0.0_f64);
    for _ in 0..3 {
        best_sink = best_sink.max(through_the_sink(&hosts)?);
        best_bare = best_bare.max(bare(&hosts)?);
    }
    println!(
        "sink {best_sink:.0} events/s, bare producer {best_bare:.0}, ratio {:.2}",
        best_sink / best_bare
    );
    Ok(())
}

fn through_the_sink(hosts: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let options = json!({"hosts": hosts, "topicFallback": "events"});
    let options = options.as_object().ok_or("no object")?;
    let setting =
        Setting { delivered: 0, buffer_size: BUFFER, stream: "bench".to_owned(), log: Arc::new(|_| {}) };
    let mut sink = sink::make("kafka", options, &setting)?;
    let payload = [b'x'; SIZE];
    let started = Instant::now();
    for serial in 1..=EVENTS {
        let key = serial.to_be_bytes();
        let event = Event { serial, schema: "public", table: "t", key: Some(&key), payload: &payload };
        while sink.give(&event)? == Given::Full {
            sink.poll(Duration::from_millis(1))?;
        }
        if serial % 1000 == 0 {
            sink.poll(Duration::ZERO)?;
        }
    }
    while sink.poll(Duration::from_millis(10))?.delivered < EVENTS {}
    Ok(EVENTS as f64 / started.elapsed().as_secs_f64())
}

fn bare(hosts: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", hosts)
        .set("enable.idempotence", "true")
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", (BUFFER / 1024).to_string())
        .set("partitioner", "murmur2_random")
        .create()?;
    let payload = [b'x'; SIZE];
    let started = Instant::now();
    for serial in 1..=EVENTS {
        let key = serial.to_be_bytes();
        while let Err((error, _)) =
            producer.send(BaseRecord::to("events").key(&key[..]).payload(&payload[..]))
        {
            if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            producer.poll(Duration::from_millis(1));
        }
        if serial % 1000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(EVENTS as f64 / started.elapsed().as_secs_f64())
}
