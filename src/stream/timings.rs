//! How long something took, counted by how long, as words in shared memory: the engine's thread writes, whoever renders metrics reads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds in seconds, psql-streamer's. What takes longer is counted beyond them.
pub const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All-zero bytes are none.
#[repr(C)]
#[derive(Default)]
pub struct Timings {
    /// Each counts those that took up to its bound and longer than the one before.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

/// A copy. Read while it is written, it may lack the last of them in one of its parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// How many took up to each of [`BOUNDS`].
    pub within: [u64; BOUNDS.len()],
    pub count: u64,
    pub seconds: f64,
}

impl Timings {
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let place = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[place].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn clear(&self) {
        self.counts.iter().chain([&self.nanoseconds]).for_each(|word| word.store(0, Relaxed));
    }

    pub fn get(&self) -> Timed {
        let mut timed = Timed { within: [0; BOUNDS.len()], count: 0, seconds: 0.0 };
        for (index, count) in self.counts.iter().enumerate() {
            timed.count += count.load(Relaxed);
            if let Some(within) = timed.within.get_mut(index) {
                *within = timed.count;
            }
        }
        timed.seconds = self.nanoseconds.load(Relaxed) as f64 / 1e9;
        timed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_up_to_every_bound_that_it_does_not_exceed() {
        let timings = Timings::default();
        for millis in [1, 5, 6, 300, 60_000] {
            timings.add(Duration::from_millis(millis));
        }
        let timed = timings.get();
        assert_eq!(timed.within, [2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4]);
        assert_eq!((timed.count, timed.seconds), (5, 60.312));
        timings.clear();
        assert_eq!(timings.get(), Timed { within: [0; 11], count: 0, seconds: 0.0 });
    }
}
