//! The engine of a source that is not the server's own WAL: takes messages from it, gives them to the sinks of all its streams, and
//! acknowledges them when every sink has them and what was no event is kept aside. One thread.

use super::feed::{Feed, From};
use super::{IDLE, NEWS, Outcome};
use crate::stream::shared::StreamState;
use crate::stream::sink::{Event, Failure};
use crate::stream::source::{Received, Rejected, Source};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// Messages that were taken from the source and not yet by every sink.
const AHEAD: usize = 1_000;

/// What was no event and is not kept aside yet.
const REJECTED: usize = 100;

/// Messages that are taken at once: their size is known only when they are there.
const BATCH: usize = 50;

/// What both threads hold.
pub struct Shared {
    rejected: Mutex<VecDeque<Rejected>>,
    /// Serial number of the last rejected message that is kept aside.
    kept: AtomicU64,
    trouble: Mutex<Option<String>>,
    outcome: Mutex<Option<Outcome>>,
    stop: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    /// `wake` makes main look.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            rejected: Mutex::default(),
            kept: AtomicU64::new(0),
            trouble: Mutex::default(),
            outcome: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: Box::new(wake),
        }
    }

    /// Main's: what is to be kept aside, the oldest first. It stays until [`Shared::keep`].
    pub fn rejected(&self) -> Vec<Rejected> {
        self.rejected.lock().iter().cloned().collect()
    }

    /// Main's: all up to this number are kept aside.
    pub fn keep(&self, serial: u64) {
        self.rejected.lock().retain(|rejected| rejected.serial > serial);
        self.kept.store(serial, Release);
    }

    /// What the source is in trouble with while it goes on trying.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Why the engine has ended, if by itself.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().clone()
    }

    pub fn stop(&self) {
        self.stop.store(true, Release);
    }
}

/// See the file.
pub struct Consumer {
    shared: Arc<Shared>,
    source: Box<dyn Source>,
    feeds: Vec<Feed>,
    waiting: VecDeque<Received>,
    /// Bytes of those that wait, and how many there may be.
    bytes: usize,
    buffer_size: usize,
    /// How many feeds have the first of those that wait.
    served: usize,
    /// Serial numbers: of the last message that every feed was given, and of the last that was rejected.
    handled: u64,
    rejected: u64,
}

impl Consumer {
    /// Serial numbers begin with 1. `buffer_size`: bytes of messages beyond which no more are taken before these are gone.
    pub fn new(shared: Arc<Shared>, source: Box<dyn Source>, streams: Vec<From>, buffer_size: usize) -> Self {
        let feeds = streams.into_iter().map(Feed::new).collect();
        Self {
            shared,
            source,
            feeds,
            waiting: VecDeque::new(),
            bytes: 0,
            buffer_size,
            served: 0,
            handled: 0,
            rejected: 0,
        }
    }

    /// Runs until it is stopped or cannot go on.
    pub fn run(mut self) {
        // A panic is said at once: main would not look for another reason.
        let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.serve()));
        let broken = |_| Some(Outcome::Broken("its engine has panicked".to_owned()));
        if let Some(outcome) = served.unwrap_or_else(broken) {
            *self.shared.outcome.lock() = Some(outcome);
            (self.shared.wake)();
        }
    }

    fn serve(&mut self) -> Option<Outcome> {
        while !self.shared.stop.load(Acquire) {
            if let Err(failure) = self.take() {
                return Some(Outcome::Broken(failure.message));
            }
            self.give();
            if self.waiting.is_empty() {
                self.feeds.iter_mut().for_each(Feed::flush);
            }
            let patience = if self.waiting.is_empty() { Duration::ZERO } else { NEWS };
            self.poll(patience);
            if self.feeds.iter_mut().any(Feed::wants_again) {
                return Some(Outcome::Again);
            }
            self.acknowledge();
        }
        // What is out has a moment to arrive, so that it does not come again.
        let end = Instant::now() + Duration::from_secs(1);
        while self.feeds.iter().any(Feed::is_out) && Instant::now() < end {
            self.poll(NEWS);
        }
        self.acknowledge();
        let _ = self.source.poll(0, Duration::ZERO);
        None
    }

    /// Nobody goes on without the others: a message is acknowledged for all of them.
    fn all_are_fed(&self) -> bool {
        self.feeds.iter().all(Feed::is_fed)
    }

    fn take(&mut self) -> Result<(), Failure> {
        let has_room = self.all_are_fed() && self.bytes < self.buffer_size;
        let room = if has_room { AHEAD.saturating_sub(self.waiting.len()).min(BATCH) } else { 0 };
        let out = self.feeds.iter().any(Feed::is_out) || !self.waiting.is_empty();
        let received = self.source.poll(room, if out { NEWS } else { IDLE })?;
        self.bytes += received.iter().map(Received::size).sum::<usize>();
        self.waiting.extend(received);
        let trouble = self.source.trouble();
        let mut shown = self.shared.trouble.lock();
        if *shown != trouble {
            let state = if trouble.is_some() { StreamState::Trouble } else { StreamState::Running };
            *shown = trouble;
            drop(shown);
            // Nothing comes to them, and whoever watches them is to see it.
            self.feeds.iter().filter(|feed| feed.is_fed()).for_each(|feed| feed.shown().set_state(state));
            (self.shared.wake)();
        }
        Ok(())
    }

    fn give(&mut self) {
        while let Some(first) = self.waiting.front() {
            match first {
                Received::Rejected(rejected) => {
                    let mut kept = self.shared.rejected.lock();
                    if kept.len() >= REJECTED {
                        return;
                    }
                    kept.push_back(rejected.clone());
                    drop(kept);
                    self.rejected = rejected.serial;
                    (self.shared.wake)();
                }
                Received::Message(message) => {
                    let event = Event {
                        serial: message.serial,
                        schema: "",
                        table: &message.table,
                        key: message.key.as_deref(),
                        payload: &message.payload,
                    };
                    while let Some(feed) = self.feeds.get_mut(self.served) {
                        if !feed.give(&event) || !feed.is_fed() {
                            return;
                        }
                        self.served += 1;
                    }
                }
            }
            self.served = 0;
            self.handled = first.serial();
            self.bytes -= first.size();
            self.waiting.pop_front();
        }
    }

    fn poll(&mut self, patience: Duration) {
        for feed in &mut self.feeds {
            feed.poll(if feed.is_out() { patience } else { Duration::ZERO });
        }
    }

    fn acknowledge(&mut self) {
        // Whoever is fed no more has only what its sink has said that it has.
        let of = |feed: &Feed| if feed.is_fed() { feed.delivered(self.handled) } else { feed.has() };
        let mut serial = self.feeds.iter().map(of).min().unwrap_or(self.handled).min(self.handled);
        if self.rejected > self.shared.kept.load(Acquire) {
            let first = self.shared.rejected.lock().front().map(|rejected| rejected.serial);
            serial = serial.min(first.map_or(serial, |first| first - 1));
        }
        if serial > 0 {
            self.source.acknowledge(serial);
        }
    }
}

#[cfg(test)]
mod tests;
