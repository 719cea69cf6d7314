//! The definitions and positions of one database's streams, as its tables have them. In a transaction, with a snapshot; the scout's and the
//! workers' main threads.

use super::decoding;
use super::functions::plain;
use crate::stream::engine::StreamReport;
use crate::stream::position::{Lsn, Position};
use crate::stream::source::Rejected;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiError, SpiHeapTupleData};
use serde_json::{Map, Value};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A source with its streams.
#[derive(Debug, Clone)]
pub(super) struct SourceDefinition {
    pub name: String,
    pub kind: String,
    pub options: Map<String, Value>,
    pub streams: Vec<StreamDefinition>,
    pub state: Option<SourceRecord>,
    /// Differs when a worker has to begin anew.
    pub digest: u64,
}

impl SourceDefinition {
    /// Whether any of its streams is to run.
    pub fn runs(&self) -> bool {
        self.streams.iter().any(|stream| stream.state == Wanted::Running)
    }
}

/// What an operator wants of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    Running,
    Paused,
    Stopped,
}

/// A stream of a source.
#[derive(Debug, Clone)]
pub(super) struct StreamDefinition {
    pub name: String,
    pub sink: String,
    pub kind: String,
    pub options: Map<String, Value>,
    pub state: Wanted,
    /// How often an operator has set its position.
    pub rewound: i64,
    /// Where it is; nothing before it has been anywhere.
    pub position: Option<StreamReport>,
}

/// What Postern has made for a source.
#[derive(Debug, Clone)]
pub(super) struct SourceRecord {
    pub slot: String,
    pub made_slot: bool,
    pub begins: Lsn,
    pub snapshot_done: bool,
    pub gap: Option<String>,
    /// What its slot may have confirmed, and not more.
    pub confirmed: Option<Lsn>,
    /// How often an operator has set the position of one of its streams.
    pub rewound: i64,
}

/// Whether this database has the tables, and they are the extension's: what else has their names is somebody's who wants to be read by a
/// superuser.
pub(super) fn is_here() -> bool {
    let found = Spi::get_one::<bool>(
        "SELECT count(*) = 4
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'postern'
         JOIN pg_catalog.pg_depend d
            ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e'
         JOIN pg_catalog.pg_extension e
            ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid AND e.extname = 'postern'
         WHERE c.relkind = 'r'
            AND c.relname IN ('source_definitions', 'sink_definitions', 'stream_definitions', 'stream_positions')",
    );
    matches!(found, Ok(Some(true)))
}

/// Slots of this database that Postern made and that no source has any more.
///
/// # Errors
/// As SPI's.
pub(super) fn orphans(prefix: &str) -> Result<Vec<String>, SpiError> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT r.slot_name::text FROM pg_catalog.pg_replication_slots r
             WHERE r.database = pg_catalog.current_database() AND NOT r.active AND NOT r.temporary AND r.plugin = 'pgoutput'
                AND pg_catalog.starts_with(r.slot_name::text, $1)
                AND NOT EXISTS (SELECT FROM postern.source_states s WHERE s.slot = r.slot_name)",
            None,
            &[prefix.into()],
        )?;
        rows.map(|row| Ok(row.get::<String>(1)?.unwrap_or_default())).collect()
    })
}

/// Every source.
///
/// # Errors
/// As SPI's.
pub(super) fn load() -> Result<Vec<SourceDefinition>, SpiError> {
    Spi::connect(|client| {
        let sources = client.select(
            "SELECT convert_to(d.name, 'UTF8'), convert_to(d.kind, 'UTF8'), convert_to(d.options::text, 'UTF8'), s.slot::text, s.made_slot,
                    s.begins::text, s.snapshot_done, convert_to(s.gap, 'UTF8'), s.confirmed::text, s.rewound
             FROM postern.source_definitions d LEFT JOIN postern.source_states s ON s.source = d.name ORDER BY d.name",
            None,
            &[],
        )?;
        let mut found = Vec::new();
        for row in sources {
            let slot: Option<String> = row.get(4)?;
            let state = match slot {
                Some(slot) => Some(SourceRecord {
                    slot,
                    made_slot: row.get(5)?.unwrap_or(false),
                    begins: lsn(&row, 6)?.unwrap_or_default(),
                    snapshot_done: row.get(7)?.unwrap_or(false),
                    gap: text(&row, 8)?,
                    confirmed: lsn(&row, 9)?,
                    rewound: row.get(10)?.unwrap_or_default(),
                }),
                None => None,
            };
            found.push(SourceDefinition {
                name: text(&row, 1)?.unwrap_or_default(),
                kind: text(&row, 2)?.unwrap_or_default(),
                options: object(&row, 3)?,
                streams: Vec::new(),
                state,
                digest: 0,
            });
        }
        let streams = client.select(
            "SELECT convert_to(d.source, 'UTF8'), convert_to(d.name, 'UTF8'), convert_to(d.sink, 'UTF8'), convert_to(k.kind, 'UTF8'),
                    convert_to(k.options::text, 'UTF8'), coalesce(w.state, 'stopped'), coalesce(w.started, 0),
                    p.commit_lsn::text, p.ordinal, p.delivered_lsn::text, coalesce(p.rewound, 0)
             FROM postern.stream_definitions d
             JOIN postern.sink_definitions k ON k.name = d.sink
             LEFT JOIN postern.stream_states w ON w.stream = d.name
             LEFT JOIN postern.stream_positions p ON p.stream = d.name
             ORDER BY d.name",
            None,
            &[],
        )?;
        for row in streams {
            let source = text(&row, 1)?.unwrap_or_default();
            let Some(source) = found.iter_mut().find(|one| one.name == source) else { continue };
            let state: String = row.get(6)?.unwrap_or_default();
            let started: i64 = row.get(7)?.unwrap_or_default();
            let position = match (lsn(&row, 8)?, lsn(&row, 10)?) {
                (Some(commit), Some(delivered)) => {
                    let ordinal = row.get::<i64>(9)?.map_or(u64::MAX, |ordinal| ordinal as u64);
                    Some(StreamReport { position: Position { commit, ordinal }, delivered })
                }
                _ => None,
            };
            let stream = StreamDefinition {
                name: text(&row, 2)?.unwrap_or_default(),
                sink: text(&row, 3)?.unwrap_or_default(),
                kind: text(&row, 4)?.unwrap_or_default(),
                options: object(&row, 5)?,
                state: match &state[..] {
                    "running" => Wanted::Running,
                    "paused" => Wanted::Paused,
                    _ => Wanted::Stopped,
                },
                rewound: row.get(11)?.unwrap_or_default(),
                position,
            };
            source.digest = {
                let mut hasher = DefaultHasher::new();
                (
                    source.digest,
                    &stream.name,
                    &stream.sink,
                    &stream.kind,
                    stream.state,
                    stream.rewound,
                    started,
                )
                    .hash(&mut hasher);
                Value::Object(stream.options.clone()).to_string().hash(&mut hasher);
                hasher.finish()
            };
            source.streams.push(stream);
        }
        for source in &mut found {
            let mut hasher = DefaultHasher::new();
            (source.digest, &source.kind).hash(&mut hasher);
            Value::Object(source.options.clone()).to_string().hash(&mut hasher);
            source.digest = hasher.finish();
        }
        Ok(found)
    })
}

