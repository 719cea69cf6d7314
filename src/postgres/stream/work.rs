//! A source of this server's WAL at work: decodes round after round, confirms what all streams have, writes down where each is, and ends
//! in order whatever ends it. A stream worker's main thread; the engine has the other one.

use super::super::signals;
use super::super::worker::{Latch, cancels_nothing};
use super::catalog::{self, SourceDefinition};
use super::decoding;
use super::feeds;
use super::intake::{Intake, Shares};
use super::limit::{self, Limit};
use super::prepare::{Prepared, record_source};
use super::worker::{BUSY, End, QUIET, said, wait};
use crate::stream::buffer::Chunk;
use crate::stream::definition::{LostSlot, PostgresSource};
use crate::stream::engine::{Engine, Outcome, Shared as Engines, StreamReport, Watch};
use crate::stream::event::Encoder;
use crate::stream::lines::{Lines, Waiting, lines};
use crate::stream::position::Lsn;
use crate::stream::shared::{Shared, Source, SourceState};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;
use std::cell::RefCell;
use std::ffi::c_int;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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

/// A worker at work.
pub(super) struct Work {
    pub(super) source: &'static Source,
    pub(super) definition: SourceDefinition,
    pub(super) options: PostgresSource,
    pub(super) prepared: Prepared,
    pub(super) engines: Arc<Engines>,
    pub(super) intake: Rc<RefCell<Intake>>,
    pub(super) lines: Waiting,
    pub(super) line: Lines,
    pub(super) shared: Shared,
    pub(super) number: usize,
    pub(super) recorded: Vec<Option<StreamReport>>,
    /// Events that each had been given then.
    pub(super) given: Vec<u64>,
    pub(super) recorded_at: Instant,
    /// Changes for which there was no publication, as far as that is written down, and the gap that was stated before.
    pub(super) missed: Option<(Lsn, Lsn)>,
    pub(super) gap_before: Option<String>,
}

impl Work {
    pub(super) fn begin(
        shared: Shared,
        number: usize,
        source: &'static Source,
        definition: SourceDefinition,
        options: PostgresSource,
        prepared: Prepared,
    ) -> Self {
        // SAFETY: set for every process of the server.
        let latch = Latch(unsafe { pg_sys::MyLatch });
        let (line, lines) = lines(shared.header);
        let watch = Watch { header: shared.header, source, lines: line.clone() };
        let ahead = feeds::Memory::new(&definition).ahead;
        let engines = Arc::new(Engines::new(ahead, move || latch.set()).watched(watch));
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

    pub(super) fn run(mut self) -> End {
        let slot = self.prepared.record.slot.clone();
        let receiver = Box::new(Shares(Rc::clone(&self.intake)));
        decoding::receive(receiver);
        let confirmed = decoding::slot(&slot).map_or(self.prepared.record.begins, |slot| slot.confirmed);
        self.source.confirmed.store(confirmed.0, Relaxed);
        let encoder = Encoder::new(self.event_options(), self.seed());
        // The sinks may start threads too: every signal is blocked before any exists.
        signals::block_all();
        let thread = self.streams(confirmed).and_then(|streams| {
            let arrears = feeds::Memory::new(&self.definition).arrears;
            let engine = Engine::new(Arc::clone(&self.engines), encoder, streams, confirmed, arrears);
            let thread = std::thread::Builder::new().name("postern stream".to_owned());
            thread
                .spawn(move || engine.run())
                .map_err(|error| End::Failed(format!("could not start its thread: {error}")))
        });
        BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
        let thread = match thread {
            Ok(thread) => thread,
            Err(end) => return end,
        };
        let serve = AssertUnwindSafe(|| {
            self.snapshot(&slot)?;
            if self.intake.borrow_mut().is_over() {
                return Ok(());
            }
            // Messages are asked for whether they are wanted or not: they count, so that a change keeps its number.
            decoding::begin(&slot, &self.prepared.publication, true);
            self.source.set_state(SourceState::Streaming);
            self.serve()
        });
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
            feeds::write_lines(&self.lines, &self.definition.name);
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
        self.source.say(&text);
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
        // It says itself why it ended.
        let _ = thread.join();
        feeds::write_lines(&self.lines, &self.definition.name);
        let over = self.intake.borrow_mut().is_over();
        let settled = AssertUnwindSafe(|| {
            self.confirm();
            self.record(true);
            self.state_missed();
            decoding::end();
            Ok(())
        });
        let settled = PgTryBuilder::new(settled).catch_others(|error| Err(said(&error))).execute();
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
}
