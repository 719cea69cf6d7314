//! The relay's words in shared memory: the ring's ends, the databases that are heard, the channels, who listens to what. All-zero
//! bytes are a valid, empty table. Written by the front's first thread, but for what stands at each word.

use crate::bridge::Name;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::*};

/// Databases at once that have listeners.
pub const SOURCES: usize = 64;

/// A number that may be none, as 0 or the number plus 1.
#[repr(transparent)]
#[derive(Default)]
pub struct Number(AtomicU32);

impl Number {
    pub fn get(&self) -> Option<u32> {
        self.0.load(Acquire).checked_sub(1)
    }

    pub fn set(&self, number: Option<u32>) {
        self.0.store(number.map_or(0, |number| number + 1), Release);
    }
}

/// The parts that do not depend on a setting.
#[repr(C)]
pub struct Header {
    /// Where the next notification goes and where the oldest that is kept begins: bytes since the server's start. A relay's, under
    /// its lock.
    pub head: AtomicU64,
    pub tail: AtomicU64,
    /// The name of the channel by which pooled backends tell the relay which client notifies, in hexadecimal; 0 before it is chosen.
    pub secret: [AtomicU64; 2],
    pub counters: Counters,
    /// Channels and listens in use.
    pub channels: AtomicU32,
    pub listens: AtomicU32,
    /// Clients that have not taken all that they were sent, and by how many bytes of the ring the furthest of them is behind.
    pub behind: AtomicU32,
    pub backlog: AtomicU64,
    pub sources: [Source; SOURCES],
}

impl Default for Header {
    fn default() -> Self {
        Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            secret: Default::default(),
            counters: Counters::default(),
            channels: AtomicU32::new(0),
            listens: AtomicU32::new(0),
            behind: AtomicU32::new(0),
            backlog: AtomicU64::new(0),
            sources: std::array::from_fn(|_| Source::default()),
        }
    }
}

/// Counts since the server's start.
#[repr(C)]
#[derive(Default)]
pub struct Counters {
    /// Client connections that have listened; those that have ended; LISTENs and UNLISTENs that took effect.
    pub clients: AtomicU64,
    pub listened: AtomicU64,
    pub unlistened: AtomicU64,
    /// Notifications that the relays have put into the ring, and that have been given to clients.
    pub received: AtomicU64,
    pub dispatched: AtomicU64,
    /// Clients that were ended because they were too slow.
    pub too_slow: AtomicU64,
    /// LISTENs that were refused because a limit was reached.
    pub refused: AtomicU64,
}

/// A database that is heard.
#[repr(C)]
#[derive(Default)]
pub struct Source {
    /// [`SourceState`]. The front's until it is starting; then its worker says that it runs.
    pub state: AtomicU32,
    /// OID.
    pub database: AtomicU32,
    pub database_name: Name,
    /// The worker's process id, and its number in the server's table of processes.
    pub pid: AtomicI32,
    pub proc: AtomicI32,
    /// Counts the times that the front has changed what it is to listen to, and up to which the worker has done it.
    pub wanted: AtomicU64,
    pub done: AtomicU64,
    /// Counts its workers: only the one with this number is its relay. An earlier one that lives on leaves everything alone.
    pub turn: AtomicU32,
    /// Counts the LISTENs that wait until everything has been heard that was committed before them, and up to which that is so.
    pub asked: AtomicU64,
    pub heard: AtomicU64,
    /// 1: nobody listens any more.
    pub retire: AtomicU32,
    /// 1: the front wants to hear of the next notification.
    pub wants_news: AtomicU32,
}

/// What a database's relay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SourceState {
    Free = 0,
    Starting = 1,
    Running = 2,
    /// Its worker has ended, and clients that listened by it are still to hear that.
    Ended = 3,
}

impl Source {
    /// Whether a worker hears it, or will.
    pub fn is_heard(&self) -> bool {
        matches!(self.state(), SourceState::Starting | SourceState::Running)
    }

    pub fn state(&self) -> SourceState {
        match self.state.load(Acquire) {
            1 => SourceState::Starting,
            2 => SourceState::Running,
            3 => SourceState::Ended,
            _ => SourceState::Free,
        }
    }
}

