//! Databases, users, pools and channels, and how much of everything there is. Network threads.

use super::Console;
use super::connections::{ago, time};
use super::settings::mode;
use crate::pooler::console::{
    ChannelReport, DatabaseReport, ListsReport, MemoryReport, PoolReport, UserReport,
};
use crate::pooler::glance;
use crate::pooler::notifications::ChannelGlance;
use crate::pooler::shared::{Order, POOLS, Pool, Server, ServerState, Slot};
use crate::pooler::slot::State;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::*;
use std::time::Duration;

pub(super) fn databases(console: &Console<'_>) -> Vec<DatabaseReport> {
    let settings = console.front.bridge.settings();
    let orders = &console.front.shared.header.orders;
    let report = |name: String| {
        let sum = |count: fn(&Pool) -> u32| -> u64 {
            console.used(Some(&name)).map(|(_, pool)| u64::from(count(pool))).sum()
        };
        DatabaseReport {
            host: None,
            port: settings.pooler.door.port,
            database: name.clone(),
            force_user: None,
            pool_size: settings.pooler.pool_size,
            min_pool_size: settings.pooler.min_pool_size,
            reserve_pool_size: settings.pooler.reserve_pool_size,
            server_lifetime: settings.pooler.server_lifetime.unwrap_or_default(),
            pool_mode: None,
            max_connections: 0,
            current_connections: sum(|pool| pool.servers.load(Relaxed)),
            max_client_connections: 0,
            current_client_connections: sum(|pool| pool.clients.load(Relaxed)),
            // As PgBouncer, which shows by itself what is paused as a whole.
            paused: orders.has(name.as_bytes(), Order::Pause)
                || !orders.pause.load(Relaxed)
                    && console.used(Some(&name)).any(|(_, pool)| pool.paused.load(Relaxed)),
            disabled: orders.has(name.as_bytes(), Order::Disable),
            name,
        }
    };
    console.database_names().into_iter().map(report).collect()
}

pub(super) fn users(console: &Console<'_>) -> Vec<UserReport> {
    let mut users = BTreeMap::<String, (u64, u64)>::new();
    for (_, pool) in console.used(None) {
        let (servers, clients) = users.entry(pool.role_name.text()).or_default();
        *servers += u64::from(pool.servers.load(Relaxed));
        *clients += u64::from(pool.clients.load(Relaxed));
    }
    let report = |(name, (servers, clients))| UserReport {
        name,
        pool_size: None,
        reserve_pool_size: None,
        pool_mode: None,
        max_user_connections: 0,
        current_connections: servers,
        max_user_client_connections: 0,
        current_client_connections: clients,
    };
    users.into_iter().map(report).collect()
}

pub(super) fn pools(console: &Console<'_>) -> Vec<PoolReport> {
    let usual = console.front.bridge.settings().pooler.pool_mode;
    // Each client and server is looked at once, however many pools there are.
    let mut counts = BTreeMap::<u32, Counts>::new();
    for client in console.seen() {
        let waits = client.waits.then(|| ago(client.slot.waiting_since.get()));
        counts.entry(client.pool).or_default().add_client(waits);
    }
    for server in console.front.shared.servers {
        let state = server.state();
        counts.entry(server.pool.load(Acquire)).or_default().add_server(state);
    }
    let report = |(number, pool): (u32, &'static Pool)| {
        let counts = counts.get(&number).copied().unwrap_or_default();
        PoolReport {
            database: pool.database_name.text(),
            user: pool.role_name.text(),
            cl_active: counts.clients,
            cl_waiting: counts.waiting,
            cl_active_cancel_req: 0,
            cl_waiting_cancel_req: 0,
            sv_active: counts.active,
            sv_active_cancel: 0,
            sv_being_canceled: 0,
            sv_idle: counts.idle,
            sv_used: 0,
            sv_tested: 0,
            sv_login: counts.opening,
            maxwait: counts.longest,
            // Before its first backend has said it, the setting's.
            pool_mode: mode(pool.mode.load(Relaxed).checked_sub(1).unwrap_or(usual)),
        }
    };
    console.used(None).map(report).collect()
}

