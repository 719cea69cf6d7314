//! Where a stream is. Pure.

pub use crate::bridge::Lsn;
use std::fmt;

/// The place of a change among all changes of a server, in the order in which logical decoding hands them out. The change's own
/// LSN is none: rows of one COPY share it, and a transaction that commits later may have lower ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The end of the commit record of the change's transaction.
    pub commit: Lsn,
    /// The number of the change in its transaction, from 1. 0 is before the first.
    pub ordinal: u64,
}

/// `16/B374D848:3`
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.commit, self.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_counts_before_the_number_and_is_written_before_it() {
        let at = |commit, ordinal| Position { commit: Lsn(commit), ordinal };
        assert!(at(1, 9) < at(2, 1) && at(2, 1) < at(2, 2));
        assert_eq!(at(0x16_B374_D848, 3).to_string(), "16/B374D848:3");
    }
}
