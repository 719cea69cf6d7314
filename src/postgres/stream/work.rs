//! A source of this server's WAL at work: decodes round after round, confirms what all streams have, writes down where each is, and ends
//! in order whatever ends it. A stream worker's main thread; the engine has the other one.

use super::super::signals;
use super::super::worker::{Latch, cancels_nothing};
use super::catalog::SourceDefinition;
use super::confirming::Confirming;
use super::decoding;
use super::feeds;
use super::intake::{Intake, Shares};
use super::limit::{self, Limit};
use super::prepare::{Prepared, record_source};
use super::records;
use super::worker::{BUSY, End, QUIET, said, wait, write};
use crate::stream::buffer::Chunk;
use crate::stream::definition::{LostSlot, PostgresSource};
use crate::stream::engine::{Engine, Outcome, Shared as Engines, StreamReport, Watch};
use crate::stream::event::Encoder;
use crate::stream::gap;
use crate::stream::lines::{Lines, lines};
use crate::stream::position::Lsn;
use crate::stream::shared::{Shared, Source, SourceState};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;
use pgrx::spi::SpiError;
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

/// A worker at work.
pub(super) struct Work {
    pub(super) source: &'static Source,
    pub(super) definition: SourceDefinition,
    pub(super) options: PostgresSource,
    pub(super) prepared: Prepared,
    pub(super) engines: Arc<Engines>,
    pub(super) intake: Rc<RefCell<Intake>>,
    pub(super) line: Lines,
    pub(super) shared: Shared,
    pub(super) number: usize,
    /// Where each stream is, as far as that is written down, and what its sink had then.
    pub(super) recorded: Vec<Option<StreamReport>>,
    pub(super) has: Vec<u64>,
    pub(super) recorded_at: Instant,
    pub(super) confirming: Confirming,
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
            news: false,
            progress: Lsn(0),
            unpublished: None,
            published_again: false,
            stated: false,
            limit: Limit::new(&prepared.record.slot, &options),
            lines,
        };
        Self {
            shared,
            number,
            source,
            recorded: vec![None; definition.streams.len()],
            has: Vec::new(),
            confirming: Confirming::new(prepared.record.confirmed.unwrap_or(prepared.record.begins)),
            definition,
            options,
            prepared,
            engines,
            intake: Rc::new(RefCell::new(intake)),
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
        let arrears = feeds::Memory::new(&self.definition).arrears;
        let streams = self.streams(confirmed);
        let engine = Engine::new(Arc::clone(&self.engines), encoder, streams, confirmed, arrears);
        let thread = std::thread::Builder::new().name("postern stream".to_owned());
        let thread = thread.spawn(move || engine.run());
        decoding::cancel_on_sigterm();
        BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return End::Failed(format!("could not start its thread: {error}")),
        };
        let serve = AssertUnwindSafe(|| {
            self.snapshot()?;
            if self.intake.borrow().is_over() {
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
            if self.look() {
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
                // A gap is on disk before the slot leaves it behind, which waits for what is written down after it.
                self.state_missed();
                self.record(false);
            }
            if !more {
                wait(if changed.elapsed() < RECENT { BUSY } else { QUIET });
            }
        }
    }

    /// See [`Intake::look`].
    pub(super) fn look(&self) -> bool {
        self.intake.borrow_mut().look()
    }

    /// What all streams have is never wanted again, but for what is retained. It is written down by now.
    fn confirm(&mut self) {
        if let Some(lsn) = self.confirming.due() {
            decoding::confirm(lsn);
            self.source.confirmed.store(lsn.0, Relaxed);
        }
    }

    /// Writes down where the streams are and what the slot may confirm, when events have been delivered since, or the WAL has gone on far
    /// without any.
    fn record(&mut self, at_end: bool) {
        self.recorded_at = Instant::now();
        let report = self.engines.report();
        let lsn =
            Lsn(report.delivered.0.saturating_sub(self.options.retain)).max(self.confirming.confirmed());
        let delivered = report.has != self.has || self.recorded.iter().any(Option::is_none);
        if !(delivered || at_end || self.confirming.is_due(lsn)) {
            return;
        }
        let streams = self.definition.streams.iter().zip(&report.streams).enumerate();
        let due: Vec<_> = streams
            .filter(|(index, (_, at))| self.recorded[*index] != Some(**at))
            .map(|(index, (stream, at))| (index, stream, *at))
            .collect();
        if due.is_empty() && lsn == self.confirming.confirmed() {
            return;
        }
        let (source, rewound) = (&self.definition.name, self.prepared.record.rewound);
        let act = || {
            // A crash may lose the last of it: then some events come twice. Nothing waits for a standby.
            let level = if at_end {
                pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH
            } else {
                pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF
            };
            // SAFETY: a setting of this process, for this transaction's commit.
            unsafe { pg_sys::synchronous_commit = level as c_int };
            // First: it locks what is written after it, and waits for nobody.
            let allowed = records::record_confirmed(source, rewound, lsn)?;
            if allowed.is_none() {
                return Ok(None);
            }
            due.iter()
                .try_for_each(|(_, stream, at)| records::record_position(&stream.name, stream.rewound, at))?;
            Ok::<_, SpiError>(allowed)
        };
        let written = self.confirming.write(lsn, || write(act));
        match written {
            Ok(false) => {}
            Ok(true) => {
                due.into_iter().for_each(|(index, _, at)| self.recorded[index] = Some(at));
                self.has = report.has;
                self.prepared.record.confirmed = Some(self.confirming.confirmed());
            }
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
        self.source.error.say(&text);
        let stated = gap::stated(self.gap_before.as_deref(), &text);
        self.source.gap.set(&stated);
        self.prepared.record.gap = Some(stated);
        if let Err(error) = record_source(&self.definition.name, &self.prepared.record) {
            warning!("postern: source \"{}\": {error}", self.definition.name);
        }
    }

    fn finish(mut self, thread: JoinHandle<()>, ended: Result<(), String>) -> End {
        // What is written down at the end is not cancelled.
        BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGTERM);
        cancels_nothing();
        if ended.is_err() {
            decoding::after_error();
        }
        self.engines.stop();
        // It says itself why it ended.
        let _ = thread.join();
        feeds::write_lines(&self.intake.borrow().lines, &self.definition.name);
        let over = self.intake.borrow().is_over();
        let settled = AssertUnwindSafe(|| {
            self.state_missed();
            self.record(true);
            self.confirm();
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
        match limit::drop_slot(self.source, &mut record, &error, &delivered, self.options.lost_slot) {
            Err(error) => End::Failed(error),
            // A new slot is made at the next start, and the gap stated.
            Ok(error) if self.options.lost_slot == LostSlot::Continue => End::Failed(error),
            Ok(error) => End::Blocked(error),
        }
    }
}
