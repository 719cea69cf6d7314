//! What events say: psql-streamer's where those are sound, every type of the server, every replica identity, every kind of message.

use crate::stream::{another_to_file, delivered, events, running, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::kafka::{Broker, no_broker};
use pgrx_tests::lacking;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Tables and statements of which psql-streamer has made `psql_streamer.tsv`: its Kafka key, a tab, its event.
const TABLES: &str = include_str!("psql_streamer/tables.sql");
const CHANGES: &str = include_str!("psql_streamer/changes.sql");
const THEIRS: &str = include_str!("../../../src/stream/event/psql_streamer.tsv");

/// The columns of the events of a table.
pub fn columns(path: &PathBuf, table: &str) -> Result<Vec<Value>> {
    let events = events(path)?.into_iter().filter(|event| event["Table"] == table);
    Ok(events.map(|mut event| event["Columns"].take()).collect())
}

pub fn same(found: &Value, wanted: &Value) -> Result<()> {
    ensure!(found == wanted, "found  {found}\nwanted {wanted}");
    Ok(())
}

#[test]
fn the_events_of_psql_streamer_come_out_as_it_wrote_them() -> Result<()> {
    let cluster = start("stream-replay", &[])?;
    cluster.sql(TABLES)?;
    let options = r#"{"host":"127.0.0.1","database":"cdc","publication":"pub1","key":"psql_streamer"}"#;
    let path = to_file(&cluster, options)?;
    // One statement at a time, as psql runs a file.
    let mut session = cluster.connect()?;
    for statement in CHANGES.lines().filter(|line| !line.is_empty()) {
        session.batch_execute(statement)?;
    }
    delivered(&cluster)?;
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.lines().count() == THEIRS.lines().count(), "{text}");
    let mut position = 0;
    for (ours, theirs) in text.lines().zip(THEIRS.lines()) {
        let theirs = theirs.split_once('\t').context("a key and an event")?.1;
        let (our, their): (Value, Value) = (serde_json::from_str(ours)?, serde_json::from_str(theirs)?);
        let at = our["WALPosition"].as_u64().context("a position")?;
        ensure!(at > position, "{ours}");
        position = at;
        let mut wanted = theirs.to_owned();
        for field in ["WALPosition", "Timestamp", "UUID"] {
            wanted = wanted.replace(&their[field].to_string(), &our[field].to_string());
        }
        // Equal to any reader of JSON.
        wanted = wanted.replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u0026", "&");
        if their["Columns"].get("bin").is_some_and(Value::is_string) {
            // It loses these three and breaks the fourth.
            let mut our = our["Columns"].clone();
            let mut their = their["Columns"].clone();
            let object = our.as_object_mut().context("columns")?;
            let json = json!({"k": [1, 2.50, null]});
            ensure!(object.remove("u") == Some(json!("6b29fc40-ca47-1067-b31d-00dd010662da")), "{ours}");
            ensure!(object.remove("j").as_ref() == Some(&json) && object.remove("jb") == Some(json));
            ensure!(object.remove("bin") == Some(json!("\\xdeadbeef")), "{ours}");
            their.as_object_mut().context("columns")?.remove("bin");
            same(&our, &their)?;
        } else {
            ensure!(ours == wanted, "ours   {ours}\nwanted {wanted}");
        }
    }
    Ok(())
}

