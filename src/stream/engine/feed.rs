//! One stream as the engine feeds it: its sink, where it began, what it has been given. Engine's thread.

use super::StreamReport;
use super::marks::Marks;
use crate::stream::clock::{EPOCH, now};
use crate::stream::position::Position;
use crate::stream::shared::{Stream, StreamState};
use crate::stream::sink::{Event, Failure, Given, Sink};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The pause before a failed sink is made again is doubled so many times at most.
const MOST_DOUBLINGS: u32 = 5;

/// A stream as it is to be fed.
pub struct From {
    pub sink: Sort,
    /// Up to here it has everything.
    pub begins: StreamReport,
    pub shown: &'static Stream,
    /// After a failure it is made again after so long.
    pub retry: Duration,
}

/// What there is to feed.
pub enum Sort {
    Sink(Box<dyn Sink>),
    /// Nothing, because its sink cannot be made: tried again as after a failure.
    Unmade(Failure),
    /// Nothing at the moment: it is stopped or paused. What it lacks is kept for it.
    Nothing,
}

enum Course {
    Fed,
    /// It was too slow for the others, or it has failed. What it lacks is decoded again for it: when it has all that it was given, or at
    /// that time.
    Behind(Option<Instant>),
    /// Until somebody changes something.
    Off,
}

pub(super) struct Feed {
    sink: Option<Box<dyn Sink>>,
    course: Course,
    began_fed: bool,
    from: StreamReport,
    shown: &'static Stream,
    retry: Duration,
    /// Serial numbers: of the last event that it was given, and up to which it has all.
    given: u64,
    has: u64,
    /// When it was left behind: the transactions of what it was given.
    marks: Option<Marks>,
    /// When nothing more will change: where it is.
    stays: Option<StreamReport>,
    trouble: bool,
    /// Events that the sink has left out.
    skipped: u64,
}

impl Feed {
    pub fn new(from: From) -> Self {
        let began_fed = !matches!(from.sink, Sort::Nothing);
        let (sink, course, failure) = match from.sink {
            Sort::Sink(sink) => (Some(sink), Course::Fed, None),
            Sort::Unmade(failure) => (None, Course::Off, Some(failure)),
            Sort::Nothing => (None, Course::Off, None),
        };
        if sink.is_some() {
            from.shown.set_state(StreamState::Running);
        }
        let stays = matches!(course, Course::Off).then_some(from.begins);
        let mut feed = Self {
            began_fed,
            sink,
            course,
            from: from.begins,
            shown: from.shown,
            retry: from.retry,
            given: 0,
            has: 0,
            marks: None,
            stays,
            trouble: false,
            skipped: 0,
        };
        if let Some(failure) = failure {
            feed.fail(&failure);
        }
        feed
    }

