//! The ring of notifications: each stands as the message that clients are sent, with links to the one before and the one after it on
//! the same channel. Written by the relays, one at a time; read by anybody, who looks afterwards whether it was overwritten meanwhile.
//!
//! An entry is three words and its bytes, padded to eight: the length and the channel's number; the position of the channel's entry
//! before, 0 for none; that of the one after, 0 while there is none. Positions only grow; 0 is no position.

use super::shared::{Channel, Shared};
use std::sync::atomic::{AtomicU64, Ordering::*, fence};

/// The most that the bytes of an entry may be: a channel's name, a payload of 7,999 bytes and what is around them fit.
pub const ENTRY_MAX: usize = 8192 + 128;

/// The words before the bytes.
const LINKS: u64 = 3;

/// The first position.
const FIRST: u64 = 8;

/// The entry has been overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overwritten;

#[derive(Clone, Copy)]
pub struct Ring {
    shared: Shared,
}

impl Ring {
    pub fn new(shared: Shared) -> Self {
        Self { shared }
    }

    /// Bytes that it holds.
    pub fn size(&self) -> u64 {
        self.shared.words.len() as u64 * 8
    }

    /// Where the next entry goes.
    pub fn head(&self) -> u64 {
        self.shared.header.head.load(Acquire).max(FIRST)
    }

    /// Where the oldest that is kept begins.
    pub fn tail(&self) -> u64 {
        self.shared.header.tail.load(Acquire).max(FIRST)
    }

    fn word(&self, position: u64) -> &AtomicU64 {
        &self.shared.words[(position / 8) as usize % self.shared.words.len()]
    }

    fn space(length: usize) -> u64 {
        LINKS * 8 + (length as u64).next_multiple_of(8)
    }

