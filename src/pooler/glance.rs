//! Copies of what the tables in shared memory say, for views and metrics. Any thread of any process.
//!
//! No lock is taken: a copy may mix two moments, but never two clients, two connections or two pools: what has moved on while it
//! was read is left out.

use super::shared::{Pin, Pool, Server, ServerState, Shared, Slot, now};
use super::slot::{Seen, State};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering::*, fence};
use std::time::Duration;

/// A pool, with its clients and server connections counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolGlance {
    pub number: u32,
    pub database: Vec<u8>,
    pub role: Vec<u8>,
    /// `postern.pool_mode` of its role and database; `None` before the first server connection.
    pub mode: Option<u32>,
    pub size: u32,
    pub paused: bool,
    pub clients: u32,
    pub clients_active: u32,
    pub clients_waiting: u32,
    /// Server connections by [`ServerState`].
    pub servers: [u32; 6],
    /// How long the client has waited that has waited longest.
    pub max_wait: Option<Duration>,
    pub transactions: u64,
    /// How often a server connection got a client, and how often another than it had before.
    pub assignments: u64,
    pub swaps: u64,
    /// How long clients have waited, together; those that waited for less than a second may not have been noticed.
    pub wait: Duration,
}

impl PoolGlance {
    pub fn servers_open(&self) -> u32 {
        self.servers.iter().sum()
    }

    pub fn servers_in(&self, state: ServerState) -> u32 {
        self.servers[state as usize]
    }
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientState {
    /// It wants nothing now; it may have a server connection all the same.
    Idle,
    /// A server connection serves it, be it between two statements of a transaction.
    Active,
    /// It has sent something and there is no server connection for it.
    Waiting,
}

impl ClientState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Waiting => "waiting",
        }
    }
}

/// A client that is logged in. Times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientGlance {
    pub slot: u32,
    /// Of no pool's number when it only listens.
    pub pool: u32,
    /// OIDs of its database and role.
    pub database: u32,
    pub role: u32,
    pub state: ClientState,
    /// The server connection that it has.
    pub server: Option<u32>,
    pub application_name: Vec<u8>,
    /// `None` over a Unix socket.
    pub address: Option<(IpAddr, u16)>,
    pub tls: bool,
    pub pinned_by: Vec<&'static str>,
    pub connected_at: i64,
    pub state_since: i64,
    pub transactions: u64,
}

/// A server connection. Times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerGlance {
    pub number: u32,
    pub pool: u32,
    pub state: ServerState,
    /// 0 before its backend is known.
    pub pid: i32,
    /// The slot of its client.
    pub client: Option<u32>,
    pub opened_at: i64,
    pub state_since: i64,
    pub transactions: u64,
    pub swaps: u64,
    pub retiring: bool,
}

/// Every pool, by number.
pub fn pools(shared: &Shared) -> Vec<PoolGlance> {
    let mut pools: Vec<_> = shared.pools.iter().enumerate().filter_map(pool).collect();
    let mut places = vec![None; shared.pools.len()];
    for (place, pool) in pools.iter().enumerate() {
        places[pool.number as usize] = Some(place);
    }
    let now = now();
    for client in clients(shared) {
        let Some(place) = places.get(client.pool as usize).copied().flatten() else { continue };
        let pool = &mut pools[place];
        pool.clients += 1;
        match client.state {
            ClientState::Idle => {}
            ClientState::Active => pool.clients_active += 1,
            ClientState::Waiting => {
                pool.clients_waiting += 1;
                let waited = Duration::from_micros(u64::try_from(now - client.state_since).unwrap_or(0));
                pool.max_wait = pool.max_wait.max(Some(waited));
            }
        }
    }
    for server in servers(shared) {
        if let Some(place) = places.get(server.pool as usize).copied().flatten() {
            pools[place].servers[server.state as usize] += 1;
        }
    }
    pools
}

