//! The attributes of a SCRAM message, `a=value,b=value` (RFC 5802 section 5.1), read as auth-scram.c reads
//! them, with its words for what is wrong. Pure.

use super::Error;

/// What is left of a message. It has no zero byte, so 0 can stand for its end, as it does in the server's texts.
pub(super) struct Attributes<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Attributes<'a> {
    /// # Errors
    /// When the message is empty or has a zero byte.
    pub(super) fn of(message: &'a [u8]) -> Result<Self, Error> {
        if message.is_empty() {
            return Err(malformed("The message is empty."));
        }
        if message.contains(&0) {
            return Err(malformed("Message length does not match input length."));
        }
        Ok(Self { message, at: 0 })
    }

    /// The next byte; 0 at the end.
    pub(super) fn peek(&self) -> u8 {
        self.message.get(self.at).copied().unwrap_or(0)
    }

    pub(super) fn skip_byte(&mut self) {
        self.at = (self.at + 1).min(self.message.len());
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.message.len()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.message.get(self.at..).unwrap_or_default()
    }

    /// What stands before the attribute that comes next, without the comma between them.
    pub(super) fn before(&self) -> &'a [u8] {
        self.message.get(..self.at.saturating_sub(1)).unwrap_or_default()
    }

    /// The value of the attribute that must come next; steps over the comma after it.
    pub(super) fn value_of(&mut self, attribute: u8) -> Result<&'a [u8], Error> {
        if self.peek() != attribute {
            return Err(malformed(format!(
                "Expected attribute \"{}\" but found \"{}\".",
                char::from(attribute),
                shown(self.peek())
            )));
        }
        self.skip_byte();
        self.value(attribute)
    }

    /// Whatever attribute comes next, and its value.
    pub(super) fn any(&mut self) -> Result<(u8, &'a [u8]), Error> {
        let attribute = self.peek();
        if attribute == 0 {
            return Err(malformed("Attribute expected, but found end of string."));
        }
        if !attribute.is_ascii_alphabetic() {
            return Err(malformed(format!(
                "Attribute expected, but found invalid character \"{}\".",
                shown(attribute)
            )));
        }
        self.skip_byte();
        Ok((attribute, self.value(attribute)?))
    }

    fn value(&mut self, attribute: u8) -> Result<&'a [u8], Error> {
        if self.peek() != b'=' {
            return Err(malformed(format!(
                "Expected character \"=\" for attribute \"{}\".",
                char::from(attribute)
            )));
        }
        self.skip_byte();
        let rest = self.rest();
        let length = rest.iter().position(|&b| b == b',').unwrap_or(rest.len());
        self.at += length;
        self.skip_byte();
        Ok(&rest[..length])
    }
}

pub(super) fn malformed(detail: impl Into<String>) -> Error {
    Error::Malformed(detail.into())
}

/// One byte for a message: a printable one in single quotes, any other in hexadecimal.
pub(super) fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// Up to 30 characters for a message; what is not printable is a question mark.
pub(super) fn shown_text(text: &[u8]) -> String {
    text.iter().take(30).map(|&b| if b.is_ascii_graphic() { char::from(b) } else { '?' }).collect()
}