    /// Appends a message of a channel. The caller holds the relays' lock. Longer ones than [`ENTRY_MAX`] are cut, which none is.
    pub fn append(&self, number: u32, channel: &Channel, message: &[u8]) {
        let message = &message[..message.len().min(ENTRY_MAX)];
        let head = self.head();
        let end = head + Self::space(message.len());
        let mut tail = self.tail();
        while end - tail > self.size() && tail < head {
            tail += Self::space((self.word(tail).load(Relaxed) as u32) as usize);
        }
        self.shared.header.tail.store(tail, Relaxed);
        // Whoever has read what is written from here on finds the new tail when it looks afterwards.
        fence(Release);
        self.word(head).store(u64::from(number) << 32 | message.len() as u64, Relaxed);
        let before = channel.last.load(Relaxed);
        self.word(head + 8).store(before, Relaxed);
        self.word(head + 16).store(0, Relaxed);
        for (index, chunk) in message.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(head + (LINKS + index as u64) * 8).store(u64::from_ne_bytes(word), Relaxed);
        }
        if before >= tail {
            self.word(before + 16).store(head, Release);
        }
        channel.last.store(head, Release);
        self.shared.header.head.store(end, SeqCst);
    }

    /// What was read at `position` is what stood there.
    fn check(&self, position: u64) -> Result<(), Overwritten> {
        fence(Acquire);
        if position < self.shared.header.tail.load(Relaxed) { Err(Overwritten) } else { Ok(()) }
    }

    /// The channel's entry before the one at `position`; 0 is none.
    ///
    /// # Errors
    /// When the entry at `position` is no more.
    pub fn before(&self, position: u64) -> Result<u64, Overwritten> {
        let before = self.word(position + 8).load(Acquire);
        self.check(position)?;
        Ok(before)
    }

    /// The channel's entry after the one at `position`; 0 while there is none.
    ///
    /// # Errors
    /// When the entry at `position` is no more.
    pub fn after(&self, position: u64) -> Result<u64, Overwritten> {
        let after = self.word(position + 16).load(Acquire);
        self.check(position)?;
        Ok(after)
    }

    /// The number of the channel of an entry, and where the next entry of any begins.
    ///
    /// # Errors
    /// When it is no more.
    pub fn at(&self, position: u64) -> Result<(u32, u64), Overwritten> {
        let word = self.word(position).load(Relaxed);
        self.check(position)?;
        Ok(((word >> 32) as u32, position + Self::space((word as u32) as usize)))
    }

    /// Appends the message of an entry to `out`.
    ///
    /// # Errors
    /// When it is no more; nothing is appended.
    pub fn read(&self, position: u64, out: &mut Vec<u8>) -> Result<(), Overwritten> {
        let start = out.len();
        let length = (self.word(position).load(Relaxed) as u32) as usize;
        self.check(position)?;
        let length = length.min(ENTRY_MAX);
        out.reserve(length + 8);
        for index in 0..(length as u64).div_ceil(8) {
            let word = self.word(position + (LINKS + index) * 8).load(Relaxed);
            out.extend(word.to_ne_bytes());
        }
        out.truncate(start + length);
        self.check(position).inspect_err(|_| out.truncate(start))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::relay::shared::{Header, Listen, Listener};

    /// Tables of a test's own, which stay.
    pub fn tables(words: usize, channels: usize, listens: usize) -> Shared {
        fn make<T: Default>(count: usize) -> &'static [T] {
            Vec::leak((0..count).map(|_| T::default()).collect())
        }
        Shared {
            header: Box::leak(Box::<Header>::default()),
            channels: make::<Channel>(channels),
            listens: make::<Listen>(listens),
            listeners: make::<Listener>(16),
            words: make::<AtomicU64>(words),
        }
    }

    #[test]
    fn a_channels_messages_are_linked_both_ways_past_those_of_others() {
        let shared = tables(64, 2, 0);
        let ring = Ring::new(shared);
        let [a, b] = [&shared.channels[0], &shared.channels[1]];
        ring.append(0, a, b"first");
        let first = a.last.load(Relaxed);
        ring.append(1, b, b"another channel's");
        ring.append(0, a, b"12345678");
        let second = a.last.load(Relaxed);
        assert_eq!(ring.before(second), Ok(first));
        assert_eq!(ring.after(first), Ok(second));
        assert_eq!((ring.before(first), ring.after(second)), (Ok(0), Ok(0)));
        let mut out = b"x".to_vec();
        ring.read(first, &mut out).unwrap();
        ring.read(second, &mut out).unwrap();
        assert_eq!(out, b"xfirst12345678");
        assert_eq!(ring.at(first).map(|(channel, _)| channel), Ok(0));
        assert_eq!(ring.at(first).unwrap().1, b.last.load(Relaxed));
    }

    #[test]
    fn what_was_overwritten_is_never_read_for_something_else() {
        let shared = tables(64, 1, 0);
        let ring = Ring::new(shared);
        let channel = &shared.channels[0];
        let mut places = Vec::new();
        for number in 0..1000u32 {
            ring.append(
                0,
                channel,
                format!("message {number} {}", "x".repeat(number as usize % 40)).as_bytes(),
            );
            places.push(channel.last.load(Relaxed));
            assert!(ring.head() - ring.tail() <= ring.size());
            let mut kept = 0;
            for (number, place) in places.iter().enumerate() {
                let mut out = Vec::new();
                match ring.read(*place, &mut out) {
                    Ok(()) => {
                        kept += 1;
                        let text = String::from_utf8(out).unwrap();
                        assert!(text.starts_with(&format!("message {number} ")), "{text}");
                    }
                    Err(Overwritten) => assert!(out.is_empty() && *place < ring.tail()),
                }
            }
            assert!(kept >= (number as usize + 1).min(5), "{kept} of {number}");
        }
    }

    #[test]
    fn a_reader_beside_a_writer_sees_whole_messages_or_none() {
        let shared = tables(1 << 10, 1, 0);
        let channel = &shared.channels[0];
        let writer = std::thread::spawn(move || {
            for number in 0..200_000u32 {
                let byte = (number % 251) as u8;
                Ring::new(shared).append(0, channel, &vec![byte; 1 + number as usize % 100]);
            }
        });
        let ring = Ring::new(shared);
        let (mut read, mut lost, mut out) = (0u64, 0u64, Vec::new());
        while !writer.is_finished() {
            let place = channel.last.load(Acquire);
            if place == 0 {
                continue;
            }
            out.clear();
            let before = ring.before(place);
            match before.and_then(|before| ring.read(if before == 0 { place } else { before }, &mut out)) {
                Ok(()) => {
                    read += 1;
                    assert!(!out.is_empty() && out.iter().all(|byte| *byte == out[0]), "{out:?}");
                }
                Err(Overwritten) => lost += 1,
            }
        }
        writer.join().unwrap();
        assert!(read > 0, "{read} read, {lost} lost");
    }
}
