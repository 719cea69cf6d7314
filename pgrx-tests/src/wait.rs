//! Waiting for a condition with a time limit, instead of sleeping.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How long most things may take on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(30);

const STEP: Duration = Duration::from_millis(10);

/// Returns when `holds` does.
///
/// # Errors
/// When it does not within [`LIMIT`]; `what` says what was waited for.
pub fn until(what: &str, holds: impl FnMut() -> bool) -> Result<()> {
    until_within(LIMIT, what, holds)
}

/// [`until`] with a limit of one's own.
///
/// # Errors
/// As [`until`].
pub fn until_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("not within {limit:?}: {what}");
        }
        std::thread::sleep(STEP);
    }
}

/// Returns what `give` gives, once it gives something.
///
/// # Errors
/// As [`until`], with the last error that `give` had.
pub fn for_value<T>(what: &str, mut give: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match give() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not in time: {what}")));
            }
            Err(_) => std::thread::sleep(STEP),
        }
    }
}
