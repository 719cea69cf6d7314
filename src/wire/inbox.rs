//! What a client has sent and nobody has answered yet, for a service that answers clients itself: bytes in, whole messages out.
//! Pure; on whatever thread serves the client.
//!
//! Bounds: a message of as many bytes as the service says, and twice that altogether. A client that is idle costs no buffer.

use super::{Error, frame};

/// Bytes and what of them is done with.
#[derive(Debug)]
pub struct Inbox {
    message_max: usize,
    bytes: Vec<u8>,
    /// How many bytes are done with.
    taken: usize,
}

/// A whole message: its type and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Inbox {
    /// `message_max` is the bytes of the longest message that is read, with its type and length.
    pub const fn new(message_max: usize) -> Self {
        Self { message_max, bytes: Vec::new(), taken: 0 }
    }

    /// Bytes that may be received and not taken yet, for messages of at most `message_max`: a whole one, and what a read brings
    /// besides.
    pub const fn ahead_max(message_max: usize) -> usize {
        2 * message_max
    }

    /// Takes what the client has sent.
    ///
    /// # Errors
    /// [`Error::TooFarAhead`], and nothing is taken.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        if self.bytes.len() + bytes.len() > Self::ahead_max(self.message_max) {
            return Err(Error::TooFarAhead);
        }
        self.bytes.extend(bytes);
        Ok(())
    }

    /// The next message; `None` until all of it is there.
    ///
    /// # Errors
    /// [`Error::MessageTooLong`], and those of [`frame::first`]. There is no going on after one.
    pub fn next_message(&mut self) -> Result<Option<Message>, Error> {
        let Some(frame) = frame::first(&self.bytes[self.taken..])? else {
            if self.taken == self.bytes.len() {
                self.clear();
            }
            return Ok(None);
        };
        if frame.length > self.message_max {
            return Err(Error::MessageTooLong(frame.length));
        }
        if !frame.is_complete() {
            return Ok(None);
        }
        let message = Message { tag: frame.tag, body: frame.body.to_vec() };
        self.taken += frame.length;
        Ok(Some(message))
    }

    /// Forgets what is there, and the memory for it.
    pub fn clear(&mut self) {
        (self.bytes, self.taken) = (Vec::new(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Message {
        Message { tag, body: body.to_vec() }
    }

    #[test]
    fn messages_come_out_whole_and_in_order() {
        let mut inbox = Inbox::new(20);
        inbox.receive(b"S\0\0\0\x04Q\0\0\0\x07a").unwrap();
        assert_eq!(inbox.next_message(), Ok(Some(message(b'S', b""))));
        assert_eq!(inbox.next_message(), Ok(None));
        inbox.receive(b"b\0S\0\0").unwrap();
        assert_eq!(inbox.next_message(), Ok(Some(message(b'Q', b"ab\0"))));
        assert_eq!(inbox.next_message(), Ok(None));
        inbox.receive(b"\0\x04").unwrap();
        assert_eq!(inbox.next_message(), Ok(Some(message(b'S', b""))));
        assert_eq!(inbox.next_message(), Ok(None));
    }

    #[test]
    fn an_inbox_without_a_beginning_of_a_message_keeps_no_memory() {
        let mut inbox = Inbox::new(20);
        inbox.receive(b"S\0\0\0\x04").unwrap();
        inbox.next_message().unwrap();
        assert_eq!(inbox.next_message(), Ok(None));
        assert_eq!(inbox.bytes.capacity(), 0);
        inbox.receive(b"S\0\0\0").unwrap();
        assert_eq!(inbox.next_message(), Ok(None));
        assert_eq!(inbox.bytes.len(), 4, "a beginning is kept");
    }

    #[test]
    fn a_message_is_refused_by_its_length_before_it_is_there() {
        let mut inbox = Inbox::new(20);
        inbox.receive(b"Q\0\0\0\x13").unwrap();
        assert_eq!(inbox.next_message(), Ok(None), "20 bytes with its type");
        let mut inbox = Inbox::new(20);
        inbox.receive(b"Q\0\0\0\x14").unwrap();
        assert_eq!(inbox.next_message(), Err(Error::MessageTooLong(21)));
        let mut inbox = Inbox::new(20);
        inbox.receive(b"z").unwrap();
        assert_eq!(inbox.next_message(), Err(Error::MessageType(b'z')));
    }

    #[test]
    fn what_is_read_ahead_is_bounded_and_what_is_taken_does_not_count() {
        let mut inbox = Inbox::new(20);
        inbox.receive(&[0; 41]).unwrap_err();
        inbox.receive(&b"S\0\0\0\x04".repeat(8)).unwrap();
        assert_eq!(inbox.receive(b"S"), Err(Error::TooFarAhead));
        inbox.next_message().unwrap();
        inbox.receive(b"S\0\0\0\x04").unwrap();
        assert_eq!(inbox.receive(b"S"), Err(Error::TooFarAhead));
        for _ in 0..8 {
            assert!(inbox.next_message().unwrap().is_some());
        }
        assert_eq!(inbox.next_message(), Ok(None));
    }

    proptest! {
        #[test]
        fn pieces_make_the_messages_that_the_whole_does(
            messages in prop::collection::vec((prop::sample::select(b"QPBDS".to_vec()), prop::collection::vec(any::<u8>(), 0..15)), 0..10),
            piece in 1usize..20,
        ) {
            let mut bytes = Vec::new();
            for (tag, body) in &messages {
                super::super::message::put(&mut bytes, *tag, |out| out.extend(body));
            }
            let mut inbox = Inbox::new(20);
            let mut found = Vec::new();
            for piece in bytes.chunks(piece) {
                inbox.receive(piece).unwrap();
                while let Some(Message { tag, body }) = inbox.next_message().unwrap() {
                    found.push((tag, body));
                }
            }
            prop_assert_eq!(found, messages);
        }
    }
}
