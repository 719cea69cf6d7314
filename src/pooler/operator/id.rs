//! What the console calls a connection. Pure; network threads.

/// What KILL_CLIENT and the reports call a connection. 31 bits, because PgBouncer's column is an int4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Id {
    /// The slot, and which of those that had it, of 4095.
    Client(u32, u32),
    Server(u32),
    Console(u32),
}

const SLOT_BITS: u32 = 18;

impl Id {
    pub fn client(slot: u32, generation: u32) -> Self {
        Self::Client(slot, generation % 4095 + 1)
    }

    pub fn number(self) -> u64 {
        u64::from(match self {
            Self::Client(slot, generation) => generation << SLOT_BITS | slot,
            Self::Server(number) => 0x4000_0000 | number,
            Self::Console(number) => 0x6000_0000 | number,
        })
    }

    pub fn of(number: u64) -> Option<Self> {
        let number = u32::try_from(number).ok()?;
        match number >> 29 {
            0 | 1 => Some(Self::Client(number & ((1 << SLOT_BITS) - 1), number >> SLOT_BITS)),
            2 => Some(Self::Server(number & 0x1fff_ffff)),
            3 => Some(Self::Console(number & 0x1fff_ffff)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_one_connection_and_fit_their_column() {
        let all = [
            Id::client(0, 1),
            Id::client(0, 2),
            Id::client(99_999, u32::MAX),
            Id::client(5, 4095),
            Id::Server(0),
            Id::Server(65_000),
            Id::Console(0),
            Id::Console(0x0fff_ffff),
        ];
        let mut numbers: Vec<_> = all.iter().map(|id| id.number()).collect();
        for (id, number) in all.iter().zip(&numbers) {
            assert_eq!(Id::of(*number), Some(*id));
            assert!((1..=i32::MAX as u64).contains(number), "{id:?} is {number}");
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all.len());
        assert_eq!(Id::of(1 << 31), None);
    }
}
