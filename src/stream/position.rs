//! Where a stream is. Pure.

pub use crate::bridge::Lsn;
use std::fmt;
use std::str::FromStr;

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

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (commit, ordinal) = text.split_once(':').ok_or(())?;
        if !ordinal.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        Ok(Self { commit: commit.parse()?, ordinal: ordinal.parse().map_err(drop)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_an_lsn_and_a_number_are_a_position() {
        assert_eq!("16/B374D848:3".parse(), Ok(Position { commit: Lsn(0x16_B374_D848), ordinal: 3 }));
        for text in [
            "",
            ":",
            "1/1",
            "1/1:",
            ":1",
            "1/1:+1",
            "1/1:-1",
            "1/1:1:1",
            "1/1: 1",
            "1/1:18446744073709551616",
        ] {
            assert_eq!(text.parse::<Position>(), Err(()), "{text}");
        }
    }

    #[test]
    fn the_commit_counts_before_the_number() {
        let at = |commit, ordinal| Position { commit: Lsn(commit), ordinal };
        assert!(at(1, 9) < at(2, 1) && at(2, 1) < at(2, 2));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(commit in any::<u64>(), ordinal in any::<u64>()) {
            let position = Position { commit: Lsn(commit), ordinal };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }
    }
}
