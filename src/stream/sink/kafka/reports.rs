//! What the client library reports back: deliveries, failures, troubles, lines for the log. Its callbacks run inside `poll` of the
//! producer, so on the engine's thread; the lock is there because the library asks for `Sync`, and nobody ever waits for it.

use super::GAPLESS;
use super::plan::{Remedies, Remedy};
use super::resend::Refused;
use crate::stream::broker;
use crate::stream::ledger::Ledger;
use crate::stream::sink::{Failure, Log};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So long may nothing be confirmed before that is called a trouble: brokers that answer "not now" for ever make no error.
const STALLED: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };

/// What goes out with each message and comes back with its report.
#[derive(Debug)]
pub struct Out {
    pub serial: u64,
    /// What it counts for in the buffer.
    pub bytes: usize,
    /// `schema.table`, or what it is when it is no table's; for messages.
    pub table: Arc<str>,
}

/// A message that is to be sent again.
pub struct Again {
    pub out: Box<Out>,
    pub topic: String,
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
}

impl Again {
    fn new(out: Box<Out>, message: &BorrowedMessage<'_>) -> Self {
        Self {
            out,
            topic: message.topic().to_owned(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().unwrap_or_default().to_vec(),
        }
    }
}

/// The context of the producer, and of the one that replaces it.
#[derive(Clone)]
pub struct Reports {
    state: Arc<Mutex<State>>,
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
    /// How many the library has.
    pub inside: usize,
    /// The one that it has, when there was no other since it came.
    alone: Option<u64>,
    /// Each message is a batch of its own.
    pub single: bool,
    /// Nobody asks any more what becomes of what is out.
    pub dropped: bool,
    /// A batch was refused, mostly for its size, and not everything that was on its way then has come to its end.
    pub refused: Option<Refused>,
    /// How often that was.
    refusals: u64,
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
            inside: 0,
            alone: None,
            single: false,
            dropped: false,
            refused: None,
            refusals: 0,
            trouble: None,
            moved: Instant::now(),
            remedies,
        };
        Self { state: Arc::new(Mutex::new(state)), stream, log }
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
            self.say(&format!("{sentence}; left out, {skipped} so far"));
        }
    }

    pub fn say(&self, sentence: &str) {
        (self.log)(format!("stream \"{}\": {sentence}", self.stream));
    }

    /// A batch was refused for its size, and this event was in it.
    fn refuse(&self, message: &BorrowedMessage<'_>, out: Box<Out>) {
        let mut state = self.state.lock();
        let refused = state.refused.get_or_insert_default();
        let is_first = !refused.is_begun();
        refused.add(message.partition(), Again::new(out, message), true);
        if is_first {
            state.refusals += 1;
            let refusals = state.refusals;
            drop(state);
            if refusals.is_power_of_two() {
                let topic = message.topic();
                self.say(&format!(
                    "a broker has refused a batch for topic \"{topic}\" as too large, {refusals} so far: its events are sent one by one"
                ));
            }
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

    /// The library has it.
    pub fn enters(&mut self, serial: u64) {
        self.alone = (self.inside == 0).then_some(serial);
        self.inside += 1;
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
            None => !out && trouble.since.elapsed() > broker::STALE,
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
        let text = broker::words(code, reason, self.trouble.take().map(|trouble| trouble.text));
        let over_at = (self.ledger.outstanding() > 0).then(|| self.ledger.last());
        self.trouble = Some(Trouble { text, since: Instant::now(), over_at });
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // It calls that property experimental each time, and what follows from it is no error here.
        let is_asked_for = message.contains(GAPLESS) || message.contains("gap-less guarantee");
        if broker::is_for_the_log(level) && !is_asked_for {
            self.say(&format!("librdkafka: {facility} {message}"));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut state = self.state.lock();
        state.heard += 1;
        state.doubtful = true;
        let code = error.rdkafka_error_code();
        // Of one that is fatal the library is asked, and it may be one that this sink asked for.
        if code != Some(RDKafkaErrorCode::Fatal) && code != Some(RDKafkaErrorCode::GaplessGuarantee) {
            state.error(code, reason);
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Out>;

    fn delivery(&self, result: &DeliveryResult<'_>, out: Box<Out>) {
        let mut state = self.state.lock();
        if state.dropped {
            return;
        }
        state.heard += 1;
        state.inside = state.inside.saturating_sub(1);
        let was_alone = state.single || state.alone == Some(out.serial);
        match result {
            Ok(message) => {
                // What was in trouble with nothing out is over when something arrives.
                state.trouble.take_if(|trouble| trouble.over_at.is_none());
                if let Some(refused) = &mut state.refused
                    && refused.is_overtaken(message.topic(), message.partition(), out.serial)
                {
                    refused.add_overtaken(Again::new(out, message));
                    state.moved = Instant::now();
                    return;
                }
                state.bytes = state.bytes.saturating_sub(out.bytes);
                state.safe(out.serial);
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code();
                use RDKafkaErrorCode as C;
                if let Some(
                    C::Fatal
                    | C::GaplessGuarantee
                    | C::OutOfOrderSequenceNumber
                    | C::PurgeQueue
                    | C::PurgeInflight,
                ) = code
                {
                    // It was behind a batch that was refused, and has been taken back: when the library does that by itself, it may say so
                    // before it reports that batch. Or it says more when it is asked.
                    state.doubtful = true;
                    let refused = state.refused.get_or_insert_default();
                    return refused.add(message.partition(), Again::new(out, message), false);
                }
                let obstacle = code.map(Obstacle::of);
                if obstacle == Some(Obstacle::Oversized) && !was_alone {
                    drop(state);
                    return self.refuse(message, out);
                }
                state.bytes = state.bytes.saturating_sub(out.bytes);
                let Some(obstacle) = obstacle else { return state.fail(error.to_string(), false) };
                drop(state);
                self.obstacle(out.serial, &out.table, message.topic(), obstacle);
            }
        }
    }
}
