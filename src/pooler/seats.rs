//! The clients' sockets as the front holds them: slot n at descriptor number base + n, the same as in every pooled backend, because
//! an epoll instance knows a socket by file and number. Network threads.

use crate::wire::frame;
use parking_lot::Mutex;
use rustix::event::epoll;
use rustix::net::{RecvFlags, Shutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;
use tokio::task::AbortHandle;

/// Descriptors that neither clients nor a server's own files need: listeners, pools, runtimes.
const SPARE: u64 = 256;

/// A message of at most so many bytes is waited for as a whole before a backend takes its client; a longer one is taken when so much
/// of it is there.
pub const WHOLE: usize = 4096;

/// Once, as soon as the client can be written to: at once, as a rule.
const WRITABLE: epoll::EventFlags =
    epoll::EventFlags::OUT.union(epoll::EventFlags::RDHUP).union(epoll::EventFlags::ONESHOT);

/// Where clients' descriptors are, and how many clients the limit of open files allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub base: u32,
    pub capacity: u32,
}

impl Room {
    /// With a hard limit of `limit` open files a process, of which a server process itself may open `own`. Below the clients'
    /// numbers there is room for the same number of descriptors again: logins, and both ends of TLS.
    pub fn of(limit: u64, own: u64, clients: u32) -> Self {
        let low = own + SPARE;
        let capacity = limit.saturating_sub(low).min(limit / 2).min(u64::from(clients));
        let base = (limit - capacity).min((2 * capacity + SPARE).max(low)).max(low);
        Self { base: u32::try_from(base).unwrap_or(u32::MAX), capacity: u32::try_from(capacity).unwrap_or(0) }
    }
}

/// Raises the limit of open files as far as the system lets us: the hard limit.
pub fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)
}

pub(super) struct Seat {
    generation: u32,
    socket: OwnedFd,
    pool: Arc<OwnedFd>,
    /// Where the client's bytes come in, if not on the socket itself. The number may have become another's when the client is
    /// about to end.
    wire: Option<RawFd>,
    timer: Option<Timer>,
}

impl Seat {
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}

/// A task that looks at a client when its time may be up.
struct Timer {
    at: Instant,
    task: AbortHandle,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Every client's socket.
pub struct Seats {
    base: u32,
    seats: Box<[Mutex<Option<Seat>>]>,
}

impl Seats {
    pub fn new(room: Room) -> Self {
        Self { base: room.base, seats: (0..room.capacity).map(|_| Mutex::default()).collect() }
    }

    /// Puts a client's socket at its number; the pool is not told yet.
    ///
    /// # Errors
    /// When the system gives no descriptor, or not that one.
    pub fn seat(
        &self,
        slot: u32,
        generation: u32,
        socket: &OwnedFd,
        pool: &Arc<OwnedFd>,
        wire: Option<RawFd>,
    ) -> std::io::Result<()> {
        let number = i32::try_from(self.base + slot).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        let socket = rustix::io::fcntl_dupfd_cloexec(socket, number)?;
        if socket.as_raw_fd() != number {
            return Err(std::io::Error::other("a client's descriptor is in use"));
        }
        let seat = Seat { generation, socket, pool: Arc::clone(pool), wire, timer: None };
        *self.at(slot).ok_or(std::io::ErrorKind::InvalidInput)?.lock() = Some(seat);
        Ok(())
    }

    fn at(&self, slot: u32) -> Option<&Mutex<Option<Seat>>> {
        self.seats.get(slot as usize)
    }

    /// The pool hears when the client's socket can be written: at once. For a client that waits for its welcome.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn announce(&self, slot: u32) -> std::io::Result<()> {
        self.with(slot, |seat| {
            let data = epoll::EventData::new_u64(u64::from(slot));
            epoll::add(&*seat.pool, &seat.socket, data, WRITABLE)
        })
        .unwrap_or(Err(rustix::io::Errno::BADF))
        .map_err(Into::into)
    }

    /// The same again, for a client that was announced and that a backend has let be.
    pub fn announce_again(&self, slot: u32, generation: u32) {
        self.with(slot, |seat| {
            if seat.generation == generation {
                let data = epoll::EventData::new_u64(u64::from(slot));
                let _ = epoll::modify(&*seat.pool, &seat.socket, data, WRITABLE);
            }
        });
    }

    /// The pool hears when the client sends something.
    pub fn arm(&self, slot: u32, generation: u32) {
        self.with(slot, |seat| {
            if seat.generation == generation {
                let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
                let data = epoll::EventData::new_u64(u64::from(slot));
                let _ = epoll::modify(&*seat.pool, &seat.socket, data, flags);
            }
        });
    }

    /// Has a client looked at by the task that `start` starts, unless one looks no later: a client has one timer, and none when it has
    /// gone. A task that does not wait any more says so by [`Seats::end_timer`].
    pub fn time(&self, slot: u32, generation: u32, at: Instant, start: impl FnOnce() -> AbortHandle) {
        let Some(place) = self.at(slot) else { return };
        if let Some(seat) = place.lock().as_mut().filter(|seat| seat.generation == generation)
            && seat.timer.as_ref().is_none_or(|timer| timer.at > at)
        {
            seat.timer = Some(Timer { at, task: start() });
        }
    }

    pub fn end_timer(&self, slot: u32, generation: u32) {
        let Some(place) = self.at(slot) else { return };
        if let Some(seat) = place.lock().as_mut().filter(|seat| seat.generation == generation) {
            seat.timer = None;
        }
    }

