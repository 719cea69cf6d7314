//! What an engine and main tell each other: chunks and an end one way, how far the streams are and why it is over the other. Written by the
//! engine's thread but for the buffer and the stop; main reads.

use super::Watch;
use crate::stream::buffer::Buffer;
use crate::stream::position::{Lsn, Position};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::*};

/// What main reads.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Everything that was committed before this has been delivered by every stream that the engine feeds.
    pub delivered: Lsn,
    /// A stream that was fed is no more: it lacks what the others were given since.
    pub lost_one: bool,
    /// Tables of a snapshot that every stream has that is fed, since the engine began.
    pub snapshots: u64,
    /// By stream, in the order in which they were given.
    pub streams: Vec<StreamReport>,
    /// By stream: the serial number up to which its sink has everything. Another one means that events were delivered.
    pub has: Vec<u64>,
    /// Why the engine has ended, if by itself.
    pub outcome: Option<Outcome>,
}

/// How far a stream is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// The last delivered event; with [`Position::ordinal`] at its most the whole transaction.
    pub position: Position,
    /// Everything that was committed before this has been delivered.
    pub delivered: Lsn,
}

/// Why an engine ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A sink has caught up or is to be made again: the worker starts anew and decodes again what that sink lacks.
    Again,
    /// What was decoded cannot be understood.
    Broken(String),
}

/// What both threads hold.
pub struct Shared {
    pub buffer: Buffer,
    pub(super) report: Mutex<Report>,
    stop: AtomicBool,
    pub(super) wake: Box<dyn Fn() + Send + Sync>,
    pub(super) watch: Option<Watch>,
}

impl Shared {
    /// `wake` makes main look at [`Shared::report`].
    pub fn new(buffer_size: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            buffer: Buffer::new(buffer_size),
            report: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: Box::new(wake),
            watch: None,
        }
    }

    pub fn watched(self, watch: Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// The engine has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.report.lock().outcome.is_some()
    }

    /// The engine ends soon; what is out by then may still be reported as delivered.
    pub fn stop(&self) {
        self.stop.store(true, Release);
        self.buffer.rouse();
    }

    pub(super) fn stops(&self) -> bool {
        self.stop.load(Acquire)
    }
}
