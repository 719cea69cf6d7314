//! Limits of PgBouncer's kind: how many connections a pool keeps and may have at most, how long a client's queries, transactions and
//! messages may take.

use crate::pooling::{Doing, pid, pooled, text, through, with_pool};
use crate::raw::Raw;
use crate::tls::Secured;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::lacking;
use pgrx_tests::script::frontend::Message;
use pgrx_tests::wait;
use postgres::SimpleQueryMessage;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A column of a row of the console's answer: the first whose `key` is `value`.
fn console(cluster: &Cluster, sql: &str, (key, value): (&str, &str), column: &str) -> Result<String> {
    let mut console = through(cluster).dbname("postern").connect(postgres::NoTls)?;
    for message in console.simple_query(sql)? {
        if let SimpleQueryMessage::Row(row) = message
            && row.get(key) == Some(value)
        {
            return Ok(row.get(column).context("no such column")?.to_owned());
        }
    }
    anyhow::bail!("{sql}: no row whose {key} is {value}")
}

/// That something holds, again and again for so long.
fn stays(what: &str, time: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        ensure!(holds(), "not any more after {:?}: {what}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_pool_keeps_min_pool_size_connections_while_it_has_a_client() -> Result<()> {
    let settings = [("postern.min_pool_size", "2"), ("postern.server_idle_timeout", "1s")];
    let cluster = with_pool("least", 3, &settings)?;
    let mut watcher = cluster.connect()?;
    ensure!(pooled(&mut watcher)?.is_empty(), "nobody has come yet");
    ensure!(console(&cluster, "SHOW DATABASES", ("name", "postgres"), "min_pool_size")? == "2");
    ensure!(console(&cluster, "SHOW CONFIG", ("key", "min_pool_size"), "value")? == "2");
    let mut client = through(&cluster).connect(postgres::NoTls)?;
    wait::until("there are two", || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 2))?;
    // One more may have been opened for its impatience; that one is closed.
    stays("unused ones are kept", Duration::from_secs(3), || {
        pooled(&mut watcher).is_ok_and(|pids| pids.len() >= 2)
    })?;
    wait::until("and no more", || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 2))?;
    let ended = pooled(&mut watcher)?[0];
    watcher.execute("select pg_terminate_backend($1)", &[&ended])?;
    wait::until("another is opened for one that has ended", || {
        pooled(&mut watcher).is_ok_and(|pids| pids.len() == 2 && !pids.contains(&ended))
    })?;
    ensure!(text(&mut client, "select 42")? == "42");
    watcher.batch_execute("alter system set postern.min_pool_size = 9")?;
    watcher.batch_execute("select pg_reload_conf()")?;
    wait::until("as many as the pool may have", || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 3))?;
    // One that was idle for too long before may still be closed, and is replaced.
    stays("and no more", Duration::from_secs(2), || pooled(&mut watcher).is_ok_and(|pids| pids.len() <= 3))?;
    wait::until("all of them", || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 3))?;
    // None is opened for a pool without clients.
    drop(client);
    wait::until("the client has gone", || {
        console(&cluster, "SHOW DATABASES", ("name", "postgres"), "current_client_connections")
            .is_ok_and(|count| count == "0")
    })?;
    for pid in pooled(&mut watcher)? {
        watcher.execute("select pg_terminate_backend($1)", &[&pid])?;
    }
    wait::until("they have ended", || pooled(&mut watcher).is_ok_and(|pids| pids.is_empty()))?;
    stays("none is opened", Duration::from_secs(2), || pooled(&mut watcher).is_ok_and(|pids| pids.is_empty()))
}

