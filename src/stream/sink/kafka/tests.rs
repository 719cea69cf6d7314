//! The Kafka sink against librdkafka's own mock of a cluster, which listens on loopback sockets in this process.

mod batches;

use super::*;
use crate::stream::sink;
use parking_lot::Mutex;
use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};

type Cluster = MockCluster<'static, DefaultProducerContext>;

const PATIENCE: Duration = Duration::from_secs(30);

fn cluster(brokers: i32) -> Cluster {
    let cluster = MockCluster::new(brokers).unwrap();
    cluster.create_topic("rest", 4, 1).unwrap();
    cluster
}

/// A sink whose events go to `rest` unless the options say otherwise, its log, and 1 MB of room unless told.
struct Built {
    sink: Kafka,
    log: Arc<Mutex<Vec<String>>>,
}

fn build(cluster: &Cluster, more: Value) -> Built {
    build_with(&cluster.bootstrap_servers(), more, 1 << 20)
}

fn build_with(hosts: &str, more: Value, buffer_size: usize) -> Built {
    let mut options = json!({"hosts": hosts.split(',').collect::<Vec<_>>(), "topicFallback": "rest"});
    for (name, value) in more.as_object().unwrap() {
        options[name] = value.clone();
    }
    let map = options.as_object().unwrap();
    sink::check("kafka", map).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let lines = log.clone();
    let setting = Setting {
        delivered: 0,
        buffer_size,
        stream: "s".to_owned(),
        log: Arc::new(move |line| lines.lock().push(line)),
    };
    let mut options = Options::new(map);
    let sink = Kafka::new(Plan::read(&mut options).unwrap(), &setting).unwrap();
    Built { sink, log }
}

fn event<'a>(serial: u64, table: &'a str, key: &'a str, payload: &'a [u8]) -> Event<'a> {
    let schema = if table.is_empty() { "" } else { "public" };
    Event { serial, schema, table, key: Some(key.as_bytes()), payload }
}

impl Built {
    fn give(&mut self, serial: u64, key: &str) {
        let payload = format!("{{\"n\":{serial}}}");
        assert_eq!(self.sink.give(&event(serial, "t", key, payload.as_bytes())), Ok(Given::Taken));
    }

    /// Polls until the progress is as wanted.
    fn until(&mut self, wanted: impl Fn(&Progress) -> bool) -> Progress {
        let started = Instant::now();
        loop {
            let progress = self.sink.poll(Duration::from_millis(50)).unwrap();
            if wanted(&progress) {
                return progress;
            }
            assert!(started.elapsed() < PATIENCE, "{progress:?} {:?}", self.log.lock());
            self.breathe();
        }
    }

    fn until_failure(&mut self) -> Failure {
        let started = Instant::now();
        loop {
            match self.sink.poll(Duration::from_millis(50)) {
                Err(failure) => return failure,
                Ok(progress) => {
                    assert!(started.elapsed() < PATIENCE, "{progress:?}");
                    self.breathe();
                }
            }
        }
    }

    /// A poll with nothing out comes back at once: between two of them the library's threads get their turn.
    fn breathe(&self) {
        if self.sink.reports.state().ledger.outstanding() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What a topic holds, by partition: key and payload.
fn read(cluster: &Cluster, topic: &str, partitions: i32, count: usize) -> Vec<(i32, String, String)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "reader")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        all.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let started = Instant::now();
    let mut read = Vec::new();
    while read.len() < count && started.elapsed() < PATIENCE {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            let message = message.unwrap();
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
            read.push((message.partition(), text(message.key()), text(message.payload())));
        }
    }
    // One more would have come by now: they are on loopback, and fetched in one go.
    if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
        panic!("more than {count}: {message:?}");
    }
    read
}

#[test]
fn every_event_arrives_once_and_those_of_a_key_in_order() {
    let cluster = cluster(3);
    let mut built = build(&cluster, json!({"compression": "zstd"}));
    for serial in 1..=1000 {
        built.give(serial, &format!("k{}", serial % 10));
    }
    let progress = built.until(|progress| progress.delivered == 1000);
    assert_eq!(progress, Progress { delivered: 1000, skipped: 0, trouble: None });
    let read = read(&cluster, "rest", 4, 1000);
    assert_eq!(read.len(), 1000);
    for key in 0..10 {
        let key = format!("k{key}");
        let of_key: Vec<_> = read.iter().filter(|(_, k, _)| *k == key).collect();
        let numbers: Vec<u64> = of_key.iter().map(|(_, _, p)| p[5..p.len() - 1].parse().unwrap()).collect();
        assert_eq!(numbers.len(), 100);
        assert!(numbers.is_sorted());
        assert!(of_key.iter().all(|(partition, ..)| *partition == of_key[0].0), "two partitions");
    }
}

