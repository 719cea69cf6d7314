//! The Kafka source: a member of a consumer group, polled on the engine's thread. Offsets are committed for what every sink has, and for
//! nothing else: what was handed out and not acknowledged comes again, to this member or to the one that has the partition next.
//!
//! The library's own threads inherit the signal mask of whoever makes the source: that must be all signals blocked.
//!
//! - [`assignment`]: which partitions are ours, what of them is out, what may be committed
//! - [`envelope`]: whether a message is an event

mod assignment;
mod envelope;
#[cfg(test)]
mod tests;

use self::assignment::{Assignment, Rebalances};
use super::{Failure, Message, Place, Received, Rejected, Setting, Source};
use crate::stream::broker;
use crate::stream::options::{OptionError, Options};
use rdkafka::Message as _;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A Kafka source as its options describe it.
#[derive(Debug, Clone)]
struct Plan {
    config: ClientConfig,
    topics: Vec<String>,
    /// How many messages a poll hands out at most.
    batch: usize,
    /// Time between two commits.
    commit_interval: Duration,
}

/// Properties that are options here, or without which messages would be lost.
const OURS: &[(&str, &str)] = &[
    ("group.id", "is set by the option \"groupID\""),
    ("enable.auto.commit", COMMITS),
    ("auto.commit.enable", COMMITS),
    ("auto.commit.interval.ms", COMMITS),
    ("enable.auto.offset.store", COMMITS),
    ("offset.store.method", COMMITS),
    ("enable.partition.eof", "is not read here"),
    ("queued.max.messages.kbytes", "follows postern.stream_buffer_size"),
];
const COMMITS: &str = "is fixed: only what every sink has is committed";

/// So long may leaving the group take; with brokers that do not answer it takes longer, on a thread of its own that nobody waits for.
const LEAVING: Duration = Duration::from_millis(900);
/// So long the last commit is waited for before the group is left.
const LAST_COMMIT: Duration = Duration::from_millis(600);

/// What the engine holds: something that can be left behind. None only while it is dropped.
struct Member(Option<Kafka>);

struct Kafka {
    consumer: BaseConsumer<Rebalances>,
    batch: usize,
    commit_interval: Duration,
    committed: Instant,
    last_serial: u64,
    /// What came although nothing was wanted: a partition was assigned in that moment.
    held: VecDeque<Received>,
    paused: bool,
}

pub(super) fn make(
    options: &mut Options,
    setting: Option<&Setting>,
) -> Result<Option<Box<dyn Source>>, OptionError> {
    let plan = Plan::read(options)?;
    let Some(setting) = setting else { return Ok(None) };
    Ok(Some(Box::new(Member(Some(Kafka::new(plan, setting)?)))))
}

impl Plan {
    fn read(options: &mut Options) -> Result<Self, OptionError> {
        let timeout = options.time("timeout", Duration::from_mins(1))?;
        let mut config = broker::client_config(options, timeout, OURS)?;
        let topics = options.list("topics")?;
        if topics.is_empty() {
            return Err(OptionError::new("topics", "is required"));
        }
        for topic in &topics {
            broker::topic("topics", topic)?;
        }
        config
            .set("group.id", options.required("groupID")?)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false");
        // A new group begins with what is there, as psql-streamer's does.
        broker::set_unless_given(&mut config, "auto.offset.reset", "earliest");
        // As long as this the library keeps a commit for a coordinator that is away, and looks for it ten times as often.
        broker::set_unless_given(&mut config, "coordinator.query.interval.ms", "10000");
        let batch = options.number("batchSize", 100, 1, 100_000)?;
        let commit_interval = options.time("batchFlushInterval", Duration::from_secs(1))?;
        // psql-streamer's pause before it offers a batch to a sink again; here a sink takes what it has room for.
        options.time("sendRetryInterval", Duration::from_millis(100))?;
        Ok(Self { config, topics, batch: usize::try_from(batch).unwrap_or(usize::MAX), commit_interval })
    }
}

impl Kafka {
    fn new(plan: Plan, setting: &Setting) -> Result<Self, OptionError> {
        let Plan { mut config, topics, batch, commit_interval } = plan;
        // Half for what waits in the library's queue, half for the answer that it is reading, which has to have room for one message.
        let half = setting.buffer_size / 2;
        config.set("queued.max.messages.kbytes", (half / 1024).clamp(1, 2_097_151).to_string());
        let fetched = (half as u64).max(broker::largest(&config)).min(1 << 30);
        broker::set_unless_given(&mut config, "fetch.max.bytes", &fetched.to_string());
        broker::name_client(&mut config, &setting.stream);
        let wrong = |error| broker::unusable(&config, &error);
        let context = Rebalances::new(setting.stream.clone(), setting.log.clone());
        let consumer: BaseConsumer<Rebalances> = config.create_with_context(context).map_err(wrong)?;
        consumer.subscribe(&topics.iter().map(String::as_str).collect::<Vec<_>>()).map_err(wrong)?;
        let committed = Instant::now();
        let held = VecDeque::new();
        Ok(Self { consumer, batch, commit_interval, committed, last_serial: 0, held, paused: false })
    }