#[test]
fn a_client_that_waits_too_long_gets_a_connection_of_the_reserve() -> Result<()> {
    let settings = [
        ("postern.reserve_pool_size", "1"),
        ("postern.reserve_pool_timeout", "2s"),
        ("log_min_messages", "warning"),
    ];
    let cluster = with_pool("reserve", 1, &settings)?;
    ensure!(console(&cluster, "SHOW DATABASES", ("name", "postgres"), "reserve_pool_size")? == "1");
    ensure!(console(&cluster, "SHOW CONFIG", ("key", "reserve_pool_timeout"), "value")? == "2");
    let mut watcher = cluster.connect()?;
    let mut clients: Vec<_> =
        (0..3).map(|_| through(&cluster).connect(postgres::NoTls)).collect::<Result<_, _>>()?;
    for client in &mut clients {
        client.batch_execute("select 1")?;
    }
    ensure!(pooled(&mut watcher)?.len() == 1, "the reserve is not for a moment's crowd");
    let (mut third, mut second, mut first) =
        (clients.pop().context("three")?, clients.pop().context("two")?, clients.pop().context("one")?);
    first.batch_execute("begin")?;
    let own = pid(&mut first)?;
    let asked = Instant::now();
    second.batch_execute("begin")?;
    let others = pid(&mut second)?;
    ensure!(others != own && asked.elapsed() >= Duration::from_secs(2), "after {:?}", asked.elapsed());
    cluster.wait_log("taking a connection from postern.reserve_pool_size")?;
    let waiting = Doing::start(move || pid(&mut third));
    stays("there are no more than two", Duration::from_secs(4), || {
        pooled(&mut watcher).is_ok_and(|pids| pids.len() == 2)
    })?;
    first.batch_execute("commit")?;
    ensure!(waiting.value()?? == own, "the third is served by the first that comes free");
    second.batch_execute("commit")?;
    // Without a time the reserve is not used.
    cluster.sql("alter system set postern.reserve_pool_timeout = 0")?;
    cluster.sql("alter system set postern.server_idle_timeout = 1")?;
    cluster.sql("select pg_reload_conf()")?;
    wait::until("the unused ones are closed", || pooled(&mut watcher).is_ok_and(|pids| pids.is_empty()))?;
    first.batch_execute("begin")?;
    let waiting = Doing::start(move || pid(&mut second));
    stays("there is one", Duration::from_secs(4), || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 1))?;
    first.batch_execute("commit")?;
    waiting.value()??;
    Ok(())
}

/// Sets some settings, of which all others of the kind are off, and waits until the front knows.
fn limit(cluster: &Cluster, setting: &str, value: &str) -> Result<()> {
    for other in ["query_timeout", "transaction_timeout", "idle_transaction_timeout"] {
        let value = if other == setting { value } else { "0" };
        cluster.sql(&format!("alter system set postern.{other} = '{value}'"))?;
    }
    cluster.sql("select pg_reload_conf()")?;
    wait::until("the front knows", || {
        console(cluster, "SHOW CONFIG", ("key", setting), "value")
            .is_ok_and(|seen| format!("{seen}s") == value)
    })
}

/// No client is left but those, and no connection is more than the pool may have.
fn is_clean(cluster: &Cluster, clients: i64, most: i64) -> Result<()> {
    let mut watcher = cluster.connect()?;
    watcher.batch_execute("create extension if not exists postern")?;
    wait::until("nothing is left behind", || {
        let row = watcher.query_one(
            "select (select count(*) from postern.clients), (select count(*) from postern.servers)",
            &[],
        );
        row.is_ok_and(|row| row.get::<_, i64>(0) == clients && row.get::<_, i64>(1) <= most)
    })
}

