//! What decoding begins with: the publication and the slot, made where they are missing, and what is said when the slot is lost. A stream
//! worker's main thread.

use super::catalog::{self, SourceDefinition, SourceRecord};
use super::decoding::{self, Slot, quoted};
use super::records;
use super::worker::{End, write};
use crate::stream::definition::{LostSlot, PostgresSource};
use crate::stream::gap;
use crate::stream::position::Lsn;
use crate::stream::shared::Source;
use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use pgrx::spi::SpiError;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::*;

/// What decoding begins with.
pub(super) struct Prepared {
    pub record: SourceRecord,
    pub publication: String,
}

/// Makes what is missing: the publication, then the slot, in this order, or the decoder would not know the publication.
pub(super) fn prepare(
    source: &'static Source,
    definition: &SourceDefinition,
    options: &PostgresSource,
) -> Result<Prepared, End> {
    if let Some(low) = decoding::low_wal_level() {
        return Err(End::Failed(format!("wal_level is {low}: set it to logical and restart the server")));
    }
    let publication = options.publication_name(&definition.name);
    let made = write(|| make_publication(&definition.name, &publication, options));
    match made {
        Ok(true) => log!("postern: made publication \"{publication}\" for source \"{}\"", definition.name),
        Ok(false) => {}
        Err(error) => {
            return Err(End::Failed(format!("could not make publication \"{publication}\": {error}")));
        }
    }
    let database = source.database.load(Relaxed);
    let slot = match &definition.state {
        Some(state) if options.slot.as_ref().is_none_or(|slot| *slot == state.slot) => state.slot.clone(),
        _ => options.slot_name(&definition.name, database),
    };
    let taken = || catalog::owner_of_slot(&slot, &definition.name);
    match BackgroundWorker::transaction(AssertUnwindSafe(taken)) {
        Ok(None) => {}
        Ok(Some(other)) => {
            return Err(End::Blocked(format!("replication slot \"{slot}\" is that of source \"{other}\"")));
        }
        Err(error) => return Err(End::Failed(format!("could not look for its slot: {error}"))),
    }
    source.slot.set(slot.as_bytes());
    let known = definition.state.clone().filter(|state| state.slot == slot);
    let found = decoding::slot(&slot);
    if let Some(found) = &found {
        suits(&slot, found, database).map_err(End::Blocked)?;
        if found.invalidated && known.is_none() && options.slot.is_some() {
            return Err(End::Blocked(format!("{}: drop it, or name another one", invalidated(&slot))));
        }
    }
    let mut lost = None;
    if let Some(before) = definition.state.as_ref().filter(|state| state.slot != slot) {
        leave(before, database);
        lost = Some(format!("replication slot \"{slot}\" takes the place of \"{}\"", before.slot));
    }
    match &found {
        Some(found) if !found.invalidated => {
            let moved = known.as_ref().and_then(|known| moved(known, found));
            if let Some(moved) = &moved {
                if least(definition).is_none_or(|least| found.confirmed <= least) {
                    log!("postern: source \"{}\": {moved}; its streams lack nothing", definition.name);
                } else if options.lost_slot == LostSlot::Stop {
                    return Err(End::Blocked(go_on_or_not(moved, definition)));
                } else {
                    lost = Some(moved.clone());
                }
            }
            let stated = lost.map(|lost| {
                format!("{lost}; changes from {} to {} are lost", delivered(definition), found.confirmed)
            });
            if let Some(stated) = &stated {
                log!("postern: source \"{}\": {stated}", definition.name);
            }
            let mut record = known.unwrap_or(SourceRecord {
                slot: slot.clone(),
                // One of our own name is left of a source that was dropped a moment ago.
                made_slot: options.slot.is_none(),
                begins: found.confirmed,
                snapshot_done: !options.snapshot,
                gap: None,
                confirmed: None,
                rewound: definition.state.as_ref().map_or(0, |before| before.rewound),
            });
            if let Some(stated) = stated {
                record.gap = Some(gap::stated(stated_before(definition), &stated));
            }
            record.confirmed = record.confirmed.max(Some(found.confirmed));
            source.gap.set(record.gap.as_deref().unwrap_or_default());
            source.owns_slot.store(u32::from(record.made_slot), Relaxed);
            record_source(&definition.name, &record).map_err(End::Failed)?;
            return Ok(Prepared { record, publication });
        }
        Some(_) if known.is_some() => lost = Some(invalidated(&slot)),
        None if known.is_some() => lost = Some(format!("replication slot \"{slot}\" is gone")),
        _ => {}
    }
    let mut gaps = stated_before(definition).map(str::to_owned);
    if let Some(lost) = &lost
        && known.is_some()
        && options.lost_slot == LostSlot::Stop
    {
        return Err(End::Blocked(go_on_or_not(lost, definition)));
    }
    if found.is_some() {
        BackgroundWorker::transaction(|| decoding::drop_slot(&slot));
    }
    source.error.say(&format!(
        "replication slot \"{slot}\" begins when transactions that are running now have ended"
    ));
    let begins = BackgroundWorker::transaction(|| decoding::create_slot(&slot, options.failover));
    source.error.say("");
    if let Some(lost) = lost {
        let stated = format!("{lost}; changes from {} to {begins} are lost", delivered(definition));
        log!("postern: source \"{}\": {stated}", definition.name);
        let stated = gap::stated(gaps.as_deref(), &stated);
        source.gap.set(&stated);
        gaps = Some(stated);
    }
    log!("postern: made replication slot \"{slot}\" for source \"{}\"", definition.name);
    source.owns_slot.store(1, Relaxed);
    write(|| records::forget_snapshot(&definition.name))
        .map_err(|error| End::Failed(format!("could not begin its snapshot: {error}")))?;
    let record = SourceRecord {
        slot,
        made_slot: true,
        begins,
        snapshot_done: !options.snapshot,
        gap: gaps,
        confirmed: Some(begins),
        rewound: definition.state.as_ref().map_or(0, |known| known.rewound),
    };
    record_source(&definition.name, &record).map_err(End::Failed)?;
    Ok(Prepared { record, publication })
}

