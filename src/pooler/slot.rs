//! Who may touch a client: one word in shared memory, changed by compare-and-swap only. Pure; the front's threads and the
//! pooled backends use it.
//!
//! ```text
//!                  Notifying -> Called
//!                     ^  |         |
//!                     |  v         v
//! Free -> Login ----> Idle <-> Attached -> Closing -> Free (the next generation)
//!           |          |          ^
//!           v          v          v
//!         Free      Closing   Cancelling
//! ```
//!
//! From Called it is Idle again, not Attached; from both, Closing. A client of the listen-only port is Listening from its Login to its
//! Closing.
//!
//! Whoever loses a swap lets go: it does not own the client. The generation tells a client from the one that had the slot
//! before.

#[cfg(test)]
mod explorer;
#[cfg(test)]
mod tests;

#[cfg(test)]
use explorer::{AtomicI64, AtomicU64};
use std::sync::atomic::Ordering::*;
#[cfg(not(test))]
use std::sync::atomic::{AtomicI64, AtomicU64};

/// Who has the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nobody's.
    Free = 0,
    /// The front, before the client is in its pool.
    Login = 1,
    /// The pool: whichever backend takes it next.
    Idle = 2,
    /// One backend, which serves it.
    Attached = 3,
    /// One backend serves it and the front is sending that one a cancel; nobody may let go meanwhile.
    Cancelling = 4,
    /// The front, which ends it.
    Closing = 5,
    /// The front, which writes notifications to it.
    Notifying = 6,
    /// Likewise, and a backend has come for it meanwhile: the pool is to hear of it again.
    Called = 7,
    /// The front, which alone speaks to it: a client of the listen-only port.
    Listening = 8,
}

/// The word as it was at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen(u64);

impl Seen {
    const fn new(state: State, server: u32, generation: u32) -> Self {
        Self(((generation as u64) << 32) | (((server & 0x00ff_ffff) as u64) << 8) | state as u64)
    }

    pub fn state(self) -> State {
        match self.0 as u8 {
            1 => State::Login,
            2 => State::Idle,
            3 => State::Attached,
            4 => State::Cancelling,
            5 => State::Closing,
            6 => State::Notifying,
            7 => State::Called,
            8 => State::Listening,
            _ => State::Free,
        }
    }

    /// The backend that has it; means something while attached or cancelling.
    pub fn server(self) -> u32 {
        (self.0 >> 8) as u32 & 0x00ff_ffff
    }

    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What came of letting go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    Done,
    /// A cancel is under way: try again in a moment.
    Later,
    /// It was not ours.
    Lost,
}

/// The word. All-zero is a free slot of generation 0.
#[repr(transparent)]
#[derive(Default)]
pub struct SlotWord(AtomicU64);

impl SlotWord {
    pub fn seen(&self) -> Seen {
        Seen(self.0.load(Acquire))
    }

    fn swap(&self, from: Seen, to: Seen) -> bool {
        self.0.compare_exchange(from.0, to.0, AcqRel, Acquire).is_ok()
    }

    /// The front takes a free slot for a client that logs in. Its generation, which is never 0.
    pub fn claim(&self) -> Option<u32> {
        let seen = self.seen();
        let generation = seen.generation().wrapping_add(1).max(1);
        let free = seen.state() == State::Free;
        (free && self.swap(seen, Seen::new(State::Login, 0, generation))).then_some(generation)
    }

    /// The front puts a logged-in client into its pool.
    pub fn enter(&self, generation: u32) -> bool {
        self.swap(Seen::new(State::Login, 0, generation), Seen::new(State::Idle, 0, generation))
    }

    /// The front keeps a logged-in client to itself.
    pub fn enter_listening(&self, generation: u32) -> bool {
        self.swap(Seen::new(State::Login, 0, generation), Seen::new(State::Listening, 0, generation))
    }

    /// The front ends a client that it has kept to itself.
    pub fn close_listening(&self, generation: u32) -> bool {
        self.swap(Seen::new(State::Listening, 0, generation), Seen::new(State::Closing, 0, generation))
    }

    /// A backend takes an idle client.
    pub fn take(&self, generation: u32, server: u32) -> bool {
        self.swap(Seen::new(State::Idle, 0, generation), Seen::new(State::Attached, server, generation))
    }

    /// The front takes an idle client to write to it. Nobody else does, until [`SlotWord::notified`] or [`SlotWord::close_notifying`].
    pub fn notify(&self, generation: u32) -> bool {
        self.swap(Seen::new(State::Idle, 0, generation), Seen::new(State::Notifying, 0, generation))
    }

    /// A backend that would take a client finds the front writing to it: the pool hears of the client afterwards. False when the front
    /// has just ended that: look again.
    pub fn call(&self, generation: u32) -> bool {
        self.swap(Seen::new(State::Notifying, 0, generation), Seen::new(State::Called, 0, generation))
    }

