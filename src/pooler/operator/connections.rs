//! Clients and server connections, each as it is at one moment. Network threads.

use super::Console;
use super::id::Id;
use crate::login::Origin;
use crate::net::tls::session::cipher;
use crate::pooler::console::{
    ClientReport, ClientState, DATABASE, Replication, ServerReport, ServerState as Reported, SocketReport,
};
use crate::pooler::console_client::Client;
use crate::pooler::glance;
use crate::pooler::listening::NO_POOL;
use crate::pooler::shared::{Server, ServerState, Slot, now};
use crate::pooler::slot::State;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A client in use, as it was at one moment.
pub(super) struct Seen<'a> {
    pub number: u32,
    pub generation: u32,
    pub slot: &'a Slot,
    pub pool: u32,
    /// Of a server that works for it.
    pub server: Option<u32>,
    pub waits: bool,
}

impl Console<'_> {
    /// Clients of all pools.
    pub(super) fn seen(&self) -> Vec<Seen<'static>> {
        let shared = self.front.shared;
        let queues: BTreeSet<_> = self
            .front
            .pools
            .all()
            .iter()
            .filter(|pool| pool.words.waiters.count() <= 0 && pool.has_ready_clients())
            .map(|pool| pool.number)
            .collect();
        let look = |(number, slot): (u32, &'static Slot)| {
            let seen = slot.word.seen();
            let pool = u32::from(slot.pool.load(Acquire));
            let (server, waits) = match seen.state() {
                State::Free | State::Login | State::Closing => return None,
                State::Listening => (None, false),
                State::Idle | State::Notifying | State::Called => {
                    let ready = || slot.is_fresh() || self.front.seats.is_ready(number, seen.generation());
                    (None, queues.contains(&pool) && ready())
                }
                State::Attached | State::Cancelling => {
                    let number = seen.server();
                    let staying = |server: &Server| server.state() == ServerState::Staying;
                    // One that may be called back is free.
                    (
                        Some(number).filter(|_| !shared.servers.get(number as usize).is_some_and(staying)),
                        false,
                    )
                }
            };
            Some(Seen { number, generation: seen.generation(), slot, pool, server, waits })
        };
        shared.slots_in_use().filter_map(look).collect()
    }

    /// Of a client's role and database.
    pub(super) fn names_of(&self, client: &Seen<'_>) -> (Option<String>, Option<String>) {
        if client.pool == u32::from(NO_POOL) {
            self.front.listeners.names(client.number).unzip()
        } else {
            self.names(client.pool)
        }
    }
}

pub(super) fn clients(console: &Console<'_>) -> Vec<ClientReport> {
    let port = console.port();
    let report = |client: Seen<'_>| {
        let slot = client.slot;
        let (user, database) = console.names_of(&client);
        let end = |address: Option<(IpAddr, u16)>| {
            address.map_or(("unix".to_owned(), port), |(ip, port)| (ip.to_string(), port))
        };
        // As the slot has them: over TLS, what the client's seat holds is one end of a socket pair.
        let ((addr, remote_port), (local_addr, local_port)) =
            (end(glance::remote(slot)), end(glance::local(slot)));
        let socket = SocketReport {
            id: Id::client(client.number, client.generation).number(),
            link: client.server.map(|server| Id::Server(server).number()),
            user,
            database,
            replication: Replication::None,
            addr,
            port: remote_port,
            local_addr,
            local_port,
            connect_time: time(slot.connected_at.load(Relaxed)),
            request_time: time(slot.since.load(Relaxed)),
            wait: if client.waits { ago(slot.waiting_since.get()) } else { Duration::ZERO },
            close_needed: false,
            remote_pid: 0,
            tls: cipher(slot.tls.load(Relaxed))
                .map_or(String::new(), |cipher| format!("{}/{}", cipher.version, cipher.name)),
            application_name: slot.application_name.text(),
            prepared_statements: 0,
            unread: 0,
            unsent: 0,
        };
        let state = if client.waits { ClientState::Waiting } else { ClientState::Active };
        ClientReport { state, socket }
    };
    let own = console.front.consoles.all();
    let own = own.iter().map(|client| console_report(client, port));
    console.seen().into_iter().map(report).chain(own).collect()
}

fn console_report(client: &Client, port: u16) -> ClientReport {
    let (addr, remote_port) = match client.origin {
        Origin::Tcp(address) => (address.ip().to_string(), address.port()),
        Origin::Unix => ("unix".to_owned(), port),
    };
    let socket = SocketReport {
        id: Id::Console(client.number).number(),
        link: None,
        user: Some(client.role.clone()),
        database: Some(DATABASE.to_owned()),
        replication: Replication::None,
        local_addr: if matches!(client.origin, Origin::Unix) { "unix".to_owned() } else { String::new() },
        addr,
        port: remote_port,
        local_port: port,
        connect_time: time(client.connected_at),
        request_time: time(client.asked_at.load(Relaxed)),
        wait: Duration::ZERO,
        close_needed: false,
        remote_pid: 0,
        tls: String::new(),
        application_name: String::new(),
        prepared_statements: 0,
        unread: 0,
        unsent: 0,
    };
    ClientReport { state: ClientState::Active, socket }
}

pub(super) fn servers(console: &Console<'_>) -> Vec<ServerReport> {
    let shared = console.front.shared;
    let door = console.front.bridge.settings().pooler.door.port;
    let report = |(number, server): (u32, &'static Server)| {
        let (user, database) = console.names(server.pool.load(Acquire));
        let state = match server.state() {
            ServerState::Free | ServerState::Opening => Reported::New,
            ServerState::Idle | ServerState::Staying => Reported::Idle,
            ServerState::Serving | ServerState::Pinned => Reported::Active,
        };
        let client = server.slot.load(Acquire).checked_sub(1).filter(|_| state == Reported::Active);
        let slot = client.and_then(|client| Some((client, shared.slots.get(client as usize)?)));
        let socket = SocketReport {
            id: Id::Server(number).number(),
            link: slot.map(|(client, slot)| Id::client(client, slot.word.seen().generation()).number()),
            user,
            database,
            replication: Replication::None,
            addr: "unix".to_owned(),
            port: door,
            local_addr: "unix".to_owned(),
            local_port: door,
            connect_time: time(server.opened_at.load(Relaxed)),
            request_time: time(server.since.load(Relaxed)),
            wait: Duration::ZERO,
            close_needed: server.retire.load(Relaxed),
            remote_pid: u32::try_from(server.pid.load(Acquire)).unwrap_or(0),
            tls: String::new(),
            application_name: slot.map(|(_, slot)| slot.application_name.text()).unwrap_or_default(),
            prepared_statements: 0,
            unread: 0,
            unsent: 0,
        };
        ServerReport { state, socket }
    };
    console.servers_of(None).map(report).collect()
}

pub(super) fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// How long ago that was; 0 is never.
pub(super) fn ago(micros: i64) -> Duration {
    if micros == 0 {
        Duration::ZERO
    } else {
        Duration::from_micros(u64::try_from(now() - micros).unwrap_or(0))
    }
}
