//! A stream's words: what it is, what its sink does, how far that is. Written by the scout and by its source's worker.

use super::Mishap;
use crate::bridge::Name;
use crate::stream::position::{Lsn, Position};
use crate::stream::timings::Timings;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::*};

/// What a stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum StreamState {
    Free = 0,
    Stopped = 1,
    Paused = 2,
    /// To run, but its source does not.
    Waiting = 3,
    Running = 4,
    /// The sink is in trouble and tries again by itself.
    Trouble = 5,
    /// The sink has given up and is made again.
    Failed = 6,
    /// As failed, but it waits for the operator.
    Blocked = 7,
}

impl StreamState {
    /// Those of a place that is in use.
    pub const ALL: [Self; 7] = [
        Self::Stopped,
        Self::Paused,
        Self::Waiting,
        Self::Running,
        Self::Trouble,
        Self::Failed,
        Self::Blocked,
    ];

    fn of(number: u32) -> Self {
        Self::ALL.into_iter().find(|state| *state as u32 == number).unwrap_or(Self::Free)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Trouble => "retrying",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
        }
    }
}

/// A stream: a source that feeds a sink. Counts are since the server's start.
#[repr(C)]
#[derive(Default)]
pub struct Stream {
    /// [`StreamState`].
    state: AtomicU32,
    /// Number of its source, plus one.
    source: AtomicU32,
    pub name: Name,
    pub sink: Name,
    pub sink_kind: Name,
    pub events: AtomicU64,
    pub bytes: AtomicU64,
    pub skipped: AtomicU64,
    pub errors: AtomicU64,
    /// Failures of its sink since that last delivered anything.
    pub failures: AtomicU32,
    /// How long it took to hand its events over, waiting for room in the sink included.
    pub timings: Timings,
    /// Of the last delivered event: end of its transaction's commit record, number in the transaction.
    pub commit: AtomicU64,
    pub ordinal: AtomicU64,
    /// Everything that was committed before this has been delivered.
    pub delivered: AtomicU64,
    /// When the oldest transaction was committed that is not delivered: microseconds since 1970; 0 when there is none.
    pub behind_since: AtomicI64,
    /// When an event was delivered last: microseconds since 1970.
    pub delivered_at: AtomicI64,
    pub error: Mishap,
}

impl Stream {
    pub fn state(&self) -> StreamState {
        StreamState::of(self.state.load(Acquire))
    }

    pub fn set_state(&self, state: StreamState) {
        self.state.store(state as u32, Release);
    }

    /// Where it is: the last delivered event, and before which commits it lacks nothing.
    pub fn show_where(&self, position: Position, delivered: Lsn) {
        self.commit.store(position.commit.0, Relaxed);
        self.ordinal.store(position.ordinal, Relaxed);
        self.delivered.store(delivered.0, Relaxed);
    }

    pub fn source(&self) -> Option<usize> {
        self.source.load(Acquire).checked_sub(1).map(|number| number as usize)
    }

    pub fn set_source(&self, source: usize) {
        self.source.store(source as u32 + 1, Release);
    }

    pub fn free(&self) {
        self.set_state(StreamState::Free);
        self.source.store(0, Release);
    }

    /// Makes a used place as good as new.
    pub fn clear(&self) {
        for count in [
            &self.events,
            &self.bytes,
            &self.skipped,
            &self.errors,
            &self.commit,
            &self.ordinal,
            &self.delivered,
        ] {
            count.store(0, Relaxed);
        }
        for time in [&self.behind_since, &self.delivered_at] {
            time.store(0, Relaxed);
        }
        self.timings.clear();
        self.failures.store(0, Relaxed);
        self.error.say("");
    }
}