    pub fn shown(&self) -> &'static Stream {
        self.shown
    }

    pub fn is_fed(&self) -> bool {
        matches!(self.course, Course::Fed)
    }

    /// It was fed and is no more.
    pub fn is_lost(&self) -> bool {
        self.began_fed && !self.is_fed()
    }

    /// Something is out that it has not confirmed.
    pub fn is_out(&self) -> bool {
        self.sink.is_some() && self.has < self.given
    }

    pub fn wants(&self, position: Position) -> bool {
        self.is_fed() && position > self.from.position
    }

    /// Whether it took the event or needs it no more.
    pub fn give(&mut self, event: &Event<'_>) -> bool {
        let Some(sink) = self.sink.as_mut().filter(|_| matches!(self.course, Course::Fed)) else {
            return true;
        };
        match sink.give(event) {
            Ok(Given::Taken) => {
                self.given = event.serial;
                self.shown.events.fetch_add(1, Relaxed);
                self.shown.bytes.fetch_add(event.payload.len() as u64, Relaxed);
                true
            }
            Ok(Given::Full) => false,
            Err(failure) => {
                self.fail(&failure);
                true
            }
        }
    }

    pub fn flush(&mut self) {
        if let Some(sink) = &mut self.sink
            && let Err(failure) = sink.flush()
        {
            self.fail(&failure);
        }
    }

    pub fn poll(&mut self, patience: Duration) {
        let Some(sink) = &mut self.sink else { return };
        match sink.poll(patience) {
            Ok(progress) => {
                if progress.delivered > self.has {
                    self.has = progress.delivered;
                    self.shown.failures.store(0, Relaxed);
                    self.shown.delivered_at.store(now(), Relaxed);
                }
                let before = std::mem::replace(&mut self.skipped, progress.skipped);
                self.shown.skipped.fetch_add(progress.skipped.saturating_sub(before), Relaxed);
                if progress.trouble.is_some() != self.trouble {
                    self.trouble = progress.trouble.is_some();
                    if self.is_fed() {
                        let state = if self.trouble { StreamState::Trouble } else { StreamState::Running };
                        self.shown.set_state(state);
                    }
                }
                if let Some(trouble) = progress.trouble {
                    self.say(&trouble);
                }
            }
            Err(failure) => self.fail(&failure),
        }
    }

    fn say(&self, error: &str) {
        if self.shown.error.get().as_deref() != Some(error) {
            self.shown.errors.fetch_add(1, Relaxed);
        }
        self.shown.say(error);
    }

    fn fail(&mut self, failure: &Failure) {
        self.say(&failure.message);
        self.sink = None;
        if failure.lasting {
            self.shown.set_state(StreamState::Blocked);
            self.course = Course::Off;
        } else {
            self.shown.set_state(StreamState::Failed);
            // Each try costs the other streams of its source a new beginning: it is tried less and less often.
            let failures = self.shown.failures.fetch_add(1, Relaxed).min(MOST_DOUBLINGS);
            self.course = Course::Behind(Some(Instant::now() + self.retry * (1 << failures)));
        }
    }

    /// The others go on without it.
    pub fn leave_behind(&mut self, marks: &Marks) {
        if self.is_fed() {
            self.marks = Some(marks.up_to(self.given));
            self.shown.set_state(StreamState::Trouble);
            self.course = Course::Behind(None);
        }
    }

    /// It is well again, or it is time to see whether it is.
    pub fn wants_again(&mut self) -> bool {
        match self.course {
            Course::Behind(Some(at)) => Instant::now() >= at,
            Course::Behind(None) => !self.is_out(),
            Course::Fed | Course::Off => false,
        }
    }

    /// The serial number up to which its sink has said that it has everything.
    pub fn has(&self) -> u64 {
        self.has
    }

    /// The serial number up to which it lacks nothing that is kept for it here, of those that were used up to `serial`.
    pub fn delivered(&self, serial: u64) -> u64 {
        if self.is_fed() && self.is_out() { self.has } else { serial.max(self.has) }
    }

    /// Where it is.
    pub fn report(&mut self, marks: &Marks, serial: u64) -> StreamReport {
        if let Some(stays) = &self.stays {
            return *stays;
        }
        // Who is fed no more has what it was given, and nothing after it.
        let has = if self.is_fed() { self.delivered(serial) } else { self.has };
        let marks = self.marks.as_ref().unwrap_or(marks);
        let (position, delivered) = marks.position(has);
        let report = StreamReport {
            position: position.max(self.from.position),
            delivered: delivered.max(self.from.delivered),
        };
        if !self.is_fed() && !self.is_out() {
            self.stays = Some(report);
        }
        self.shown.commit.store(report.position.commit.0, Relaxed);
        self.shown.ordinal.store(report.position.ordinal, Relaxed);
        self.shown.delivered.store(report.delivered.0, Relaxed);
        self.shown.behind_since.store(marks.oldest(has).map_or(0, |time| time + EPOCH), Relaxed);
        report
    }
}
