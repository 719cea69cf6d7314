//! What was given to a sink and is not yet known to be safe. Events are numbered by the engine, one after the other; a sink may hear of
//! their delivery in any order (partitions of a topic), and only what has no gap before it is delivered. The sink's thread.

use std::collections::VecDeque;

/// The serial numbers that are out. Eight bytes for each, whatever the numbers left out between them.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The last that was out, or needed no delivery.
    last: u64,
    /// What is out, rising, and what is safe but behind a gap.
    out: VecDeque<Entry>,
}

/// A serial number, shifted by the bit that says whether it is safe.
#[derive(Debug, Clone, Copy)]
struct Entry(u64);

impl Entry {
    fn serial(self) -> u64 {
        self.0 >> 1
    }

    fn is_safe(self) -> bool {
        self.0 & 1 == 1
    }
}

impl Ledger {
    /// `delivered`: the last serial number that needs no delivery any more.
    pub fn new(delivered: u64) -> Self {
        Self { last: delivered, out: VecDeque::new() }
    }

    /// This one goes out. Numbers that were left out in between are nobody's and count as safe; one that does not rise is ignored.
    pub fn out(&mut self, serial: u64) {
        if serial > self.last {
            self.last = serial;
            self.out.push_back(Entry(serial << 1));
        }
    }

    /// This one is safe.
    pub fn safe(&mut self, serial: u64) {
        let Some(front) = self.out.front() else { return };
        // Numbers mostly follow one another: then the place is known.
        let guess = serial.checked_sub(front.serial()).and_then(|place| usize::try_from(place).ok());
        let place = guess.filter(|place| self.out.get(*place).is_some_and(|entry| entry.serial() == serial));
        let place = place.or_else(|| self.out.binary_search_by_key(&serial, |entry| entry.serial()).ok());
        if let Some(entry) = place.and_then(|place| self.out.get_mut(place)) {
            entry.0 |= 1;
        }
        while self.out.front().is_some_and(|entry| entry.is_safe()) {
            self.out.pop_front();
        }
    }

    /// All up to this number are safe.
    pub fn delivered(&self) -> u64 {
        self.out.front().map_or(self.last, |entry| entry.serial() - 1)
    }

    /// The last number that went out.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// How many are out, those behind a gap included.
    pub fn outstanding(&self) -> usize {
        self.out.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_a_gap_is_not_delivered() {
        let mut ledger = Ledger::new(0);
        for serial in 1..=5 {
            ledger.out(serial);
        }
        ledger.safe(2);
        ledger.safe(3);
        assert_eq!((ledger.delivered(), ledger.outstanding()), (0, 5));
        ledger.safe(1);
        assert_eq!((ledger.delivered(), ledger.outstanding()), (3, 2));
        ledger.safe(3);
        ledger.safe(9);
        assert_eq!(ledger.delivered(), 3);
        ledger.safe(5);
        ledger.safe(4);
        assert_eq!((ledger.delivered(), ledger.outstanding()), (5, 0));
    }

    #[test]
    fn numbers_left_out_hold_nothing_up() {
        let mut ledger = Ledger::new(10);
        ledger.out(15);
        assert_eq!(ledger.delivered(), 14);
        ledger.out(18);
        ledger.safe(15);
        assert_eq!(ledger.delivered(), 17);
        ledger.safe(18);
        assert_eq!(ledger.delivered(), 18);
    }

    #[test]
    fn a_leap_of_numbers_costs_nothing() {
        let mut ledger = Ledger::new(0);
        let far = 1 << 60;
        for serial in [1, far, far + 7] {
            ledger.out(serial);
        }
        assert_eq!(ledger.outstanding(), 3);
        ledger.safe(far + 7);
        ledger.safe(1);
        assert_eq!(ledger.delivered(), far - 1);
        ledger.safe(far);
        assert_eq!((ledger.delivered(), ledger.outstanding()), (far + 7, 0));
    }
}
