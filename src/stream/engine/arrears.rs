//! Events that not every sink of a source has: what a sink lacks that has failed is given to it again from here, while the others go on.
//! Bounded in bytes; what comes beyond is not kept, and has to be decoded again for who lacks it. Engine's thread.

use crate::stream::position::Position;
use crate::stream::sink::Event;
use std::borrow::Cow;
use std::collections::VecDeque;

/// What an event costs beside its bytes.
const OVERHEAD: usize = 128;

/// Memory that an empty one keeps.
const KEPT: usize = 1 << 20;

/// See the file.
#[derive(Debug)]
pub(super) struct Arrears {
    entries: VecDeque<Entry>,
    /// Of the entries, one behind the other: schema, table, key, payload.
    bytes: VecDeque<u8>,
    /// Bytes of those that went before.
    gone: u64,
    limit: usize,
    /// The last event that was not kept, while somebody lacks it.
    cut: Option<u64>,
    /// The last one that was.
    last: u64,
}

#[derive(Debug)]
struct Entry {
    serial: u64,
    position: Position,
    snapshot: bool,
    start: u64,
    schema: usize,
    table: usize,
    key: Option<usize>,
    payload: usize,
}

/// An event that was kept.
pub(super) struct Kept<'a> {
    pub serial: u64,
    pub position: Position,
    /// A row of a snapshot.
    pub snapshot: bool,
    entry: &'a Entry,
    bytes: Cow<'a, [u8]>,
}

impl Arrears {
    /// `limit`: bytes that are kept, but for one event alone, which may be larger.
    pub fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: VecDeque::new(), gone: 0, limit, cut: None, last: 0 }
    }

    /// Bytes that are kept.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.entries.len() * OVERHEAD
    }

    pub fn has_room(&self, event: &Event<'_>) -> bool {
        self.entries.is_empty() || self.size() + size(event) <= self.limit
    }

    /// There was no room for an event that somebody lacks.
    pub fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// The last event that is kept, or was.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Keeps an event, if there is room, and none is missing before it.
    pub fn keep(&mut self, event: &Event<'_>, position: Position, snapshot: bool) {
        if self.is_cut() || !self.has_room(event) {
            self.cut = Some(event.serial);
            return;
        }
        let parts =
            [event.schema.as_bytes(), event.table.as_bytes(), event.key.unwrap_or_default(), event.payload];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let [schema, table, key, payload] = parts.map(<[u8]>::len);
        self.entries.push_back(Entry {
            serial: event.serial,
            position,
            snapshot,
            start: self.gone + self.bytes.len() as u64,
            schema,
            table,
            key: event.key.map(|_| key),
            payload,
        });
        self.reserve(length);
        parts.iter().for_each(|part| self.bytes.extend(*part));
        self.last = event.serial;
    }

    /// Not beyond the limit, which doubling what there is could be.
    fn reserve(&mut self, more: usize) {
        let needed = self.bytes.len() + more;
        if needed > self.bytes.capacity() {
            let wanted = (self.bytes.capacity() * 2).min(self.limit).max(needed);
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
    }

    /// Everybody has all up to this number.
    pub fn forget(&mut self, serial: u64) {
        let mut bytes = 0;
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.serial <= serial) {
            bytes += entry.length();
        }
        self.bytes.drain(..bytes);
        self.gone += bytes as u64;
        if self.entries.is_empty() {
            self.bytes.shrink_to(KEPT.min(self.limit));
        }
        self.cut = self.cut.filter(|cut| *cut > serial);
    }

    /// The first that is kept behind this number.
    pub fn after(&self, serial: u64) -> Option<Kept<'_>> {
        let entry = self.entries.get(self.entries.partition_point(|entry| entry.serial <= serial))?;
        let start = usize::try_from(entry.start - self.gone).ok()?;
        let range = start..start + entry.length();
        let (front, back) = self.bytes.as_slices();
        let bytes = match (front.get(range.clone()), range.start.checked_sub(front.len())) {
            (Some(bytes), _) => Cow::Borrowed(bytes),
            (None, Some(start)) => Cow::Borrowed(back.get(start..start + entry.length())?),
            // It goes round the ring's end.
            (None, None) => Cow::Owned(self.bytes.range(range).copied().collect()),
        };
        let Entry { serial, position, snapshot, .. } = *entry;
        Some(Kept { serial, position, snapshot, entry, bytes })
    }
}

