//! Change streams to a real Kafka broker: what arrives, by which key, in which order, and that nothing is missing whatever ends.

use crate::stream::{delivered, file_sink, running, start, worker};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::kafka::{Broker, Options, Record, no_broker};
use pgrx_tests::process::{self, signal_pid};
use pgrx_tests::wait;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A source `shop` that feeds a Kafka sink.
fn to_kafka(cluster: &Cluster, source: &str, sink: &str) -> Result<()> {
    cluster.sql(&format!(
        "select postern.create_source('shop', 'postgres', '{source}');
         select postern.create_sink('topics', 'kafka', '{sink}');
         select postern.create_stream('shop to topics', 'shop', 'topics')"
    ))?;
    running(cluster, "shop to topics")
}

fn event(record: &Record) -> Result<Value> {
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
    ensure!(begun.elapsed() < Duration::from_secs(5), "writing goes on");
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

/// For how long things end at random. `POSTERN_TEST_CHAOS` gives more seconds.
fn chaos() -> Duration {
    let seconds = std::env::var("POSTERN_TEST_CHAOS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(25))
}

/// What ends, one after the other.
const ENDS: [&str; 6] = [
    "terminate the worker",
    "kill -9 the worker",
    "kill -9 the broker",
    "restart",
    "kill -9 the server",
    "stop the stream",
];

#[test]
fn nothing_is_missing_and_each_key_is_in_order_whatever_ends() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("stream-chaos")?;
    broker.create_topic("all", 3)?;
    let cluster = start("stream-chaos", &[("fsync", "on")])?;
    cluster.sql("create table t (id int primary key, n bigint); insert into t select i, 0 from generate_series(0, 19) i")?;
    cluster.sql("create table history (at bigserial, id int, n bigint)")?;
    let source = r#"{"publication":"p","retry":"200ms"}"#;
    cluster.sql("create publication p for table t")?;
    to_kafka(&cluster, source, &format!(r#"{{"hosts":"{}","topicFallback":"all"}}"#, broker.address()))?;
    let stop = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| -> Result<()> {
        for writer in 0..3 {
            let (cluster, stop) = (&cluster, &stop);
            scope.spawn(move || write(cluster, stop, writer));
        }
        let worked = end_things(&cluster, &broker);
        stop.store(true, Relaxed);
        worked
    });
    ended?;
    wait::until_within(Duration::from_secs(60), "the server is back", || cluster.sql("select 1").is_ok())?;
    delivered(&cluster)?;
    compare(&cluster, &broker)
}

/// Counts rows up, one transaction after the other, and notes each in the same transaction.
fn write(cluster: &Cluster, stop: &AtomicBool, writer: usize) {
    let mut count = 0_usize;
    while !stop.load(Relaxed) {
        let Ok(mut client) = cluster.connect() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        while !stop.load(Relaxed) {
            count += 1;
            let id = (count * 7 + writer) % 20;
            let sql = format!(
                "with changed as (update t set n = n + 1 where id = {id} returning id, n)
                 insert into history (id, n) select id, n from changed"
            );
            if client.batch_execute(&sql).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn end_things(cluster: &Cluster, broker: &Broker) -> Result<()> {
    let begun = Instant::now();
    let end_worker = |signal: Signal| -> Result<()> {
        let pid = wait::for_value("the source has a worker", || worker(cluster))?;
        signal_pid(pid, signal)?;
        wait::until("that worker is gone", || !process::is_running(pid))
    };
    let mut round = 0;
    // Each of them at least once.
    while round < ENDS.len() || begun.elapsed() < chaos() {
        // A moment in which something is delivered; how long differs.
        std::thread::sleep(Duration::from_millis(300 + (round as u64 * 397) % 900));
        match ENDS[round % ENDS.len()] {
            "terminate the worker" => end_worker(Signal::TERM)?,
            "kill -9 the worker" => end_worker(Signal::KILL)?,
            "kill -9 the broker" => {
                broker.kill()?;
                broker.start_again()?;
            }
            "restart" => cluster.restart(Stop::Fast)?,
            "kill -9 the server" => {
                cluster.kill()?;
                cluster.start_again()?;
            }
            _ => {
                wait::until("it is stopped", || {
                    cluster.sql("select postern.stop_stream('shop to topics')").is_ok()
                })?;
                wait::until("it can be started again", || {
                    cluster.sql("select postern.start_stream('shop to topics')").is_ok()
                })?;
            }
        }
        wait::until_within(Duration::from_secs(60), "the server answers", || {
            cluster.sql("select 1").is_ok()
        })?;
        round += 1;
    }
    eprintln!("{round} ends in {:?}", begun.elapsed());
    Ok(())
}

/// Every row's history is in the topic, once or more, in order; what comes again comes with the same UUID.
fn compare(cluster: &Cluster, broker: &Broker) -> Result<()> {
    let mut wanted: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for row in cluster.connect()?.query("select id, n from history order by at", &[])? {
        wanted.entry(row.get::<_, i32>(0).into()).or_default().push(row.get(1));
    }
    let mut found: BTreeMap<i64, Vec<(i64, String)>> = BTreeMap::new();
    let mut doubled = 0;
    for record in broker.consume("all")? {
        let event = event(&record)?;
        let number = |name: &str| event["Columns"][name].as_i64().with_context(|| record.payload.clone());
        if event["Action"] == "update" {
            let uuid = event["UUID"].as_str().unwrap_or_default().to_owned();
            found.entry(number("id")?).or_default().push((number("n")?, uuid));
        }
    }
    ensure!(wanted.values().map(Vec::len).sum::<usize>() > 100, "little was written");
    for (id, numbers) in &wanted {
        ensure!(numbers.iter().copied().eq(1..=numbers.len() as i64), "the table's own history of {id}");
        let got = found.get(id).with_context(|| format!("nothing of {id}"))?;
        let mut uuids = BTreeMap::new();
        let mut next = 1;
        for (n, uuid) in got {
            let known = uuids.insert(*n, uuid.clone());
            ensure!(known.as_ref().is_none_or(|known| known == uuid), "row {id} number {n} has two UUIDs");
            doubled += usize::from(known.is_some());
            // What has come may come again from any point on, but nothing is left out.
            ensure!(*n <= next, "row {id}: {n} came before {next}");
            next = next.max(*n + 1);
        }
        ensure!(next == numbers.len() as i64 + 1, "row {id}: {} of {} came", next - 1, numbers.len());
    }
    eprintln!("{doubled} came twice");
    Ok(())
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
    // What every sink has is committed: after a restart nothing comes again, and what is new comes.
    cluster.restart(Stop::Fast)?;
    broker.produce("in", Some("k"), &event(3))?;
    wait::until("the next one is passed on", || lines().lines().count() > 2)
        .with_context(|| cluster.log_tail())?;
    ensure!(lines().lines().count() == 3 && lines().ends_with(&format!("{}\n", event(3))), "{}", lines());
    Ok(())
}

/// A broker that takes 10 kB at most, and a stream to it of a table `t`.
fn small_broker(name: &str, sink: &str) -> Result<(Broker, Cluster)> {
    let options = Options { message_max_bytes: Some(10_000), ..Options::default() };
    let broker = Broker::with(name, &options)?;
    broker.create_topic("all", 1)?;
    let cluster = start(name, &[])?;
    cluster.sql("create table t (id int primary key, v text)")?;
    let mut sink: Value = serde_json::from_str(sink)?;
    sink["hosts"] = broker.address().into();
    sink["topicFallback"] = "all".into();
    to_kafka(&cluster, r#"{"retry":"200ms"}"#, &sink.to_string())?;
    Ok((broker, cluster))
}

/// The ids of the events that have arrived.
fn ids(broker: &Broker, topic: &str) -> Result<Vec<i64>> {
    let id = |record: &Record| event(record)?["Columns"]["id"].as_i64().context("no id");
    broker.consume(topic)?.iter().map(id).collect()
}

#[test]
fn an_event_that_the_broker_finds_too_large_stops_its_stream_or_is_left_out_and_counted() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let (broker, cluster) = small_broker("stream-oversized", r#"{"batchSize":1}"#)?;
    for (id, size) in [(1, 10), (2, 20_000), (3, 10)] {
        cluster.sql(&format!("insert into t values ({id}, repeat('x', {size}))"))?;
    }
    let seen = || cluster.sql("select state, skipped, last_error from postern.streams");
    wait::until("it waits for the operator", || {
        seen().is_ok_and(|seen| seen.starts_with("blocked|0|") && seen.contains("on_oversized"))
    })
    .with_context(|| format!("{:?}; {}", seen(), cluster.log_tail()))?;
    ensure!(!ids(&broker, "all")?.contains(&2), "{:?}", ids(&broker, "all")?);
    cluster.sql(r#"select postern.alter_sink('topics', '{"on_oversized":"skip"}')"#)?;
    cluster.sql("select postern.start_stream('shop to topics')")?;
    running(&cluster, "shop to topics")?;
    delivered(&cluster)?;
    // What was out when it stopped may have come twice, and nothing is missing but what was left out.
    let arrived = ids(&broker, "all")?;
    ensure!(HashSet::from_iter(arrived.iter().copied()) == HashSet::from([1, 3]), "{arrived:?}");
    ensure!(cluster.sql("select skipped from postern.streams")? == "1", "{:?}", seen());
    Ok(())
}

#[test]
fn events_beside_one_that_is_too_large_are_not_left_out_with_it() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let (broker, cluster) = small_broker("stream-beside", r#"{"on_oversized":"skip"}"#)?;
    cluster.sql("insert into t select i, repeat('x', case i when 50 then 20000 else 100 end) from generate_series(1, 100) i")?;
    delivered(&cluster)?;
    let arrived = ids(&broker, "all")?;
    ensure!(arrived == (1..=100).filter(|id| *id != 50).collect::<Vec<_>>(), "{arrived:?}");
    ensure!(cluster.sql("select skipped from postern.streams")? == "1");
    Ok(())
}

#[test]
fn small_events_arrive_at_a_broker_that_takes_less_than_a_batch_of_them() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let (broker, cluster) = small_broker("stream-small", "{}")?;
    cluster.sql("insert into t select i, repeat('x', 100) from generate_series(1, 200) i")?;
    delivered(&cluster)?;
    let arrived = ids(&broker, "all")?;
    ensure!(arrived == (1..=200).collect::<Vec<_>>(), "{arrived:?}");
    Ok(())
}

#[test]
fn among_events_that_are_too_large_nothing_else_is_missing_and_what_a_key_has_last_is_in_order() -> Result<()>
{
    if no_broker() {
        return Ok(());
    }
    let sink = r#"{"on_oversized":"skip","batchSize":50,"tableTopicMapping":{"counted":"many"}}"#;
    let (broker, cluster) = small_broker("stream-mixed", sink)?;
    broker.create_topic("many", 3)?;
    cluster.sql(
        "create table counted (id int primary key, n int, v text);
         insert into counted select i, 0 from generate_series(0, 19) i;
         do $$ begin
             for i in 0..2999 loop
                 update counted set n = n + 1, v = repeat('x', case i % 307 when 5 then 20000 else 10 + i % 200 end)
                 where id = i % 20;
             end loop;
         end $$",
    )?;
    delivered(&cluster)?;
    // The last time that each came.
    let mut last = BTreeMap::new();
    let records = broker.consume("many")?;
    for (place, record) in records.iter().enumerate() {
        let event = event(record)?;
        let number = |name: &str| event["Columns"][name].as_i64().with_context(|| record.payload.clone());
        last.insert((number("id")?, number("n")?), (record.partition, place));
    }
    eprintln!("{} came twice", records.len() - last.len());
    let is_large = |id: i64, n: i64| n > 0 && ((n - 1) * 20 + id) % 307 == 5;
    let all = (0..20).flat_map(|id| (0..=150).map(move |n| (id, n)));
    let wanted: Vec<_> = all.filter(|(id, n)| !is_large(*id, *n)).collect();
    ensure!(last.keys().copied().eq(wanted), "{last:?}");
    for (((one, _), before), ((other, _), after)) in last.iter().zip(last.iter().skip(1)) {
        ensure!(one != other || before < after, "row {one}: {last:?}");
    }
    let skipped = cluster.sql("select skipped from postern.streams")?;
    ensure!(skipped == "10", "{skipped}");
    Ok(())
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
