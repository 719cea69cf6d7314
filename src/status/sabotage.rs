//! Switches with which tests break the worker as a defect would: HTTP paths below `/test/`, only in a library that was
//! built with the feature `pg_test`. Network threads.

use super::facts::Facts;
use crate::bridge::Bridge;

/// Does what the path asks for; any other path does nothing.
#[cfg(feature = "pg_test")]
pub(super) fn break_on_purpose(path: &str, bridge: &Bridge<Facts>) {
    use crate::bridge::{LOG_QUEUE, Level};
    match path {
        "/test/panic" => panic!("on purpose"),
        "/test/fail" => bridge.fail("on purpose"),
        "/test/flood-log" => {
            // Faster than main can write them, so the queue must overflow.
            (0..LOG_QUEUE * 40).for_each(|i| bridge.log(Level::Log, format!("flood {i}")));
        }
        _ => {}
    }
}

#[cfg(not(feature = "pg_test"))]
pub(super) fn break_on_purpose(_path: &str, _bridge: &Bridge<Facts>) {}
