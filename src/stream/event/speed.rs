//! How many events one core writes: `cargo test --release --lib --package postern events_a_second -- --ignored --nocapture`.

use super::*;
use crate::stream::pgoutput::Column::{Null, Text};
use crate::stream::pgoutput::written;
use crate::stream::types::Types;
use std::hint::black_box;
use std::time::Instant;

#[test]
#[ignore = "a measurement; of use in a release build only"]
fn events_a_second() {
    let columns = [
        (true, "id", 20),
        (false, "customer", 23),
        (false, "total", 1700),
        (false, "note", 25),
        (false, "paid", 16),
        (false, "placed", 1184),
        (false, "address", 25),
        (false, "tags", 1009),
    ];
    let bytes = written::relation(5, "public", "orders", b'd', &columns);
    let Ok(Message::Relation(message)) = Message::parse(&bytes) else { panic!() };
    let relation = Relation::new(&message, &Types::default());
    let placed = Text(b"2026-01-02 01:04:05.678901+00");
    let note = Text(b"a note of a usual length, with a \"quotation\" in it");
    let row = [
        Text(b"9007199254740993"),
        Text(b"4711"),
        Text(b"12.50"),
        note,
        Text(b"t"),
        placed,
        Text("Straße 1, 12345 Öd".as_bytes()),
        Text(b"{new,\"from abroad\"}"),
    ];
    let small = [Text(b"1"), Text(b"2"), Text(b"12.50"), Text(b"note"), Text(b"t"), placed, Null, Null];
    let key = [Text(b"1"), Null, Null, Null, Null, Null, Null, Null];
    let changes = [
        ("insert", written::insert(5, &row)),
        ("small insert", written::insert(5, &small)),
        ("update", written::update(5, Some((b'K', &key)), &row)),
        ("delete", written::delete(5, b'K', &key)),
    ];
    let plain = EventOptions {
        host: "127.0.0.1".into(),
        database: "shop".into(),
        schema: false,
        commit_lsn: false,
        ordinal: false,
        xid: false,
        commit_timestamp: false,
        old: false,
        unchanged: None,
        truncate: false,
        transactions: false,
        messages: false,
        key: KeyForm::PrimaryKey,
    };
    let everything = EventOptions {
        schema: true,
        commit_lsn: true,
        ordinal: true,
        xid: true,
        commit_timestamp: true,
        old: true,
        ..plain.clone()
    };
    for (fields, options) in [("plain", plain), ("all fields", everything)] {
        for (name, bytes) in &changes {
            let mut encoder = Encoder::new(options.clone(), 1);
            let (mut out, mut size) = (Encoded::default(), 0);
            let transaction = Transaction { xid: 731, commit_end: Lsn(1 << 36), commit_time_micros: 1 << 49 };
            let (rounds, start) = (1_000_000u64, Instant::now());
            for ordinal in 1..=rounds {
                let message = Message::parse(black_box(bytes)).unwrap();
                let (lsn, now) = (Lsn(26_594_424 + ordinal * 100), SystemTime::now());
                encoder.encode(&message, Some(&relation), lsn, &transaction, ordinal, now, &mut out).unwrap();
                size += black_box(&out).payload.len() + out.key.len();
            }
            let rate = rounds as f64 / start.elapsed().as_secs_f64() / 1e6;
            println!("{fields:>10} {name:>12}: {rate:.2} million a second of {} bytes", size as u64 / rounds);
        }
    }
}