/// A channel of a database.
#[repr(C)]
#[derive(Default)]
pub struct Channel {
    /// [`ChannelState`].
    pub state: AtomicU32,
    /// The number of its source.
    pub source: AtomicU32,
    pub name: Name,
    /// Where its newest notification is in the ring; 0 when there has been none. The relay's.
    pub last: AtomicU64,
    /// The list of those who listen, and how many they are.
    pub first: Number,
    pub listeners: AtomicU32,
    /// Notifications that have been given to clients.
    pub delivered: AtomicU64,
    /// Since when it is listened to: microseconds since 1970.
    pub since: AtomicI64,
}

/// Whether the relay listens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ChannelState {
    Free = 0,
    /// The front has asked for it.
    Wanted = 1,
    /// The relay's LISTEN has committed.
    Heard = 2,
    /// Nobody listens any more.
    Unwanted = 3,
    /// The relay's UNLISTEN has committed.
    Left = 4,
}

impl Channel {
    pub fn state(&self) -> ChannelState {
        match self.state.load(Acquire) {
            1 => ChannelState::Wanted,
            2 => ChannelState::Heard,
            3 => ChannelState::Unwanted,
            4 => ChannelState::Left,
            _ => ChannelState::Free,
        }
    }

    /// False when it was in another state.
    pub fn change(&self, from: ChannelState, to: ChannelState) -> bool {
        self.state.compare_exchange(from as u32, to as u32, AcqRel, Acquire).is_ok()
    }
}

/// That a client listens to a channel.
#[repr(C)]
#[derive(Default)]
pub struct Listen {
    pub channel: AtomicU32,
    pub client: AtomicU32,
    /// Other listens of the same client; others of the same channel.
    pub next_of_client: Number,
    pub next_of_channel: Number,
    pub previous_of_channel: Number,
    /// 1: the transaction of the LISTEN has not committed. Whoever has the client.
    pub tentative: AtomicU32,
    /// What stands below this has been given to the client; and where the last that was given is, 0 when there is none. Whoever
    /// has the client.
    pub cursor: AtomicU64,
    pub at: AtomicU64,
}

/// A client of the front, by the number of its slot.
#[repr(C)]
#[derive(Default)]
pub struct Listener {
    pub first: Number,
    pub listens: AtomicU32,
}

/// The mapped tables.
#[derive(Clone, Copy)]
pub struct Shared {
    pub header: &'static Header,
    pub channels: &'static [Channel],
    pub listens: &'static [Listen],
    pub listeners: &'static [Listener],
    /// The ring, in words of eight bytes.
    pub words: &'static [AtomicU64],
}

impl Shared {
    /// The listens of a client.
    pub fn listens_of(&self, client: u32) -> impl Iterator<Item = (u32, &'static Listen)> + use<> {
        let listens = self.listens;
        let first = self.listeners.get(client as usize).and_then(|listener| listener.first.get());
        let at = move |number: u32| listens.get(number as usize).map(|listen| (number, listen));
        std::iter::successors(first.and_then(at), move |(_, listen)| listen.next_of_client.get().and_then(at))
            .take(self.listens.len())
    }

    /// The channels that anybody listens to, with their sources.
    pub fn channels_in_use(&self) -> impl Iterator<Item = (&'static Channel, &'static Source)> + use<> {
        let sources = &self.header.sources;
        self.channels.iter().filter_map(move |channel| {
            let used = matches!(channel.state(), ChannelState::Wanted | ChannelState::Heard)
                && channel.listeners.load(Relaxed) > 0;
            let source = sources.get(channel.source.load(Relaxed) as usize)?;
            used.then_some((channel, source))
        })
    }

    /// The channel of a listen.
    pub fn channel_of(&self, listen: &Listen) -> Option<&'static Channel> {
        self.channels.get(listen.channel.load(Relaxed) as usize)
    }

    /// The channel by which pooled backends tell the relay which client notifies.
    pub fn marker(&self) -> String {
        let [high, low] = self.header.secret.each_ref().map(|word| word.load(Relaxed));
        format!("postern {high:016x}{low:016x}")
    }
}
