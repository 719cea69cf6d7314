//! Notifications to clients whose encoding is another than the database's: only a backend can convert them.

use crate::pooling::with_pool;
use crate::relay::Client;
use anyhow::{Result, ensure};
use pgrx_tests::script::connection::Target;
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
