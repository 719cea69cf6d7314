//! One client's words: where it is, what it has, what holds it at its backend, why it is to end. Whose word it is stands at each.

use crate::bridge::Name;
use crate::pooler::slot::{SlotWord, WaitingSince};
use crate::wire::message::{AUTHENTICATION_OK, Report};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::*};

/// One client.
#[repr(C)]
#[derive(Default)]
pub struct Slot {
    pub word: SlotWord,
    /// Its pool's number; [`super::listening::NO_POOL`] is none.
    pub pool: AtomicU16,
    /// 4: IPv4, 6: IPv6, 0: Unix socket.
    pub family: AtomicU8,
    /// The number of its TLS connection's cipher (`net::tls::session`); 0 is no TLS.
    pub tls: AtomicU8,
    /// The TCP port.
    pub port: AtomicU16,
    /// The minor version of protocol 3 that was agreed.
    pub minor: AtomicU16,
    /// IPv4 in the first word; IPv6 in four.
    pub address: [AtomicU32; 4],
    /// The front's end of its connection, likewise.
    pub local_address: [AtomicU32; 4],
    pub local_port: AtomicU16,
    /// [`super::shown::Authenticated`].
    pub authenticated: AtomicU8,
    /// Nobody has told it yet that it has been authenticated: whoever speaks to it first does.
    pub to_be_told: AtomicBool,
    /// What a CancelRequest must show beside the slot's pid; see [`Slot::cancel_key`].
    pub key: [AtomicU64; 4],
    /// The generation that is to be ended at its next idle moment: whoever has it then does it; and why ([`Doom`]).
    pub doomed: AtomicU32,
    pub doom: AtomicU32,
    /// Bits of [`Pin`]: why it stays with its backend. The agent's.
    pub pins: AtomicU32,
    /// The client's settings and statements: addresses in the dynamic shared memory, of whoever owns the slot. 0 is none.
    pub settings: AtomicU64,
    pub statements: AtomicU64,
    /// OIDs of the role and the database for which main has let it in: the limits of connections count these. 0 before and after.
    pub admitted_role: AtomicU32,
    pub admitted_database: AtomicU32,
    /// What it has shown of itself ([`super::shown::Shown`]), in the same memory. Written by the front's main thread, at its login.
    pub shown: AtomicU64,
    /// Tells the contents of the two apart without reading them.
    pub settings_hash: AtomicU64,
    pub statements_hash: AtomicU64,
    /// Microseconds since 1970.
    pub connected_at: AtomicI64,
    /// When a backend last took it or let it go.
    pub since: AtomicI64,
    pub waiting_since: WaitingSince,
    pub transactions: AtomicU64,
    /// The text of its unnamed statement, with types; in the dynamic memory.
    pub unnamed: AtomicU64,
    /// The session's `idle_session_timeout` as its last backend left it; 0 is none.
    pub idle_millis: AtomicU32,
    /// Bytes of its input that are still to be thrown away: the rest of a message of a COPY that has failed.
    pub discard: AtomicU32,
    /// How often in a row only a part of a message was there, and since when; 0 when a whole one is, or none.
    pub parts: AtomicU32,
    pub part_since: AtomicI64,
    pub application_name: Name,
}

impl Slot {
    /// The words that point into the dynamic shared memory.
    pub fn texts(&self) -> [&AtomicU64; 4] {
        [&self.settings, &self.statements, &self.unnamed, &self.shown]
    }

    /// No backend has welcomed it yet: it waits for one without having sent anything.
    pub fn is_fresh(&self) -> bool {
        self.settings_hash.load(Relaxed) == 0 && self.transactions.load(Relaxed) == 0
    }

    /// A report as bytes for a client that no backend serves, behind what it has not been told yet.
    pub fn last_words(&self, report: &Report) -> Vec<u8> {
        let mut bytes = if self.to_be_told.load(Relaxed) { AUTHENTICATION_OK.to_vec() } else { Vec::new() };
        bytes.extend(report.to_bytes());
        bytes
    }

    /// The key of its BackendKeyData: 4 bytes, with protocol 3.2 as many as the server's own (MAX_CANCEL_KEY_LENGTH,
    /// storage/procsignal.h).
    pub fn cancel_key(&self) -> Vec<u8> {
        let mut key: Vec<u8> = self.key.iter().flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        if self.minor.load(Relaxed) < 2 {
            key.truncate(4);
        }
        key
    }

    pub fn has_texts(&self) -> bool {
        self.texts().iter().any(|word| word.load(Relaxed) != 0)
    }
}

/// Why a client is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Doom {
    Administrator = 0,
    /// Nobody hears its channels any more.
    RelayEnded = 1,
}

impl Doom {
    pub fn of(slot: &Slot) -> Self {
        match slot.doom.load(Relaxed) {
            1 => Self::RelayEnded,
            _ => Self::Administrator,
        }
    }

    /// What the client hears.
    pub fn report(self) -> Report {
        match self {
            Self::Administrator => {
                Report::fatal("57P01", "terminating connection due to administrator command")
            }
            Self::RelayEnded => {
                Report::fatal("PN002", "terminating connection because the notification relay has ended")
                    .with_detail("Notifications may have been missed.")
            }
        }
    }
}

/// Why a client stays with its backend: bits of [`Slot::pins`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Pin {
    SessionMode = 1,
    TemporaryObjects = 2,
    AdvisoryLocks = 4,
    HoldCursors = 8,
    Listens = 16,
    LoadedLibrary = 32,
    RandomSeed = 64,
    ReplicationState = 128,
    StateTooLarge = 256,
    StatementNotMovable = 512,
    SetByLibrary = 1024,
}

impl Pin {
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::SessionMode, "session mode"),
        (Self::TemporaryObjects, "temporary objects"),
        (Self::AdvisoryLocks, "advisory locks"),
        (Self::HoldCursors, "cursors with hold"),
        (Self::Listens, "listens in another encoding"),
        (Self::LoadedLibrary, "loaded library"),
        (Self::RandomSeed, "random seed"),
        (Self::ReplicationState, "replication state"),
        (Self::StateTooLarge, "state too large"),
        (Self::StatementNotMovable, "statement with a value of its moment"),
        (Self::SetByLibrary, "set by a library"),
    ];

    /// The names of the bits, in words for `postern.clients.pinned_by`.
    pub fn names(bits: u32) -> Vec<&'static str> {
        Self::ALL.iter().filter(|(pin, _)| bits & *pin as u32 != 0).map(|(_, name)| *name).collect()
    }
}
