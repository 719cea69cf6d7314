//! The engine of a source: takes decoded changes out of the buffer, makes events of them, gives them to the sinks of all its streams, and
//! knows what has been delivered, which is what the slot may confirm. One thread; main reads what it publishes.

mod arrears;
pub mod consumer;
mod feed;
mod feeds;
#[cfg(test)]
mod held;
mod marks;
mod report;
mod watch;

pub use feed::{From, Make};
pub use report::{Outcome, Report, Shared, StreamReport};
pub use watch::Watch;

use super::buffer::{Chunk, Record};
use super::clock::{EPOCH, now};
use super::error::Error;
use super::event::{Encoded, Encoder, Transaction};
use super::pgoutput::Message;
use super::position::{Lsn, Position};
use super::relation::{Relation, Relations};
use super::sink::Event;
use super::types::{Described, Types};
use feed::Feed;
use feeds::Feeds;
use marks::Marks;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long the engine waits for a chunk when nothing is out, and for news of what is out when there is no chunk.
const IDLE: Duration = Duration::from_millis(200);
const NEWS: Duration = Duration::from_millis(5);

/// How long a sink may hold up the others before they go on without it.
const HOLD_UP: Duration = Duration::from_secs(5);

/// See the file.
pub struct Engine {
    shared: Arc<Shared>,
    encoder: Encoder,
    relations: Relations,
    types: Types,
    feeds: Feeds,
    marks: Marks,
    encoded: Encoded,
    transaction: Option<Open>,
    /// By table, up to where its snapshot goes.
    floors: HashMap<u32, Lsn>,
    /// The last serial number that was used.
    serial: u64,
}

/// The transaction that is being replayed.
struct Open {
    told: Transaction,
    /// The serial number of its beginning; its n-th change has this number plus n.
    base: u64,
    ordinal: u64,
    /// Rows of a snapshot: everybody wants them.
    snapshot: bool,
    /// Nothing was made of it, and nobody was missing who might want it: it needs no mark.
    void: bool,
}

impl Engine {
    /// `begins`: everything that was committed before this is delivered already. `arrears`: bytes of events that may be kept for sinks that
    /// have failed.
    pub fn new(
        shared: Arc<Shared>,
        encoder: Encoder,
        streams: Vec<From>,
        begins: Lsn,
        arrears: usize,
    ) -> Self {
        Self {
            shared,
            encoder,
            relations: Relations::default(),
            types: Types::default(),
            feeds: Feeds::new(streams, arrears),
            marks: Marks::new(begins),
            encoded: Encoded::default(),
            transaction: None,
            floors: HashMap::new(),
            serial: 0,
        }
    }

    /// Runs until it is stopped or cannot go on.
    pub fn run(mut self) {
        let outcome = feeds::outcome(|| {
            let outcome = self.feed();
            self.feeds.settle();
            self.publish();
            outcome
        });
        if let Some(outcome) = outcome {
            self.shared.report.lock().outcome = Some(outcome);
            (self.shared.wake)();
        }
    }

    fn feed(&mut self) -> Option<Outcome> {
        while !self.shared.stops() {
            let patience = if self.feeds.are_out() { Duration::ZERO } else { IDLE };
            match self.shared.buffer.next(patience) {
                Some(chunk) => {
                    let worked = self.work(&chunk);
                    if self.shared.buffer.done(chunk) {
                        (self.shared.wake)();
                    }
                    if let Err(error) = worked {
                        return Some(Outcome::Broken(error.to_string()));
                    }
                    if self.shared.buffer.is_empty() {
                        self.feeds.flush();
                    }
                    self.feeds.poll(Duration::ZERO);
                }
                None => self.feeds.poll(NEWS),
            }
            if self.feeds.want_again() {
                return Some(Outcome::Again);
            }
            self.publish();
        }
        None
    }