impl Entry {
    fn length(&self) -> usize {
        self.schema + self.table + self.key.unwrap_or(0) + self.payload
    }
}

impl Kept<'_> {
    pub fn event(&self) -> Event<'_> {
        let (schema, rest) = self.bytes.split_at(self.entry.schema);
        let (table, rest) = rest.split_at(self.entry.table);
        let (key, payload) = rest.split_at(self.entry.key.unwrap_or(0));
        Event {
            serial: self.serial,
            // They were texts.
            schema: str::from_utf8(schema).unwrap_or_default(),
            table: str::from_utf8(table).unwrap_or_default(),
            key: self.entry.key.map(|_| key),
            payload,
        }
    }
}

fn size(event: &Event<'_>) -> usize {
    let Event { schema, table, key, payload, .. } = event;
    schema.len() + table.len() + key.map_or(0, <[u8]>::len) + payload.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::position::Lsn;

    fn event(serial: u64, payload: &[u8]) -> Event<'_> {
        Event { serial, schema: "s", table: "t", key: Some(b"k"), payload }
    }

    const AT: Position = Position { commit: Lsn(1), ordinal: 2 };

    #[test]
    fn events_come_out_as_they_went_in_also_round_the_rings_end() {
        let mut arrears = Arrears::new(10 * (OVERHEAD + 103));
        for serial in 1..=1_000_u64 {
            let payload = vec![serial as u8; 50 + (serial % 50) as usize];
            assert!(arrears.has_room(&event(serial * 2, &payload)));
            arrears.keep(&event(serial * 2, &payload), AT, serial % 2 == 0);
            arrears.forget((serial * 2).saturating_sub(16));
            let first = arrears.after(0).unwrap();
            assert_eq!(first.serial, (serial * 2).saturating_sub(14).max(2));
            let last = arrears.after(serial * 2 - 1).unwrap();
            assert_eq!((last.serial, last.snapshot, last.position), (serial * 2, serial % 2 == 0, AT));
            let Event { schema, table, key, payload: found, .. } = last.event();
            assert_eq!((schema, table, key, found), ("s", "t", Some(&b"k"[..]), &payload[..]));
            assert!(arrears.after(serial * 2).is_none());
        }
        arrears.forget(2_000);
        assert_eq!(arrears.size(), 0);
    }

    #[test]
    fn what_is_beyond_the_limit_is_not_kept_and_neither_is_what_comes_after_it() {
        let mut arrears = Arrears::new(1_000);
        arrears.keep(&event(1, &[b'x'; 5_000]), AT, false);
        assert!(!arrears.is_cut(), "one event of any size");
        arrears.keep(&event(2, b"x"), AT, false);
        assert!(arrears.is_cut() && arrears.after(1).is_none() && arrears.last() == 1);
        arrears.forget(1);
        arrears.keep(&event(3, b"x"), AT, false);
        assert!(arrears.is_cut() && arrears.size() == 0, "somebody lacks the second");
        arrears.forget(3);
        assert!(!arrears.is_cut());
        let mut serial = 4;
        while arrears.has_room(&event(serial, &[b'x'; 100])) {
            arrears.keep(&event(serial, &[b'x'; 100]), AT, false);
            serial += 1;
        }
        assert!(arrears.size() <= 1_000 && arrears.bytes.capacity() <= 1_000, "{}", arrears.size());
    }
}
