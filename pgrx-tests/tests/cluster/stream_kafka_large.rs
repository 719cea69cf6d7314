//! A real Kafka broker that takes less than some events or batches have: what is too large is left out when that is wanted, and nothing
//! else.

use crate::stream::{delivered, running, start};
use crate::stream_kafka::{event, ids, to_kafka};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::kafka::{Broker, Options, no_broker};
use pgrx_tests::wait;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

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
