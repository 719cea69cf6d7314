//! The streams of a source as its engine feeds them, whatever the source is, with what is kept for those that have failed. Engine's thread.

use super::arrears::Arrears;
use super::feed::{Feed, From};
use super::marks::Marks;
use super::{NEWS, Outcome};
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// So long what is out may take to arrive at the end, so that it is not sent again.
const SETTLING: Duration = Duration::from_secs(1);

/// See the file.
pub(super) struct Feeds {
    feeds: Vec<Feed>,
    pub arrears: Arrears,
}

impl Feeds {
    /// `limit`: bytes of events that are kept for sinks that have failed.
    pub fn new(streams: Vec<From>, limit: usize) -> Self {
        Self { feeds: streams.into_iter().map(Feed::new).collect(), arrears: Arrears::new(limit) }
    }

    /// Something is out that its sink has not confirmed.
    pub fn are_out(&self) -> bool {
        self.iter().any(Feed::is_out)
    }

    /// Hears from each sink, waiting so long for news of what is out, and sees to those that have failed.
    pub fn poll(&mut self, patience: Duration) {
        for index in 0..self.feeds.len() {
            self.poll_one(index, patience);
        }
    }

    pub fn poll_one(&mut self, index: usize, patience: Duration) {
        if let Some(feed) = self.feeds.get_mut(index) {
            feed.poll(if feed.is_out() { patience } else { Duration::ZERO });
            feed.tend(&self.arrears);
        }
    }

    pub fn flush(&mut self) {
        self.iter_mut().for_each(Feed::flush);
    }

    /// A worker is to begin anew, for one of them.
    pub fn want_again(&self) -> bool {
        self.iter().any(Feed::wants_again)
    }

    /// The end: what is out has a moment to arrive.
    pub fn settle(&mut self) {
        let end = Instant::now() + SETTLING;
        while self.are_out() && Instant::now() < end {
            for feed in &mut self.feeds {
                feed.poll(if feed.is_out() { NEWS } else { Duration::ZERO });
            }
        }
    }

    /// Everything up to this serial number has been offered to whoever is fed. Drops what nobody lacks; whoever lacks what could not be kept
    /// remembers by `marks` where it is.
    pub fn reach(&mut self, serial: u64, marks: &Marks) {
        let (cut, last) = (self.arrears.is_cut(), self.arrears.last());
        for feed in &mut self.feeds {
            feed.reach(serial);
            if cut {
                feed.lose(marks, last);
            }
        }
        let least = self.iter().map(|feed| feed.needs(serial)).min().unwrap_or(serial);
        self.arrears.forget(least);
    }
}

impl Deref for Feeds {
    type Target = [Feed];

    fn deref(&self) -> &[Feed] {
        &self.feeds
    }
}

impl DerefMut for Feeds {
    fn deref_mut(&mut self) -> &mut [Feed] {
        &mut self.feeds
    }
}

/// What an engine comes to. A panic is said at once: main would wait for it for ever.
pub(super) fn outcome(serve: impl FnOnce() -> Option<Outcome>) -> Option<Outcome> {
    let broken = |_| Some(Outcome::Broken("its engine has panicked".to_owned()));
    catch_unwind(AssertUnwindSafe(serve)).unwrap_or_else(broken)
}
