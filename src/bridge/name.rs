//! A name as words in shared memory. Whoever owns what it names writes it.

use std::sync::atomic::{AtomicU8, Ordering::*};

/// Bytes of a name: NAMEDATALEN.
const NAME: usize = 64;

/// A text of at most 63 bytes that is written before the state that publishes it.
#[repr(C)]
pub struct Name {
    length: AtomicU8,
    bytes: [AtomicU8; NAME - 1],
}

impl Default for Name {
    fn default() -> Self {
        Self { length: AtomicU8::new(0), bytes: std::array::from_fn(|_| AtomicU8::new(0)) }
    }
}

impl Name {
    /// Cuts what is longer.
    pub fn set(&self, text: &[u8]) {
        let text = &text[..text.len().min(NAME - 1)];
        for (word, byte) in self.bytes.iter().zip(text) {
            word.store(*byte, Relaxed);
        }
        self.length.store(text.len() as u8, Release);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = usize::from(self.length.load(Acquire)).min(NAME - 1);
        self.bytes[..length].iter().map(|word| word.load(Relaxed)).collect()
    }

    /// Whether it is this text, of which only so much counts as fits.
    pub fn is(&self, text: &[u8]) -> bool {
        let text = &text[..text.len().min(NAME - 1)];
        usize::from(self.length.load(Acquire)) == text.len()
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
