//! What one answer is made from: what is known of the server, settings and counts. Network threads.

use super::inquiry::Known;
use super::metrics::Family;
use super::shared::Shared;
use crate::settings::Settings;
use std::time::{SystemTime, UNIX_EPOCH};

/// All that an answer is made from.
pub struct Snapshot<'a> {
    pub known: &'a Known,
    pub settings: &'a Settings,
    pub shared: &'a Shared,
    /// The metrics of other services; asked only by the page that shows them.
    pub more: &'a (dyn Fn() -> Vec<Family> + Send + Sync),
}

/// Seconds since 1970, as Prometheus and Patroni count.
pub fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
