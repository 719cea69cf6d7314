//! What is large passes whole, and neither the front nor what it buffers grows with it: a row, a COPY, plain and over TLS.

use crate::tls::Secured;
use anyhow::{Result, ensure};
use pgrx_tests::script::Target;
use pgrx_tests::script::connection::Connection;
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{lacking, process, wait};
use std::path::Path;
use std::time::Duration;

const LARGE: usize = 256 << 20;
const LINE: usize = 1 << 20;

/// How long a large message may take on its way.
const PATIENCE: Duration = Duration::from_secs(25);

/// The most that the front may have more than before, in kB.
const MORE: u64 = 8 << 10;

#[test]
fn a_row_and_a_copy_of_a_quarter_gigabyte_pass_and_the_front_does_not_grow() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("quarter")?;
    let cluster = &secured.cluster;
    cluster.set_hba("local all all trust\nhost all all all trust\n")?;
    cluster.reload()?;
    cluster.sql("create unlogged table lines (line text)")?;
    let mut watcher = cluster.connect()?;
    let authority = secured.file("ca.crt");
    for target in [Target::tcp(cluster.pooler_port), Target::tls(cluster.pooler_port, Path::new(&authority))]
    {
        let mut client = wait::for_value("a client gets in", || Connection::log_in(&target))?;
        let front = cluster.front_pid()?;
        let before = process::resident(front)?;
        let grown = |what: &str| -> Result<()> {
            let now = process::resident(front)?;
            ensure!(now < before + MORE, "{target:?}, {what}: the front has grown from {before} to {now} kB");
            Ok(())
        };
        let sql = format!("select repeat('r', {LARGE})");
        client.send(&Message::query(sql.as_bytes()).bytes, None);
        // Nobody reads yet: what is on its way stays where it is made.
        let blocked = "select count(*) from pg_stat_activity where query = $1 and wait_event = 'ClientWrite'";
        wait::until("the backend waits for its client", || {
            watcher.query_one(blocked, &[&sql]).is_ok_and(|row| row.get::<_, i64>(0) == 1)
        })?;
        grown("a row that is not read")?;
        let row = client.until(b'D', PATIENCE)?;
        grown("a row")?;
        ensure!(row.len() == LARGE + 6 && row[6..].iter().all(|byte| *byte == b'r'), "{} bytes", row.len());
        drop(row);
        client.until(b'Z', PATIENCE)?;

        client.send(&Message::query(b"copy lines from stdin").bytes, None);
        client.until(b'G', PATIENCE)?;
        let line = Message::copy_data(&[&vec![b'c'; LINE - 1][..], b"\n"].concat()).bytes;
        for number in 0..LARGE / LINE {
            client.send(&line, None);
            if number % 32 == 0 {
                grown("COPY from a client")?;
            }
        }
        client.send(&Message::copy_done().bytes, None);
        ensure!(client.until(b'C', PATIENCE)? == format!("COPY {}\0", LARGE / LINE).as_bytes());
        grown("COPY from a client")?;
        client.until(b'Z', PATIENCE)?;
        let seen = cluster.sql(
            "select count(*), min(length(line)), max(length(line)), min(md5(line)) = max(md5(line)), \
             max(line) = repeat('c', 1048575) from lines",
        )?;
        ensure!(seen == "256|1048575|1048575|t|t", "{seen}");
        cluster.sql("truncate lines")?;
    }
    Ok(())
}
