//! A source's worker: decodes in this process, hands what it decodes to its engine's thread, confirms what all sinks have, and writes down
//! where each stream is. Its main thread; the engine has the other one. Started by the launcher and never by the postmaster: it ends for
//! every change of its definition, and after an error.

use super::super::worker::{Latch, cancels_nothing, log};
use super::super::{guc, shim, shmem, signals};
use super::catalog::{self, SourceDefinition, SourceRecord, StreamDefinition, Wanted};
use super::decoding::{self, RawType, Receiver, Replayed};
use super::launcher::now;
use crate::bridge::{Level, LogLine};
use crate::stream::buffer::{CHUNK, Chunk, Record};
use crate::stream::definition::{LostSlot, PostgresSource};
use crate::stream::engine::{Engine, From, Outcome, Shared as Engines, Sort, StreamReport, Watch};
use crate::stream::event::Encoder;
use crate::stream::position::{Lsn, Position};
use crate::stream::shared::{Shared, Source, SourceState, Stream, StreamState};
use crate::stream::sink::{self, Setting};
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
use std::sync::mpsc::{Receiver as Lines, SyncSender, sync_channel};
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

/// Lines for the log that may wait; what comes beyond is dropped and counted.
const LINES: usize = 256;

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
enum End {
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
fn said(error: &CaughtError) -> String {
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
    speak_plainly();
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
    let settings: [(&CStr, &CStr); 7] = [
        (c"client_encoding", c"UTF8"),
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
                snapshot_done: true,
                gap: None,
            });
            source.owns_slot.store(u32::from(record.made_slot), Relaxed);
            record_source(&definition.name, &record)?;
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
    let begins = BackgroundWorker::transaction(|| decoding::create_slot(&slot, false, options.failover));
    if let Some(lost) = lost {
        let stated = format!("{lost}; changes from {} to {begins} are lost", delivered(definition));
        log!("postern: source \"{}\": {stated}", definition.name);
        source.gap.set(&stated);
        gap = Some(stated);
    }
    log!("postern: made replication slot \"{slot}\" for source \"{}\"", definition.name);
    source.owns_slot.store(1, Relaxed);
    let record = SourceRecord { slot, made_slot: true, begins, snapshot_done: !options.snapshot, gap };
    record_source(&definition.name, &record)?;
    Ok(Prepared { record, publication })
}

/// The least that any of its streams has.
fn delivered(definition: &SourceDefinition) -> String {
    let least = definition.streams.iter().filter_map(|stream| stream.position).map(|at| at.delivered).min();
    least.map_or_else(|| "the beginning".to_owned(), |lsn| lsn.to_string())
}

fn record_source(source: &str, record: &SourceRecord) -> Result<(), End> {
    let recorded = BackgroundWorker::transaction(|| catalog::record_source(source, record));
    decoding::hide_transaction(false);
    recorded.map_err(|error| End::Failed(format!("could not write down its slot: {error}")))
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
        if self.is_over() {
            ereport!(PgLogLevel::ERROR, PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "the stream ends");
        }
    }

    fn is_over(&mut self) -> bool {
        self.terminated |= BackgroundWorker::sigterm_received();
        self.terminated
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

/// A worker at work.
struct Work {
    source: &'static Source,
    definition: SourceDefinition,
    options: PostgresSource,
    prepared: Prepared,
    engines: Arc<Engines>,
    intake: Rc<RefCell<Intake>>,
    lines: Lines<String>,
    line: SyncSender<String>,
    shared: Shared,
    number: usize,
    recorded: Vec<Option<StreamReport>>,
    /// Events that each had been given then.
    given: Vec<u64>,
    recorded_at: Instant,
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
        }
    }

    fn run(mut self) -> End {
        let slot = self.prepared.record.slot.clone();
        let messages = self.options.event.messages;
        let receiver = Box::new(Shares(Rc::clone(&self.intake)));
        decoding::begin(&slot, &quoted(&self.prepared.publication), messages, receiver);
        let confirmed = decoding::confirmed();
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
        self.source.set_state(SourceState::Streaming);
        let serve = AssertUnwindSafe(|| self.serve());
        let ended = PgTryBuilder::new(serve).catch_others(|error| Err(said(&error))).execute();
        self.finish(thread, ended)
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
            self.write_lines();
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

    fn write_lines(&self) {
        for line in self.lines.try_iter().take(LINES) {
            log!("postern: stream of \"{}\": {line}", self.definition.name);
        }
    }

    fn finish(mut self, thread: JoinHandle<()>, ended: Result<(), String>) -> End {
        if ended.is_err() {
            decoding::after_error();
        }
        self.engines.stop();
        let panicked = thread.join().is_err();
        self.write_lines();
        let over = self.intake.borrow_mut().is_over();
        let settled = AssertUnwindSafe(|| {
            self.confirm();
            self.record(true);
            decoding::end();
            Ok(())
        });
        let settled = PgTryBuilder::new(settled).catch_others(|error| Err(said(&error))).execute();
        if panicked {
            return End::Failed("its engine has panicked".to_owned());
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

    /// A sink for each stream that runs.
    fn streams(&self, confirmed: Lsn) -> Result<Vec<From>, End> {
        let begins = StreamReport {
            position: Position { commit: confirmed, ordinal: u64::MAX },
            delivered: confirmed,
        };
        let running = self.definition.streams.iter().filter(|stream| stream.state == Wanted::Running).count();
        let size = guc::stream_buffer_size() / 2 / running.max(1);
        self.definition.streams.iter().map(|stream| self.stream(stream, begins, size)).collect()
    }

    fn stream(&self, stream: &StreamDefinition, begins: StreamReport, size: usize) -> Result<From, End> {
        let shown = self.shared.stream(self.number, stream.name.as_bytes());
        let Some(shown) = shown else {
            return Err(End::Failed(format!(
                "stream \"{}\" has no place: raise postern.max_streams",
                stream.name
            )));
        };
        let sink = if stream.state == Wanted::Running {
            let (line, dropped) = (self.line.clone(), &self.shared.header.lines_dropped);
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
            let made = sink::make(&stream.kind, &stream.options, &setting);
            let made = made.map_err(|error| End::Blocked(format!("sink \"{}\": {error}", stream.sink)))?;
            Sort::Sink(made)
        } else {
            Sort::Nothing
        };
        let begins = stream.position.unwrap_or(begins);
        show_where(shown, &begins);
        Ok(From { sink, begins, shown, retry: self.options.retry })
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

fn show_where(shown: &Stream, at: &StreamReport) {
    shown.commit.store(at.position.commit.0, Relaxed);
    shown.ordinal.store(at.position.ordinal, Relaxed);
    shown.delivered.store(at.delivered.0, Relaxed);
}

/// Sleeps for so many milliseconds, or until the latch is set.
fn wait(milliseconds: c_long) {
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
