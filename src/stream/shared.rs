//! The streams' words in shared memory: sources with their workers, and the streams that they feed. All-zero bytes are a valid, empty
//! table. What a source and its streams are called is written by the scout of its database (one at a time in the server); what its worker
//! does, by that worker; whether there is one, by the launcher.

use super::clock::now;
use super::timings::Timings;
use crate::bridge::Name;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use std::time::Duration;

/// Databases whose definitions are to be looked at, at once; beyond it all databases are looked at.
pub const SCANS: usize = 64;

/// For so long something counts as refused that was refused.
pub const REFUSED: Duration = Duration::from_mins(1);

/// Bytes of an error that are shown.
const TEXT: usize = 512;

/// A text that may be read while it is written: then it is torn, and shown again right the next time.
#[repr(C)]
pub struct Text {
    length: AtomicU32,
    bytes: [AtomicU8; TEXT],
}

impl Default for Text {
    fn default() -> Self {
        Self { length: AtomicU32::new(0), bytes: std::array::from_fn(|_| AtomicU8::new(0)) }
    }
}

impl Text {
    /// Cuts what is longer, between two characters.
    pub fn set(&self, text: &str) {
        let end = (0..=text.len().min(TEXT)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        self.length.store(0, Release);
        for (word, byte) in self.bytes.iter().zip(&text.as_bytes()[..end]) {
            word.store(*byte, Relaxed);
        }
        self.length.store(end as u32, Release);
    }

    /// Nothing when it is empty.
    pub fn get(&self) -> Option<String> {
        let length = (self.length.load(Acquire) as usize).min(TEXT);
        let bytes: Vec<_> = self.bytes[..length].iter().map(|word| word.load(Relaxed)).collect();
        (length > 0).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The parts that do not depend on a setting.
#[repr(C)]
pub struct Header {
    /// The launcher's process id, and its number in the server's table of processes; 0 when there is none.
    pub launcher: AtomicI32,
    pub proc: AtomicI32,
    /// OIDs of databases whose definitions have changed; 0 is free.
    pub scans: [AtomicU32; SCANS],
    /// 1: look at every database.
    pub scan_all: AtomicU32,
    /// 1: the postmaster had no place for the launcher.
    pub no_worker_slot: AtomicU32,
    /// Sources and streams that found no place in the tables below, each time that it was looked for, and when one did last: microseconds
    /// since 1970.
    pub refused: AtomicU64,
    pub refused_at: AtomicI64,
    /// 1: every worker logs each event that it hands over. Written on the port of `postern.stream_listen`.
    pub debug: AtomicU32,
    /// Lines of workers' threads for the log that found the queue full.
    pub lines_dropped: AtomicU64,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            launcher: AtomicI32::new(0),
            proc: AtomicI32::new(0),
            scans: std::array::from_fn(|_| AtomicU32::new(0)),
            scan_all: AtomicU32::new(0),
            no_worker_slot: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            refused_at: AtomicI64::new(0),
            debug: AtomicU32::new(0),
            lines_dropped: AtomicU64::new(0),
        }
    }
}

impl Header {
    /// The definitions of this database are to be looked at.
    pub fn ask_for_scan(&self, database: u32) {
        let taken = self.scans.iter().any(|word| {
            word.load(Acquire) == database || word.compare_exchange(0, database, AcqRel, Acquire).is_ok()
        });
        if !taken {
            self.scan_all.store(1, Release);
        }
    }

    /// A source or stream has found no place. While that lasts it is looked for again at least every [`REFUSED`].
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
        self.refused_at.store(now(), Relaxed);
    }

    /// One finds no place at the moment.
    pub fn is_refusing(&self) -> bool {
        now().saturating_sub(self.refused_at.load(Relaxed))
            < i64::try_from(REFUSED.as_micros()).unwrap_or(i64::MAX)
    }

    /// The next database that somebody asked for.
    pub fn next_scan(&self) -> Option<u32> {
        self.scans.iter().map(|word| word.swap(0, AcqRel)).find(|database| *database != 0)
    }
}

/// What a source does, or why it does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SourceState {
    Free = 0,
    /// None of its streams is to run.
    Stopped = 1,
    /// It is to run and has no worker yet.
    Waiting = 2,
    /// Its worker prepares itself; making a slot waits for transactions that are running.
    Starting = 3,
    Snapshot = 4,
    Streaming = 5,
    /// Its worker has ended with an error and will be started again.
    Failed = 6,
    /// Trying again would not help: it waits for the operator.
    Blocked = 7,
    /// It is no longer defined, and its worker or its slot is still to go.
    Dropped = 8,
}