/// Why a slot cannot be this source's.
fn suits(name: &str, slot: &Slot, database: u32) -> Result<(), String> {
    let what = if !slot.logical || slot.plugin != "pgoutput" {
        "is not one of pgoutput"
    } else if slot.database != database {
        "is of another database"
    } else if slot.two_phase {
        "was made with two_phase: it has prepared transactions before they are committed; make one without"
    } else {
        return Ok(());
    };
    Err(format!("replication slot \"{name}\" {what}"))
}

fn invalidated(slot: &str) -> String {
    format!(
        "replication slot \"{slot}\" was invalidated: WAL that it needed was removed (max_slot_wal_keep_size)"
    )
}

/// Why, if the slot is further than Postern has ever confirmed it.
fn moved(known: &SourceRecord, slot: &Slot) -> Option<String> {
    let confirmed = known.confirmed.filter(|confirmed| slot.confirmed > *confirmed)?;
    Some(format!(
        "replication slot \"{}\" was moved from {confirmed} to {} by somebody else (pg_replication_slot_advance(), or made again)",
        known.slot, slot.confirmed
    ))
}

fn go_on_or_not(lost: &str, definition: &SourceDefinition) -> String {
    format!("{lost}: changes since {} that were not delivered are lost; {GO_ON}", delivered(definition))
}

/// What an operator can do who has lost a slot.
pub(super) const GO_ON: &str = "set the source's option \"lost_slot\" to \"continue\" to go on from now";

/// Another slot is used from now on: one that Postern has made goes.
fn leave(before: &SourceRecord, database: u32) {
    let found = decoding::slot(&before.slot).filter(|slot| slot.database == database && slot.active_pid == 0);
    if before.made_slot && found.is_some() {
        BackgroundWorker::transaction(|| decoding::drop_slot(&before.slot));
        log!("postern: dropped replication slot \"{}\", in whose place there is another", before.slot);
    }
}

/// The gaps that were stated before, by whichever slot it had.
fn stated_before(definition: &SourceDefinition) -> Option<&str> {
    definition.state.as_ref()?.gap.as_deref()
}

/// The least that any of its streams has.
pub(super) fn delivered(definition: &SourceDefinition) -> String {
    least(definition).map_or_else(|| "the beginning".to_owned(), |lsn| lsn.to_string())
}

fn least(definition: &SourceDefinition) -> Option<Lsn> {
    definition.streams.iter().filter_map(|stream| stream.position).map(|at| at.delivered).min()
}

/// Or why not.
pub(super) fn record_source(source: &str, record: &SourceRecord) -> Result<(), String> {
    write(|| records::record_source(source, record))
        .map_err(|error| format!("could not write down its slot: {error}"))
}

/// Whether there was none.
fn make_publication(source: &str, name: &str, options: &PostgresSource) -> Result<bool, SpiError> {
    if catalog::is_published(name)? {
        return Ok(false);
    }
    let tables = if options.tables.is_empty() {
        "FOR ALL TABLES".to_owned()
    } else {
        format!("FOR TABLE {}", options.tables.join(", "))
    };
    // The operator's tables need not be qualified.
    Spi::run("SET LOCAL search_path = pg_catalog, public")?;
    let quoted = quoted(name.as_bytes());
    let statement = format!("CREATE PUBLICATION {} {tables}", String::from_utf8_lossy(&quoted));
    if !Spi::connect_mut(|_| decoding::execute_one(&statement)) {
        ereport!(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "option \"tables\" must be tables as SQL has them after FOR TABLE"
        );
    }
    records::record_publication(source, name)?;
    Ok(true)
}