/// A text in the database's encoding, which the query has as `convert_to(…, 'UTF8')`.
fn text(row: &SpiHeapTupleData<'_>, column: usize) -> Result<Option<String>, SpiError> {
    Ok(row.get::<Vec<u8>>(column)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// A text for a query that has it as `convert_from(…, 'UTF8')`.
pub(super) fn utf8(text: &str) -> DatumWithOid<'static> {
    text.as_bytes().to_vec().into()
}

fn lsn(row: &SpiHeapTupleData<'_>, column: usize) -> Result<Option<Lsn>, SpiError> {
    Ok(row.get::<String>(column)?.and_then(|text| text.parse().ok()))
}

fn object(row: &SpiHeapTupleData<'_>, column: usize) -> Result<Map<String, Value>, SpiError> {
    let text = text(row, column)?.unwrap_or_default();
    Ok(match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    })
}

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
    decoding::hide_transaction(true);
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
    decoding::hide_transaction(true);
    Spi::run_with_args(
        "UPDATE postern.snapshot_tables SET lsn = $3::pg_lsn, delivered = true
         WHERE source = convert_from($1, 'UTF8') AND relation = $2",
        &[utf8(source), pg_sys::Oid::from(relation).into(), lsn.to_string().into()],
    )
}

/// Another source that has this slot.
///
/// # Errors
/// As SPI's.
pub(super) fn owner_of_slot(slot: &str, source: &str) -> Result<Option<String>, SpiError> {
    Spi::connect(|client| {
        let mut rows = client.select(
            "SELECT convert_to(source, 'UTF8') FROM postern.source_states
             WHERE slot = $1::name AND source <> convert_from($2, 'UTF8')",
            None,
            &[slot.into(), utf8(source)],
        )?;
        rows.next().map_or(Ok(None), |row| text(&row, 1))
    })
}

/// A new slot's snapshot begins with the first table.
///
/// # Errors
/// As SPI's.
pub(super) fn forget_snapshot(source: &str) -> Result<(), SpiError> {
    decoding::hide_transaction(true);
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
    decoding::hide_transaction(true);
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
    decoding::hide_transaction(true);
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

/// Whether there is such a publication.
///
/// # Errors
/// As SPI's.
pub(super) fn is_published(publication: &str) -> Result<bool, SpiError> {
    let found = Spi::get_one_with_args::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = convert_from($1, 'UTF8'))",
        &[utf8(publication)],
    )?;
    Ok(found == Some(true))
}

/// A publication was made for a source, in this transaction: it goes with it.
///
/// # Errors
/// As SPI's.
pub(super) fn record_publication(source: &str, publication: &str) -> Result<(), SpiError> {
    decoding::hide_transaction(true);
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
    decoding::hide_transaction(true);
    Spi::run_with_args(
        "INSERT INTO postern.rejected_messages (source, topic, partition, message_offset, key, payload, reason)
         VALUES (convert_from($1, 'UTF8'), $2, $3, $4, $5, $6, $7)",
        &[
            utf8(source),
            plain(rejected.place.topic.to_string()).into(),
            rejected.place.partition.into(),
            rejected.place.offset.into(),
            rejected.key.clone().into(),
            rejected.payload.clone().into(),
            plain(rejected.why.clone()).into(),
        ],
    )
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
    decoding::hide_transaction(true);
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
