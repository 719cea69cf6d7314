//! What takes what is decoded and hands it to the engine's thread, and waits while there is no room: that holds decoding up. A stream
//! worker's main thread, amid the server's own decoding.

use super::super::worker::heed_signals;
use super::decoding::{self, RawType, Receiver, Replayed};
use super::feeds::write_lines;
use super::limit::Limit;
use super::worker::{QUIET, wait};
use crate::stream::buffer::{CHUNK, Chunk, Record};
use crate::stream::engine::Shared as Engines;
use crate::stream::lines::Waiting;
use crate::stream::position::Lsn;
use crate::stream::shared::Source;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;

/// What takes what is decoded.
pub(super) struct Intake {
    pub engines: Arc<Engines>,
    pub chunk: Chunk,
    /// The transaction that the engine knows of.
    pub told: Option<Replayed>,
    pub source: &'static Source,
    pub digest: u64,
    /// A transaction has ended since the main loop looked.
    pub news: bool,
    /// The engine was told of everything before this.
    pub progress: Lsn,
    /// From the first to the last change of a time without a publication.
    pub unpublished: Option<(Lsn, Lsn)>,
    /// That time is over, and it has been stated.
    pub published_again: bool,
    pub stated: bool,
    pub limit: Limit,
    pub lines: Waiting,
}

impl Intake {
    /// Hands over what was gathered. Waits for room, which is what holds decoding up while a sink is slow.
    pub(super) fn hand_over(&mut self) {
        while !self.chunk.is_empty() && !self.engines.buffer.push(&mut self.chunk) {
            self.pause();
        }
        let (bytes, most) = self.engines.buffer.bytes();
        self.source.buffered.store(bytes, Relaxed);
        self.source.buffered_most.fetch_max(most, Relaxed);
    }

    fn pause(&mut self) {
        wait(QUIET);
        self.go_on();
    }

    /// Between two steps, and while it waits for something: signals, a reload, lines for the log, the limit of WAL. Whether it is over.
    pub(super) fn look(&mut self) -> bool {
        heed_signals();
        write_lines(&self.lines, &self.source.name.text());
        self.limit.look(self.source);
        self.is_over()
    }

    /// Ends the round, by an error that the worker itself catches, when there is no use in going on.
    fn go_on(&mut self) {
        if self.look() {
            ereport!(PgLogLevel::ERROR, PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "the stream ends");
        }
    }

    pub(super) fn is_over(&self) -> bool {
        decoding::is_terminated()
            || self.limit.over.is_some()
            || self.source.stop.load(Acquire) == 1
            || self.source.definition.load(Acquire) != self.digest
            || self.engines.has_ended()
    }

    pub(super) fn push(&mut self, record: &Record<'_>) {
        self.chunk.push(record);
        if self.chunk.len() >= CHUNK {
            self.hand_over();
            self.go_on();
        }
    }

    /// Everything before this has been decoded.
    pub(super) fn reach(&mut self, lsn: Lsn) {
        if lsn > self.progress {
            self.progress = lsn;
            self.push(&Record::Progress { lsn });
        }
        self.hand_over();
    }
}

/// The main loop and the server's decoding, which it calls, have it in turns.
pub(super) struct Shares(pub Rc<RefCell<Intake>>);

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
        self.0.borrow_mut().go_on();
    }
}
