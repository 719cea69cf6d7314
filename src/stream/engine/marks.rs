//! Which serial numbers belong to which transaction, for those that somebody still lacks. Engine's thread.

use crate::stream::position::{Lsn, Position};
use std::collections::VecDeque;

/// A transaction.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// The serial number of its beginning.
    base: u64,
    /// That of its end; nothing while it is replayed.
    last: Option<u64>,
    /// The end of its commit record.
    commit: Lsn,
    /// Who has it all has everything that was committed before this: what was read behind it had nothing for us.
    lsn: Lsn,
    /// When it was committed: microseconds since 2000.
    time: i64,
    /// Rows of a snapshot: nobody's position moves by it.
    snapshot: bool,
}

/// See the file. As long as there are transactions that are not delivered by all and had an event that was written: the sinks, which keep
/// that event, bound their number.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    marks: VecDeque<Mark>,
    /// Everybody has everything that was committed before this.
    reached: Lsn,
    /// Tables of a snapshot that everybody has.
    snapshots: u64,
}

impl Marks {
    pub fn new(reached: Lsn) -> Self {
        Self { marks: VecDeque::new(), reached, snapshots: 0 }
    }

    /// A transaction begins whose first serial number is this.
    pub fn begin(&mut self, base: u64, lsn: Lsn, time: i64) {
        self.marks.push_back(Mark { base, last: None, commit: lsn, lsn, time, snapshot: false });
    }

    /// The rows of a table begin, with this serial number, at this time: as in a commit.
    pub fn begin_snapshot(&mut self, base: u64, time: i64) {
        let lsn = self.reached;
        self.marks.push_back(Mark { base, last: None, commit: lsn, lsn, time, snapshot: true });
    }

    /// Tables of a snapshot that everybody has.
    pub fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// The transaction that is replayed had nothing for anybody.
    pub fn withdraw(&mut self) {
        if self.marks.back().is_some_and(|mark| mark.last.is_none()) {
            self.marks.pop_back();
        }
    }

    /// It has ended with this number.
    pub fn end(&mut self, last: u64) {
        if let Some(mark) = self.marks.back_mut() {
            mark.last = Some(last);
        }
    }

    /// Who has all that there has been so far has everything that was committed before this position.
    pub fn reach(&mut self, lsn: Lsn) {
        match self.marks.back_mut() {
            // Amid a transaction, what is read belongs to later ones.
            Some(Mark { last: None, .. }) => {}
            Some(mark) => mark.lsn = mark.lsn.max(lsn),
            None => self.reached = self.reached.max(lsn),
        }
    }

    pub fn reached(&self) -> Lsn {
        self.reached
    }

    /// Where somebody is who has all up to this number, and before which commits it lacks nothing.
    pub fn position(&self, serial: u64) -> (Position, Lsn) {
        let whole = |lsn| Position { commit: lsn, ordinal: u64::MAX };
        let after = self.marks.partition_point(|mark| mark.base <= serial);
        let before = |index: usize| match index.checked_sub(1) {
            Some(index) => self.marks[index].lsn,
            None => self.reached,
        };
        match after.checked_sub(1).map(|index| (index, &self.marks[index])) {
            Some((_, Mark { last: Some(last), lsn, .. })) if serial >= *last => (whole(*lsn), *lsn),
            Some((index, mark)) => {
                (Position { commit: mark.commit, ordinal: serial - mark.base }, before(index))
            }
            None => (whole(self.reached), self.reached),
        }
    }

    /// Everybody has all up to this number.
    pub fn forget(&mut self, serial: u64) {
        while let Some(Mark { last: Some(last), lsn, snapshot, .. }) = self.marks.front()
            && *last <= serial
        {
            self.reached = self.reached.max(*lsn);
            self.snapshots += u64::from(*snapshot);
            self.marks.pop_front();
        }
    }

    /// When the oldest transaction was committed of which somebody lacks something who has all up to this number: microseconds since
    /// 2000.
    pub fn oldest(&self, serial: u64) -> Option<i64> {
        let first = self.marks.partition_point(|mark| mark.last.is_some_and(|last| last <= serial));
        self.marks.get(first).map(|mark| mark.time)
    }

    /// For somebody who goes no further than this number.
    pub fn up_to(&self, serial: u64) -> Self {
        let end = self.marks.partition_point(|mark| mark.base <= serial);
        Self {
            marks: self.marks.range(..end).copied().collect(),
            reached: self.reached,
            snapshots: self.snapshots,
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.marks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(commit: u64, ordinal: u64) -> Position {
        Position { commit: Lsn(commit), ordinal }
    }

    #[test]
    fn a_serial_number_is_a_place_in_a_transaction() {
        let mut marks = Marks::new(Lsn(5));
        assert_eq!(marks.position(0), (at(5, u64::MAX), Lsn(5)));
        marks.begin(1, Lsn(10), 100);
        assert_eq!(marks.position(0), (at(5, u64::MAX), Lsn(5)));
        assert_eq!(marks.position(1), (at(10, 0), Lsn(5)));
        assert_eq!(marks.position(3), (at(10, 2), Lsn(5)));
        marks.reach(Lsn(12));
        assert_eq!(marks.oldest(3), Some(100));
        marks.end(4);
        assert_eq!(marks.position(3), (at(10, 2), Lsn(5)));
        assert_eq!(marks.position(4), (at(10, u64::MAX), Lsn(10)));
        marks.reach(Lsn(15));
        assert_eq!(marks.position(4), (at(15, u64::MAX), Lsn(15)));
        marks.begin(5, Lsn(20), 200);
        assert_eq!(marks.position(6), (at(20, 1), Lsn(15)));
        assert_eq!((marks.oldest(3), marks.oldest(4)), (Some(100), Some(200)));
        let behind = marks.up_to(3);
        marks.forget(4);
        assert_eq!((behind.len(), behind.position(3)), (1, (at(10, 2), Lsn(5))));
        assert_eq!((marks.len(), marks.reached()), (1, Lsn(15)));
        assert_eq!(marks.position(6), (at(20, 1), Lsn(15)));
        marks.end(7);
        marks.forget(7);
        marks.reach(Lsn(30));
        assert_eq!(marks.position(7), (at(30, u64::MAX), Lsn(30)));
        assert_eq!(marks.len(), 0);
    }
}
