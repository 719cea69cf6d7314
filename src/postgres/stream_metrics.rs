//! The change streams' metrics, and the port of `postern.stream_listen`, for the status worker, which serves both but knows no streams. Made
//! on its network threads at each request, from words in shared memory alone.

use crate::status::metrics::{self, Family, Histogram, HistogramSample, Kind};
use crate::status::shared::Shared as Status;
use crate::status::{Answer, Pages};
use crate::stream::page::{self, Page, SinkName};
use crate::stream::shared::{Shared, Source, SourceState, Stream, StreamState};
use crate::stream::timings::{BOUNDS, Timed};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

const OF_SOURCE: &[&str] = &["database", "source"];
const OF_STREAM: &[&str] = &["database", "source", "stream", "sink"];

/// What is made of a source: name, help, kind, value; none where it is not known.
type SourceMetric = (&'static str, &'static str, Kind, fn(&Source) -> Option<f64>);

const SOURCE_METRICS: [SourceMetric; 8] = [
    (
        "postern_source_up",
        "1 while its worker decodes WAL; 0 also while it reads a snapshot.",
        Kind::Gauge,
        |source| Some(u8::from(source.state() == SourceState::Streaming).into()),
    ),
    (
        "postern_source_received_bytes",
        "Position up to which it has decoded the WAL.",
        Kind::Gauge,
        |source| position(source.received.load(Relaxed)),
    ),
    (
        "postern_source_confirmed_bytes",
        "Position that its replication slot has confirmed.",
        Kind::Gauge,
        |source| position(source.confirmed.load(Relaxed)),
    ),
    (
        "postern_source_buffered_bytes",
        "Bytes of decoded changes that wait in memory for its sinks.",
        Kind::Gauge,
        |source| Some(source.buffered.load(Relaxed) as f64),
    ),
    (
        "postern_source_buffered_max_bytes",
        "The most bytes that have ever waited so.",
        Kind::Gauge,
        |source| Some(source.buffered_most.load(Relaxed) as f64),
    ),
    (
        "postern_source_events_total",
        "Events handed over to its streams; those that are made again count again.",
        Kind::Counter,
        |source| Some(source.timings.get().count as f64),
    ),
    (
        "postern_source_worker_starts_total",
        "Starts of its worker, those after an error among them.",
        Kind::Counter,
        |source| Some(source.starts.load(Relaxed) as f64),
    ),
    (
        "postern_source_errors_total",
        "Errors: ends of its worker, changes without a publication, too much WAL, messages that were no events.",
        Kind::Counter,
        |source| Some(source.errors.load(Relaxed) as f64),
    ),
];

/// A stream where and when it is looked at.
struct Look {
    source: &'static Source,
    stream: &'static Stream,
    /// How far the server has written WAL, where it does.
    written: Option<u64>,
    now: SystemTime,
}

type StreamMetric = (&'static str, &'static str, Kind, fn(&Look) -> Option<f64>);

const STREAM_METRICS: [StreamMetric; 9] = [
    ("postern_stream_up", "1 while it runs and its sink is well.", Kind::Gauge, |look| {
        Some(u8::from(look.stream.state() == StreamState::Running).into())
    }),
    (
        "postern_stream_events_total",
        "Events given to the sink; those that are given again count again.",
        Kind::Counter,
        |look| Some(look.stream.events.load(Relaxed) as f64),
    ),
    ("postern_stream_bytes_total", "Bytes of these events.", Kind::Counter, |look| {
        Some(look.stream.bytes.load(Relaxed) as f64)
    }),
    ("postern_stream_skipped_total", "Events left out by the sink's options.", Kind::Counter, |look| {
        Some(look.stream.skipped.load(Relaxed) as f64)
    }),
    (
        "postern_stream_errors_total",
        "Errors of its sink, one that lasts counted once.",
        Kind::Counter,
        |look| Some(look.stream.errors.load(Relaxed) as f64),
    ),
    (
        "postern_stream_delivered_bytes",
        "Position before which everything that was committed is delivered.",
        Kind::Gauge,
        |look| position(look.stream.delivered.load(Relaxed)),
    ),
    (
        "postern_stream_lag_bytes",
        "Bytes of WAL from what is delivered to the end of what the server has written.",
        Kind::Gauge,
        Look::lag_bytes,
    ),
    (
        "postern_stream_lag_seconds",
        "For how long the oldest transaction that is not delivered has been committed, as far as it is decoded; absent where that is not known, as of a stream that does not run.",
        Kind::Gauge,
        Look::lag_seconds,
    ),
    (
        "postern_stream_delivered_timestamp_seconds",
        "When an event was delivered last, in seconds since 1970.",
        Kind::Gauge,
        |look| Some(look.stream.delivered_at.load(Relaxed) as f64 / 1e6).filter(|time| *time > 0.0),
    ),
];

