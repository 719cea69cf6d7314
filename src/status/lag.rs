//! Lag as a time: how long the oldest change that is not replayed yet has been known. Pure; main runs it.
//!
//! The usual measure, the age of the last replayed commit, calls a standby an hour late when its idle primary
//! writes one record: a check at that moment would take it out of service. Here each position that the primary
//! is seen at is noted with the time, and the lag is the age of the oldest one that replay has not reached.

use super::lsn::Lsn;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Positions kept. When there are more, every second one goes: the lag is then known less finely, not wrongly.
const KEPT: usize = 512;

/// Positions of the primary that replay has not reached, oldest first.
#[derive(Debug, Default)]
pub struct LagClock {
    ahead: VecDeque<(Lsn, Instant)>,
    seen: bool,
}

impl LagClock {
    /// Notes where the primary and replay are at `now`, and returns the lag.
    ///
    /// A standby that is already behind at the first call has been so for an unknown time: `last_commit_age`,
    /// the age of the last replayed commit, is then the best guess, and an upper bound.
    pub fn observe(
        &mut self,
        now: Instant,
        primary: Lsn,
        replayed: Lsn,
        last_commit_age: Option<Duration>,
    ) -> Duration {
        while self.ahead.front().is_some_and(|(position, _)| *position <= replayed) {
            self.ahead.pop_front();
        }
        let newest = self.ahead.back().map_or(replayed, |(position, _)| *position);
        if primary > newest {
            let since = match last_commit_age {
                Some(age) if !self.seen => now.checked_sub(age).unwrap_or(now),
                _ => now,
            };
            if self.ahead.len() == KEPT {
                let mut index = 0;
                self.ahead.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
            }
            self.ahead.push_back((primary, since));
        }
        self.seen = true;
        self.ahead.front().map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_record_after_an_idle_hour_is_no_lag_of_an_hour() {
        let mut clock = LagClock::default();
        let start = Instant::now();
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(clock.observe(start, Lsn(100), Lsn(100), hour), Duration::ZERO);
        assert_eq!(clock.observe(start + SECOND, Lsn(200), Lsn(100), hour), Duration::ZERO);
        assert_eq!(clock.observe(start + 3 * SECOND, Lsn(300), Lsn(100), hour), 2 * SECOND);
        assert_eq!(clock.observe(start + 4 * SECOND, Lsn(300), Lsn(250), hour), SECOND);
        assert_eq!(clock.observe(start + 5 * SECOND, Lsn(300), Lsn(300), hour), Duration::ZERO);
    }

    #[test]
    fn a_standby_found_behind_counts_from_its_last_commit() {
        let mut clock = LagClock::default();
        let start = Instant::now();
        assert_eq!(clock.observe(start, Lsn(300), Lsn(100), Some(60 * SECOND)), 60 * SECOND);
        assert_eq!(clock.observe(start + SECOND, Lsn(300), Lsn(100), None), 61 * SECOND);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_kept() {
        let mut clock = LagClock::default();
        let start = Instant::now();
        clock.observe(start, Lsn(0), Lsn(0), None);
        for i in 1..10_000u32 {
            let lag = clock.observe(start + SECOND * i, Lsn(u64::from(i)), Lsn(0), None);
            assert_eq!(lag, SECOND * (i - 1));
            assert!(clock.ahead.len() <= KEPT);
        }
    }
}
