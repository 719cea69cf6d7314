//! What operators do to change streams by hand: slots that they move, make and rewind, names and arguments, publications, limits.

use crate::stream::{delivered, events, file, running, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Waits until the first row of a query has this in it.
fn shows(cluster: &Cluster, sql: &str, wanted: &str) -> Result<()> {
    let shown = || cluster.sql(sql);
    wait::until(&format!("{sql} gives {wanted}"), || shown().is_ok_and(|shown| shown.contains(wanted)))
        .with_context(|| format!("{:?}; {}", shown(), cluster.log_tail()))
}

const STATE: &str =
    "select state || ': ' || coalesce(last_error, '') from postern.sources order by name limit 1";

fn ids(path: &PathBuf) -> Result<Vec<i64>> {
    Ok(events(path)?.iter().filter_map(|event| event["Columns"]["id"].as_i64()).collect())
}

fn stopped(cluster: &Cluster) -> Result<()> {
    cluster.sql("select postern.stop_source('shop')")?;
    shows(cluster, "select state || coalesce(worker_pid, 0) from postern.sources", "stopped0")
}

/// The last column of the last row, in another database.
fn in_database(cluster: &Cluster, name: &str, sql: &str) -> Result<String> {
    let mut client = cluster
        .config()
        .dbname(name)
        .application_name(pgrx_tests::cluster::PASSING)
        .connect(postgres::NoTls)?;
    let mut last = String::new();
    for message in client.simple_query(sql)? {
        if let postgres::SimpleQueryMessage::Row(row) = message {
            last = row.get(row.len() - 1).unwrap_or_default().to_owned();
        }
    }
    Ok(last)
}

/// What the server says of a mistake: its code and its message.
fn mistake(cluster: &Cluster, database: &str, sql: &str) -> Result<String> {
    let failed = in_database(cluster, database, sql).err().with_context(|| format!("{sql} is allowed"))?;
    let error = failed.downcast_ref::<postgres::Error>().and_then(postgres::Error::as_db_error);
    let error = error.with_context(|| format!("{sql}: {failed}"))?;
    Ok(format!("{} {}", error.code().code(), error.message()))
}

/// Makes a slot of pgoutput; the last argument is two_phase.
fn make_slot(cluster: &Cluster, name: &str, two_phase: bool) -> Result<()> {
    cluster
        .sql(&format!("select pg_create_logical_replication_slot('{name}', 'pgoutput', false, {two_phase})"))
        .map(drop)
}

#[test]
fn what_is_delivered_late_is_written_down_without_a_further_event() -> Result<()> {
    let cluster = start("operator-late", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = file(&cluster, "events.jsonl");
    cluster.sql(&format!(
        "select postern.create_source('shop');
         select postern.create_sink('lines', 'file', '{{\"path\":\"{}\",\"sync\":\"4s\"}}');
         select postern.create_stream('shop to lines', 'shop', 'lines')",
        path.display()
    ))?;
    running(&cluster, "shop to lines")?;
    let now = || cluster.sql("select pg_current_wal_insert_lsn()");
    let written = |lsn: &str| {
        shows(
            &cluster,
            &format!("select (delivered_lsn >= '{lsn}')::text from postern.stream_positions"),
            "true",
        )
    };
    cluster.sql("insert into t values (1)")?;
    written(&now()?)?;
    // The WAL goes on a little, so that where the stream is changes while the event is on its way.
    cluster.sql("select txid_current()")?;
    shows(&cluster, &format!("select (received_lsn >= '{}')::text from postern.sources", now()?), "true")?;
    cluster.sql("insert into t values (2)")?;
    let committed = now()?;
    written(&committed)?;
    let confirmed = format!("select (confirmed_flush_lsn >= '{committed}')::text from pg_replication_slots");
    shows(&cluster, &confirmed, "true")?;
    ensure!(ids(&path)? == [1, 2]);
    Ok(())
}

#[test]
fn an_idle_source_comes_to_rest() -> Result<()> {
    let cluster = start("operator-idle", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    to_file(&cluster, "{}")?;
    cluster.sql("insert into t select generate_series(1, 1000); checkpoint")?;
    delivered(&cluster)?;
    // What it writes down is WAL itself: that must not make it write again.
    let mut last = (String::new(), Instant::now());
    wait::until_within(Duration::from_secs(60), "nothing is written down for 15 seconds", || {
        let written = cluster.sql("select xmin from postern.source_states").unwrap_or_default();
        if written != last.0 {
            last = (written, Instant::now());
        }
        last.1.elapsed() >= Duration::from_secs(15)
    })
    .with_context(|| cluster.log_tail())
}

#[test]
fn a_slot_that_somebody_moved_or_made_again_is_a_stated_gap() -> Result<()> {
    let cluster = start("operator-moved", &[])?;
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
        shows(&cluster, STATE, "blocked: replication slot")?;
        let said = cluster.sql("select last_error from postern.sources")?;
        ensure!(said.contains("was moved from") && said.contains("are lost; set the source's option \"lost_slot\""), "{said}");
        cluster.sql(r#"select postern.alter_source('shop', '{"lost_slot":"continue"}')"#)?;
        running(&cluster, "shop to lines")?;
        let gap = cluster.sql("select gap from postern.streams")?;
        ensure!(gap.contains("by somebody else") && gap.contains("are lost"), "{gap}");
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
fn a_stream_that_is_being_rewound_keeps_what_it_goes_back_to() -> Result<()> {
    let cluster = start("operator-rewound", &[])?;
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

#[test]
fn a_stream_that_is_being_dropped_holds_up_neither_its_worker_nor_its_source() -> Result<()> {
    let cluster = start("operator-dropping", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    let mut operator = cluster.connect()?;
    operator.batch_execute("begin; select postern.drop_stream('shop to lines')")?;
    for id in 1..=4 {
        cluster.sql(&format!("insert into t values ({id})"))?;
        delivered(&cluster)?;
        ensure!(ids(&path)?.ends_with(&[id]));
    }
    operator.batch_execute("select postern.drop_source('shop'); commit")?;
    shows(&cluster, "select count(*) from pg_replication_slots", "0")
}

#[test]
fn the_limit_of_wal_counts_while_a_snapshot_waits() -> Result<()> {
    let cluster = start("operator-snapshot-limit", &[])?;
    cluster.sql(
        r#"create table t (id int primary key); select postern.create_sink('d', 'stub_discard'); select postern.create_sink('e', 'stub_discard');
           select postern.create_source('shop', 'postgres', '{"snapshot": true, "wal_limit": "20MB", "at_wal_limit": "drop"}');
           select postern.create_stream('one', 'shop', 'd'); select postern.create_stream('two', 'shop', 'e', false)"#,
    )?;
    shows(&cluster, STATE, "snapshot: the snapshot begins when")?;
    cluster.sql("create table filler (v int)")?;
    for _ in 0..3 {
        cluster.sql("insert into filler values (1)")?;
        cluster.sql("select pg_switch_wal()")?;
    }
    shows(&cluster, STATE, "it was dropped; changes after")?;
    shows(&cluster, STATE, "set the source's option \"lost_slot\" to \"continue\"")
}

#[test]
fn too_much_wal_is_warned_of_once_also_of_a_source_that_is_stopped() -> Result<()> {
    let cluster = start("operator-warned", &[])?;
    to_file(&cluster, r#"{"wal_limit":"20MB"}"#)?;
    stopped(&cluster)?;
    cluster.sql("create table filler (v int)")?;
    for _ in 0..3 {
        cluster.sql("insert into filler values (1)")?;
        cluster.sql("select pg_switch_wal()")?;
    }
    let at = || cluster.sql("select coalesce(last_error_at::text, '-') from postern.sources");
    shows(&cluster, "select last_error from postern.sources", "more than its wal_limit")?;
    let first = at()?;
    // It is looked at again, and found the same.
    wait::until("it is looked at again", || {
        cluster.sql("select postern.pause_source('shop')").is_ok() && at().is_ok_and(|at| at != first)
    })?;
    let warned = cluster.log().matches("WARNING:  postern: source \"shop\"").count();
    ensure!(warned == 1, "{warned}: {}", cluster.log_tail());
    Ok(())
}

#[test]
fn an_operators_slot_that_was_invalidated_is_left_alone_and_waits() -> Result<()> {
    let cluster =
        start("operator-invalidated", &[("max_slot_wal_keep_size", "16MB"), ("wal_keep_size", "0")])?;
    make_slot(&cluster, "theirs", false)?;
    cluster.sql("create table filler (v int)")?;
    for _ in 0..4 {
        cluster.sql("insert into filler values (1)")?;
        cluster.sql("select pg_switch_wal()")?;
    }
    cluster.sql("checkpoint")?;
    cluster.sql(
        r#"select postern.create_source('shop', 'postgres', '{"slot": "theirs", "lost_slot": "continue"}');
           select postern.create_sink('d', 'stub_discard'); select postern.create_stream('s', 'shop', 'd')"#,
    )?;
    shows(&cluster, STATE, "blocked: replication slot \"theirs\" was invalidated")?;
    cluster.sql(r#"select postern.alter_source('shop', '{"slot": "another"}')"#)?;
    running(&cluster, "s")?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots where slot_name = 'theirs'")? == "1");
    Ok(())
}

#[test]
fn a_slot_of_two_phases_is_refused() -> Result<()> {
    let cluster = start("operator-two-phase", &[])?;
    make_slot(&cluster, "prepared", true)?;
    cluster.sql(
        r#"select postern.create_source('shop', 'postgres', '{"slot": "prepared"}'); select postern.create_sink('d', 'stub_discard');
           select postern.create_stream('s', 'shop', 'd')"#,
    )?;
    shows(&cluster, STATE, "blocked: replication slot \"prepared\" was made with two_phase")
}

#[test]
fn names_and_arguments_that_cannot_be_are_refused_in_plain_words() -> Result<()> {
    let cluster = start("operator-arguments", &[])?;
    let long = "ü".repeat(32);
    for what in ["source", "sink", "stream"] {
        let rest = match what {
            "source" => "",
            "sink" => ", 'stub_discard'",
            _ => ", 'x', 'y'",
        };
        for (name, wanted) in [
            ("null".to_owned(), format!("22004 the name of a {what} must not be null")),
            (
                "''".to_owned(),
                format!("42602 the name of a {what} must have 1 to 63 bytes in UTF-8, and not 0"),
            ),
            (
                format!("'{long}'"),
                format!("42602 the name of a {what} must have 1 to 63 bytes in UTF-8, and not 64"),
            ),
        ] {
            let said = mistake(&cluster, "postgres", &format!("select postern.create_{what}({name}{rest})"))?;
            ensure!(said == wanted, "{said}");
        }
        for act in ["drop", "start", "stop", "pause"] {
            let said = mistake(&cluster, "postgres", &format!("select postern.{act}_{what}(null)"))?;
            ensure!(said == format!("22004 the name of a {what} must not be null"), "{said}");
        }
    }
    cluster.sql(
        "select postern.create_source('s'); select postern.create_sink('d', 'stub_discard'); select postern.create_stream('m', 's', 'd')",
    )?;
    for (call, wanted) in [
        ("create_source('x', null)", "22004 argument \"kind\" must not be null"),
        ("create_source('x', 'postgres', null)", "22004 argument \"options\" must not be null"),
        ("create_sink('x', 'stub_discard', '5')", "22023 options must be a JSON object"),
        ("create_stream('x', 's', 'd', null)", "22004 argument \"start\" must not be null"),
        ("create_stream('x', null, 'd')", "22004 the name of a source must not be null"),
        ("alter_source('s', null)", "22004 argument \"options\" must not be null"),
        ("alter_source('s', '5')", "22023 options must be a JSON object"),
        ("alter_source(null, '{}')", "22004 the name of a source must not be null"),
        ("alter_sink('d', null)", "22004 argument \"options\" must not be null"),
        ("alter_stream('m', null)", "22004 the name of a sink must not be null"),
        ("rewind_stream('m', null)", "22004 argument \"lsn\" must not be null"),
        ("rewind_source('s', null)", "22004 argument \"lsn\" must not be null"),
        ("rewind_source(null, '0/1')", "22004 the name of a source must not be null"),
    ] {
        let said = mistake(&cluster, "postgres", &format!("select postern.{call}"))?;
        ensure!(said == wanted, "{call}: {said}");
    }
    // The longest name that there is has a publication of its own, and finds it again.
    let longest = "x".repeat(63);
    cluster.sql(&format!(
        "select postern.create_source('{longest}'); select postern.create_stream('{longest}', '{longest}', 'd')"
    ))?;
    running(&cluster, &longest)?;
    cluster
        .sql(&format!("select postern.stop_source('{longest}'); select postern.start_source('{longest}')"))?;
    running(&cluster, &longest)
}

#[test]
fn names_in_another_encoding_arrive_as_they_are() -> Result<()> {
    let cluster = start("operator-latin", &[])?;
    cluster.sql("create database latin encoding 'LATIN1' locale 'C' template template0")?;
    let path = file(&cluster, "ä.jsonl");
    in_database(
        &cluster,
        "latin",
        &format!(
            r#"create extension postern; create table "tänze" (id int primary key, "größe" text); insert into "tänze" values (1, 'übel');
               select postern.create_source('köche', 'postgres', '{{"snapshot": true, "tables": ["\"tänze\""]}}');
               select postern.create_sink('löffel', 'file', '{{"path": "{}"}}'); select postern.create_stream('brühe', 'köche', 'löffel')"#,
            path.display()
        ),
    )?;
    let state = || {
        in_database(&cluster, "latin", "select last_error, state from postern.streams where name = 'brühe'")
    };
    wait::until("it runs", || state().is_ok_and(|state| state == "running"))
        .with_context(|| format!("{:?} {}", state(), cluster.log_tail()))?;
    in_database(&cluster, "latin", r#"insert into "tänze" values (2, 'ähnlich')"#)?;
    wait::until("both have come", || events(&path).is_ok_and(|events| events.len() == 2))
        .with_context(|| cluster.log_tail())?;
    for (event, size) in events(&path)?.iter().zip(["übel", "ähnlich"]) {
        ensure!(event["Table"] == "tänze" && event["Columns"]["größe"] == size, "{event}");
    }
    wait::until("its position is written down", || {
        in_database(&cluster, "latin", "select count(*) from postern.stream_positions where stream = 'brühe'")
            .is_ok_and(|count| count == "1")
    })?;
    let options = in_database(&cluster, "latin", "select options ->> 'path' from postern.sinks")?;
    ensure!(options == path.to_string_lossy(), "{options}");
    let said = mistake(&cluster, "latin", "select postern.create_source('x', 'größe')")?;
    ensure!(said.contains("must be one of"), "{said}");
    let said = mistake(&cluster, "latin", r#"select postern.alter_source('köche', '{"größe": 1}')"#)?;
    ensure!(said == "22023 option \"gr??e\" is not known" || said.contains("gr?"), "{said}");
    in_database(
        &cluster,
        "latin",
        "select postern.drop_stream('brühe'); select postern.drop_source('köche')",
    )?;
    wait::until("nothing is left", || {
        cluster.sql("select count(*) from pg_replication_slots").is_ok_and(|slots| slots == "0")
    })?;
    ensure!(in_database(&cluster, "latin", "select count(*) from pg_publication")? == "0");
    ensure!(
        !cluster.log().contains("panicked") && !cluster.log().contains("valid UTF-8"),
        "{}",
        cluster.log_tail()
    );
    Ok(())
}

#[test]
fn a_database_without_an_encoding_refuses_names_that_are_not_utf_8_and_streams_tables_that_have_them()
-> Result<()> {
    let cluster = start("operator-ascii", &[])?;
    cluster.sql("create database plain encoding 'SQL_ASCII' locale 'C' template template0")?;
    in_database(&cluster, "plain", "create extension postern")?;
    for (call, wanted) in [
        ("create_source('k' || chr(246))", "22021 the name of a source must be UTF-8"),
        (
            "create_sink('k', 'file', jsonb_build_object('path', '/' || chr(246)))",
            "22021 options must be UTF-8",
        ),
    ] {
        let said = mistake(&cluster, "plain", &format!("select postern.{call}"))?;
        ensure!(said.starts_with(wanted), "{said}");
    }
    let path = file(&cluster, "events.jsonl");
    in_database(
        &cluster,
        "plain",
        &format!(
            r#"do $$ begin execute format('create table %I (id int primary key, %I text)', 't' || chr(246), 'c' || chr(246)); end $$;
               do $$ begin execute format('insert into %I values (1, chr(246))', 't' || chr(246)); end $$;
               select postern.create_source('köche', 'postgres', '{{"snapshot": true}}');
               select postern.create_sink('d', 'file', '{{"path": "{}"}}'); select postern.create_stream('s', 'köche', 'd')"#,
            path.display()
        ),
    )?;
    let state = || in_database(&cluster, "plain", "select last_error, state from postern.streams");
    wait::until("it runs", || state().is_ok_and(|state| state == "running"))
        .with_context(|| format!("{:?} {}", state(), cluster.log_tail()))?;
    in_database(
        &cluster,
        "plain",
        "do $$ begin execute format('insert into %I values (2, chr(246))', 't' || chr(246)); end $$",
    )?;
    wait::until("both have come", || events(&path).is_ok_and(|events| events.len() == 2))
        .with_context(|| cluster.log_tail())?;
    ensure!(!cluster.log().contains("panicked"), "{}", cluster.log_tail());
    Ok(())
}

#[test]
fn a_publication_that_postern_made_goes_with_its_source_and_no_other_does() -> Result<()> {
    let cluster = start("operator-publication", &[])?;
    cluster.sql(
        r#"create table t (id int primary key); create publication theirs for table t; create role other; grant create on database postgres to other;
           select postern.create_sink('d', 'stub_discard'); select postern.create_sink('e', 'stub_discard');
           select postern.create_source('a', 'postgres', '{"tables": ["t"]}'); select postern.create_stream('a', 'a', 'd');
           select postern.create_source('b', 'postgres', '{"publication": "theirs"}'); select postern.create_stream('b', 'b', 'd');
           select postern.create_source('c', 'postgres', '{"tables": ["t"]}'); select postern.create_stream('c', 'c', 'd');
           select postern.create_source('d', 'postgres', '{"tables": ["t"]}'); select postern.create_stream('d', 'd', 'd')"#,
    )?;
    for stream in ["a", "b", "c", "d"] {
        running(&cluster, stream)?;
    }
    cluster.sql(
        r#"select postern.create_source('e', 'postgres', '{"publication": "postern_c"}'); select postern.create_stream('e', 'e', 'd')"#,
    )?;
    running(&cluster, "e")?;
    cluster.sql("alter table t owner to other; alter publication postern_d owner to other")?;
    for name in ["a", "b", "c", "d"] {
        cluster
            .sql(&format!("select postern.drop_stream('{name}'); select postern.drop_source('{name}')"))?;
    }
    let left = cluster.sql("select string_agg(pubname, ' ' order by pubname) from pg_publication")?;
    ensure!(left == "postern_c postern_d theirs", "{left}");
    Ok(())
}

#[test]
fn another_publication_counts_for_what_waits_too_as_it_was_when_that_was_changed() -> Result<()> {
    let cluster = start("operator-other-publication", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    stopped(&cluster)?;
    cluster.sql("insert into t values (1)")?;
    cluster.sql("create publication later for table t")?;
    cluster.sql("insert into t values (2)")?;
    cluster.sql(
        r#"select postern.alter_source('shop', '{"publication": "later"}'); select postern.start_source('shop')"#,
    )?;
    running(&cluster, "shop to lines")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [2], "{:?}", ids(&path)?);
    shows(&cluster, "select gap from postern.streams", "there was no publication \"later\" from")?;
    shows(&cluster, STATE, "streaming: there was no publication \"later\" from")
}

#[test]
fn a_dropped_extension_and_a_dropped_database_are_a_line_in_the_log_and_no_error() -> Result<()> {
    let cluster = start("operator-dropped", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    to_file(&cluster, "{}")?;
    cluster.sql("create database other")?;
    in_database(
        &cluster,
        "other",
        "create extension postern; select postern.create_source('s'); select postern.create_sink('d', 'stub_discard');
         select postern.create_stream('s', 's', 'd')",
    )?;
    wait::until("it runs", || {
        in_database(&cluster, "other", "select state from postern.streams")
            .is_ok_and(|state| state == "running")
    })?;
    in_database(&cluster, "other", "select postern.stop_source('s')")?;
    wait::until("the database can be dropped", || cluster.sql("drop database other").is_ok())?;
    let begun = cluster.log().len();
    cluster.sql("insert into t values (1); drop extension postern cascade; insert into t values (2)")?;
    wait::until_within(Duration::from_secs(50), "its slots are gone", || {
        cluster.sql("select count(*) from pg_replication_slots").is_ok_and(|slots| slots == "0")
    })
    .with_context(|| cluster.log_tail())?;
    cluster.wait_log("database \"other\" is no more")?;
    let log = cluster.log();
    ensure!(begun > 0);
    for bad in ["FATAL", "ERROR:  ", "WARNING", "Backtrace"] {
        let lines: Vec<_> = log
            .lines()
            .filter(|line| {
                line.contains(bad)
                    && !line.contains("is being accessed")
                    && !line.contains("is used by an active")
            })
            .collect();
        // A worker that connects in the very moment of the drop ends with the server's own FATAL, once; none is started after it.
        let races =
            lines.iter().filter(|line| line.contains("FATAL:  database") && line.contains("does not exist"));
        ensure!(lines.len() == races.count() && lines.len() <= 1, "{lines:?}\n{log}");
    }
    Ok(())
}
