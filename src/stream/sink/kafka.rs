//! The Kafka sink. A producer of librdkafka, polled on the engine's thread: nothing here waits for a broker. An event is delivered when
//! its delivery report says so, and not before; brokers that cannot be reached are tried without end, and shown as a trouble.
//!
//! The library's own threads inherit the signal mask of whoever makes the sink: that must be all signals blocked.
//!
//! - [`plan`]: the options
//! - [`reports`]: what comes back
//! - [`resend`]: what follows when a broker refuses a batch for its size

mod plan;
mod reports;
mod resend;
#[cfg(test)]
mod tests;

use self::plan::{Plan, Remedies, Remedy};
use self::reports::{Obstacle, Out, Reports, State};
use self::resend::Resend;
use super::{Event, Failure, Given, Progress, Setting, Sink};
use crate::stream::broker;
use crate::stream::options::{OptionError, Options};
use parking_lot::MutexGuard;
use rdkafka::config::ClientConfig;
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

/// The property.
const GAPLESS: &str = "enable.gapless.guarantee";

struct Kafka {
    producer: BaseProducer<Reports>,
    /// What the producer is made with.
    config: ClientConfig,
    /// Bytes of a batch at most.
    batch_size: usize,
    reports: Reports,
    resend: Resend,
    topics: HashMap<String, String>,
    fallback: Option<String>,
    remedies: Remedies,
    buffer_size: usize,
    /// That of the last event, which is mostly that of the next.
    table: Table,
}

struct Table {
    schema: String,
    table: String,
    /// `schema.table`, by which its topic is found.
    whole: String,
    /// For messages: its name, with its schema where that is known, or what is no table's.
    named: Arc<str>,
}

impl Table {
    fn new(schema: &str, table: &str) -> Self {
        let whole = format!("{schema}.{table}");
        let named = match (schema, table) {
            ("", "") => "no table",
            ("", table) => table,
            _ => &whole,
        };
        Self { schema: schema.to_owned(), table: table.to_owned(), named: named.into(), whole }
    }

    fn is_of(&self, event: &Event<'_>) -> bool {
        self.schema == event.schema && self.table == event.table
    }
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
        let Plan { mut config, topics, fallback, remedies } = plan;
        // The sink counts what is out; the library's own bound lets the one event through that is larger than all the room.
        let room = (setting.buffer_size as u64).saturating_add(broker::largest(&config)) / 1024 + 1;
        config.set("queue.buffering.max.kbytes", room.min(i32::MAX as u64).to_string());
        broker::name_client(&mut config, &setting.stream);
        let reports = Reports::new(setting.delivered, remedies, setting.stream.clone(), setting.log.clone());
        reports.state().single = is_single(&config);
        // Files of certificates and keys are read here, and properties that do not go together found.
        let producer = producer(&config, &reports).map_err(|error| broker::unusable(&config, &error))?;
        let batch_size = config.get("batch.size").and_then(|bytes| bytes.parse().ok()).unwrap_or(1_000_000);
        Ok(Self {
            producer,
            config,
            batch_size,
            reports,
            resend: Resend::default(),
            topics,
            fallback,
            remedies,
            buffer_size: setting.buffer_size,
            table: Table::new("", ""),
        })
    }

    /// Looks at what the library has to say now, and does what follows from it.
    fn hear(&mut self) -> Result<(), Failure> {
        for _ in 0..ROUND {
            let before = self.reports.state().heard;
            self.producer.poll(Duration::ZERO);
            if self.reports.state().heard == before {
                break;
            }
        }
        drop(self.state()?);
        self.resend()
    }

    /// How things stand, or why the sink cannot go on.
    fn state(&self) -> Result<MutexGuard<'_, State>, Failure> {
        let mut state = self.reports.state();
        if std::mem::take(&mut state.doubtful)
            && let Some((code, text)) = self.producer.client().fatal_error()
        {
            if code == RDKafkaErrorCode::GaplessGuarantee {
                state.refused.get_or_insert_default();
            } else {
                let why = format!("the producer cannot keep its promise of idempotence: {code}: {text}");
                state.fail(why, false);
            }
        }
        match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(state),
        }
    }

    fn topic(&self, event: &Event<'_>) -> Option<&str> {
        let of_table = || self.topics.get(&self.table.whole).or_else(|| self.topics.get(event.table));
        let mapped = if event.table.is_empty() || self.topics.is_empty() { None } else { of_table() };
        mapped.or(self.fallback.as_ref()).map(String::as_str)
    }

    /// Nothing says where it goes.
    fn unmapped(&self, serial: u64) -> Result<Given, Failure> {
        let sentence = format!(
            "an event of {} has no topic: neither tableTopicMapping nor topicFallback names one",
            self.table.named
        );
        if self.remedies.unmapped == Remedy::Stop {
            let message = format!("{sentence}; on_unmapped = \"skip\" would leave it out");
            return Err(Failure { message, lasting: true });
        }
        let mut state = self.reports.state();
        state.out(serial, 0);
        state.safe(serial);
        state.skipped += 1;
        let skipped = state.skipped;
        drop(state);
        self.reports.say_skipped(&sentence, skipped);
        Ok(Given::Taken)
    }

    fn has_room(&self, bytes: usize) -> Result<bool, Failure> {
        let state = self.state()?;
        let out = state.ledger.outstanding();
        let fits = out < MOST_OUT && state.bytes.saturating_add(bytes) <= self.buffer_size;
        Ok(!self.resend.is_under_way() && (out == 0 || (fits && state.refused.is_none())))
    }

    /// Hands a message to the library.
    fn hand(
        &self,
        out: Box<Out>,
        topic: &str,
        key: Option<&[u8]>,
        payload: &[u8],
    ) -> Result<Handed, Failure> {
        let serial = out.serial;
        let mut record: BaseRecord<'_, [u8], [u8], Box<Out>> =
            BaseRecord::with_opaque_to(topic, out).payload(payload);
        if let Some(key) = key {
            record = record.key(key);
        }
        let Err((error, _)) = self.producer.send(record) else {
            self.reports.state().enters(serial);
            return Ok(Handed::Inside);
        };
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Ok(Handed::Full),
            Some(RDKafkaErrorCode::Fatal) => {
                self.reports.state().doubtful = true;
                if self.state()?.refused.is_some() { Ok(Handed::Full) } else { Err(refused(&error)) }
            }
            Some(code) => Ok(Handed::Not(Obstacle::of(code))),
            None => Err(refused(&error)),
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.reports.state().dropped = true;
    }
}

