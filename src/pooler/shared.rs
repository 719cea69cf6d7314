//! What the front, the pooled backends and the views share, as words in shared memory: clients ([`Slot`]), server
//! connections ([`Server`]), pools ([`Pool`]). All-zero bytes are a valid, empty table.
//!
//! Written by the front's main thread and network threads and by the session agents; whose word it is stands at each.

use super::slot::{SlotWord, WaitingSince};
use super::waiters::Waiters;
use crate::bridge::{Name, WorkerWords};
use crate::net::slots::Slots;
use crate::wire::message::Report;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::*,
};
use std::time::{SystemTime, UNIX_EPOCH};

/// Pools at once: pairs of a database and a role.
pub const POOLS: usize = 512;

/// The most server connections of one pool.
pub const POOL_SIZE_MAX: usize = 512;

/// The parts that do not depend on a setting.
#[repr(C)]
#[derive(Default)]
pub struct Header {
    pub worker: WorkerWords,
    /// The postmaster had no place for the worker.
    pub no_worker_slot: AtomicU32,
    /// Counts the starts and ends of the front: what an earlier one left is not taken for this one's.
    pub epoch: AtomicU32,
    /// The epoch whose front ends and looks at idle clients for the last time: whoever lets go of one afterwards ends it.
    pub ending: AtomicU32,
    /// The number of the descriptor of slot 0, in the front and in every pooled backend.
    pub base: AtomicU32,
    /// Clients that this machine's limit of open files allows; at most the size of the table.
    pub capacity: AtomicU32,
    /// The control socket's name in the abstract namespace: "postern-" and this in hexadecimal.
    pub control: [AtomicU64; 2],
    /// The dynamic shared memory that holds the clients' texts; 0 is none.
    pub texts: AtomicU32,
    /// Log lines that found the queue full.
    pub log_dropped: AtomicU64,
    pub listeners: Slots,
    /// Clients that have not finished their login.
    pub logins: AtomicU32,
    /// Some line of pg_hba.conf names a host, so clients' names are looked up before main is asked.
    pub names_hosts: AtomicBool,
    /// Replication connections that are being copied.
    pub replications: AtomicU32,
    pub orders: Orders,
    pub counters: Counters,
}

/// Counts since the server's start.
#[repr(C)]
#[derive(Default)]
pub struct Counters {
    pub clients: AtomicU64,
    pub logins_failed: AtomicU64,
    pub cancels: AtomicU64,
}

/// Databases at once that are paused or disabled by name.
const ORDERS: usize = 128;

/// What administrators have ordered of databases, whether these have pools or not. Outlives a front that is started again, lest a
/// PAUSE end by itself.
#[repr(C)]
pub struct Orders {
    /// Everything is paused.
    pub pause: AtomicBool,
    places: [Place; ORDERS],
}

/// The orders about one database.
#[repr(C)]
#[derive(Default)]
struct Place {
    /// 0 is free; else `NAMED` once the name is written, and bits of [`Order`].
    word: AtomicU32,
    name: Name,
}

/// A bit of a place's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// No server connections: clients wait.
    Pause = 4,
    /// No new clients.
    Disable = 8,
}

/// Somebody is writing the name; the name stands.
const NAMING: u32 = 1;
const NAMED: u32 = 2;

impl Default for Orders {
    fn default() -> Self {
        Self { pause: AtomicBool::new(false), places: std::array::from_fn(|_| Place::default()) }
    }
}

impl Orders {
    fn of<'a>(&'a self, database: &'a [u8]) -> impl Iterator<Item = &'a Place> {
        self.places
            .iter()
            .filter(move |place| place.word.load(Acquire) & NAMED != 0 && place.name.is(database))
    }

    /// False when there are too many.
    pub fn give(&self, database: &[u8], order: Order) -> bool {
        for place in self.of(database) {
            let give = |word| (word & NAMED != 0).then_some(word | order as u32);
            if place.word.fetch_update(AcqRel, Acquire, give).is_ok() {
                return true;
            }
        }
        let claim = |place: &&Place| place.word.compare_exchange(0, NAMING, AcqRel, Acquire).is_ok();
        let Some(place) = self.places.iter().find(claim) else { return false };
        place.name.set(database);
        place.word.store(NAMED | order as u32, Release);
        true
    }

    /// Whether it was given.
    pub fn take_back(&self, database: &[u8], order: Order) -> bool {
        let mut was = false;
        for place in self.of(database) {
            let take = |word| {
                let left = word & !(order as u32);
                (word & NAMED != 0).then_some(if left == NAMED { 0 } else { left })
            };
            let before = place.word.fetch_update(AcqRel, Acquire, take);
            was |= before.is_ok_and(|word| word & order as u32 != 0);
        }
        was
    }

