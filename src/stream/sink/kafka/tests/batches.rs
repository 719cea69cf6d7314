//! Batches that a broker refuses for their size: what becomes of the events in them and behind them.

use super::*;
use rdkafka::producer::PurgeConfig;

/// The numbers of events in a topic whose every event has one key, as they have arrived.
fn numbers(cluster: &Cluster, count: usize) -> Vec<u64> {
    let number = |payload: &str| serde_json::from_str::<Value>(payload).unwrap()["n"].as_u64().unwrap();
    read(cluster, "rest", 4, count).iter().map(|(.., payload)| number(payload)).collect()
}

#[test]
fn events_of_a_batch_that_is_refused_for_its_size_arrive_in_order_and_batches_are_smaller_from_then_on() {
    let cluster = cluster(1);
    for more in [json!({}), json!({"on_oversized": "skip"}), json!({"requiredAcks": 1})] {
        let mut options = json!({"batchTimeout": "100ms"});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut built = build(&cluster, options);
        let begin = numbers_so_far(&cluster);
        cluster
            .request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
        for serial in 1..=100 {
            built.give(serial, "k");
        }
        assert_eq!(built.until(|progress| progress.delivered == 100).skipped, 0, "{more}");
        // What comes later is behind them.
        built.give(101, "k");
        built.until(|progress| progress.delivered == 101);
        let arrived = numbers(&cluster, begin + 101);
        assert_eq!(arrived[begin..], (1..=101).collect::<Vec<_>>(), "{more}");
        assert!(built.sink.batch_size < 1000, "{}", built.sink.batch_size);
        assert_eq!(built.sink.reports.state().bytes, 0);
        let log = built.log.lock();
        assert!(log.iter().any(|line| line.contains("has refused a batch for topic \"rest\"")), "{log:?}");
        assert!(!log.iter().any(|line| line.contains("librdkafka")), "{log:?}");
    }
}

/// How many are there.
fn numbers_so_far(cluster: &Cluster) -> usize {
    let reader: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
    let end = |partition| reader.fetch_watermarks("rest", partition, PATIENCE).unwrap().1;
    (0..4).map(|partition| usize::try_from(end(partition)).unwrap()).sum()
}

#[test]
fn only_what_is_refused_alone_is_too_large() {
    let cluster = cluster(1);
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    let mut built = build(&cluster, json!({"batchTimeout": "100ms", "on_oversized": "skip"}));
    // The batch, and the first event of it.
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large, too_large]);
    for serial in 1..=100 {
        built.give(serial, "k");
    }
    assert_eq!(built.until(|progress| progress.delivered == 100).skipped, 1);
    assert_eq!(numbers(&cluster, 99), (2..=100).collect::<Vec<_>>());
    assert_eq!(built.sink.batch_size, 1_000_000, "the batch was not too large without it");
    let mut built = build(&cluster, json!({"batchTimeout": "100ms"}));
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large, too_large]);
    (1..=10).for_each(|serial| built.give(serial, "k"));
    let failure = built.until_failure();
    assert!(failure.lasting && failure.message.contains("on_oversized"), "{failure}");
}

#[test]
fn what_is_behind_a_batch_that_is_refused_comes_last_again() {
    let cluster = cluster(1);
    for (name, more) in [("all", json!({})), ("1", json!({"requiredAcks": 1}))] {
        let mut options = json!({"batchSize": 10, "batchTimeout": 0});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut built = build(&cluster, options);
        let begin = numbers_so_far(&cluster);
        let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
        cluster
            .request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, too_large]);
        for serial in 1..=300 {
            while built.sink.give(&event(serial, "t", "k", format!("{{\"n\":{serial}}}").as_bytes()))
                == Ok(Given::Full)
            {
                built.sink.poll(Duration::from_millis(1)).unwrap();
            }
        }
        built.until(|progress| progress.delivered == 300);
        let arrived = &numbers(&cluster, numbers_so_far(&cluster))[begin..];
        // Whatever came before: in the end they are all there in order.
        let mut next = 300;
        for n in arrived.iter().rev() {
            assert!(*n <= 300);
            if *n == next {
                next -= 1;
            } else {
                assert!(*n > next, "{name}: {n} behind {next} only: {arrived:?}");
            }
        }
        assert_eq!(next, 0, "{name}: {arrived:?}");
        assert!(name != "all" || arrived.is_sorted(), "nothing overtakes with idempotence: {arrived:?}");
    }
}

#[test]
fn what_the_library_takes_back_before_it_says_why_is_sent_again_in_order() {
    let cluster = cluster(1);
    for more in [json!({}), json!({"requiredAcks": 1})] {
        let mut options = json!({"batchTimeout": "200ms"});
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut built = build(&cluster, options);
        let begin = numbers_so_far(&cluster);
        built.give(1, "k");
        built.until(|progress| progress.delivered == 1);
        for serial in 2..=100 {
            built.give(serial, "k");
        }
        // As it does when a batch was refused, at times before that batch is reported.
        built.sink.producer.purge(PurgeConfig::default().queue());
        built.until(|progress| progress.delivered == 100);
        let arrived = numbers(&cluster, begin + 100);
        assert_eq!(arrived[begin..], (1..=100).collect::<Vec<_>>(), "{more}");
        assert_eq!(built.sink.reports.state().bytes, 0);
    }
}

#[test]
fn what_was_found_too_large_before_all_begins_again_is_not_held_against_batches() {
    let cluster = cluster(1);
    let options = json!({"batchTimeout": "100ms", "on_oversized": "skip", "requiredAcks": 1});
    let mut built = build(&cluster, options);
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    let behind = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    // The batch, the first event of it, and the second one for that.
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large, too_large, behind]);
    for serial in 1..=100 {
        built.give(serial, "k");
    }
    assert_eq!(built.until(|progress| progress.delivered == 100).skipped, 1);
    // What was on its way behind it may have come twice.
    let arrived = numbers(&cluster, numbers_so_far(&cluster));
    assert!(arrived.ends_with(&(3..=100).collect::<Vec<_>>()) && arrived.contains(&2), "{arrived:?}");
    assert_eq!(built.sink.batch_size, 1_000_000, "the batch was not too large without it");
}
