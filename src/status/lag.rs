//! Lag as a time: how long the oldest change that is not replayed yet has been known. Pure; main runs it.
//!
//! The usual measure, the age of the last replayed commit, calls a standby an hour late when its idle primary
//! writes one record: a check at that moment would take it out of service. Here each position that the primary
//! is seen at is noted with the time, and the lag is the age of the oldest one that replay has not reached.

use crate::bridge::Lsn;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Positions kept. When there are more, every second one goes: the lag is then known less finely, not wrongly.
const KEPT: usize = 512;

/// Positions of the primary that replay has not reached, oldest first.
#[derive(Debug)]
pub struct LagClock {
    ahead: VecDeque<(Lsn, Instant)>,
    /// The primary's position has not been seen since this server last connected: how long it has been behind is not
    /// known.
    unsure: bool,
}

/// What is known beside the positions.
#[derive(Debug, Clone, Copy)]
pub struct Guess {
    /// WAL streams in, so the primary's position is its position now.
    pub streaming: bool,
    /// The age of the last replayed commit: an upper bound of the lag.
    pub last_commit_age: Option<Duration>,
}

impl Default for LagClock {
    fn default() -> Self {
        Self { ahead: VecDeque::new(), unsure: true }
    }
}

impl LagClock {
    /// Notes where the primary and replay are at `now`, and returns the lag.
    ///
    /// A standby that is found behind when it connects has been so for an unknown time: the age of its last replayed
    /// commit is then taken for what it lacks at that moment.
    pub fn observe(&mut self, now: Instant, primary: Lsn, replayed: Lsn, guess: Guess) -> Duration {
        self.unsure |= !guess.streaming;
        while self.ahead.front().is_some_and(|(position, _)| *position <= replayed) {
            self.ahead.pop_front();
        }
        // Another primary may not have what the last one had: it will never be replayed.
        let mut since = None;
        while let Some((_, noted)) = self.ahead.pop_back_if(|(position, _)| *position > primary) {
            since = Some(noted);
        }
        let newest = self.ahead.back().map_or(replayed, |(position, _)| *position);
        if primary > newest {
            let guessed = guess.last_commit_age.filter(|_| self.unsure).and_then(|age| now.checked_sub(age));
            self.note(primary, since.or(guessed).unwrap_or(now));
        }
        // What comes after a position that was seen while streaming has been written since.
        self.unsure &= !guess.streaming;
        self.ahead.front().map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(*since))
    }

    fn note(&mut self, position: Lsn, since: Instant) {
        if self.ahead.len() == KEPT {
            let mut index = 0;
            self.ahead.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.ahead.push_back((position, since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn streaming(age: Option<Duration>) -> Guess {
        Guess { streaming: true, last_commit_age: age }
    }

    #[test]
    fn one_record_after_an_idle_hour_is_no_lag_of_an_hour() {
        let mut clock = LagClock::default();
        let start = Instant::now();
        let hour = streaming(Some(Duration::from_secs(3600)));
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
        // Before it has connected it seems level with itself, which proves nothing.
        let alone = Guess { streaming: false, last_commit_age: Some(59 * SECOND) };
        assert_eq!(clock.observe(start, Lsn(100), Lsn(100), alone), Duration::ZERO);
        let age = |seconds| streaming(Some(SECOND * seconds));
        assert_eq!(clock.observe(start + SECOND, Lsn(300), Lsn(100), age(60)), 60 * SECOND);
        assert_eq!(clock.observe(start + 2 * SECOND, Lsn(300), Lsn(100), age(61)), 61 * SECOND);
    }

    #[test]
    fn what_a_new_primary_does_not_have_is_forgotten() {
        let mut clock = LagClock::default();
        let start = Instant::now();
        clock.observe(start, Lsn(200), Lsn(200), streaming(None));
        clock.observe(start, Lsn(900), Lsn(200), streaming(None));
        assert_eq!(clock.observe(start + SECOND, Lsn(300), Lsn(200), streaming(None)), SECOND);
        assert_eq!(clock.observe(start + 2 * SECOND, Lsn(300), Lsn(300), streaming(None)), Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_kept() {
        let mut clock = LagClock::default();
        let start = Instant::now();
        clock.observe(start, Lsn(0), Lsn(0), streaming(None));
        for i in 1..10_000u32 {
            let lag = clock.observe(start + SECOND * i, Lsn(u64::from(i)), Lsn(0), streaming(None));
            assert_eq!(lag, SECOND * (i - 1));
            assert!(clock.ahead.len() <= KEPT);
        }
    }
}
