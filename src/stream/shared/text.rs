//! Texts that change while others read them, as words in shared memory. Whoever owns what has the text writes it.

use crate::bridge::{Bytes, now};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Bytes of an error that are shown.
const TEXT: usize = 512;

/// A text that may be read while it is written: then it is torn, and shown again right the next time.
#[repr(C)]
#[derive(Default)]
pub struct Text(Bytes<TEXT>);

impl Text {
    /// Cuts what is longer, between two characters.
    pub fn set(&self, text: &str) {
        self.0.set(&text.as_bytes()[..text.floor_char_boundary(TEXT)]);
    }

    /// Nothing when it is empty.
    pub fn get(&self) -> Option<String> {
        Some(self.0.text()).filter(|text| !text.is_empty())
    }
}

/// What went wrong last, and when.
#[repr(C)]
#[derive(Default)]
pub struct Mishap {
    text: Text,
    /// Microseconds since 1970; 0 when all is well.
    at: AtomicI64,
}

impl Mishap {
    /// It has gone wrong now. Nothing: all is well again.
    pub fn say(&self, error: &str) {
        self.text.set(error);
        self.at.store(if error.is_empty() { 0 } else { now() }, Relaxed);
    }

    /// Nothing when all is well.
    pub fn get(&self) -> Option<String> {
        self.text.get()
    }

    /// Microseconds since 1970; 0 when all is well.
    pub fn at(&self) -> i64 {
        self.at.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let text = Text::default();
        text.set(&"ü".repeat(400));
        assert_eq!(text.get().unwrap(), "ü".repeat(256));
        text.set("");
        assert_eq!(text.get(), None);
    }

    #[test]
    fn an_error_that_is_over_leaves_no_time() {
        let error = Mishap::default();
        error.say("no");
        assert_eq!((error.get(), error.at() > 0), (Some("no".to_owned()), true));
        error.say("");
        assert_eq!((error.get(), error.at()), (None, 0));
    }
}
