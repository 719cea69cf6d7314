//! What workers write down in their database, which no stream has: where streams are, what a slot may confirm, the tables of a snapshot, what
//! was made and what was no event. In a transaction of [`super::worker::write`]; the workers' main threads, and a scout's.

use super::catalog::{SourceRecord, lsn, utf8};
use super::functions::plain;
use crate::stream::engine::StreamReport;
use crate::stream::position::Lsn;
use crate::stream::source::Rejected;
use pgrx::prelude::*;
use pgrx::spi::SpiError;

/// A table of a snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct SnapshotTable {
    pub relation: u32,
    /// Its changes begin behind this.
    pub lsn: Lsn,
    pub delivered: bool,
}

/// The tables that a snapshot has begun.
///
/// # Errors
/// As SPI's.
pub(super) fn snapshot_tables(source: &str) -> Result<Vec<SnapshotTable>, SpiError> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT relation, lsn::text, delivered FROM postern.snapshot_tables WHERE source = convert_from($1, 'UTF8')",
            None,
            &[utf8(source)],
        )?;
        rows.map(|row| {
            let relation = row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid);
            Ok(SnapshotTable {
                relation: relation.to_u32(),
                lsn: lsn(&row, 2)?.unwrap_or_default(),
                delivered: row.get(3)?.unwrap_or(false),
            })
        })
        .collect()
    })
}

/// Before a table's rows are read: where the WAL is.
///
/// # Errors
/// As SPI's.
pub(super) fn begin_snapshot_table(source: &str, relation: u32) -> Result<(), SpiError> {
    Spi::run_with_args(
        "INSERT INTO postern.snapshot_tables (source, relation, lsn, delivered)
         VALUES (convert_from($1, 'UTF8'), $2, pg_catalog.pg_current_wal_insert_lsn(), false)",
        &[utf8(source), pg_sys::Oid::from(relation).into()],
    )
}

/// A table's rows have been delivered.
///
/// # Errors
/// As SPI's.
pub(super) fn end_snapshot_table(source: &str, relation: u32, lsn: Lsn) -> Result<(), SpiError> {
    Spi::run_with_args(
        "UPDATE postern.snapshot_tables SET lsn = $3::pg_lsn, delivered = true
         WHERE source = convert_from($1, 'UTF8') AND relation = $2",
        &[utf8(source), pg_sys::Oid::from(relation).into(), lsn.to_string().into()],
    )
}

/// A new slot's snapshot begins with the first table.
///
/// # Errors
/// As SPI's.
pub(super) fn forget_snapshot(source: &str) -> Result<(), SpiError> {
    Spi::run_with_args(
        "DELETE FROM postern.snapshot_tables WHERE source = convert_from($1, 'UTF8')",
        &[utf8(source)],
    )
}

/// Writes down what was made for a source.
///
/// # Errors
/// As SPI's.
pub(super) fn record_source(source: &str, record: &SourceRecord) -> Result<(), SpiError> {
    let arguments = [
        utf8(source),
        record.slot.as_str().into(),
        record.made_slot.into(),
        record.begins.to_string().into(),
        record.snapshot_done.into(),
        record.gap.as_ref().map(|gap| gap.as_bytes().to_vec()).into(),
        record.confirmed.map(|lsn| lsn.to_string()).into(),
    ];
    Spi::run_with_args(
        "INSERT INTO postern.source_states (source, slot, made_slot, begins, snapshot_done, gap, confirmed)
         VALUES (convert_from($1, 'UTF8'), $2, $3, $4::pg_lsn, $5, convert_from($6, 'UTF8'), $7::pg_lsn)
         ON CONFLICT (source) DO UPDATE
         SET slot = excluded.slot, made_slot = excluded.made_slot, begins = excluded.begins,
             snapshot_done = excluded.snapshot_done, gap = excluded.gap, confirmed = excluded.confirmed",
        &arguments,
    )
}

