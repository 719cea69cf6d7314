//! What a client has sent, without taking it: whether a backend is to serve it now. Pooled backends.

use super::{Agent, Seat};
use crate::pooler::seats::WHOLE;
use crate::wire::frame;
use crate::wire::message::Report;
use rustix::net::RecvFlags;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::*;

/// Reads of a look: a client that goes on and on with what is thrown away holds no backend.
const DISCARDS: u32 = 1024;

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
    pub(super) fn look(&mut self, seat: Seat) -> Look {
        self.first = None;
        let Some(links) = &self.links else { return Look::Gone };
        let descriptor = links.descriptor(seat.slot);
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); WHOLE];
        let slot = self.slot(seat);
        let discard = &slot.discard;
        for _ in 0..DISCARDS {
            let rest = discard.load(Relaxed);
            let (most, flags) = match rest {
                0 => (WHOLE, RecvFlags::PEEK | RecvFlags::DONTWAIT),
                rest => (WHOLE.min(rest as usize), RecvFlags::DONTWAIT),
            };
            let peeked: &[u8] = match rustix::net::recv(descriptor, &mut space[..most], flags) {
                Ok(((&mut [], _), _)) => return Look::Gone,
                Ok(((peeked, _), _)) => peeked,
                Err(rustix::io::Errno::AGAIN) => return Look::Nothing,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Look::Gone,
            };
            if rest > 0 {
                discard.store(rest - peeked.len() as u32, Relaxed);
                continue;
            }
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
                b'd' | b'c' | b'f' => {
                    discard.store(first.length as u32, Relaxed);
                    // Another message: one after the other comes whole.
                    slot.parts.store(0, Relaxed);
                    slot.part_since.store(0, Relaxed);
                }
                _ if first.is_there(WHOLE) => {
                    self.first = Some((first.tag, first.body.first().copied()));
                    return Look::Ready;
                }
                _ => return part_of(descriptor),
            }
        }
        // There is more of it than one look throws away.
        Look::Part
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