    fn work(&mut self, chunk: &Chunk) -> Result<(), Error> {
        for record in chunk.records() {
            match record {
                Record::Transaction { commit_end, commit_time, xid } => {
                    // A logical message outside a transaction has no number of one, and no time: it was read just now.
                    let commit_time_micros = (xid != 0).then_some(commit_time);
                    let commit_time = commit_time_micros.unwrap_or_else(|| now() - EPOCH);
                    let told = Transaction { xid, commit_end, commit_time_micros };
                    let base = self.serial + 1;
                    self.transaction = Some(Open { told, base, ordinal: 0, snapshot: false, void: true });
                    self.marks.begin(self.serial + 1, commit_end, commit_time);
                }
                Record::Snapshot { lsn } => {
                    let told = Transaction { xid: 0, commit_end: lsn, commit_time_micros: None };
                    let base = self.serial + 1;
                    self.transaction = Some(Open { told, base, ordinal: 0, snapshot: true, void: false });
                    self.marks.begin_snapshot(self.serial + 1, now() - EPOCH);
                }
                Record::Floor { relation, lsn } => {
                    self.floors.insert(relation, lsn);
                }
                Record::Type { oid, same, element, delimiter } => {
                    let described = match (same, element) {
                        (0, 0) => Described::Text,
                        (0, element) => Described::Array { element, delimiter },
                        (same, _) => Described::Same(same),
                    };
                    self.types.learn(oid, described);
                }
                Record::Key { relation, names } => self.relations.give_key(relation, names),
                Record::Message { lsn, data } => self.message(lsn, data)?,
                Record::Commit { commit_end } => self.commit(commit_end),
                Record::Progress { lsn } => self.marks.reach(lsn),
            }
            if self.shared.stops() {
                break;
            }
        }
        Ok(())
    }