/// The hash and these values are those of Kafka's own Java client (its UtilsTest), so a key meets its fellows from there.
#[test]
fn keys_meet_in_the_partitions_of_the_java_client() {
    let cluster = cluster(1);
    let mut built = build(&cluster, json!({}));
    let keys = [("21", -973_932_308), ("foobar", -790_332_482), ("abc", 479_470_107)];
    for (serial, (key, _)) in keys.iter().enumerate() {
        built.give(serial as u64 + 1, key);
    }
    built.until(|progress| progress.delivered == 3);
    for (partition, key, _) in read(&cluster, "rest", 4, 3) {
        let (_, hash): &(_, i32) = keys.iter().find(|(k, _)| *k == key).unwrap();
        assert_eq!(partition, (hash & 0x7fff_ffff) % 4, "{key}");
    }
}

#[test]
fn tables_go_to_their_topics_and_the_rest_to_the_fallback() {
    let cluster = cluster(1);
    for topic in ["mixed", "full"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let mapping = json!({"tableTopicMapping": {"MixedCase": "mixed", "public.full": "full"}});
    let mut built = build(&cluster, mapping);
    let tables = ["MixedCase", "mixedcase", "full", "", "MixedCase"];
    for (serial, table) in tables.iter().enumerate() {
        let event = event(serial as u64 + 1, table, "k", table.as_bytes());
        assert_eq!(built.sink.give(&event), Ok(Given::Taken));
    }
    let other = Event { serial: 6, schema: "other", table: "full", key: None, payload: b"other" };
    assert_eq!(built.sink.give(&other), Ok(Given::Taken));
    built.until(|progress| progress.delivered == 6);
    let payloads = |topic, partitions, count| -> Vec<String> {
        read(&cluster, topic, partitions, count).into_iter().map(|(.., payload)| payload).collect()
    };
    assert_eq!(payloads("mixed", 1, 2), ["MixedCase", "MixedCase"]);
    assert_eq!(payloads("full", 1, 1), ["full"]);
    let mut rest = payloads("rest", 4, 3);
    rest.sort();
    assert_eq!(rest, ["", "mixedcase", "other"]);
}

#[test]
fn a_table_without_a_topic_stops_the_stream_or_is_left_out() {
    let cluster = cluster(1);
    let mapping = |remedy: &str| json!({"topicFallback": null, "tableTopicMapping": {"a": "rest"}, "on_unmapped": remedy});
    let mut built = build(&cluster, mapping("stop"));
    let failure = built.sink.give(&event(1, "b", "k", b"{}")).unwrap_err();
    assert!(failure.lasting);
    assert!(failure.message.contains("public.b") && failure.message.contains("on_unmapped"), "{failure}");
    let mut built = build(&cluster, mapping("skip"));
    assert_eq!(built.sink.give(&event(1, "b", "k", b"{}")), Ok(Given::Taken));
    assert_eq!(built.sink.give(&event(2, "a", "k", b"{}")), Ok(Given::Taken));
    let progress = built.until(|progress| progress.delivered == 2);
    assert_eq!(progress.skipped, 1);
    assert!(built.log.lock()[0].contains("public.b"));
}

#[test]
fn brokers_that_are_down_are_a_trouble_and_nothing_is_lost() {
    let cluster = cluster(1);
    let mut built = build(&cluster, json!({}));
    built.give(1, "k");
    built.until(|progress| progress.delivered == 1);
    cluster.broker_down(1).unwrap();
    for serial in 2..=50 {
        built.give(serial, "k");
    }
    let progress = built.until(|progress| progress.trouble.is_some());
    assert_eq!(progress.delivered, 1);
    cluster.broker_up(1).unwrap();
    let progress = built.until(|progress| progress.delivered == 50);
    assert_eq!(progress.trouble, None);
    let numbers: Vec<_> = read(&cluster, "rest", 4, 50).into_iter().map(|(.., payload)| payload).collect();
    let expected: Vec<_> = (1..=50).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn errors_that_pass_cost_no_event_and_no_order() {
    use RDKafkaRespErr as E;
    let cluster = cluster(1);
    let mut built = build(&cluster, json!({"batchSize": 10, "batchTimeout": 0}));
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[
            E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            E::RD_KAFKA_RESP_ERR__TRANSPORT,
            E::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
            E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        ],
    );
    for serial in 1..=200 {
        built.give(serial, "k");
    }
    built.until(|progress| progress.delivered == 200);
    let numbers: Vec<_> = read(&cluster, "rest", 4, 200).into_iter().map(|(.., payload)| payload).collect();
    let expected: Vec<_> = (1..=200).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn brokers_that_confirm_nothing_are_a_trouble_too() {
    let cluster = cluster(1);
    let mut built = build(&cluster, json!({}));
    let never = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 1000];
    cluster.request_errors(RDKafkaApiKey::Produce, &never);
    built.give(1, "k");
    let progress = built.until(|progress| progress.trouble.is_some());
    assert!(progress.trouble.unwrap().contains("confirmed nothing"));
    cluster.clear_request_errors(RDKafkaApiKey::Produce);
    assert_eq!(built.until(|progress| progress.delivered == 1).trouble, None);
}

#[test]
fn what_is_behind_a_slow_broker_is_not_delivered_before_it() {
    let cluster = cluster(2);
    for (topic, leader) in [("slow", 1), ("fast", 2)] {
        cluster.create_topic(topic, 1, 1).unwrap();
        cluster.partition_leader(topic, 0, Some(leader)).unwrap();
    }
    let mapping = json!({"tableTopicMapping": {"slow": "slow", "fast": "fast"}});
    let mut built = build(&cluster, mapping);
    // Both are known before one becomes slow.
    built.sink.give(&event(1, "slow", "k", b"{}")).unwrap();
    built.sink.give(&event(2, "fast", "k", b"{}")).unwrap();
    built.until(|progress| progress.delivered == 2);
    cluster.broker_round_trip_time(1, Duration::from_secs(1)).unwrap();
    built.sink.give(&event(3, "slow", "k", b"{}")).unwrap();
    let of_one = built.sink.reports.state().bytes;
    built.sink.give(&event(4, "fast", "k", b"{}")).unwrap();
    let started = Instant::now();
    while built.sink.reports.state().bytes > of_one {
        assert_eq!(built.sink.poll(Duration::from_millis(10)).unwrap().delivered, 2);
        assert!(started.elapsed() < PATIENCE);
    }
    assert_eq!(built.sink.poll(Duration::ZERO).unwrap().delivered, 2);
    built.until(|progress| progress.delivered == 4);
}

#[test]
fn oversized_events_stop_the_stream_or_are_left_out() {
    let cluster = cluster(1);
    let large = vec![b'x'; 2_000_000];
    let mut built = build_with(&cluster.bootstrap_servers(), json!({}), 8 << 20);
    built.give(1, "k");
    let failure = built.sink.give(&event(2, "Big", "k", &large)).unwrap_err();
    for word in ["public.Big", "\"rest\"", "message.max.bytes", "on_oversized"] {
        assert!(failure.message.contains(word), "{failure}");
    }
    assert!(failure.lasting);
    let skip = json!({"on_oversized": "skip"});
    let mut built = build_with(&cluster.bootstrap_servers(), skip, 8 << 20);
    built.give(1, "k");
    assert_eq!(built.sink.give(&event(2, "Big", "k", &large)), Ok(Given::Taken));
    built.give(3, "k");
    assert_eq!(built.until(|progress| progress.delivered == 3).skipped, 1);
    assert!(built.log.lock().iter().any(|line| line.contains("public.Big")));
}

#[test]
fn what_the_broker_finds_too_large_stops_the_stream_or_is_left_out() {
    let cluster = cluster(1);
    let too_large = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE];
    let mut built = build(&cluster, json!({}));
    cluster.request_errors(RDKafkaApiKey::Produce, &too_large);
    built.give(1, "k");
    let failure = built.until_failure();
    assert!(failure.lasting && failure.message.contains("on_oversized"), "{failure}");
    assert_eq!(built.sink.give(&event(2, "t", "k", b"{}")), Err(failure));
    let mut built = build(&cluster, json!({"on_oversized": "skip"}));
    cluster.request_errors(RDKafkaApiKey::Produce, &too_large);
    built.give(1, "k");
    assert_eq!(built.until(|progress| progress.delivered == 1).skipped, 1);
    built.give(2, "k");
    assert_eq!(built.until(|progress| progress.delivered == 2).skipped, 1);
}