#[test]
fn queries_and_transactions_that_take_too_long_end_with_their_client() -> Result<()> {
    let cluster = with_pool("too-long", 2, &[])?;
    let mut other = through(&cluster).connect(postgres::NoTls)?;
    // What is sent one after the other, and whether the last of it is sent again and again.
    let cases: [(&str, &str, &[&str], bool); 6] = [
        ("query_timeout", "57014", &["select pg_sleep(60)"], false),
        ("query_timeout", "57014", &["begin", "select 1", "select pg_sleep(60)"], false),
        ("transaction_timeout", "25P04", &["begin", "select 1"], true),
        ("transaction_timeout", "25P04", &["select pg_sleep(60)"], false),
        ("idle_transaction_timeout", "25P03", &["begin"], false),
        ("idle_transaction_timeout", "25P03", &["begin", "select 1/0"], false),
    ];
    for mode in ["transaction", "session"] {
        for (setting, sqlstate, queries, again) in &cases {
            let case = format!("{mode} {setting} {queries:?}");
            limit(&cluster, setting, "2s")?;
            let mut client = Raw::open(cluster.pooler_port)?;
            client.query(&format!("set postern.pool_mode = {mode}"))?;
            let begun = Instant::now();
            for sql in &queries[..queries.len() - 1] {
                client.query(sql)?;
            }
            let last = queries[queries.len() - 1];
            let (mut said, mut spared) = (String::new(), true);
            if *again {
                while !said.contains("FATAL") {
                    ensure!(begun.elapsed() < wait::LIMIT, "{case}: it is not ended");
                    said = client.query(last).err().map(|error| format!("{error:#}")).unwrap_or_default();
                    if let Err(error) = other.batch_execute("select 1") {
                        // The machine may have stood still amid it, once.
                        ensure!(spared, "{case}: another is ended too: {error}");
                        spared = false;
                        other = through(&cluster).connect(postgres::NoTls)?;
                    }
                }
            } else {
                client.ask(last);
                said = client.last_words()?;
            }
            ensure!(said.contains(&format!("C{sqlstate}")), "{case}: {said}");
            ensure!(said.contains(&format!("postern.{setting}")), "{case}: {said}");
            ensure!(begun.elapsed() >= Duration::from_secs(2), "{case}: after {:?}", begun.elapsed());
            let well = text(&mut other, "select 'well'")
                .with_context(|| format!("{case}\n{}", cluster.log_tail()))?;
            ensure!(well == "well", "{case}");
        }
    }
    cluster.wait_log("terminating connection due to postern.transaction_timeout")?;
    is_clean(&cluster, 1, 2)
}

#[test]
fn each_of_these_limits_lets_be_what_is_within_it() -> Result<()> {
    let cluster = with_pool("within", 2, &[])?;
    let mut idle = through(&cluster).connect(postgres::NoTls)?;
    idle.batch_execute("select 1")?;
    let mut client = through(&cluster).connect(postgres::NoTls)?;
    // Many queries, each short, take longer than one may; and so does a pause between two.
    limit(&cluster, "query_timeout", "6s")?;
    client.batch_execute("begin")?;
    stays("short queries", Duration::from_secs(8), || client.batch_execute("select pg_sleep(0.2)").is_ok())?;
    stays("a pause", Duration::from_secs(8), || idle.batch_execute("select 1").is_ok())?;
    client.batch_execute("select 1; commit").context("query_timeout")?;
    // Many transactions take longer than one may.
    limit(&cluster, "transaction_timeout", "6s")?;
    stays("short transactions", Duration::from_secs(8), || {
        client.batch_execute("begin; select pg_sleep(0.1); commit").is_ok()
    })?;
    // A long query is not a transaction that is idle.
    limit(&cluster, "idle_transaction_timeout", "6s")?;
    client.batch_execute("begin; select pg_sleep(8)")?;
    client.batch_execute("commit").context("idle_transaction_timeout")?;
    ensure!(text(&mut idle, "select 'well'")? == "well", "idle outside of a transaction");
    Ok(())
}

/// A query of so many bytes whose answer is 1.
fn long_query(length: usize) -> Vec<u8> {
    let text = format!("select 1 /*{}*/", "x".repeat(length.saturating_sub(20)));
    Message::query(text.as_bytes()).bytes
}

