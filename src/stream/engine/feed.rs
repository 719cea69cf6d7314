//! One stream as the engine feeds it: its sink, where it began, what it has been given, and how its sink is made again when it has failed.
//! Engine's thread.

use super::StreamReport;
use super::arrears::{Arrears, Kept};
use super::marks::Marks;
use crate::stream::clock::{EPOCH, now};
use crate::stream::position::Position;
use crate::stream::shared::{Stream, StreamState};
use crate::stream::sink::{Event, Failure, Given, Log, Sink};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The pause before a failed sink is made again is doubled so many times at most.
const MOST_DOUBLINGS: u32 = 5;

/// Makes a sink, given the last serial number that it needs not be given. Called with every signal blocked, and again after a failure.
pub type Make = Box<dyn Fn(u64) -> Result<Box<dyn Sink>, Failure> + Send>;

/// A stream as it is to be fed.
pub struct From {
    /// None at the moment: it is stopped or paused. What it lacks is kept for it.
    pub make: Option<Make>,
    /// Up to here it has everything.
    pub begins: StreamReport,
    pub shown: &'static Stream,
    /// After a failure it is made again after so long.
    pub retry: Duration,
    pub log: Log,
}

enum Course {
    Fed,
    /// Its sink has failed and is made again then. What it lacks is kept for it, as long as there is room.
    Failed(Instant),
    /// Its sink was made again, and has been offered what is kept, up to this serial number.
    Recovering(u64),
    /// It was too slow for the others, or lacks what could not be kept. That is decoded again for it: when it has all that it was given,
    /// or at that time.
    Behind(Option<Instant>),
    /// Until somebody changes something.
    Off,
}

pub(super) struct Feed {
    make: Option<Make>,
    sink: Option<Box<dyn Sink>>,
    course: Course,
    from: StreamReport,
    shown: &'static Stream,
    retry: Duration,
    log: Log,
    /// Serial numbers: of the last event that it was given, and up to which it has all.
    given: u64,
    has: u64,
    /// When it was left behind: the transactions of what it was given.
    marks: Option<Marks>,
    /// When nothing more will change: where it is.
    stays: Option<StreamReport>,
    /// Its sink is in trouble, and its source: nothing comes to it.
    trouble: bool,
    source_trouble: bool,
    /// Events that the sink has left out.
    skipped: u64,
}

impl Feed {
    pub fn new(from: From) -> Self {
        let From { make, begins, shown, retry, log } = from;
        let mut feed = Self {
            stays: make.is_none().then_some(begins),
            make,
            sink: None,
            course: Course::Off,
            from: begins,
            shown,
            retry,
            log,
            given: 0,
            has: 0,
            marks: None,
            trouble: false,
            source_trouble: false,
            skipped: 0,
        };
        if feed.make() {
            feed.course = Course::Fed;
            feed.show();
        }
        feed
    }

    /// As long as it is fed, whoever looks at it sees whether all is well.
    fn show(&self) {
        if self.is_fed() {
            let well = !self.trouble && !self.source_trouble;
            self.shown.set_state(if well { StreamState::Running } else { StreamState::Trouble });
        }
    }

    /// Its source is in trouble, or no more.
    pub fn hear_of_source(&mut self, trouble: bool) {
        self.source_trouble = trouble;
        self.show();
    }

    /// Whether there is a sink now.
    fn make(&mut self) -> bool {
        match self.make.as_ref().map(|make| make(self.has)) {
            Some(Ok(sink)) => {
                self.sink = Some(sink);
                self.given = self.has;
                self.trouble = false;
                self.skipped = 0;
                true
            }
            Some(Err(failure)) => {
                self.fail(&failure);
                false
            }
            None => false,
        }
    }

