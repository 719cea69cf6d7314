//! The Kafka source against librdkafka's own mock of a cluster, which listens on loopback sockets in this process. Its groups wait three
//! seconds for more members before they begin, and after each change for about a session's time-out: that is short here.

use super::*;
use crate::stream::source;
use pgrx_tests::kafka::{Broker, no_broker};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

type Cluster = MockCluster<'static, DefaultProducerContext>;

const PATIENCE: Duration = Duration::from_secs(40);

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 2, 1).unwrap();
    cluster
}

fn produce(cluster: &impl Hosts, messages: &[(i32, &str)]) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.hosts()).create().unwrap();
    for (partition, payload) in messages {
        let record = BaseRecord::to("t").partition(*partition).key("k").payload(*payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// Where a mock or a real broker listens.
trait Hosts {
    fn hosts(&self) -> String;
}

impl Hosts for Cluster {
    fn hosts(&self) -> String {
        self.bootstrap_servers()
    }
}

impl Hosts for Broker {
    fn hosts(&self) -> String {
        self.address()
    }
}

fn event(number: u64) -> String {
    format!("{{\"UUID\": \"u{number}\", \"Table\": \"orders\", \"n\": {number}}}")
}

/// A member that leaves the group when it is dropped, however long that takes.
fn member(cluster: &impl Hosts, more: Value) -> Kafka {
    let mut options = json!({
        "hosts": cluster.hosts(), "topics": ["t"], "groupID": "g", "batchFlushInterval": 0,
        "properties": {"session.timeout.ms": 4000, "heartbeat.interval.ms": 200, "max.poll.interval.ms": 4000},
    });
    for (name, value) in more.as_object().unwrap() {
        options[name] = value.clone();
    }
    let map = options.as_object().unwrap();
    source::check("kafka", map).unwrap();
    let setting = Setting { buffer_size: 1 << 20, stream: "s".to_owned(), log: Arc::new(|_| {}) };
    Kafka::new(Plan::read(&mut Options::new(map)).unwrap(), &setting).unwrap()
}

fn take(source: &mut Kafka, count: usize) -> Vec<Received> {
    let started = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        // One byte of room is one message.
        all.extend(source.poll(1, Duration::from_millis(50)).unwrap());
        assert!(
            started.elapsed() < PATIENCE,
            "{} of {count}: {:?}",
            all.len(),
            source.assignment().trouble()
        );
    }
    all
}

/// Polls until what the group has committed is this, by partition.
fn until_committed(source: &mut Kafka, wanted: &[(i32, i64)]) {
    let started = Instant::now();
    loop {
        assert_eq!(source.poll(0, Duration::from_millis(20)).unwrap(), []);
        let ours = source.consumer.committed(Duration::from_secs(5));
        let mut found: Vec<_> = ours.map_or_else(
            |_| Vec::new(),
            |list| {
                let elements = list.elements();
                elements.iter().map(|e| (e.partition(), e.offset().to_raw().unwrap_or(-1))).collect()
            },
        );
        found.retain(|(_, offset)| *offset >= 0);
        found.sort_unstable();
        if found == wanted {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{found:?}");
    }
}

fn offsets(received: &[Received]) -> Vec<(i32, i64)> {
    let places = received.iter().map(|received| match received {
        Received::Message(message) => &message.place,
        Received::Rejected(rejected) => &rejected.place,
    });
    let mut offsets: Vec<_> = places.map(|place| (place.partition, place.offset)).collect();
    offsets.sort_unstable();
    offsets
}

#[test]
fn messages_pass_byte_for_byte_and_what_is_no_event_is_handed_out_as_such() {
    let cluster = cluster();
    let good = "{ \"Table\":\"Orders\", \"n\": 9223372036854775807,\n \"UUID\":\"u\", \"x\": \"\\u003c\" }";
    produce(&cluster, &[(0, good), (0, "no event"), (0, &event(3))]);
    let mut source = member(&cluster, json!({}));
    let all = take(&mut source, 3);
    let serials: Vec<_> = all.iter().map(Received::serial).collect();
    assert_eq!(serials, [1, 2, 3]);
    let Received::Message(first) = &all[0] else { panic!("{all:?}") };
    assert_eq!((first.payload.as_slice(), first.table.as_str()), (good.as_bytes(), "Orders"));
    assert_eq!(first.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(first.place, Place { topic: "t".into(), partition: 0, offset: 0 });
    let Received::Rejected(second) = &all[1] else { panic!("{all:?}") };
    assert_eq!((second.payload.as_slice(), second.why.as_str()), (&b"no event"[..], "is no JSON object"));
    // It is acknowledged like the others.
    source.assignment().acknowledge(2);
    until_committed(&mut source, &[(0, 2)]);
}

#[test]
fn what_is_not_acknowledged_comes_again_and_what_is_does_not() {
    let cluster = cluster();
    let events: Vec<_> = (0..10).map(event).collect();
    produce(&cluster, &events.iter().map(|event| (0, event.as_str())).collect::<Vec<_>>());
    let mut source = member(&cluster, json!({"batchFlushInterval": "1h"}));
    assert_eq!(offsets(&take(&mut source, 10)).last(), Some(&(0, 9)));
    source.assignment().acknowledge(4);
    // The end commits whatever interval was asked for.
    drop(Member(Some(source)));
    let mut source = member(&cluster, json!({}));
    let again = take(&mut source, 6);
    assert_eq!(offsets(&again).first(), Some(&(0, 4)));
    assert_eq!(again[0].serial(), 1);
}

#[test]
fn a_partition_that_goes_to_another_member_is_committed_and_what_was_out_is_forgotten() {
    // The mock takes a member for lost at each change of its group, so this is played with a real broker.
    if no_broker() {
        return;
    }
    let cluster = Broker::start("group").unwrap();
    cluster.create_topic("t", 2).unwrap();
    let events: Vec<_> = (0..4).map(event).collect();
    for partition in 0..2 {
        produce(&cluster, &events.iter().map(|event| (partition, event.as_str())).collect::<Vec<_>>());
    }
    let properties =
        json!({"session.timeout.ms": 6000, "heartbeat.interval.ms": 200, "max.poll.interval.ms": 6000});
    let mut first = member(&cluster, json!({"batchFlushInterval": "1h", "properties": properties}));
    let all = take(&mut first, 8);
    // Up to the second of each partition.
    let serial = |wanted| all.iter().find(|one| offsets(&[(*one).clone()]) == [wanted]).unwrap().serial();
    let (one, other) = (serial((0, 1)), serial((1, 1)));
    first.assignment().acknowledge(one.min(other));
    let mut second = member(&cluster, json!({"properties": properties}));
    let mut seen = BTreeSet::new();
    let mut seen_first = BTreeSet::new();
    let started = Instant::now();
    // Between the two of them they read on from what was committed, each in its own partition.
    let committed = if one < other { 0 } else { 1 };
    let wanted: usize = 2 + 4;
    while seen.len() + seen_first.len() < wanted {
        seen_first.extend(offsets(&first.poll(1 << 20, Duration::from_millis(20)).unwrap()));
        seen.extend(offsets(&second.poll(1 << 20, Duration::from_millis(20)).unwrap()));
        assert!(started.elapsed() < PATIENCE, "{seen:?} {seen_first:?}");
    }
    let partitions =
        |seen: &BTreeSet<(i32, i64)>| -> BTreeSet<i32> { seen.iter().map(|(p, _)| *p).collect() };
    assert_eq!((partitions(&seen).len(), partitions(&seen_first).len()), (1, 1), "{seen:?} {seen_first:?}");
    let first_of = |partition| {
        seen.iter().chain(&seen_first).filter(|(p, _)| *p == partition).map(|(_, offset)| *offset).min()
    };
    assert_eq!(first_of(committed), Some(2));
    // All that the first member was given before is nobody's.
    first.assignment().acknowledge(8);
    assert_eq!(first.assignment().trouble(), None);
    first.commit_interval = Duration::ZERO;
    for _ in 0..10 {
        first.poll(0, Duration::from_millis(10)).unwrap();
    }
    drop(first);
    drop(second);
    let mut third = member(&cluster, json!({"properties": properties}));
    let left = take(&mut third, 6);
    assert_eq!(left.len(), 6);
    assert!(offsets(&left).contains(&(committed, 2)), "{left:?}");
}

#[test]
fn a_member_with_no_room_stays_in_the_group_and_goes_on_where_it_was() {
    let cluster = cluster();
    let mut source = member(&cluster, json!({}));
    let events: Vec<_> = (0..5).map(event).collect();
    let messages: Vec<_> = events.iter().map(|event| (0, event.as_str())).collect();
    produce(&cluster, &messages[..2]);
    take(&mut source, 2);
    source.assignment().acknowledge(2);
    until_committed(&mut source, &[(0, 2)]);
    produce(&cluster, &messages[2..]);
    let started = Instant::now();
    // Longer than a member may be silent.
    while started.elapsed() < Duration::from_secs(5) {
        assert_eq!(source.poll(0, Duration::from_millis(50)).unwrap(), []);
    }
    assert_eq!(offsets(&take(&mut source, 3)), [(0, 2), (0, 3), (0, 4)]);
    source.assignment().acknowledge(5);
    until_committed(&mut source, &[(0, 5)]);
}

#[test]
fn brokers_that_are_down_are_a_trouble_that_passes() {
    let cluster = cluster();
    produce(&cluster, &[(0, &event(0))]);
    let mut source = member(&cluster, json!({}));
    take(&mut source, 1);
    cluster.broker_down(1).unwrap();
    let started = Instant::now();
    while source.assignment().trouble().is_none() {
        source.poll(1 << 20, Duration::from_millis(50)).unwrap();
        assert!(started.elapsed() < PATIENCE);
    }
    cluster.broker_up(1).unwrap();
    produce(&cluster, &[(0, &event(1))]);
    // What was not acknowledged may come again, if the group had to begin anew.
    while !offsets(&take(&mut source, 1)).contains(&(0, 1)) {}
    assert_eq!(source.assignment().trouble(), None);
}

#[test]
fn a_source_is_dropped_in_time_when_no_broker_answers() {
    let took = || {
        let cluster = cluster();
        produce(&cluster, &[(0, &event(0))]);
        let mut source = member(&cluster, json!({}));
        take(&mut source, 1);
        source.assignment().acknowledge(1);
        cluster.broker_down(1).unwrap();
        let started = Instant::now();
        drop(Member(Some(source)));
        started.elapsed()
    };
    // Leaving the group takes over four seconds, always; a loaded machine adds to some of them what is not the source's.
    assert!((0..3).any(|_| took() < Duration::from_millis(2500)));
}

#[test]
fn each_mistake_names_its_option() {
    let check = |more: Value| {
        let mut options = json!({"hosts": "a:1", "topics": ["t"], "groupID": "g"});
        for (name, value) in more.as_object().unwrap() {
            options[name] = value.clone();
        }
        source::check("kafka", options.as_object().unwrap()).map_err(|error| error.to_string())
    };
    let streamer = json!({"batchSize": 100, "batchFlushInterval": "1s", "sendRetryInterval": "100ms"});
    assert_eq!(check(streamer), Ok(()));
    let wrong = |more: Value| check(more).unwrap_err();
    assert_eq!(wrong(json!({"hosts": null})), "option \"hosts\" is required");
    assert_eq!(wrong(json!({"topics": []})), "option \"topics\" is required");
    assert_eq!(wrong(json!({"groupID": ""})), "option \"groupID\" is required");
    assert!(wrong(json!({"topics": ["a b"]})).contains("\"a b\""));
    assert!(wrong(json!({"batchSize": 0})).contains("batchSize"));
    assert!(wrong(json!({"properties": {"enable.auto.commit": true}})).contains("every sink"));
    assert!(wrong(json!({"properties": {"group.id": "x"}})).contains("groupID"));
    assert!(source::check("nats", &serde_json::Map::new()).is_err());
}
