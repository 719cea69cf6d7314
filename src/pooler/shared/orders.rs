//! What administrators have ordered: words that outlive a front. Written by the front's network threads and by SQL functions.

use crate::bridge::Name;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

/// Databases at once that are paused or disabled by name.
const ORDERS: usize = 128;

/// What administrators have ordered of databases, whether these have pools or not. Outlives a front that is started again, lest a
/// PAUSE end by itself.
#[repr(C)]
pub struct Orders {
    /// Everything is paused.
    pub pause: AtomicBool,
    places: [Place; ORDERS],
}

/// The orders about one database.
#[repr(C)]
#[derive(Default)]
struct Place {
    /// 0 is free; else `NAMED` once the name is written, and bits of [`Order`].
    word: AtomicU32,
    name: Name,
}

/// A bit of a place's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// No server connections: clients wait.
    Pause = 4,
    /// No new clients.
    Disable = 8,
}

/// Somebody is writing the name; the name stands.
const NAMING: u32 = 1;
const NAMED: u32 = 2;

impl Default for Orders {
    fn default() -> Self {
        Self { pause: AtomicBool::new(false), places: std::array::from_fn(|_| Place::default()) }
    }
}

impl Orders {
    fn of<'a>(&'a self, database: &'a [u8]) -> impl Iterator<Item = &'a Place> {
        self.places
            .iter()
            .filter(move |place| place.word.load(Acquire) & NAMED != 0 && place.name.is(database))
    }

    /// False when there are too many.
    pub fn give(&self, database: &[u8], order: Order) -> bool {
        for place in self.of(database) {
            let give = |word| (word & NAMED != 0).then_some(word | order as u32);
            if place.word.fetch_update(AcqRel, Acquire, give).is_ok() {
                return true;
            }
        }
        let claim = |place: &&Place| place.word.compare_exchange(0, NAMING, AcqRel, Acquire).is_ok();
        let Some(place) = self.places.iter().find(claim) else { return false };
        place.name.set(database);
        place.word.store(NAMED | order as u32, Release);
        true
    }

    /// Whether it was given.
    pub fn take_back(&self, database: &[u8], order: Order) -> bool {
        let mut was = false;
        for place in self.of(database) {
            let take = |word| {
                let left = word & !(order as u32);
                (word & NAMED != 0).then_some(if left == NAMED { 0 } else { left })
            };
            let before = place.word.fetch_update(AcqRel, Acquire, take);
            was |= before.is_ok_and(|word| word & order as u32 != 0);
        }
        was
    }

    pub fn has(&self, database: &[u8], order: Order) -> bool {
        self.of(database).any(|place| place.word.load(Acquire) & order as u32 != 0)
    }

    /// The databases about which there are orders.
    pub fn names(&self) -> Vec<Vec<u8>> {
        let named = self.places.iter().filter(|place| place.word.load(Acquire) & NAMED != 0);
        named.map(|place| place.name.bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_about_databases_are_given_and_taken_back_by_name() {
        let orders = Orders::default();
        assert!(orders.give(b"a", Order::Pause) && orders.give(b"a", Order::Disable));
        assert!(orders.give(b"b", Order::Disable));
        assert_eq!(orders.names(), [b"a", b"b"]);
        assert!(orders.take_back(b"a", Order::Pause));
        assert!(!orders.take_back(b"a", Order::Pause));
        assert!(!orders.has(b"a", Order::Pause) && orders.has(b"a", Order::Disable));
        assert!(orders.take_back(b"a", Order::Disable));
        assert_eq!(orders.names(), [b"b"], "a place without an order is free");
    }

    #[test]
    fn more_orders_than_there_is_place_for_are_refused() {
        let orders = Orders::default();
        for number in 0..ORDERS {
            assert!(orders.give(format!("d{number}").as_bytes(), Order::Pause));
        }
        assert!(!orders.give(b"another", Order::Pause));
        assert!(orders.give(b"d7", Order::Disable), "one that has a place");
        assert!(orders.take_back(b"d9", Order::Pause));
        assert!(orders.give(b"another", Order::Pause));
    }
}
