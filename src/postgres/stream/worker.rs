//! A source's worker: decodes in this process, hands what it decodes to its engine's thread, confirms what all sinks have, and writes down
//! where each stream is. Its main thread; the engine has the other one. Started by the launcher and never by the postmaster: it ends for
//! every change of its definition, and after an error.

use super::super::worker::{Latch, cancels_nothing, log};
use super::super::{guc, shim, shmem, signals};
use super::catalog::{self, SnapshotTable, SourceDefinition, SourceRecord, StreamDefinition, Wanted};
use super::consumer;
use super::decoding::{self, RawType, Receiver, Replayed};
use super::launcher::now;
use super::limit::{self, Limit};
use super::snapshot;
use crate::bridge::{Level, LogLine};
use crate::stream::buffer::{CHUNK, Chunk, Record};
use crate::stream::definition::{LostSlot, PostgresSource};
use crate::stream::engine::{Engine, From, Outcome, Shared as Engines, Sort, StreamReport, Watch};
use crate::stream::event::Encoder;
use crate::stream::position::{Lsn, Position};
use crate::stream::shared::{Shared, Source, SourceState, Stream, StreamState};
use crate::stream::sink::{self, Failure, Setting};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::ffi::{CStr, c_int, c_long};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::sync::mpsc::{Receiver as Waiting, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) const FUNCTION: &str = "postern_stream_main";

/// How often the WAL is looked at while something happens, and when nothing has for a while: milliseconds.
const BUSY: c_long = 10;
const QUIET: c_long = 100;

/// For how long after the last change it counts as busy.
const RECENT: Duration = Duration::from_secs(2);

/// Records that are decoded before signals are looked at.
const STEP: i32 = 1_000;

/// How often positions are written down while they change.
const RECORD: Duration = Duration::from_secs(1);

/// Bytes of WAL without an event for a stream after which its position is written down all the same.
const FAR: u64 = 16 << 20;

/// Bytes of an older gap's words that a newer one leaves.
const GAP: usize = 1024;

/// Lines for the log that may wait; what comes beyond is dropped and counted.
pub(super) const LINES: usize = 256;

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_stream_main(argument: pg_sys::Datum) {
    let argument = argument.value() as u64;
    if let Some(shared) = shmem::streams() {
        run(shared, (argument as u32) as usize, (argument >> 32) as u32);
    }
    // SAFETY: the end of a process, with no Rust value alive in this frame.
    unsafe { pg_sys::proc_exit(0) }
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
}

