//! Change streams as SQL sees them: who may see and do what, what a dump has, what mistakes say, several sources and sinks.

use crate::stream::{delivered, events, file, file_sink, mistake, running, running_in, start};
use anyhow::{Context, Result, ensure};
use pgrx_tests::wait;
use std::process::Stdio;

#[test]
fn mistakes_name_the_option_or_the_name() -> Result<()> {
    let cluster = start("stream-mistakes", &[])?;
    for (sql, wanted) in [
        (
            "select postern.create_source('s', 'mysql')",
            "22023 option \"kind\" must be one of postgres, kafka",
        ),
        (
            "select postern.create_source('s', 'postgres', '{\"walretain\": 1}')",
            "option \"walretain\" is not known",
        ),
        ("select postern.create_source('s', 'postgres', '[]')", "options must be a JSON object"),
        (
            "select postern.create_sink('s', 'kafka', '{\"topicFallback\": \"x\"}')",
            "option \"hosts\" is required",
        ),
        (
            "select postern.create_sink('s', 'kafka', '{\"hosts\": \"h\", \"topicFallback\": \"x\", \"properties\": {\"sasl.mechanismus\": \"x\"}}')",
            "option \"properties.sasl.mechanismus\" is no property of librdkafka",
        ),
        ("select postern.create_sink('s', 'file', '{\"path\": \"relative\"}')", "option \"path\""),
        ("select postern.create_stream('s', 'nowhere', 'x')", "42704 source \"nowhere\" does not exist"),
        ("select postern.start_stream('nothing')", "42704 stream \"nothing\" does not exist"),
        ("select postern.rewind_source('nothing', '0/1')", "42704 source \"nothing\" does not exist"),
        ("select postern.alter_sink('nothing', '{}')", "42704 sink \"nothing\" does not exist"),
    ] {
        let said = mistake(&cluster, "postgres", sql)?;
        ensure!(said.contains(wanted), "{sql}: {said}");
    }
    cluster.sql("select postern.create_source('shop')")?;
    file_sink(&cluster, "lines", "{}")?;
    cluster.sql("select postern.create_stream('s', 'shop', 'lines')")?;
    running(&cluster, "s")?;
    wait::until("its position is written down", || {
        cluster.sql("select count(*) from postern.stream_positions").is_ok_and(|count| count == "1")
    })?;
    for (sql, wanted) in [
        ("select postern.drop_source('shop')", "2BP01 source \"shop\" feeds streams Streams \"s\" use it."),
        ("select postern.drop_sink('lines')", "2BP01 sink \"lines\" is fed by streams Streams \"s\" use it."),
        ("select postern.create_source('shop')", "42710 source \"shop\" already exists"),
        (
            "select postern.create_stream('t', 'shop', 'lines')",
            "42710 source \"shop\" feeds sink \"lines\" already",
        ),
        (
            "select postern.rewind_stream('s', '0/1')",
            "22023 stream \"s\" cannot go back to 0/1 Changes are kept from",
        ),
        ("select postern.rewind_stream('s', 'FFFF/0')", "cannot be rewound to FFFF/0"),
    ] {
        let said = mistake(&cluster, "postgres", sql)?;
        ensure!(said.contains(wanted), "{sql}: {said}");
    }
    // What a broker has is the consumer group's to go back to.
    cluster.sql(
        r#"select postern.create_source('topics', 'kafka', '{"hosts": "127.0.0.1:1", "topics": ["t"], "groupID": "g"}');
           select postern.create_stream('from topics', 'topics', 'lines', false)"#,
    )?;
    for sql in [
        "select postern.rewind_stream('from topics', '0/1')",
        "select postern.rewind_source('topics', '0/1')",
    ] {
        let said = mistake(&cluster, "postgres", sql)?;
        let wanted = "55000 stream \"from topics\" cannot be rewound: its source is not this server's WAL";
        ensure!(said == wanted, "{sql}: {said}");
    }
    Ok(())
}