#[test]
fn a_missing_topic_stops_the_stream_or_its_events_are_left_out() {
    let cluster = cluster(1);
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster.topic_error("gone", unknown).unwrap();
    let options = |remedy: &str| {
        json!({"tableTopicMapping": {"t": "gone"}, "on_missing_topic": remedy,
            "properties": {"topic.metadata.propagation.max.ms": 100}})
    };
    let mut built = build(&cluster, options("stop"));
    built.give(1, "k");
    let failure = built.until_failure();
    assert!(!failure.lasting);
    for word in ["public.t", "\"gone\"", "on_missing_topic"] {
        assert!(failure.message.contains(word), "{failure}");
    }
    let mut built = build(&cluster, options("skip"));
    built.give(1, "k");
    let progress = built.until(|progress| progress.delivered == 1);
    assert_eq!(progress.skipped, 1);
    // The library knows by now, and says so when it is given the event.
    built.give(2, "k");
    assert_eq!(built.until(|progress| progress.delivered == 2).skipped, 2);
}

#[test]
fn a_topic_that_may_not_be_written_is_named() {
    let cluster = cluster(1);
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.topic_error("rest", refused).unwrap();
    let mut built = build(&cluster, json!({}));
    built.give(1, "k");
    let failure = built.until_failure();
    assert!(!failure.lasting);
    assert!(failure.message.contains("\"rest\"") && failure.message.contains("public.t"), "{failure}");
    assert!(failure.message.contains("uthorization"), "{failure}");
}