    /// A copy of a client's socket.
    pub fn copy(&self, slot: u32, generation: u32) -> Option<OwnedFd> {
        let copy = |seat: &Seat| {
            (seat.generation == generation)
                .then(|| rustix::io::fcntl_dupfd_cloexec(&seat.socket, 0).ok())
                .flatten()
        };
        self.with(slot, copy).flatten()
    }

    /// Something with a client's socket; `None` when the slot has none.
    pub(super) fn with<T>(&self, slot: u32, what: impl FnOnce(&Seat) -> T) -> Option<T> {
        self.at(slot)?.lock().as_ref().map(what)
    }

    /// Whether the client has sent something that nobody has read, or has gone.
    pub fn is_ready(&self, slot: u32, generation: u32) -> bool {
        let ready = |seat: &Seat| seat.generation == generation && can_read(seat.socket.as_fd());
        self.with(slot, ready).unwrap_or(false)
    }

    /// Whether the client has gone and left nothing to be read.
    pub fn has_gone(&self, slot: u32, generation: u32) -> bool {
        let gone = |seat: &Seat| {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            match rustix::net::recv(&seat.socket, &mut [0], flags) {
                Ok((length, _)) => length == 0,
                Err(error) => !matches!(error, rustix::io::Errno::AGAIN | rustix::io::Errno::INTR),
            }
        };
        self.with(slot, |seat| seat.generation == generation && gone(seat)).unwrap_or(false)
    }

    /// Whether a backend that took the client would have something to do: a message of which enough is there, or the client's end.
    /// Of what it sends, so many bytes are still to be thrown away.
    pub fn has_message(&self, slot: u32, generation: u32, discard: usize) -> bool {
        let look = |seat: &Seat| {
            let mut space = [std::mem::MaybeUninit::<u8>::uninit(); WHOLE];
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let peeked = match rustix::net::recv(&seat.socket, &mut space[..], flags) {
                Ok(((peeked, _), _)) => peeked,
                Err(error) => return error != rustix::io::Errno::AGAIN,
            };
            let length = peeked.len();
            match frame::first(peeked) {
                _ if length == 0 => true,
                _ if discard > 0 => length >= discard.min(WHOLE),
                Ok(None) => false,
                Ok(Some(first)) => first.is_there(WHOLE),
                Err(_) => true,
            }
        };
        self.with(slot, |seat| seat.generation == generation && look(seat)).unwrap_or(false)
    }

    /// The descriptor number on which the client's bytes come in.
    pub fn wire(&self, slot: u32, generation: u32) -> Option<RawFd> {
        let wire = |seat: &Seat| {
            (seat.generation == generation).then(|| seat.wire.unwrap_or_else(|| seat.socket.as_raw_fd()))
        };
        self.with(slot, wire).flatten()
    }

    /// Sends something to a client that nobody serves; what does not fit is dropped. Whether all of it has gone.
    pub fn say(&self, slot: u32, generation: u32, bytes: &[u8]) -> bool {
        self.with(slot, |seat| {
            let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
            seat.generation == generation
                && rustix::net::send(&seat.socket, bytes, flags).is_ok_and(|sent| sent == bytes.len())
        })
        .unwrap_or(false)
    }

    /// Takes the client out of its pool and closes it, whoever else has its descriptor. Its number is free afterwards.
    pub fn close(&self, slot: u32, generation: u32) {
        let Some(place) = self.at(slot) else { return };
        let mut place = place.lock();
        if place.as_ref().is_some_and(|seat| seat.generation == generation)
            && let Some(seat) = place.take()
        {
            let _ = epoll::delete(&*seat.pool, &seat.socket);
            let _ = rustix::net::shutdown(&seat.socket, Shutdown::Both);
        }
    }
}

/// Whether a read would return at once.
pub fn can_read(descriptor: std::os::fd::BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_has_one_timer_which_is_the_earliest_and_ends_with_it() {
        let seats = Seats::new(Room { base: 900, capacity: 1 });
        let socket = OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
        let pool = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        seats.seat(0, 5, &socket, &pool, None).unwrap();
        let at = |seconds| Instant::now() + std::time::Duration::from_secs(seconds);
        let (alive, mut tasks) = (Arc::new(()), Vec::new());
        for (generation, seconds) in [(5, 100), (5, 200), (4, 1), (5, 50), (5, 60)] {
            let its = Arc::clone(&alive);
            seats.time(0, generation, at(seconds), || {
                let task = tokio::spawn(async move {
                    std::future::pending::<()>().await;
                    drop(its);
                });
                let handle = task.abort_handle();
                tasks.push((seconds, task));
                handle
            });
        }
        assert_eq!(tasks.iter().map(|(seconds, _)| *seconds).collect::<Vec<_>>(), [100, 50]);
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 2, "the later one has ended");
        seats.end_timer(0, 4);
        assert!(!tasks[1].1.is_finished());
        seats.close(0, 5);
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn clients_are_as_many_as_the_limit_of_open_files_allows() {
        let room = Room::of(20_000, 1_000, 10_000);
        assert_eq!(room, Room { base: 10_000, capacity: 10_000 });
        let room = Room::of(4_096, 1_000, 10_000);
        assert_eq!(room, Room { base: 2_048, capacity: 2_048 });
        let room = Room::of(1 << 20, 1_000, 10_000);
        assert_eq!(room, Room { base: 20_256, capacity: 10_000 });
        let room = Room::of(1_024, 1_000, 10_000);
        assert_eq!(room.capacity, 0);
        for (limit, clients) in [(1_400, 9), (3_000, 2_000), (70_000, 100_000)] {
            let room = Room::of(limit, 1_000, clients);
            assert!(
                u64::from(room.base) >= 1_256 && u64::from(room.base + room.capacity) <= limit,
                "{room:?}"
            );
        }
    }
}
