//! What a client has sent, without taking it: whether a backend is to serve it now. Pooled backends.

use super::{Agent, Seat};
use crate::wire::frame;
use crate::wire::message::Report;
use rustix::net::RecvFlags;
use std::os::fd::BorrowedFd;

/// A message of at most so many bytes is waited for as a whole before a backend takes its client; a longer one is taken when so much
/// of it is there.
const WHOLE: usize = 4096;

/// What is known of a client's next message.
pub(super) enum Look {
    /// It can be served.
    Ready,
    /// Nothing has come.
    Nothing,
    /// A part has come.
    Part,
    /// It has gone, or must go without a word.
    Gone,
    /// It must go, and hears why.
    Wrong(Report),
}

impl Agent {
    /// What the client has sent, without taking it.
    pub(super) fn look(&self, seat: Seat) -> Look {
        let Some(links) = &self.links else { return Look::Gone };
        let descriptor = links.descriptor(seat.slot);
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); WHOLE];
        loop {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let peeked: &[u8] = match rustix::net::recv(descriptor, &mut space[..], flags) {
                Ok(((&mut [], _), _)) => return Look::Gone,
                Ok(((peeked, _), _)) => peeked,
                Err(rustix::io::Errno::AGAIN) => return Look::Nothing,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Look::Gone,
            };
            let length = peeked.len();
            let first = match frame::first(peeked) {
                Ok(Some(first)) => first,
                Ok(None) => return part_of(descriptor),
                Err(error @ crate::wire::Error::MessageType(_)) => {
                    return Look::Wrong(Report::fatal(error.sqlstate(), error.to_string()));
                }
                Err(_) => return Look::Gone,
            };
            match first.tag {
                b'X' => return Look::Gone,
                // Left over from a COPY that has failed: the server would drop it and wait for more.
                b'd' | b'c' | b'f' if first.is_complete() => {
                    let mut rest = vec![0; first.length];
                    if rustix::net::recv(descriptor, &mut rest, RecvFlags::DONTWAIT).is_err() {
                        return Look::Gone;
                    }
                }
                _ if first.is_complete() || length >= WHOLE => return Look::Ready,
                _ => return part_of(descriptor),
            }
        }
    }
}

/// A part of a message, of a client that may have gone after it.
fn part_of(descriptor: BorrowedFd<'_>) -> Look {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut polled, Some(&now)) {
        Ok(_) if polled[0].revents().intersects(ends) => Look::Gone,
        _ => Look::Part,
    }
}
