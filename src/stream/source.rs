//! Sources other than the server's own WAL: where messages come from that are handed on to sinks. Each kind is one file in this folder
//! behind [`Source`], and one line in [`KINDS`]. A source has no thread of its own that we know of: the stream's engine thread calls it.

#[cfg(feature = "kafka")]
pub mod kafka;

use super::options::{OptionError, Options};
pub use super::sink::{Failure, Log};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of rejected messages that a source may have kept aside before it waits for somebody to look at them: without an end, whoever may
/// write into a topic could fill the server's disk.
const REJECTED_LIMIT: u64 = 100 << 20;

/// What a source hands out: every one has a serial number, from 1, higher by one than that of the last, and all are acknowledged alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    Message(Message),
    Rejected(Rejected),
}

/// An event of another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub serial: u64,
    pub place: Place,
    pub key: Option<Vec<u8>>,
    /// One JSON object, byte for byte as it came; it may have newlines.
    pub payload: Vec<u8>,
    /// What the event says that its table is, without a schema.
    pub table: String,
}

/// A message that is no event. It is to be counted and kept aside by whoever receives it; it will not come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub serial: u64,
    pub place: Place,
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    /// Continues "the message": "is no JSON: …".
    pub why: String,
}

/// Where a message was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
}

/// What a message costs beside its bytes.
const OVERHEAD: usize = 256;

impl Received {
    /// Bytes that it keeps, roughly.
    pub fn size(&self) -> usize {
        match self {
            Self::Message(message) => size(message.key.as_ref(), &message.payload),
            Self::Rejected(rejected) => rejected.size(),
        }
    }

    pub fn serial(&self) -> u64 {
        match self {
            Self::Message(message) => message.serial,
            Self::Rejected(rejected) => rejected.serial,
        }
    }
}

impl Rejected {
    /// As [`Received::size`].
    pub fn size(&self) -> usize {
        size(self.key.as_ref(), &self.payload)
    }
}

fn size(key: Option<&Vec<u8>>, payload: &[u8]) -> usize {
    key.map_or(0, Vec::len) + payload.len() + OVERHEAD
}

/// Where messages come from. Dropping a source acknowledges to the other end what was acknowledged to the source, if that takes no longer
/// than a second.
pub trait Source: Send {
    /// Waits up to `patience` for messages and takes them until they have `room` bytes, the last of them maybe more, and no more than the
    /// source's own batch. It must be called every few seconds also when nobody has room for more, with `room` 0: else the other end takes
    /// this member for dead.
    ///
    /// # Errors
    /// When the source cannot go on.
    fn poll(&mut self, room: usize, patience: Duration) -> Result<Vec<Received>, Failure>;

    /// Every sink has what was handed out up to this serial number. The other end is told at the next `poll` that is due.
    fn acknowledge(&mut self, serial: u64);

    /// What it is in trouble with while it goes on trying; nothing when all is well.
    fn trouble(&mut self) -> Option<String>;
}

/// What a source is made with.
#[derive(Clone)]
pub struct Setting {
    /// Bytes that the source may fetch ahead: its share of `postern.stream_buffer_size`.
    pub buffer_size: usize,
    /// The stream's name, for whom the other end shows it to.
    pub stream: String,
    pub log: Log,
}

type Make = fn(&mut Options, Option<&Setting>) -> Result<Option<Box<dyn Source>>, OptionError>;

/// Every kind of source of this room: its name, and what reads its options and, given a [`Setting`], makes it.
pub const KINDS: &[(&str, Make)] = &[
    #[cfg(feature = "kafka")]
    ("kafka", kafka::make),
];

/// Whether a source of that kind can have these options.
///
/// # Errors
/// Names the option that is wrong.
pub fn check(name: &str, options: &Map<String, Value>) -> Result<(), OptionError> {
    read(name, options, None).map(|_| ())
}

/// Makes a source; nothing is connected yet when it returns.
///
/// # Errors
/// As [`check`].
pub fn make(
    name: &str,
    options: &Map<String, Value>,
    setting: &Setting,
) -> Result<Box<dyn Source>, OptionError> {
    read(name, options, Some(setting))?.ok_or_else(|| OptionError::new("kind", "cannot be made"))
}

/// How many bytes of rejected messages a source with these options may have kept aside (`rejected_limit`).
///
/// # Errors
/// Names the option, when it is wrong.
pub fn rejected_limit(options: &Map<String, Value>) -> Result<u64, OptionError> {
    read_rejected_limit(&mut Options::new(options))
}

fn read_rejected_limit(options: &mut Options) -> Result<u64, OptionError> {
    match options.bytes("rejected_limit", REJECTED_LIMIT)? {
        0 => Err(OptionError::new("rejected_limit", "must be more than 0")),
        limit => Ok(limit),
    }
}

fn read(
    name: &str,
    options: &Map<String, Value>,
    setting: Option<&Setting>,
) -> Result<Option<Box<dyn Source>>, OptionError> {
    let found = KINDS.iter().find(|(kind, _)| *kind == name).map(|(_, make)| *make);
    let make = found.ok_or_else(|| {
        let names: Vec<_> = KINDS.iter().map(|(name, _)| *name).collect();
        OptionError::new("kind", format!("must be one of {}", names.join(", ")))
    })?;
    let mut options = Options::new(options);
    read_rejected_limit(&mut options)?;
    let source = make(&mut options, setting)?;
    options.finish()?;
    Ok(source)
}
