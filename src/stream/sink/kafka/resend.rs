//! What follows when a broker refuses a batch for its size. It refuses the batch as a whole, so that says nothing of any one event in it.
//! What waits is taken back from the library, what is on its way is waited for, and then everything from the first refused event of each
//! partition on is sent again: up to the last refused event one by one, where only what is too large itself is refused, then in batches
//! as ever. Events of such a partition that arrived behind the refused ones are sent again too: what counts for a key is what comes last.
//! The batches are smaller from then on when no event was too large itself. Engine's thread.
//!
//! While that goes on the sink is full.

use super::reports::{Again, Out};
use super::{Handed, Kafka, is_single, producer, refused};
use crate::stream::sink::Failure;
use rdkafka::producer::{Producer, PurgeConfig};
use std::collections::{HashMap, VecDeque};

/// Where it is.
#[derive(Default)]
pub struct Resend {
    /// What is to be sent again, in order.
    queue: VecDeque<Again>,
    /// Events up to this serial number go one by one; none in batches.
    singly: Option<Singly>,
}

struct Singly {
    until: u64,
    /// How many events had been left out before.
    skipped: u64,
    /// Bytes of events that were refused together, at most.
    refused: usize,
}

/// What was refused, and what must be sent again for its sake. Gathered while what is on its way comes to its end.
#[derive(Default)]
pub struct Refused {
    /// By topic and partition.
    partitions: HashMap<(String, i32), Partition>,
    /// The last event that was refused.
    last: u64,
    events: Vec<Again>,
}

#[derive(Default)]
struct Partition {
    /// The first event that did not arrive.
    first: u64,
    refused: usize,
}

impl Resend {
    /// What was on its way has come to its end, and not everything is with the library again.
    pub fn is_under_way(&self) -> bool {
        self.singly.is_some() || !self.queue.is_empty()
    }
}

impl Refused {
    /// An event that did not arrive: refused with its batch, or taken back.
    pub fn add(&mut self, partition: i32, event: Again, with_its_batch: bool) {
        let serial = event.out.serial;
        let key = (event.topic.clone(), partition);
        let partition = self.partitions.entry(key).or_insert_with(|| Partition { first: serial, refused: 0 });
        partition.first = partition.first.min(serial);
        if with_its_batch {
            partition.refused += event.payload.len() + event.key.as_ref().map_or(0, Vec::len);
            self.last = self.last.max(serial);
        }
        self.events.push(event);
    }

    /// An event that has arrived in a partition before one that it comes after.
    pub fn is_overtaken(&self, topic: &str, partition: i32, serial: u64) -> bool {
        self.partitions.iter().any(|((name, number), Partition { first, .. })| {
            name == topic && *number == partition && *first < serial
        })
    }

    /// Whether a batch was refused already.
    pub fn is_begun(&self) -> bool {
        self.last > 0
    }

    pub fn add_overtaken(&mut self, event: Again) {
        self.events.push(event);
    }

    fn most(&self) -> usize {
        self.partitions.values().map(|partition| partition.refused).max().unwrap_or(0)
    }
}

impl Kafka {
    /// Nothing new goes out before what is to be sent again.
    fn is_resending(&self) -> bool {
        self.resend.is_under_way() || self.reports.state().refused.is_some()
    }

    /// Does what is due. A producer is only ever replaced when nothing is out by it.
    pub(super) fn resend(&mut self) -> Result<(), Failure> {
        if !self.is_resending() {
            return Ok(());
        }
        let state = self.reports.state();
        let (inside, is_refused) = (state.inside, state.refused.is_some());
        drop(state);
        if is_refused {
            if inside > 0 {
                // What was on its way and is tried again is back in the queue.
                self.producer.purge(PurgeConfig::default().queue().non_blocking());
                return Ok(());
            }
            self.begin_again()?;
        }
        let until = self.resend.singly.as_ref().map_or(u64::MAX, |singly| singly.until);
        while let Some(event) = self.resend.queue.front().filter(|event| event.out.serial <= until) {
            let Again { out, topic, key, payload } = event;
            let out = Box::new(Out { table: out.table.clone(), ..**out });
            let (serial, bytes, table) = (out.serial, out.bytes, out.table.clone());
            match self.hand(out, topic, key.as_deref(), payload)? {
                Handed::Inside => {}
                Handed::Full => return Ok(()),
                Handed::Not(obstacle) => {
                    let mut state = self.reports.state();
                    state.bytes = state.bytes.saturating_sub(bytes);
                    drop(state);
                    self.reports.obstacle(serial, &table, topic, obstacle);
                }
            }
            self.resend.queue.pop_front();
        }
        if self.resend.singly.is_some() && self.reports.state().inside == 0 {
            self.end_singly()?;
        }
        Ok(())
    }

    fn begin_again(&mut self) -> Result<(), Failure> {
        let mut state = self.reports.state();
        let Some(refused) = state.refused.take() else { return Ok(()) };
        // What is under way already goes on with what it knows.
        let before = Singly { until: 0, skipped: state.skipped, refused: 0 };
        let Singly { until, skipped, refused: most } = self.resend.singly.take().unwrap_or(before);
        let singly = Singly { until: until.max(refused.last), skipped, refused: most.max(refused.most()) };
        // No event was refused, when something else ended the producer.
        self.resend.singly = Some(singly).filter(|singly| singly.until > 0);
        state.single = self.resend.singly.is_some() || is_single(&self.config);
        drop(state);
        let mut events = refused.events;
        events.extend(self.resend.queue.drain(..));
        events.sort_unstable_by_key(|event| event.out.serial);
        self.resend.queue = events.into();
        self.replace_producer()
    }

    fn end_singly(&mut self) -> Result<(), Failure> {
        let Some(Singly { skipped, refused, .. }) = self.resend.singly.take() else { return Ok(()) };
        let mut state = self.reports.state();
        state.single = is_single(&self.config);
        let none_was_too_large = state.skipped == skipped;
        drop(state);
        if none_was_too_large {
            self.batch_size = (self.batch_size.min(refused) / 2).max(1);
            self.config.set("batch.size", self.batch_size.to_string());
            self.reports.say(&format!(
                "a broker takes no batch of so many bytes; batches have {} bytes at most from now on (properties.batch.size)",
                self.batch_size
            ));
        }
        self.replace_producer()
    }

    fn replace_producer(&mut self) -> Result<(), Failure> {
        self.producer = producer(&self.config, &self.reports).map_err(|error| refused(&error))?;
        Ok(())
    }
}
