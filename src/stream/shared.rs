//! The streams' words in shared memory: sources with their workers, and the streams that they feed. All-zero bytes are a valid, empty
//! table. What a source and its streams are called is written by the scout of its database (one at a time in the server); what its worker
//! does, by that worker; whether there is one, by the launcher.

mod source;
mod stream;
mod text;

pub use self::source::{Source, SourceState};
pub use self::stream::{Stream, StreamState};
pub use self::text::{Mishap, Text};
use super::clock::now;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::*};
use std::time::Duration;

/// Databases whose definitions are to be looked at, at once; beyond it all databases are looked at.
pub const SCANS: usize = 64;

/// For so long something counts as refused that was refused.
pub const REFUSED: Duration = Duration::from_mins(1);

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
    /// 1: the launcher finds no place for a scout, and hears of no definition.
    pub no_scout_slot: AtomicU32,
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
            no_scout_slot: AtomicU32::new(0),
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
