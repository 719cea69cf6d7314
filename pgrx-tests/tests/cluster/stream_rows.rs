//! Changed rows, which Postern writes itself where pgoutput would write them so: the same rows, and every change that makes it pgoutput's
//! to decide again.

use crate::stream::{another_to_file, delivered, delivered_within, events, start};
use crate::stream_events::{HARD, columns, same};
use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::dice::{self, Dice};
use pgrx_tests::{installation, wait};
use std::time::{Duration, Instant};

/// Timestamps at the ends of what has a short way.
const TIMES: &[&str] = &[
    "infinity",
    "-infinity",
    "4713-01-01 00:00:00 BC",
    "0001-12-31 23:59:59.999999 BC",
    "0001-01-01 00:00:00",
    "0999-02-28 01:02:03.000001",
    "1899-12-31 23:59:59.9",
    "1969-12-31 23:59:59.99",
    "1999-12-31 23:59:59.999999",
    "2000-01-01 00:00:00",
    "2000-02-29 12:00:00.1",
    "2026-11-22 00:00:00.100001",
    "2026-11-22 23:59:59.012300",
    "9999-12-31 23:59:59.999999",
    "10000-01-01 00:00:00",
    "294276-12-31 23:59:59.999999",
];

#[test]
fn rows_that_postern_writes_are_those_that_pgoutput_writes() -> Result<()> {
    let cluster = start("stream-rows", &[("timezone", "Asia/Kolkata"), ("datestyle", "sql, dmy")])?;
    let hard: Vec<_> = HARD.iter().filter(|(kind, ..)| *kind != "xml").collect();
    let definitions: Vec<_> = hard.iter().enumerate().map(|(n, (kind, ..))| format!("c{n} {kind}")).collect();
    cluster.sql(&format!(
        "create table hard (id int, {});
         create table times (id int, a timestamp, b timestamptz);
         create table wide (id int, gone int, packed text, apart text, note varchar default 'n');
         alter table wide alter column apart set storage external;
         create publication plain for table hard, times, wide;
         create publication filtered for table hard where (id > 0), times where (id > 0), wide where (id > 0)",
        definitions.join(", ")
    ))?;
    let plain = another_to_file(&cluster, "plain", r#"{"publication":"plain"}"#)?;
    let filtered = another_to_file(&cluster, "filtered", r#"{"publication":"filtered"}"#)?;
    let literals: Vec<_> =
        hard.iter().map(|(kind, text, _)| format!("'{}'::{kind}", text.replace('\'', "''"))).collect();
    let (literals, nulls) = (literals.join(", "), vec!["null"; hard.len()].join(", "));
    let times: Vec<_> = TIMES
        .iter()
        .enumerate()
        .map(|(n, at)| format!("({n} + 1, '{at}', timestamp '{at}' at time zone 'utc')"))
        .collect();
    let twice = |insert: &str| format!("{insert}; {insert};");
    cluster.sql(&format!(
        "set datestyle = 'iso, ymd'; set intervalstyle = 'postgres'; set extra_float_digits = 1; {}{}{}",
        twice(&format!("insert into hard values (1, {literals})")),
        twice(&format!("insert into hard values (2, {nulls})")),
        twice(&format!("insert into times values {}", times.join(", "))),
    ))?;
    // Compressed, kept apart, and columns that went and came: rows from before a column was added lack it.
    cluster.sql(
        "insert into wide select i, i, repeat('packed', 2000 * i), repeat('apart', 3000 * i) from generate_series(1, 3) i;
         alter table wide drop column gone; insert into wide values (4, 'a', 'b'), (5, null, null);
         alter table wide add column late numeric default 1.50; insert into wide values (6, 'a', 'b', 'c', null); insert into wide values (7, 'a');
         alter table wide alter column note type text; insert into wide values (8, 'a'), (9, 'b')",
    )?;
    delivered(&cluster)?;
    for (table, count) in [("hard", 4), ("times", 2 * TIMES.len()), ("wide", 9)] {
        let (ours, theirs) = (columns(&plain, table)?, columns(&filtered, table)?);
        ensure!(ours.len() == count && theirs.len() == count, "{table}: {} and {}", ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            same(ours, theirs)?;
        }
    }
    Ok(())
}

#[test]
fn updates_and_deletes_that_postern_writes_are_those_that_pgoutput_writes() -> Result<()> {
    let cluster = start("stream-rows-old", &[])?;
    let hard: Vec<_> = HARD.iter().filter(|(kind, ..)| *kind != "xml").collect();
    let definitions: Vec<_> = hard.iter().enumerate().map(|(n, (kind, ..))| format!("c{n} {kind}")).collect();
    let tables = ["hard", "keyed", "by_index", "whole", "without"];
    let of_each = |clause: &str| tables.map(|table| format!("{table}{clause}")).join(", ");
    cluster.sql(&format!(
        "create table hard (id int, {}); alter table hard replica identity full;
         create table keyed (gone int, id int, apart text, region text, n numeric, primary key (region, id));
         alter table keyed alter column apart set storage external; alter table keyed drop column gone;
         create table by_index (apart text, id int not null, n numeric); create unique index i on by_index (id);
         alter table by_index replica identity using index i;
         create table whole (id int, apart text, n numeric); alter table whole replica identity full;
         alter table whole alter column apart set storage external;
         create table without (id int, n int); alter table without replica identity nothing;
         create publication plain for table {} with (publish = 'insert, update, delete');
         create publication filtered for table {} with (publish = 'insert, update, delete')",
        definitions.join(", "),
        of_each(""),
        // What pgoutput writes itself: of "without" it takes no WHERE with updates.
        "hard where (id > 0), keyed where (id > 0), by_index where (id > 0), whole where (id > 0)",
    ))?;
    let options =
        |publication: &str| format!(r#"{{"publication":"{publication}","old":true,"unchanged":"!"}}"#);
    let plain = another_to_file(&cluster, "plain", &options("plain"))?;
    let filtered = another_to_file(&cluster, "filtered", &options("filtered"))?;
    let sets: Vec<_> = hard
        .iter()
        .enumerate()
        .map(|(n, (kind, text, _))| format!("c{n} = '{}'::{kind}", text.replace('\'', "''")))
        .collect();
    let nulls: Vec<_> = (0..hard.len()).map(|n| format!("c{n} = null")).collect();
    let mut session = cluster.connect()?;
    session.batch_execute(
        "set datestyle = 'iso, ymd'; set intervalstyle = 'postgres'; set extra_float_digits = 1",
    )?;
    // The first row of its kind is pgoutput's, and the others are written without it.
    let mut write = |statements: &[String]| -> Result<()> {
        statements.iter().try_for_each(|statement| Ok(session.batch_execute(statement)?))
    };
    write(&[
        "insert into hard (id) select generate_series(1, 4)".to_owned(),
        format!("update hard set {}", sets.join(", ")),
        "update hard set id = id + 10 where id < 3".to_owned(),
        format!("update hard set {} where id > 3", nulls.join(", ")),
        "delete from hard".to_owned(),
    ])?;
    let apart = "repeat('apart', 3000 * i)";
    write(&[
        format!("insert into keyed select i, {apart}, 'r', i from generate_series(1, 6) i"),
        format!("insert into by_index select {apart}, i, i from generate_series(1, 6) i"),
        format!("insert into whole select i, {apart}, i from generate_series(1, 6) i"),
        "insert into without select i, i from generate_series(1, 6) i".to_owned(),
    ])?;
    for table in ["keyed", "by_index", "whole"] {
        write(&[
            format!("update {table} set n = n + 1"),
            format!("update {table} set apart = 'here' || id, n = null where id < 3"),
            format!("update {table} set id = id + 100 where id in (2, 3, 4)"),
            format!(
                "alter table {table} add late text default 'l'; update {table} set n = 5 where id in (1, 5)"
            ),
            format!("update {table} set late = 'm'"),
            format!("delete from {table} where id > 100"),
            format!(
                "alter table {table} replica identity full; update {table} set n = 1; update {table} set n = 2"
            ),
            format!("delete from {table}"),
        ])?;
    }
    delivered(&cluster)?;
    let (ours, theirs) = (events(&plain)?, events(&filtered)?);
    let mut kinds = std::collections::BTreeMap::new();
    let mut theirs = theirs.iter();
    for ours in &ours {
        if ours["Table"] == "without" {
            ensure!(ours["Action"] == "insert", "{ours}");
            continue;
        }
        let theirs = theirs.next().ok_or_else(|| anyhow::anyhow!("pgoutput has not {ours}"))?;
        for field in ["Table", "Action", "Columns", "Old"] {
            ensure!(ours.get(field) == theirs.get(field), "{field}: found  {ours}\nwanted {theirs}");
        }
        *kinds.entry((ours["Table"].to_string(), ours["Action"].to_string())).or_insert(0) += 1;
    }
    ensure!(theirs.next().is_none());
    let counts: Vec<_> = kinds.values().copied().collect();
    // By index, hard, keyed, whole: deletes, inserts and updates.
    assert_eq!(counts, [6, 6, 25, 4, 4, 9, 6, 6, 25, 6, 6, 25], "{kinds:?}");
    wrote_each_kind(&cluster)
}

#[test]
fn what_changes_amid_rows_counts_from_the_next_row_on() -> Result<()> {
    let cluster = start("stream-rows-change", &[])?;
    cluster.sql(
        "create schema kept;
         create table kept.t (id int primary key, secret text, twice int generated always as (id * 2) stored);
         create table kept.other (id int); create publication p for table kept.t, kept.other",
    )?;
    let path = another_to_file(&cluster, "p", r#"{"publication":"p","schema":true,"transactions":true}"#)?;
    let mut session = cluster.connect()?;
    let mut id = 0;
    let mut write = |change: &str| -> Result<()> {
        session.batch_execute(change)?;
        // A transaction of a row, one of two with another table's between, and one that updates again.
        let (a, b, c) = (id + 1, id + 2, id + 3);
        id += 3;
        session.batch_execute(&format!("insert into t (id, secret) values ({a}, 'a')"))?;
        session.batch_execute(&format!(
            "begin; insert into t (id, secret) values ({b}, 'b'); insert into kept.other values ({b});
             update t set secret = 'u' where id = {b}; insert into t (id, secret) values ({c}, 'c'); commit"
        ))?;
        session.batch_execute(&format!("update t set secret = 'v' where id = {b}"))?;
        Ok(())
    };
    write("set search_path = kept")?; // 1 to 3
    write("alter table t drop column twice")?; // 4 to 6: plain from the second row on
    write("alter publication p set table kept.t where (id % 2 = 0), kept.other")?; // 7 to 9
    write("alter publication p set table kept.t (id), kept.other")?; // 10 to 12
    write("alter publication p set table kept.t, kept.other")?; // 13 to 15
    write("alter publication p set (publish = 'update')")?; // 16 to 18
    write("alter publication p set (publish = 'insert, update')")?; // 19 to 21
    write("alter publication p drop table kept.t")?; // 22 to 24
    write("alter publication p add tables in schema kept")?; // 25 to 27
    write("alter table t rename to u; create view t as select * from u")?; // 28 to 30
    write(
        "alter schema kept rename to renamed; set search_path = renamed; create schema kept; create table kept.other (id int)",
    )?;
    write(
        "alter table u rename column secret to known; drop view t; create view t as select id, known as secret from u",
    )?;
    delivered(&cluster)?;
    let all = events(&path)?;
    let rows = |action: &str| -> Vec<i64> {
        let of_table = |event: &&serde_json::Value| {
            event["Action"] == action && (event["Table"] == "t" || event["Table"] == "u")
        };
        all.iter().filter(of_table).filter_map(|event| event["Columns"]["id"].as_i64()).collect()
    };
    let inserted: Vec<i64> = (1..=6).chain([8]).chain(10..=15).chain(19..=21).chain(25..=36).collect();
    ensure!(rows("insert") == inserted, "{:?}", rows("insert"));
    let updated = [2, 5, 8, 11, 14, 17, 20, 26, 29, 32, 35];
    let twice: Vec<i64> = updated.iter().flat_map(|id| [*id, *id]).collect();
    ensure!(rows("update") == twice, "{:?}", rows("update"));
    // pgoutput of 15 may tell of a schema's new name with the table's next change of its own only.
    let unsure = if installation::major() < 16 { 31..=33 } else { 0..=0 };
    for event in &all {
        let Some(id) = event["Columns"]["id"].as_i64().filter(|_| event["Table"] != "other") else {
            continue;
        };
        let columns = event["Columns"].as_object().map_or(0, serde_json::Map::len);
        ensure!(columns == if (10..=12).contains(&id) { 1 } else { 2 }, "{event}");
        ensure!(event["Columns"].get("known").is_some() == (id > 33), "{event}");
        ensure!(unsure.contains(&id) || (event["Schema"] == "renamed") == (id > 30), "{event}");
        ensure!((event["Table"] == "u") == (id > 27), "{event}");
    }
    // Each transaction begins and ends once, around what is in it.
    let mut open = None;
    for event in &all {
        match event["Action"].as_str() {
            Some("begin") => ensure!(open.replace(0).is_none(), "{event}"),
            Some("commit") => ensure!(open.take().is_some_and(|events| events > 0), "{event}"),
            _ => *open.as_mut().ok_or_else(|| anyhow::anyhow!("outside a transaction: {event}"))? += 1,
        }
    }
    ensure!(open.is_none(), "a transaction without an end");
    Ok(())
}

/// It was not pgoutput alone that wrote.
fn wrote_each_kind(cluster: &Cluster) -> Result<()> {
    ["I", "U", "D"]
        .iter()
        .try_for_each(|kind| cluster.wait_log(&format!("rows of kind {kind} are written without pgoutput")))
}

/// For how long tables are changed by chance.
const CHANCE: Duration = Duration::from_secs(12);

/// What may be done to table `t{n}`; `$` is its name, `%` a number. What the server refuses is not done.
const CHANGES: &[&str] = &[
    "insert into $ (id, a) values (%, 'a%')",
    "insert into $ (id, apart) select i, repeat('apart%', 2000) from generate_series(%, % + 3) i",
    "insert into $ (id) select generate_series(%, % + 20)",
    "insert into $ values (%)",
    "update $ set a = 'u%' where id < %",
    "update $ set id = id + 1 where id = %",
    "update $ set apart = repeat('other%', 3000) where id % 7 = 1",
    "update $ set n = %, at = now(), kind = 'two', list = array[%, null], pair = row(%, 'p')",
    "update $ set a = null, n = null where id > %",
    "delete from $ where id = %",
    "delete from $ where id > 60",
    "truncate $",
    "savepoint s; insert into $ (id) values (%); update $ set a = 's' where id = %; rollback to s",
    "savepoint s; update $ set a = 'r%'; release s",
    "alter table $ add c% text default 'c%'",
    "alter table $ add d% int",
    "alter table $ drop c%",
    "alter table $ rename a to b",
    "alter table $ rename b to a",
    "alter table $ alter n type bigint using n::bigint",
    "alter table $ alter n type numeric",
    "alter table $ alter apart set storage external",
    "alter table $ replica identity full",
    "alter table $ replica identity default",
    "alter table $ replica identity using index $_i",
    "alter table $ replica identity nothing",
    "alter table $ rename to $x; insert into $x (id) values (%), (%); alter table $x rename to $",
    "alter type kind rename value 'two' to 'other'; alter type kind rename value 'other' to 'two'",
    "alter publication plain drop table $; alter publication filtered drop table $",
    "alter publication plain add table $; alter publication filtered add table $ where (true)",
    "alter publication plain set (publish = 'insert, delete'); alter publication filtered set (publish = 'insert, delete')",
    "alter publication plain set (publish = 'insert, update, delete'); alter publication filtered set (publish = 'insert, update, delete')",
];

/// Which of them are often done, the rows' own.
const ROWS: u64 = 14;

#[test]
fn whatever_is_done_to_tables_rows_are_those_that_pgoutput_writes() -> Result<()> {
    let seed = dice::seed();
    eprintln!("POSTERN_TEST_SEED={seed}");
    let cluster = start("stream-rows-chance", &[])?;
    let tables = ["t0", "t1", "t2"];
    cluster.sql("create type kind as enum ('one', 'two'); create type pair as (x int, y text)")?;
    for table in tables {
        cluster.sql(&format!(
            "create table {table} (id int primary key, a text, n numeric, at timestamptz, apart text, kind kind default 'one', list int[], pair pair);
             create unique index {table}_i on {table} (id)"
        ))?;
    }
    cluster.sql(
        "create publication plain for table t0, t1, t2 with (publish = 'insert, update, delete');
         create publication filtered for table t0 where (true), t1 where (true), t2 where (true) with (publish = 'insert, update, delete')",
    )?;
    let options =
        |publication: &str| format!(r#"{{"publication":"{publication}","old":true,"unchanged":"!"}}"#);
    let plain = another_to_file(&cluster, "plain", &options("plain"))?;
    let filtered = another_to_file(&cluster, "filtered", &options("filtered"))?;
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let sessions: Vec<_> = (0..3)
            .map(|number| {
                let mut session = cluster.connect()?;
                session.batch_execute("set lock_timeout = '100ms'")?;
                Ok(scope.spawn(move || {
                    let mut dice = Dice::new(seed * 3 + number);
                    let mut done = 0;
                    while begun.elapsed() < CHANCE {
                        let table = tables[dice.place(&tables)];
                        let mut change = String::new();
                        for _ in 0..=dice.below(4) {
                            let which = match dice.below(4) {
                                0 => dice.place(CHANGES),
                                _ => dice.below(ROWS) as usize,
                            };
                            change.push_str(
                                &CHANGES[which].replace("id % 7", "mod(id, 7)").replace('$', table),
                            );
                            change.push(';');
                        }
                        while change.contains('%') {
                            change = change.replacen('%', &dice.below(80).to_string(), 1);
                        }
                        let end = if dice.below(8) == 0 { "rollback" } else { "commit" };
                        match session.batch_execute(&format!("begin; {change} {end}")) {
                            Ok(()) => done += 1,
                            // The server has said no, as it may.
                            Err(_) => drop(session.batch_execute("rollback")),
                        }
                    }
                    done
                }))
            })
            .collect::<Result<_>>()?;
        for session in sessions {
            let done = session.join().map_err(|_| anyhow::anyhow!("a session has panicked"))?;
            ensure!(done > 5, "only {done} transactions");
        }
        Ok(())
    })?;
    delivered_within(&cluster, 6 * wait::LIMIT)?;
    let (ours, theirs) = (events(&plain)?, events(&filtered)?);
    for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        for field in ["Table", "Action", "Columns", "Old"] {
            let same = ours.get(field) == theirs.get(field);
            ensure!(same, "{field} of event {number}: found  {ours:.2000}\nwanted {theirs:.2000}");
        }
    }
    ensure!(ours.len() == theirs.len() && ours.len() > 200, "{} and {}", ours.len(), theirs.len());
    Ok(())
}