impl Look {
    fn lag_bytes(&self) -> Option<f64> {
        let delivered = self.stream.delivered.load(Relaxed);
        let end = self.written.unwrap_or(0).max(self.source.received.load(Relaxed));
        (delivered != 0).then(|| end.saturating_sub(delivered) as f64)
    }

    /// Of what is not decoded, or comes from elsewhere, nobody knows when it was committed.
    fn lag_seconds(&self) -> Option<f64> {
        let now = self.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let runs = self.source.kind.is(b"postgres")
            && self.source.state() == SourceState::Streaming
            && self.stream.state() == StreamState::Running;
        match self.stream.behind_since.load(Relaxed) {
            0 => runs.then_some(0.0),
            since => Some((now - since as f64 / 1e6).max(0.0)),
        }
    }
}

/// Bytes; none before it is known.
fn position(lsn: u64) -> Option<f64> {
    (lsn != 0).then_some(lsn as f64)
}

pub(super) fn families(shared: Shared, status: &Status) -> Vec<Family> {
    let header = shared.header;
    let one =
        |name, help, kind, value| Family { name, help, kind, labels: &[], samples: vec![(vec![], value)] };
    let mut families = vec![
        one(
            "postern_stream_debug",
            "1 while every event is logged.",
            Kind::Gauge,
            header.debug.load(Relaxed).into(),
        ),
        one(
            "postern_stream_refused_total",
            "Times that a source or stream found no place: postern.max_streams is too low.",
            Kind::Counter,
            header.refused.load(Relaxed) as f64,
        ),
        one(
            "postern_stream_log_lines_dropped_total",
            "Log lines of the streams' threads dropped because the queue was full.",
            Kind::Counter,
            header.lines_dropped.load(Relaxed) as f64,
        ),
    ];
    let sources: Vec<_> = page::sources(shared).collect();
    let labels = |source: &Source| vec![source.database_name.text(), source.name.text()];
    for (name, help, kind, value) in SOURCE_METRICS {
        let sample = |(_, source): &(usize, &'static Source)| Some((labels(source), value(source)?));
        families.push(Family {
            name,
            help,
            kind,
            labels: OF_SOURCE,
            samples: sources.iter().filter_map(sample).collect(),
        });
    }
    families.push(Family {
        name: "postern_source_state",
        help: "1 for the state that it is in, 0 for the others.",
        kind: Kind::Gauge,
        labels: &["database", "source", "state"],
        samples: sources
            .iter()
            .flat_map(|(_, source)| {
                let is = source.state();
                SourceState::ALL.map(|state| state_sample(labels(source), state.name(), state == is))
            })
            .collect(),
    });
    let (now, written) = (SystemTime::now(), status.written().map(|lsn| lsn.0));
    let looks: Vec<_> = sources
        .iter()
        .flat_map(|(number, source)| {
            shared.streams_of(*number).map(move |stream| Look { source, stream, written, now })
        })
        .collect();
    let labels = |look: &Look| {
        let (source, stream) = (look.source, look.stream);
        vec![source.database_name.text(), source.name.text(), stream.name.text(), stream.sink.text()]
    };
    for (name, help, kind, value) in STREAM_METRICS {
        let sample = |look: &Look| Some((labels(look), value(look)?));
        let samples = looks.iter().filter_map(sample).collect();
        families.push(Family { name, help, kind, labels: OF_STREAM, samples });
    }
    families.push(Family {
        name: "postern_stream_state",
        help: "1 for the state that it is in, 0 for the others.",
        kind: Kind::Gauge,
        labels: &["database", "source", "stream", "sink", "state"],
        samples: looks
            .iter()
            .flat_map(|look| {
                let is = look.stream.state();
                StreamState::ALL.map(|state| state_sample(labels(look), state.name(), state == is))
            })
            .collect(),
    });
    families
}

fn state_sample(mut labels: Vec<String>, state: &str, is: bool) -> (Vec<String>, f64) {
    labels.push(state.to_owned());
    (labels, f64::from(u8::from(is)))
}

/// What the port of `postern.stream_listen` answers.
pub(super) fn pages(shared: Option<Shared>, status: &'static Status) -> Pages {
    Arc::new(move |method, path| {
        let text =
            |code, text| Answer { code, allow: None, content_type: "text/plain; charset=utf-8", body: text };
        let Some(shared) = shared else { return text(500, "change streams are not loaded\n".to_owned()) };
        match page::page(shared, method, path) {
            Page::Text(code, body) => text(code, body),
            Page::Refused(methods) => {
                Answer { allow: Some(methods), ..text(405, format!("answered are {methods}\n")) }
            }
            Page::Metrics => {
                let (counters, histograms) = psql_streamers(shared);
                let mut families = families(shared, status);
                families.extend(counters);
                Answer {
                    content_type: metrics::CONTENT_TYPE,
                    ..text(200, metrics::page(&families, &histograms))
                }
            }
        }
    })
}

const SOURCE_LABELS: &[&str] = &["database", "sourceName", "sourceType"];
const SINK_LABELS: &[&str] = &["database", "sinkName", "sinkType"];

/// psql-streamer's metrics by its own names, which promtool has something to say of, so that `postern.http_listen` does not have them. Its
/// label `table` is missing: there is no bound to tables.
fn psql_streamers(shared: Shared) -> ([Family; 4], [Histogram; 2]) {
    let sources: BTreeMap<_, _> = page::sources(shared)
        .map(|(_, source)| {
            let labels = vec![source.database_name.text(), source.name.text(), source.kind.text()];
            (labels, (source.timings.get(), source.errors.load(Relaxed)))
        })
        .collect();
    let sinks: BTreeMap<_, _> = page::sinks(shared)
        .into_iter()
        .map(|(sink, streams)| {
            let SinkName { database, name, kind } = sink;
            let errors = streams.iter().map(|stream| stream.errors.load(Relaxed)).sum();
            (vec![database, name, kind], (sum(streams.iter().map(|stream| stream.timings.get())), errors))
        })
        .collect();
    type Counts = BTreeMap<Vec<String>, (Timed, u64)>;
    let counter = |name, help, labels, of: &Counts, value: fn(&(Timed, u64)) -> u64| {
        let samples = of.iter().map(|(labels, counts)| (labels.clone(), value(counts) as f64)).collect();
        Family { name, help, kind: Kind::Counter, labels, samples }
    };
    let histogram = |name, help, labels, of: &Counts| {
        let sample = |(labels, (timed, _)): (&Vec<String>, &(Timed, u64))| HistogramSample {
            labels: labels.clone(),
            within: timed.within.to_vec(),
            count: timed.count,
            sum: timed.seconds,
        };
        Histogram { name, help, labels, bounds: &BOUNDS, samples: of.iter().map(sample).collect() }
    };
    let counters = [
        counter("source_events", "Source events count", SOURCE_LABELS, &sources, |(timed, _)| timed.count),
        counter("source_errors", "Source errors count", SOURCE_LABELS, &sources, |(_, errors)| *errors),
        counter("sink_events", "Sink events count", SINK_LABELS, &sinks, |(timed, _)| timed.count),
        counter("sink_errors", "Sink errors count", SINK_LABELS, &sinks, |(_, errors)| *errors),
    ];
    let histograms = [
        histogram(
            "source_event_processing_time_sec",
            "Source event processing time (sec)",
            SOURCE_LABELS,
            &sources,
        ),
        histogram("sink_event_processing_time_sec", "Sink event processing time (sec)", SINK_LABELS, &sinks),
    ];
    (counters, histograms)
}

fn sum(all: impl Iterator<Item = Timed>) -> Timed {
    let none = Timed { within: [0; BOUNDS.len()], count: 0, seconds: 0.0 };
    all.fold(none, |mut sum, timed| {
        sum.within.iter_mut().zip(timed.within).for_each(|(all, one)| *all += one);
        sum.count += timed.count;
        sum.seconds += timed.seconds;
        sum
    })
}
