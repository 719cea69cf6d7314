//! Chance in tests: numbers that are the same for the same seed. Each test's own threads.

use std::time::{SystemTime, UNIX_EPOCH};

/// Numbers by chance, the same for the same seed (Marsaglia, "Xorshift RNGs", 2003).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ (seed + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9))
    }

    /// From 0 up to, and not including, `most`.
    pub fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }

    /// The place of one of several.
    pub fn place<T>(&mut self, of: &[T]) -> usize {
        self.below(of.len() as u64) as usize
    }
}

/// What decides what a test does by chance, which it is to say. `POSTERN_TEST_SEED` gives that of a run that is to be repeated.
pub fn seed() -> u64 {
    let given = std::env::var("POSTERN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    // Short, for whoever has to type it.
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    given.unwrap_or_else(|| now() % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_one_others() {
        let numbers = |seed| {
            let mut dice = Dice::new(seed);
            (0..20).map(|_| dice.below(6)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        assert!((0..6).all(|number| (0..100).any(|seed| numbers(seed).contains(&number))));
    }
}