    /// A backend has heard of the client, as nobody else has: takes it, or leaves a call to the front that writes to it. The client's
    /// generation when it has it. Only what is neither idle nor written to is let be: whoever has it has the pool hear of it.
    pub fn come(&self, server: u32) -> Option<u32> {
        loop {
            let seen = self.seen();
            let generation = seen.generation();
            match seen.state() {
                State::Idle if self.take(generation, server) => return Some(generation),
                State::Notifying if self.call(generation) => return None,
                // It has changed meanwhile.
                State::Idle | State::Notifying => {}
                _ => return None,
            }
        }
    }

    /// The front has written: the client is idle. Whether a backend has come for it meanwhile, so that the pool is to hear of it again.
    pub fn notified(&self, generation: u32) -> bool {
        let idle = Seen::new(State::Idle, 0, generation);
        !self.swap(Seen::new(State::Notifying, 0, generation), idle)
            && self.swap(Seen::new(State::Called, 0, generation), idle)
    }

    /// The front ends a client that it was writing to.
    pub fn close_notifying(&self, generation: u32) -> bool {
        let closing = Seen::new(State::Closing, 0, generation);
        self.swap(Seen::new(State::Notifying, 0, generation), closing)
            || self.swap(Seen::new(State::Called, 0, generation), closing)
    }

    /// A backend gives its client back to the pool.
    pub fn release(&self, generation: u32, server: u32) -> Release {
        self.leave(server, Seen::new(State::Idle, 0, generation))
    }

    /// A backend hands its client to the front to be ended.
    pub fn hang_up(&self, generation: u32, server: u32) -> Release {
        self.leave(server, Seen::new(State::Closing, 0, generation))
    }

    fn leave(&self, server: u32, to: Seen) -> Release {
        let generation = to.generation();
        let ours = Seen::new(State::Attached, server, generation);
        // What was there instead is what the swap itself has found: a second look may come after the cancel's end.
        match self.0.compare_exchange(ours.0, to.0, AcqRel, Acquire) {
            Ok(_) => Release::Done,
            Err(found) if found == Seen::new(State::Cancelling, server, generation).0 => Release::Later,
            Err(_) => Release::Lost,
        }
    }

    /// The front is about to send a cancel to the backend that it returns, which keeps its client until
    /// [`SlotWord::cancelled`].
    pub fn start_cancel(&self, generation: u32) -> Option<u32> {
        let seen = self.seen();
        let ours = seen.state() == State::Attached && seen.generation() == generation;
        let to = Seen::new(State::Cancelling, seen.server(), generation);
        (ours && self.swap(seen, to)).then_some(seen.server())
    }

    /// The cancel has been sent.
    pub fn cancelled(&self, generation: u32, server: u32) {
        self.swap(
            Seen::new(State::Cancelling, server, generation),
            Seen::new(State::Attached, server, generation),
        );
    }

    /// The front ends an idle client. Whoever holds the client otherwise has to be asked.
    pub fn close_idle(&self, generation: u32) -> bool {
        self.swap(Seen::new(State::Idle, 0, generation), Seen::new(State::Closing, 0, generation))
    }

    /// The front takes the client of a backend that has died. False while a cancel is under way.
    pub fn bury(&self, generation: u32, server: u32) -> bool {
        self.swap(Seen::new(State::Attached, server, generation), Seen::new(State::Closing, 0, generation))
    }

    /// The front has closed the client (or given up its login): the slot is free.
    pub fn free(&self, generation: u32) -> bool {
        let free = Seen::new(State::Free, 0, generation);
        self.swap(Seen::new(State::Closing, 0, generation), free)
            || self.swap(Seen::new(State::Login, 0, generation), free)
    }

    /// Frees it whoever had it: only when no backend and no front of before is alive.
    pub fn reset(&self) {
        let seen = self.seen();
        self.0.store(Seen::new(State::Free, 0, seen.generation()).0, Release);
    }
}

/// Since when the front has seen the client ready with no backend for it, in microseconds since 1970; 0 when it has not, or
/// a backend has taken it.
#[repr(transparent)]
#[derive(Default)]
pub struct WaitingSince(AtomicI64);

impl WaitingSince {
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// The client does not wait.
    pub fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    /// The front has seen an idle client ready, with no backend for it: since when. `None` when a backend has it meanwhile.
    pub fn mark(&self, word: &SlotWord, seen: Seen, now: i64) -> Option<i64> {
        let since = self.get();
        if since != 0 {
            return Some(since);
        }
        // First the mark, then the look: a backend that takes the client takes the mark away after that.
        self.0.store(now, SeqCst);
        if word.seen() != seen {
            self.clear();
            return None;
        }
        Some(now)
    }

    /// A backend has taken the client: since when it has waited.
    pub fn end(&self) -> i64 {
        self.0.swap(0, SeqCst)
    }
}
