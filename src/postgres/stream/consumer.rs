//! The worker of a source that is not this server's WAL: its engine's thread takes messages from elsewhere and gives them to sinks; main
//! keeps aside what was no event, writes log lines, and sees when it is over. A stream worker's main thread.

use super::super::signals;
use super::super::worker::{Latch, heed_signals};
use super::catalog::{SourceDefinition, Wanted};
use super::feeds::{Memory, feed, write_lines};
use super::records;
use super::worker::{End, said, wait, write};
use crate::stream::engine::consumer::{Consumer, Shared as Consumers};
use crate::stream::engine::{Outcome, StreamReport, Watch};
use crate::stream::lines::{Waiting, lines};
use crate::stream::shared::{Shared, Source, SourceState};
use crate::stream::source::{self, Setting};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

/// Pause before it is started again after an error.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// How often main looks, when nothing wakes it: milliseconds.
const TICK: i64 = 1_000;

pub(super) fn serve(
    shared: Shared,
    number: usize,
    at: &'static Source,
    definition: &SourceDefinition,
) -> End {
    if definition.streams.iter().any(|stream| stream.state != Wanted::Running) {
        // What one stream lacks could not be kept for it.
        at.set_state(SourceState::Stopped);
        return End::Told;
    }
    // Before it comes to know of more.
    let mut aside = match Aside::look(definition) {
        Ok(aside) => aside,
        Err(end) => return end,
    };
    let (line, lines) = lines(shared.header);
    let memory = Memory::new(definition);
    // The source and the sinks start threads of their own: every signal is blocked before.
    signals::block_all();
    let setting = Setting { buffer_size: memory.arrears, stream: definition.name.clone(), log: line.log() };
    let made = source::make(&definition.kind, &definition.options, &setting);
    let streams = definition
        .streams
        .iter()
        .map(|stream| feed(shared, number, stream, StreamReport::default(), memory.sink, &line, RETRY))
        .collect();
    let started = match made {
        Err(error) => Err(End::Blocked(error.to_string())),
        Ok(made) => {
            // SAFETY: set for every process of the server.
            let latch = Latch(unsafe { pg_sys::MyLatch });
            let consumers = Arc::new(Consumers::new(move || latch.set()));
            let watch = Watch { header: shared.header, source: at, lines: line.clone() };
            let consumer = Consumer::new(Arc::clone(&consumers), made, streams, watch, memory.ahead);
            let thread = std::thread::Builder::new().name("postern stream".to_owned());
            match thread.spawn(move || consumer.run()) {
                Ok(thread) => Ok((consumers, thread)),
                Err(error) => Err(End::Failed(format!("could not start its thread: {error}"))),
            }
        }
    };
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let (consumers, thread) = match started {
        Ok(started) => started,
        Err(end) => return end,
    };
    at.set_state(SourceState::Streaming);
    let look = AssertUnwindSafe(|| look(at, definition, &consumers, &lines, &mut aside));
    let ended = PgTryBuilder::new(look).catch_others(|error| End::Failed(said(&error))).execute();
    consumers.stop();
    // It says itself why it ended.
    let _ = thread.join();
    write_lines(&lines, &definition.name);
    match consumers.outcome() {
        Some(Outcome::Again) => End::Again,
        Some(Outcome::Broken(error)) => End::Failed(error),
        None => ended,
    }
}

/// What is kept aside of what is no event, and how much may be: beyond that the source waits until somebody has looked at it.
struct Aside {
    /// At most so many bytes; rows that somebody has deleted meanwhile count until they are counted anew.
    kept: u64,
    limit: u64,
}

impl Aside {
    /// Counts what there is, which takes longer the more there is.
    fn look(definition: &SourceDefinition) -> Result<Self, End> {
        let limit = source::rejected_limit(&definition.options);
        let limit = limit.map_err(|error| End::Blocked(error.to_string()))?;
        let kept = write(|| records::kept_aside(&definition.name));
        let kept =
            kept.map_err(|error| End::Failed(format!("could not read postern.rejected_messages: {error}")))?;
        if kept < limit {
            return Ok(Self { kept, limit });
        }
        Err(End::Failed(format!(
            "postern.rejected_messages has {kept} bytes of it, and its option \"rejected_limit\" allows {limit}: delete from there what is no \
             more needed, or allow more"
        )))
    }

    /// Whether it seems to be too much now. What somebody has deleted meanwhile is seen when it is counted anew, at the next start.
    fn is_full_with(&mut self, bytes: u64) -> bool {
        self.kept += bytes;
        self.kept >= self.limit
    }
}

/// Until it is over.
fn look(
    at: &'static Source,
    definition: &SourceDefinition,
    consumers: &Consumers,
    lines: &Waiting,
    aside: &mut Aside,
) -> End {
    let mut full = false;
    loop {
        heed_signals();
        write_lines(lines, &definition.name);
        let rejected = consumers.rejected();
        if let Some(last) = rejected.last().map(|one| one.serial) {
            let kept =
                write(|| rejected.iter().try_for_each(|one| records::keep_aside(&definition.name, one)));
            if let Err(error) = kept {
                return End::Failed(format!("could not keep aside what was no event: {error}"));
            }
            at.errors.fetch_add(rejected.len() as u64, Relaxed);
            if let Some(one) = rejected.last() {
                at.error.say(&format!(
                    "the message at offset {} of partition {} of topic \"{}\" {}",
                    one.place.offset, one.place.partition, one.place.topic, one.why
                ));
            }
            consumers.keep(last);
            let bytes = rejected.iter().map(|one| records::bytes_aside(one)).sum();
            if aside.is_full_with(bytes) && !full {
                // What has been taken already is still kept or passed on, so that it need not come again.
                consumers.take_no_more();
                full = true;
            }
            continue;
        }
        if full {
            return End::Again;
        }
        if let Some(trouble) = consumers.trouble() {
            at.error.say(&trouble);
        }
        let over = BackgroundWorker::sigterm_received()
            || at.stop.load(Acquire) == 1
            || at.definition.load(Acquire) != definition.digest
            || consumers.outcome().is_some();
        if over {
            return End::Told;
        }
        wait(TICK);
    }
}
