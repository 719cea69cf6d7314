//! What is there before a stream begins: each table of the publication is read once, under a snapshot whose place in the WAL is known, and
//! its rows go to the engine as inserts. Changes of a table up to its snapshot are left out afterwards. A table that is delivered is
//! written down, so what is interrupted goes on with the next one. A stream worker's main thread.

use super::catalog::{self, Wanted};
use super::decoding::{self, quoted};
use super::prepare::record_source;
use super::records::{self, SnapshotTable};
use super::work::Work;
use super::worker::{BUSY, wait, write};
use crate::stream::buffer::Record;
use crate::stream::position::Lsn;
use crate::stream::shared::SourceState;
use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use pgrx::spi::SpiError;
use std::panic::AssertUnwindSafe;

/// The schema of the extension, whose tables a publication for all tables has too: they are nobody's changes.
const OWN_SCHEMA: &str = "postern";

/// A table of a publication.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub oid: u32,
    /// This and the other names: in the encoding of what is decoded.
    pub schema: Vec<u8>,
    pub name: Vec<u8>,
    /// `pg_class.relreplident`.
    identity: u8,
    /// It has its rows in partitions, which are not read by themselves.
    partitioned: bool,
    columns: Vec<Column>,
    /// The publication's WHERE.
    filter: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Column {
    name: Vec<u8>,
    type_oid: u32,
    modifier: i32,
    key: bool,
}

/// The tables of a publication, in the order of their names. In a transaction, with a snapshot.
///
/// # Errors
/// As SPI's.
pub(super) fn tables(publication: &str) -> Result<Vec<Table>, SpiError> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT c.oid, convert_to(p.schemaname::text, pg_client_encoding()), convert_to(p.tablename::text, pg_client_encoding()),
                    c.relreplident::text || c.relkind::text, convert_to(p.rowfilter, pg_client_encoding()),
                    convert_to(a.attname::text, pg_client_encoding()), a.atttypid, a.atttypmod,
                    c.relreplident = 'f' OR coalesce(a.attnum = ANY (i.indkey), false)
             FROM pg_catalog.pg_publication_tables p
             JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = ANY (p.attnames)
             LEFT JOIN pg_catalog.pg_index i
                ON i.indrelid = c.oid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END
             WHERE p.pubname = convert_from($1, 'UTF8') AND p.schemaname <> $2
             ORDER BY p.schemaname, p.tablename, a.attnum",
            None,
            &[catalog::utf8(publication), OWN_SCHEMA.into()],
        )?;
        let mut tables: Vec<Table> = Vec::new();
        for row in rows {
            let oid = row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid).to_u32();
            if tables.last().is_none_or(|table| table.oid != oid) {
                let identity: String = row.get(4)?.unwrap_or_default();
                tables.push(Table {
                    oid,
                    schema: row.get(2)?.unwrap_or_default(),
                    name: row.get(3)?.unwrap_or_default(),
                    identity: identity.bytes().next().unwrap_or(b'd'),
                    partitioned: identity.ends_with('p'),
                    columns: Vec::new(),
                    filter: row.get(5)?,
                });
            }
            let column = Column {
                name: row.get(6)?.unwrap_or_default(),
                type_oid: row.get::<pg_sys::Oid>(7)?.unwrap_or(pg_sys::InvalidOid).to_u32(),
                modifier: row.get(8)?.unwrap_or(-1),
                key: row.get(9)?.unwrap_or(false),
            };
            if let Some(table) = tables.last_mut() {
                table.columns.push(column);
            }
        }
        Ok(tables)
    })
}

impl Table {
    fn query(&self) -> Vec<u8> {
        let columns: Vec<_> = self.columns.iter().map(|column| quoted(&column.name)).collect();
        // Who inherits is a table of its own.
        let only: &[u8] = if self.partitioned { b"" } else { b"ONLY " };
        let (schema, name) = (quoted(&self.schema), quoted(&self.name));
        let mut query =
            [b"SELECT ", &columns.join(&b", "[..])[..], b" FROM ", only, &schema, b".", &name].concat();
        if let Some(filter) = &self.filter {
            query.extend_from_slice(b" WHERE ");
            query.extend_from_slice(filter);
        }
        query
    }

    /// As pgoutput describes it: PostgreSQL's documentation, "Logical Replication Message Formats", Relation.
    fn description(&self) -> Vec<u8> {
        let mut out = vec![b'R'];
        out.extend_from_slice(&self.oid.to_be_bytes());
        for name in [&self.schema, &self.name] {
            out.extend_from_slice(name);
            out.push(0);
        }
        out.push(self.identity);
        out.extend_from_slice(&(self.columns.len() as u16).to_be_bytes());
        for column in &self.columns {
            out.push(u8::from(column.key));
            out.extend_from_slice(&column.name);
            out.push(0);
            out.extend_from_slice(&column.type_oid.to_be_bytes());
            out.extend_from_slice(&column.modifier.to_be_bytes());
        }
        out
    }

