//! Where one message of a client ends and the next begins, and whether the server would take it. Pure; the session
//! agent uses it on bytes that it has only peeked at.

use super::Error;

/// Bytes of a message's type and length word.
pub const HEADER: usize = 5;

/// The server's bounds of a message's length, its own word included (libpq/libpq.h: PQ_SMALL_MESSAGE_LIMIT,
/// PQ_LARGE_MESSAGE_LIMIT).
const SMALL: u32 = 10_000;
const LARGE: u32 = 0x3fff_ffff - 1;

/// One message of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub tag: u8,
    /// Bytes of the whole message: type, length word and body.
    pub length: usize,
    /// As much of the body as is there.
    pub body: &'a [u8],
}

impl Frame<'_> {
    pub fn is_complete(&self) -> bool {
        self.body.len() + HEADER == self.length
    }

    /// Whether it is there as a whole, or so many bytes of it are.
    pub fn is_there(&self, enough: usize) -> bool {
        self.is_complete() || self.body.len() + HEADER >= enough
    }
}

/// The first message of `bytes`; `None` while its header is not complete.
///
/// # Errors
/// What the server's SocketBackend() (src/backend/tcop/postgres.c) would refuse: an unknown type, or a length beyond what
/// that type may have.
pub fn first(bytes: &[u8]) -> Result<Option<Frame<'_>>, Error> {
    let Some(tag) = bytes.first() else { return Ok(None) };
    let most = match tag {
        b'Q' | b'F' | b'B' | b'P' | b'd' => LARGE,
        b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => SMALL,
        _ => return Err(Error::MessageType(*tag)),
    };
    let Some(word) = bytes[1..].first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*word);
    if length < 4 || length > most {
        return Err(Error::MessageLength);
    }
    let length = length as usize + 1;
    let body = &bytes[HEADER..length.min(bytes.len())];
    Ok(Some(Frame { tag: *tag, length, body }))
}

/// The messages of `bytes` in order, the last of them perhaps incomplete. Ends at one that the server would refuse.
pub fn all(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let frame = first(rest).ok().flatten()?;
        rest = rest.get(frame.length..).unwrap_or_default();
        Some(frame)
    })
}

/// Whether a Parse, Bind or Close names the unnamed statement, or a Describe or Close does.
pub fn names_unnamed_statement(frame: &Frame<'_>) -> bool {
    match frame.tag {
        b'P' => frame.body.first() == Some(&0),
        b'B' => {
            let portal = frame.body.iter().position(|byte| *byte == 0);
            portal.and_then(|end| frame.body.get(end + 1)) == Some(&0)
        }
        b'D' | b'C' => frame.body.starts_with(b"S\0"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_batch_is_walked_message_by_message() {
        let bytes = b"P\0\0\0\x0b\0select\0\0\0B\0\0\0\x06\0\0S\0\0\0\x04Q\0\0\0\x09ab";
        // The Parse is one byte short of its text, so what follows is read from there on, as the server would.
        let frames: Vec<_> = all(bytes).map(|frame| (frame.tag, frame.is_complete())).collect();
        assert_eq!(frames[0], (b'P', true));
        let frames: Vec<_> = all(b"S\0\0\0\x04Q\0\0\0\x09ab").collect();
        assert_eq!((frames[0].tag, frames[0].length, frames[0].is_complete()), (b'S', 5, true));
        assert_eq!((frames[1].tag, frames[1].length, frames[1].is_complete()), (b'Q', 10, false));
        assert_eq!(frames[1].body, b"ab");
        assert!(frames[0].is_there(9) && frames[1].is_there(7) && !frames[1].is_there(8));
    }

    #[test]
    fn what_the_server_refuses_is_refused() {
        assert_eq!(first(b"z\0\0\0\x04"), Err(Error::MessageType(b'z')));
        assert_eq!(first(b"\0"), Err(Error::MessageType(0)));
        assert_eq!(first(b"Q\0\0\0\x03"), Err(Error::MessageLength));
        assert_eq!(first(b"S\0\0\x27\x11"), Err(Error::MessageLength), "10,001 for a small message");
        assert!(first(b"S\0\0\x27\x10").is_ok());
        assert_eq!(first(b"Q\x7f\xff\xff\xff"), Err(Error::MessageLength));
        assert_eq!(first(b"Q\0\0"), Ok(None));
        assert_eq!(first(b""), Ok(None));
    }

    #[test]
    fn the_unnamed_statement_is_recognised() {
        let named = |bytes: &[u8]| names_unnamed_statement(&first(bytes).unwrap().unwrap());
        assert!(named(b"P\0\0\0\x08\0a\0\0"));
        assert!(!named(b"P\0\0\0\x08n\0a\0"));
        assert!(named(b"B\0\0\0\x07p\0\0"));
        assert!(!named(b"B\0\0\0\x07\0s\0"));
        assert!(named(b"D\0\0\0\x06S\0"));
        assert!(!named(b"D\0\0\0\x06P\0"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let total: usize = all(&bytes).map(|frame| frame.body.len() + HEADER).sum();
            prop_assert!(total <= bytes.len());
        }
    }
}