/// One pool without its clients and connections; `None` when there is none.
pub fn pool((number, words): (usize, &Pool)) -> Option<PoolGlance> {
    let which =
        || (words.used.load(Acquire) != 0).then(|| (words.database.load(Relaxed), words.role.load(Relaxed)));
    let before = which()?;
    let pool = PoolGlance {
        number: number as u32,
        database: words.database_name.bytes(),
        role: words.role_name.bytes(),
        mode: words.mode.load(Relaxed).checked_sub(1),
        size: words.size.load(Relaxed),
        paused: words.paused.load(Relaxed),
        transactions: words.transactions.load(Relaxed),
        assignments: words.assignments.load(Relaxed),
        swaps: words.swaps.load(Relaxed),
        wait: Duration::from_micros(words.wait_micros.load(Relaxed)),
        ..PoolGlance::default()
    };
    fence(Acquire);
    (which() == Some(before)).then_some(pool)
}

/// Every client that is logged in, by slot.
pub fn clients(shared: &Shared) -> Vec<ClientGlance> {
    shared.slots_in_use().filter_map(|(number, slot)| client(shared, number, slot)).collect()
}

fn client(shared: &Shared, number: u32, slot: &Slot) -> Option<ClientGlance> {
    let seen = slot.word.seen();
    let server = match seen.state() {
        State::Idle | State::Notifying | State::Called | State::Listening => None,
        State::Attached | State::Cancelling => shared.servers.get(seen.server() as usize),
        State::Free | State::Login | State::Closing => return None,
    };
    let waiting = slot.waiting_since.get();
    let (state, state_since) = match server {
        None if waiting != 0 => (ClientState::Waiting, waiting),
        None => (ClientState::Idle, slot.since.load(Relaxed)),
        Some(server) => match server.state() {
            ServerState::Staying | ServerState::Pinned => (ClientState::Idle, server.since.load(Relaxed)),
            _ => (ClientState::Active, slot.since.load(Relaxed).max(server.since.load(Relaxed))),
        },
    };
    let client = ClientGlance {
        slot: number,
        pool: u32::from(slot.pool.load(Relaxed)),
        database: slot.admitted_database.load(Relaxed),
        role: slot.admitted_role.load(Relaxed),
        state,
        server: server.map(|_| seen.server()),
        application_name: slot.application_name.bytes(),
        address: remote(slot),
        tls: slot.tls.load(Relaxed) != 0,
        pinned_by: Pin::names(slot.pins.load(Relaxed)),
        connected_at: slot.connected_at.load(Relaxed),
        state_since,
        transactions: slot.transactions.load(Relaxed),
    };
    fence(Acquire);
    let after: Seen = slot.word.seen();
    let same =
        after.generation() == seen.generation() && !matches!(after.state(), State::Free | State::Closing);
    same.then_some(client)
}

/// The client's end of its connection; `None` for a Unix socket.
pub fn remote(slot: &Slot) -> Option<(IpAddr, u16)> {
    Some((address(slot, &slot.address)?, slot.port.load(Relaxed)))
}

/// Our end of it.
pub fn local(slot: &Slot) -> Option<(IpAddr, u16)> {
    Some((address(slot, &slot.local_address)?, slot.local_port.load(Relaxed)))
}

fn address(slot: &Slot, words: &[AtomicU32; 4]) -> Option<IpAddr> {
    let words = words.each_ref().map(|word| word.load(Relaxed).to_ne_bytes());
    match slot.family.load(Relaxed) {
        4 => Some(IpAddr::from(words[0])),
        6 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(words.as_flattened());
            Some(IpAddr::from(octets))
        }
        _ => None,
    }
}

/// Whether the slot has a client that is past its login.
pub fn is_logged_in(slot: &Slot) -> bool {
    !matches!(slot.word.seen().state(), State::Free | State::Login | State::Closing)
}

/// Every server connection that is open or opening, by number.
pub fn servers(shared: &Shared) -> Vec<ServerGlance> {
    shared.servers.iter().enumerate().filter_map(|(number, words)| server(number as u32, words)).collect()
}

fn server(number: u32, words: &Server) -> Option<ServerGlance> {
    let which = || (words.pid.load(Acquire), words.opened_at.load(Relaxed), words.pool.load(Relaxed));
    let before = which();
    let state = words.state();
    if state == ServerState::Free {
        return None;
    }
    let server = ServerGlance {
        number,
        pool: before.2,
        state,
        pid: before.0,
        client: words.slot.load(Relaxed).checked_sub(1),
        opened_at: before.1,
        state_since: words.since.load(Relaxed),
        transactions: words.transactions.load(Relaxed),
        swaps: words.swaps.load(Relaxed),
        retiring: words.retire.load(Relaxed),
    };
    fence(Acquire);
    (which() == before && words.state() != ServerState::Free).then_some(server)
}