#[test]
fn names_and_arguments_that_cannot_be_are_refused_in_plain_words() -> Result<()> {
    let cluster = start("stream-arguments", &[])?;
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
fn secrets_are_for_superusers_and_changes_for_whom_they_are_granted_to() -> Result<()> {
    let cluster = start("stream-secrets", &[])?;
    cluster.sql(
        "create role watcher login in role pg_monitor; create role operator login; create role nobody_special login;
         grant usage on schema postern to operator; grant execute on function postern.stop_stream to operator",
    )?;
    let options = r#"{"hosts":"127.0.0.1:1","topicFallback":"t","properties":{"sasl.username":"u","sasl.password":"very secret",
                      "ssl.key.password":"very secret","ssl.keystore.password":"very secret"}}"#;
    cluster.sql(&format!(
        "select postern.create_source('shop'); select postern.create_sink('k', 'kafka', '{options}');
         select postern.create_stream('s', 'shop', 'k')"
    ))?;
    let options = r#"{"hosts":"127.0.0.1:1","topics":["t"],"groupID":"g","properties":{"sasl.username":"u",
                      "sasl.password":"very secret","ssl.key.password":"very secret"}}"#;
    cluster.sql(&format!("select postern.create_source('topics', 'kafka', '{options}')"))?;
    let of = |role: &str| cluster.config().user(role).connect(postgres::NoTls);
    let mut watcher = of("watcher")?;
    for (view, secrets) in [("sinks", 3), ("sources", 2)] {
        let sql = format!("select string_agg(to_jsonb(s)::text, ' ') from postern.{view} s");
        let shown: String = watcher.query_one(&sql, &[])?.get(0);
        ensure!(shown.matches("\"***\"").count() == secrets && !shown.contains("very secret"), "{shown}");
        ensure!(shown.contains(r#""sasl.username": "u""#), "{shown}");
    }
    for sql in [
        "select * from postern.sink_definitions",
        "select * from postern.source_definitions",
        "select postern.stop_stream('s')",
        "select postern.switch_streams('stream', 's', 'stopped')",
        "update postern.stream_states set state = 'stopped'",
    ] {
        let refused = watcher.batch_execute(sql).err().with_context(|| format!("{sql} is allowed"))?;
        ensure!(
            refused.code() == Some(&postgres::error::SqlState::INSUFFICIENT_PRIVILEGE),
            "{sql}: {refused}"
        );
    }
    let mut anybody = of("nobody_special")?;
    for sql in [
        "select * from postern.sinks",
        "select * from postern.streams",
        "select * from postern.rejected_messages",
        "select postern.create_source('x')",
    ] {
        ensure!(anybody.batch_execute(sql).is_err(), "{sql} is allowed");
    }
    let mut operator = of("operator")?;
    operator.batch_execute("select postern.stop_stream('s')")?;
    ensure!(cluster.sql("select state from postern.streams")? == "stopped");
    // That one and no other.
    for sql in [
        "select postern.start_stream('s')",
        "select postern.stop_source('shop')",
        "select postern.switch_streams('stream', 's', 'running')",
    ] {
        let refused = operator.batch_execute(sql).err().with_context(|| format!("{sql} is allowed"))?;
        ensure!(
            refused.code() == Some(&postgres::error::SqlState::INSUFFICIENT_PRIVILEGE),
            "{sql}: {refused}"
        );
    }
    ensure!(cluster.sql("select state from postern.streams")? == "stopped");
    ensure!(!cluster.log().contains("very secret"), "in the log");
    Ok(())
}

#[test]
fn a_dump_has_the_definitions_and_a_copy_delivers_nothing_by_itself() -> Result<()> {
    let cluster = start("stream-dump", &[])?;
    cluster.sql("create table t (id int primary key); select postern.create_source('shop', 'postgres', '{\"schema\": true}')")?;
    let path = file_sink(&cluster, "lines", "{}")?;
    cluster.sql("select postern.create_stream('s', 'shop', 'lines')")?;
    running(&cluster, "s")?;
    cluster.sql("insert into t values (1)")?;
    delivered(&cluster)?;
    cluster.sql("create database copy")?;
    let connection = |program: &str| {
        let mut command = cluster.program(program);
        command
            .arg("-h")
            .arg(cluster.socket_directory())
            .arg("-p")
            .arg(cluster.port.to_string())
            .args(["-U", "postgres"]);
        command
    };
    let dump = connection("pg_dump").arg("postgres").output()?;
    ensure!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let mut restore = connection("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "copy"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut restore.stdin.take().context("stdin")?, &dump.stdout)?;
    let restored = restore.wait_with_output()?;
    ensure!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let in_copy = |sql: &str| cluster.sql_in("copy", sql);
    let words = in_copy(
        "select s.source, s.sink, s.state, d.options ->> 'schema' from postern.streams s join postern.sources d on d.name = s.source",
    )?;
    ensure!(words == "shop|lines|stopped|true", "{words}");
    // Its own changes go nowhere until somebody starts it, and then with a slot of its own.
    in_copy("insert into t values (2)")?;
    in_copy(&format!(
        "select postern.alter_sink('lines', '{{\"path\":\"{}\"}}')",
        file(&cluster, "copy.jsonl").display()
    ))?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots")? == "1");
    in_copy("select postern.start_stream('s')")?;
    running_in(&cluster, "copy", "s")?;
    ensure!(cluster.sql("select count(*) from pg_replication_slots")? == "2");
    ensure!(events(&path)?.len() == 1);
    Ok(())
}

#[test]
fn a_sink_takes_several_sources_and_a_source_feeds_several_sinks() -> Result<()> {
    let cluster = start("stream-many", &[])?;
    cluster.sql("create table a (id int primary key); create table b (id int primary key)")?;
    cluster.sql(
        "select postern.create_source('of a', 'postgres', '{\"tables\":\"a\"}');
         select postern.create_source('of b', 'postgres', '{\"tables\":\"b\"}');
         select postern.create_sink('nowhere', 'stub_discard')",
    )?;
    let path = file_sink(&cluster, "lines", "{}")?;
    cluster.sql(
        "select postern.create_stream('a to nowhere', 'of a', 'nowhere'); select postern.create_stream('b to nowhere', 'of b', 'nowhere');
         select postern.create_stream('a to lines', 'of a', 'lines')",
    )?;
    for stream in ["a to nowhere", "b to nowhere", "a to lines"] {
        running(&cluster, stream)?;
    }
    cluster
        .sql("insert into a select generate_series(1, 10); insert into b select generate_series(1, 20)")?;
    delivered(&cluster)?;
    ensure!(cluster.sql("select streams, events from postern.sinks where name = 'nowhere'")? == "2|30");
    ensure!(events(&path)?.len() == 10);
    ensure!(
        cluster.sql("select string_agg(name || ' ' || events, ', ' order by name) from postern.streams")?
            == "a to lines 10, a to nowhere 10, b to nowhere 20"
    );
    Ok(())
}
