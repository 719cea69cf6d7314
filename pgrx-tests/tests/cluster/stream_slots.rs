//! Replication slots of change streams: whose they are, and what becomes of a stream whose slot is taken, moved, dropped or invalidated.

use crate::pooling::text;
use crate::stream::{
    QUICK, define, delivered, ids, running, shows, source_is, start, stopped, terminate_worker, to_file,
    worker, works, write_wal,
};
use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{process, wait};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Makes a slot of pgoutput; the last argument is two_phase.
fn make_slot(cluster: &Cluster, name: &str, two_phase: bool) -> Result<()> {
    cluster
        .sql(&format!("select pg_create_logical_replication_slot('{name}', 'pgoutput', false, {two_phase})"))
        .map(drop)
}

#[test]
fn a_slot_is_one_sources() -> Result<()> {
    let cluster = start("stream-one-slot", &[])?;
    cluster.sql(
        "select postern.create_sink('d', 'stub_discard'); select postern.create_sink('e', 'stub_discard')",
    )?;
    cluster.sql(
        r#"select postern.create_source('one', 'postgres', '{"slot": "same"}'); select postern.create_stream('one', 'one', 'd')"#,
    )?;
    running(&cluster, "one")?;
    cluster.sql(
        r#"select postern.create_source('two', 'postgres', '{"slot": "same"}'); select postern.create_stream('two', 'two', 'e')"#,
    )?;
    let said = "select state || ': ' || last_error from postern.sources where name = 'two'";
    shows(&cluster, said, "blocked: replication slot \"same\" is that of source \"one\"")?;
    // Dropping it leaves the slot to the one that has it.
    cluster.sql("select postern.drop_stream('two'); select postern.drop_source('two')")?;
    wait::until("it is gone", || {
        cluster.sql("select count(*) from postern.running_sources()").is_ok_and(|n| n == "1")
    })?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots where active")? == "1");
    // Names that look alike in a slot's letters have slots of their own.
    cluster.sql("select postern.create_source('Shop'); select postern.create_source('shop')")?;
    cluster.sql(
        "select postern.create_stream('A', 'Shop', 'd'); select postern.create_stream('a', 'shop', 'd')",
    )?;
    running(&cluster, "A")?;
    running(&cluster, "a")?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots where active")? == "3");
    Ok(())
}