/// Writes down what the slot is about to confirm. False: an operator has set the position of a stream, so it may not. Nothing: somebody is
/// about to, or drops a stream, or the source is gone.
///
/// # Errors
/// As SPI's.
pub(super) fn record_confirmed(source: &str, rewound: i64, lsn: Lsn) -> Result<Option<bool>, SpiError> {
    Spi::connect_mut(|client| {
        // Whoever drops or rewinds streams goes on to lock their source: waiting for them here would be a deadlock.
        let free = client.update(
            "WITH its AS (SELECT name FROM postern.stream_definitions WHERE source = convert_from($1, 'UTF8'))
             SELECT (SELECT count(*) FROM its) = (
                    SELECT count(*) FROM (
                        SELECT FROM postern.stream_definitions WHERE source = convert_from($1, 'UTF8') FOR KEY SHARE SKIP LOCKED) d)
                AND (SELECT count(*) FROM postern.stream_positions JOIN its ON name = stream) = (
                    SELECT count(*) FROM (
                        SELECT FROM postern.stream_positions WHERE stream IN (SELECT name FROM its) FOR UPDATE SKIP LOCKED) p)",
            None,
            &[utf8(source)],
        )?;
        if free.into_iter().next().map_or(Ok(None), |row| row.get::<bool>(1))? != Some(true) {
            return Ok(None);
        }
        let locked = client.update(
            "SELECT rewound = $2 FROM postern.source_states WHERE source = convert_from($1, 'UTF8') FOR UPDATE SKIP LOCKED",
            None,
            &[utf8(source), rewound.into()],
        )?;
        let allowed = locked.into_iter().next().map_or(Ok(None), |row| row.get::<bool>(1))?;
        if allowed == Some(true) {
            client.update(
                "UPDATE postern.source_states SET confirmed = $2::pg_lsn WHERE source = convert_from($1, 'UTF8')",
                None,
                &[utf8(source), lsn.to_string().into()],
            )?;
        }
        Ok(allowed)
    })
}

/// A publication was made for a source, in this transaction: it goes with it.
///
/// # Errors
/// As SPI's.
pub(super) fn record_publication(source: &str, publication: &str) -> Result<(), SpiError> {
    Spi::run_with_args(
        "INSERT INTO postern.made_publications (publication, owner, source)
         SELECT oid, pubowner, convert_from($1, 'UTF8') FROM pg_catalog.pg_publication WHERE pubname = convert_from($2, 'UTF8')",
        &[utf8(source), utf8(publication)],
    )
}

/// Keeps a message that was no event.
///
/// # Errors
/// As SPI's.
pub(super) fn keep_aside(source: &str, rejected: &Rejected) -> Result<(), SpiError> {
    Spi::run_with_args(
        "INSERT INTO postern.rejected_messages (source, topic, partition, message_offset, key, payload, reason)
         VALUES (convert_from($1, 'UTF8'), $2, $3, $4, $5, $6, $7)",
        &[
            utf8(source),
            plain(rejected.place.topic.to_string()).into(),
            rejected.place.partition.into(),
            rejected.place.offset.into(),
            rejected.key.as_deref().into(),
            rejected.payload.as_slice().into(),
            plain(rejected.why.clone()).into(),
        ],
    )
}

/// Bytes of a row of a message that was no event, beside key and payload.
const ROW: u64 = 100;

/// Bytes that a message takes that is kept aside, roughly.
pub(super) fn bytes_aside(rejected: &Rejected) -> u64 {
    ROW + rejected.key.as_ref().map_or(0, Vec::len) as u64 + rejected.payload.len() as u64
}

/// [`bytes_aside`] of all that is kept of a source.
///
/// # Errors
/// As SPI's.
pub(super) fn kept_aside(source: &str) -> Result<u64, SpiError> {
    let sql = "SELECT coalesce(sum($2 + coalesce(octet_length(key), 0) + coalesce(octet_length(payload), 0)), 0)::bigint
         FROM postern.rejected_messages WHERE source = convert_from($1, 'UTF8')";
    // One that only reads takes no transaction ID.
    let bytes = Spi::connect(|client| {
        client.select(sql, None, &[utf8(source), (ROW as i64).into()])?.first().get_one::<i64>()
    })?;
    Ok(bytes.map_or(0, i64::cast_unsigned))
}

/// Writes down where a stream is, unless an operator has set its position meanwhile or it is gone.
///
/// # Errors
/// As SPI's.
pub(super) fn record_position(stream: &str, rewound: i64, report: &StreamReport) -> Result<(), SpiError> {
    let whole = report.position.ordinal == u64::MAX;
    let arguments = [
        utf8(stream),
        report.position.commit.to_string().into(),
        (!whole).then_some(report.position.ordinal as i64).into(),
        report.delivered.to_string().into(),
        rewound.into(),
    ];
    Spi::run_with_args(
        "INSERT INTO postern.stream_positions AS p (stream, commit_lsn, ordinal, delivered_lsn, rewound)
         SELECT d.name, $2::pg_lsn, $3, $4::pg_lsn, $5 FROM postern.stream_definitions d WHERE d.name = convert_from($1, 'UTF8')
         ON CONFLICT (stream) DO UPDATE
         SET commit_lsn = excluded.commit_lsn, ordinal = excluded.ordinal, delivered_lsn = excluded.delivered_lsn,
             recorded_at = now()
         WHERE p.rewound = excluded.rewound",
        &arguments,
    )
}
