//! Notifications to clients whose encoding is another than the database's: only a backend can convert them.

use crate::pooling::with_pool;
use crate::relay::Client;
use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::{Received, Target};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::wait;

#[test]
fn a_client_of_another_encoding_hears_in_its_own() -> Result<()> {
    let cluster = with_pool("relay_latin", 2, &[])?;
    cluster.sql("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")?;
    let open = || Client::open(&Target::tcp(cluster.pooler_port), "postgres", "latin");
    let (mut utf8, mut latin) = (open()?, open()?);
    utf8.query("SET client_encoding = 'UTF8'")?;
    utf8.query("LISTEN \"größe\"")?;
    latin.query("SET client_encoding = 'LATIN1'; LISTEN other")?;
    let mut notifier = cluster.config().dbname("latin").connect(postgres::NoTls)?;
    // While it waits, with its own command, and after its encoding has become the database's.
    notifier.batch_execute("NOTIFY \"größe\", 'é'")?;
    let heard = utf8.next(1)?;
    ensure!(heard[0].1 == "größe" && heard[0].2 == "é", "{heard:?}");
    utf8.query("NOTIFY \"größe\", 'ß'")?;
    ensure!(utf8.next(1)?[0].2 == "ß");
    utf8.query("RESET client_encoding")?;
    notifier.batch_execute("NOTIFY \"größe\", 'é'; NOTIFY other, 'plain'")?;
    let heard = utf8.next(1)?;
    ensure!(heard[0].2 == "\u{fffd}", "one byte that is not UTF-8: {heard:?}");
    ensure!(latin.next(1)?[0].2 == "plain");
    Ok(())
}

#[test]
fn a_flush_of_a_client_of_another_encoding_leaves_it_hearing() -> Result<()> {
    let cluster = with_pool("relay_flush", 2, &[])?;
    let mut client = Client::through(&cluster)?;
    client.query("SET client_encoding = 'LATIN1'; LISTEN a")?;
    for number in 0..3 {
        cluster.sql("NOTIFY a, 'before'")?;
        client.next(1)?;
        client.connection.send(&Message::flush().bytes, None);
        // The backend has read it when it has nothing more to read and is waited for again.
        let since = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientRead' \
                     AND backend_type = 'client backend' AND query LIKE 'SET client_encoding%'";
        wait::until("its backend waits", || cluster.sql(since).is_ok_and(|count| count == "1"))?;
        cluster.sql(&format!("NOTIFY a, 'behind {number}'"))?;
        ensure!(client.next(1)?[0].2 == format!("behind {number}"));
    }
    Ok(())
}

/// The tags of what comes until the channel's end is heard, and the payloads.
fn heard(client: &mut Client) -> Result<(String, Vec<String>)> {
    let (mut tags, mut payloads) = (String::new(), Vec::new());
    while payloads.last().is_none_or(|last| last != "end") {
        match client.connection.receive(wait::LIMIT)? {
            Received::Message { tag, body } => {
                tags.push(tag as char);
                let text = String::from_utf8_lossy(&body).into_owned();
                match tag {
                    b'A' => payloads.push(text.split('\0').rev().nth(1).unwrap_or_default().to_owned()),
                    _ => ensure!(tag == b'N' && text.contains("22P05"), "{} {text}", tag as char),
                }
            }
            other => anyhow::bail!("{other:?} after {tags}"),
        }
    }
    Ok((tags, payloads))
}

const THREE: &str = "NOTIFY a, 'one'; SELECT pg_notify('a', 'not ' || chr(8364)); NOTIFY a, 'end'";

#[test]
fn a_notification_that_a_clients_encoding_cannot_say_is_left_out_alone_and_the_client_warned() -> Result<()> {
    let cluster = with_pool("relay_lacks", 2, &[])?;
    let mut client = Client::through(&cluster)?;
    client.query("SET client_encoding = 'LATIN1'; LISTEN a")?;
    let pid = cluster.sql("SELECT pid FROM pg_stat_activity WHERE query LIKE 'SET client_encoding%'")?;
    for _ in 0..3 {
        // While it waits.
        cluster.sql(THREE)?;
        let (tags, payloads) = heard(&mut client)?;
        ensure!(tags == "ANA" && payloads == ["one", "end"], "{tags} {payloads:?}");
        // By its own command.
        let (tags, error) = client.try_query(THREE)?;
        ensure!(error.is_none(), "{error:?}");
        ensure!(tags == "CTDCCANAZ", "{tags}");
        ensure!(client.notifications.drain(..).map(|(_, _, text)| text).eq(["one", "end"]));
        // Several in a row, of which the same text is one.
        client.connection.send(&Message::flush().bytes, None);
        client.query("LISTEN more")?;
        cluster.sql("SELECT pg_notify('a', chr(8364)) FROM generate_series(1, 3); NOTIFY a, 'end'")?;
        let (tags, payloads) = heard(&mut client)?;
        ensure!(tags == "NA" && payloads == ["end"], "{tags} {payloads:?}");
    }
    let now = cluster.sql("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")?;
    ensure!(now == pid, "another backend serves it");
    // It may be ended while it waits, and cancelled without being so.
    cluster.sql(&format!("SELECT pg_cancel_backend({pid})"))?;
    client.query("SELECT 1")?;
    Ok(())
}

/// Two clients of one server connection: neither is held by it, so that the other is served.
fn share(cluster: &Cluster, database: &str, encoding: &str) -> Result<()> {
    let open = || Client::open(&Target::tcp(cluster.pooler_port), "postgres", database);
    let (mut one, mut other) = (open()?, open()?);
    one.query(&format!("SET client_encoding = '{encoding}'; LISTEN a"))?;
    other.query("SELECT pg_notify('a', 'heard')")?;
    ensure!(one.next(1)?[0].2 == "heard");
    Ok(())
}

#[test]
fn who_listens_without_a_conversion_holds_no_backend() -> Result<()> {
    let cluster = with_pool("relay_ascii", 1, &[])?;
    cluster
        .sql("CREATE DATABASE plain ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")?;
    share(&cluster, "postgres", "SQL_ASCII")?;
    share(&cluster, "plain", "UTF8")
}
