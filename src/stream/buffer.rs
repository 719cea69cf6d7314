//! Decoded changes on their way from the PostgreSQL thread, which decodes (main), to the engine's thread: chunks of records, bounded in
//! bytes. Main never waits in here; where there is no room it waits on its latch, and is woken when there is.

use super::position::Lsn;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::Duration;

/// Main hands over a chunk when it has so many bytes, or when there is nothing more to decode.
pub const CHUNK: usize = 128 * 1024;

/// Chunks that are kept to be used again.
const SPARE: usize = 4;

/// One decoded thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// What follows belongs to this transaction. Its commit time is in microseconds since 2000; a transaction id of 0 is that of a
    /// logical message outside a transaction.
    Transaction { commit_end: Lsn, commit_time: i64, xid: u32 },
    /// A message of pgoutput, and the position of the change itself.
    Message { lsn: Lsn, data: &'a [u8] },
    /// A type that is not built in: a domain over `same`, or an array of `element`, or neither.
    Type { oid: u32, same: u32, element: u32, delimiter: u8 },
    /// The columns of a table's primary key, each name with a zero byte after it; of a table that was described just now, when its
    /// replica identity is FULL, which says nothing of it.
    Key { relation: u32, names: &'a [u8] },
    /// A transaction has been decoded to its end, whether or not it had anything for us.
    Commit { commit_end: Lsn },
    /// Everything that was committed before this has been decoded.
    Progress { lsn: Lsn },
    /// What follows, up to a commit, are rows of a table that were there before the stream: they come to everybody, and no position moves.
    /// `lsn` is that of their snapshot.
    Snapshot { lsn: Lsn },
    /// Changes of this table that were committed up to here are in its snapshot already.
    Floor { relation: u32, lsn: Lsn },
}

/// Main's side: puts records together.
#[derive(Debug, Default)]
pub struct Chunk(Vec<u8>);

impl Chunk {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn push(&mut self, record: &Record<'_>) {
        let out = &mut self.0;
        match record {
            Record::Transaction { commit_end, commit_time, xid } => {
                out.push(b'T');
                out.extend_from_slice(&commit_end.0.to_ne_bytes());
                out.extend_from_slice(&commit_time.to_ne_bytes());
                out.extend_from_slice(&xid.to_ne_bytes());
            }
            Record::Message { lsn, data } => {
                out.push(b'M');
                out.extend_from_slice(&lsn.0.to_ne_bytes());
                out.extend_from_slice(&(data.len() as u64).to_ne_bytes());
                out.extend_from_slice(data);
            }
            Record::Type { oid, same, element, delimiter } => {
                out.push(b'Y');
                out.extend_from_slice(&oid.to_ne_bytes());
                out.extend_from_slice(&same.to_ne_bytes());
                out.extend_from_slice(&element.to_ne_bytes());
                out.push(*delimiter);
            }
            Record::Key { relation, names } => {
                out.push(b'K');
                out.extend_from_slice(&relation.to_ne_bytes());
                out.extend_from_slice(&(names.len() as u64).to_ne_bytes());
                out.extend_from_slice(names);
            }
            Record::Commit { commit_end } => {
                out.push(b'C');
                out.extend_from_slice(&commit_end.0.to_ne_bytes());
            }
            Record::Progress { lsn } => {
                out.push(b'P');
                out.extend_from_slice(&lsn.0.to_ne_bytes());
            }
            Record::Snapshot { lsn } => {
                out.push(b'S');
                out.extend_from_slice(&lsn.0.to_ne_bytes());
            }
            Record::Floor { relation, lsn } => {
                out.push(b'F');
                out.extend_from_slice(&relation.to_ne_bytes());
                out.extend_from_slice(&lsn.0.to_ne_bytes());
            }
        }
    }

    /// What is in it, in order.
    pub fn records(&self) -> Records<'_> {
        Records(&self.0)
    }
}