fn run(shared: Shared, number: usize, turn: u32) {
    let Some(source) = shared.sources.get(number) else { return };
    decoding::end_on_sigterm();
    if source.turn.load(Acquire) != turn {
        return;
    }
    // SAFETY: words of this process.
    unsafe {
        source.proc.store(shim::postern_proc_number(), Release);
        source.pid.store(pg_sys::MyProcPid, Release);
        pg_sys::on_shmem_exit(Some(leave), pg_sys::Datum::from(number));
    }
    source.starts.fetch_add(1, Relaxed);
    source.since.store(now(), Relaxed);
    let work = AssertUnwindSafe(|| serve(shared, number, source));
    let end = PgTryBuilder::new(work).catch_others(|error| End::Failed(said(&error))).execute();
    let (state, error) = match end {
        End::Told | End::Again => (SourceState::Waiting, None),
        End::Failed(error) => (SourceState::Failed, Some(error)),
        End::Blocked(error) => (SourceState::Blocked, Some(error)),
    };
    if let Some(error) = error {
        source.errors.fetch_add(1, Relaxed);
        source.error.set(&error);
        source.error_at.store(now(), Relaxed);
        let retry = i64::from(source.retry_interval.load(Relaxed)) * 1000;
        source.retry_at.store(now() + retry, Relaxed);
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
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = error;
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
    let load = || catalog::load().map(|all| all.into_iter().find(|one| one.name == name));
    let definition = match BackgroundWorker::transaction(load) {
        Ok(Some(definition)) => definition,
        Ok(None) => return End::Told,
        Err(error) => return End::Failed(format!("could not read its definition: {error}")),
    };
    source.definition.store(definition.digest, Release);
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

/// What pgoutput writes is the same whatever the server's own settings are.
fn speak_plainly() {
    // SAFETY: a word of this process. In SQL_ASCII nothing is converted, but what is not UTF-8 would be an error for ever.
    let any = unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_SQL_ASCII as c_int;
    let settings: [(&CStr, &CStr); 7] = [
        (c"client_encoding", if any { c"SQL_ASCII" } else { c"UTF8" }),
        (c"datestyle", c"ISO, YMD"),
        (c"intervalstyle", c"postgres"),
        (c"timezone", c"UTC"),
        (c"bytea_output", c"hex"),
        (c"extra_float_digits", c"1"),
        (c"search_path", c"pg_catalog, pg_temp"),
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

/// What decoding begins with.
struct Prepared {
    record: SourceRecord,
    publication: String,
}

/// Makes what is missing: the publication, then the slot, in this order, or the decoder would not know the publication.
fn prepare(
    source: &'static Source,
    definition: &SourceDefinition,
    options: &PostgresSource,
) -> Result<Prepared, End> {
    let publication = options.publication_name(&definition.name);
    let made = BackgroundWorker::transaction(|| make_publication(&publication, options));
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
    source.slot.set(slot.as_bytes());
    let known = definition.state.clone().filter(|state| state.slot == slot);
    let mut lost = None;
    if let Some(found) = decoding::slot(&slot) {
        if !found.logical || found.plugin != "pgoutput" {
            return Err(End::Blocked(format!("replication slot \"{slot}\" is not one of pgoutput")));
        }
        if found.database != database {
            return Err(End::Blocked(format!("replication slot \"{slot}\" is of another database")));
        }
        if !found.invalidated {
            let record = known.unwrap_or(SourceRecord {
                slot: slot.clone(),
                made_slot: false,
                begins: found.confirmed,
                snapshot_done: !options.snapshot,
                gap: None,
            });
            source.owns_slot.store(u32::from(record.made_slot), Relaxed);
            record_source(&definition.name, &record).map_err(End::Failed)?;
            return Ok(Prepared { record, publication });
        }
        lost = Some(format!(
            "replication slot \"{slot}\" was invalidated: WAL that it needed was removed (max_slot_wal_keep_size)"
        ));
    } else if known.is_some() {
        lost = Some(format!("replication slot \"{slot}\" is gone"));
    }
    let mut gap = known.as_ref().and_then(|known| known.gap.clone());
    if let Some(lost) = &lost {
        if options.lost_slot == LostSlot::Stop {
            return Err(End::Blocked(format!(
                "{lost}: changes since {} that were not delivered are lost; set the source's option \"lost_slot\" to \
                 \"continue\" to go on from now",
                delivered(definition)
            )));
        }
        if decoding::slot(&slot).is_some() {
            BackgroundWorker::transaction(|| decoding::drop_slot(&slot));
        }
    }
    source.error.set(&format!(
        "replication slot \"{slot}\" begins when transactions that are running now have ended"
    ));
    source.error_at.store(now(), Relaxed);
    let begins = BackgroundWorker::transaction(|| decoding::create_slot(&slot, options.failover));
    source.error.set("");
    if let Some(lost) = lost {
        let stated = format!("{lost}; changes from {} to {begins} are lost", delivered(definition));
        log!("postern: source \"{}\": {stated}", definition.name);
        source.gap.set(&stated);
        gap = Some(stated);
    }
    log!("postern: made replication slot \"{slot}\" for source \"{}\"", definition.name);
    source.owns_slot.store(1, Relaxed);
    let record = SourceRecord { slot, made_slot: true, begins, snapshot_done: !options.snapshot, gap };
    record_source(&definition.name, &record).map_err(End::Failed)?;
    Ok(Prepared { record, publication })
}

/// The least that any of its streams has.
pub(super) fn delivered(definition: &SourceDefinition) -> String {
    let least = definition.streams.iter().filter_map(|stream| stream.position).map(|at| at.delivered).min();
    least.map_or_else(|| "the beginning".to_owned(), |lsn| lsn.to_string())
}

/// Or why not.
pub(super) fn record_source(source: &str, record: &SourceRecord) -> Result<(), String> {
    write(|| catalog::record_source(source, record))
        .map_err(|error| format!("could not write down its slot: {error}"))
}

/// Whether there was none.
fn make_publication(name: &str, options: &PostgresSource) -> Result<bool, pgrx::spi::Error> {
    let found = Spi::get_one_with_args::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1)",
        &[name.into()],
    )?;
    if found == Some(true) {
        return Ok(false);
    }
    let tables = if options.tables.is_empty() {
        "FOR ALL TABLES".to_owned()
    } else {
        format!("FOR TABLE {}", options.tables.join(", "))
    };
    // The operator's tables need not be qualified.
    Spi::run("SET LOCAL search_path = pg_catalog, public")?;
    Spi::run(&format!("CREATE PUBLICATION {} {tables}", quoted(name)))?;
    Ok(true)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What takes what is decoded.
struct Intake {
    engines: Arc<Engines>,
    chunk: Chunk,
    /// The transaction that the engine knows of.
    told: Option<Replayed>,
    source: &'static Source,
    digest: u64,
    terminated: bool,
    /// A transaction has ended since the main loop looked.
    news: bool,
    /// The engine was told of everything before this.
    progress: Lsn,
    /// From the first to the last change of a time without a publication.
    unpublished: Option<(Lsn, Lsn)>,
    /// That time is over, and it has been stated.
    published_again: bool,
    stated: bool,
    limit: Limit,
}

impl Intake {
    /// Hands over what was gathered. Waits for room, which is what holds decoding up while a sink is slow.
    fn hand_over(&mut self) {
        while !self.chunk.is_empty() && !self.engines.buffer.push(&mut self.chunk) {
            self.pause();
        }
        let (bytes, most) = self.engines.buffer.bytes();
        self.source.buffered.store(bytes, Relaxed);
        self.source.buffered_most.fetch_max(most, Relaxed);
    }

    fn pause(&mut self) {
        wait(QUIET);
        self.look();
    }

    /// Ends the round, by an error that the worker itself catches, when there is no use in going on.
    fn look(&mut self) {
        cancels_nothing();
        check_for_interrupts!();
        self.limit.look(self.source);
        if self.is_over() {
            ereport!(PgLogLevel::ERROR, PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "the stream ends");
        }
    }

    fn is_over(&mut self) -> bool {
        self.terminated |= BackgroundWorker::sigterm_received();
        self.terminated
            || self.limit.over.is_some()
            || self.source.stop.load(Acquire) == 1
            || self.source.definition.load(Acquire) != self.digest
            || self.engines.has_ended()
    }

    fn push(&mut self, record: &Record<'_>) {
        self.chunk.push(record);
        if self.chunk.len() >= CHUNK {
            self.hand_over();
            self.look();
        }
    }

    /// Everything before this has been decoded.
    fn reach(&mut self, lsn: Lsn) {
        if lsn > self.progress {
            self.progress = lsn;
            self.push(&Record::Progress { lsn });
        }
        self.hand_over();
    }
}

/// The main loop and the server's decoding, which it calls, have it in turns.
struct Shares(Rc<RefCell<Intake>>);

impl Receiver for Shares {
    fn message(&mut self, transaction: Replayed, lsn: Lsn, data: &[u8]) {
        let mut intake = self.0.borrow_mut();
        intake.published_again = true;
        if intake.told != Some(transaction) {
            intake.told = Some(transaction);
            let Replayed { commit_end, commit_time, xid } = transaction;
            intake.push(&Record::Transaction { commit_end: Lsn(commit_end), commit_time, xid });
        }
        intake.push(&Record::Message { lsn, data });
    }

    fn described(&mut self, oid: u32, described: &RawType) {
        let RawType { same, element, delimiter } = *described;
        self.0.borrow_mut().push(&Record::Type { oid, same, element, delimiter: delimiter as u8 });
    }

    fn key(&mut self, relation: u32, names: &[u8]) {
        self.0.borrow_mut().push(&Record::Key { relation, names });
    }

    fn unpublished(&mut self, lsn: Lsn) {
        let mut intake = self.0.borrow_mut();
        let another = intake.published_again && intake.stated;
        let first = intake.unpublished.filter(|_| !another).map_or(lsn, |(first, _)| first);
        intake.unpublished = Some((first, lsn));
        intake.published_again = false;
        intake.stated = false;
    }

    fn commit(&mut self, transaction: Replayed) {
        let mut intake = self.0.borrow_mut();
        if intake.told.take().is_some() {
            intake.news = true;
        }
        intake.push(&Record::Commit { commit_end: Lsn(transaction.commit_end) });
    }

    fn goes_on(&mut self) {
        self.0.borrow_mut().look();
    }
}

/// Lines that the engine's thread has for the server's log.
pub(super) trait Lines {
    /// Writes those that wait.
    fn write(&self, source: &str);
}

impl Lines for Waiting<String> {
    fn write(&self, source: &str) {
        for line in self.try_iter().take(LINES) {
            log!("postern: stream of \"{source}\": {line}");
        }
    }
}

/// A worker at work.
struct Work {
    source: &'static Source,
    definition: SourceDefinition,
    options: PostgresSource,
    prepared: Prepared,
    engines: Arc<Engines>,
    intake: Rc<RefCell<Intake>>,
    lines: Waiting<String>,
    line: SyncSender<String>,
    shared: Shared,
    number: usize,
    recorded: Vec<Option<StreamReport>>,
    /// Events that each had been given then.
    given: Vec<u64>,
    recorded_at: Instant,
    /// Changes for which there was no publication, as far as that is written down, and the gap that was stated before.
    missed: Option<(Lsn, Lsn)>,
    gap_before: Option<String>,
}

impl Work {
    fn begin(
        shared: Shared,
        number: usize,
        source: &'static Source,
        definition: SourceDefinition,
        options: PostgresSource,
        prepared: Prepared,
    ) -> Self {
        // SAFETY: set for every process of the server.
        let latch = Latch(unsafe { pg_sys::MyLatch });
        let half = guc::stream_buffer_size() / 2;
        let (line, lines) = sync_channel(LINES);
        let watch = Watch { header: shared.header, source, line: line.clone() };
        let engines = Arc::new(Engines::new(half, move || latch.set()).watched(watch));
        let intake = Intake {
            engines: Arc::clone(&engines),
            chunk: Chunk::default(),
            told: None,
            source,
            digest: definition.digest,
            terminated: false,
            news: false,
            progress: Lsn(0),
            unpublished: None,
            published_again: false,
            stated: false,
            limit: Limit::new(&prepared.record.slot, &options),
        };
        Self {
            shared,
            number,
            source,
            recorded: vec![None; definition.streams.len()],
            given: vec![0; definition.streams.len()],
            definition,
            options,
            prepared,
            engines,
            intake: Rc::new(RefCell::new(intake)),
            lines,
            line,
            recorded_at: Instant::now(),
            missed: None,
            gap_before: None,
        }
    }

    fn run(mut self) -> End {
        let slot = self.prepared.record.slot.clone();
        let messages = self.options.event.messages;
        let receiver = Box::new(Shares(Rc::clone(&self.intake)));
        decoding::receive(receiver);
        let confirmed = decoding::slot(&slot).map_or(self.prepared.record.begins, |slot| slot.confirmed);
        self.source.confirmed.store(confirmed.0, Relaxed);
        let streams = match self.streams(confirmed) {
            Ok(streams) => streams,
            Err(end) => return end,
        };
        let encoder = Encoder::new(self.event_options(), self.seed());
        let engine = Engine::new(Arc::clone(&self.engines), encoder, streams, confirmed);
        // Every signal is blocked before the thread exists.
        signals::block_all();
        let thread =
            std::thread::Builder::new().name("postern stream".to_owned()).spawn(move || engine.run());
        BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return End::Failed(format!("could not start its thread: {error}")),
        };
        let serve = AssertUnwindSafe(|| {
            self.snapshot(&slot)?;
            if self.intake.borrow_mut().is_over() {
                return Ok(());
            }
            decoding::begin(&slot, &self.prepared.publication, messages);
            self.source.set_state(SourceState::Streaming);
            self.serve()
        });
        let ended = PgTryBuilder::new(serve).catch_others(|error| Err(said(&error))).execute();
        self.finish(thread, ended)
    }

    /// Delivers what is there already, if that is wanted and not done.
    fn snapshot(&mut self, slot: &str) -> Result<(), String> {
        let source = self.definition.name.clone();
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error| format!("could not {what} its snapshot's tables: {error}")
        };
        let load = || catalog::snapshot_tables(&source);
        let mut done = BackgroundWorker::transaction(AssertUnwindSafe(load)).map_err(failed("read"))?;
        if !self.prepared.record.snapshot_done {
            self.source.set_state(SourceState::Snapshot);
            let publication = self.prepared.publication.clone();
            let find = || snapshot::tables(&publication);
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
                    table.schema,
                    table.name
                );
                if known.is_none() {
                    write(|| catalog::begin_snapshot_table(&source, table.oid))
                        .map_err(failed("write down"))?;
                }
                let seen = self.copy(&table, slot);
                // Some of its rows may have come before: what has happened to them since is told too.
                let lsn = known.map_or(seen, |index| done[index].lsn);
                copied += 1;
                if !self.wait_for_snapshots(begun + copied) {
                    return Ok(());
                }
                write(|| catalog::end_snapshot_table(&source, table.oid, lsn))
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

    /// Waits until so many tables are delivered; false when that is not to be.
    fn wait_for_snapshots(&self, tables: u64) -> bool {
        loop {
            let report = self.engines.report();
            if self.intake.borrow_mut().is_over() || report.lost_one {
                return false;
            }
            if report.snapshots >= tables {
                return true;
            }
            wait(BUSY);
            cancels_nothing();
            check_for_interrupts!();
            self.lines.write(&self.definition.name);
        }
    }

    fn copy(&self, table: &snapshot::Table, slot: &str) -> Lsn {
        // A name that no slot has: a slot's has at most 63 bytes.
        let slot = format!("{}_snapshot", &slot[..slot.len().min(54)]);
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

    /// Decodes until it is over.
    fn serve(&mut self) -> Result<(), String> {
        let mut changed = Instant::now();
        loop {
            cancels_nothing();
            check_for_interrupts!();
            if BackgroundWorker::sighup_received() {
                // SAFETY: on main, outside a transaction.
                unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            }
            self.lines.write(&self.definition.name);
            self.intake.borrow_mut().limit.look(self.source);
            if self.intake.borrow_mut().is_over() {
                return Ok(());
            }
            let (lsn, more) = decoding::step(STEP);
            self.source.received.store(lsn.0, Relaxed);
            let mut intake = self.intake.borrow_mut();
            if std::mem::take(&mut intake.news) {
                changed = Instant::now();
            }
            if !more {
                intake.reach(lsn);
            }
            drop(intake);
            self.confirm();
            if self.recorded_at.elapsed() >= RECORD {
                self.record(false);
                self.state_missed();
            }
            if !more {
                wait(if changed.elapsed() < RECENT { BUSY } else { QUIET });
            }
        }
    }

    /// What all streams have is never wanted again, but for what is retained.
    fn confirm(&mut self) {
        let delivered = self.engines.report().delivered;
        let lsn = Lsn(delivered.0.saturating_sub(self.options.retain));
        if lsn > decoding::confirmed() {
            decoding::confirm(lsn);
            self.source.confirmed.store(lsn.0, Relaxed);
        }
    }

    /// Writes down where the streams are, as far as that has changed.
    fn record(&mut self, at_end: bool) {
        self.recorded_at = Instant::now();
        let report = self.engines.report();
        let mut due = Vec::new();
        for (index, (stream, at)) in self.definition.streams.iter().zip(&report.streams).enumerate() {
            let news = self.recorded[index].is_none_or(|known| {
                // That the WAL has gone on without it is not worth a transaction every second.
                let ahead = at.position.commit.0.saturating_sub(known.position.commit.0);
                let given = self.shared.stream(self.number, stream.name.as_bytes());
                let given = given.map_or(0, |shown| shown.events.load(Relaxed));
                known != *at && (at_end || given != self.given[index] || ahead >= FAR)
            });
            if news {
                let given = self.shared.stream(self.number, stream.name.as_bytes());
                self.given[index] = given.map_or(0, |shown| shown.events.load(Relaxed));
                due.push((index, stream.name.clone(), stream.rewound, *at));
            }
        }
        if due.is_empty() {
            return;
        }
        let written = BackgroundWorker::transaction(AssertUnwindSafe(|| {
            // A crash may lose the last of it: then some events come twice.
            // SAFETY: a setting of this process, for this transaction's commit.
            unsafe { pg_sys::synchronous_commit = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as c_int };
            due.iter().try_for_each(|(_, name, rewound, at)| catalog::record_position(name, *rewound, at))
        }));
        decoding::hide_transaction(false);
        match written {
            Ok(()) => due.into_iter().for_each(|(index, _, _, at)| self.recorded[index] = Some(at)),
            Err(error) => warning!("postern: could not write down where streams are: {error}"),
        }
    }

    /// States which changes were not published, when there was no publication while they were made.
    fn state_missed(&mut self) {
        let missed = self.intake.borrow().unpublished;
        self.intake.borrow_mut().stated = true;
        let Some((first, last)) = missed.filter(|_| missed != self.missed) else { return };
        let name = &self.prepared.publication;
        let text = format!(
            "there was no publication \"{name}\" from {first} to {last}: changes then were not published"
        );
        if self.missed.is_none_or(|(known, _)| known != first) {
            self.gap_before = self.prepared.record.gap.clone();
            self.source.errors.fetch_add(1, Relaxed);
            warning!("postern: source \"{}\": {text}", self.definition.name);
        }
        self.missed = missed;
        self.source.error.set(&text);
        self.source.error_at.store(now(), Relaxed);
        let gap = match &self.gap_before {
            Some(before) if before.len() < GAP => format!("{before}; {text}"),
            _ => text,
        };
        self.source.gap.set(&gap);
        self.prepared.record.gap = Some(gap);
        if let Err(error) = record_source(&self.definition.name, &self.prepared.record) {
            warning!("postern: source \"{}\": {error}", self.definition.name);
        }
    }

    fn finish(mut self, thread: JoinHandle<()>, ended: Result<(), String>) -> End {
        if ended.is_err() {
            decoding::after_error();
        }
        self.engines.stop();
        let panicked = thread.join().is_err();
        self.lines.write(&self.definition.name);
        let over = self.intake.borrow_mut().is_over();
        let settled = AssertUnwindSafe(|| {
            self.confirm();
            self.record(true);
            self.state_missed();
            decoding::end();
            Ok(())
        });
        let settled = PgTryBuilder::new(settled).catch_others(|error| Err(said(&error))).execute();
        if panicked {
            return End::Failed("its engine has panicked".to_owned());
        }
        if let Some(error) = self.intake.borrow_mut().limit.over.take() {
            return self.give_up(error);
        }
        match self.engines.report().outcome {
            Some(Outcome::Again) => return End::Again,
            Some(Outcome::Broken(error)) => return End::Failed(error),
            None => {}
        }
        match (ended, settled) {
            (Err(error), _) if !over => End::Failed(error),
            (_, Err(error)) => End::Failed(error),
            _ => End::Told,
        }
    }

    /// Drops the slot, as the operator has chosen for that much WAL.
    fn give_up(&self, error: String) -> End {
        let mut record = self.prepared.record.clone();
        let delivered = self.engines.report().delivered.to_string();
        match limit::drop_slot(self.source, &mut record, &error, &delivered) {
            Err(error) => End::Failed(error),
            // A new slot is made at the next start, and the gap stated.
            Ok(error) if self.options.lost_slot == LostSlot::Continue => End::Failed(error),
            Ok(error) => End::Blocked(error),
        }
    }

    /// A sink for each stream that runs.
    fn streams(&self, confirmed: Lsn) -> Result<Vec<From>, End> {
        let begins = StreamReport {
            position: Position { commit: confirmed, ordinal: u64::MAX },
            delivered: confirmed,
        };
        let running = self.definition.streams.iter().filter(|stream| stream.state == Wanted::Running).count();
        let size = guc::stream_buffer_size() / 2 / running.max(1);
        let feed = |stream| {
            let its: &StreamDefinition = stream;
            let begins = its.position.unwrap_or(begins);
            feed(self.shared, self.number, its, begins, size, &self.line, self.options.retry)
        };
        self.definition.streams.iter().map(feed).collect()
    }

    fn event_options(&self) -> crate::stream::event::EventOptions {
        let mut event = self.options.event.clone();
        if event.host.is_empty() {
            event.host = host_name();
        }
        if event.database.is_empty() {
            event.database = database_name();
        }
        event
    }

    /// The same event has the same UUID whenever it is delivered, and no other server's.
    fn seed(&self) -> u128 {
        // SAFETY: reads a word of the control file.
        let system = unsafe { pg_sys::GetSystemIdentifier() };
        let half = |number: u8| {
            let mut hasher = DefaultHasher::new();
            (number, system, self.source.database.load(Relaxed), &self.definition.name).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        half(0) << 64 | half(1)
    }
}

/// What the engine needs of a stream: its sink, if it is to run, with so many bytes for itself.
pub(super) fn feed(
    shared: Shared,
    number: usize,
    stream: &StreamDefinition,
    begins: StreamReport,
    size: usize,
    line: &SyncSender<String>,
    retry: Duration,
) -> Result<From, End> {
    let Some(shown) = shared.stream(number, stream.name.as_bytes()) else {
        let why = format!("stream \"{}\" has no place: raise postern.max_streams", stream.name);
        return Err(End::Failed(why));
    };
    let sink = if stream.state == Wanted::Running {
        let (line, dropped) = (line.clone(), &shared.header.lines_dropped);
        let setting = Setting {
            delivered: 0,
            buffer_size: size,
            stream: stream.name.clone(),
            log: Arc::new(move |text| {
                if line.try_send(text).is_err() {
                    dropped.fetch_add(1, Relaxed);
                }
            }),
        };
        match sink::make(&stream.kind, &stream.options, &setting) {
            Ok(made) => Sort::Sink(made),
            // Its options were right when they were given: what they name may come back.
            Err(error) => Sort::Unmade(Failure { message: error.to_string(), lasting: false }),
        }
    } else {
        Sort::Nothing
    };
    show_where(shown, &begins);
    Ok(From { sink, begins, shown, retry })
}

/// A transaction of our own, which no stream has.
pub(super) fn write<T>(act: impl FnOnce() -> T) -> T {
    let written = BackgroundWorker::transaction(AssertUnwindSafe(act));
    decoding::hide_transaction(false);
    written
}

fn show_where(shown: &Stream, at: &StreamReport) {
    shown.commit.store(at.position.commit.0, Relaxed);
    shown.ordinal.store(at.position.ordinal, Relaxed);
    shown.delivered.store(at.delivered.0, Relaxed);
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

fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: as many bytes as it is told, the last of which stays 0.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(super) fn database_name() -> String {
    BackgroundWorker::transaction(|| {
        Spi::get_one::<String>("SELECT pg_catalog.current_database()::text")
            .ok()
            .flatten()
            .unwrap_or_default()
    })
}
