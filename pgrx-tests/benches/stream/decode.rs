//! Decoding and encoding, with nothing at the other end, beside `pg_recvlogical -f /dev/null`, which does not encode.

use super::{Bench, Kind, Wal, alternate, show};
use anyhow::{Result, ensure};
use std::process::Stdio;
use std::time::Instant;

/// Bytes of a note: a row has 130 then.
const NOTE: usize = 60;

/// Rows of a transaction that updates.
const UPDATES: u64 = 100;

pub fn run(bench: &Bench) -> Result<()> {
    let inserts = bench.options.rows.iter().map(|rows| (Kind::Insert, *rows));
    for (kind, rows) in inserts.chain([(Kind::Update, UPDATES)]) {
        let wal = bench.write(kind, bench.options.changes, rows, NOTE)?;
        let mut size = 0.0;
        let ours = || {
            let (rate, bytes) = bench.streamed(&wal, "stub_discard", "{}")?;
            size = bytes;
            Ok(rate)
        };
        let (ours, theirs) = alternate(bench.options.rounds, ours, || received(bench, &wal))?;
        let what = format!("{kind:?}, transactions of {rows}, events of {size:.0} bytes");
        show(&what, &ours, "pg_recvlogical", &theirs);
        bench.forget()?;
    }
    Ok(())
}

/// Changes a second of pg_recvlogical, from the start of the program to its end.
fn received(bench: &Bench, wal: &Wal) -> Result<f64> {
    bench.copy_slot("theirs")?;
    let mut command = bench.server.program("pg_recvlogical");
    command.arg("-h").arg(bench.server.socket_directory()).args(["-p", &bench.server.port.to_string()]);
    command.args(["-U", "postgres", "-d", "postgres", "-S", "theirs", "--start", "--no-loop"]);
    command.args(["-o", "proto_version=1", "-o", "publication_names=bench"]);
    command.args(["--endpos", &wal.end, "-f", "/dev/null"]).stdin(Stdio::null());
    let began = Instant::now();
    let status = command.status()?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(status.success(), "pg_recvlogical: {status}");
    bench.drop_slot("theirs")?;
    Ok(wal.changes as f64 / seconds)
}