/// A name as text that is valid in a database of the encoding; what is not is shown as `?`.
pub fn shown(name: &[u8], utf8: bool) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if utf8 || text.is_ascii() => text.to_owned(),
        _ => name.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::shared::Header;
    use super::*;

    /// Tables of two pools, two connections and four clients, of which the first are the first pool's.
    fn tables() -> Shared {
        let header: &'static Header = Box::leak(Box::default());
        header.capacity.store(4, Relaxed);
        let shared = Shared {
            header,
            pools: Box::leak((0..2).map(|_| Pool::default()).collect()),
            servers: Box::leak((0..2).map(|_| Server::default()).collect()),
            slots: Box::leak((0..4).map(|_| Slot::default()).collect()),
        };
        shared.pools[1].used.store(1, Relaxed);
        shared.pools[1].database_name.set(b"orders");
        shared
    }

    fn log_in(shared: &Shared, slot: usize) -> u32 {
        let words = &shared.slots[slot];
        let generation = words.word.claim().unwrap();
        words.pool.store(1, Relaxed);
        assert!(words.word.enter(generation));
        generation
    }

    #[test]
    fn only_what_is_there_is_shown() {
        let shared = tables();
        assert_eq!((clients(&shared), servers(&shared)), (Vec::new(), Vec::new()));
        shared.slots[2].word.claim().unwrap();
        assert!(clients(&shared).is_empty(), "who is logging in is nobody yet");
        let found = pools(&shared);
        assert_eq!(found.iter().map(|pool| pool.number).collect::<Vec<_>>(), [1]);
        assert_eq!(found[0].database, b"orders");
    }

    #[test]
    fn a_client_is_what_its_words_and_its_servers_say() {
        let shared = tables();
        for slot in 0..4 {
            let generation = log_in(&shared, slot);
            if slot < 2 {
                assert!(shared.slots[slot].word.take(generation, slot as u32));
            }
        }
        shared.servers[0].set_state(ServerState::Serving);
        shared.servers[1].set_state(ServerState::Pinned);
        shared.servers.iter().for_each(|server| server.pool.store(1, Relaxed));
        let seen = shared.slots[3].word.seen();
        shared.slots[3].waiting_since.mark(&shared.slots[3].word, seen, now() - 2_000_000);
        let states: Vec<_> =
            clients(&shared).iter().map(|client| (client.state.name(), client.server)).collect();
        assert_eq!(states, [("active", Some(0)), ("idle", Some(1)), ("idle", None), ("waiting", None)]);
        let pool = &pools(&shared)[0];
        assert_eq!((pool.clients, pool.clients_active, pool.clients_waiting), (4, 1, 1));
        assert_eq!((pool.servers_open(), pool.servers_in(ServerState::Pinned)), (2, 1));
        assert!(pool.max_wait.unwrap() >= Duration::from_secs(2));
    }

    #[test]
    fn addresses_are_in_network_order() {
        let slot = Slot::default();
        assert_eq!((remote(&slot), local(&slot)), (None, None));
        slot.family.store(4, Relaxed);
        slot.port.store(5432, Relaxed);
        slot.address[0].store(u32::from_ne_bytes([192, 0, 2, 1]), Relaxed);
        assert_eq!(remote(&slot), Some((IpAddr::from([192, 0, 2, 1]), 5432)));
        slot.local_port.store(6432, Relaxed);
        slot.local_address[0].store(u32::from_ne_bytes([192, 0, 2, 2]), Relaxed);
        assert_eq!(local(&slot), Some((IpAddr::from([192, 0, 2, 2]), 6432)));
        slot.family.store(6, Relaxed);
        slot.address[3].store(u32::from_ne_bytes([0, 0, 0, 1]), Relaxed);
        slot.address[0].store(0, Relaxed);
        assert_eq!(remote(&slot), Some(("::1".parse().unwrap(), 5432)));
    }

    #[test]
    fn a_name_of_another_encoding_is_shown_as_far_as_it_can_be() {
        assert_eq!(shown("größe".as_bytes(), true), "größe");
        assert_eq!(shown(b"gr\xf6\xdfe", true), "gr??e");
        assert_eq!(shown("ö".as_bytes(), false), "??");
    }
}
