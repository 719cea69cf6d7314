//! What the engine of a source is given: a sink for each stream that runs, what events look like, lines for the log. A stream worker's
//! main thread.

use super::super::guc;
use super::catalog::{SourceDefinition, StreamDefinition, Wanted};
use super::work::Work;
use super::worker::database_name;
use crate::stream::engine::{From, Make, StreamReport};
use crate::stream::event;
use crate::stream::lines::{Lines, Waiting};
use crate::stream::position::{Lsn, Position};
use crate::stream::shared::Shared;
use crate::stream::sink::{self, Failure, Setting};
use pgrx::prelude::*;
use std::ffi::CStr;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

/// Writes the lines that a source's threads have for the server's log.
pub(super) fn write_lines(lines: &Waiting, source: &str) {
    for line in lines.take() {
        log!("postern: stream of \"{source}\": {line}");
    }
}

/// How a source's `postern.stream_buffer_size` is divided.
pub(super) struct Memory {
    /// What is decoded, or fetched and kept here, and not given to every sink.
    pub ahead: usize,
    /// What a sink has and has not delivered, each.
    pub sink: usize,
    /// What is kept for sinks that have failed; what the source itself fetches ahead, where it is not this server's WAL.
    pub arrears: usize,
}

impl Memory {
    pub fn new(definition: &SourceDefinition) -> Self {
        let size = guc::stream_buffer_size();
        let running = definition.streams.iter().filter(|stream| stream.state == Wanted::Running).count();
        Self { ahead: size / 2, sink: size / 4 / running.max(1), arrears: size / 4 }
    }
}

impl Work {
    /// A sink for each stream that runs.
    pub(super) fn streams(&self, confirmed: Lsn) -> Vec<From> {
        let begins = StreamReport {
            position: Position { commit: confirmed, ordinal: u64::MAX },
            delivered: confirmed,
        };
        let size = Memory::new(&self.definition).sink;
        let feed = |stream| {
            let its: &StreamDefinition = stream;
            let begins = its.position.unwrap_or(begins);
            feed(self.shared, self.number, its, begins, size, &self.line, self.options.retry)
        };
        self.definition.streams.iter().map(feed).collect()
    }

    pub(super) fn event_options(&self) -> event::EventOptions {
        let mut event = self.options.event.clone();
        if event.host.is_empty() {
            event.host = host_name();
        }
        if event.database.is_empty() {
            event.database = database_name();
        }
        event
    }

    /// The same event has the same UUID whenever it is delivered, and no other server's.
    pub(super) fn seed(&self) -> u128 {
        // SAFETY: reads a word of the control file.
        let system = unsafe { pg_sys::GetSystemIdentifier() };
        event::seed(system, self.source.database.load(Relaxed), &self.definition.name)
    }
}

/// What the engine needs of a stream: what makes its sink, if it is to run, with so many bytes for itself. The engine's thread, which makes it
/// again after a failure, has every signal blocked, as main has that makes it first.
pub(super) fn feed(
    shared: Shared,
    number: usize,
    stream: &StreamDefinition,
    begins: StreamReport,
    size: usize,
    line: &Lines,
    retry: Duration,
) -> From {
    let place = shared.stream(number, stream.name.as_bytes());
    if place.is_none()
        && stream.state == Wanted::Running
        && let Some(source) = shared.sources.get(number)
    {
        source.error.say(&format!("stream \"{}\" has no place: raise postern.max_streams", stream.name));
    }
    // Without a place it is like one that is paused: what it lacks is kept for it. It has one of its own, which nobody sees.
    let shown = place.unwrap_or_else(|| Box::leak(Box::default()));
    let make = (stream.state == Wanted::Running && place.is_some()).then(|| {
        let (kind, options) = (stream.kind.clone(), stream.options.clone());
        let setting =
            Setting { delivered: 0, buffer_size: size, stream: stream.name.clone(), log: line.log() };
        let make: Make = Box::new(move |delivered| {
            sink::make(&kind, &options, &Setting { delivered, ..setting.clone() })
                // Its options were right when they were given: what they name may come back.
                .map_err(|error| Failure { message: error.to_string(), lasting: false })
        });
        make
    });
    shown.show_where(begins.position, begins.delivered);
    From { make, begins, shown, retry, log: line.log() }
}

fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: as many bytes as it is told, the last of which stays 0.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
