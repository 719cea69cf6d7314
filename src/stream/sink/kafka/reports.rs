//! What the client library reports back: deliveries, failures, troubles, lines for the log. Its callbacks run inside `poll` of the
//! producer, so on the engine's thread; the lock is there because the library asks for `Sync`, and nobody ever waits for it.

use super::plan::{Remedies, Remedy};
use crate::stream::ledger::Ledger;
use crate::stream::sink::{Failure, Log};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So long may nothing be confirmed before that is called a trouble: brokers that answer "not now" for ever make no error.
const STALLED: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };
/// The library repeats an error that lasts every 30 s; one that was not repeated while nothing is out is over.
const STALE: Duration = Duration::from_secs(45);

/// What goes out with each message and comes back with its report.
#[derive(Debug)]
pub struct Out {
    pub serial: u64,
    /// What it counts for in the buffer.
    pub bytes: usize,
    /// `schema.table`, or what it is when it is no table's; for messages.
    pub table: Arc<str>,
}

/// The producer's context.
pub struct Reports {
    state: Mutex<State>,
    stream: String,
    log: Log,
}

/// How things stand.
pub struct State {
    pub ledger: Ledger,
    /// Bytes of what is out.
    pub bytes: usize,
    pub skipped: u64,
    /// Why the sink cannot go on; once there is one, it stays.
    pub failure: Option<Failure>,
    /// An error was heard: the library must be asked whether it can go on.
    pub doubtful: bool,
    /// Rises with whatever is reported.
    pub heard: u64,
    trouble: Option<Trouble>,
    /// When the first of what is out went out, or the last progress was made.
    moved: Instant,
    remedies: Remedies,
}

struct Trouble {
    text: String,
    since: Instant,
    /// Over when everything up to this number is safe; none when nothing was out.
    over_at: Option<u64>,
}

/// In which way an event cannot be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    Oversized,
    MissingTopic,
    Other(RDKafkaErrorCode),
}

impl Obstacle {
    pub fn of(code: RDKafkaErrorCode) -> Self {
        use RDKafkaErrorCode as C;
        match code {
            C::MessageSizeTooLarge | C::InvalidMessageSize | C::MessageBatchTooLarge => Self::Oversized,
            C::UnknownTopic | C::UnknownTopicOrPartition | C::UnknownPartition => Self::MissingTopic,
            other => Self::Other(other),
        }
    }
}

impl Reports {
    pub fn new(delivered: u64, remedies: Remedies, stream: String, log: Log) -> Self {
        let state = State {
            ledger: Ledger::new(delivered),
            bytes: 0,
            skipped: 0,
            failure: None,
            doubtful: false,
            heard: 0,
            trouble: None,
            moved: Instant::now(),
            remedies,
        };
        Self { state: Mutex::new(state), stream, log }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// What to do about an event that is out and cannot be delivered: it is left out and counted, or the sink fails.
    pub fn obstacle(&self, serial: u64, table: &str, topic: &str, obstacle: Obstacle) {
        let mut state = self.state.lock();
        let (remedy, option, what, lasting) = match obstacle {
            Obstacle::Oversized => {
                let what = "is larger than the brokers or message.max.bytes allow".to_owned();
                (state.remedies.oversized, "on_oversized", what, true)
            }
            Obstacle::MissingTopic => {
                let what = "goes to a topic that does not exist".to_owned();
                (state.remedies.missing_topic, "on_missing_topic", what, false)
            }
            Obstacle::Other(code) => {
                // What nobody but the operator can mend needs no trying again.
                let lasting = code == RDKafkaErrorCode::InvalidTopic;
                let failure = format!("an event of {table} was refused for topic \"{topic}\": {code}");
                state.fail(failure, lasting);
                return;
            }
        };
        let sentence = format!("an event of {table} for topic \"{topic}\" {what}");
        match remedy {
            Remedy::Stop => {
                state.fail(format!("{sentence}; {option} = \"skip\" would leave it out"), lasting)
            }
            Remedy::Skip => {
                state.skipped += 1;
                state.safe(serial);
                let skipped = state.skipped;
                drop(state);
                self.say_skipped(&sentence, skipped);
            }
        }
    }

    /// The first one, and then each time their number has doubled: many may come at once.
    pub fn say_skipped(&self, sentence: &str, skipped: u64) {
        if skipped.is_power_of_two() {
            (self.log)(format!("stream \"{}\": {sentence}; left out, {skipped} so far", self.stream));
        }
    }
}

impl State {
    /// An event goes out.
    pub fn out(&mut self, serial: u64, bytes: usize) {
        if self.ledger.outstanding() == 0 {
            self.moved = Instant::now();
        }
        self.ledger.out(serial);
        self.bytes += bytes;
    }

    /// An event is safe, or left out.
    pub fn safe(&mut self, serial: u64) {
        let before = self.ledger.delivered();
        self.ledger.safe(serial);
        if self.ledger.delivered() > before {
            self.moved = Instant::now();
        }
    }

    /// The first failure is the one that counts.
    pub fn fail(&mut self, message: String, lasting: bool) {
        self.failure.get_or_insert(Failure { message, lasting });
    }

    /// What it is in trouble with at the moment.
    pub fn trouble(&mut self) -> Option<String> {
        let out = self.ledger.outstanding() > 0;
        let delivered = self.ledger.delivered();
        self.trouble.take_if(|trouble| match trouble.over_at {
            Some(serial) => delivered >= serial,
            None => !out && trouble.since.elapsed() > STALE,
        });
        match &self.trouble {
            Some(trouble) => Some(trouble.text.clone()),
            None if out && self.moved.elapsed() > STALLED => {
                Some("the brokers have confirmed nothing for a while; trying on".to_owned())
            }
            None => None,
        }
    }

    fn error(&mut self, code: Option<RDKafkaErrorCode>, reason: &str) {
        self.doubtful = true;
        // That none can be reached is said after why one cannot be reached, which helps more.
        let text = match &mut self.trouble {
            Some(trouble) if code == Some(RDKafkaErrorCode::AllBrokersDown) => {
                std::mem::take(&mut trouble.text)
            }
            _ => reason.to_owned(),
        };
        let over_at = (self.ledger.outstanding() > 0).then(|| self.ledger.last());
        self.trouble = Some(Trouble { text, since: Instant::now(), over_at });
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if (level as i32) <= RDKafkaLogLevel::Warning as i32 {
            (self.log)(format!("stream \"{}\": librdkafka: {facility} {message}", self.stream));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut state = self.state.lock();
        state.heard += 1;
        state.error(error.rdkafka_error_code(), reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Out>;

    fn delivery(&self, result: &DeliveryResult<'_>, out: Box<Out>) {
        let mut state = self.state.lock();
        state.heard += 1;
        state.bytes = state.bytes.saturating_sub(out.bytes);
        match result {
            Ok(_) => {
                state.safe(out.serial);
                // What was in trouble with nothing out is over when something arrives.
                state.trouble.take_if(|trouble| trouble.over_at.is_none());
            }
            Err((error, message)) => {
                drop(state);
                match error.rdkafka_error_code() {
                    // The sink is being dropped.
                    Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => {}
                    Some(RDKafkaErrorCode::Fatal) => self.state.lock().doubtful = true,
                    Some(code) => {
                        self.obstacle(out.serial, &out.table, message.topic(), Obstacle::of(code));
                    }
                    None => self.state.lock().fail(error.to_string(), false),
                }
            }
        }
    }
}