#[test]
fn a_lost_idempotence_fails_and_says_so() {
    let cluster = cluster(1);
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 100];
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &refused);
    let mut built = build(&cluster, json!({}));
    built.give(1, "k");
    let failure = built.until_failure();
    assert!(!failure.lasting && failure.message.contains("idempotence"), "{failure}");
}

#[test]
fn a_full_buffer_says_so_and_one_event_larger_than_it_is_taken() {
    let cluster = cluster(1);
    let mut built = build_with(&cluster.bootstrap_servers(), json!({}), 2000);
    let large = vec![b'x'; 5000];
    assert_eq!(built.sink.give(&event(1, "t", "k", &large)), Ok(Given::Taken));
    built.until(|progress| progress.delivered == 1);
    cluster.broker_down(1).unwrap();
    let mut serial = 2;
    while built.sink.give(&event(serial, "t", "k", &[b'x'; 100])) == Ok(Given::Taken) {
        serial += 1;
    }
    assert!((4..=2 + 2000 / (100 + OVERHEAD as u64)).contains(&serial), "{serial}");
    assert!(built.sink.reports.state().bytes <= 2000);
    cluster.broker_up(1).unwrap();
    built.until(|progress| progress.delivered == serial - 1);
    assert_eq!(built.sink.reports.state().bytes, 0);
    assert_eq!(built.sink.give(&event(serial, "t", "k", &large)), Ok(Given::Taken));
}

#[test]
fn a_sink_is_dropped_in_time_when_no_broker_answers() {
    let nobody = {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap().to_string()
    };
    let mut built = build_with(&nobody, json!({}), 1 << 20);
    built.give(1, "k");
    let trouble = built.until(|progress| progress.trouble.is_some()).trouble.unwrap();
    assert!(trouble.contains(&nobody), "{trouble}");
    let started = Instant::now();
    drop(built);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn files_that_cannot_be_read_are_found_when_the_sink_is_made() {
    let options = json!({"hosts": "a:1", "topicFallback": "t",
        "properties": {"security.protocol": "ssl", "ssl.ca.location": "/nonexistent/ca.pem"}});
    let setting =
        Setting { delivered: 0, buffer_size: 1 << 20, stream: "s".to_owned(), log: Arc::new(|_| {}) };
    let error = sink::make("kafka", options.as_object().unwrap(), &setting).err().unwrap().to_string();
    assert!(
        error.starts_with("option \"properties.ssl.ca.location\" \"/nonexistent/ca.pem\" cannot be used"),
        "{error}"
    );
}
