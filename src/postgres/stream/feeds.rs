//! What the engine of a source is given: a sink for each stream that runs, what events look like, lines for the log. A stream worker's
//! main thread.

use super::super::guc;
use super::catalog::{StreamDefinition, Wanted};
use super::work::Work;
use super::worker::{End, LINES, database_name};
use crate::stream::engine::{From, Sort, StreamReport};
use crate::stream::event;
use crate::stream::position::{Lsn, Position};
use crate::stream::shared::{Shared, Stream};
use crate::stream::sink::{self, Failure, Setting};
use pgrx::prelude::*;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::sync::mpsc::{Receiver as Waiting, SyncSender};
use std::time::Duration;

/// Lines that the engine's thread has for the server's log.
pub(super) trait Lines {
    /// Writes those that wait.
    fn write(&self, source: &str);
}

impl Lines for Waiting<String> {
    fn write(&self, source: &str) {
        for line in self.try_iter().take(LINES) {
            log!("postern: stream of \"{source}\": {line}");
        }
    }
}

impl Work {
    /// A sink for each stream that runs.
    pub(super) fn streams(&self, confirmed: Lsn) -> Result<Vec<From>, End> {
        let begins = StreamReport {
            position: Position { commit: confirmed, ordinal: u64::MAX },
            delivered: confirmed,
        };
        let running = self.definition.streams.iter().filter(|stream| stream.state == Wanted::Running).count();
        let size = guc::stream_buffer_size() / 2 / running.max(1);
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

/// What the engine needs of a stream: its sink, if it is to run, with so many bytes for itself.
pub(super) fn feed(
    shared: Shared,
    number: usize,
    stream: &StreamDefinition,
    begins: StreamReport,
    size: usize,
    line: &SyncSender<String>,
    retry: Duration,
) -> Result<From, End> {
    let Some(shown) = shared.stream(number, stream.name.as_bytes()) else {
        let why = format!("stream \"{}\" has no place: raise postern.max_streams", stream.name);
        return Err(End::Failed(why));
    };
    let sink = if stream.state == Wanted::Running {
        let (line, dropped) = (line.clone(), &shared.header.lines_dropped);
        let setting = Setting {
            delivered: 0,
            buffer_size: size,
            stream: stream.name.clone(),
            log: Arc::new(move |text| {
                if line.try_send(text).is_err() {
                    dropped.fetch_add(1, Relaxed);
                }
            }),
        };
        match sink::make(&stream.kind, &stream.options, &setting) {
            Ok(made) => Sort::Sink(made),
            // Its options were right when they were given: what they name may come back.
            Err(error) => Sort::Unmade(Failure { message: error.to_string(), lasting: false }),
        }
    } else {
        Sort::Nothing
    };
    show_where(shown, &begins);
    Ok(From { sink, begins, shown, retry })
}

fn show_where(shown: &Stream, at: &StreamReport) {
    shown.commit.store(at.position.commit.0, Relaxed);
    shown.ordinal.store(at.position.ordinal, Relaxed);
    shown.delivered.store(at.delivered.0, Relaxed);
}

fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: as many bytes as it is told, the last of which stays 0.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
