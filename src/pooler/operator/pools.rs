//! Databases, users, pools and channels, and how much of everything there is.

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
    let seen = console.seen();
    let report = |(number, pool): (u32, &'static Pool)| {
        let clients = || seen.iter().filter(|client| client.pool == number);
        let waiting = || clients().filter(|client| client.waits);
        let servers =
            |wanted: &[ServerState]| {
                let open =
                    console.front.shared.servers.iter().filter(|server| {
                        wanted.contains(&server.state()) && server.pool.load(Acquire) == number
                    });
                open.count() as u64
            };
        let longest = waiting().map(|client| ago(client.slot.waiting_since.get())).max();
        PoolReport {
            database: pool.database_name.text(),
            user: pool.role_name.text(),
            cl_active: clients().filter(|client| !client.waits).count() as u64,
            cl_waiting: waiting().count() as u64,
            cl_active_cancel_req: 0,
            cl_waiting_cancel_req: 0,
            sv_active: servers(&[ServerState::Serving, ServerState::Pinned]),
            sv_active_cancel: 0,
            sv_being_canceled: 0,
            sv_idle: servers(&[ServerState::Idle, ServerState::Staying]),
            sv_used: 0,
            sv_tested: 0,
            sv_login: servers(&[ServerState::Opening]),
            maxwait: longest.unwrap_or_default(),
            // Before its first backend has said it, the setting's.
            pool_mode: mode(pool.mode.load(Relaxed).checked_sub(1).unwrap_or(usual)),
        }
    };
    console.used(None).map(report).collect()
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