impl SourceState {
    /// Those of a place that is in use.
    pub const ALL: [Self; 8] = [
        Self::Stopped,
        Self::Waiting,
        Self::Starting,
        Self::Snapshot,
        Self::Streaming,
        Self::Failed,
        Self::Blocked,
        Self::Dropped,
    ];

    fn of(number: u32) -> Self {
        match number {
            1 => Self::Stopped,
            2 => Self::Waiting,
            3 => Self::Starting,
            4 => Self::Snapshot,
            5 => Self::Streaming,
            6 => Self::Failed,
            7 => Self::Blocked,
            8 => Self::Dropped,
            _ => Self::Free,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Snapshot => "snapshot",
            Self::Streaming => "streaming",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
            Self::Dropped => "dropped",
        }
    }
}

/// A source.
#[repr(C)]
#[derive(Default)]
pub struct Source {
    /// [`SourceState`].
    state: AtomicU32,
    /// OID.
    pub database: AtomicU32,
    pub database_name: Name,
    pub name: Name,
    pub kind: Name,
    /// The replication slot; empty when it has none.
    pub slot: Name,
    /// 1: Postern has made the slot and drops it with the source.
    pub owns_slot: AtomicU32,
    /// Its worker's process id, and its number in the server's table of processes; 0 when there is none.
    pub pid: AtomicI32,
    pub proc: AtomicI32,
    /// Counts its workers: only the one with this number is its worker.
    pub turn: AtomicU32,
    /// A digest of its definition and its streams'; a worker that began with another one ends.
    pub definition: AtomicU64,
    /// 1: the worker is to end.
    pub stop: AtomicU32,
    /// When the worker began, and when it may be started again: microseconds since 1970.
    pub since: AtomicI64,
    pub retry_at: AtomicI64,
    /// Milliseconds from an end with an error to the next start.
    pub retry_interval: AtomicU32,
    pub starts: AtomicU64,
    /// Ends with an error, and what was said without an end: changes without a publication, too much WAL, messages that were no events.
    pub errors: AtomicU64,
    /// Its events: from when one is made to when all sinks have taken it.
    pub timings: Timings,
    /// How far the WAL has been decoded, and what the slot has confirmed.
    pub received: AtomicU64,
    pub confirmed: AtomicU64,
    /// Bytes of decoded changes that wait in memory, the most that there ever were.
    pub buffered: AtomicU64,
    pub buffered_most: AtomicU64,
    /// What went wrong last, and when.
    pub error: Text,
    pub error_at: AtomicI64,
    /// When the log said last that too much WAL is kept: microseconds since 1970; 0 when there is not too much.
    pub warned_at: AtomicI64,
    /// A gap in what was delivered, in words, for ever.
    pub gap: Text,
}

impl Source {
    pub fn state(&self) -> SourceState {
        SourceState::of(self.state.load(Acquire))
    }

    pub fn set_state(&self, state: SourceState) {
        self.state.store(state as u32, Release);
    }

    /// What has gone wrong, and when: now. Nothing: all is well again.
    pub fn say(&self, error: &str) {
        self.error.set(error);
        self.error_at.store(if error.is_empty() { 0 } else { now() }, Relaxed);
    }
}

/// What a stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum StreamState {
    Free = 0,
    Stopped = 1,
    Paused = 2,
    /// To run, but its source does not.
    Waiting = 3,
    Running = 4,
    /// The sink is in trouble and tries again by itself.
    Trouble = 5,
    /// The sink has given up and is made again.
    Failed = 6,
    /// As failed, but it waits for the operator.
    Blocked = 7,
}

impl StreamState {
    /// Those of a place that is in use.
    pub const ALL: [Self; 7] = [
        Self::Stopped,
        Self::Paused,
        Self::Waiting,
        Self::Running,
        Self::Trouble,
        Self::Failed,
        Self::Blocked,
    ];

    fn of(number: u32) -> Self {
        match number {
            1 => Self::Stopped,
            2 => Self::Paused,
            3 => Self::Waiting,
            4 => Self::Running,
            5 => Self::Trouble,
            6 => Self::Failed,
            7 => Self::Blocked,
            _ => Self::Free,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Trouble => "retrying",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
        }
    }
}

