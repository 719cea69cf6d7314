//! How many backends of a pool wait for any client: a word in shared memory. The pooled backends change it, the front reads it.

use std::sync::atomic::{AtomicU64, Ordering::*};

/// The count is the lower half; the upper is the epoch of the front whose backends are counted. One of an earlier front may be late by
/// any time: it would count among the next one's for ever, and the front would leave every client to it.
#[repr(transparent)]
#[derive(Default)]
pub struct Waiters(AtomicU64);

impl Waiters {
    /// As many as wait now; below 0 for moments only.
    pub fn count(&self) -> i32 {
        self.0.load(SeqCst) as i32
    }

    /// A backend of that epoch begins to wait. False, with nothing changed, when the pool is another front's.
    pub fn begin(&self, epoch: u32) -> bool {
        self.change(epoch, 1).is_some()
    }

    /// It waits no longer: how many do now. `None`, with nothing changed, when the pool is another front's.
    pub fn end(&self, epoch: u32) -> Option<i32> {
        self.change(epoch, -1)
    }

    fn change(&self, epoch: u32, by: i32) -> Option<i32> {
        let count = |word: u64| (word as i32).wrapping_add(by);
        let changed = |word: u64| ((word >> 32) as u32 == epoch).then(|| of(epoch, count(word)));
        self.0.fetch_update(SeqCst, SeqCst, changed).ok().map(count)
    }

    /// The pool is that epoch's front's, and nobody waits.
    pub fn clear(&self, epoch: u32) {
        self.0.store(of(epoch, 0), SeqCst);
    }
}

fn of(epoch: u32, count: i32) -> u64 {
    u64::from(epoch) << 32 | u64::from(count.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_front_that_has_ended_is_not_counted_among_the_next_ones() {
        let waiters = Waiters::default();
        waiters.clear(1);
        assert!(waiters.begin(1) && waiters.begin(1));
        assert_eq!(waiters.end(1), Some(1));
        // The next front's, while one of the first still waits and another comes to it.
        waiters.clear(3);
        assert_eq!((waiters.end(1), waiters.begin(1), waiters.count()), (None, false, 0));
        assert!(waiters.begin(3));
        assert_eq!((waiters.end(1), waiters.count()), (None, 1));
        assert_eq!((waiters.end(3), waiters.end(3), waiters.count()), (Some(0), Some(-1), -1));
    }
}
