//! What one answer is made from: facts, how old they are, what the primary said, settings and counts. Network threads.

use super::facts::Facts;
use super::shared::Shared;
use super::upstream::UpstreamFacts;
use crate::settings::Settings;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// All that an answer is made from.
pub struct Snapshot<'a> {
    pub facts: &'a Facts,
    /// Since main took the facts.
    pub age: Duration,
    pub upstream: Option<&'a Result<UpstreamFacts, String>>,
    pub settings: &'a Settings,
    pub shared: &'a Shared,
}

/// Seconds since 1970, as Prometheus and Patroni count.
pub fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
