//! A client's view of the broker, by kcat: what is in a topic, and putting something there. Runs on the thread that asks.

use super::{Broker, create_topics};
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::process::{Command, Output};

/// Seconds that kcat may take before it is killed and has failed.
const LIMIT: &str = "60";

/// What a topic has at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// `None` for a null key.
    pub key: Option<String>,
    /// Empty for a tombstone.
    pub payload: String,
    /// Whether the value is null, which is not the same as empty.
    pub tombstone: bool,
    /// Names and values, in the record's order; a null value is empty.
    pub headers: Vec<(String, String)>,
}

/// Runs kcat with these arguments, for at most a minute.
///
/// # Errors
/// When it cannot be run. A kcat that fails is no error: its status tells.
pub fn kcat(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT, "kcat"]).args(arguments);
    // Somebody's own settings are not the tests'.
    command.env_remove("KCAT_CONFIG").env("HOME", "/nonexistent").output().context("running kcat")
}

impl Broker {
    /// Makes a topic and waits until its partitions take records.
    ///
    /// # Errors
    /// When there is one of that name, or the broker does not run.
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<()> {
        create_topics::create(&self.address(), name, partitions)?;
        wait::for_value(&format!("topic \"{name}\" is served"), || {
            let text = self.kcat(&["-L", "-J", "-t", name])?;
            let described: Value = serde_json::from_str(&text)?;
            let served = described["topics"][0]["partitions"].as_array();
            let led = served.into_iter().flatten().filter(|p| p["leader"].as_i64().is_some_and(|id| id > 0));
            ensure!(led.count() == partitions as usize, "{text}");
            Ok(())
        })
    }

    /// Puts a record into a topic, into the partition that its key says or else any, and waits until the broker has it.
    ///
    /// # Errors
    /// When the broker refuses, and for an empty payload, which kcat cannot send.
    pub fn produce(&self, topic: &str, key: Option<&str>, payload: &str) -> Result<()> {
        if payload.is_empty() {
            bail!("kcat sends no empty payload");
        }
        // A file is one record, whatever is in it.
        let file = self.path().join(format!("payload-{:?}", std::thread::current().id()));
        std::fs::write(&file, payload)?;
        let name = file.to_string_lossy();
        // How large is too large is the broker's to say.
        let mut arguments = vec!["-P", "-t", topic, "-X", "acks=all", "-X", "message.max.bytes=100000000"];
        arguments.extend(key.into_iter().flat_map(|key| ["-k", key]));
        arguments.push(&name);
        let produced = self.kcat(&arguments);
        std::fs::remove_file(&file)?;
        produced.map(drop)
    }

    /// Everything that is in a topic now, by partition and offset. Records of transactions that were rolled back are not.
    ///
    /// # Errors
    /// When there is no such topic, or a key or payload is not UTF-8.
    pub fn consume(&self, topic: &str) -> Result<Vec<Record>> {
        let mut arguments = vec!["-C", "-t", topic, "-o", "beginning", "-e", "-q", "-J"];
        // At the end of a partition the broker need not wait for more.
        arguments.extend(["-X", "fetch.wait.max.ms=10", "-X", "isolation.level=read_committed"]);
        let text = self.kcat(&arguments)?;
        let mut records: Vec<_> = text.lines().map(record).collect::<Result<_>>()?;
        records.sort_by_key(|record| (record.partition, record.offset));
        Ok(records)
    }

    fn kcat(&self, arguments: &[&str]) -> Result<String> {
        let address = self.address();
        let output = kcat(&[&["-b", &address], arguments].concat())?;
        if !output.status.success() {
            bail!("kcat: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        String::from_utf8(output.stdout).context("kcat's output is not UTF-8")
    }
}

/// A line of kcat's JSON envelope.
fn record(line: &str) -> Result<Record> {
    let read = || -> Option<Record> {
        let line: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let payload = text(&line["payload"]);
        // Names and values in turn.
        let headers: Vec<_> = line["headers"].as_array().into_iter().flatten().collect();
        Some(Record {
            partition: line["partition"].as_i64()?.try_into().ok()?,
            offset: line["offset"].as_i64()?,
            key: text(&line["key"]),
            tombstone: payload.is_none(),
            payload: payload.unwrap_or_default(),
            headers: headers
                .chunks_exact(2)
                .map(|pair| (text(pair[0]).unwrap_or_default(), text(pair[1]).unwrap_or_default()))
                .collect(),
        })
    };
    read().with_context(|| format!("not a record of kcat's: {line}"))
}
