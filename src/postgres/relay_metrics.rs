//! The notification relay's metrics for the status worker, which renders them but knows no relay. Made on its network threads at each
//! scrape, from words in shared memory alone.

use crate::relay::shared::{Shared, SourceState};
use crate::status::metrics::{Family, Kind};
use std::sync::atomic::Ordering::Relaxed;

pub(super) fn families(shared: Shared) -> Vec<Family> {
    let header = shared.header;
    let counters = &header.counters;
    let one = |name, help, kind, value: f64| Family {
        name,
        help,
        kind,
        labels: &[],
        samples: vec![(vec![], value)],
    };
    let counter = |name, help, count: &std::sync::atomic::AtomicU64| {
        one(name, help, Kind::Counter, count.load(Relaxed) as f64)
    };
    let databases = header.sources.iter().filter(|source| source.state() != SourceState::Free);
    let channels = shared.channels_in_use().count();
    vec![
        one(
            "postern_relay_databases",
            "Databases whose notifications are relayed.",
            Kind::Gauge,
            databases.count() as f64,
        ),
        one("postern_relay_channels", "Channels that are listened to.", Kind::Gauge, channels as f64),
        one(
            "postern_relay_channels_max",
            "Channels that may be listened to.",
            Kind::Gauge,
            shared.channels.len() as f64,
        ),
        one("postern_relay_listens", "LISTENs in force.", Kind::Gauge, header.listens.load(Relaxed).into()),
        one(
            "postern_relay_listens_max",
            "LISTENs that may be in force.",
            Kind::Gauge,
            shared.listens.len() as f64,
        ),
        one(
            "postern_relay_ring_bytes",
            "Size of the ring of notifications.",
            Kind::Gauge,
            shared.words.len() as f64 * 8.0,
        ),
        one(
            "postern_relay_clients_behind",
            "Idle clients that have not taken all notifications that they were sent.",
            Kind::Gauge,
            header.behind.load(Relaxed).into(),
        ),
        one(
            "postern_relay_backlog_bytes",
            "By how much of the ring the furthest of them is behind; postern.relay_max_backlog is its limit.",
            Kind::Gauge,
            header.backlog.load(Relaxed) as f64,
        ),
        counter("postern_relay_clients_total", "Client connections that have listened.", &counters.clients),
        counter("postern_relay_listens_total", "LISTENs that have taken effect.", &counters.listened),
        counter("postern_relay_unlistens_total", "LISTENs that have ended.", &counters.unlistened),
        counter("postern_relay_received_total", "Notifications heard.", &counters.received),
        counter(
            "postern_relay_notifications_total",
            "Notifications dispatched to clients.",
            &counters.dispatched,
        ),
        counter(
            "postern_relay_slow_clients_total",
            "Clients disconnected because they did not read their notifications in time.",
            &counters.too_slow,
        ),
        counter("postern_relay_refused_total", "LISTENs that a limit has refused.", &counters.refused),
    ]
}
