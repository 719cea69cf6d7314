//! A source's worker: decodes in this process, hands what it decodes to its engine's thread, confirms what all sinks have, and writes down
//! where each stream is. Its main thread; the engine has the other one. Started by the launcher and never by the postmaster: it ends for
//! every change of its definition, and after an error.

use super::super::shim::report;
use super::super::worker::log;
use super::super::{dynamic, shmem};
use super::prepare::prepare;
use super::work::Work;
use super::{catalog, consumer, decoding, launcher};
use crate::bridge::{Level, LogLine};
use crate::stream::clock::now;
use crate::stream::definition::PostgresSource;
use crate::stream::shared::{Shared, Source, SourceState, StreamState};
use pgrx::bgworkers::BackgroundWorker;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::ffi::{CStr, c_int, c_long};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::*;

pub(super) const FUNCTION: &str = "postern_stream_main";

/// How often the WAL is looked at while something happens, and when nothing has for a while: milliseconds.
pub(super) const BUSY: c_long = 10;
pub(super) const QUIET: c_long = 100;

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_stream_main(argument: pg_sys::Datum) {
    let (number, turn) = dynamic::argument(argument);
    if let Some(shared) = shmem::streams() {
        run(shared, number as usize, turn);
    }
    // SAFETY: the end of a process, with no Rust value alive in this frame.
    unsafe { super::super::versions::proc_exit(0) }
}

/// Why a worker ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// It is told to: the server stops, its definition is another, or it is no more.
    Told,
    /// It begins anew at once.
    Again,
    /// With an error; it is started again after a while.
    Failed(String),
    /// With an error that waits for the operator.
    Blocked(String),
    /// The source, or the whole extension, is no more in this database: the scout sees to what is left.
    Gone,
}

fn run(shared: Shared, number: usize, turn: u32) {
    let Some(source) = shared.sources.get(number) else { return };
    decoding::end_on_sigterm();
    if source.turn.load(Acquire) != turn {
        return;
    }
    // SAFETY: words of this process.
    unsafe {
        source.pid.store(pg_sys::MyProcPid, Release);
        pg_sys::on_shmem_exit(Some(leave), pg_sys::Datum::from(number));
    }
    source.starts.fetch_add(1, Relaxed);
    source.since.store(now(), Relaxed);
    let work = AssertUnwindSafe(|| serve(shared, number, source));
    let end = PgTryBuilder::new(work).catch_others(|error| End::Failed(said(&error))).execute();
    let end = match end {
        End::Failed(_) if is_gone() => End::Gone,
        end => end,
    };
    let (state, error) = match end {
        End::Gone => {
            shared.header.ask_for_scan(source.database.load(Relaxed));
            launcher::retry_later(source);
            log!("postern: source \"{}\" is no more, and its worker ends", source.name.text());
            (SourceState::Failed, None)
        }
        End::Told | End::Again => (SourceState::Waiting, None),
        End::Failed(error) => (SourceState::Failed, Some(error)),
        End::Blocked(error) => (SourceState::Blocked, Some(error)),
    };
    if let Some(error) = error {
        source.errors.fetch_add(1, Relaxed);
        source.error.say(&error);
        launcher::retry_later(source);
        let text = format!("source \"{}\" of change streams has ended: {error}", source.name.text());
        log(LogLine { level: Level::Warning, text });
    }
    let ours =
        |state| matches!(state, SourceState::Starting | SourceState::Snapshot | SourceState::Streaming);
    if ours(source.state()) {
        source.set_state(state);
    }
    for stream in shared.streams_of(number) {
        if matches!(stream.state(), StreamState::Running | StreamState::Trouble) {
            stream.set_state(StreamState::Waiting);
        }
    }
}

/// Whether what has failed has failed because the extension was dropped.
fn is_gone() -> bool {
    decoding::after_error();
    let look = || !BackgroundWorker::transaction(catalog::is_here);
    PgTryBuilder::new(look).catch_others(|_| false).execute()
}