/// See [`Chunk::records`].
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn lsn(&mut self) -> Option<Lsn> {
        Some(Lsn(u64::from_ne_bytes(self.take()?)))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(u64::from_ne_bytes(self.take()?)).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let [kind] = self.take()?;
        Some(match kind {
            b'T' => Record::Transaction {
                commit_end: self.lsn()?,
                commit_time: i64::from_ne_bytes(self.take()?),
                xid: u32::from_ne_bytes(self.take()?),
            },
            b'M' => {
                let lsn = self.lsn()?;
                Record::Message { lsn, data: self.bytes()? }
            }
            b'Y' => {
                let oid = u32::from_ne_bytes(self.take()?);
                let same = u32::from_ne_bytes(self.take()?);
                let element = u32::from_ne_bytes(self.take()?);
                let [delimiter] = self.take()?;
                Record::Type { oid, same, element, delimiter }
            }
            b'K' => {
                let relation = u32::from_ne_bytes(self.take()?);
                Record::Key { relation, names: self.bytes()? }
            }
            b'C' => Record::Commit { commit_end: self.lsn()? },
            b'P' => Record::Progress { lsn: self.lsn()? },
            b'S' => Record::Snapshot { lsn: self.lsn()? },
            b'F' => Record::Floor { relation: u32::from_ne_bytes(self.take()?), lsn: self.lsn()? },
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Chunk>,
    /// Of the chunks here and of the one that the engine works on.
    bytes: usize,
    spare: Vec<Chunk>,
}

/// The queue between the two threads.
pub struct Buffer {
    waiting: Mutex<Waiting>,
    news: Condvar,
    /// Bytes; one chunk is taken however large it is, when there is nothing else.
    limit: usize,
    /// Main waits for room.
    wants_room: AtomicBool,
    most: AtomicU64,
}

impl Buffer {
    pub fn new(limit: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            news: Condvar::new(),
            limit,
            wants_room: AtomicBool::new(false),
            most: AtomicU64::new(0),
        }
    }

    /// Main's: hands a chunk over and leaves an empty one in its place; false when there is no room, and then main is woken by
    /// [`Buffer::done`] when there is.
    pub fn push(&self, chunk: &mut Chunk) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.bytes > 0 && waiting.bytes + chunk.len() > self.limit {
            self.wants_room.store(true, Release);
            return false;
        }
        waiting.bytes += chunk.len();
        self.most.fetch_max(waiting.bytes as u64, Relaxed);
        let empty = waiting.spare.pop().unwrap_or_default();
        waiting.chunks.push_back(std::mem::replace(chunk, empty));
        drop(waiting);
        self.news.notify_one();
        true
    }

    /// The engine's: the next chunk, which it gives back by [`Buffer::done`]; nothing when there is none for so long.
    pub fn next(&self, patience: Duration) -> Option<Chunk> {
        let mut waiting = self.waiting.lock();
        if waiting.chunks.is_empty() && !patience.is_zero() {
            let _ = self.news.wait_for(&mut waiting, patience);
        }
        waiting.chunks.pop_front()
    }

    /// The engine's: a chunk has been worked on. Whether main waits for room and is to be woken.
    pub fn done(&self, mut chunk: Chunk) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.bytes -= chunk.len();
        if waiting.spare.len() < SPARE && chunk.0.capacity() <= 2 * CHUNK {
            chunk.0.clear();
            waiting.spare.push(chunk);
        }
        drop(waiting);
        self.wants_room.load(Relaxed) && self.wants_room.swap(false, AcqRel)
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().chunks.is_empty()
    }

    /// Wakes the engine without a chunk.
    pub fn rouse(&self) {
        self.news.notify_one();
    }

    /// Bytes now, and the most that there ever were.
    pub fn bytes(&self) -> (u64, u64) {
        (self.waiting.lock().bytes as u64, self.most.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_comes_out_as_it_went_in() {
        let records = [
            Record::Transaction { commit_end: Lsn(1 << 40), commit_time: -5, xid: 7 },
            Record::Message { lsn: Lsn(9), data: b"" },
            Record::Message { lsn: Lsn(10), data: b"hello" },
            Record::Type { oid: 1, same: 2, element: 3, delimiter: b';' },
            Record::Key { relation: 4, names: b"a\0b\0" },
            Record::Commit { commit_end: Lsn(11) },
            Record::Progress { lsn: Lsn(u64::MAX) },
            Record::Snapshot { lsn: Lsn(12) },
            Record::Floor { relation: 16384, lsn: Lsn(13) },
        ];
        let mut chunk = Chunk::default();
        records.iter().for_each(|record| chunk.push(record));
        assert_eq!(chunk.records().collect::<Vec<_>>(), records);
    }

    #[test]
    fn it_holds_what_it_may_and_one_chunk_of_any_size() {
        let buffer = Buffer::new(100);
        let chunk = |size: usize| {
            let mut chunk = Chunk::default();
            chunk.push(&Record::Message { lsn: Lsn(1), data: &vec![0; size - 17] });
            chunk
        };
        assert!(buffer.push(&mut chunk(1000)), "alone");
        assert!(!buffer.push(&mut chunk(20)));
        let large = buffer.next(Duration::ZERO).unwrap();
        assert!(!buffer.push(&mut chunk(20)), "until the engine has worked on it");
        assert!(buffer.done(large), "main is to be woken");
        assert!(buffer.push(&mut chunk(60)) && buffer.push(&mut chunk(40)));
        assert!(!buffer.push(&mut chunk(20)));
        assert_eq!(buffer.bytes(), (100, 1000));
        let first = buffer.next(Duration::ZERO).unwrap();
        assert!(buffer.done(first) && buffer.push(&mut chunk(20)));
        let second = buffer.next(Duration::ZERO).unwrap();
        assert!(!buffer.done(second), "nobody waits");
        assert!(buffer.next(Duration::ZERO).is_some() && buffer.next(Duration::from_millis(1)).is_none());
    }
}