    pub fn has(&self, database: &[u8], order: Order) -> bool {
        self.of(database).any(|place| place.word.load(Acquire) & order as u32 != 0)
    }

    /// The databases about which there are orders.
    pub fn names(&self) -> Vec<Vec<u8>> {
        let named = self.places.iter().filter(|place| place.word.load(Acquire) & NAMED != 0);
        named.map(|place| place.name.bytes()).collect()
    }
}

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
    /// What a CancelRequest must show beside the slot's pid.
    pub key: AtomicU32,
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
}

impl Pin {
    pub const ALL: [(Self, &'static str); 10] = [
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
    ];

    /// The names of the bits, in words for `postern.clients.pinned_by`.
    pub fn names(bits: u32) -> Vec<&'static str> {
        Self::ALL.iter().filter(|(pin, _)| bits & *pin as u32 != 0).map(|(_, name)| *name).collect()
    }
}

/// One connection of the front to the server, and the backend at its other end.
#[repr(C)]
#[derive(Default)]
pub struct Server {
    /// [`ServerState`].
    pub state: AtomicU32,
    pub pool: AtomicU32,
    /// Its place in [`Pool::members`].
    pub member: AtomicU32,
    /// The backend's process id, and its number in the server's table of processes; the agent's.
    pub pid: AtomicI32,
    pub proc: AtomicI32,
    /// What the backend must show once in its startup packet.
    pub token: [AtomicU64; 2],
    /// The client that it serves or serves next: slot number and 1; 0 is none.
    pub slot: AtomicU32,
    /// Where the backend's entry of `pg_stat_activity` is: one address in every process of the server.
    pub status: AtomicU64,
    /// It is to end at its next idle moment.
    pub retire: AtomicBool,
    /// It has been told to end, with its client, because of this [`super::limits::Limit`]; 0 when it has not.
    pub ending: AtomicU32,
    pub opened_at: AtomicI64,
    /// When its state last changed, or the client's next transaction began that it had sent already.
    pub since: AtomicI64,
    pub transactions: AtomicU64,
    /// As the front last looked.
    pub seen_transactions: AtomicU64,
    pub swaps: AtomicU64,
    /// The channel that its client is to listen to: the agent's, before it asks. And the front's answer: the request's number, and in
    /// the lower half what came of it.
    pub channel: Name,
    pub answer: AtomicU64,
    /// Up to which of its clients' notifying transactions the relay has heard everything.
    pub notified: AtomicU64,
}

/// What a server connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ServerState {
    Free = 0,
    /// The front is logging in.
    Opening = 1,
    /// Waiting for any client of its pool.
    Idle = 2,
    /// Serving a client.
    Serving = 3,
    /// Waiting for its own client, and may be called back.
    Staying = 4,
    /// Waiting for its own client, whose state cannot move.
    Pinned = 5,
}

impl Server {
    pub fn state(&self) -> ServerState {
        match self.state.load(Acquire) {
            1 => ServerState::Opening,
            2 => ServerState::Idle,
            3 => ServerState::Serving,
            4 => ServerState::Staying,
            5 => ServerState::Pinned,
            _ => ServerState::Free,
        }
    }

    pub fn set_state(&self, state: ServerState) {
        self.state.store(state as u32, Release);
    }

    /// What the backend that is being opened must show.
    pub fn expect(&self, token: [u64; 2]) {
        for (word, value) in self.token.iter().zip(token) {
            word.store(value, Release);
        }
    }

    /// Whether a backend has the connection that was opened: before it is ready for its first query.
    pub fn is_claimed(&self) -> bool {
        self.token[0].load(Acquire) == 0
    }

    /// The backend that shows this token has the connection; a token serves once. Who shows another changes nothing: a login of the
    /// front before this one may have taken its time, and would take that of the login which has the same number now. That is also
    /// why the half that says it is the only word that is written: the next token may stand there a moment later.
    pub fn claim(&self, token: [u64; 2]) -> bool {
        let [first, second] = &self.token;
        self.state() == ServerState::Opening
            && token[0] != 0
            && second.load(Acquire) == token[1]
            && first.compare_exchange(token[0], 0, AcqRel, Acquire).is_ok()
    }
}

