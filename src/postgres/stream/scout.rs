//! The scout: looks once at the definitions of one database, writes into shared memory what is to run, drops the slots of sources that are
//! no more, and ends. One at a time in the server; started by the launcher.

use super::super::{dynamic, shim, shmem};
use super::catalog::{self, SourceDefinition, Wanted};
use super::{consumer, decoding, launcher, limit, prepare, worker};
use crate::release;
use crate::stream::definition::{AtLimit, PostgresSource};
use crate::stream::shared::{Shared, Source, SourceState, StreamState};
use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::*;

pub(super) const FUNCTION: &str = "postern_scout_main";

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_scout_main(argument: pg_sys::Datum) {
    if let Some(shared) = shmem::streams() {
        look(shared, dynamic::argument(argument).0);
        let header = shared.header;
        if header.launcher.load(Acquire) != 0 {
            // SAFETY: a number of the server's table of processes.
            unsafe { shim::postern_wake(header.proc.load(Acquire)) }
        }
    }
    // SAFETY: the end of a process, with no Rust value alive in this frame.
    unsafe { super::super::versions::proc_exit(0) }
}

fn look(shared: Shared, database: u32) {
    decoding::end_on_sigterm();
    // SAFETY: in a new worker, by the OID of a database, as the bootstrap superuser.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(pg_sys::Oid::from(database), pg_sys::InvalidOid, 0);
    }
    BackgroundWorker::transaction(worker::speak_plainly);
    let looked = AssertUnwindSafe(|| scout(shared, database));
    PgTryBuilder::new(looked)
        .catch_others(|error| {
            // What it has begun to read may be dropped at the same time: it is looked at again.
            let error = worker::said(&error);
            log!("postern: could not look at the change streams of database {database}: {error}");
        })
        .execute();
}

fn scout(shared: Shared, database: u32) {
    let database_name = worker::database_name();
    compare_versions(&database_name);
    let definitions = BackgroundWorker::transaction(|| {
        if !catalog::is_here() {
            return Some(Vec::new());
        }
        match catalog::load() {
            Ok(definitions) => Some(definitions),
            Err(error) => {
                warning!("postern: could not read the definitions of change streams: {error}");
                None
            }
        }
    });
    let Some(definitions) = definitions else { return };
    for (number, source) in shared.sources_in_use() {
        let here = source.database.load(Relaxed) == database;
        let defined = definitions.iter().any(|definition| source.name.is(definition.name.as_bytes()));
        // One that was dropped goes even when another of its name is defined by now: that one waits for its place.
        if here && (!defined || source.state() == SourceState::Dropped) {
            drop_source(shared, number, source);
        }
    }
    for definition in &definitions {
        note(shared, (database, &database_name), definition);
    }
    drop_orphans(shared, database, &definitions);
}

/// Says what to do where the extension's SQL is not of this library's version.
fn compare_versions(database: &str) {
    let Some(sql) = BackgroundWorker::transaction(catalog::version) else { return };
    if let Some(advice) = release::advice(&sql, release::VERSION) {
        let ours = release::VERSION;
        warning!(
            "postern: database \"{database}\" has version {sql} of the extension, and the library is {ours}: {advice}"
        );
    }
}

/// Slots that were left when the server ended before they could be dropped with their sources.
fn drop_orphans(shared: Shared, database: u32, definitions: &[SourceDefinition]) {
    let prefix = format!("postern_{database}_");
    let orphans = BackgroundWorker::transaction(|| match catalog::is_here() {
        true => catalog::orphans(&prefix).unwrap_or_default(),
        false => Vec::new(),
    });
    for slot in orphans {
        let wanted = definitions.iter().any(|definition| {
            PostgresSource::new(&definition.options)
                .is_ok_and(|options| options.slot_name(&definition.name, database) == slot)
        });
        // A worker that has made it may not have written that down yet.
        let known = shared.sources_in_use().any(|(_, source)| source.slot.is(slot.as_bytes()));
        if !wanted && !known {
            BackgroundWorker::transaction(|| decoding::drop_slot(&slot));
            log!("postern: dropped replication slot \"{slot}\", which no source has any more");
        }
    }
}

/// A source that is no longer defined: its worker ends, then its slot goes, then its place is free.
fn drop_source(shared: Shared, number: usize, source: &'static Source) {
    source.set_state(SourceState::Dropped);
    source.stop.store(1, Release);
    if source.pid.load(Acquire) != 0 {
        return launcher::end(source);
    }
    let slot = source.slot.text();
    if source.owns_slot.load(Relaxed) == 1
        && let Some(found) = decoding::slot(&slot)
    {
        if found.active_pid != 0 {
            return;
        }
        if found.database != source.database.load(Relaxed) {
            // A copy of a database has its definitions, and not its slots.
            launcher::free(shared, number, source);
            return;
        }
        BackgroundWorker::transaction(|| decoding::drop_slot(&slot));
        log!("postern: dropped replication slot \"{slot}\" of a source that is no more");
    }
    launcher::free(shared, number, source);
}

