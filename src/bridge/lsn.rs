//! A position in the write-ahead log, as PostgreSQL writes it: two hexadecimal halves, `16/B374D848`. Pure.

use std::fmt;
use std::str::FromStr;

/// `XLogRecPtr`: a byte position. Zero is invalid (`InvalidXLogRecPtr`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    pub fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Bytes from `self` up to `ahead`; zero when it is not ahead.
    pub fn behind(self, ahead: Lsn) -> u64 {
        ahead.0.saturating_sub(self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ();

    /// Reads what a primary answers, so it takes nothing for granted.
    fn from_str(text: &str) -> Result<Self, ()> {
        let half = |digits: &str| {
            let fits = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if fits { u64::from_str_radix(digits, 16).map_err(drop) } else { Err(()) }
        };
        let (high, low) = text.split_once('/').ok_or(())?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_two_halves_of_up_to_eight_digits_are_a_position() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        for text in ["", "/", "1/", "/1", "1", "+1/1", "1/123456789", "g/1", "1/1/1"] {
            assert_eq!(text.parse::<Lsn>(), Err(()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(position in any::<u64>()) {
            prop_assert_eq!(Lsn(position).to_string().parse(), Ok(Lsn(position)));
        }
    }
}