/// What is sent at first and answered up to a ReadyForQuery, and what behind it.
type Started = (&'static str, Vec<Vec<u8>>, Vec<u8>);

#[test]
fn who_does_not_send_the_rest_of_a_message_is_ended_and_holds_nobody_up_for_longer() -> Result<()> {
    let cluster = with_pool("rest", 1, &[("postern.client_message_timeout", "2s")])?;
    cluster.sql("create table numbers (n int)")?;
    let mut other = through(&cluster).connect(postgres::NoTls)?;
    let query = Message::query(b"select 1").bytes;
    let begin = Message::query(b"begin").bytes;
    let behind = |first: &[u8], rest: &[u8]| [first, rest].concat();
    let copy = Message::query(b"copy numbers from stdin").bytes;
    let data = |bytes: &[u8]| Message::copy_data(bytes).bytes;
    let long_data = data(&[b'x'; 100_000]);
    let cases: [Started; 8] = [
        ("a part of a header", vec![], query[..3].to_vec()),
        ("a part of a short message", vec![], query[..9].to_vec()),
        ("a part of a long message", vec![], long_query(100_000)[..5_000].to_vec()),
        ("a part in a transaction", vec![begin], query[..9].to_vec()),
        ("a part behind a query", vec![behind(&query, &query[..3])], vec![]),
        ("a long part behind a query", vec![behind(&query, &long_query(100_000)[..6_000])], vec![]),
        ("what is left of a COPY", vec![behind(&copy, &data(b"no number\n"))], long_data[..5_000].to_vec()),
        (
            "what is left of a COPY behind the failing message",
            vec![[copy, data(b"no number\n"), long_data[..3_000].to_vec()].concat()],
            vec![],
        ),
    ];
    for (case, first, then) in cases {
        let mut client = Raw::open(cluster.pooler_port)?;
        client.query("select 1")?;
        let begun = Instant::now();
        for bytes in first {
            client.send_and_hear(&bytes).context(case)?;
        }
        if case == "a part in a transaction" {
            // What comes at once cannot be told from what had come before.
            ensure!(client.unasked(Duration::from_millis(300))?.is_empty(), "{case}");
        }
        client.send(&then);
        let said = client.last_words().context(case)?;
        let took = begun.elapsed();
        ensure!(said.contains("C57P05") && said.contains("postern.client_message_timeout"), "{case}: {said}");
        ensure!(
            took > Duration::from_millis(1_900) && took < Duration::from_secs(20),
            "{case}: after {took:?}"
        );
        let well =
            text(&mut other, "select 'well'").with_context(|| format!("{case}\n{}", cluster.log_tail()))?;
        ensure!(well == "well", "{case}");
    }
    is_clean(&cluster, 1, 1)
}

#[test]
fn a_slow_message_and_one_that_waits_for_a_backend_are_not_taken_for_one_that_does_not_come() -> Result<()> {
    let cluster = with_pool("slow", 1, &[("postern.client_message_timeout", "7s")])?;
    let mut other = through(&cluster).connect(postgres::NoTls)?;
    let mut client = Raw::open(cluster.pooler_port)?;
    client.query("select 1")?;
    // A hundred kilobytes a second.
    let query = long_query(900_000);
    let (first, last) = query.split_at(query.len() - 1);
    for part in first.chunks(10_000) {
        client.send(part);
        ensure!(client.unasked(Duration::from_millis(100))?.is_empty(), "an answer to a part");
    }
    let answer = client.send_and_hear(last)?;
    ensure!(answer.iter().any(|(tag, _)| *tag == b'D'), "{answer:?}");
    // A message in two parts, the second of which comes while there is nobody to take it.
    let query = Message::query(b"select 1").bytes;
    client.send(&query[..3]);
    stays("the part is looked at", Duration::from_millis(500), || other.batch_execute("select 1").is_ok())?;
    other.batch_execute("begin")?;
    client.send(&query[3..]);
    stays("a transaction goes on", Duration::from_secs(9), || other.batch_execute("select 1").is_ok())?;
    other.batch_execute("commit")?;
    let answer = client.send_and_hear(&[])?;
    ensure!(answer.iter().any(|(tag, _)| *tag == b'D'), "{answer:?}");
    // Many messages, each of which comes in two parts in time.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        client.send(&query[..3]);
        ensure!(client.unasked(Duration::from_millis(200))?.is_empty(), "an answer to a part");
        client.send_and_hear(&query[3..])?;
    }
    Ok(())
}