/// What the library did with a message.
enum Handed {
    Inside,
    /// It has no room now.
    Full,
    Not(Obstacle),
}

impl Sink for Kafka {
    fn give(&mut self, event: &Event<'_>) -> Result<Given, Failure> {
        if !self.table.is_of(event) {
            self.table = Table::new(event.schema, event.table);
        }
        let bytes = event.payload.len() + event.key.map_or(0, <[u8]>::len) + OVERHEAD;
        if !self.has_room(bytes)? {
            self.hear()?;
            if !self.has_room(bytes)? {
                return Ok(Given::Full);
            }
        }
        let Some(topic) = self.topic(event) else { return self.unmapped(event.serial) };
        let table = &self.table.named;
        let out = Box::new(Out { serial: event.serial, bytes, table: Arc::clone(table) });
        match self.hand(out, topic, event.key, event.payload)? {
            Handed::Inside => self.reports.state().out(event.serial, bytes),
            Handed::Full => return Ok(Given::Full),
            Handed::Not(obstacle) => {
                self.reports.state().out(event.serial, 0);
                self.reports.obstacle(event.serial, table, topic, obstacle);
                // The operator may want it to stop here.
                drop(self.state()?);
            }
        }
        Ok(Given::Taken)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        // The library sends what it has after batchTimeout, which is the operator's choice.
        self.state().map(drop)
    }

    fn poll(&mut self, patience: Duration) -> Result<Progress, Failure> {
        let started = Instant::now();
        let before = self.reports.state().ledger.delivered();
        let mut nap = Duration::from_micros(500);
        loop {
            self.hear()?;
            let mut state = self.reports.state();
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

/// The operator wants each message to be a batch of its own.
fn is_single(config: &ClientConfig) -> bool {
    config.get("batch.num.messages") == Some("1")
}

fn producer(config: &ClientConfig, reports: &Reports) -> Result<BaseProducer<Reports>, KafkaError> {
    let mut config = config.clone();
    if reports.state().single {
        config.set("batch.num.messages", "1");
    } else if config.get("enable.idempotence") == Some("true") {
        // A producer that has lost a batch sends nothing after it: without this, the next ones would overtake it.
        config.set(GAPLESS, "true");
    }
    config.create_with_context(reports.clone())
}

fn refused(error: &KafkaError) -> Failure {
    Failure { message: format!("an event was refused: {error}"), lasting: false }
}