/// Columns of every built-in type with values that are hard, by type, literal and what the event has.
pub const HARD: &[(&str, &str, &str)] = &[
    ("int2", "-32768", "-32768"),
    ("int4", "-2147483648", "-2147483648"),
    ("int8", "-9223372036854775808", "-9223372036854775808"),
    ("oid", "4294967295", r#""4294967295""#),
    ("xid", "4294967295", r#""4294967295""#),
    ("cid", "4294967295", r#""4294967295""#),
    ("tid", "(4294967295,65535)", r#""(4294967295,65535)""#),
    ("xid8", "18446744073709551615", r#""18446744073709551615""#),
    ("float4", "NaN", r#""NaN""#),
    ("float4", "3.4028235e38", "3.4028235e+38"),
    ("float8", "-Infinity", r#""-Infinity""#),
    ("float8", "5e-324", "5e-324"),
    ("float8", "-0", "-0"),
    ("numeric", "NaN", r#""NaN""#),
    ("numeric", "-Infinity", r#""-Infinity""#),
    ("numeric", "1e30", r#""1000000000000000000000000000000""#),
    ("numeric(6,3)", "0.1", r#""0.100""#),
    ("money", "-1234.5", r#""-$1,234.50""#),
    ("bool", "f", "false"),
    ("text", "", r#""""#),
    ("text", "\u{1}\u{7f}\"\\/\u{2028}😀", "\"\\u0001\u{7f}\\\"\\\\/\u{2028}😀\""),
    ("varchar(3)", "äöü", r#""äöü""#),
    ("char(4)", "é", r#""é   ""#),
    ("name", "n", r#""n""#),
    ("\"char\"", "x", r#""x""#),
    ("bytea", "\\x00ff", r#""\\x00ff""#),
    ("bytea", "\\x", r#""\\x""#),
    ("bit(3)", "101", r#""101""#),
    ("varbit", "", r#""""#),
    ("date", "infinity", r#""infinity""#),
    ("date", "0044-03-15 BC", r#""0044-03-15 BC""#),
    ("date", "5874897-12-31", r#""5874897-12-31""#),
    ("time", "24:00", r#""24:00:00""#),
    ("timetz", "23:59:59.5-12:30", r#""23:59:59.5-12:30""#),
    ("timestamp", "-infinity", r#""-infinity""#),
    ("timestamp", "294276-12-31 23:59:59.999999", r#""294276-12-31 23:59:59.999999""#),
    ("timestamp", "0001-01-01 00:00:00", r#""0001-01-01T00:00:00Z""#),
    ("timestamptz", "0044-03-15 12:00:00+00 BC", r#""0044-03-15 12:00:00+00 BC""#),
    ("timestamptz", "2026-06-01 00:30:00+14", r#""2026-05-31T10:30:00Z""#),
    ("timestamptz", "infinity", r#""infinity""#),
    ("interval", "-1 year -2 days +03:04:05.000006", r#""-1 years -2 days +03:04:05.000006""#),
    ("uuid", "6b29fc40-ca47-1067-b31d-00dd010662da", r#""6b29fc40-ca47-1067-b31d-00dd010662da""#),
    ("json", "{\"a\":\n9007199254740993, \"a\":1}", "{\"a\": 9007199254740993, \"a\":1}"),
    ("jsonb", "null", "null"),
    ("jsonpath", "$.a[*] ? (@ > 1)", r#""$.\"a\"[*]?(@ > 1)""#),
    ("xml", "<a>&amp;</a>", r#""<a>&amp;</a>""#),
    ("inet", "::1", r#""::1/128""#),
    ("inet", "10.0.0.1/8", r#""10.0.0.1/8""#),
    ("cidr", "10.0.0.0/8", r#""10.0.0.0/8""#),
    ("macaddr", "08:00:2b:01:02:03", r#""08:00:2b:01:02:03""#),
    ("macaddr8", "08:00:2b:ff:fe:01:02:03", r#""08:00:2b:ff:fe:01:02:03""#),
    ("point", "(1.5,-2)", r#""(1.5,-2)""#),
    ("lseg", "((0,0),(1e300,-Infinity))", r#""[(0,0),(1e+300,-Infinity)]""#),
    ("line", "{1,-1,0.1}", r#""{1,-1,0.1}""#),
    ("path", "((0,0),(1,1))", r#""((0,0),(1,1))""#),
    ("path", "[(0,0),(1,1)]", r#""[(0,0),(1,1)]""#),
    ("box", "(2,2),(1,1)", r#""(2,2),(1,1)""#),
    ("polygon", "((0,0),(1,1))", r#""((0,0),(1,1))""#),
    ("circle", "<(0,0),1>", r#""<(0,0),1>""#),
    ("tsvector", "'a':1A 'b c':2", r#""'a':1A 'b c':2""#),
    ("tsquery", "a & !b", r#""'a' & !'b'""#),
    ("pg_lsn", "16/B374D848", r#""16/B374D848""#),
    ("pg_snapshot", "10:20:10,14", r#""10:20:10,14""#),
    ("txid_snapshot", "10:20:", r#""10:20:""#),
    ("refcursor", "<unnamed portal 1>", r#""<unnamed portal 1>""#),
    ("int2vector", "-32768 1", r#""-32768 1""#),
    ("oidvector", "4294967295 1", r#""4294967295 1""#),
    ("aclitem", "postgres=r*w/postgres", r#""postgres=r*w/postgres""#),
    ("regclass", "pg_class", r#""pg_class""#),
    ("regclass", "4294967295", r#""4294967295""#),
    ("regproc", "now", r#""now""#),
    ("regprocedure", "abs(numeric)", r#""abs(numeric)""#),
    ("regoper", "||/", r#""||/""#),
    ("regoperator", "+(integer,integer)", r#""+(integer,integer)""#),
    ("regtype", "timestamptz", r#""timestamp with time zone""#),
    ("regrole", "postgres", r#""postgres""#),
    ("regnamespace", "pg_catalog", r#""pg_catalog""#),
    ("regcollation", "\"C\"", r#""\"C\"""#),
    ("regconfig", "simple", r#""simple""#),
    ("regdictionary", "simple", r#""simple""#),
    ("int4range", "[1,5)", r#""[1,5)""#),
    ("int4range", "empty", r#""empty""#),
    ("int8range", "(,9223372036854775806]", r#""(,9223372036854775807)""#),
    ("numrange", "[0.10,NaN)", r#""[0.10,NaN)""#),
    ("daterange", "[0044-03-15 BC,infinity]", r#""[\"0044-03-15 BC\",infinity]""#),
    ("tsrange", "[2026-01-01 00:00,)", r#""[\"2026-01-01 00:00:00\",)""#),
    ("tstzrange", "[2026-01-01 00:00+00,)", r#""[\"2026-01-01 00:00:00+00\",)""#),
    ("int4multirange", "{[1,2],[5,6]}", r#""{[1,3),[5,7)}""#),
    ("int8multirange", "{}", r#""{}""#),
    ("nummultirange", "{[1.0,2.50],(3,)}", r#""{[1.0,2.50],(3,)}""#),
    ("datemultirange", "{[2026-01-01,2026-01-01]}", r#""{[2026-01-01,2026-01-02)}""#),
    ("tsmultirange", "{(,2026-01-01 00:00]}", r#""{(,\"2026-01-01 00:00:00\"]}""#),
    ("tstzmultirange", "{[2026-01-01 00:00+14,]}", r#""{[\"2025-12-31 10:00:00+00\",)}""#),
    ("int4[]", "{{1,NULL},{3,4}}", "[[1,null],[3,4]]"),
    ("int4[]", "[0:1]={1,2}", r#""[0:1]={1,2}""#),
    ("int4[]", "{}", "[]"),
    ("text[]", "{\"NULL\",NULL,\"a,b\",\"\",\"q\\\"\\\\\"}", r#"["NULL",null,"a,b","","q\"\\"]"#),
    ("bytea[]", "{\"\\\\xdeadbeef\"}", r#"["\\xdeadbeef"]"#),
    ("jsonb[]", "{\"{\\\"a\\\": [1]}\",NULL}", r#"[{"a": [1]},null]"#),
    ("box[]", "{(2,2),(1,1);(4,4),(3,3)}", r#"["(2,2),(1,1)","(4,4),(3,3)"]"#),
    ("timestamptz[]", "{2026-01-01 00:00+00}", r#"["2026-01-01T00:00:00Z"]"#),
    ("float8[]", "{NaN,1.5}", r#"["NaN",1.5]"#),
    ("inet[]", "{10.0.0.1}", r#"["10.0.0.1/32"]"#),
    ("int4range[]", "{\"[1,5)\"}", r#"["[1,5)"]"#),
];

/// Types of which nobody can write a value: their input refuses every text, and only the server's own catalogs and indexes have them.
const NO_INPUT: [&str; 7] = [
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
];

/// Built-in types of which [`HARD`] has no value: base types, ranges and multiranges. A column cannot be of a pseudo-type, and arrays
/// (int2vector and oidvector are none) are written alike, whatever their elements are: a few stand for all.
fn lacking_values(cluster: &Cluster) -> Result<String> {
    let kinds: Vec<_> = HARD.iter().map(|(kind, ..)| format!("'{kind}'::regtype")).collect();
    cluster.sql(&format!(
        "select coalesce(string_agg(typname, ', ' order by typname), '') from pg_type
         where oid < 16384 and typtype in ('b', 'r', 'm') and (typcategory <> 'A' or typarray <> 0)
             and oid <> all (array[{}]::oid[]) and typname <> all ('{{{}}}')",
        kinds.join(", "),
        NO_INPUT.join(",")
    ))
}

#[test]
fn every_built_in_type_keeps_hard_values() -> Result<()> {
    if lacking::in_server("XML") {
        return Ok(());
    }
    // What a session of the server's shows must not depend on these.
    let odd = [
        ("datestyle", "sql, dmy"),
        ("intervalstyle", "iso_8601"),
        ("timezone", "Asia/Kolkata"),
        ("bytea_output", "escape"),
        ("extra_float_digits", "-5"),
        ("lc_monetary", "C"),
    ];
    let cluster = start("stream-types", &odd)?;
    let lacking = lacking_values(&cluster)?;
    ensure!(lacking.is_empty(), "there is no value of {lacking}");
    let hard = HARD;
    let definitions: Vec<_> = hard.iter().enumerate().map(|(n, (kind, ..))| format!("c{n} {kind}")).collect();
    cluster.sql(&format!("create table hard (id int primary key, {})", definitions.join(", ")))?;
    let path = to_file(&cluster, "{}")?;
    let literals: Vec<_> =
        hard.iter().map(|(kind, text, _)| format!("'{}'::{kind}", text.replace('\'', "''"))).collect();
    let lines = "set datestyle = 'iso, ymd'; set intervalstyle = 'postgres'; set extra_float_digits = 1";
    let nulls = vec!["null"; hard.len()].join(", ");
    cluster.sql(&format!(
        "{lines}; insert into hard values (1, {}); insert into hard values (2, {nulls})",
        literals.join(", ")
    ))?;
    delivered(&cluster)?;
    let text = std::fs::read_to_string(&path)?;
    let mut wrong = Vec::new();
    for (number, (kind, literal, wanted)) in hard.iter().enumerate() {
        let member = format!("\"c{number}\":{wanted}");
        let line = text.lines().next().context("an event")?;
        let found = line.split(&member).nth(1).is_some_and(|rest| rest.starts_with([',', '}']));
        if !found {
            let whole: Value = serde_json::from_str(line)?;
            wrong.push(format!(
                "{kind} {literal:?}: {} and not {wanted}",
                whole["Columns"][format!("c{number}")]
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let null = columns(&path, "hard")?.pop().context("a second event")?;
    ensure!((0..hard.len()).all(|number| null[format!("c{number}")].is_null()), "{null}");
    Ok(())
}

#[test]
fn types_of_ones_own_have_the_form_of_what_they_are_made_of() -> Result<()> {
    let cluster = start("stream-own-types", &[])?;
    cluster.sql(
        "create type mood as enum ('so so', 'fine');
         create domain score as int check (value > 0); create domain deeper as score; create domain ages as int[];
         create domain at as timestamptz;
         create type pair as (a int, b text);
         create type moods as range (subtype = text);
         create table own (id score primary key, m mood, ms mood[], d deeper, ds deeper[], ages ages, at at, ats at[],
             p pair, ps pair[], r moods, rs moods[], o \"Odd Name\"[]);"
            .replace("create table", "create type \"Odd Name\" as enum ('x,y'); create table")
            .as_str(),
    )?;
    let path = to_file(&cluster, "{}")?;
    cluster.sql(
        "insert into own values (1, 'so so', '{fine,\"so so\",null}', 5, '{5,6}', '{{1},{2}}', '2026-01-01 00:00+00',
             '{\"2026-01-01 00:00+00\"}', '(1,\"x y\")', array[row(1,'x')::pair], '[a,b)', '{\"[a,b)\"}', '{\"x,y\"}')",
    )?;
    // A type that is made, used and dropped in the stream's course.
    cluster.sql(
        "create domain later as numeric[]; create table after (v later); alter table after replica identity full;
         insert into after values ('{1.50}'); drop table after; drop domain later;",
    )?;
    delivered(&cluster)?;
    let wanted = json!({
        "id": 1, "m": "so so", "ms": ["fine", "so so", null], "d": 5, "ds": [5, 6], "ages": [[1], [2]],
        "at": "2026-01-01T00:00:00Z", "ats": ["2026-01-01T00:00:00Z"], "p": "(1,\"x y\")", "ps": ["(1,x)"], "r": "[a,b)",
        "rs": ["[a,b)"], "o": ["x,y"],
    });
    same(&columns(&path, "own")?[0], &wanted)?;
    same(&columns(&path, "after")?[0], &json!({"v": ["1.50"]}))
}

#[test]
fn what_an_update_left_alone_is_absent_or_marked_and_never_null() -> Result<()> {
    let cluster = start("stream-toast", &[])?;
    cluster.sql(
        "create table wide (id int primary key, big text, n int); alter table wide alter big set storage external;
         create table known (id int primary key, big text, n int); alter table known alter big set storage external;
         alter table known replica identity full;",
    )?;
    let path = to_file(&cluster, "{}")?;
    let marked = another_to_file(
        &cluster,
        "marking",
        r#"{"unchanged":"__unchanged__","publication":"postern_shop"}"#,
    )?;
    for table in ["wide", "known"] {
        cluster.sql(&format!(
            "insert into {table} values (1, repeat('x', 10000), 1); update {table} set n = 2; update {table} set big = null"
        ))?;
    }
    delivered(&cluster)?;
    for (path, wide) in
        [(&path, json!({"id": 1, "n": 2})), (&marked, json!({"big": "__unchanged__", "id": 1, "n": 2}))]
    {
        same(&columns(path, "wide")?[1], &wide)?;
        same(&columns(path, "wide")?[2], &json!({"big": null, "id": 1, "n": 2}))?;
        // The old row came along.
        same(&columns(path, "known")?[1], &json!({"big": "x".repeat(10000), "id": 1, "n": 2}))?;
    }
    Ok(())
}

#[test]
fn before_images_truncates_messages_and_transactions_come_when_asked_for() -> Result<()> {
    let cluster = start("stream-options", &[])?;
    cluster.sql(
        "create table plain (id int primary key, v int); create table whole (id int primary key, v int);
         alter table whole replica identity full; create table bare (v int); create table none (id int primary key, v int);
         alter table none replica identity nothing;
         create table indexed (a int not null, b int); create unique index ix on indexed (a);
         alter table indexed replica identity using index ix",
    )?;
    let path = to_file(
        &cluster,
        r#"{"old":true,"truncate":true,"messages":true,"transactions":true,"schema":true,"xid":true,"ordinal":true,
            "commit_lsn":true,"commit_timestamp":true}"#,
    )?;
    cluster.sql(
        "insert into plain values (1, 1); update plain set v = 2; update plain set id = 2; delete from plain;
         insert into whole values (1, 1); update whole set v = 2; delete from whole;
         insert into bare values (1); insert into none values (1, 1);
         insert into indexed values (1, 1); update indexed set a = 2; delete from indexed;",
    )?;
    for table in ["bare", "none"] {
        ensure!(cluster.sql(&format!("update {table} set v = 2")).is_err(), "the server refuses it, as ever");
    }
    cluster.sql("truncate plain, whole, bare")?;
    cluster.sql(
        "begin; select pg_logical_emit_message(true, 'in', 'one'); insert into bare values (2); commit",
    )?;
    cluster.sql("begin; select pg_logical_emit_message(true, 'in', 'never'); select pg_logical_emit_message(false, 'out', 'two'); rollback")?;
    delivered(&cluster)?;
    let events = events(&path)?;
    let said: Vec<_> = events
        .iter()
        .map(|event| {
            let old = event.get("Old").map(|old| format!(" {old}")).unwrap_or_default();
            format!(
                "{} {} {} {}{old}",
                event["Action"].as_str().unwrap_or_default(),
                event["Table"].as_str().unwrap_or_default(),
                event["Columns"],
                event["Ordinal"]
            )
        })
        .collect();
    let wanted = [
        "begin  {} 0",
        r#"insert plain {"id":1,"v":1} 1"#,
        r#"update plain {"id":1,"v":2} 2"#,
        r#"update plain {"id":2,"v":2} 3 {"id":1}"#,
        r#"delete plain {"id":2,"v":null} 4 {"id":2}"#,
        r#"insert whole {"id":1,"v":1} 5"#,
        r#"update whole {"id":1,"v":2} 6 {"id":1,"v":1}"#,
        r#"delete whole {"id":1,"v":2} 7 {"id":1,"v":2}"#,
        r#"insert bare {"v":1} 8"#,
        r#"insert none {"id":1,"v":1} 9"#,
        r#"insert indexed {"a":1,"b":1} 10"#,
        r#"update indexed {"a":2,"b":1} 11 {"a":1}"#,
        r#"delete indexed {"a":2,"b":null} 12 {"a":2}"#,
        "commit  {} 13",
        "begin  {} 0",
        "truncate plain {} 1",
        "truncate whole {} 2",
        "truncate bare {} 3",
        "commit  {} 4",
        "begin  {} 0",
        r#"message  {"content":"one","prefix":"in"} 1"#,
        r#"insert bare {"v":2} 2"#,
        "commit  {} 3",
        r#"message  {"content":"two","prefix":"out"} 1"#,
    ];
    ensure!(said == wanted, "{}", said.join("\n"));
    for event in &events {
        let kinds = [&event["Xid"], &event["Ordinal"]].iter().all(|number| number.is_u64());
        ensure!(kinds && event["CommitLSN"].is_string(), "{event}");
        // A message outside a transaction is not committed.
        let at = &event["CommitTimestamp"];
        ensure!(if event["Xid"] == 0 { at.is_null() } else { at.is_string() }, "{event}");
        ensure!(event["Schema"] == if event["Table"] == "" { "" } else { "public" }, "{event}");
    }
    let mut uuids: Vec<_> = events.iter().map(|event| event["UUID"].to_string()).collect();
    uuids.sort_unstable();
    uuids.dedup();
    ensure!(uuids.len() == events.len(), "every event has its own");
    Ok(())
}

#[test]
fn what_postern_itself_keeps_is_never_an_event() -> Result<()> {
    let cluster = start("stream-own", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    cluster.sql(
        "select postern.create_sink('secret', 'stub_log'); update postern.sink_definitions set name = 'hidden' where name = 'secret';
         select postern.drop_sink('hidden'); insert into t values (1)",
    )?;
    delivered(&cluster)?;
    let events = events(&path)?;
    ensure!(events.len() == 1 && events[0]["Table"] == "t", "{events:?}");
    Ok(())
}

#[test]
fn keys_are_the_primary_keys_also_with_replica_identity_full() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("stream-keys")?;
    broker.create_topic("all", 1)?;
    let cluster = start("stream-keys", &[])?;
    cluster.sql(
        "create table plain (id int primary key, v int); create table whole (v int, b text, a int, primary key (a, b));
         alter table whole replica identity full; create table nokey (v int); alter table nokey replica identity full;
         create table later (id int, v int); alter table later replica identity full",
    )?;
    cluster.sql(&format!(
        "select postern.create_source('shop', 'postgres', '{{\"truncate\":true}}');
         select postern.create_sink('kafka', 'kafka', '{{\"hosts\":\"{}\",\"topicFallback\":\"all\"}}');
         select postern.create_stream('shop to kafka', 'shop', 'kafka')",
        broker.address()
    ))?;
    running(&cluster, "shop to kafka")?;
    cluster.sql(
        "insert into plain values (1, 1); delete from plain;
         insert into whole values (1, 'x', 2); update whole set v = 2; update whole set a = 3; delete from whole;
         insert into nokey values (1); update nokey set v = 2;
         insert into later values (1, 1); alter table later add primary key (id); insert into later values (2, 2);
         truncate plain",
    )?;
    delivered(&cluster)?;
    let keys: Vec<_> =
        broker.consume("all")?.into_iter().map(|record| record.key.unwrap_or_default()).collect();
    let wanted = [
        r#"{"id":1}"#,
        r#"{"id":1}"#,
        r#"{"b":"x","a":2}"#,
        r#"{"b":"x","a":2}"#,
        r#"{"b":"x","a":3}"#,
        r#"{"b":"x","a":3}"#,
        "",
        "",
        "",
        r#"{"id":2}"#,
        "",
    ];
    ensure!(keys == wanted, "{keys:?}");
    Ok(())
}
