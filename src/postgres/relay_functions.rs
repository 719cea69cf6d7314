//! What SQL can call of the notification relay: the views of schema `postern` that show it stand on these. Backends; they read words
//! in shared memory.

use super::{agent, shmem};
use crate::pooler::glance::shown;
use crate::pooler::shared::Shared as Pooler;
use crate::relay::shared::{Channel, Shared, Source, SourceState};
use pgrx::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

/// One row. Counts since the server's start; sizes in bytes.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn relay_status() -> TableIterator<
    'static,
    (
        name!(databases, i32),
        name!(channels, i32),
        name!(channel_capacity, i32),
        name!(listens, i32),
        name!(listen_capacity, i32),
        name!(ring_size, i64),
        name!(clients_behind, i32),
        name!(backlog, i64),
        name!(clients, i64),
        name!(listened, i64),
        name!(unlistened, i64),
        name!(received, i64),
        name!(delivered, i64),
        name!(too_slow, i64),
        name!(refused, i64),
    ),
> {
    let shared = loaded();
    let header = shared.header;
    let counters = &header.counters;
    let databases = header.sources.iter().filter(|source| source.state() != SourceState::Free);
    TableIterator::once((
        databases.count() as i32,
        header.channels.load(Relaxed) as i32,
        shared.channels.len() as i32,
        header.listens.load(Relaxed) as i32,
        shared.listens.len() as i32,
        shared.words.len() as i64 * 8,
        header.behind.load(Relaxed) as i32,
        header.backlog.load(Relaxed) as i64,
        counters.clients.load(Relaxed) as i64,
        counters.listened.load(Relaxed) as i64,
        counters.unlistened.load(Relaxed) as i64,
        counters.received.load(Relaxed) as i64,
        counters.dispatched.load(Relaxed) as i64,
        counters.too_slow.load(Relaxed) as i64,
        counters.refused.load(Relaxed) as i64,
    ))
}

/// One row a channel that anybody listens to. Times are seconds since 1970.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn relay_channels() -> TableIterator<
    'static,
    (
        name!(database, String),
        name!(channel, String),
        name!(listeners, i32),
        name!(delivered, i64),
        name!(since, f64),
        name!(worker_pid, Option<i32>),
    ),
> {
    let shared = loaded();
    let utf8 = super::pool_functions::speaks_utf8();
    let row = move |(channel, source): (&Channel, &Source)| {
        (
            shown(&source.database_name.bytes(), utf8),
            shown(&channel.name.bytes(), utf8),
            channel.listeners.load(Relaxed) as i32,
            channel.delivered.load(Relaxed) as i64,
            channel.since.load(Relaxed) as f64 / 1e6,
            Some(source.pid.load(Relaxed)).filter(|pid| *pid != 0),
        )
    };
    TableIterator::new(shared.channels_in_use().map(move |(channel, source)| row((channel, source))))
}

/// One row a client and channel.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn relay_listens()
-> TableIterator<'static, (name!(pid, i32), name!(database, String), name!(channel, String))> {
    let shared = loaded();
    let utf8 = super::pool_functions::speaks_utf8();
    let of_client = move |(client, _)| {
        let row = move |(_, listen): (u32, &'static crate::relay::shared::Listen)| {
            let channel = shared.channel_of(listen)?;
            let source = source_of(shared, channel.source.load(Relaxed))?;
            let committed = listen.tentative.load(Relaxed) == 0 && listen.client.load(Relaxed) == client;
            committed.then(|| {
                (
                    Pooler::client_pid(client) as i32,
                    shown(&source.database_name.bytes(), utf8),
                    shown(&channel.name.bytes(), utf8),
                )
            })
        };
        shared.listens_of(client).filter_map(row)
    };
    let clients = shmem::pooler().map_or(0, |pooler| pooler.header.capacity.load(Relaxed) as usize);
    let listeners = shared.listeners.iter().take(clients).enumerate();
    let listeners = listeners.map(|(client, listener)| (client as u32, listener));
    let listeners = listeners.filter(|(_, listener)| listener.first.get().is_some());
    TableIterator::new(listeners.flat_map(of_client))
}

/// The channels of this session's client: those that the relay hears for it, and those of the session itself.
#[pg_extern(volatile, parallel_restricted)]
fn listening_channels() -> SetOfIterator<'static, String> {
    let utf8 = super::pool_functions::speaks_utf8();
    match agent::client() {
        Some(client) => {
            let shared = loaded();
            let name = move |(_, listen)| Some(shown(&shared.channel_of(listen)?.name.bytes(), utf8));
            SetOfIterator::new(shared.listens_of(client).filter_map(name))
        }
        None => SetOfIterator::new(own_channels()),
    }
}

/// What the session itself listens to.
fn own_channels() -> Vec<String> {
    Spi::connect(|spi| {
        let rows = spi.select("SELECT c FROM pg_catalog.pg_listening_channels() c", None, &[]);
        rows.map(|rows| rows.filter_map(|row| row.get(1).ok().flatten()).collect()).unwrap_or_default()
    })
}

fn source_of(shared: Shared, number: u32) -> Option<&'static Source> {
    shared.header.sources.get(number as usize)
}

fn loaded() -> Shared {
    shmem::relay().unwrap_or_else(|| super::functions::not_loaded())
}
