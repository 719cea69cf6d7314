//! What the port of `postern.stream_listen` answers: psql-streamer's paths, for sources, sinks and streams of all databases. Made from
//! words in shared memory alone, on a network thread of the status worker, so that it answers whatever a stream is stuck in.

use super::position::Lsn;
use super::shared::{Shared, Source, SourceState, Stream, StreamState};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// Status code and plain text.
    Text(u16, String),
    /// 405: these methods are answered.
    Refused(&'static str),
    /// The metrics, which another room renders.
    Metrics,
}

/// Answers a request's method and path. Nobody who asks can make it fail.
pub fn page(shared: Shared, method: &str, path: &str) -> Page {
    let switch = path.strip_prefix("/debug/");
    let methods = if switch.is_some() { "GET, POST" } else { "GET, HEAD" };
    if !methods.split(", ").any(|one| one == method) {
        return Page::Refused(methods);
    }
    match (path, switch) {
        ("/health", _) => Page::Text(200, "Alive and well\n".to_owned()),
        ("/status", _) => status(shared),
        ("/stats", _) => Page::Text(200, stats(shared)),
        ("/metrics", _) => Page::Metrics,
        (_, Some(word @ ("on" | "off"))) => {
            shared.header.debug.store(u32::from(word == "on"), Relaxed);
            Page::Text(200, format!("debug is {word}\n"))
        }
        (_, Some(_)) => Page::Text(400, "write /debug/on or /debug/off\n".to_owned()),
        _ => {
            let paths = "/health, /status, /stats, /debug/on, /debug/off, /metrics";
            Page::Text(404, format!("no such page; there are {paths}\n"))
        }
    }
}

/// Sources that are defined.
pub fn sources(shared: Shared) -> impl Iterator<Item = (usize, &'static Source)> {
    shared.sources_in_use().filter(|(_, source)| source.state() != SourceState::Dropped)
}

/// What is wrong, a line for each; when nothing is, what everything does.
fn status(shared: Shared) -> Page {
    let mut errors = Vec::new();
    let header = shared.header;
    for (lacks, whom) in [(&header.no_worker_slot, "the launcher"), (&header.no_scout_slot, "a scout")] {
        if lacks.load(Relaxed) != 0 {
            errors.push(format!("no background worker is free for {whom}: raise max_worker_processes"));
        }
    }
    if header.is_refusing() {
        errors.push(
            "a source or stream finds no place: raise postern.max_streams and restart the server".to_owned(),
        );
    }
    let mut all_well = Vec::new();
    for (number, source) in sources(shared) {
        let (what, error) = (source_name(source), source.error.get());
        let is_ill = match source.state() {
            SourceState::Failed | SourceState::Blocked => true,
            // It has an error while it waits for a place for its worker.
            SourceState::Waiting => error.is_some(),
            _ => false,
        };
        report(&what, source.state().name(), is_ill, error, &mut errors, &mut all_well);
        for stream in shared.streams_of(number) {
            let state = stream.state();
            let is_ill = matches!(state, StreamState::Trouble | StreamState::Failed | StreamState::Blocked);
            let what = format!("stream {}", named(&stream.name.text(), source));
            report(&what, state.name(), is_ill, stream.error.get(), &mut errors, &mut all_well);
        }
    }
    match (errors.is_empty(), all_well.is_empty()) {
        (false, _) => Page::Text(500, lines(&errors)),
        (true, false) => Page::Text(200, lines(&all_well)),
        (true, true) => Page::Text(200, "no change stream is defined\n".to_owned()),
    }
}

fn report(
    what: &str,
    state: &str,
    is_ill: bool,
    error: Option<String>,
    errors: &mut Vec<String>,
    all_well: &mut Vec<String>,
) {
    match error.filter(|_| is_ill) {
        Some(error) => errors.push(format!("{what} is {state}: {error}")),
        None if is_ill => errors.push(format!("{what} is {state}")),
        None => all_well.push(format!("{what} is {state}")),
    }
}

fn stats(shared: Shared) -> String {
    let mut all = Vec::new();
    for (_, source) in sources(shared) {
        all.push(format!(
            "{} is {}: events {}, received {}, confirmed {}, buffered {} bytes, worker starts {}, errors {}",
            source_name(source),
            source.state().name(),
            source.timings.get().count,
            Lsn(source.received.load(Relaxed)),
            Lsn(source.confirmed.load(Relaxed)),
            source.buffered.load(Relaxed),
            source.starts.load(Relaxed),
            source.errors.load(Relaxed),
        ));
    }
    for (sink, streams) in sinks(shared) {
        let sum = |count: fn(&Stream) -> u64| streams.iter().map(|stream| count(stream)).sum::<u64>();
        all.push(format!(
            "sink \"{}\" of database \"{}\": streams {}, events {}, bytes {}, skipped {}, errors {}",
            sink.name,
            sink.database,
            streams.len(),
            sum(|stream| stream.events.load(Relaxed)),
            sum(|stream| stream.bytes.load(Relaxed)),
            sum(|stream| stream.skipped.load(Relaxed)),
            sum(|stream| stream.errors.load(Relaxed)),
        ));
    }
    lines(&all)
}

/// A sink that a stream feeds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SinkName {
    pub database: String,
    pub name: String,
    pub kind: String,
}

/// Each sink with the streams that feed it.
pub fn sinks(shared: Shared) -> BTreeMap<SinkName, Vec<&'static Stream>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, source) in sources(shared) {
        for stream in shared.streams_of(number) {
            let sink = SinkName {
                database: source.database_name.text(),
                name: stream.sink.text(),
                kind: stream.sink_kind.text(),
            };
            found.entry(sink).or_default().push(stream);
        }
    }
    found
}

fn source_name(source: &Source) -> String {
    format!("source {}", named(&source.name.text(), source))
}

fn named(name: &str, source: &Source) -> String {
    format!("\"{name}\" of database \"{}\"", source.database_name.text())
}

/// Names and errors are others' texts: a line stays one line.
fn lines(all: &[String]) -> String {
    let one = |line: &String| line.replace(char::is_control, " ") + "\n";
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests;
