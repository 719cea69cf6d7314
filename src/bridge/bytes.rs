//! Texts as words in shared memory. Whoever owns what has one writes it.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering::*};

/// At most so many bytes, written before the state that publishes them. Who reads them while they are written may see some of each.
#[repr(C)]
pub struct Bytes<const MOST: usize> {
    length: AtomicU16,
    bytes: [AtomicU8; MOST],
}

/// A name: NAMEDATALEN without the zero at its end.
pub type Name = Bytes<63>;

impl<const MOST: usize> Default for Bytes<MOST> {
    fn default() -> Self {
        Self { length: AtomicU16::new(0), bytes: std::array::from_fn(|_| AtomicU8::new(0)) }
    }
}

impl<const MOST: usize> Bytes<MOST> {
    /// Cuts what is longer.
    pub fn set(&self, text: &[u8]) {
        let text = &text[..text.len().min(MOST)];
        for (word, byte) in self.bytes.iter().zip(text) {
            word.store(*byte, Relaxed);
        }
        self.length.store(text.len() as u16, Release);
    }

    fn length(&self) -> usize {
        usize::from(self.length.load(Acquire)).min(MOST)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes[..self.length()].iter().map(|word| word.load(Relaxed)).collect()
    }

    /// Whether it is this text, of which only so much counts as fits.
    pub fn is(&self, text: &[u8]) -> bool {
        let text = &text[..text.len().min(MOST)];
        self.length() == text.len()
            && self.bytes.iter().zip(text).all(|(word, byte)| word.load(Relaxed) == *byte)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut() {
        let name = Name::default();
        name.set(&[b'x'; 80]);
        assert_eq!(name.text().len(), 63);
        assert!(name.is(&[b'x'; 63]) && name.is(&[b'x'; 64]) && !name.is(&[b'x'; 62]) && !name.is(b""));
        name.set(b"ab");
        assert!(name.is(b"ab") && !name.is(b"abx") && !name.is(b"a"));
    }
}