    pub fn shown(&self) -> &'static Stream {
        self.shown
    }

    pub fn is_fed(&self) -> bool {
        matches!(self.course, Course::Fed)
    }

    /// It was fed and is no more, and what it lacks is not kept for it here.
    pub fn is_lost(&self) -> bool {
        self.make.is_some() && !self.is_fed() && !self.is_owed()
    }

    /// Its sink has failed, and all that it lacks is kept for it here.
    pub fn is_owed(&self) -> bool {
        matches!(self.course, Course::Failed(_) | Course::Recovering(_)) && self.marks.is_none()
    }

    /// The serial number of the last event that it was given.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Something is out that it has not confirmed.
    pub fn is_out(&self) -> bool {
        self.sink.is_some() && self.has < self.given
    }

    /// Whether it is to have an event, now or when its sink is made again.
    pub fn wants(&self, position: Position, snapshot: bool) -> bool {
        (self.is_fed() || self.is_owed()) && self.lacks(position, snapshot)
    }

    /// Everybody lacks rows of a snapshot.
    fn lacks(&self, position: Position, snapshot: bool) -> bool {
        snapshot || position > self.from.position
    }

    /// Whether it took the event or needs it no more.
    pub fn give(&mut self, event: &Event<'_>) -> bool {
        if !self.is_fed() {
            return true;
        }
        let was_out = self.is_out();
        let taken = self.hand(event);
        if !self.is_fed() && !was_out {
            // It lacked nothing before this one.
            self.has = self.has.max(event.serial - 1);
        }
        taken
    }

    fn hand(&mut self, event: &Event<'_>) -> bool {
        let Some(sink) = self.sink.as_mut() else { return true };
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

    /// What has failed is made again when it is time, and given what is kept for it.
    pub fn tend(&mut self, arrears: &Arrears) {
        if let Course::Failed(at) = self.course
            && Instant::now() >= at
            && self.make()
        {
            self.course = Course::Recovering(self.has);
            self.shown.set_state(StreamState::Trouble);
        }
        while let Course::Recovering(seen) = self.course {
            let Some(kept) = arrears.after(seen) else { return self.caught_up(arrears) };
            let Kept { serial, position, snapshot, .. } = kept;
            if self.lacks(position, snapshot) && !self.hand(&kept.event()) {
                return;
            }
            if let Course::Recovering(seen) = &mut self.course {
                *seen = serial;
            }
        }
    }

    /// It has been given all that is kept.
    fn caught_up(&mut self, arrears: &Arrears) {
        if !arrears.is_cut() && self.marks.is_none() {
            self.course = Course::Fed;
            self.show();
        } else if self.marks.is_some() {
            self.flush();
            if matches!(self.course, Course::Recovering(_)) {
                self.course = Course::Behind(None);
            }
        }
    }

    /// Everything up to this serial number has been offered to whoever is fed.
    pub fn reach(&mut self, serial: u64) {
        let offered = match self.course {
            Course::Fed => serial,
            Course::Recovering(seen) => seen,
            _ => return,
        };
        if !self.is_out() {
            self.has = self.has.max(offered);
            self.given = self.given.max(self.has);
        }
    }

    /// What comes behind `last` could not be kept: others' marks need not wait for it.
    pub fn lose(&mut self, marks: &Marks, last: u64) {
        if self.is_owed() {
            self.marks = Some(marks.up_to(last.max(self.given)));
        }
    }

    /// The serial number up to which it needs nothing of what is kept.
    pub fn needs(&self, serial: u64) -> u64 {
        match self.course {
            Course::Fed => self.delivered(serial),
            Course::Failed(_) | Course::Recovering(_) => self.has,
            Course::Behind(_) | Course::Off => u64::MAX,
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
                    if self.shown.failures.swap(0, Relaxed) > 0 {
                        self.note("delivers again");
                    }
                    self.shown.delivered_at.store(now(), Relaxed);
                }
                let before = std::mem::replace(&mut self.skipped, progress.skipped);
                self.shown.skipped.fetch_add(progress.skipped.saturating_sub(before), Relaxed);
                if progress.trouble.is_some() != self.trouble {
                    self.trouble = progress.trouble.is_some();
                    self.show();
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
        self.shown.error.say(error);
    }

    /// Its sink is closed, and made again after a while. The others go on.
    fn fail(&mut self, failure: &Failure) {
        self.shown.errors.fetch_add(1, Relaxed);
        self.shown.error.say(&failure.message);
        self.sink = None;
        if failure.lasting {
            self.shown.set_state(StreamState::Blocked);
            self.course = Course::Off;
            self.note(&format!("has failed and waits for you: {}", failure.message));
            return;
        }
        self.shown.set_state(StreamState::Failed);
        let failures = self.shown.failures.fetch_add(1, Relaxed).min(MOST_DOUBLINGS);
        let pause = self.retry * (1 << failures);
        if failures == 0 {
            self.note(&format!("has failed, and its sink is made again in {pause:?}: {}", failure.message));
        }
        let at = Instant::now() + pause;
        self.course = match self.course {
            Course::Behind(_) => Course::Behind(Some(at)),
            _ => Course::Failed(at),
        };
    }

    fn note(&self, what: &str) {
        (self.log)(format!("stream \"{}\" {what}", self.shown.name.text()));
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
    pub fn wants_again(&self) -> bool {
        match self.course {
            Course::Behind(Some(at)) => Instant::now() >= at,
            Course::Behind(None) => !self.is_out(),
            Course::Fed | Course::Failed(_) | Course::Recovering(_) | Course::Off => false,
        }
    }

    /// The serial number up to which its sink has said that it has everything.
    pub fn has(&self) -> u64 {
        self.has
    }

    /// The serial number up to which it lacks nothing that is kept for it here, of those that were used up to `serial`.
    pub fn delivered(&self, serial: u64) -> u64 {
        if (self.is_fed() && self.is_out()) || self.is_owed() { self.has } else { serial.max(self.has) }
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
        if matches!(self.course, Course::Behind(_) | Course::Off) && !self.is_out() {
            self.stays = Some(report);
        }
        self.shown.show_where(report.position, report.delivered);
        self.shown.behind_since.store(marks.oldest(has).map_or(0, |time| time + EPOCH), Relaxed);
        report
    }
}
