//! What was given to a sink and is not yet known to be safe. Events are numbered by the engine, one after the other; a sink may hear of
//! their delivery in any order (partitions of a topic), and only what has no gap before it is delivered. The sink's thread.

use std::collections::VecDeque;

/// The serial numbers that are out.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The first that is out; all before it are delivered.
    first: u64,
    /// From `first` on: whether it is safe.
    safe: VecDeque<bool>,
}

impl Ledger {
    /// `delivered`: the last serial number that needs no delivery any more.
    pub fn new(delivered: u64) -> Self {
        Self { first: delivered + 1, safe: VecDeque::new() }
    }

    /// This one goes out. Numbers that were left out in between are nobody's and count as safe.
    pub fn out(&mut self, serial: u64) {
        if self.safe.is_empty() && serial > self.first {
            self.first = serial;
        }
        while self.first + (self.safe.len() as u64) < serial {
            self.safe.push_back(true);
        }
        if self.first + (self.safe.len() as u64) == serial {
            self.safe.push_back(false);
        }
    }

    /// This one is safe.
    pub fn safe(&mut self, serial: u64) {
        if let Some(safe) =
            serial.checked_sub(self.first).and_then(|i| self.safe.get_mut(usize::try_from(i).ok()?))
        {
            *safe = true;
        }
        while self.safe.front() == Some(&true) {
            self.safe.pop_front();
            self.first += 1;
        }
    }

    /// All up to this number are safe.
    pub fn delivered(&self) -> u64 {
        self.first - 1
    }

    /// How many are out, those behind a gap included.
    pub fn outstanding(&self) -> usize {
        self.safe.len()
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
}
