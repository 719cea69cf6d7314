//! The limit of the WAL that waits for a source's sinks, and the operator's choice of what becomes of it then. Main threads of workers and
//! scouts.

use super::catalog::SourceRecord;
use super::decoding;
use super::prepare::record_source;
use crate::stream::definition::{AtLimit, PostgresSource};
use crate::stream::shared::Source;
use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

/// How often a worker looks.
const LOOK: Duration = Duration::from_secs(1);

/// How much WAL may wait, and what then.
#[derive(Debug)]
pub(super) struct Limit {
    slot: String,
    bytes: Option<u64>,
    then: AtLimit,
    looked: Instant,
    warned: bool,
    /// It is more, and the slot is to be dropped: why.
    pub over: Option<String>,
}

impl Limit {
    pub fn new(slot: &str, options: &PostgresSource) -> Self {
        Self {
            slot: slot.to_owned(),
            bytes: options.wal_limit,
            then: options.at_limit,
            looked: Instant::now(),
            warned: false,
            over: None,
        }
    }

    /// Once a second.
    pub fn look(&mut self, source: &Source) {
        if self.bytes.is_none() || self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let Some(error) = beyond(&self.slot, self.bytes) else {
            self.warned = false;
            return;
        };
        if self.then == AtLimit::Drop {
            self.over = Some(error);
        } else {
            say(source, &error, !std::mem::replace(&mut self.warned, true));
        }
    }
}

/// Why, if more WAL is kept for a slot than may be.
pub(super) fn beyond(slot: &str, limit: Option<u64>) -> Option<String> {
    let limit = limit?;
    let retained = decoding::retained(slot).filter(|retained| *retained > limit)?;
    Some(format!(
        "{retained} bytes of WAL are kept for replication slot \"{slot}\", more than its wal_limit of {limit}"
    ))
}

pub(super) fn say(source: &Source, error: &str, loudly: bool) {
    source.say(error);
    if loudly {
        source.errors.fetch_add(1, Relaxed);
        warning!("postern: source \"{}\": {error}", source.name.text());
    }
}

/// Drops a slot that nobody has, because of too much WAL, and states the gap. What to show for it; or why it cannot be.
pub(super) fn drop_slot(
    source: &Source,
    record: &mut SourceRecord,
    error: &str,
    delivered: &str,
) -> Result<String, String> {
    let name = source.name.text();
    BackgroundWorker::transaction(|| decoding::drop_slot(&record.slot));
    let stated =
        format!("{error}: it was dropped; changes after {delivered} that were not delivered are lost");
    warning!("postern: source \"{name}\": {stated}");
    source.gap.set(&stated);
    record.gap = Some(stated.clone());
    record_source(&name, record).map(|()| stated)
}
