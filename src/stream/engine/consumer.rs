//! The engine of a source that is not the server's own WAL: takes messages from it, gives them to the sinks of all its streams, and
//! acknowledges them when every sink has them and what was no event is kept aside. One thread.

use super::feed::{Feed, From};
use super::feeds::{self, Feeds};
use super::marks::Marks;
use super::watch::Watch;
use super::{IDLE, NEWS, Outcome};
use crate::stream::position::{Lsn, Position};
use crate::stream::sink::{Event, Failure};
use crate::stream::source::{Received, Rejected, Source};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::time::{Duration, Instant};

/// Messages that were no events and are kept aside at once.
const REJECTED: usize = 100;

/// What both threads hold.
pub struct Shared {
    /// What was no event and is not kept aside yet, and its bytes.
    rejected: Mutex<VecDeque<Arc<Rejected>>>,
    rejected_bytes: AtomicUsize,
    /// Serial number of the last rejected message that is kept aside.
    kept: AtomicU64,
    trouble: Mutex<Option<String>>,
    outcome: Mutex<Option<Outcome>>,
    /// Nothing more is taken.
    full: AtomicBool,
    stop: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    /// `wake` makes main look.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            rejected: Mutex::default(),
            rejected_bytes: AtomicUsize::new(0),
            kept: AtomicU64::new(0),
            trouble: Mutex::default(),
            outcome: Mutex::default(),
            full: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            wake: Box::new(wake),
        }
    }

    /// Main's: what is to be kept aside, the oldest first, at most 100. It stays until [`Shared::keep`].
    pub fn rejected(&self) -> Vec<Arc<Rejected>> {
        self.rejected.lock().iter().take(REJECTED).cloned().collect()
    }

    /// Main's: all up to this number are kept aside.
    pub fn keep(&self, serial: u64) {
        let mut rejected = self.rejected.lock();
        while let Some(kept) = rejected.pop_front_if(|rejected| rejected.serial <= serial) {
            self.rejected_bytes.fetch_sub(kept.size(), Relaxed);
        }
        drop(rejected);
        self.kept.store(serial, Release);
    }

    /// Main's: no more is to be taken; what has been taken is passed on.
    pub fn take_no_more(&self) {
        self.full.store(true, Release);
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
    feeds: Feeds,
    watch: Watch,
    /// Taken, and not yet given to every feed.
    waiting: VecDeque<Received>,
    /// Bytes of those that wait, and how many of these, of what not every sink has, and of what is to be kept aside there may be.
    bytes: usize,
    buffer_size: usize,
    /// How many feeds have the first of those that wait, and since when it is given to them.
    served: usize,
    giving: Option<Instant>,
    /// Serial numbers: of the last message that every feed was given, and of the last that was rejected.
    handled: u64,
    rejected: u64,
}

impl Consumer {
    /// Serial numbers begin with 1. `buffer_size`: bytes of messages that are kept here, whatever for, but for the last one that was taken,
    /// which may be larger than what was left.
    pub fn new(
        shared: Arc<Shared>,
        source: Box<dyn Source>,
        streams: Vec<From>,
        watch: Watch,
        buffer_size: usize,
    ) -> Self {
        Self {
            shared,
            source,
            // No more comes than there is room for: nothing is ever left out.
            feeds: Feeds::new(streams, usize::MAX),
            watch,
            waiting: VecDeque::new(),
            bytes: 0,
            buffer_size,
            served: 0,
            giving: None,
            handled: 0,
            rejected: 0,
        }
    }

    /// Runs until it is stopped or cannot go on.
    pub fn run(mut self) {
        if let Some(outcome) = feeds::outcome(|| self.serve()) {
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
                self.feeds.flush();
            }
            self.feeds.poll(if self.waiting.is_empty() { Duration::ZERO } else { NEWS });
            self.acknowledge();
        }
        // What is out does not come again, if it arrives soon.
        self.feeds.settle();
        self.acknowledge();
        let _ = self.source.poll(0, Duration::ZERO);
        None
    }

    /// Bytes that may be taken.
    fn room(&self) -> usize {
        // Nobody goes on without the others: a message is acknowledged for all of them.
        if self.shared.full.load(Acquire) || !self.feeds.iter().all(Feed::is_fed) {
            return 0;
        }
        let kept = self.bytes + self.feeds.arrears.size() + self.shared.rejected_bytes.load(Relaxed);
        self.buffer_size.saturating_sub(kept)
    }

    fn take(&mut self) -> Result<(), Failure> {
        let busy = self.feeds.are_out() || !self.waiting.is_empty();
        let received = self.source.poll(self.room(), if busy { NEWS } else { IDLE })?;
        self.bytes += received.iter().map(Received::size).sum::<usize>();
        self.waiting.extend(received);
        let trouble = self.source.trouble();
        let mut shown = self.shared.trouble.lock();
        if *shown != trouble {
            let is_in_trouble = trouble.is_some();
            *shown = trouble;
            drop(shown);
            self.feeds.iter_mut().for_each(|feed| feed.hear_of_source(is_in_trouble));
            (self.shared.wake)();
        }
        Ok(())
    }

    fn give(&mut self) {
        while let Some(first) = self.waiting.front() {
            if let Received::Message(message) = first {
                let event = Event {
                    serial: message.serial,
                    schema: "",
                    table: &message.table,
                    key: message.key.as_deref(),
                    payload: &message.payload,
                };
                let giving = *self.giving.get_or_insert_with(|| {
                    // Whose sink fails is given it again.
                    self.feeds.arrears.keep(&event, Position::default(), true);
                    Instant::now()
                });
                while let Some(feed) = self.feeds.get_mut(self.served) {
                    // Who has failed and caught up has had it of what was kept.
                    if feed.given() < event.serial && (!feed.is_fed() || !feed.give(&event) || !feed.is_fed())
                    {
                        return;
                    }
                    self.watch.given(feed.shown(), None, &event, giving.elapsed());
                    self.served += 1;
                }
                self.watch.done(giving.elapsed());
            }
            self.served = 0;
            self.giving = None;
            self.handled = first.serial();
            self.bytes -= first.size();
            if let Some(Received::Rejected(rejected)) = self.waiting.pop_front() {
                self.rejected = rejected.serial;
                self.shared.rejected_bytes.fetch_add(rejected.size(), Relaxed);
                self.shared.rejected.lock().push_back(Arc::new(rejected));
                (self.shared.wake)();
            }
        }
    }

    fn acknowledge(&mut self) {
        self.feeds.reach(self.handled, &Marks::new(Lsn(0)));
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