/// One pool: the server connections of one role to one database.
#[repr(C)]
pub struct Pool {
    /// 0 free, 1 in use.
    pub used: AtomicU32,
    pub database: AtomicU32,
    pub role: AtomicU32,
    pub database_name: Name,
    pub role_name: Name,
    /// Backends that wait for any client.
    pub waiters: Waiters,
    /// The front wants to hear when nobody waits any more.
    pub wants_news: AtomicU32,
    pub paused: AtomicBool,
    /// The front has seen ready clients with nobody waiting for them: no backend waits for its own client meanwhile.
    pub crowded: AtomicBool,
    /// `postern.pool_size` for it.
    pub size: AtomicU32,
    /// `postern.pool_mode` for it, plus 1; 0 before the first backend says it.
    pub mode: AtomicU32,
    /// Clients that are logged in, and server connections that are open.
    pub clients: AtomicU32,
    pub servers: AtomicU32,
    /// How many bits of `stayers` are set, and a bit for each member that waits for its own client and may be called back.
    pub stayer_count: AtomicI32,
    stayers: [AtomicU64; POOL_SIZE_MAX / 64],
    /// Numbers of servers, plus 1.
    pub members: [AtomicU32; POOL_SIZE_MAX],
    pub transactions: AtomicU64,
    /// Microseconds that clients have waited for a backend, as far as the front has seen.
    pub wait_micros: AtomicU64,
    pub assignments: AtomicU64,
    /// Assignments of another client than the backend had before.
    pub swaps: AtomicU64,
    /// Clients that the front's last look found waiting.
    pub waiting: AtomicU32,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            used: AtomicU32::new(0),
            database: AtomicU32::new(0),
            role: AtomicU32::new(0),
            database_name: Name::default(),
            role_name: Name::default(),
            waiters: Waiters::default(),
            wants_news: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            size: AtomicU32::new(0),
            mode: AtomicU32::new(0),
            clients: AtomicU32::new(0),
            servers: AtomicU32::new(0),
            stayer_count: AtomicI32::new(0),
            stayers: std::array::from_fn(|_| AtomicU64::new(0)),
            members: std::array::from_fn(|_| AtomicU32::new(0)),
            transactions: AtomicU64::new(0),
            wait_micros: AtomicU64::new(0),
            assignments: AtomicU64::new(0),
            swaps: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
        }
    }
}

impl Pool {
    /// The backend says that it waits for its own client and may be called back.
    pub fn stay(&self, member: u32) {
        let (word, bit) = (member as usize / 64, 1 << (member % 64));
        if let Some(word) = self.stayers.get(word)
            && word.fetch_or(bit, SeqCst) & bit == 0
        {
            self.stayer_count.fetch_add(1, SeqCst);
        }
    }

    /// The backend stays no longer; false when it was called back meanwhile.
    pub fn unstay(&self, member: u32) -> bool {
        let (word, bit) = (member as usize / 64, 1 << (member % 64));
        let was = self.stayers.get(word).is_some_and(|word| word.fetch_and(!bit, SeqCst) & bit != 0);
        if was {
            self.stayer_count.fetch_sub(1, SeqCst);
        }
        was
    }

    pub fn stays(&self, member: u32) -> bool {
        let word = self.stayers.get(member as usize / 64);
        word.is_some_and(|word| word.load(SeqCst) & (1 << (member % 64)) != 0)
    }

    /// Calls one staying backend back: the number of its server, whose latch is to be set.
    pub fn call_back(&self) -> Option<u32> {
        if self.stayer_count.load(SeqCst) <= 0 {
            return None;
        }
        for (index, word) in self.stayers.iter().enumerate() {
            loop {
                let bits = word.load(SeqCst);
                if bits == 0 {
                    break;
                }
                let member = index as u32 * 64 + bits.trailing_zeros();
                if self.unstay(member) {
                    let server = self.members.get(member as usize)?.load(Acquire);
                    return server.checked_sub(1);
                }
            }
        }
        None
    }

    /// Forgets what an earlier front and its backends left: from here on it is that epoch's.
    pub fn clear(&self, epoch: u32) {
        for word in &self.stayers {
            word.store(0, SeqCst);
        }
        for member in &self.members {
            member.store(0, Relaxed);
        }
        self.stayer_count.store(0, SeqCst);
        self.waiters.clear(epoch);
        self.paused.store(false, SeqCst);
        for word in [&self.wants_news, &self.mode, &self.clients, &self.servers, &self.waiting] {
            word.store(0, Relaxed);
        }
        // Another pool's may have been here.
        for count in [&self.transactions, &self.assignments, &self.swaps, &self.wait_micros] {
            count.store(0, Relaxed);
        }
        self.crowded.store(false, Relaxed);
    }
}

