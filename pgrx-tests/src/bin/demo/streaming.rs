//! What is committed in `shop` arrives in Kafka: a publication for all tables, a broker on port 9092, and the events as they come.

use crate::nodes::Nodes;
use crate::screen::{heading, note, show, step};
use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::kafka::{self, Broker, Options};
use pgrx_tests::wait;

/// The broker's port.
pub const PORT: u16 = 9092;

const TOPIC: &str = "shop";

/// Starts the stream and shows the events of a few changes. The broker, if there is one to be had, lives as long as what is returned.
pub fn show_streams(nodes: &Nodes) -> Result<Option<Broker>> {
    heading("What is committed in shop goes to Kafka, from inside the server");
    let broker = match kafka::unavailable() {
        None => Some(step("a Kafka broker on 9092 (the first time it is downloaded)", broker)?),
        Some(why) => {
            note(&format!("there is no Kafka broker to be had here, so events go into a file: {why}"));
            None
        }
    };
    let node = &nodes.primary;
    let file = node.data().join("shop.jsonl");
    let sink = if broker.is_some() {
        format!(r#"'kafka', '{{"hosts": "127.0.0.1:{PORT}", "topicFallback": "{TOPIC}"}}'"#)
    } else {
        format!(r#"'file', '{{"path": "{}", "sync": "10ms"}}'"#, file.display())
    };
    let mut shop = node.config().dbname("shop").connect(postgres::NoTls)?;
    for sql in [
        r#"SELECT postern.create_source('shop', 'postgres', '{"ordinal": true, "lost_slot": "continue"}')"#
            .to_owned(),
        format!("SELECT postern.create_sink('events', {sink})"),
        "SELECT postern.create_stream('shop to events', 'shop', 'events')".to_owned(),
    ] {
        println!("    {sql}");
        shop.batch_execute(&sql)?;
    }
    step("the stream runs", || runs(nodes, node))?;
    let now = "SELECT pg_current_wal_insert_lsn()::text";
    shop.batch_execute("SET ROLE app; INSERT INTO orders VALUES (-1, 'a demo'), (-2, 'another'); UPDATE orders SET node = 'changed' WHERE id = -1; DELETE FROM orders WHERE id < 0; RESET ROLE")?;
    let written: String = shop.query_one(now, &[])?.get(0);
    let behind = format!("SELECT count(*) FROM postern.streams WHERE delivered_lsn >= '{written}'");
    wait::until("the events are delivered", || {
        shop.query_one(&behind, &[]).is_ok_and(|row| row.get::<_, i64>(0) == 1)
    })?;
    let events: Vec<String> = match &broker {
        Some(broker) => broker.consume(TOPIC)?.into_iter().map(|record| record.payload).collect(),
        None => std::fs::read_to_string(&file)?.lines().map(str::to_owned).collect(),
    };
    ensure!(events.len() == 5, "{} events of five changes", events.len());
    println!("\n  two rows inserted, one changed, both deleted:");
    for event in &events {
        println!("    {event}");
    }
    state(nodes, node)?;
    Ok(broker)
}

fn broker() -> Result<Broker> {
    let broker = Broker::with("demo", &Options { port: Some(PORT), ..Options::default() })?;
    broker.create_topic(TOPIC, 1)?;
    Ok(broker)
}

fn runs(nodes: &Nodes, node: &Cluster) -> Result<()> {
    wait::until("the stream runs", || {
        nodes
            .table(node, "SELECT state FROM postern.streams")
            .is_ok_and(|lines| lines.iter().any(|line| line.ends_with("running")))
    })
}

fn state(nodes: &Nodes, node: &Cluster) -> Result<()> {
    let sql = "SELECT state, events, delivered_lsn, lag_bytes, lag, retained_wal, gap FROM postern.streams";
    println!("\n  {}: {sql}", node.name);
    for line in nodes.table(node, sql)? {
        println!("    {line}");
    }
    Ok(())
}

/// After node1 was away and came back.
pub fn show_after_failover(nodes: &Nodes, broker: Option<&Broker>) -> Result<()> {
    step("the stream runs again on node1", || runs(nodes, &nodes.primary))?;
    state(nodes, &nodes.primary)?;
    if let Some(broker) = broker {
        show("events in the topic by now", &broker.consume(TOPIC)?.len().to_string());
    }
    Ok(())
}
