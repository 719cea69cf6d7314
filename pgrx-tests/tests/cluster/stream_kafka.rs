//! Change streams to a real Kafka broker and from one: what arrives, by which key, and what a broker or a topic that is away does.

use crate::stream::{delivered, file_sink, running, source_is, start};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::kafka::{Broker, Options, Record, no_broker};
use pgrx_tests::wait;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// A source `shop` that feeds a Kafka sink.
pub fn to_kafka(cluster: &Cluster, source: &str, sink: &str) -> Result<()> {
    cluster.sql(&format!(
        "select postern.create_source('shop', 'postgres', '{source}');
         select postern.create_sink('topics', 'kafka', '{sink}');
         select postern.create_stream('shop to topics', 'shop', 'topics')"
    ))?;
    running(cluster, "shop to topics")
}

pub fn event(record: &Record) -> Result<Value> {
    serde_json::from_str(&record.payload).with_context(|| record.payload.clone())
}

#[test]
fn tables_go_to_their_topics_keyed_by_primary_key() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("stream-topics")?;
    broker.create_topic("orders", 3)?;
    broker.create_topic("rest", 2)?;
    let cluster = start("stream-topics", &[])?;
    cluster.sql(r#"create table "Orders" (id int primary key, v text); create table other (a int, b text, primary key (a, b))"#)?;
    let sink = format!(
        r#"{{"hosts":"{}","tableTopicMapping":{{"Orders":"orders"}},"topicFallback":"rest"}}"#,
        broker.address()
    );
    to_kafka(&cluster, "{}", &sink)?;
    cluster.sql(
        r#"insert into "Orders" select i, 'x' from generate_series(1, 50) i; update "Orders" set v = 'y'"#,
    )?;
    cluster.sql("insert into other values (1, 'q\"')")?;
    delivered(&cluster)?;
    let orders = broker.consume("orders")?;
    ensure!(orders.len() == 100, "{}", orders.len());
    ensure!(orders.iter().map(|record| record.partition).collect::<HashSet<_>>().len() > 1, "keys spread");
    let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for record in &orders {
        by_key
            .entry(record.key.clone())
            .or_default()
            .push((record.partition, event(record)?["Columns"]["v"].clone()));
    }
    ensure!(by_key.len() == 50 && by_key.contains_key(&Some(r#"{"id":7}"#.to_owned())), "{by_key:?}");
    for (key, events) in by_key {
        ensure!(events[0].0 == events[1].0 && events[0].1 == "x" && events[1].1 == "y", "{key:?} {events:?}");
    }
    let rest = broker.consume("rest")?;
    ensure!(rest.len() == 1 && rest[0].key.as_deref() == Some(r#"{"a":1,"b":"q\""}"#), "{rest:?}");
    Ok(())
}

#[test]
fn a_sink_logs_in_over_tls() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let (broker, secured) = Broker::secured("stream-tls", &Options::default())?;
    broker.create_topic("all", 1)?;
    let cluster = start("stream-tls", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let authority = cluster.data().join("authority.pem");
    std::fs::copy(&secured.authority, &authority)?;
    std::fs::set_permissions(&authority, std::fs::Permissions::from_mode(0o644))?;
    let sink = |password: &str| {
        serde_json::json!({
            "hosts": secured.address, "topicFallback": "all",
            "properties": {
                "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-256",
                "sasl.username": secured.user, "sasl.password": password, "ssl.ca.location": authority,
            }
        })
        .to_string()
    };
    cluster.sql(&format!(
        "select postern.create_source('shop'); select postern.create_sink('topics', 'kafka', '{}');
         select postern.create_stream('shop to topics', 'shop', 'topics')",
        sink("wrong")
    ))?;
    wait::until("the stream has begun", || {
        cluster.sql("select slot from postern.source_states").is_ok_and(|slot| !slot.is_empty())
    })?;
    cluster.sql("insert into t values (1)")?;
    let state = || cluster.sql("select state, last_error from postern.streams");
    wait::until("the trouble is shown", || state().is_ok_and(|s| s.starts_with("retrying|") && s.len() > 12))
        .with_context(|| format!("{:?}", state()))?;
    let shown = cluster.sql("select options::text from postern.sinks")?;
    ensure!(shown.contains("\"sasl.password\": \"***\"") && !shown.contains("wrong"), "{shown}");
    cluster.sql(&format!("select postern.alter_sink('topics', '{}')", sink(&secured.password)))?;
    running(&cluster, "shop to topics")?;
    delivered(&cluster)?;
    let arrived = broker.consume("all")?;
    ensure!(
        arrived.len() == 1,
        "{arrived:?} {:?} {}",
        cluster.sql("select to_jsonb(s) from postern.streams s"),
        cluster.log_tail()
    );
    Ok(())
}

#[test]
fn a_broker_that_is_down_holds_up_its_stream_and_nobody_else() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("stream-down")?;
    broker.create_topic("all", 1)?;
    let cluster = start("stream-down", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    to_kafka(&cluster, "{}", &format!(r#"{{"hosts":"{}","topicFallback":"all"}}"#, broker.address()))?;
    cluster.sql("insert into t values (0)")?;
    delivered(&cluster)?;
    broker.kill()?;
    let begun = Instant::now();
    cluster.sql("insert into t select generate_series(1, 1000)")?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "writing goes on");
    let seen = || {
        cluster.sql("select state, last_error is not null, lag_bytes > 0, lag > '0', retained_wal > 0 from postern.streams")
    };
    wait::until("the trouble is shown", || seen().is_ok_and(|seen| seen == "retrying|t|t|t|t"))
        .with_context(|| format!("{:?}", seen()))?;
    broker.start_again()?;
    delivered(&cluster)?;
    let ids: HashSet<_> = broker
        .consume("all")?
        .iter()
        .map(event)
        .map(|e| e.map(|e| e["Columns"]["id"].as_i64()))
        .collect::<Result<_>>()?;
    ensure!(ids.len() == 1001, "{}", ids.len());
    running(&cluster, "shop to topics")
}

#[test]
fn events_of_a_topic_go_on_to_sinks_and_what_is_no_event_is_kept_aside() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("stream-source")?;
    broker.create_topic("in", 2)?;
    let cluster = start("stream-source", &[])?;
    let path = file_sink(&cluster, "lines", r#"{"sync":"50ms"}"#)?;
    cluster.sql(&format!(
        "select postern.create_source('broker', 'kafka', '{{\"hosts\":\"{}\",\"topics\":[\"in\"],\"groupID\":\"g\"}}');
         select postern.create_stream('broker to lines', 'broker', 'lines')",
        broker.address()
    ))?;
    running(&cluster, "broker to lines")?;
    let event = |n: i64| format!(r#"{{"Table":"t","UUID":"u{n}","Columns":{{"n":{n}}}}}"#);
    broker.produce("in", Some("k"), &event(i64::MAX))?;
    broker.produce("in", Some("k"), "no event")?;
    broker.produce("in", Some("k"), &event(2))?;
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    wait::until("both events are passed on", || lines().lines().count() == 2)
        .with_context(|| cluster.log_tail())?;
    ensure!(lines() == format!("{}\n{}\n", event(i64::MAX), event(2)), "{}", lines());
    wait::until("what is no event is kept aside", || {
        cluster
            .sql("select source, topic, convert_from(payload, 'UTF8'), reason from postern.rejected_messages")
            .is_ok_and(|kept| kept == "broker|in|no event|is no JSON object")
    })?;
    // How far behind the broker it is, is the consumer group's to tell.
    ensure!(cluster.sql("select lag is null, lag_bytes is null from postern.streams")? == "t|t");
    // What every sink has is committed: after a restart nothing comes again, and what is new comes.
    let mut is_committed = false;
    for n in 3..6 {
        let before = lines();
        cluster.restart(Stop::Fast)?;
        let next = format!("{}\n", event(n));
        broker.produce("in", Some("k"), next.trim_end())?;
        // A group's member that could not leave in time is a member still for as long as its session lasts.
        wait::until_within(3 * wait::LIMIT, "the next one is passed on", || lines().ends_with(&next))
            .with_context(|| cluster.log_tail())?;
        let came = lines().split_off(before.len());
        is_committed = came == next;
        if is_committed {
            break;
        }
        // Where a machine stands still while the last offset is committed, that one comes again.
        ensure!(came == format!("{}\n{next}", event(n - 1)), "{came}");
    }
    ensure!(is_committed, "after each restart something came again: {}", lines());
    Ok(())
}

#[test]
fn a_source_waits_where_as_much_is_kept_aside_as_may_be() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("stream-rejected")?;
    broker.create_topic("in", 1)?;
    let cluster = start("stream-rejected", &[])?;
    let path = file_sink(&cluster, "lines", r#"{"sync":"50ms"}"#)?;
    let made = |limit: &str| {
        format!(
            r#"{{"hosts":"{}","topics":["in"],"groupID":"g","rejected_limit":{limit}}}"#,
            broker.address()
        )
    };
    let wrong =
        cluster.sql(&format!("select postern.create_source('broker', 'kafka', '{}')", made("\"much\"")));
    ensure!(wrong.is_err_and(|error| format!("{error:?}").contains("rejected_limit")));
    // A hundred bytes a message, and what it has.
    cluster.sql(&format!(
        "select postern.create_source('broker', 'kafka', '{}'); select postern.create_stream('broker to lines', 'broker', 'lines')",
        made("250")
    ))?;
    running(&cluster, "broker to lines")?;
    let event = |n: i64| format!(r#"{{"Table":"t","UUID":"u{n}"}}"#);
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    let kept = || cluster.sql("select count(*) from postern.rejected_messages").unwrap_or_default();
    broker.produce("in", Some("k"), "first")?;
    broker.produce("in", Some("k"), "second")?;
    wait::until("two are kept", || kept() == "2")?;
    broker.produce("in", Some("k"), &event(1))?;
    wait::until("what is an event passes", || lines().lines().count() == 1)?;
    broker.produce("in", Some("k"), "third")?;
    source_is(&cluster, "failed", "rejected_limit")?;
    broker.produce("in", Some("k"), "fourth")?;
    broker.produce("in", Some("k"), &event(2))?;
    // It is tried again every five seconds.
    let starts =
        || cluster.sql("select worker_starts from postern.sources")?.parse::<u64>().context("no number");
    let before = starts()?;
    wait::until("it has been tried again", || starts().is_ok_and(|starts| starts > before))?;
    source_is(&cluster, "failed", "rejected_limit")?;
    ensure!(kept() == "3" && lines().lines().count() == 1, "{} {}", kept(), lines());
    cluster.sql("delete from postern.rejected_messages")?;
    wait::until_within(3 * wait::LIMIT, "it goes on", || lines().lines().count() > 1)
        .with_context(|| cluster.log_tail())?;
    wait::until("the next one is kept", || kept() != "0")?;
    let payloads = cluster
        .sql("select string_agg(convert_from(payload, 'UTF8'), ' ') from postern.rejected_messages")?;
    // What was kept last may come again when a machine stands still while its offset is committed.
    ensure!(matches!(&payloads[..], "fourth" | "third fourth"), "{payloads}");
    ensure!(lines() == format!("{}\n{}\n", event(1), event(2)), "{}", lines());
    Ok(())
}

/// The ids of the events that have arrived.
pub fn ids(broker: &Broker, topic: &str) -> Result<Vec<i64>> {
    let id = |record: &Record| event(record)?["Columns"]["id"].as_i64().context("no id");
    broker.consume(topic)?.iter().map(id).collect()
}

#[test]
fn a_missing_topic_is_what_the_stream_says_each_time_it_is_tried() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("stream-no-topic")?;
    let cluster = start("stream-no-topic", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let sink = format!(r#"{{"hosts":"{}","topicFallback":"gone"}}"#, broker.address());
    to_kafka(&cluster, r#"{"retry":"200ms"}"#, &sink)?;
    cluster.sql("insert into t values (1)")?;
    let mut said = HashSet::new();
    wait::until_within(Duration::from_secs(60), "it is tried again and again", || {
        said.extend(cluster.sql("select last_error from postern.streams"));
        cluster.sql("select errors >= 3 from postern.streams").is_ok_and(|often| often == "t")
    })
    .with_context(|| {
        format!("{:?}; {}", cluster.sql("select to_jsonb(s) from postern.streams s"), cluster.log_tail())
    })?;
    said.remove("");
    let text = said.iter().next().context("nothing was said")?;
    ensure!(said.len() == 1 && text.contains("\"gone\"") && text.contains("does not exist"), "{said:?}");
    broker.create_topic("gone", 1)?;
    delivered(&cluster)?;
    ensure!(ids(&broker, "gone")? == [1]);
    running(&cluster, "shop to topics")?;
    // Once when it begins and once when it is over, however often it was tried.
    wait::until("the log says that it is over", || {
        cluster.log().contains("stream \"shop to topics\" delivers again")
    })?;
    let log = cluster.log();
    for line in ["stream \"shop to topics\" has failed", "stream \"shop to topics\" delivers again"] {
        ensure!(log.matches(line).count() == 1, "{line}: {log}");
    }
    ensure!(log.contains("does not exist"), "{log}");
    Ok(())
}
