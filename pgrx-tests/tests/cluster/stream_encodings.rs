//! Change streams of databases that have another encoding than UTF-8, or none: names and values arrive as they are, or as bytes.

use crate::stream::{delivered_in, events, file, mistake, running_in, slots, start};
use crate::stream_events::{columns, same};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use serde_json::{Value, json};
use std::path::PathBuf;

/// A stream of a new database of another encoding, to a file; this is done there, and all of it delivered.
fn in_encoding(cluster: &Cluster, encoding: &str, sql: &str) -> Result<PathBuf> {
    let database = encoding.to_lowercase();
    cluster
        .sql(&format!("create database {database} encoding '{encoding}' locale 'C' template template0"))?;
    let path = file(cluster, &format!("{database}.jsonl"));
    let definitions = format!(
        "create extension postern;
         select postern.create_source('here');
         select postern.create_sink('lines', 'file', '{{\"path\":\"{}\"}}');
         select postern.create_stream('here', 'here', 'lines')",
        path.display()
    );
    cluster.sql_in(&database, &definitions)?;
    running_in(cluster, &database, "here")?;
    cluster.sql_in(&database, sql)?;
    delivered_in(cluster, &database)?;
    Ok(path)
}

#[test]
fn other_encodings_become_utf8_and_bytes_of_none_are_shown() -> Result<()> {
    let cluster = start("stream-encodings", &[])?;
    let path = in_encoding(
        &cluster,
        "LATIN1",
        "create table \"Größe\" (\"schön\" text primary key); insert into \"Größe\" values ('Ärger')",
    )?;
    same(&columns(&path, "Größe")?[0], &json!({"schön": "Ärger"}))?;
    let path = in_encoding(
        &cluster,
        "SQL_ASCII",
        "create table t (id int primary key, v text); insert into t values (1, 'ü'), (2, convert_from('\\xc4', 'SQL_ASCII')),
             (3, 'plain')",
    )?;
    let rows = [json!({"id": 1, "v": "ü"}), json!({"id": 2, "v": "\\xc4"}), json!({"id": 3, "v": "plain"})];
    same(&Value::Array(columns(&path, "t")?), &Value::Array(rows.to_vec()))
}

#[test]
fn names_in_another_encoding_arrive_as_they_are() -> Result<()> {
    let cluster = start("stream-latin", &[])?;
    cluster.sql("create database latin encoding 'LATIN1' locale 'C' template template0")?;
    let path = file(&cluster, "ä.jsonl");
    cluster.sql_in(
        "latin",
        &format!(
            r#"create extension postern; create table "tänze" (id int primary key, "größe" text); insert into "tänze" values (1, 'übel');
               select postern.create_source('köche', 'postgres', '{{"snapshot": true, "tables": ["\"tänze\""]}}');
               select postern.create_sink('löffel', 'file', '{{"path": "{}"}}'); select postern.create_stream('brühe', 'köche', 'löffel')"#,
            path.display()
        ),
    )?;
    running_in(&cluster, "latin", "brühe")?;
    cluster.sql_in("latin", r#"insert into "tänze" values (2, 'ähnlich')"#)?;
    wait::until("both have come", || events(&path).is_ok_and(|events| events.len() == 2))
        .with_context(|| cluster.log_tail())?;
    for (event, size) in events(&path)?.iter().zip(["übel", "ähnlich"]) {
        ensure!(event["Table"] == "tänze" && event["Columns"]["größe"] == size, "{event}");
    }
    wait::until("its position is written down", || {
        cluster
            .sql_in("latin", "select count(*) from postern.stream_positions where stream = 'brühe'")
            .is_ok_and(|count| count == "1")
    })?;
    let options = cluster.sql_in("latin", "select options ->> 'path' from postern.sinks")?;
    ensure!(options == path.to_string_lossy(), "{options}");
    let said = mistake(&cluster, "latin", "select postern.create_source('x', 'größe')")?;
    ensure!(said.contains("must be one of"), "{said}");
    let said = mistake(&cluster, "latin", r#"select postern.alter_source('köche', '{"größe": 1}')"#)?;
    ensure!(said.starts_with("22023 option \"gr??e\" is not known"), "{said}");
    cluster.sql_in("latin", "select postern.drop_stream('brühe'); select postern.drop_source('köche')")?;
    slots(&cluster, 0)?;
    ensure!(cluster.sql_in("latin", "select count(*) from pg_publication")? == "0");
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
    let cluster = start("stream-ascii", &[])?;
    cluster.sql("create database plain encoding 'SQL_ASCII' locale 'C' template template0")?;
    cluster.sql_in("plain", "create extension postern")?;
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
    cluster.sql_in(
        "plain",
        &format!(
            r#"do $$ begin execute format('create table %I (id int primary key, %I text)', 't' || chr(246), 'c' || chr(246)); end $$;
               do $$ begin execute format('insert into %I values (1, chr(246))', 't' || chr(246)); end $$;
               select postern.create_source('köche', 'postgres', '{{"snapshot": true}}');
               select postern.create_sink('d', 'file', '{{"path": "{}"}}'); select postern.create_stream('s', 'köche', 'd')"#,
            path.display()
        ),
    )?;
    running_in(&cluster, "plain", "s")?;
    cluster.sql_in(
        "plain",
        "do $$ begin execute format('insert into %I values (2, chr(246))', 't' || chr(246)); end $$",
    )?;
    wait::until("both have come", || events(&path).is_ok_and(|events| events.len() == 2))
        .with_context(|| cluster.log_tail())?;
    // What is no UTF-8 is shown as bytes.
    for event in events(&path)? {
        ensure!(event["Table"] == "\\x74f6" && event["Columns"]["\\x63f6"] == "\\xf6", "{event}");
    }
    ensure!(!cluster.log().contains("panicked"), "{}", cluster.log_tail());
    Ok(())
}
