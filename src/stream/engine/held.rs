//! A sink that a test holds in its hand.

use super::Make;
use crate::stream::sink::{Event, Failure, Given, Progress, Sink};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// What a test and its sink share.
#[derive(Default)]
pub struct Hand {
    /// Serial numbers and payloads.
    pub taken: Vec<(u64, String)>,
    /// Up to which serial number the sink says that it has delivered; nothing: all that it took.
    pub holds: Option<u64>,
    pub full: bool,
    pub fails: Option<Failure>,
    pub trouble: Option<String>,
    /// What each sink was made with.
    pub made: Vec<u64>,
}

impl Hand {
    pub fn serials(&self) -> Vec<u64> {
        self.taken.iter().map(|(serial, _)| *serial).collect()
    }
}

struct Held(Arc<Mutex<Hand>>);

/// Makes sinks that are in this hand.
pub fn make(hand: &Arc<Mutex<Hand>>) -> Make {
    let hand = Arc::clone(hand);
    Box::new(move |delivered| {
        hand.lock().made.push(delivered);
        Ok(Box::new(Held(Arc::clone(&hand))))
    })
}

pub fn fail(lasting: bool) -> Option<Failure> {
    Some(Failure { message: "no".into(), lasting })
}

impl Sink for Held {
    fn give(&mut self, event: &Event<'_>) -> Result<Given, Failure> {
        let mut hand = self.0.lock();
        if let Some(failure) = hand.fails.clone() {
            return Err(failure);
        }
        if hand.full {
            return Ok(Given::Full);
        }
        let payload = String::from_utf8_lossy(event.payload).into_owned();
        hand.taken.push((event.serial, payload));
        Ok(Given::Taken)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn poll(&mut self, patience: Duration) -> Result<Progress, Failure> {
        let hand = self.0.lock();
        let last = hand.taken.last().map_or(0, |(serial, _)| *serial);
        let delivered = hand.holds.map_or(last, |holds| holds.min(last));
        let trouble = hand.trouble.clone();
        drop(hand);
        std::thread::sleep(patience.min(Duration::from_millis(1)));
        Ok(Progress { delivered, skipped: 0, trouble })
    }
}