/// The mapped tables.
#[derive(Clone, Copy)]
pub struct Shared {
    pub header: &'static Header,
    pub pools: &'static [Pool],
    pub servers: &'static [Server],
    pub slots: &'static [Slot],
}

impl Shared {
    /// The connections of a pool, those too that are being opened.
    pub fn connections(&self, pool: u32) -> impl Iterator<Item = &'static Server> {
        let of =
            move |server: &&Server| server.state() != ServerState::Free && server.pool.load(Acquire) == pool;
        self.servers.iter().filter(of)
    }

    /// The slots that may have a client, with their numbers. The others are never used, and reading them would make them resident.
    pub fn slots_in_use(&self) -> impl Iterator<Item = (u32, &'static Slot)> + use<> {
        let capacity = self.header.capacity.load(Acquire) as usize;
        self.slots.iter().take(capacity).zip(0..).map(|(slot, number)| (number, slot))
    }

    /// The pid that a client of a slot is told in BackendKeyData: no process of a system that numbers them below 2^22 has it.
    pub fn client_pid(slot: u32) -> u32 {
        0x4000_0000 | slot
    }

    /// The slot of such a pid.
    pub fn slot_of_pid(pid: u32) -> Option<u32> {
        (pid & 0xc000_0000 == 0x4000_0000).then_some(pid & 0x3fff_ffff)
    }

    /// Whether server connections to a database, or to all, are not to be used.
    pub fn is_paused(&self, database: Option<&[u8]>) -> bool {
        let orders = &self.header.orders;
        orders.pause.load(Acquire) || database.is_some_and(|name| orders.has(name, Order::Pause))
    }

    /// The control socket's name in the abstract namespace.
    pub fn control_name(&self) -> String {
        let [high, low] = self.header.control.each_ref().map(|word| word.load(Relaxed));
        format!("postern-{high:016x}{low:016x}")
    }
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staying_backend_is_called_back_once() {
        let pool = Pool::default();
        pool.members[65].store(9, Relaxed);
        pool.stay(65);
        pool.stay(65);
        assert_eq!(pool.stayer_count.load(SeqCst), 1);
        assert_eq!(pool.call_back(), Some(8));
        assert_eq!(pool.call_back(), None);
        assert!(!pool.unstay(65), "it finds that it was called");
    }

    #[test]
    fn a_token_is_taken_once_and_only_whole() {
        let server = Server::default();
        assert!(!server.claim([0, 0]), "nothing is being opened");
        server.set_state(ServerState::Opening);
        assert!(!server.claim([0, 0]));
        server.expect([7, 8]);
        for wrong in [[7, 9], [9, 8], [0, 8], [7, 0], [0, 0]] {
            assert!(!server.claim(wrong));
        }
        assert!(!server.is_claimed());
        assert!(server.claim([7, 8]) && server.is_claimed());
        for again in [[7, 8], [0, 8], [0, 0]] {
            assert!(!server.claim(again), "half of it is left, and is none");
        }
        server.expect([9, 8]);
        server.set_state(ServerState::Serving);
        assert!(!server.claim([9, 8]));
    }

    #[test]
    fn orders_about_databases_are_given_and_taken_back_by_name() {
        let orders = Orders::default();
        assert!(orders.give(b"a", Order::Pause) && orders.give(b"a", Order::Disable));
        assert!(orders.give(b"b", Order::Disable));
        assert_eq!(orders.names(), [b"a", b"b"]);
        assert!(orders.take_back(b"a", Order::Pause));
        assert!(!orders.take_back(b"a", Order::Pause));
        assert!(!orders.has(b"a", Order::Pause) && orders.has(b"a", Order::Disable));
        assert!(orders.take_back(b"a", Order::Disable));
        assert_eq!(orders.names(), [b"b"], "a place without an order is free");
    }

    #[test]
    fn more_orders_than_there_is_place_for_are_refused() {
        let orders = Orders::default();
        for number in 0..ORDERS {
            assert!(orders.give(format!("d{number}").as_bytes(), Order::Pause));
        }
        assert!(!orders.give(b"another", Order::Pause));
        assert!(orders.give(b"d7", Order::Disable), "one that has a place");
        assert!(orders.take_back(b"d9", Order::Pause));
        assert!(orders.give(b"another", Order::Pause));
    }

    #[test]
    fn a_clients_pid_leads_to_its_slot() {
        assert_eq!(Shared::slot_of_pid(Shared::client_pid(9_999)), Some(9_999));
        assert_eq!(Shared::slot_of_pid(4_194_304), None);
    }
}
