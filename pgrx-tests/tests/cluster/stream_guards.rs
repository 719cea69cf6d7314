//! Change streams keep to what is theirs: what is read as a superuser, slots, options that become SQL, snapshots of streams that are away.

use crate::stream::{
    another_database, delivered, events, file_sink, running, running_in, shows, start, stopped_in, to_file,
};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Stop;
use pgrx_tests::wait;

#[test]
fn tables_of_the_extensions_names_that_are_somebody_elses_are_not_read() -> Result<()> {
    let cluster = start("stream-trap", &[])?;
    for sql in ["create role mallory login", "create database trap owner mallory", "create database later"] {
        cluster.sql(sql)?;
    }
    let mut trap = cluster.config().user("mallory").dbname("trap").connect(postgres::NoTls)?;
    trap.batch_execute(
        "create schema postern;
         create function postern.spring() returns text language plpgsql as
            $$ begin execute 'alter role mallory superuser'; return 'x'; end $$;
         create view postern.source_definitions as select postern.spring() as name, 'postgres'::text as kind, '{}'::jsonb as options;
         create view postern.sink_definitions as select 'x'::text as name, 'stub_discard'::text as kind, '{}'::jsonb as options;
         create view postern.stream_definitions as select 'x'::text as name, 'x'::text as source, 'x'::text as sink;
         create view postern.source_states as select 'x'::text as source, 's'::name as slot, true as made_slot, '0/0'::pg_lsn as begins,
            true as snapshot_done, null::text as gap;
         create view postern.stream_states as select 'x'::text as stream, 'running'::text as state, 0::bigint as started;
         create view postern.stream_positions as select 'x'::text as stream, '0/0'::pg_lsn as commit_lsn, 0::bigint as ordinal,
            '0/0'::pg_lsn as delivered_lsn, 0::bigint as rewound",
    )?;
    drop(trap);
    // A database that is looked at after that one.
    cluster.sql_in(
        "later",
        "create extension postern; select postern.create_source('s'); select postern.create_sink('d', 'stub_discard');
         select postern.create_stream('s', 's', 'd')",
    )?;
    cluster.restart(Stop::Fast)?;
    running_in(&cluster, "later", "s")?;
    ensure!(cluster.sql("select rolsuper from pg_roles where rolname = 'mallory'")? == "f");
    Ok(())
}

#[test]
fn the_option_tables_is_tables_and_nothing_behind_them() -> Result<()> {
    let cluster = start("stream-tables", &[])?;
    cluster.sql("create table t (id int primary key); create role bob login; select postern.create_sink('d', 'stub_discard')")?;
    cluster.sql(
        r#"select postern.create_source('s', 'postgres', '{"tables": ["t; alter role bob superuser"], "retry": "1h"}');
           select postern.create_stream('s', 's', 'd')"#,
    )?;
    shows(&cluster, "select state || ' ' || last_error from postern.sources", "failed")?;
    let said = cluster.sql("select last_error from postern.sources")?;
    ensure!(said.contains("option \"tables\" must be tables as SQL has them"), "{said}");
    ensure!(cluster.sql("select rolsuper from pg_roles where rolname = 'bob'")? == "f");
    cluster.sql(r#"select postern.alter_source('s', '{"tables": ["t"]}')"#)?;
    running(&cluster, "s")
}

#[test]
fn a_copy_of_a_database_leaves_the_originals_slot_alone() -> Result<()> {
    let cluster = start("stream-template", &[])?;
    another_database(&cluster, "shop")?;
    stopped_in(&cluster, "shop", "s")?;
    wait::until("a copy can be made", || cluster.sql("create database copy template shop").is_ok())?;
    // The scout of the copy learns of it, and then of its end.
    cluster.sql_in("copy", "select postern.stop_source('s')")?;
    wait::until("the copy is known", || {
        cluster.sql_in("copy", "select count(*) from postern.running_sources()").is_ok_and(|n| n == "1")
    })?;
    cluster.sql_in("copy", "select postern.drop_stream('s'); select postern.drop_source('s')")?;
    wait::until("the copy is forgotten", || {
        cluster.sql_in("copy", "select count(*) from postern.running_sources()").is_ok_and(|n| n == "0")
    })?;
    cluster.sql_in("shop", "select postern.start_source('s')")?;
    running_in(&cluster, "shop", "s")?;
    ensure!(cluster.sql_in("shop", "select coalesce(gap, '-') from postern.streams")? == "-");
    ensure!(cluster.sql("select count(*) from pg_replication_slots")? == "1");
    Ok(())
}

#[test]
fn a_snapshot_waits_for_streams_that_are_away() -> Result<()> {
    let cluster = start("stream-snapshot-paused", &[])?;
    cluster.sql("create table t (id int primary key); insert into t values (1), (2)")?;
    let (one, two) = (file_sink(&cluster, "one", "{}")?, file_sink(&cluster, "two", "{}")?);
    cluster.sql(
        r#"select postern.create_source('s', 'postgres', '{"snapshot": true}');
           select postern.create_stream('one', 's', 'one'); select postern.create_stream('two', 's', 'two', false)"#,
    )?;
    shows(&cluster, "select last_error from postern.sources", "the snapshot begins when all streams")?;
    cluster.sql("insert into t values (3)")?;
    cluster.sql("select postern.start_stream('two')")?;
    running(&cluster, "one")?;
    running(&cluster, "two")?;
    delivered(&cluster)?;
    for path in [&one, &two] {
        let ids: Vec<_> = events(path)?.iter().map(|event| event["Columns"]["id"].as_i64()).collect();
        ensure!(ids == [Some(1), Some(2), Some(3)], "{}: {ids:?}", path.display());
    }
    Ok(())
}

#[test]
fn a_stream_beyond_max_streams_waits_for_a_place_and_the_others_of_its_source_go_on() -> Result<()> {
    let cluster = start("stream-places", &[("postern.max_streams", "1")])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, r#"{"retry":"200ms"}"#)?;
    let second = file_sink(&cluster, "second", "{}")?;
    cluster.sql("select postern.create_stream('second', 'shop', 'second')")?;
    let seen = || {
        cluster.sql("select string_agg(concat_ws('|', name, state, last_error), '; ') from postern.streams")
    };
    wait::until("it is said that the second has no place", || {
        seen().is_ok_and(|seen| {
            seen.contains("second|waiting|stream \"second\" has no place: raise postern.max_streams")
                && seen.contains("shop to lines|running")
        })
    })
    .with_context(|| format!("{:?}", seen()))?;
    cluster.sql("insert into t values (1)")?;
    let ids = |path| -> Result<Vec<i64>> {
        Ok(events(path)?.iter().filter_map(|event| event["Columns"]["id"].as_i64()).collect())
    };
    wait::until("the first has it", || ids(&path).is_ok_and(|ids| ids == [1]))
        .with_context(|| format!("{:?}", seen()))?;
    cluster.sql("select postern.drop_stream('shop to lines')")?;
    running(&cluster, "second")?;
    cluster.sql("insert into t values (2)")?;
    delivered(&cluster)?;
    ensure!(ids(&second)? == [1, 2] && ids(&path)? == [1], "{:?} {:?}", ids(&second)?, ids(&path)?);
    Ok(())
}
