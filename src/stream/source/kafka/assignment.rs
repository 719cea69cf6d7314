//! Which partitions this member of the group has, which of their messages are out, and up to where they may be committed. The library's
//! callbacks run inside `poll` of the consumer, so on the engine's thread; the lock is there because the library asks for `Sync`.

use crate::stream::broker;
use crate::stream::source::{Log, Place};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// The consumer's context.
pub struct Rebalances {
    assignment: Mutex<Assignment>,
    stream: String,
    log: Log,
}

/// What is ours at the moment.
#[derive(Default)]
pub struct Assignment {
    /// Partitions of which something has come since they were assigned, by topic and number.
    partitions: HashMap<Arc<str>, HashMap<i32, Partition>>,
    /// What was handed out and is not acknowledged, in order.
    out: VecDeque<Out>,
    /// Rises with each partition that is remembered, so that one that has gone and come back is another.
    tenure: u64,
    trouble: Option<Trouble>,
    /// Commits that are not answered yet.
    commits: usize,
    /// The group is being left, and everything that was to be committed has been.
    closed: bool,
}

struct Partition {
    tenure: u64,
    /// The offset that would be read next if all before it is done.
    next: Option<i64>,
    /// Whether `next` has risen since it was committed.
    risen: bool,
}

struct Out {
    serial: u64,
    place: Place,
    tenure: u64,
}

struct Trouble {
    text: String,
    since: Instant,
    /// The library says it once and not again while it lasts.
    once: bool,
}

impl Assignment {
    /// A message is handed out.
    pub fn out(&mut self, serial: u64, place: &Place) {
        let topic = self.partitions.entry(place.topic.clone()).or_default();
        let partition = topic.entry(place.partition).or_insert_with(|| {
            self.tenure += 1;
            Partition { tenure: self.tenure, next: None, risen: false }
        });
        let tenure = partition.tenure;
        self.out.push_back(Out { serial, place: place.clone(), tenure });
        self.trouble = None;
    }

    /// All up to this number are where they should be. Those of partitions that have gone since are nobody's any more.
    pub fn acknowledge(&mut self, serial: u64) {
        while self.out.front().is_some_and(|out| out.serial <= serial)
            && let Some(Out { place, tenure, .. }) = self.out.pop_front()
        {
            let partition = self.partitions.get_mut(&place.topic);
            let partition = partition.and_then(|topic| topic.get_mut(&place.partition));
            if let Some(partition) = partition.filter(|partition| partition.tenure == tenure) {
                partition.next = Some(place.offset + 1);
                partition.risen = true;
            }
        }
    }

    /// What is to be committed now, of all partitions or of those named.
    fn take_risen(&mut self, of: Option<&TopicPartitionList>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (topic, partitions) in &mut self.partitions {
            for (number, partition) in partitions {
                let meant = of.is_none_or(|of| of.find_partition(topic, *number).is_some());
                if let Some(next) = partition.next.filter(|_| partition.risen && meant) {
                    partition.risen =
                        list.add_partition_offset(topic, *number, Offset::Offset(next)).is_err();
                }
            }
        }
        list
    }

    /// It did not come to a commit: the next one has them again.
    fn give_back(&mut self, list: &TopicPartitionList) {
        for element in list.elements() {
            let partitions = self.partitions.get_mut(element.topic());
            if let Some(partition) = partitions.and_then(|topic| topic.get_mut(&element.partition())) {
                partition.risen = true;
            }
        }
    }

    fn forget(&mut self, list: &TopicPartitionList) {
        for element in list.elements() {
            if let Some(topic) = self.partitions.get_mut(element.topic()) {
                topic.remove(&element.partition());
            }
        }
        self.partitions.retain(|_, partitions| !partitions.is_empty());
    }

    /// How many commits are not answered yet.
    pub fn commits(&self) -> usize {
        self.commits
    }

    /// Nothing more is committed.
    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn trouble(&mut self) -> Option<String> {
        self.trouble.take_if(|trouble| !trouble.once && trouble.since.elapsed() > broker::STALE);
        self.trouble.as_ref().map(|trouble| trouble.text.clone())
    }