/// What a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    /// Clients that do not wait for a server connection, and those that do.
    clients: u64,
    waiting: u64,
    /// How long the one that waits longest has waited.
    longest: Duration,
    /// Server connections.
    opening: u64,
    idle: u64,
    active: u64,
}

impl Counts {
    /// `waits` is how long it has waited, if it does.
    fn add_client(&mut self, waits: Option<Duration>) {
        match waits {
            None => self.clients += 1,
            Some(waited) => {
                self.waiting += 1;
                self.longest = self.longest.max(waited);
            }
        }
    }

    fn add_server(&mut self, state: ServerState) {
        match state {
            ServerState::Free => {}
            ServerState::Opening => self.opening += 1,
            ServerState::Idle | ServerState::Staying => self.idle += 1,
            ServerState::Serving | ServerState::Pinned => self.active += 1,
        }
    }
}

pub(super) fn lists(console: &Console<'_>) -> ListsReport {
    let shared = console.front.shared;
    let capacity = u64::from(console.front.room.capacity);
    let used = |(_, slot): &(u32, &Slot)| slot.word.seen().state() != State::Free;
    let slots = shared.slots_in_use().filter(used).count() as u64;
    let servers = shared.servers.iter().filter(|server| server.state() != ServerState::Free).count();
    let users: BTreeSet<_> = console.used(None).map(|(_, pool)| pool.role_name.bytes()).collect();
    ListsReport {
        databases: console.database_names().len() as u64,
        users: users.len() as u64,
        pools: console.used(None).count() as u64,
        free_clients: capacity.saturating_sub(slots),
        used_clients: slots + console.front.consoles.all().len() as u64,
        login_clients: u64::from(shared.header.logins.load(Relaxed)),
        free_servers: (shared.servers.len() - servers) as u64,
        used_servers: servers as u64,
    }
}

pub(super) fn channels(console: &Console<'_>) -> Vec<ChannelReport> {
    let report = |channel: ChannelGlance| ChannelReport {
        database: glance::shown(&channel.database, true),
        channel: glance::shown(&channel.channel, true),
        listeners: channel.listeners.into(),
        delivered: channel.delivered,
        since: time(channel.since),
    };
    console.front.relay.channels().into_iter().map(report).collect()
}

pub(super) fn memory(console: &Console<'_>) -> Vec<MemoryReport> {
    let lists = lists(console);
    let pools = console.used(None).count() as u64;
    let report = |name: &str, size: usize, used, free| MemoryReport {
        name: name.to_owned(),
        size: size as u64,
        used,
        free,
    };
    let capacity = u64::from(console.front.room.capacity);
    vec![
        report(
            "client_cache",
            size_of::<Slot>(),
            capacity - lists.free_clients.min(capacity),
            lists.free_clients,
        ),
        report("server_cache", size_of::<Server>(), lists.used_servers, lists.free_servers),
        report("pool_cache", size_of::<Pool>(), pools, (POOLS as u64).saturating_sub(pools)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_of_a_pool_is_counted_once_and_the_longest_wait_is_kept() {
        let mut counts = Counts::default();
        for seconds in [None, Some(2), Some(5), Some(3)] {
            counts.add_client(seconds.map(Duration::from_secs));
        }
        use ServerState::{Free, Idle, Opening, Pinned, Serving, Staying};
        for state in [Free, Opening, Idle, Idle, Staying, Serving, Serving, Pinned, Pinned] {
            counts.add_server(state);
        }
        let longest = Duration::from_secs(5);
        assert_eq!(counts, Counts { clients: 1, waiting: 3, longest, opening: 1, idle: 3, active: 4 });
    }
}
