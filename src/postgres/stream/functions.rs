//! What SQL can call of the change streams: the checks of the definitions, what their triggers do, and what the views stand on. Backends.

use super::super::{shim, shmem};
use crate::stream::options::OptionError;
use crate::stream::shared::{Shared, SourceState};
use crate::stream::{definition, sink};
use pgrx::prelude::*;
use pgrx::{PgTrigger, PgXactCallbackEvent, register_xact_callback};
use serde_json::{Map, Value};
use std::ffi::c_int;
use std::sync::atomic::Ordering::*;

/// True, or an error that names the option. Both are in UTF-8, whatever the database's encoding.
#[pg_extern(immutable, parallel_safe, strict)]
fn check_source(kind: &[u8], options: &[u8]) -> bool {
    answer(definition::check(&String::from_utf8_lossy(kind), &object(options)))
}

/// True, or an error that names the option. Both are in UTF-8, whatever the database's encoding.
#[pg_extern(immutable, parallel_safe, strict)]
fn check_sink(kind: &[u8], options: &[u8]) -> bool {
    answer(sink::check(&String::from_utf8_lossy(kind), &object(options)))
}

fn object(options: &[u8]) -> Map<String, Value> {
    match serde_json::from_slice(options) {
        Ok(Value::Object(map)) => map,
        _ => refuse("options must be a JSON object"),
    }
}

fn answer(checked: Result<(), OptionError>) -> bool {
    match checked {
        Ok(()) => true,
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(why: &str) -> ! {
    ereport!(PgLogLevel::ERROR, PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, plain(why.to_owned()));
    unreachable!()
}

/// A text of ours as the database can have it: where its encoding is not UTF-8, without what is not ASCII.
pub(super) fn plain(text: String) -> String {
    // SAFETY: a word of this process.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    if text.is_ascii() || encoding == pg_sys::pg_enc::PG_UTF8 as c_int {
        return text;
    }
    text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

/// Options, in UTF-8, as everybody may see them who may see the views.
#[pg_extern(immutable, parallel_safe, strict)]
fn hide_secrets(options: &[u8]) -> Vec<u8> {
    let mut value = serde_json::from_slice(options).unwrap_or_default();
    hide(&mut value);
    value.to_string().into_bytes()
}

fn hide(value: &mut Value) {
    if let Value::Object(map) = value {
        for (name, value) in map.iter_mut() {
            let secret = sink::SECRETS.iter().any(|secret| name.to_ascii_lowercase().ends_with(secret));
            if secret {
                *value = Value::String("***".to_owned());
            } else {
                hide(value);
            }
        }
    }
}

/// The launcher looks at this database's definitions once the transaction has committed.
#[pg_trigger]
fn definitions_changed<'a>(
    _trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, pgrx::AllocatedByRust>>, std::convert::Infallible> {
    if let Some(shared) = shmem::streams() {
        // SAFETY: a word of the session.
        let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
        register_xact_callback(PgXactCallbackEvent::Commit, move || {
            shared.header.ask_for_scan(database);
            if shared.header.launcher.load(Acquire) != 0 {
                // SAFETY: a number of the server's table of processes; touches only its latch.
                unsafe { shim::postern_wake(shared.header.proc.load(Acquire)) }
            }
        });
    }
    Ok(None)
}

fn here(shared: Shared) -> impl Iterator<Item = (usize, &'static crate::stream::shared::Source)> {
    // SAFETY: a word of the session.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    shared.sources_in_use().filter(move |(_, source)| {
        source.database.load(Relaxed) == database && source.state() != SourceState::Dropped
    })
}

/// One row a source of this database that the launcher knows. Names are in UTF-8, positions are texts of pg_lsn, times are seconds since 1970.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn running_sources() -> TableIterator<
    'static,
    (
        name!(name, Vec<u8>),
        name!(state, String),
        name!(worker_pid, Option<i32>),
        name!(since, Option<f64>),
        name!(starts, i64),
        name!(errors, i64),
        name!(received_lsn, Option<String>),
        name!(buffered, i64),
        name!(buffered_most, i64),
        name!(error, Option<String>),
        name!(error_at, Option<f64>),
    ),
> {
    let shared = loaded();
    TableIterator::new(here(shared).map(|(_, source)| {
        (
            source.name.text().into_bytes(),
            source.state().name().to_owned(),
            Some(source.pid.load(Relaxed)).filter(|pid| *pid != 0),
            seconds(source.since.load(Relaxed)),
            source.starts.load(Relaxed) as i64,
            source.errors.load(Relaxed) as i64,
            lsn(source.received.load(Relaxed)),
            source.buffered.load(Relaxed) as i64,
            source.buffered_most.load(Relaxed) as i64,
            source.error.get().map(plain),
            seconds(source.error.at()),
        )
    }))
}

/// One row a stream of this database that the launcher knows.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn running_streams() -> TableIterator<
    'static,
    (
        name!(name, Vec<u8>),
        name!(state, String),
        name!(events, i64),
        name!(bytes, i64),
        name!(skipped, i64),
        name!(errors, i64),
        name!(delivered_lsn, Option<String>),
        name!(behind_since, Option<f64>),
        name!(delivered_at, Option<f64>),
        name!(error, Option<String>),
        name!(error_at, Option<f64>),
    ),
> {
    let shared = loaded();
    TableIterator::new(here(shared).flat_map(move |(number, _)| {
        shared.streams_of(number).map(|stream| {
            (
                stream.name.text().into_bytes(),
                stream.state().name().to_owned(),
                stream.events.load(Relaxed) as i64,
                stream.bytes.load(Relaxed) as i64,
                stream.skipped.load(Relaxed) as i64,
                stream.errors.load(Relaxed) as i64,
                lsn(stream.delivered.load(Relaxed)),
                seconds(stream.behind_since.load(Relaxed)),
                seconds(stream.delivered_at.load(Relaxed)),
                stream.error.get().map(plain),
                seconds(stream.error.at()),
            )
        })
    }))
}

fn seconds(micros: i64) -> Option<f64> {
    (micros != 0).then_some(micros as f64 / 1e6)
}

fn lsn(lsn: u64) -> Option<String> {
    (lsn != 0).then(|| crate::stream::position::Lsn(lsn).to_string())
}

fn loaded() -> Shared {
    shmem::streams().unwrap_or_else(|| super::super::functions::not_loaded())
}