fn note(shared: Shared, (database, database_name): (u32, &str), definition: &SourceDefinition) {
    let name = definition.name.as_bytes();
    let is_it = |source: &Source| source.database.load(Relaxed) == database && source.name.is(name);
    let known =
        shared.sources_in_use().find(|(_, source)| is_it(source) && source.state() != SourceState::Dropped);
    let (number, source) = match known {
        Some(known) => known,
        None => {
            // Its predecessor of the same name has to be gone first: then the launcher asks.
            if shared.sources_in_use().any(|(_, source)| is_it(source)) {
                return;
            }
            let free =
                shared.sources.iter().enumerate().find(|(_, source)| source.state() == SourceState::Free);
            let Some((number, source)) = free else {
                shared.header.refuse();
                warning!(
                    "postern: no place for source \"{}\": raise postern.max_streams and restart the server",
                    definition.name
                );
                return;
            };
            claim(source, database, name);
            (number, source)
        }
    };
    source.database_name.set(database_name.as_bytes());
    source.kind.set(definition.kind.as_bytes());
    match &definition.state {
        Some(state) => {
            source.slot.set(state.slot.as_bytes());
            source.owns_slot.store(u32::from(state.made_slot), Relaxed);
            source.gap.set(state.gap.as_deref().unwrap_or_default());
        }
        None => source.owns_slot.store(0, Relaxed),
    }
    let options = match definition.kind.as_str() {
        "postgres" => PostgresSource::new(&definition.options).ok(),
        _ => None,
    };
    let retry = options.as_ref().map_or(consumer::RETRY, |options| options.retry);
    source.retry_interval.store(u32::try_from(retry.as_millis()).unwrap_or(u32::MAX), Relaxed);
    let placed = streams(shared, number, definition);
    let changed = source.definition.swap(definition.digest, AcqRel) != definition.digest;
    let lives = source.pid.load(Acquire) != 0;
    if (changed || placed) && lives {
        launcher::end(source);
    }
    let rests = matches!(
        source.state(),
        SourceState::Free
            | SourceState::Stopped
            | SourceState::Blocked
            | SourceState::Failed
            | SourceState::Waiting
    );
    // A place that was claimed just now has had no definition. A worker that was just ending when it changed ends as it had to before.
    if (changed && rests || source.rests_for_what_was()) && !lives {
        source.retry_at.store(0, Relaxed);
        source.error.say("");
        if definition.runs() {
            source.set_state(SourceState::Waiting);
        } else {
            source.heeded.store(definition.digest, Release);
            source.set_state(SourceState::Stopped);
        }
    }
    // Last: what it says is not of a definition that was.
    if let Some(options) = &options {
        limit_wal(source, definition, options);
    }
}

/// A source without a worker keeps WAL too. Looked at whenever its database is.
fn limit_wal(source: &'static Source, definition: &SourceDefinition, options: &PostgresSource) {
    let Some(state) = definition.state.as_ref().filter(|_| source.pid.load(Acquire) == 0) else { return };
    let Some(error) = limit::beyond(&state.slot, options.wal_limit) else {
        return source.warned_at.store(0, Relaxed);
    };
    if options.at_limit == AtLimit::Keep {
        return limit::warn(source, &error);
    }
    let database = source.database.load(Relaxed);
    if decoding::slot(&state.slot).is_some_and(|slot| slot.active_pid == 0 && slot.database == database) {
        let delivered = prepare::delivered(definition);
        match limit::drop_slot(source, &mut state.clone(), &error, &delivered, options.lost_slot) {
            Ok(error) | Err(error) => source.error.say(&error),
        }
    }
}

fn claim(source: &Source, database: u32, name: &[u8]) {
    source.database.store(database, Relaxed);
    source.name.set(name);
    source.slot.set(b"");
    source.definition.store(0, Relaxed);
    source.heeded.store(0, Relaxed);
    source.pid.store(0, Relaxed);
    for count in [
        &source.starts,
        &source.errors,
        &source.received,
        &source.confirmed,
        &source.buffered,
        &source.buffered_most,
    ] {
        count.store(0, Relaxed);
    }
    source.timings.clear();
    source.error.say("");
    source.gap.set("");
    source.warned_at.store(0, Relaxed);
}

/// The places of its streams; whether one has got its place now. A worker that is there already goes on without it until it is told.
fn streams(shared: Shared, number: usize, definition: &SourceDefinition) -> bool {
    let mut placed = false;
    for stream in shared.streams_of(number) {
        if !definition.streams.iter().any(|one| stream.name.is(one.name.as_bytes())) {
            stream.free();
        }
    }
    for one in &definition.streams {
        let found = shared.stream(number, one.name.as_bytes());
        let place =
            found.or_else(|| shared.streams.iter().find(|stream| stream.state() == StreamState::Free));
        let Some(stream) = place else {
            shared.header.refuse();
            warning!(
                "postern: no place for stream \"{}\": raise postern.max_streams and restart the server",
                one.name
            );
            continue;
        };
        if found.is_none() {
            placed = true;
            stream.clear();
            stream.name.set(one.name.as_bytes());
            stream.set_source(number);
        }
        stream.sink.set(one.sink.as_bytes());
        stream.sink_kind.set(one.kind.as_bytes());
        match one.state {
            Wanted::Running
                if found.is_none()
                    || matches!(stream.state(), StreamState::Paused | StreamState::Stopped) =>
            {
                stream.set_state(StreamState::Waiting);
            }
            Wanted::Running => {}
            Wanted::Paused => stream.set_state(StreamState::Paused),
            Wanted::Stopped => stream.set_state(StreamState::Stopped),
        }
    }
    placed
}