#[test]
fn another_slot_is_a_stated_gap_and_the_old_one_goes() -> Result<()> {
    let cluster = start("stream-other-slot", &[])?;
    cluster.sql(
        "select postern.create_source('s'); select postern.create_sink('d', 'stub_discard'); select postern.create_stream('s', 's', 'd')",
    )?;
    running(&cluster, "s")?;
    cluster.sql(r#"select postern.alter_source('s', '{"slot": "another"}')"#)?;
    shows(&cluster, "select gap from postern.sources", "replication slot \"another\" takes the place of")?;
    running(&cluster, "s")?;
    ensure!(cluster.sql("select string_agg(slot_name, ',') from pg_replication_slots")? == "another");
    Ok(())
}

#[test]
fn a_slot_that_another_process_has_is_waited_for() -> Result<()> {
    let cluster = start("stream-taken", &[])?;
    cluster.sql("create table t (id int primary key); create publication p for all tables")?;
    cluster.sql("select pg_create_logical_replication_slot('taken', 'pgoutput')")?;
    let mut other = cluster.program("pg_recvlogical");
    other.args(["-h", &cluster.socket_directory().to_string_lossy(), "-p", &cluster.port.to_string()]);
    other.args(["-U", "postgres", "-d", "postgres", "--slot", "taken", "--start", "-f", "/dev/null"]);
    other.args(["-o", "proto_version=1", "-o", "publication_names=p"]);
    let mut other = process::start(other, Signal::INT)?;
    wait::until("it has the slot", || {
        cluster.sql("select active from pg_replication_slots").is_ok_and(|active| active == "t")
    })?;
    let path = define(&cluster, r#"{"retry":"200ms","slot":"taken","publication":"p"}"#, "{}")?;
    source_is(&cluster, "failed", "is active for PID")?;
    other.signal(Signal::INT)?;
    other.wait(wait::LIMIT)?;
    works(&cluster, &path)?;
    // Who has not made a slot does not drop it.
    cluster.sql("select postern.drop_stream('shop to lines'); select postern.drop_source('shop')")?;
    wait::until("the slot is free", || {
        cluster.sql("select active from pg_replication_slots").is_ok_and(|active| active == "f")
    })
}

#[test]
fn too_few_slots_are_said_and_one_more_mends_it() -> Result<()> {
    let cluster = start("stream-few-slots", &[("max_replication_slots", "1")])?;
    cluster.sql("create table t (id int primary key)")?;
    cluster.sql("select pg_create_physical_replication_slot('other')")?;
    let path = define(&cluster, QUICK, "{}")?;
    source_is(&cluster, "failed", "all replication slots are in use")?;
    // Now and then the last word is that it waits for transactions that are running.
    source_is(&cluster, "failed", "max_replication_slots")?;
    cluster.sql("select pg_drop_replication_slot('other')")?;
    works(&cluster, &path)
}

#[test]
fn a_slot_that_was_dropped_by_hand_is_missed_and_going_on_without_it_states_the_gap() -> Result<()> {
    let cluster = start("stream-no-slot", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, QUICK)?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    stopped(&cluster)?;
    cluster.sql("select pg_drop_replication_slot(slot) from postern.sources; insert into t values (2)")?;
    cluster.sql("select postern.start_source('shop')")?;
    source_is(&cluster, "blocked", "is gone")?;
    ensure!(
        cluster.sql("select last_error from postern.sources")?.contains("lost_slot"),
        "it says what to do"
    );
    cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue"}')"#)?;
    running(&cluster, "shop to lines")?;
    let gap = cluster.sql("select gap from postern.streams")?;
    ensure!(gap.contains("is gone") && gap.contains("are lost"), "{gap}");
    cluster.sql("insert into t values (3)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [1, 3]);
    Ok(())
}

#[test]
fn an_invalidated_slot_stops_the_stream_or_goes_on_with_a_gap_as_the_operator_says() -> Result<()> {
    let cluster = start("stream-invalidated", &[("max_slot_wal_keep_size", "16MB"), ("wal_keep_size", "0")])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, QUICK)?;
    for (id, choice) in [(1, "stop"), (2, "continue")] {
        cluster.sql(&format!(r#"select postern.alter_source('shop', '{{"lost_slot":"{choice}"}}')"#))?;
        running(&cluster, "shop to lines")?;
        delivered(&cluster)?;
        stopped(&cluster)?;
        cluster.sql(&format!("insert into t values ({id})"))?;
        write_wal(&cluster, 4)?;
        cluster.sql("checkpoint")?;
        let lost = cluster.sql("select wal_status from postern.sources")?;
        ensure!(lost == "lost", "{lost}");
        cluster.sql("select postern.start_source('shop')")?;
        if choice == "stop" {
            source_is(&cluster, "blocked", "was invalidated")?;
            ensure!(cluster.sql("select coalesce(gap, '-') from postern.streams")? == "-");
            cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue"}')"#)?;
        }
        running(&cluster, "shop to lines")?;
        let gap = cluster.sql("select gap from postern.streams")?;
        ensure!(gap.contains("was invalidated") && gap.contains("max_slot_wal_keep_size"), "{gap}");
        cluster.sql(&format!("insert into t values ({id}0)"))?;
        delivered(&cluster)?;
    }
    ensure!(ids(&path)? == [10, 20], "{:?}", ids(&path)?);
    Ok(())
}

#[test]
fn a_slot_that_is_invalidated_while_its_sink_is_down_is_said_by_a_worker_that_runs() -> Result<()> {
    let cluster = start("stream-down-lost", &[("max_slot_wal_keep_size", "16MB"), ("wal_keep_size", "0")])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, QUICK)?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    // Where the file was there is now a directory; the sink notices when it has synced one more row.
    let aside = path.with_extension("aside");
    std::fs::rename(&path, &aside)?;
    std::fs::create_dir(&path)?;
    cluster.sql("insert into t values (2)")?;
    delivered(&cluster)?;
    cluster.sql("insert into t values (3)")?;
    shows(&cluster, "select state from postern.streams", "failed")?;
    let before = worker(&cluster)?;
    write_wal(&cluster, 4)?;
    ensure!(worker(&cluster)? == before, "nothing has disturbed it so far");
    cluster.sql("checkpoint")?;
    shows(&cluster, "select wal_status from postern.sources", "lost")?;
    source_is(&cluster, "blocked", "was invalidated")?;
    let said = cluster.sql("select last_error from postern.sources")?;
    ensure!(said.contains("max_slot_wal_keep_size") && said.contains("lost_slot"), "{said}");
    ensure!(cluster.sql("select state from postern.streams")? == "blocked");
    ensure!(cluster.sql("select coalesce(gap, '-') from postern.streams")? == "-");
    std::fs::remove_dir(&path)?;
    cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue"}')"#)?;
    running(&cluster, "shop to lines")?;
    let gap = cluster.sql("select gap from postern.streams")?;
    ensure!(gap.contains("was invalidated") && gap.contains("are lost"), "{gap}");
    cluster.sql("insert into t values (4)")?;
    delivered(&cluster)?;
    ensure!(ids(&aside)? == [1, 2] && ids(&path)? == [4], "{:?} {:?}", ids(&aside)?, ids(&path)?);
    Ok(())
}

#[test]
fn an_operators_slot_that_was_invalidated_is_left_alone_and_waits() -> Result<()> {
    let cluster = start("stream-invalidated", &[("max_slot_wal_keep_size", "16MB"), ("wal_keep_size", "0")])?;
    make_slot(&cluster, "theirs", false)?;
    write_wal(&cluster, 4)?;
    cluster.sql("checkpoint")?;
    cluster.sql(
        r#"select postern.create_source('shop', 'postgres', '{"slot": "theirs", "lost_slot": "continue"}');
           select postern.create_sink('d', 'stub_discard'); select postern.create_stream('s', 'shop', 'd')"#,
    )?;
    source_is(&cluster, "blocked", "replication slot \"theirs\" was invalidated")?;
    cluster.sql(r#"select postern.alter_source('shop', '{"slot": "another"}')"#)?;
    running(&cluster, "s")?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots where slot_name = 'theirs'")? == "1");
    Ok(())
}

#[test]
fn a_slot_that_somebody_moved_or_made_again_is_a_stated_gap() -> Result<()> {
    let cluster = start("stream-moved", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, r#"{"retry":"200ms"}"#)?;
    let mut wanted = Vec::new();
    for (round, moved) in [
        "select pg_replication_slot_advance(slot, pg_current_wal_insert_lsn()) from postern.sources",
        "select pg_drop_replication_slot(slot), pg_create_logical_replication_slot(slot, 'pgoutput') from postern.sources",
    ]
    .iter()
    .enumerate()
    {
        let base = i64::try_from(round)? * 10;
        cluster.sql(&format!(
            "select postern.alter_source('shop', '{{\"lost_slot\":\"stop\"}}'); insert into t values ({})",
            base + 1
        ))?;
        running(&cluster, "shop to lines")?;
        delivered(&cluster)?;
        stopped(&cluster)?;
        cluster.sql(&format!("insert into t values ({})", base + 2))?;
        cluster.sql(moved)?;
        cluster.sql("select postern.start_source('shop')")?;
        source_is(&cluster, "blocked", "replication slot")?;
        let said = cluster.sql("select last_error from postern.sources")?;
        ensure!(said.contains("was moved from") && said.contains("are lost; set the source's option \"lost_slot\""), "{said}");
        cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue"}')"#)?;
        running(&cluster, "shop to lines")?;
        let gap = cluster.sql("select gap from postern.streams")?;
        ensure!(gap.matches("by somebody else").count() == round + 1, "each gap is stated for good: {gap}");
        ensure!(gap.matches("are lost").count() == round + 1, "{gap}");
        cluster.sql(&format!("insert into t values ({})", base + 3))?;
        delivered(&cluster)?;
        wanted.extend([base + 1, base + 3]);
        ensure!(ids(&path)? == wanted, "{:?}", ids(&path)?);
    }
    // What Postern has confirmed itself is none.
    let gap = cluster.sql("select gap from postern.streams")?;
    stopped(&cluster)?;
    cluster.sql("select postern.start_source('shop')")?;
    running(&cluster, "shop to lines")?;
    cluster.kill()?;
    cluster.start_again()?;
    running(&cluster, "shop to lines")?;
    ensure!(cluster.sql("select gap from postern.streams")? == gap);
    Ok(())
}

#[test]
fn a_slot_of_two_phases_is_refused() -> Result<()> {
    let cluster = start("stream-two-phase", &[])?;
    make_slot(&cluster, "prepared", true)?;
    cluster.sql(
        r#"select postern.create_source('shop', 'postgres', '{"slot": "prepared"}'); select postern.create_sink('d', 'stub_discard');
           select postern.create_stream('s', 'shop', 'd')"#,
    )?;
    source_is(&cluster, "blocked", "replication slot \"prepared\" was made with two_phase")
}

/// A process that decodes does not show as one that runs a transaction, unless it takes care: then whoever reads what it has written and not
/// yet committed takes that for what a crash has left, and says so in the row, for good.
#[test]
fn what_a_worker_writes_down_stays_whoever_reads_it_meanwhile() -> Result<()> {
    // A commit takes a moment.
    let cluster = start("stream-read-meanwhile", &[("fsync", "on")])?;
    cluster.sql("create table t (id bigserial primary key)")?;
    to_file(&cluster, QUICK)?;
    let over = AtomicBool::new(false);
    let write = || -> Result<()> {
        let mut client = cluster.connect()?;
        while !over.load(Relaxed) {
            client.batch_execute("insert into t default values")?;
        }
        Ok(())
    };
    let read = || -> Result<()> {
        let mut client = cluster.connect()?;
        while !over.load(Relaxed) {
            let slot = text(&mut client, "select confirmed_flush_lsn::text from pg_replication_slots")?;
            let behind =
                format!("select confirmed::text from postern.source_states where confirmed < '{slot}'");
            let behind = client.query_opt(&behind, &[])?.map(|row| row.get::<_, String>(0));
            ensure!(behind.is_none(), "{behind:?} is written down when the slot has confirmed {slot}");
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> =
            (0..2).map(|_| scope.spawn(write)).chain((0..3).map(|_| scope.spawn(read))).collect();
        let begun = Instant::now();
        let mut ended = Ok(());
        while ended.is_ok() && begun.elapsed() < Duration::from_secs(12) {
            ended = terminate_worker(&cluster);
        }
        over.store(true, Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        ended
    })
}
