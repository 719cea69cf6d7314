//! The Kafka sink. A producer of librdkafka, polled on the engine's thread: nothing here waits for a broker. An event is delivered when
//! its delivery report says so, and not before; brokers that cannot be reached are tried without end, and shown as a trouble.
//!
//! The library's own threads inherit the signal mask of whoever makes the sink: that must be all signals blocked.
//!
//! - [`plan`]: the options
//! - [`reports`]: what comes back

mod plan;
mod reports;
#[cfg(test)]
mod tests;

use self::plan::{Plan, Remedies, Remedy};
use self::reports::{Obstacle, Out, Reports};
use super::{Event, Failure, Given, Progress, Setting, Sink};
use crate::stream::broker;
use crate::stream::options::{OptionError, Options};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a message costs the library beside its bytes: its own structure, its topic's and batch's share.
const OVERHEAD: usize = 256;
/// How many may be out, those that are safe behind one that is not included.
const MOST_OUT: usize = 1_000_000;
/// How many events of the library are looked at in a row.
const ROUND: usize = 10_000;

struct Kafka {
    producer: BaseProducer<Reports>,
    topics: HashMap<String, String>,
    fallback: Option<String>,
    remedies: Remedies,
    buffer_size: usize,
    /// `schema.table` of the last event, which is mostly that of the next.
    table: Arc<str>,
    schema_length: usize,
}

pub(super) fn make(
    options: &mut Options,
    setting: Option<&Setting>,
) -> Result<Option<Box<dyn Sink>>, OptionError> {
    let plan = Plan::read(options)?;
    let Some(setting) = setting else { return Ok(None) };
    Ok(Some(Box::new(Kafka::new(plan, setting)?)))
}

impl Kafka {
    fn new(plan: Plan, setting: &Setting) -> Result<Self, OptionError> {
        let Plan { mut config, topics, fallback, remedies, largest } = plan;
        // The sink counts what is out; the library's own bound lets the one event through that is larger than all the room.
        let room = (setting.buffer_size as u64).saturating_add(largest) / 1024 + 1;
        config.set("queue.buffering.max.kbytes", room.min(i32::MAX as u64).to_string());
        if config.get("client.id").is_none() {
            config.set("client.id", format!("postern-{}", setting.stream.replace('\0', "")));
        }
        let reports = Reports::new(setting.delivered, remedies, setting.stream.clone(), setting.log.clone());
        // Files of certificates and keys are read here, and properties that do not go together found.
        let producer =
            config.create_with_context(reports).map_err(|error| broker::unusable(&config, &error))?;
        let buffer_size = setting.buffer_size;
        Ok(Self { producer, topics, fallback, remedies, buffer_size, table: "".into(), schema_length: 0 })
    }

    /// Looks at what the library has to say now.
    fn hear(&self) {
        for _ in 0..ROUND {
            let before = self.reports().state().heard;
            self.producer.poll(Duration::ZERO);
            if self.reports().state().heard == before {
                return;
            }
        }
    }

    fn reports(&self) -> &Reports {
        self.producer.context()
    }

    /// Why the sink cannot go on, if so.
    fn failure(&self) -> Result<(), Failure> {
        let mut state = self.reports().state();
        if std::mem::take(&mut state.doubtful)
            && let Some((code, text)) = self.producer.client().fatal_error()
        {
            state.fail(format!("the producer cannot keep its promise of idempotence: {code}: {text}"), false);
        }
        state.failure.clone().map_or(Ok(()), Err)
    }

    fn remember_table(&mut self, event: &Event<'_>) {
        let Event { schema, table, .. } = event;
        let same = self.schema_length == schema.len()
            && self.table.len() == schema.len() + 1 + table.len()
            && self.table.starts_with(schema)
            && self.table.ends_with(table);
        if !same {
            self.table = format!("{schema}.{table}").into();
            self.schema_length = schema.len();
        }
    }

