//! What the front and the notification relay are to each other: which the services do not know of each other stands behind
//! [`Relay`]; and who may write to an idle client. Network threads.

use super::front::Front;
use super::pools;
use super::shared::{Doom, ServerState};
use super::slot::State;
use crate::bridge::Level;
pub use crate::notification::Request;
use crate::notification::Taken;
use crate::wire::message::Report;
use rustix::net::SendFlags;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{Ordering::*, fence};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How much earlier than the front a relay may end when the server stops.
const RELAY_FIRST: Duration = Duration::from_millis(200);

/// The answer to a LISTEN that is in force; the others are the relay's own.
pub const IN_FORCE: u32 = 1;

/// What is done when a LISTEN is in force ([`IN_FORCE`]), or not to be.
pub type Done = Box<dyn FnOnce(u32) + Send>;

/// The notification relay, as the front needs it.
pub trait Relay: Send + Sync {
    fn listen(&self, front: &Arc<Front>, request: Request<'_>, done: Done);

    /// By the number of the listen.
    fn unlisten(&self, front: &Arc<Front>, client: u32, listen: u32);

    /// The LISTENs of a transaction that has not committed.
    fn take_back(&self, front: &Arc<Front>, client: u32);

    /// The client listens to nothing any more, or is gone.
    fn unlisten_all(&self, front: &Arc<Front>, client: u32);

    /// By the channel's name.
    fn unlisten_channel(&self, front: &Arc<Front>, client: u32, channel: &[u8]);

    /// Appends what the client is still to be sent, about so many bytes of it, and takes it as sent. By whoever has the client.
    fn collect(&self, client: u32, most: usize, out: &mut Vec<u8>) -> Given;

    /// By how many bytes the client is behind; `None` when something that it lacks is gone.
    fn backlog(&self, client: u32) -> Option<u64>;

    /// The last words of a client that is too slow; it is counted.
    fn too_slow(&self, front: &Arc<Front>, client: u32) -> Vec<u8>;

    /// Why a LISTEN is not to be, by the number that [`Done`] was given.
    fn refusal(&self, number: u32) -> Report;

    /// Nobody has the client any more, and it may lack notifications.
    fn behind(&self, client: u32);

    /// A relay has taken an idle client to write to it, and only so many bytes of what it lacks have gone.
    fn finish(&self, front: &Arc<Front>, client: u32, sent: usize);

    /// A relay's worker has something new.
    fn news(&self);

    /// That worker of a source has ended.
    fn ended(&self, front: &Arc<Front>, source: u32, turn: u32);

    /// What clients listen to.
    fn channels(&self) -> Vec<ChannelGlance>;

    /// Writes notifications to idle clients until the front ends. On the first thread.
    fn run(&self, front: Arc<Front>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A channel that clients listen to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelGlance {
    pub database: Vec<u8>,
    pub channel: Vec<u8>,
    pub listeners: u32,
    /// Notifications that they were given, together.
    pub delivered: u64,
    /// Microseconds since 1970.
    pub since: i64,
}

/// What came of collecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// Everything that there was.
    All,
    /// There is more than was asked for.
    More,
    /// Some of it is gone.
    TooLate,
}

impl Front {
    /// Takes an idle client to write to it; has a backend that waits for its own client look at what there is for it.
    pub fn take_to_notify(&self, number: u32) -> Taken {
        // What there is for the client was published before; a backend that begins to wait for it looks after it has said so.
        fence(SeqCst);
        let Some(slot) = self.shared.slots.get(number as usize) else { return Taken::Gone };
        let seen = slot.word.seen();
        match seen.state() {
            State::Idle if slot.word.notify(seen.generation()) => Taken::Yes,
            State::Idle | State::Cancelling => Taken::Busy,
            State::Attached => {
                if let Some(server) = self.shared.servers.get(seen.server() as usize)
                    && matches!(server.state(), ServerState::Staying | ServerState::Pinned)
                {
                    pools::wake(server);
                }
                Taken::Elsewhere
            }
            State::Listening => {
                self.listeners.wake(number);
                Taken::Elsewhere
            }
            // It is being written to, and is given what there is before it is given back.
            State::Notifying | State::Called => Taken::Elsewhere,
            State::Free | State::Login | State::Closing => Taken::Gone,
        }
    }

    /// Writes to a client that was taken, without waiting.
    ///
    /// # Errors
    /// As send(2) has it.
    pub fn notify(&self, number: u32, bytes: &[u8]) -> std::io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        self.seats
            .with(number, |seat| rustix::net::send(seat.socket(), bytes, flags))
            .unwrap_or(Err(rustix::io::Errno::BADF))
            .map_err(Into::into)
    }

    /// Waits until more can be written to a client that was taken.
    pub fn notifiable(&self, number: u32) -> impl Future<Output = ()> + Send + use<> {
        let socket = self.seats.with(number, |seat| rustix::io::fcntl_dupfd_cloexec(seat.socket(), 0));
        async move {
            let Some(Ok(socket)) = socket else { return };
            // Deprecated because a type might change its descriptor; `OwnedFd` keeps one for life.
            #[allow(deprecated)]
            if let Ok(socket) = AsyncFd::with_interest(socket, Interest::WRITABLE) {
                let _ = socket.writable().await;
            }
        }
    }

    /// Gives a client back that was taken.
    pub fn notified(&self, number: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let generation = slot.word.seen().generation();
        if slot.word.notified(generation) {
            self.seats.arm(number, generation);
        }
    }

    /// Whether a client that was taken is to be ended.
    pub fn is_doomed(&self, number: u32) -> bool {
        let slot = self.shared.slots.get(number as usize);
        slot.is_none_or(|slot| slot.doomed.load(SeqCst) == slot.word.seen().generation())
    }

    /// Ends a client that was taken.
    pub fn end_notified(self: &Arc<Self>, number: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let generation = slot.word.seen().generation();
        if slot.word.close_notifying(generation) {
            self.end_client(number, generation);
        }
    }

    /// For the log: the relay of a database has ended before its listeners have. Not when the server stops.
    pub fn log_relay_end(self: &Arc<Self>, database: &str, clients: usize) {
        let text = format!(
            "notification relay of database {database} ended; its {clients} listeners are disconnected"
        );
        let front = Arc::clone(self);
        self.spawn(async move {
            if tokio::time::timeout(RELAY_FIRST, front.bridge.stop().cancelled()).await.is_err() {
                front.bridge.log(Level::Warning, text);
            }
        });
    }

    /// Ends a client whose channels nobody hears any more, whoever has it.
    pub fn end_listener(self: &Arc<Self>, number: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let generation = slot.word.seen().generation();
        let front = Arc::clone(self);
        self.spawn(async move {
            // When the server stops, a relay may have ended before we do: then that is what its clients hear.
            if tokio::time::timeout(RELAY_FIRST, front.bridge.stop().cancelled()).await.is_err() {
                front.end_wherever_it_is(number, generation, Doom::RelayEnded).await;
            }
        });
    }
}