    fn error(&mut self, code: Option<RDKafkaErrorCode>, reason: &str) {
        use RDKafkaErrorCode as C;
        let once =
            matches!(code, Some(C::UnknownTopicOrPartition | C::UnknownTopic | C::TopicAuthorizationFailed));
        let text = broker::words(code, reason, self.trouble.take().map(|trouble| trouble.text));
        self.trouble = Some(Trouble { text, since: Instant::now(), once });
    }
}

impl Rebalances {
    pub fn new(stream: String, log: Log) -> Self {
        Self { assignment: Mutex::default(), stream, log }
    }

    pub fn assignment(&self) -> MutexGuard<'_, Assignment> {
        self.assignment.lock()
    }

    /// Commits what has risen, without waiting; the library waits for it before it lets go of a partition.
    pub fn commit(&self, consumer: &BaseConsumer<Self>, of: Option<&TopicPartitionList>) {
        let mut assignment = self.assignment.lock();
        if assignment.closed {
            return;
        }
        let list = assignment.take_risen(of);
        if list.count() == 0 {
            return;
        }
        match consumer.commit(&list, CommitMode::Async) {
            Ok(()) => assignment.commits += 1,
            Err(error) => {
                assignment.give_back(&list);
                drop(assignment);
                self.say(&format!("cannot commit offsets: {error}"));
            }
        }
    }

    fn say(&self, line: &str) {
        (self.log)(format!("stream \"{}\": {line}", self.stream));
    }
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if broker::is_for_the_log(level) {
            self.say(&format!("librdkafka: {facility} {message}"));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.assignment.lock().error(error.rdkafka_error_code(), reason);
    }
}

impl ConsumerContext for Rebalances {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(_) => self.assignment.lock().trouble = None,
            Rebalance::Revoke(gone) => {
                // Lost ones are somebody else's already, who may be further than we.
                if !consumer.assignment_lost() {
                    self.commit(consumer, Some(gone));
                }
                self.assignment.lock().forget(gone);
            }
            Rebalance::Error(error) => self.say(&format!("rebalance failed: {error}")),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let mut assignment = self.assignment.lock();
        assignment.commits = assignment.commits.saturating_sub(1);
        if let Err(error) = result {
            assignment.give_back(offsets);
            drop(assignment);
            self.say(&format!("cannot commit offsets: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(partition: i32, offset: i64) -> Place {
        Place { topic: "t".into(), partition, offset }
    }

    fn committed(list: &TopicPartitionList) -> Vec<(i32, i64)> {
        let mut all: Vec<_> =
            list.elements().iter().map(|e| (e.partition(), e.offset().to_raw().unwrap())).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn only_what_is_acknowledged_is_committed_and_once() {
        let mut ours = Assignment::default();
        for (serial, place) in [(1, place(0, 10)), (2, place(1, 5)), (3, place(0, 12)), (4, place(1, 6))] {
            ours.out(serial, &place);
        }
        assert_eq!(ours.take_risen(None).count(), 0);
        ours.acknowledge(3);
        let list = ours.take_risen(None);
        assert_eq!(committed(&list), [(0, 13), (1, 6)]);
        assert_eq!(ours.take_risen(None).count(), 0);
        ours.give_back(&list);
        assert_eq!(committed(&ours.take_risen(None)), [(0, 13), (1, 6)]);
        ours.acknowledge(4);
        assert_eq!(committed(&ours.take_risen(None)), [(1, 7)]);
        assert!(ours.out.is_empty());
    }

    #[test]
    fn what_was_out_of_a_partition_that_has_gone_is_nobodys_even_when_it_comes_back() {
        let mut ours = Assignment::default();
        for (serial, place) in [(1, place(0, 10)), (2, place(1, 5)), (3, place(0, 11))] {
            ours.out(serial, &place);
        }
        ours.acknowledge(1);
        let mut gone = TopicPartitionList::new();
        gone.add_partition("t", 0);
        assert_eq!(committed(&ours.take_risen(Some(&gone))), [(0, 11)]);
        ours.forget(&gone);
        // It comes back with what nobody has acknowledged.
        ours.out(4, &place(0, 11));
        ours.acknowledge(3);
        assert_eq!(committed(&ours.take_risen(None)), [(1, 6)]);
        ours.acknowledge(4);
        assert_eq!(committed(&ours.take_risen(None)), [(0, 12)]);
    }
}
