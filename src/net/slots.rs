//! What each listener has done, as words in shared memory: written by network threads of one worker, read by
//! every backend. The counts outlive a worker that is started again.

use crate::bridge::Bytes;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*};

/// Listeners at once, over all kinds: four lists of 8 entries with up to 4 addresses each.
pub const SLOTS: usize = 128;

/// Bytes of an address that are kept: the longest socket path fits.
const ADDRESS_MAX: usize = 112;

/// The table. All-zero bytes are a valid, empty one.
#[repr(C)]
pub struct Slots {
    slots: [Slot; SLOTS],
}

/// One listener. `state` guards the rest: an address is written only while `CLAIMING`.
#[repr(C)]
#[derive(Default)]
pub struct Slot {
    state: AtomicU32,
    kind: AtomicU32,
    errno: AtomicI32,
    address: Bytes<ADDRESS_MAX>,
    /// Clients that were answered.
    pub served: AtomicU64,
    /// Clients that `postern.status_allow` turned away.
    pub refused: AtomicU64,
    /// Connections ended because of a limit of time or number, or a failed accept or send.
    pub failed: AtomicU64,
}

const FREE: u32 = 0;
const CLAIMING: u32 = 1;
const CLOSED: u32 = 2;
const FAILED: u32 = 3;
const LISTENING: u32 = 4;
/// Wanted, but the machine does not have the address; not reported, and not given to another.
const ABSENT: u32 = 5;

/// What a listener is for, in its own room's numbers.
pub type Kind = u32;

/// A copy of a slot for reporting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotReport {
    pub kind: Kind,
    pub address: String,
    pub listening: bool,
    /// Why it does not listen: an error number, or -1.
    pub errno: i32,
    pub served: u64,
    pub refused: u64,
    pub failed: u64,
}

impl SlotReport {
    /// The error in words, for a listener that does not listen.
    pub fn error(&self) -> Option<String> {
        match (self.listening, self.errno) {
            (true, _) => None,
            (false, -1) => Some("host name does not resolve, or no place for the listener".to_owned()),
            (false, errno) => Some(std::io::Error::from_raw_os_error(errno).to_string()),
        }
    }
}

impl Slots {
    /// Marks what an earlier worker left as closed; its counts go on when the same address is opened again.
    pub fn close_all(&self) {
        for slot in &self.slots {
            if slot.state.load(Acquire) != FREE {
                slot.state.store(CLOSED, Release);
            }
        }
    }

    /// The slot for an address: the one that it had before, else a free one, else a closed one of another.
    /// `None` when all are in use.
    pub fn claim(&self, kind: Kind, address: &str) -> Option<&Slot> {
        let address = cut(address);
        let take = |slot: &&Slot, from| slot.state.compare_exchange(from, CLAIMING, AcqRel, Acquire).is_ok();
        let same = |slot: &&Slot| slot.kind.load(Relaxed) == kind && slot.address.is(address.as_bytes());
        if let Some(slot) = self.slots.iter().filter(same).find(|slot| take(slot, CLOSED)) {
            return Some(slot.opened(kind, address));
        }
        let fresh = self.slots.iter().find(|slot| take(slot, FREE));
        let slot = fresh.or_else(|| self.slots.iter().find(|slot| take(slot, CLOSED)))?;
        for counter in [&slot.served, &slot.refused, &slot.failed] {
            counter.store(0, Relaxed);
        }
        Some(slot.opened(kind, address))
    }

    /// Every listener that the settings want, in order of kind and address.
    pub fn report(&self) -> Vec<SlotReport> {
        let wanted = |slot: &&Slot| matches!(slot.state.load(Acquire), FAILED | LISTENING);
        let mut all: Vec<_> = self.slots.iter().filter(wanted).map(Slot::report).collect();
        all.sort_by(|a, b| (a.kind, &a.address).cmp(&(b.kind, &b.address)));
        all
    }
}

impl Slot {
    pub fn set_listening(&self) {
        self.errno.store(0, Relaxed);
        self.state.store(LISTENING, Release);
    }

    pub fn set_failed(&self, errno: i32) {
        self.errno.store(errno, Relaxed);
        self.state.store(FAILED, Release);
    }

    pub fn set_absent(&self) {
        self.state.store(ABSENT, Release);
    }

    pub fn close(&self) {
        self.state.store(CLOSED, Release);
    }

    fn opened(&self, kind: Kind, address: &str) -> &Self {
        self.kind.store(kind, Relaxed);
        self.address.set(address.as_bytes());
        self.set_failed(0);
        self
    }

    fn report(&self) -> SlotReport {
        SlotReport {
            kind: self.kind.load(Relaxed),
            address: self.address.text(),
            listening: self.state.load(Acquire) == LISTENING,
            errno: self.errno.load(Relaxed),
            served: self.served.load(Relaxed),
            refused: self.refused.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}

fn cut(address: &str) -> &str {
    &address[..address.floor_char_boundary(ADDRESS_MAX)]
}

impl Default for Slots {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Slot::default()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_when_an_address_is_opened_again() {
        let slots = Slots::default();
        let slot = slots.claim(1, "127.0.0.1:5400").unwrap();
        slot.set_listening();
        slot.served.store(7, Relaxed);
        slots.close_all();
        assert!(slots.report().is_empty(), "what is closed is not reported");
        let again = slots.claim(1, "127.0.0.1:5400").unwrap();
        again.set_failed(98);
        let report = &slots.report()[0];
        assert_eq!((report.served, report.listening), (7, false));
        assert!(report.error().unwrap().contains("in use"), "{:?}", report.error());
    }

    #[test]
    fn a_full_table_refuses_and_a_closed_slot_is_reused() {
        let slots = Slots::default();
        let taken: Vec<_> = (0..SLOTS).map(|i| slots.claim(0, &format!("a{i}")).unwrap()).collect();
        assert!(slots.claim(0, "one too many").is_none());
        taken[5].served.store(9, Relaxed);
        taken[5].close();
        let slot = slots.claim(0, "one too many").unwrap();
        assert_eq!(slot.served.load(Relaxed), 0);
        assert_eq!(slots.report().len(), SLOTS);
    }

    #[test]
    fn a_long_address_is_cut() {
        let slots = Slots::default();
        slots.claim(0, &format!("/{}", "é".repeat(100))).unwrap();
        assert_eq!(slots.report()[0].address.len(), ADDRESS_MAX - 1);
    }
}
