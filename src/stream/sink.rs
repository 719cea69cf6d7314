//! Sinks: where events go. Each kind is one file in this folder behind [`Sink`], and one line in [`KINDS`]. A sink has no thread of its
//! own that we know of: the stream's engine thread calls it, and it never blocks for longer than it is allowed to.

pub mod file;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod stub;

use super::options::{OptionError, Options};
use serde_json::{Map, Value};
use std::time::Duration;

/// One event on its way.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Rises by one or more from event to event of this sink.
    pub serial: u64,
    /// Of the table, in UTF-8; both empty for what is no table's: transactions, logical messages.
    pub schema: &'a str,
    pub table: &'a str,
    /// What makes events of one row meet in one partition.
    pub key: Option<&'a [u8]>,
    /// One JSON object, without a newline.
    pub payload: &'a [u8],
}

/// What became of an event that a sink was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    Taken,
    /// There is no room now: to be given again after a `poll`.
    Full,
}

/// How far a sink is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every event up to this serial number is safe at the other end, or was left out by the operator's choice.
    pub delivered: u64,
    /// Events that were left out by the operator's choice, since the sink was made.
    pub skipped: u64,
    /// What it is in trouble with while it goes on trying; nothing when all is well.
    pub trouble: Option<String>,
}

/// A sink cannot go on. Its stream shows the message, ends, and is tried again from the last delivered event on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub message: String,
    /// Trying again will not help: the stream waits for the operator.
    pub lasting: bool,
}

/// Where events go. Dropping a sink gives up what is not delivered; it must not block for more than a second.
pub trait Sink: Send {
    /// Takes an event. Copies what it keeps, and keeps no more bytes than it was allowed.
    ///
    /// # Errors
    /// When the sink cannot go on.
    fn give(&mut self, event: &Event<'_>) -> Result<Given, Failure>;

    /// Nothing more comes at the moment: what was gathered goes out now.
    ///
    /// # Errors
    /// As [`Sink::give`].
    fn flush(&mut self) -> Result<(), Failure>;

    /// Does what is due and waits up to `patience` for news of what is out, or not at all when nothing is.
    ///
    /// # Errors
    /// As [`Sink::give`].
    fn poll(&mut self, patience: Duration) -> Result<Progress, Failure>;
}

/// Lines for the server's log, from the engine's thread.
pub type Log = std::sync::Arc<dyn Fn(String) + Send + Sync>;

/// What a sink is made with.
#[derive(Clone)]
pub struct Setting {
    /// The last serial number before the first event that comes: not 0 for a sink that is made again.
    pub delivered: u64,
    /// Bytes that the sink may keep at most: `postern.stream_buffer_size`. One event that is larger is still taken when nothing is kept.
    pub buffer_size: usize,
    /// The stream's name, for whom the other end shows it to.
    pub stream: String,
    pub log: Log,
}

type Make = fn(&mut Options, Option<&Setting>) -> Result<Option<Box<dyn Sink>>, OptionError>;

/// Every kind of sink: its name, and what reads its options and, given a [`Setting`], makes it.
pub const KINDS: &[(&str, Make)] = &[
    ("file", file::make),
    #[cfg(feature = "kafka")]
    ("kafka", kafka::make),
    ("stub_discard", stub::discard),
    ("stub_log", stub::log),
];

/// Options that only superusers may read, by their last word.
pub const SECRETS: &[&str] =
    &["password", "passphrase", "secret", "key.pem", "oauthbearer.config", "jaas.config"];

fn kind(kind: &str) -> Result<Make, OptionError> {
    let found = KINDS.iter().find(|(name, _)| *name == kind).map(|(_, make)| *make);
    found.ok_or_else(|| {
        let names: Vec<_> = KINDS.iter().map(|(name, _)| *name).collect();
        OptionError::new("kind", format!("must be one of {}", names.join(", ")))
    })
}

/// Whether a sink of that kind can have these options.
///
/// # Errors
/// Names the option that is wrong.
pub fn check(name: &str, options: &Map<String, Value>) -> Result<(), OptionError> {
    let mut options = Options::new(options);
    kind(name)?(&mut options, None)?;
    options.finish()
}

/// Makes a sink; nothing is connected yet when it returns.
///
/// # Errors
/// As [`check`].
pub fn make(
    name: &str,
    options: &Map<String, Value>,
    setting: &Setting,
) -> Result<Box<dyn Sink>, OptionError> {
    let mut options = Options::new(options);
    let sink = kind(name)?(&mut options, Some(setting))?;
    options.finish()?;
    sink.ok_or_else(|| OptionError::new("kind", "cannot be made"))
}
