//! Going back: what is kept is delivered again from exactly where it is asked for, and the option `retain` says how much that is.

use crate::stream::{delivered, events, file_sink, ids, running, shows, start, to_file, worker};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use serde_json::Value;

/// What must be the same of an event that comes again.
fn identity(event: &Value) -> [&Value; 4] {
    ["UUID", "CommitLSN", "Ordinal", "Columns"].map(|field| &event[field])
}

#[test]
fn a_rewound_source_delivers_again_from_exactly_there_to_every_stream() -> Result<()> {
    let cluster = start("stream-rewind", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let first = to_file(&cluster, r#"{"retain":"1GB","ordinal":true,"commit_lsn":true}"#)?;
    let second = file_sink(&cluster, "second", "{}")?;
    cluster.sql("select postern.create_stream('second', 'shop', 'second')")?;
    running(&cluster, "second")?;
    for transaction in 0..4 {
        let (from, to) = (transaction * 3, transaction * 3 + 2);
        cluster.sql(&format!("insert into t select generate_series({from}, {to})"))?;
    }
    delivered(&cluster)?;
    let before = events(&first)?;
    ensure!(before.len() == 12, "{} events", before.len());
    // The end of the second transaction: the third one is the first that comes after it.
    let end = before[5]["CommitLSN"].as_str().context("CommitLSN")?;
    // Its end writes down where it is.
    cluster.sql("select postern.stop_source('shop')")?;
    wait::until("it has stopped", || worker(&cluster).is_err())?;
    cluster.sql("select postern.start_source('shop')")?;
    running(&cluster, "shop to lines")?;
    running(&cluster, "second")?;
    ensure!(cluster.sql(&format!("select postern.rewind_source('shop', '{end}')"))? == "2");
    for path in [&first, &second] {
        let count = || events(path).map(|events| events.len());
        wait::until("what is behind it has come again", || count().is_ok_and(|count| count >= 18))
            .with_context(|| format!("{:?}; {}", count(), cluster.log_tail()))?;
    }
    cluster.sql("insert into t values (100)")?;
    delivered(&cluster)?;
    for path in [&first, &second] {
        let all = events(path)?;
        let ids: Vec<_> = all.iter().map(|event| event["Columns"]["id"].as_i64().unwrap_or(-1)).collect();
        ensure!(ids == [(0..12).collect(), (6..12).collect(), vec![100]].concat(), "{ids:?}");
        for (old, new) in all[6..12].iter().zip(&all[12..18]) {
            ensure!(identity(old) == identity(new), "{old}\n{new}");
        }
    }
    Ok(())
}

/// Writes about two megabytes of WAL with one row for the stream, and waits until that is delivered.
fn write(cluster: &Cluster, id: i32) -> Result<String> {
    cluster.sql(&format!(
        "insert into filler select repeat('x', 1000) from generate_series(1, 2000); insert into t values ({id})"
    ))?;
    delivered(cluster)?;
    cluster.sql("select pg_current_wal_insert_lsn()")
}

#[test]
fn retain_is_how_far_a_stream_can_go_back() -> Result<()> {
    let cluster = start("stream-retain", &[])?;
    cluster.sql("create table t (id int primary key); create table filler (v text)")?;
    let path = to_file(&cluster, r#"{"retain":"3MB","tables":["t"]}"#)?;
    let ends = (1..=5).map(|id| write(&cluster, id)).collect::<Result<Vec<_>>>()?;
    let back = |to: &str| cluster.sql(&format!("select postern.rewind_stream('shop to lines', '{to}')"));
    // Three of the ten megabytes: the last transaction, and no earlier than the one before it.
    let kept =
        || cluster.sql("select pg_current_wal_insert_lsn() - confirmed_flush_lsn from pg_replication_slots");
    let mut bytes = 0;
    wait::until("what is not to be kept is confirmed", || {
        bytes = kept().ok().and_then(|kept| kept.parse().ok()).unwrap_or(0);
        (1..5_000_000).contains(&bytes)
    })
    .with_context(|| format!("{bytes} bytes are kept"))?;
    ensure!(bytes >= 3 << 20, "{bytes} bytes are kept");
    let refused = back(&ends[0]).err().context("it goes back to what is not kept")?;
    ensure!(format!("{refused:?}").contains("cannot go back to"), "{refused:?}");
    back(&ends[3])?;
    wait::until("the last one comes again", || ids(&path).is_ok_and(|ids| ids == [1, 2, 3, 4, 5, 5]))
        .with_context(|| format!("{:?}; {}", ids(&path), cluster.log_tail()))?;
    running(&cluster, "shop to lines")?;
    delivered(&cluster)?;
    // Without it nothing is.
    cluster.sql(r#"select postern.alter_source('shop', '{"retain":0}')"#)?;
    let confirmed =
        || cluster.sql(&format!("select confirmed_flush_lsn >= '{}' from pg_replication_slots", ends[4]));
    wait::until("all is confirmed", || confirmed().is_ok_and(|confirmed| confirmed == "t"))
        .with_context(|| cluster.log_tail())?;
    let refused = back(&ends[3]).err().context("it goes back to what is not kept")?;
    ensure!(format!("{refused:?}").contains("cannot go back to"), "{refused:?}");
    ensure!(ids(&path)? == [1, 2, 3, 4, 5, 5], "{:?}", ids(&path)?);
    Ok(())
}

#[test]
fn a_stream_that_is_being_rewound_keeps_what_it_goes_back_to() -> Result<()> {
    let cluster = start("stream-rewound", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    let now = cluster.sql("select pg_current_wal_insert_lsn()")?;
    cluster.sql("insert into t values (2)")?;
    shows(&cluster, &format!("select (confirmed_lsn >= '{now}')::text from postern.sources"), "true")?;
    let mut operator = cluster.connect()?;
    let gone = operator.batch_execute(&format!("select postern.rewind_source('shop', '{now}'::pg_lsn - 1)"));
    let gone = gone.err().context("it goes back to what is gone")?;
    let said =
        gone.as_db_error().map(|error| format!("{} {}", error.message(), error.detail().unwrap_or_default()));
    ensure!(
        said.as_ref().is_some_and(
            |said| said.contains("cannot go back to") && said.contains("what was before is gone")
        ),
        "{said:?}"
    );
    operator.batch_execute(
        "begin; select postern.rewind_source('shop', greatest(s.confirmed_lsn, c.confirmed))
         from postern.sources s join postern.source_states c on c.source = s.name",
    )?;
    cluster.sql("insert into t values (3)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [1, 2, 3]);
    operator.batch_execute("commit")?;
    wait::until("it comes again", || ids(&path).is_ok_and(|ids| ids.len() > 3))?;
    delivered(&cluster)?;
    ensure!(ids(&path)?.ends_with(&[3, 3]) || ids(&path)?.ends_with(&[2, 3]), "{:?}", ids(&path)?);
    Ok(())
}