    /// As pgoutput writes it: Insert.
    fn row(&self, values: &[Option<&[u8]>], out: &mut Vec<u8>) {
        out.clear();
        out.push(b'I');
        out.extend_from_slice(&self.oid.to_be_bytes());
        out.push(b'N');
        out.extend_from_slice(&(values.len() as u16).to_be_bytes());
        for value in values {
            match value {
                None => out.push(b'n'),
                Some(value) => {
                    out.push(b't');
                    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
                    out.extend_from_slice(value);
                }
            }
        }
    }

    /// Reads the table; `slot` is a name that no slot has. `begin` hears where the snapshot is before `message` hears the table's
    /// description and its rows. Outside a transaction. An error of the server's passes through.
    pub fn copy(&self, slot: &str, begin: impl FnOnce(Lsn), mut message: impl FnMut(&[u8])) -> Lsn {
        // SAFETY: at the top of a worker, outside a transaction; the snapshot is the transaction's own, taken by the slot.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            let lsn = decoding::take_snapshot(slot);
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            begin(lsn);
            for column in &self.columns {
                decoding::tell_type(column.type_oid);
            }
            message(&self.description());
            let mut out = Vec::new();
            Spi::connect(|_| {
                decoding::copy_rows(self.query(), |values| {
                    self.row(values, &mut out);
                    message(&out);
                });
            });
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
            decoding::drop_slot(slot);
            lsn
        }
    }
}

impl Work {
    /// Delivers what is there already, if that is wanted and not done.
    pub(super) fn snapshot(&mut self) -> Result<(), String> {
        let source = self.definition.name.clone();
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error| format!("could not {what} its snapshot's tables: {error}")
        };
        let load = || records::snapshot_tables(&source);
        let mut done = BackgroundWorker::transaction(AssertUnwindSafe(load)).map_err(failed("read"))?;
        if !self.prepared.record.snapshot_done {
            self.source.set_state(SourceState::Snapshot);
            if self.definition.streams.iter().any(|stream| stream.state != Wanted::Running) {
                // Whoever is away would lack the rows, and the changes that are in them.
                self.source.error.say("the snapshot begins when all streams of the source are to run");
                while !self.look() {
                    wait(1_000);
                }
                return Ok(());
            }
            let publication = self.prepared.publication.clone();
            let find = || tables(&publication);
            let tables = BackgroundWorker::transaction(AssertUnwindSafe(find)).map_err(failed("find"))?;
            let begun = self.engines.report().snapshots;
            let mut copied = 0;
            for table in tables {
                let known = done.iter().position(|one| one.relation == table.oid);
                if known.is_some_and(|index| done[index].delivered) {
                    continue;
                }
                log!(
                    "postern: source \"{source}\": snapshot of table \"{}\".\"{}\"",
                    String::from_utf8_lossy(&table.schema),
                    String::from_utf8_lossy(&table.name)
                );
                if known.is_none() {
                    write(|| records::begin_snapshot_table(&source, table.oid))
                        .map_err(failed("write down"))?;
                }
                let seen = self.copy(&table);
                // Some of its rows may have come before: what has happened to them since is told too.
                let lsn = known.map_or(seen, |index| done[index].lsn);
                copied += 1;
                if !self.wait_for_snapshots(begun + copied) {
                    return Ok(());
                }
                write(|| records::end_snapshot_table(&source, table.oid, lsn))
                    .map_err(failed("write down"))?;
                done.retain(|one| one.relation != table.oid);
                done.push(SnapshotTable { relation: table.oid, lsn, delivered: true });
            }
            self.prepared.record.snapshot_done = true;
            record_source(&source, &self.prepared.record)
                .map_err(|_| "could not write down its snapshot".to_owned())?;
            log!("postern: source \"{source}\": the snapshot is delivered");
        }
        let mut intake = self.intake.borrow_mut();
        for SnapshotTable { relation, lsn, .. } in done {
            intake.push(&Record::Floor { relation, lsn });
        }
        Ok(())
    }

    /// Waits until so many tables are delivered to every stream; false when it is over before. A stream whose sink has failed holds it up
    /// until that is made again, or somebody sees to it.
    fn wait_for_snapshots(&self, tables: u64) -> bool {
        while !self.look() {
            let report = self.engines.report();
            if report.snapshots >= tables && !report.lost_one {
                return true;
            }
            wait(BUSY);
        }
        false
    }

    fn copy(&self, table: &Table) -> Lsn {
        // No other process makes one of this name.
        let slot = format!("postern_snapshot_{}", std::process::id());
        let intake = &self.intake;
        let lsn = table.copy(
            &slot,
            |lsn| intake.borrow_mut().push(&Record::Snapshot { lsn }),
            |message| intake.borrow_mut().push(&Record::Message { lsn: Lsn(0), data: message }),
        );
        let mut intake = self.intake.borrow_mut();
        intake.push(&Record::Commit { commit_end: lsn });
        intake.hand_over();
        lsn
    }
}
