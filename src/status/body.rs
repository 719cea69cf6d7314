//! The JSON bodies of HTTP answers. Names are Patroni's where Patroni has one. Pure.

use super::facts::Facts;
use super::health::{Health, Role};
use super::shared::{Shared, kind_name};
use super::snapshot::{Snapshot, unix_seconds};
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering::Relaxed;

/// What every body says of the node. Names are Patroni's where Patroni has one.
pub fn node(snapshot: &Snapshot<'_>, health: &Health) -> Map<String, Value> {
    let facts = &snapshot.known.facts;
    let role = match health.role {
        Role::Primary => "primary",
        Role::Standby => "replica",
    };
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| drop(body.insert(key.to_owned(), value));
    put("state", facts.server.name().into());
    put("role", role.into());
    put("server_version", facts.server_version.into());
    put("timeline", facts.timeline.into());
    put("database_system_identifier", facts.system_identifier.to_string().into());
    put("xlog", xlog(facts));
    if health.role == Role::Standby {
        put("replication_state", if facts.is_streaming() { "streaming" } else { "not streaming" }.into());
        put("lag_bytes", health.lag_bytes.into());
        put("lag_seconds", facts.lag.map(|lag| lag.as_secs_f64()).into());
    }
    put("postern", json!({ "version": env!("CARGO_PKG_VERSION") }));
    body
}

fn xlog(facts: &Facts) -> Value {
    match &facts.replay {
        Some(replay) => json!({
            "received_location": replay.received.0,
            "replayed_location": replay.replayed.0,
            "replayed_timestamp": replay.last_commit.map(unix_seconds),
            "paused": replay.paused,
        }),
        None => json!({ "location": facts.written.map(|lsn| lsn.0) }),
    }
}

/// Each listener that the settings want.
pub fn listeners(shared: &Shared) -> Value {
    let one = |l: crate::net::slots::SlotReport| {
        json!({
            "kind": kind_name(l.kind),
            "address": l.address,
            "listening": l.listening,
            "error": l.error(),
            "served": l.served,
            "refused": l.refused,
            "failed": l.failed,
        })
    };
    shared.listeners.report().into_iter().map(one).collect()
}

/// Counts of everything.
pub fn stats(snapshot: &Snapshot<'_>) -> Value {
    let (facts, shared) = (&snapshot.known.facts, snapshot.shared);
    json!({
        "clients": { "connected": facts.clients, "capacity": facts.client_capacity },
        "status": {
            "worker": { "pid": shared.worker.pid.load(Relaxed), "starts": shared.worker.starts.load(Relaxed) },
            "listeners": listeners(shared),
            "log_lines_dropped": shared.log_dropped.load(Relaxed),
        },
    })
}