    fn assignment(&self) -> parking_lot::MutexGuard<'_, Assignment> {
        self.consumer.context().assignment()
    }

    /// One message, if one comes in time. Everything else that the library has to say is heard on the way.
    fn one(&mut self, patience: Duration) -> Result<Option<Received>, Failure> {
        match self.consumer.poll(patience) {
            None => Ok(None),
            Some(Ok(message)) => {
                let serial = self.last_serial + 1;
                let received = receive(&message, serial);
                let place = match &received {
                    Received::Message(message) => &message.place,
                    Received::Rejected(rejected) => &rejected.place,
                };
                self.assignment().out(serial, place);
                drop(message);
                self.last_serial = serial;
                Ok(Some(received))
            }
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                let why = self.consumer.client().fatal_error().map_or_else(String::new, |(_, text)| text);
                let message = format!("the consumer group refuses this member: {code}: {why}");
                Err(Failure { message, lasting: false })
            }
            // The member has been told by way of its context, and the library tries on.
            Some(Err(_)) => Ok(None),
        }
    }

    /// Commits what was acknowledged, not more often than is asked for.
    fn commit_if_due(&mut self) {
        if self.committed.elapsed() >= self.commit_interval {
            self.consumer.context().commit(&self.consumer, None);
            self.committed = Instant::now();
        }
    }

    /// The last commit goes out, and is waited for a moment.
    fn finish(&mut self) {
        let started = Instant::now();
        self.consumer.context().commit(&self.consumer, None);
        while self.assignment().commits() > 0 && started.elapsed() < LAST_COMMIT {
            // What comes now is nobody's.
            let _ = self.consumer.poll(Duration::from_millis(10));
        }
        self.assignment().close();
    }

    /// Fetching stops or goes on for all partitions that are ours now.
    fn pause(&mut self, pause: bool) {
        if !pause && !self.paused {
            return;
        }
        // An error here is one of a partition that has just gone.
        if let Ok(ours) = self.consumer.assignment() {
            let _ = if pause { self.consumer.pause(&ours) } else { self.consumer.resume(&ours) };
        }
        self.paused = pause;
    }
}

fn receive(message: &BorrowedMessage<'_>, serial: u64) -> Received {
    let place =
        Place { topic: message.topic().into(), partition: message.partition(), offset: message.offset() };
    let key = message.key().map(<[u8]>::to_vec);
    let payload = message.payload().unwrap_or_default().to_vec();
    match envelope::table(&payload) {
        Ok(table) => Received::Message(Message { serial, place, key, payload, table }),
        Err(why) => Received::Rejected(Rejected { serial, place, key, payload, why }),
    }
}

impl Kafka {
    fn poll(&mut self, room: usize, patience: Duration) -> Result<Vec<Received>, Failure> {
        self.commit_if_due();
        if room == 0 {
            self.pause(true);
            let received = self.one(patience)?;
            self.held.extend(received);
            return Ok(Vec::new());
        }
        self.pause(false);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        // The first one is waited for, the others are there or not.
        let mut patience = patience;
        while batch.len() < self.batch && bytes < room {
            let next = match self.held.pop_front() {
                Some(held) => Some(held),
                None => self.one(patience)?,
            };
            let Some(received) = next else { break };
            bytes += received.size();
            batch.push(received);
            patience = Duration::ZERO;
        }
        Ok(batch)
    }
}

impl Source for Member {
    fn poll(&mut self, room: usize, patience: Duration) -> Result<Vec<Received>, Failure> {
        self.0.as_mut().map_or_else(|| Ok(Vec::new()), |kafka| kafka.poll(room, patience))
    }

    fn acknowledge(&mut self, serial: u64) {
        if let Some(kafka) = &self.0 {
            kafka.assignment().acknowledge(serial);
        }
    }

    fn trouble(&mut self) -> Option<String> {
        self.0.as_ref().and_then(|kafka| kafka.assignment().trouble())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Some(mut kafka) = self.0.take() else { return };
        let (left, wait) = std::sync::mpsc::channel();
        let leave = move || {
            kafka.finish();
            drop(kafka);
            // Nobody may be there any more.
            let _ = left.send(());
        };
        if std::thread::Builder::new().name("kafka leave".to_owned()).spawn(leave).is_ok() {
            let _ = wait.recv_timeout(LEAVING);
        }
    }
}
