//! What the front has given this backend: the control socket, the pool's epoll instance, the clients' descriptors. Pooled backends.

use super::texts::Texts;
use super::{Agent, Seat};
use crate::pooler::control::{ANSWER, Word};
use crate::pooler::seats::raise_file_limit;
use crate::pooler::shared::Header;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::Ordering::*;

/// What the front has given.
pub(super) struct Links {
    pub(super) control: OwnedFd,
    /// The front's process, whose descriptors may be taken: so it need not be asked for each.
    front: Option<OwnedFd>,
    pub(super) epoll: OwnedFd,
    pub(super) texts: Texts,
    pub(super) base: u32,
    /// The generation of the client whose descriptor we have, by slot; 0 is none. As long as the highest slot that was met.
    pub(super) known: Vec<u32>,
    header: &'static Header,
    epoch: u32,
}

impl Links {
    pub(super) fn open(agent: &Agent) -> Result<Self, &'static str> {
        // Clients' numbers are high.
        raise_file_limit();
        let header = agent.shared.header;
        let name = agent.shared.control_name();
        let address =
            rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(|_| "control name")?;
        let control = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|_| "no socket")?;
        rustix::net::connect(&control, &address).map_err(|_| "the front does not listen")?;
        // The name is in nobody's directory: whoever holds it must be the server's own user.
        let peer = rustix::net::sockopt::socket_peercred(&control).map_err(|_| "no credentials")?;
        if peer.uid != rustix::process::geteuid() {
            return Err("the control socket is another user's");
        }
        let texts = Texts::attach(header.texts.load(Acquire)).ok_or("no dynamic shared memory")?;
        let base = header.base.load(Acquire);
        say(&control, Word::Hello { server: agent.number, epoch: agent.epoch });
        let epoll = answer(&control).ok_or("the front has no such server connection")?;
        // Of the process that listens.
        let may_take = header.not_taken.load(Relaxed) != agent.epoch;
        let front = may_take.then(|| pidfd_open(peer.pid, PidfdFlags::empty()).ok()).flatten();
        Ok(Self { control, front, epoll, texts, base, known: Vec::new(), header, epoch: agent.epoch })
    }

    pub(super) fn number(&self, slot: u32) -> c_int {
        (self.base + slot) as c_int
    }

    pub(super) fn descriptor(&self, slot: u32) -> BorrowedFd<'_> {
        // SAFETY: asked only for clients that `meet` has met, whose descriptor stays open until `forget`.
        unsafe { BorrowedFd::borrow_raw(self.number(slot)) }
    }

    pub(super) fn say(&self, word: Word) {
        say(&self.control, word);
    }

    /// Has the client's descriptor under its number.
    pub(super) fn meet(&mut self, seat: Seat) -> bool {
        let place = seat.slot as usize;
        if self.known.get(place) == Some(&seat.generation) {
            return true;
        }
        let Some(descriptor) = self.take(seat) else { return false };
        if self.known.len() <= place {
            self.known.resize(place + 1, 0);
        }
        if std::mem::take(&mut self.known[place]) != 0 {
            // SAFETY: a number that is ours alone, left by the client that had the slot before.
            drop(unsafe { OwnedFd::from_raw_fd(self.number(seat.slot)) });
        }
        match rustix::io::fcntl_dupfd_cloexec(&descriptor, self.number(seat.slot)) {
            Ok(placed) if placed.as_raw_fd() == self.number(seat.slot) => {
                let _ = placed.into_raw_fd();
                self.known[place] = seat.generation;
                true
            }
            _ => false,
        }
    }

    /// The client's descriptor, which is the front's as long as the client is ours. Where the system does not let a process take another's
    /// (pidfd_getfd(2): an old kernel, a container's filter, a module such as Yama), the front gives it.
    fn take(&mut self, seat: Seat) -> Option<OwnedFd> {
        if let Some(front) = &self.front {
            match pidfd_getfd(front, self.number(seat.slot), PidfdGetfdFlags::empty()) {
                Ok(taken) => return Some(taken),
                Err(Errno::MFILE | Errno::NFILE) => return None,
                // Gone: asked for it, the front says so.
                Err(Errno::BADF | Errno::SRCH) => {}
                Err(_) => {
                    self.header.not_taken.store(self.epoch, Relaxed);
                    self.front = None;
                }
            }
        }
        self.say(Word::Want { slot: seat.slot, generation: seat.generation });
        answer(&self.control)
    }

    pub(super) fn forget(&mut self, seat: Seat) {
        if self.known.get_mut(seat.slot as usize).is_some_and(|known| std::mem::take(known) != 0) {
            // SAFETY: as in `meet`.
            drop(unsafe { OwnedFd::from_raw_fd(self.number(seat.slot)) });
        }
    }

    /// The pool hears when the client sends something.
    pub(super) fn arm(&self, seat: Seat) {
        self.watch(seat, epoll::EventFlags::IN);
    }

    /// The pool hears of the client at once: it waits for its welcome and sends nothing.
    pub(super) fn announce(&self, seat: Seat) {
        self.watch(seat, epoll::EventFlags::OUT);
    }

    pub(super) fn watch(&self, seat: Seat, what: epoll::EventFlags) {
        let flags = what | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        let data = epoll::EventData::new_u64(u64::from(seat.slot));
        // The front may have taken it out meanwhile.
        let _ = epoll::modify(&self.epoll, self.descriptor(seat.slot), data, flags);
    }
}

fn say(control: &OwnedFd, word: Word) {
    // The front reads at once or is gone; then the next wait finds out.
    let _ = rustix::net::send(control, &word.to_bytes(), SendFlags::NOSIGNAL);
}

/// The descriptor that the front answers with.
pub(in crate::postgres) fn answer(control: &OwnedFd) -> Option<OwnedFd> {
    let mut bytes = [0; ANSWER];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let received = rustix::net::recvmsg(control.as_fd(), &mut buffers, &mut ancillary, flags);
        match received {
            Ok(message) if message.bytes == ANSWER => {
                return ancillary.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                    _ => None,
                });
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => return None,
        }
    }
}