/// However the process ends, the launcher sees that it has.
#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: c_int, number: pg_sys::Datum) {
    if let Some(shared) = shmem::streams()
        && let Some(source) = shared.sources.get(number.value())
    {
        source.pid.store(0, Release);
        source.buffered.store(0, Relaxed);
    }
}

/// The text of an error of the server's, with what it adds.
pub(super) fn said(error: &CaughtError) -> String {
    let report = report(error);
    let mut text = report.message().to_owned();
    for more in [report.detail(), report.hint()].into_iter().flatten() {
        text = format!("{text}: {more}");
    }
    text
}

fn serve(shared: Shared, number: usize, source: &'static Source) -> End {
    // SAFETY: in a new worker, by the OID of a database, as the bootstrap superuser.
    unsafe {
        let database = pg_sys::Oid::from(source.database.load(Acquire));
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    // The server looks for the conversion between the encodings, which it does in transactions only.
    BackgroundWorker::transaction(speak_plainly);
    let name = source.name.text();
    if !BackgroundWorker::transaction(catalog::is_here) {
        return End::Gone;
    }
    let noted = source.definition.load(Acquire);
    let load = || catalog::load().map(|all| all.into_iter().find(|one| one.name == name));
    let definition = match BackgroundWorker::transaction(load) {
        Ok(Some(definition)) => definition,
        // It was dropped in between: the scout sees to its place.
        Ok(None) => return End::Gone,
        Err(error) => return End::Failed(format!("could not read its definition: {error}")),
    };
    source.heeded.store(definition.digest, Release);
    // What a scout has noted in the meantime is newer: then this worker ends soon.
    let _ = source.definition.compare_exchange(noted, definition.digest, AcqRel, Acquire);
    if !definition.runs() {
        source.set_state(SourceState::Stopped);
        return End::Told;
    }
    if definition.kind != "postgres" {
        return consumer::serve(shared, number, source, &definition);
    }
    let options = match PostgresSource::new(&definition.options) {
        Ok(options) => options,
        Err(error) => return End::Blocked(error.to_string()),
    };
    let prepared = match prepare(source, &definition, &options) {
        Ok(prepared) => prepared,
        Err(end) => return end,
    };
    Work::begin(shared, number, source, definition, options, prepared).run()
}

/// What pgoutput writes is the same whatever the server's own settings are, and what is run as a superuser means what it says.
pub(super) fn speak_plainly() {
    // SAFETY: a word of this process. In SQL_ASCII nothing is converted, but what is not UTF-8 would be an error for ever.
    let any = unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_SQL_ASCII as c_int;
    let settings: [(&CStr, &CStr); 8] = [
        (c"client_encoding", if any { c"SQL_ASCII" } else { c"UTF8" }),
        (c"datestyle", c"ISO, YMD"),
        (c"intervalstyle", c"postgres"),
        (c"timezone", c"UTC"),
        (c"bytea_output", c"hex"),
        (c"extra_float_digits", c"1"),
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"default_transaction_read_only", c"off"),
    ];
    for (name, value) in settings {
        // SAFETY: terminated strings, at the top of a worker; these may be set by a session.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// A transaction of our own, which no stream has.
pub(super) fn write<T>(act: impl FnOnce() -> T) -> T {
    let written = BackgroundWorker::transaction(AssertUnwindSafe(|| {
        decoding::hide_transaction(true);
        act()
    }));
    decoding::hide_transaction(false);
    written
}

/// Sleeps for so many milliseconds, or until the latch is set.
pub(super) fn wait(milliseconds: c_long) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH | pg_sys::WL_TIMEOUT;
    // SAFETY: our own latch, on the thread that owns it.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

pub(super) fn database_name() -> String {
    let name = BackgroundWorker::transaction(|| {
        Spi::get_one::<Vec<u8>>(
            "SELECT convert_to(pg_catalog.current_database()::text, pg_client_encoding())",
        )
    });
    String::from_utf8_lossy(&name.ok().flatten().unwrap_or_default()).into_owned()
}
