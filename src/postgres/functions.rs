//! What SQL can call: the views of schema `postern` stand on these. Backends.

use super::{sample, shmem};
use crate::net::slots::SlotReport;
use crate::pooler::front::{LISTEN_ONLY, POOLER};
use crate::status::Health;
use crate::status::shared::{Shared, kind_name};
use pgrx::prelude::*;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

/// One row: the server, its replication and the status worker, as of now. Positions are texts of pg_lsn, times are
/// seconds since 1970.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn server_status() -> TableIterator<
    'static,
    (
        name!(role, String),
        name!(state, String),
        name!(healthy, bool),
        name!(reason, Option<String>),
        name!(timeline, i64),
        name!(written_lsn, Option<String>),
        name!(received_lsn, Option<String>),
        name!(replayed_lsn, Option<String>),
        name!(primary_lsn, Option<String>),
        name!(lag_bytes, Option<i64>),
        name!(lag_seconds, Option<f64>),
        name!(replay_paused, Option<bool>),
        name!(wal_receiver, Option<String>),
        name!(wal_receiver_pid, Option<i32>),
        name!(sender, Option<String>),
        name!(last_message_at, Option<f64>),
        name!(clients, i64),
        name!(client_capacity, i64),
        name!(worker_pid, Option<i32>),
        name!(worker_starts, i64),
        name!(worker_started_at, Option<f64>),
        name!(log_lines_dropped, i64),
        name!(problem, Option<String>),
    ),
> {
    let shared = loaded();
    let mut facts = sample::snapshot();
    // Both take more than one look, so the worker's is shown.
    facts.lag = shared.lag().filter(|_| facts.in_recovery);
    if let Some(receiver) = &mut facts.receiver {
        receiver.streaming = shared.is_streaming(receiver.pid);
    }
    let limit = super::guc::settings().ok().and_then(|settings| settings.max_lag);
    let health = Health::of(&facts, limit, None);
    let replay = facts.replay.as_ref();
    let receiver = facts.receiver.as_ref();
    let worker = &shared.worker;
    let pid = worker.pid.load(Relaxed);
    TableIterator::once((
        health.role.name().to_owned(),
        facts.server.name().to_owned(),
        health.is_healthy(),
        health.problem.as_ref().map(ToString::to_string),
        i64::from(facts.timeline),
        facts.written.map(|lsn| lsn.to_string()),
        replay.map(|r| r.received).filter(|lsn| lsn.is_valid()).map(|lsn| lsn.to_string()),
        replay.map(|r| r.replayed).filter(|lsn| lsn.is_valid()).map(|lsn| lsn.to_string()),
        health.primary_end.filter(|lsn| lsn.is_valid()).map(|lsn| lsn.to_string()),
        health.lag_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        facts.lag.map(|lag| lag.as_secs_f64()),
        replay.map(|r| r.paused),
        facts.in_recovery.then(|| receiver.map_or("stopped", |r| r.state.name()).to_owned()),
        receiver.map(|r| r.pid),
        receiver.filter(|r| !r.host.is_empty()).map(|r| format!("{}:{}", r.host, r.port)),
        receiver.and_then(|r| r.last_message).map(epoch),
        i64::from(facts.clients),
        i64::from(facts.client_capacity),
        Some(pid).filter(|pid| *pid != 0),
        worker.starts.load(Relaxed) as i64,
        worker.started_at().map(|micros| micros as f64 / 1e6),
        shared.log_dropped.load(Relaxed) as i64,
        worker_problem(shared, pid),
    ))
}

/// One row a listener that the settings want, of the status worker and of the pooler.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn status_listeners() -> TableIterator<
    'static,
    (
        name!(kind, String),
        name!(address, String),
        name!(listening, bool),
        name!(error, Option<String>),
        name!(served, i64),
        name!(refused, i64),
        name!(failed, i64),
    ),
> {
    let row = |l: SlotReport| {
        let error = l.error();
        let kind = match l.kind {
            POOLER => "pooler",
            LISTEN_ONLY => "listen_only",
            kind => kind_name(kind),
        };
        let kind = kind.to_owned();
        (kind, l.address, l.listening, error, l.served as i64, l.refused as i64, l.failed as i64)
    };
    let poolers = shmem::pooler().map_or_else(Vec::new, |pooler| pooler.header.listeners.report());
    TableIterator::new(loaded().listeners.report().into_iter().chain(poolers).map(row))
}

/// The shared words, or the error that tells how to load the library.
fn loaded() -> &'static Shared {
    shmem::shared().unwrap_or_else(|| not_loaded())
}

pub(super) fn not_loaded() -> ! {
    ereport!(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "postern is not loaded",
        "Add postern to shared_preload_libraries and restart the server."
    );
    unreachable!()
}

fn worker_problem(shared: &Shared, pid: i32) -> Option<String> {
    if shared.no_worker_slot.load(Relaxed) != 0 {
        return Some(
            "the status worker has no place: raise max_worker_processes and restart the server".to_owned(),
        );
    }
    (pid == 0).then(|| "the status worker is not running; it is started again within a second".to_owned())
}

fn epoch(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

pgrx::extension_sql_file!(
    "../../sql/streams.sql",
    name = "streams",
    requires =
        [check_source, check_sink, hide_secrets, definitions_changed, running_sources, running_streams]
);

pgrx::extension_sql_file!(
    "../../sql/views.sql",
    name = "views",
    requires = [
        server_status,
        status_listeners,
        pooler_status,
        pooler_pools,
        pooler_clients,
        pooler_servers,
        pause,
        resume,
        reconnect,
        disconnect_idle,
        kill,
        relay_status,
        relay_channels,
        relay_listens,
        listening_channels,
        "streams"
    ]
);
