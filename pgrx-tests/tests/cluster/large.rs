//! What is large passes whole, and neither the front nor what it buffers grows with it: a row, a COPY, plain and over TLS.

use crate::tls::Secured;
use anyhow::{Result, ensure};
use pgrx_tests::script::Target;
use pgrx_tests::script::connection::{Connection, Received};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{process, wait};
use std::path::Path;
use std::time::Duration;

const LARGE: usize = 256 << 20;
const LINE: usize = 1 << 20;

/// How long a large message may take on its way.
const PATIENCE: Duration = Duration::from_secs(25);

/// The most that the front may have more than before, in kB.
const MORE: u64 = 8 << 10;

fn next(client: &mut Connection) -> Result<(u8, Vec<u8>)> {
    match client.receive(PATIENCE)? {
        Received::Message { tag: b'E', body } => {
            anyhow::bail!("{}", String::from_utf8_lossy(&body).replace('\0', " "))
        }
        Received::Message { tag, body } => Ok((tag, body)),
        other => anyhow::bail!("{other:?}"),
    }
}

fn until(client: &mut Connection, wanted: u8) -> Result<Vec<u8>> {
    loop {
        if let (tag, body) = next(client)?
            && tag == wanted
        {
            return Ok(body);
        }
    }
}

fn open(target: &Target) -> Result<Connection> {
    let mut client = Connection::open(target)?;
    let parameters = ["user", "database"].map(|name| (name.as_bytes().to_vec(), b"postgres".to_vec()));
    client.send(&Message::startup((3, 0), &parameters).bytes, None);
    until(&mut client, b'Z')?;
    Ok(client)
}

#[test]
fn a_row_and_a_copy_of_a_quarter_gigabyte_pass_and_the_front_does_not_grow() -> Result<()> {
    let secured = Secured::start("quarter")?;
    let cluster = &secured.cluster;
    cluster.set_hba("local all all trust\nhost all all all trust\n")?;
    cluster.reload()?;
    cluster.sql("create unlogged table lines (line text)")?;
    let mut watcher = cluster.connect()?;
    let authority = secured.file("ca.crt");
    for target in [Target::tcp(cluster.pooler_port), Target::tls(cluster.pooler_port, Path::new(&authority))]
    {
        let mut client = wait::for_value("a client gets in", || open(&target))?;
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
        let row = until(&mut client, b'D')?;
        grown("a row")?;
        ensure!(row.len() == LARGE + 6 && row[6..].iter().all(|byte| *byte == b'r'), "{} bytes", row.len());
        drop(row);
        until(&mut client, b'Z')?;

        client.send(&Message::query(b"copy lines from stdin").bytes, None);
        until(&mut client, b'G')?;
        let line = Message::copy_data(&[&vec![b'c'; LINE - 1][..], b"\n"].concat()).bytes;
        for number in 0..LARGE / LINE {
            client.send(&line, None);
            if number % 32 == 0 {
                grown("COPY from a client")?;
            }
        }
        client.send(&Message::copy_done().bytes, None);
        ensure!(until(&mut client, b'C')? == format!("COPY {}\0", LARGE / LINE).as_bytes());
        grown("COPY from a client")?;
        until(&mut client, b'Z')?;
        let seen = cluster.sql(
            "select count(*), min(length(line)), max(length(line)), min(md5(line)) = max(md5(line)), \
             max(line) = repeat('c', 1048575) from lines",
        )?;
        ensure!(seen == "256|1048575|1048575|t|t", "{seen}");
        cluster.sql("truncate lines")?;
    }
    Ok(())
}
