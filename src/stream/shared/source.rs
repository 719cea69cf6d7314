//! A source's words: what it is, what its worker does, how far it is. Written by the scout, its worker and the launcher.

use super::{Mishap, Text};
use crate::bridge::Name;
use crate::stream::timings::Timings;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::*};

/// What a source does, or why it does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SourceState {
    Free = 0,
    /// None of its streams is to run.
    Stopped = 1,
    /// It is to run and has no worker yet.
    Waiting = 2,
    /// Its worker prepares itself; making a slot waits for transactions that are running.
    Starting = 3,
    Snapshot = 4,
    Streaming = 5,
    /// Its worker has ended with an error and will be started again.
    Failed = 6,
    /// Trying again would not help: it waits for the operator.
    Blocked = 7,
    /// It is no longer defined, and its worker or its slot is still to go.
    Dropped = 8,
}

impl SourceState {
    /// Those of a place that is in use.
    pub const ALL: [Self; 8] = [
        Self::Stopped,
        Self::Waiting,
        Self::Starting,
        Self::Snapshot,
        Self::Streaming,
        Self::Failed,
        Self::Blocked,
        Self::Dropped,
    ];

    fn of(number: u32) -> Self {
        Self::ALL.into_iter().find(|state| *state as u32 == number).unwrap_or(Self::Free)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Snapshot => "snapshot",
            Self::Streaming => "streaming",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
            Self::Dropped => "dropped",
        }
    }
}

/// A source.
#[repr(C)]
#[derive(Default)]
pub struct Source {
    /// [`SourceState`].
    state: AtomicU32,
    /// OID.
    pub database: AtomicU32,
    pub database_name: Name,
    pub name: Name,
    pub kind: Name,
    /// The replication slot; empty when it has none.
    pub slot: Name,
    /// 1: Postern has made the slot and drops it with the source.
    pub owns_slot: AtomicU32,
    /// Its worker's process id; 0 when there is none.
    pub pid: AtomicI32,
    /// Counts its workers: only the one with this number is its worker.
    pub turn: AtomicU32,
    /// A digest of its definition and its streams', the newest that is known; a worker that began with another one ends.
    pub definition: AtomicU64,
    /// The digest of what its last worker began with, or of what needs none. Where the two differ and it rests, it rests for a reason that is over.
    pub heeded: AtomicU64,
    /// 1: the worker is to end.
    pub stop: AtomicU32,
    /// When the worker began, and when it may be started again: microseconds since 1970.
    pub since: AtomicI64,
    pub retry_at: AtomicI64,
    /// Milliseconds from an end with an error to the next start.
    pub retry_interval: AtomicU32,
    pub starts: AtomicU64,
    /// Ends with an error, and what was said without an end: changes without a publication, too much WAL, messages that were no events.
    pub errors: AtomicU64,
    /// Its events: from when one is made to when all sinks have taken it.
    pub timings: Timings,
    /// How far the WAL has been decoded, and what the slot has confirmed.
    pub received: AtomicU64,
    pub confirmed: AtomicU64,
    /// Bytes of decoded changes that wait in memory, the most that there ever were.
    pub buffered: AtomicU64,
    pub buffered_most: AtomicU64,
    pub error: Mishap,
    /// When the log said last that too much WAL is kept: microseconds since 1970; 0 when there is not too much.
    pub warned_at: AtomicI64,
    /// A gap in what was delivered, in words, for ever.
    pub gap: Text,
}

impl Source {
    pub fn state(&self) -> SourceState {
        SourceState::of(self.state.load(Acquire))
    }

    pub fn set_state(&self, state: SourceState) {
        self.state.store(state as u32, Release);
    }

    /// Whether it rests until somebody changes its definition, and somebody has.
    pub fn rests_for_what_was(&self) -> bool {
        matches!(self.state(), SourceState::Stopped | SourceState::Blocked)
            && self.heeded.load(Acquire) != self.definition.load(Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_rests_for_a_definition_that_is_no_more_is_known() {
        let source = Source::default();
        source.heeded.store(1, Release);
        source.definition.store(1, Release);
        for state in SourceState::ALL {
            source.set_state(state);
            assert!(!source.rests_for_what_was(), "{state:?}");
        }
        // Changed while its worker was ending.
        source.definition.store(2, Release);
        let known: Vec<_> = SourceState::ALL
            .into_iter()
            .filter(|state| {
                source.set_state(*state);
                source.rests_for_what_was()
            })
            .collect();
        // The others are looked at anyway.
        assert_eq!(known, [SourceState::Stopped, SourceState::Blocked]);
    }
}
