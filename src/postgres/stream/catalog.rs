//! The definitions of one database's streams and where they are, as its tables have them. In a transaction, with a snapshot; the scout's and
//! the workers' main threads.

use crate::stream::engine::StreamReport;
use crate::stream::position::{Lsn, Position};
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

/// The version of this database's SQL.
pub(super) fn version() -> Option<String> {
    let found = Spi::get_one("SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'postern'");
    found.ok().flatten()
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

pub(super) fn lsn(row: &SpiHeapTupleData<'_>, column: usize) -> Result<Option<Lsn>, SpiError> {
    Ok(row.get::<String>(column)?.and_then(|text| text.parse().ok()))
}

fn object(row: &SpiHeapTupleData<'_>, column: usize) -> Result<Map<String, Value>, SpiError> {
    let text = text(row, column)?.unwrap_or_default();
    Ok(match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    })
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