#[test]
fn a_slow_message_over_tls_is_not_taken_for_one_that_does_not_come() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("slow-tls")?;
    let cluster = &secured.cluster;
    cluster.sql("alter system set postern.client_message_timeout = '7s'")?;
    cluster.set_hba("local all all trust\nhost all all all trust\n")?;
    cluster.reload()?;
    let port = format!("127.0.0.1:{}", cluster.pooler_port);
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-starttls", "postgres", "-connect", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("openssl")?;
    let mut to = client.stdin.take().context("its input")?;
    let mut from = client.stdout.take().context("its output")?;
    let (sender, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let _ = sender.send(buffer[..length].to_vec());
        }
    });
    let until_ready = || -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while !all.ends_with(b"Z\0\0\0\x05I") {
            all.extend(
                heard
                    .recv_timeout(wait::LIMIT)
                    .with_context(|| String::from_utf8_lossy(&all).into_owned())?,
            );
        }
        Ok(all)
    };
    let parameters = [("user", "postgres"), ("database", "postgres")]
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    to.write_all(&Message::startup((3, 0), &parameters).bytes)?;
    until_ready()?;
    let query = long_query(900_000);
    let (first, last) = query.split_at(query.len() - 1);
    for part in first.chunks(10_000) {
        to.write_all(part)?;
        to.flush()?;
        ensure!(heard.recv_timeout(Duration::from_millis(100)).is_err(), "an answer to a part");
    }
    to.write_all(last)?;
    let said = until_ready()?;
    ensure!(said.windows(9).any(|text| text == b"SELECT 1\0"), "{}", String::from_utf8_lossy(&said));
    // And who sends nothing more is ended over TLS too.
    to.write_all(&query[..5_000])?;
    let mut said = Vec::new();
    while let Ok(bytes) = heard.recv_timeout(Duration::from_secs(20)) {
        said.extend(bytes);
    }
    let said = String::from_utf8_lossy(&said);
    ensure!(said.contains("C57P05") && said.contains("postern.client_message_timeout"), "{said}");
    let _ = client.kill();
    client.wait()?;
    Ok(())
}

#[test]
fn a_thousand_slow_senders_hold_nobody_up_and_are_ended() -> Result<()> {
    const SLOW: usize = 1_000;
    let cluster = with_pool("slow-senders", 2, &[("postern.client_message_timeout", "6s")])?;
    let mut slow = (0..SLOW).map(|_| Raw::open(cluster.pooler_port)).collect::<Result<Vec<_>>>()?;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (config, done) = (through(&cluster), std::sync::Arc::clone(&done));
            Doing::start(move || -> Result<(u64, u64)> {
                let mut client = config.connect(postgres::NoTls)?;
                let (mut count, mut late) = (0, 0);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let asked = Instant::now();
                    client.batch_execute("select 1")?;
                    late += u64::from(asked.elapsed() > Duration::from_secs(1));
                    count += 1;
                }
                Ok((count, late))
            })
        })
        .collect();
    let query = Message::query(b"select 'one byte a second'").bytes;
    let begun = Instant::now();
    for byte in query.chunks(1).take(9) {
        let second = Instant::now();
        slow.iter_mut().for_each(|client| client.send(byte));
        std::thread::sleep(Duration::from_secs(1).saturating_sub(second.elapsed()));
    }
    for client in &mut slow {
        let said = client.last_words()?;
        ensure!(said.contains("C57P05") && said.contains("postern.client_message_timeout"), "{said}");
    }
    ensure!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for worker in workers {
        let (count, late) = worker.value()??;
        // A machine that stands still makes one late, and not every one.
        ensure!(count > 100 && late * 20 < count, "{count} queries, {late} of them late");
    }
    is_clean(&cluster, 0, 2)
}
