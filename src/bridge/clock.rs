//! The time of words in shared memory, for every process of the server. Any thread.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}
