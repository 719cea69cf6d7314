//! What the slot may confirm: it is written down first, and confirmed once that is on disk. So a slot that is further than what is written
//! down was moved by somebody else. A stream worker's main thread.

use crate::stream::position::Lsn;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

/// How long WAL without an event for any stream may wait to be confirmed; more than so much of it does not wait.
const IDLE: Duration = Duration::from_secs(5);
const FAR: u64 = 16 << 20;

/// Bytes of WAL that an idle server writes by itself after somebody has written, such as a checkpoint's: were they written down, an idle
/// server would never come to rest.
const REST: u64 = 512;

/// What is written down, and where the WAL was then.
#[derive(Debug)]
pub(super) struct Confirming {
    confirmed: Lsn,
    began: Lsn,
    ended: Lsn,
    at: Instant,
    /// Written down, and not yet known to be on disk.
    waits: Option<Lsn>,
}

impl Confirming {
    /// `confirmed` is written down, and the slot is there.
    pub fn new(confirmed: Lsn) -> Self {
        Self { confirmed, began: confirmed, ended: confirmed, at: Instant::now(), waits: None }
    }

    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// Whether to write down that there is nothing for any stream up to here.
    pub fn is_due(&self, lsn: Lsn) -> bool {
        let ahead = others(self.confirmed, self.began, self.ended, lsn, segment());
        ahead >= FAR || (ahead > REST && self.at.elapsed() >= IDLE)
    }

    /// Writes down what may be confirmed, by a function that says whether it may be; nothing when it could not look. Whether anything was
    /// written down.
    pub fn write<E>(&mut self, lsn: Lsn, act: impl FnOnce() -> Result<Option<bool>, E>) -> Result<bool, E> {
        self.at = Instant::now();
        // SAFETY: reads a position in shared memory.
        let began = unsafe { pg_sys::GetXLogInsertRecPtr() };
        let allowed = act()?;
        if allowed == Some(true) {
            // SAFETY: a word of this process: the end of its last transaction that has written.
            let ended = unsafe { pg_sys::XactLastCommitEnd };
            (self.confirmed, self.began, self.ended) = (lsn, Lsn(began), Lsn(ended));
            self.waits = Some(lsn);
        }
        Ok(allowed.is_some())
    }

    /// What the slot may confirm from now on, if there is anything new.
    pub fn due(&mut self) -> Option<Lsn> {
        // SAFETY: reads a position in shared memory.
        let flushed = unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) };
        self.waits.take_if(|_| self.ended.0 <= flushed)
    }
}

/// Bytes of a segment of the WAL.
fn segment() -> u64 {
    // SAFETY: a word that is set when the server starts.
    u64::try_from(unsafe { pg_sys::wal_segment_size }).unwrap_or(1 << 24).max(1)
}

/// Bytes of WAL that others have written from `confirmed` to `lsn`, when we have written from `began` to `ended`.
fn others(confirmed: Lsn, began: Lsn, ended: Lsn, lsn: Lsn, segment: u64) -> u64 {
    let before = began.0.saturating_sub(confirmed.0);
    let after = lsn.0.saturating_sub(ended.0);
    // A segment that was left because of its age was not filled.
    let left = ended.0 / segment * segment + segment;
    let after = if lsn.0 >= left && lsn.0 - left < segment { lsn.0 - left } else { after };
    before + after
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 24;

    #[test]
    fn what_we_write_ourselves_is_not_others() {
        let of =
            |confirmed, began, ended, lsn| others(Lsn(confirmed), Lsn(began), Lsn(ended), Lsn(lsn), SEGMENT);
        assert_eq!(of(1_000, 1_000, 9_000, 9_000), 0);
        assert_eq!(of(1_000, 1_000, 9_000, 9_120), 120);
        assert_eq!(of(1_000, 3_000, 9_000, 9_120), 2_120);
        // Also before it has been read.
        assert_eq!(of(1_000, 1_000, 9_000, 1_000), 0);
    }

    #[test]
    fn a_segment_that_was_left_early_was_not_filled() {
        let of = |lsn| others(Lsn(1_000), Lsn(1_000), Lsn(9_000), Lsn(lsn), SEGMENT);
        assert_eq!(of(SEGMENT + 96), 96);
        assert_eq!(of(SEGMENT - 1), SEGMENT - 1 - 9_000);
        assert_eq!(of(2 * SEGMENT + 1), 2 * SEGMENT + 1 - 9_000);
    }
}