    fn message(&mut self, lsn: Lsn, data: &[u8]) -> Result<(), Error> {
        let message = Message::parse(data)?;
        match &message {
            Message::Relation(described) => {
                self.relations.insert(Relation::new(described, &self.types));
                Ok(())
            }
            Message::Type { .. } | Message::Origin { .. } => Ok(()),
            // Its number is 0, that of the end one more than the last change's; both events are an option.
            Message::Begin { .. } => self.event(&message, None, lsn, 0),
            Message::Commit { .. } => {
                let ordinal = self.transaction.as_ref().map_or(0, |open| open.ordinal + 1);
                self.event(&message, None, lsn, ordinal)
            }
            Message::Message { .. } => {
                let ordinal = self.next();
                self.event(&message, None, lsn, ordinal)
            }
            Message::Insert { relation, .. }
            | Message::Update { relation, .. }
            | Message::Delete { relation, .. } => {
                let ordinal = self.next();
                self.event(&message, Some(*relation), lsn, ordinal)
            }
            Message::Truncate { relations, .. } => {
                for relation in relations.iter() {
                    let ordinal = self.next();
                    self.event(&message, Some(relation), lsn, ordinal)?;
                    // Who did not take this one must not be given the next.
                    if self.shared.stops() {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    fn next(&mut self) -> u64 {
        match &mut self.transaction {
            Some(open) => {
                open.ordinal += 1;
                open.ordinal
            }
            None => 0,
        }
    }

    fn event(
        &mut self,
        message: &Message<'_>,
        relation: Option<u32>,
        lsn: Lsn,
        ordinal: u64,
    ) -> Result<(), Error> {
        let Some(open) = &mut self.transaction else { return Ok(()) };
        let serial = open.base + ordinal;
        let position = Position { commit: open.told.commit_end, ordinal };
        let snapshot = open.snapshot;
        let wants = |feed: &Feed| feed.wants(position, snapshot);
        if !self.feeds.iter().any(wants) {
            // Who is behind may want it, and is not asked.
            open.void = false;
            return Ok(());
        }
        if !snapshot
            && let Some(floor) = relation.and_then(|oid| self.floors.get(&oid))
            && position.commit <= *floor
        {
            return Ok(());
        }
        let relation = match relation {
            Some(oid) => Some(self.relations.find(oid).ok_or(Error::UnknownRelation(oid))?),
            None => None,
        };
        let written = self.encoder.encode(
            message,
            relation,
            lsn,
            &open.told,
            ordinal,
            SystemTime::now(),
            &mut self.encoded,
        )?;
        if !written {
            return Ok(());
        }
        open.void = false;
        let event = Event {
            serial,
            schema: relation.map_or("", |relation| &relation.schema),
            table: relation.map_or("", |relation| &relation.table),
            key: self.encoded.has_key.then_some(&self.encoded.key[..]),
            payload: &self.encoded.payload,
        };
        while !self.feeds.arrears.is_cut() && !self.feeds.arrears.has_room(&event) {
            self.feeds.poll(Duration::ZERO);
            Self::publish_of(&self.shared, &mut self.marks, &mut self.feeds, self.serial);
            // Who is well goes on without those that have failed; when nobody is, it is decoding that waits.
            if self.feeds.iter().any(Feed::is_fed) || !self.feeds.iter().any(Feed::is_owed) {
                break;
            }
            if self.shared.stops() {
                return Ok(());
            }
            std::thread::sleep(NEWS);
        }
        self.feeds.arrears.keep(&event, position, snapshot);
        let fed = |feeds: &[Feed]| feeds.iter().filter(|feed| feed.is_fed()).count();
        let mut handled = Duration::ZERO;
        for index in 0..self.feeds.len() {
            // Who has caught up meanwhile has had it of what was kept.
            if !wants(&self.feeds[index])
                || !self.feeds[index].is_fed()
                || self.feeds[index].given() >= serial
            {
                continue;
            }
            let begun = Instant::now();
            while !self.feeds[index].give(&event) {
                if self.shared.stops() {
                    return Ok(());
                }
                self.feeds.poll_one(index, NEWS);
                if begun.elapsed() >= HOLD_UP && fed(&self.feeds) > 1 {
                    self.feeds[index].leave_behind(&self.marks);
                }
                let mut another_is_well = false;
                for other in (0..self.feeds.len()).filter(|other| *other != index) {
                    self.feeds.poll_one(other, Duration::ZERO);
                    another_is_well |= self.feeds[other].wants_again();
                }
                // It does not wait for this one: the worker begins anew, with both.
                if another_is_well && begun.elapsed() >= HOLD_UP {
                    self.feeds[index].leave_behind(&self.marks);
                }
                Self::publish_of(&self.shared, &mut self.marks, &mut self.feeds, self.serial);
            }
            if let Some(watch) = self.shared.watch.as_ref().filter(|_| self.feeds[index].is_fed()) {
                let time = begun.elapsed();
                watch.given(self.feeds[index].shown(), Some(position), &event, time);
                handled += time;
            }
        }
        if let Some(watch) = &self.shared.watch {
            watch.done(handled);
        }
        Ok(())
    }

    fn commit(&mut self, commit_end: Lsn) {
        match self.transaction.take() {
            Some(open) if open.void => {
                self.marks.withdraw();
                self.marks.reach(commit_end);
            }
            Some(open) => {
                self.serial = open.base + open.ordinal + 1;
                self.marks.end(self.serial);
            }
            // Nothing of it was for us.
            None => self.marks.reach(commit_end),
        }
    }

    fn publish(&mut self) {
        Self::publish_of(&self.shared, &mut self.marks, &mut self.feeds, self.serial);
    }

    /// Writes down how far the streams are, and wakes main when that is further than before.
    fn publish_of(shared: &Shared, marks: &mut Marks, feeds: &mut Feeds, serial: u64) {
        feeds.reach(serial, marks);
        let streams: Vec<_> = feeds.iter_mut().map(|feed| feed.report(marks, serial)).collect();
        let least = feeds.iter().map(|feed| feed.delivered(serial)).min().unwrap_or(serial);
        marks.forget(least);
        let delivered = streams.iter().map(|stream| stream.delivered).min().unwrap_or(marks.reached());
        let mut report = shared.report.lock();
        let news = report.delivered != delivered
            || report.streams != streams
            || report.snapshots != marks.snapshots();
        report.delivered = delivered;
        report.snapshots = marks.snapshots();
        report.lost_one = feeds.iter().any(Feed::is_lost);
        report.streams = streams;
        report.has.clear();
        report.has.extend(feeds.iter().map(Feed::has));
        drop(report);
        if news {
            (shared.wake)();
        }
    }
}

#[cfg(test)]
mod tests;