    /// For messages: a table by its name, with its schema where that is known, or what is no table's.
    fn named(&self) -> Arc<str> {
        match self.table.strip_prefix('.') {
            None => self.table.clone(),
            Some("") => "no table".into(),
            Some(table) => table.into(),
        }
    }

    fn topic(&self, event: &Event<'_>) -> Option<&str> {
        let of_table = || self.topics.get(&*self.table).or_else(|| self.topics.get(event.table));
        let mapped = if event.table.is_empty() || self.topics.is_empty() { None } else { of_table() };
        mapped.or(self.fallback.as_ref()).map(String::as_str)
    }

    /// Nothing says where it goes.
    fn unmapped(&self, serial: u64) -> Result<Given, Failure> {
        let sentence = format!(
            "an event of {} has no topic: neither tableTopicMapping nor topicFallback names one",
            self.named()
        );
        if self.remedies.unmapped == Remedy::Stop {
            let message = format!("{sentence}; on_unmapped = \"skip\" would leave it out");
            return Err(Failure { message, lasting: true });
        }
        let mut state = self.reports().state();
        state.out(serial, 0);
        state.safe(serial);
        state.skipped += 1;
        let skipped = state.skipped;
        drop(state);
        self.reports().say_skipped(&sentence, skipped);
        Ok(Given::Taken)
    }

    fn has_room(&self, bytes: usize) -> bool {
        let state = self.reports().state();
        let out = state.ledger.outstanding();
        out == 0 || (out < MOST_OUT && state.bytes.saturating_add(bytes) <= self.buffer_size)
    }
}

impl Sink for Kafka {
    fn give(&mut self, event: &Event<'_>) -> Result<Given, Failure> {
        self.failure()?;
        self.remember_table(event);
        let bytes = event.payload.len() + event.key.map_or(0, <[u8]>::len) + OVERHEAD;
        if !self.has_room(bytes) {
            self.hear();
            self.failure()?;
            if !self.has_room(bytes) {
                return Ok(Given::Full);
            }
        }
        let Some(topic) = self.topic(event) else { return self.unmapped(event.serial) };
        let out = Box::new(Out { serial: event.serial, bytes, table: self.named() });
        let mut record: BaseRecord<'_, [u8], [u8], Box<Out>> =
            BaseRecord::with_opaque_to(topic, out).payload(event.payload);
        if let Some(key) = event.key {
            record = record.key(key);
        }
        match self.producer.send(record) {
            Ok(()) => self.reports().state().out(event.serial, bytes),
            Err((error, record)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => return Ok(Given::Full),
                Some(RDKafkaErrorCode::Fatal) => {
                    self.reports().state().doubtful = true;
                    self.failure()?;
                    return Err(refused(&error));
                }
                Some(code) => {
                    self.reports().state().out(event.serial, 0);
                    let Out { serial, table, .. } = &*record.delivery_opaque;
                    self.reports().obstacle(*serial, table, topic, Obstacle::of(code));
                }
                None => return Err(refused(&error)),
            },
        }
        self.failure()?;
        Ok(Given::Taken)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        // The library sends what it has after batchTimeout, which is the operator's choice.
        self.failure()
    }

    fn poll(&mut self, patience: Duration) -> Result<Progress, Failure> {
        let started = Instant::now();
        let before = self.reports().state().ledger.delivered();
        let mut nap = Duration::from_micros(500);
        loop {
            self.hear();
            self.failure()?;
            let mut state = self.reports().state();
            let delivered = state.ledger.delivered();
            let left = patience.saturating_sub(started.elapsed());
            if delivered > before || state.ledger.outstanding() == 0 || left.is_zero() {
                return Ok(Progress { delivered, skipped: state.skipped, trouble: state.trouble() });
            }
            drop(state);
            // The library waits out the time that it is given even when news has come, so it is given little: a confirmation takes
            // milliseconds, and when it does not, there is less hurry.
            self.producer.poll(nap.min(left));
            nap = (nap * 2).min(Duration::from_millis(20));
        }
    }
}

fn refused(error: &KafkaError) -> Failure {
    Failure { message: format!("an event was refused: {error}"), lasting: false }
}
