//! `/metrics`: the Prometheus text format, version 0.0.4, made from shared memory and the last sample at each
//! scrape. Network threads.

mod histogram;

pub use histogram::{Histogram, HistogramSample};

use super::health::{Health, Role};
use super::shared::kind_name;
use super::snapshot::{Snapshot, unix_seconds};
use prometheus::core::Collector;
use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric does: go up and down, or only up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
}

/// One metric of another service, with a value for each set of labels. Counters' names end in `_total`.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// As many labels' values as there are labels. Values of equal labels are added for a counter; of a gauge the last is shown.
    pub samples: Vec<(Vec<String>, f64)>,
}

/// Gives them; called at each scrape on a network thread, so it must be quick and call nothing of PostgreSQL's.
pub type MoreMetrics = Arc<dyn Fn() -> Vec<Family> + Send + Sync>;

/// The text of a page that has nothing but another service's.
pub fn page(families: &[Family], histograms: &[Histogram]) -> String {
    let page = Page(Registry::new());
    let added = families.iter().try_for_each(|family| page.family(family));
    added.and_then(|()| page.text(histograms)).unwrap_or_else(|error| format!("# {error}\n"))
}

/// The text of a scrape. What is not known is left out rather than given as 0.
pub fn text(snapshot: &Snapshot<'_>, health: &Health) -> String {
    collect(snapshot, health).unwrap_or_else(|error| format!("# {error}\n"))
}

fn collect(snapshot: &Snapshot<'_>, health: &Health) -> prometheus::Result<String> {
    let (facts, shared) = (&snapshot.known.facts, snapshot.shared);
    let page = Page(Registry::new());
    let standby = health.role == Role::Standby;
    let replay = facts.replay.as_ref();

    page.labelled_gauge(
        "postern_info",
        "Postern's version; always 1.",
        &["version"],
        &[(&[env!("CARGO_PKG_VERSION")], 1.0)],
    )?;
    page.gauge(
        "postern_server_takes_connections",
        "1 when a login can succeed.",
        flag(facts.takes_connections()),
    )?;
    page.gauge("postern_server_in_recovery", "1 on a standby and in crash recovery.", flag(standby))?;
    page.gauge(
        "postern_server_healthy",
        "1 when it should get traffic, by what this server knows without asking its primary.",
        flag(health.is_healthy()),
    )?;
    page.gauge("postern_server_timeline", "The timeline written to or replayed.", f64::from(facts.timeline))?;
    page.gauge("postern_client_connections", "Client connections in use.", f64::from(facts.clients))?;
    page.gauge(
        "postern_client_connections_max",
        "Client connections there may be, without the reserved ones.",
        f64::from(facts.client_capacity),
    )?;
    if let Some(written) = facts.written {
        page.gauge("postern_wal_written_bytes", "Position up to which WAL is written.", written.0 as f64)?;
    }
    if let Some(replay) = replay {
        page.gauge(
            "postern_wal_received_bytes",
            "Position up to which WAL is received.",
            replay.received.0 as f64,
        )?;
        page.gauge(
            "postern_wal_replayed_bytes",
            "Position up to which WAL is replayed.",
            replay.replayed.0 as f64,
        )?;
        page.gauge("postern_wal_replay_paused", "1 when replay is paused.", flag(replay.paused))?;
        page.gauge("postern_wal_receiver_streaming", "1 when WAL streams in.", flag(facts.is_streaming()))?;
        if let Some(commit) = replay.last_commit {
            page.gauge(
                "postern_last_replayed_commit_timestamp_seconds",
                "Commit time of the last replayed transaction.",
                unix_seconds(commit),
            )?;
        }
    }
    if let Some(lag) = health.lag_bytes {
        page.gauge("postern_replay_lag_bytes", "Bytes from replay to the primary's position.", lag as f64)?;
    }
    if let (true, Some(lag)) = (standby, facts.lag) {
        page.gauge(
            "postern_replay_lag_seconds",
            "How long the oldest change not replayed yet has been known.",
            lag.as_secs_f64(),
        )?;
    }
    page.counter(
        "postern_status_worker_starts_total",
        "Starts of the status worker since the server's start.",
        shared.worker.starts.load(Relaxed),
    )?;
    page.counter(
        "postern_log_lines_dropped_total",
        "Log lines of network threads dropped because the queue was full.",
        shared.log_dropped.load(Relaxed),
    )?;
    listeners(&page, shared)?;
    for family in (snapshot.more)() {
        page.family(&family)?;
    }
    page.text(&[])
}

fn listeners(page: &Page, shared: &super::shared::Shared) -> prometheus::Result<()> {
    let report = shared.listeners.report();
    let labels: Vec<[&str; 2]> = report.iter().map(|l| [kind_name(l.kind), l.address.as_str()]).collect();
    let up: Vec<(&[&str], f64)> =
        report.iter().zip(&labels).map(|(l, labels)| (labels.as_slice(), flag(l.listening))).collect();
    let names = ["kind", "listener"];
    page.labelled_gauge("postern_status_listening", "1 when the address is listened on.", &names, &up)?;
    for (name, help, value) in [
        ("postern_status_checks_total", "Checks answered.", |l| l.served),
        ("postern_status_refused_total", "Checks turned away by postern.status_allow.", |l| l.refused),
        ("postern_status_failed_total", "Checks that failed or ran into a limit.", |l| l.failed),
    ] as [(&str, &str, fn(&crate::net::slots::SlotReport) -> u64); 3]
    {
        let counter = IntCounterVec::new(Opts::new(name, help), &names)?;
        for (listener, labels) in report.iter().zip(&labels) {
            counter.with_label_values(labels).inc_by(value(listener));
        }
        page.register(counter)?;
    }
    Ok(())
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

/// One scrape's metrics; the library keeps the format.
struct Page(Registry);

impl Page {
    fn gauge(&self, name: &str, help: &str, value: f64) -> prometheus::Result<()> {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value);
        self.register(gauge)
    }

    fn counter(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        self.register(counter)
    }

    fn labelled_gauge(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        values: &[(&[&str], f64)],
    ) -> prometheus::Result<()> {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        for (labels, value) in values {
            gauge.with_label_values(labels).set(*value);
        }
        self.register(gauge)
    }

    fn family(&self, family: &Family) -> prometheus::Result<()> {
        let options = Opts::new(family.name, family.help);
        let samples = family
            .samples
            .iter()
            .map(|(labels, value)| (labels.iter().map(String::as_str).collect::<Vec<_>>(), value));
        // A metric without a value is no metric in this format.
        if family.samples.is_empty() {
            return Ok(());
        }
        match family.kind {
            Kind::Gauge => {
                let gauge = GaugeVec::new(options, family.labels)?;
                samples.for_each(|(labels, value)| gauge.with_label_values(&labels).set(*value));
                self.register(gauge)
            }
            Kind::Counter => {
                let counter = CounterVec::new(options, family.labels)?;
                samples.for_each(|(labels, value)| counter.with_label_values(&labels).inc_by(*value));
                self.register(counter)
            }
        }
    }

    fn register(&self, metric: impl Collector + 'static) -> prometheus::Result<()> {
        self.0.register(Box::new(metric))
    }

    fn text(&self, histograms: &[Histogram]) -> prometheus::Result<String> {
        let mut text = Vec::new();
        let mut families = self.0.gather();
        families.extend(histograms.iter().filter_map(Histogram::family));
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
