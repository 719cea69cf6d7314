//! The pooler's metrics for the status worker, which renders them but knows no pooler. Made on its network threads at each scrape,
//! from words in shared memory alone.

use crate::pooler::glance::{PoolGlance, pools};
use crate::pooler::shared::{ServerState, Shared};
use crate::status::metrics::{Family, Kind};
use std::sync::atomic::Ordering::Relaxed;

const NAMES: &[&str] = &["database", "role"];

/// What is made of a pool: name, help, kind, value.
type OfPool = (&'static str, &'static str, Kind, fn(&PoolGlance) -> f64);

const OF_POOL: [OfPool; 10] = [
    ("postern_pooler_clients", "Clients that are logged in.", Kind::Gauge, |p| p.clients.into()),
    ("postern_pooler_clients_active", "Clients that a server connection serves.", Kind::Gauge, |p| {
        p.clients_active.into()
    }),
    ("postern_pooler_clients_waiting", "Clients that wait for a server connection.", Kind::Gauge, |p| {
        p.clients_waiting.into()
    }),
    (
        "postern_pooler_max_wait_seconds",
        "How long the client has waited that has waited longest.",
        Kind::Gauge,
        |p| p.max_wait.unwrap_or_default().as_secs_f64(),
    ),
    ("postern_pooler_servers_max", "Server connections that there may be.", Kind::Gauge, |p| p.size.into()),
    ("postern_pooler_paused", "1 while the pool is paused.", Kind::Gauge, |p| u8::from(p.paused).into()),
    ("postern_pooler_transactions_total", "Transactions of clients.", Kind::Counter, |p| {
        p.transactions as f64
    }),
    ("postern_pooler_assignments_total", "Server connections given to clients.", Kind::Counter, |p| {
        p.assignments as f64
    }),
    (
        "postern_pooler_swaps_total",
        "Server connections given to another client than before.",
        Kind::Counter,
        |p| p.swaps as f64,
    ),
    (
        "postern_pooler_wait_seconds_total",
        "How long clients have waited for a server connection, waits of less than a second left out.",
        Kind::Counter,
        |p| p.wait.as_secs_f64(),
    ),
];

const STATES: [(ServerState, &str); 5] = [
    (ServerState::Serving, "active"),
    (ServerState::Idle, "idle"),
    (ServerState::Staying, "staying"),
    (ServerState::Pinned, "pinned"),
    (ServerState::Opening, "opening"),
];

pub(super) fn families(shared: &Shared) -> Vec<Family> {
    let header = shared.header;
    let counters = &header.counters;
    let one =
        |name, help, kind, value| Family { name, help, kind, labels: &[], samples: vec![(vec![], value)] };
    let mut families = vec![
        one(
            "postern_pooler_clients_max",
            "Clients that the settings and the limit of open files allow.",
            Kind::Gauge,
            f64::from(header.capacity.load(Relaxed)),
        ),
        one(
            "postern_pooler_logins",
            "Clients that are logging in.",
            Kind::Gauge,
            f64::from(header.logins.load(Relaxed)),
        ),
        one(
            "postern_pooler_logins_total",
            "Clients that have logged in.",
            Kind::Counter,
            counters.clients.load(Relaxed) as f64,
        ),
        one(
            "postern_pooler_logins_failed_total",
            "Logins that failed.",
            Kind::Counter,
            counters.logins_failed.load(Relaxed) as f64,
        ),
        one(
            "postern_pooler_cancels_total",
            "Cancel requests with a right key.",
            Kind::Counter,
            counters.cancels.load(Relaxed) as f64,
        ),
        one(
            "postern_pooler_worker_starts_total",
            "Starts of the pooler's worker since the server's start.",
            Kind::Counter,
            header.worker.starts.load(Relaxed) as f64,
        ),
    ];
    let listeners = header.listeners.report();
    let of_listeners = |name, help, kind, value: fn(&crate::net::slots::SlotReport) -> f64| Family {
        name,
        help,
        kind,
        labels: &["listener"],
        samples: listeners.iter().map(|l| (vec![l.address.clone()], value(l))).collect(),
    };
    families.push(of_listeners(
        "postern_pooler_listening",
        "1 when the address is listened on.",
        Kind::Gauge,
        |listener| u8::from(listener.listening).into(),
    ));
    families.push(of_listeners(
        "postern_pooler_connections_total",
        "Connections accepted, logged in or not.",
        Kind::Counter,
        |listener| listener.served as f64,
    ));
    let pools = pools(shared);
    let labels: Vec<_> = pools.iter().map(|pool| vec![text(&pool.database), text(&pool.role)]).collect();
    for (name, help, kind, value) in OF_POOL {
        let samples = pools.iter().zip(&labels).map(|(pool, labels)| (labels.clone(), value(pool))).collect();
        families.push(Family { name, help, kind, labels: NAMES, samples });
    }
    let by_state = |(pool, labels): (&PoolGlance, &Vec<String>)| {
        let row = |(state, name): (ServerState, &str)| {
            let labels = labels.iter().cloned().chain([name.to_owned()]).collect();
            (labels, f64::from(pool.servers_in(state)))
        };
        STATES.map(row)
    };
    families.push(Family {
        name: "postern_pooler_servers",
        help: "Server connections.",
        kind: Kind::Gauge,
        labels: &["database", "role", "state"],
        samples: pools.iter().zip(&labels).flat_map(by_state).collect(),
    });
    families
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
