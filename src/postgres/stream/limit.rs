//! The limit of the WAL that waits for a source's sinks, and the operator's choice of what becomes of it then. Main threads of workers and
//! scouts.

use super::catalog::SourceRecord;
use super::decoding;
use super::prepare::{GO_ON, record_source};
use crate::stream::clock::now;
use crate::stream::definition::{AtLimit, LostSlot, PostgresSource};
use crate::stream::gap;
use crate::stream::shared::{Source, SourceState};
use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

/// How often a worker looks.
const LOOK: Duration = Duration::from_secs(1);

/// How often the log warns while it is too much.
const WARN: Duration = Duration::from_secs(600);

/// How much WAL may wait, and what then.
#[derive(Debug)]
pub(super) struct Limit {
    slot: String,
    bytes: Option<u64>,
    then: AtLimit,
    looked: Instant,
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
            over: None,
        }
    }

    /// Once a second.
    pub fn look(&mut self, source: &Source) {
        if self.bytes.is_none() || self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        match beyond(&self.slot, self.bytes) {
            None => source.warned_at.store(0, Relaxed),
            Some(error) if self.then == AtLimit::Drop => self.over = Some(error),
            Some(error) => warn(source, &error),
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

/// Shows it; the log has it when it becomes too much, and from time to time while it is.
pub(super) fn warn(source: &Source, error: &str) {
    let now = now();
    // What waits for the operator is not to be forgotten over it.
    if source.state() != SourceState::Blocked {
        source.error.say(error);
    }
    let before = source.warned_at.load(Relaxed);
    if before == 0 || now.saturating_sub(before) >= WARN.as_micros() as i64 {
        source.warned_at.store(now, Relaxed);
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
    lost_slot: LostSlot,
) -> Result<String, String> {
    let name = source.name.text();
    BackgroundWorker::transaction(|| decoding::drop_slot(&record.slot));
    let stated =
        format!("{error}: it was dropped; changes after {delivered} that were not delivered are lost");
    warning!("postern: source \"{name}\": {stated}");
    let gaps = gap::stated(record.gap.as_deref(), &stated);
    source.gap.set(&gaps);
    record.gap = Some(gaps);
    record_source(&name, record)?;
    Ok(match lost_slot {
        LostSlot::Stop => format!("{stated}; {GO_ON}"),
        LostSlot::Continue => stated,
    })
}