/// A stream: a source that feeds a sink. Counts are since the server's start.
#[repr(C)]
#[derive(Default)]
pub struct Stream {
    /// [`StreamState`].
    state: AtomicU32,
    /// Number of its source, plus one.
    source: AtomicU32,
    pub name: Name,
    pub sink: Name,
    pub sink_kind: Name,
    pub events: AtomicU64,
    pub bytes: AtomicU64,
    pub skipped: AtomicU64,
    pub errors: AtomicU64,
    /// Failures of its sink since that last delivered anything.
    pub failures: AtomicU32,
    /// How long it took to hand its events over, waiting for room in the sink included.
    pub timings: Timings,
    /// Of the last delivered event: end of its transaction's commit record, number in the transaction.
    pub commit: AtomicU64,
    pub ordinal: AtomicU64,
    /// Everything that was committed before this has been delivered.
    pub delivered: AtomicU64,
    /// When the oldest transaction was committed that is not delivered: microseconds since 1970; 0 when there is none.
    pub behind_since: AtomicI64,
    /// When an event was delivered last: microseconds since 1970.
    pub delivered_at: AtomicI64,
    pub error: Text,
    pub error_at: AtomicI64,
}

impl Stream {
    pub fn state(&self) -> StreamState {
        StreamState::of(self.state.load(Acquire))
    }

    pub fn set_state(&self, state: StreamState) {
        self.state.store(state as u32, Release);
    }

    /// What has gone wrong, and when: now. Nothing: all is well again.
    pub fn say(&self, error: &str) {
        self.error.set(error);
        self.error_at.store(if error.is_empty() { 0 } else { now() }, Relaxed);
    }

    pub fn source(&self) -> Option<usize> {
        self.source.load(Acquire).checked_sub(1).map(|number| number as usize)
    }

    pub fn set_source(&self, source: usize) {
        self.source.store(source as u32 + 1, Release);
    }

    pub fn free(&self) {
        self.set_state(StreamState::Free);
        self.source.store(0, Release);
    }

    /// Makes a used place as good as new.
    pub fn clear(&self) {
        for count in [
            &self.events,
            &self.bytes,
            &self.skipped,
            &self.errors,
            &self.commit,
            &self.ordinal,
            &self.delivered,
        ] {
            count.store(0, Relaxed);
        }
        for time in [&self.behind_since, &self.delivered_at] {
            time.store(0, Relaxed);
        }
        self.timings.clear();
        self.failures.store(0, Relaxed);
        self.say("");
    }
}

/// The tables.
#[derive(Clone, Copy)]
pub struct Shared {
    pub header: &'static Header,
    pub sources: &'static [Source],
    pub streams: &'static [Stream],
}

impl Shared {
    /// Sources that are defined, with their numbers.
    pub fn sources_in_use(self) -> impl Iterator<Item = (usize, &'static Source)> {
        self.sources.iter().enumerate().filter(|(_, source)| source.state() != SourceState::Free)
    }

    pub fn streams_of(self, source: usize) -> impl Iterator<Item = &'static Stream> {
        self.streams
            .iter()
            .filter(move |stream| stream.source() == Some(source) && stream.state() != StreamState::Free)
    }

    pub fn stream(self, source: usize, name: &[u8]) -> Option<&'static Stream> {
        self.streams_of(source).find(|stream| stream.name.is(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let text = Text::default();
        text.set(&"ü".repeat(400));
        assert_eq!(text.get().unwrap(), "ü".repeat(256));
        text.set("");
        assert_eq!(text.get(), None);
    }

    #[test]
    fn an_error_that_is_over_leaves_no_time() {
        let (source, stream) = (Source::default(), Stream::default());
        source.say("no");
        stream.say("no");
        assert!(source.error_at.load(Relaxed) > 0 && stream.error_at.load(Relaxed) > 0);
        source.say("");
        stream.say("");
        assert_eq!((source.error.get(), source.error_at.load(Relaxed)), (None, 0));
        assert_eq!((stream.error.get(), stream.error_at.load(Relaxed)), (None, 0));
    }

    #[test]
    fn scans_beyond_the_table_are_scans_of_all() {
        let header = Header::default();
        for database in 1..=SCANS as u32 {
            header.ask_for_scan(database);
            header.ask_for_scan(database);
        }
        assert_eq!(header.scan_all.load(Relaxed), 0);
        header.ask_for_scan(1000);
        assert_eq!(header.scan_all.load(Relaxed), 1);
        let mut found: Vec<_> = std::iter::from_fn(|| header.next_scan()).collect();
        found.sort_unstable();
        assert_eq!(found, (1..=SCANS as u32).collect::<Vec<_>>());
    }
}
