//! Time limits of clients that a backend serves: how long a query and a transaction may take, how long a transaction may be idle, how
//! long the rest of a message may take to come. Network threads; main looks at what the backends do.
//!
//! Nothing of this is on a query's path: once a second the pool's keeper asks what those of its backends do that have been serving
//! for a while, as the server's own tables show it, and a backend that is beyond a limit is told to end, with the reason beside its
//! connection's words. Clients that have sent a part of a message and have no backend are looked at here too.

use super::front::Front;
use super::glance::is_logged_in;
use super::pools::{Pool, signal};
use super::shared::{Server, ServerState, now};
use super::slot::State;
use crate::login::Question;
use crate::settings::PoolerSettings;
use crate::wire::message::Report;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

/// A backend that has been serving for less than this is nobody's concern: the limits are in whole seconds.
const MOMENT: i64 = 1_000_000;

/// Bytes after which the time of a long message begins anew: who sends so much in the time is slow, and not stuck.
const FAIR: u64 = 64 * 1024;

/// What comes so soon after a query's end may have been sent before it: the system counts the time in ticks.
const LATER: i64 = 100_000;

/// A limit that ends a client, and what the client and the log hear of it. The codes are those of the server's own time-outs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Limit {
    Query = 1,
    Transaction = 2,
    IdleTransaction = 3,
    Message = 4,
}

impl Limit {
    /// By the number in [`Server::ending`].
    pub fn of(number: u32) -> Option<Self> {
        [Self::Query, Self::Transaction, Self::IdleTransaction, Self::Message]
            .into_iter()
            .find(|limit| *limit as u32 == number)
    }

    pub fn sqlstate(self) -> &'static str {
        match self {
            Self::Query => "57014",
            Self::Transaction => "25P04",
            Self::IdleTransaction => "25P03",
            Self::Message => "57P05",
        }
    }

    pub fn message(self) -> &'static std::ffi::CStr {
        match self {
            Self::Query => c"terminating connection due to postern.query_timeout",
            Self::Transaction => c"terminating connection due to postern.transaction_timeout",
            Self::IdleTransaction => c"terminating connection due to postern.idle_transaction_timeout",
            Self::Message => {
                c"terminating connection due to postern.client_message_timeout: the rest of a message has not come"
            }
        }
    }

    fn report(self) -> Report {
        Report::fatal(self.sqlstate(), self.message().to_string_lossy())
    }
}

/// What a backend does, as main has seen it. Times are microseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// It waits for bytes of its client.
    pub reads: bool,
    pub in_transaction: bool,
    /// Since when a query runs, or a transaction is idle. Both are 0 when the backend does neither, or does not say
    /// (`track_activities`).
    pub runs_since: i64,
    pub idles_since: i64,
    /// The idle transaction has failed.
    pub failed: bool,
    /// When its transaction has begun; 0 when there is none, or the backend does not say.
    pub transaction_since: i64,
}

/// What has come over a TCP connection, as the system counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub bytes: u64,
    /// How long ago the last of it came.
    pub quiet: Duration,
}

/// The limits in microseconds; those that are off are never reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    query: i64,
    transaction: i64,
    idle_transaction: i64,
    message: i64,
}

impl Limits {
    fn of(settings: &PoolerSettings) -> Self {
        let micros = |time: Option<Duration>| {
            time.map_or(i64::MAX, |time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
        };
        Self {
            query: micros(settings.query_timeout),
            transaction: micros(settings.transaction_timeout),
            idle_transaction: micros(settings.idle_transaction_timeout),
            message: micros(settings.client_message_timeout),
        }
    }

    fn are_off(&self) -> bool {
        [self.query, self.transaction, self.idle_transaction, self.message]
            .iter()
            .all(|limit| *limit == i64::MAX)
    }

    /// Which one a backend is beyond that has served since `served`, and has waited for the rest of a message since `reading`.
    fn exceeded(&self, activity: &Activity, served: i64, reading: Option<i64>, now: i64) -> Option<Limit> {
        let beyond = |since: i64, limit: i64| since != 0 && now - since >= limit;
        let transaction = match activity.transaction_since {
            0 if activity.in_transaction => served,
            since => since,
        };
        if reading.is_some_and(|since| beyond(since, self.message)) {
            Some(Limit::Message)
        } else if beyond(activity.runs_since, self.query) {
            Some(Limit::Query)
        } else if beyond(activity.idles_since, self.idle_transaction) {
            Some(Limit::IdleTransaction)
        } else if beyond(transaction, self.transaction) {
            Some(Limit::Transaction)
        } else {
            None
        }
    }
}

/// Which message the backend reads, named by a time that no later one has; `None` when it reads none, as far as can be told.
///
/// Outside a transaction a backend serves a client only when there is a message, so it waits for the rest of one. In a transaction it
/// has one when something has come since the transaction is idle: anything whole would have ended that. In a failed one, what comes
/// may be the end of a COPY, which is dropped.
fn message(activity: &Activity, served: i64, received: Option<Received>, now: i64) -> Option<i64> {
    if !activity.reads {
        None
    } else if !activity.in_transaction {
        Some(served)
    } else {
        let came = now - i64::try_from(received?.quiet.as_micros()).unwrap_or(i64::MAX);
        let idles = activity.idles_since != 0 && !activity.failed;
        (idles && came > activity.idles_since + LATER).then_some(activity.idles_since)
    }
}

/// A backend that waits for the rest of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Tells one message from another.
    message: i64,
    /// Since when, as far as we have seen.
    since: i64,
    /// Bytes that had come over the client's connection then, where the system says.
    received: Option<u64>,
}

impl Reading {
    /// The same a moment later.
    fn goes_on(before: Option<&Self>, message: i64, received: Option<u64>, now: i64) -> Self {
        let begun = Self { message, since: now, received };
        let Some(before) = before.filter(|before| before.message == message) else { return begun };
        let came = received.zip(before.received).map_or(0, |(now, before)| now.saturating_sub(before));
        if came >= FAIR { begun } else { *before }
    }
}

/// A backend that serves, as it was when main was asked.
struct Busy {
    number: u32,
    server: &'static Server,
    served: i64,
    slot: u32,
    generation: u32,
}

/// Whether some backend of the pool is to be looked at.
pub(super) fn concern(front: &Front, pool: &Pool) -> bool {
    !Limits::of(&front.bridge.settings().pooler).are_off() && busy(front, pool).next().is_some()
}

/// The backends of a pool that have been serving for a while and are not being ended yet.
fn busy<'a>(front: &'a Front, pool: &'a Pool) -> impl Iterator<Item = Busy> + 'a {
    let now = now();
    pool.words.members.iter().filter_map(move |member| {
        let number = member.load(Acquire).checked_sub(1)?;
        let server: &'static Server = front.shared.servers.get(number as usize)?;
        let served = server.since.load(Relaxed);
        let slot = server.slot.load(Acquire).checked_sub(1)?;
        let seen = front.shared.slots.get(slot as usize)?.word.seen();
        let serves = server.state() == ServerState::Serving
            && now - served >= MOMENT
            && server.ending.load(Relaxed) == 0
            && seen.state() == State::Attached
            && seen.server() == number;
        serves.then_some(Busy { number, server, served, slot, generation: seen.generation() })
    })
}

/// Once a second: ends the clients of backends that are beyond a limit.
pub(super) async fn look_at_backends(front: Arc<Front>, pool: Arc<Pool>) {
    let limits = Limits::of(&front.bridge.settings().pooler);
    let mut readings = HashMap::new();
    let busy: Vec<_> = busy(&front, &pool).collect();
    let servers = busy.iter().map(|one| one.number).collect();
    let answer = front.questions.ask(|reply| Question::Activity { servers, reply }).await;
    let now = now();
    for (one, activity) in busy.iter().zip(answer.unwrap_or_default()) {
        let Some(activity) = activity else { continue };
        let server = one.number;
        let received = || front.seats.wire(one.slot, one.generation).and_then(front.received);
        let received = if activity.reads { received() } else { None };
        let mut reading = None;
        if let Some(message) = message(&activity, one.served, received, now) {
            let before = pool.readings.lock().get(&server).copied();
            let goes_on =
                Reading::goes_on(before.as_ref(), message, received.map(|received| received.bytes), now);
            readings.insert(server, goes_on);
            reading = Some(goes_on.since);
        }
        if let Some(limit) = limits.exceeded(&activity, one.served, reading, now) {
            end(&front, one, limit);
        }
    }
    *pool.readings.lock() = readings;
    pool.watching.store(false, Relaxed);
}

/// As with a cancel: meanwhile the backend keeps the client, so that no other one is hit.
fn end(front: &Front, busy: &Busy, limit: Limit) {
    let word = &front.shared.slots[busy.slot as usize].word;
    let Some(number) = word.start_cancel(busy.generation) else { return };
    let server = busy.server;
    let same = number == busy.number
        && server.state() == ServerState::Serving
        && server.since.load(Relaxed) == busy.served;
    if same && server.ending.swap(limit as u32, AcqRel) == 0 {
        signal(server, rustix::process::Signal::TERM);
    }
    word.cancelled(busy.generation, number);
}

/// Once a second: ends those who have sent a part of a message, too small for a backend to take them, and not the rest in time.
pub(super) fn look_at_parts(front: &Arc<Front>, pool: &Pool) {
    let limit = Limits::of(&front.bridge.settings().pooler).message;
    let now = now();
    let mut late = Vec::new();
    pool.parts.lock().retain(|(number, generation)| {
        let Some(slot) = front.shared.slots.get(*number as usize) else { return false };
        let since = slot.part_since.load(Relaxed);
        let there = slot.word.seen().generation() == *generation && is_logged_in(slot) && since != 0;
        // A whole message that waits for a backend is not the client's fault.
        if there && now.saturating_sub(since) >= limit && !has_message(front, *number, *generation) {
            late.push((*number, *generation));
        }
        there
    });
    for (number, generation) in late {
        // A backend may be looking at it just now; then it is the next look's.
        front.end_idle(number, generation, &Limit::Message.report());
    }
}

/// Whether the client has sent only a part of a message, as far as can be seen without a backend.
pub(super) fn sends_a_part(front: &Front, number: u32, generation: u32) -> bool {
    let slot = &front.shared.slots[number as usize];
    slot.part_since.load(Relaxed) != 0 && !has_message(front, number, generation)
}

fn has_message(front: &Front, number: u32, generation: u32) -> bool {
    let discard = front.shared.slots[number as usize].discard.load(Relaxed);
    front.seats.has_message(number, generation, discard as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Limits =
        Limits { query: i64::MAX, transaction: i64::MAX, idle_transaction: i64::MAX, message: i64::MAX };
    const SECOND: i64 = 1_000_000;

    #[test]
    fn each_limit_counts_its_own_time() {
        let now = 100 * SECOND;
        let runs = Activity {
            in_transaction: true,
            runs_since: 97 * SECOND,
            transaction_since: 90 * SECOND,
            ..Activity::default()
        };
        let idles = Activity { runs_since: 0, idles_since: 97 * SECOND, reads: true, ..runs };
        let reads = Activity { reads: true, ..Activity::default() };
        let exceeded =
            |limits: Limits, activity, reading| limits.exceeded(&activity, 90 * SECOND, reading, now);
        let query = Limits { query: 3 * SECOND, ..OFF };
        assert_eq!(exceeded(query, runs, None), Some(Limit::Query));
        assert_eq!(exceeded(Limits { query: 4 * SECOND, ..OFF }, runs, None), None);
        assert_eq!(exceeded(query, idles, None), None);
        let idle = Limits { idle_transaction: 3 * SECOND, ..OFF };
        assert_eq!(exceeded(idle, idles, None), Some(Limit::IdleTransaction));
        assert_eq!(exceeded(idle, runs, None), None);
        let transaction = Limits { transaction: 10 * SECOND, ..OFF };
        assert_eq!(exceeded(transaction, runs, None), Some(Limit::Transaction));
        assert_eq!(exceeded(transaction, idles, None), Some(Limit::Transaction));
        assert_eq!(exceeded(transaction, reads, None), None);
        let untold = Activity { in_transaction: true, ..Activity::default() };
        assert_eq!(exceeded(transaction, untold, None), Some(Limit::Transaction));
        let message = Limits { message: 5 * SECOND, ..OFF };
        assert_eq!(exceeded(message, reads, Some(95 * SECOND)), Some(Limit::Message));
        assert_eq!(exceeded(message, reads, Some(96 * SECOND)), None);
        assert!(OFF.are_off() && !message.are_off());
        assert_eq!(exceeded(OFF, runs, Some(1)), None);
    }

    #[test]
    fn who_sends_enough_has_time_and_another_message_has_its_own() {
        let begun = Reading::goes_on(None, 7, Some(1000), 10);
        assert_eq!(begun.since, 10);
        assert_eq!(Reading::goes_on(Some(&begun), 7, Some(1000 + FAIR - 1), 20), begun);
        assert_eq!(Reading::goes_on(Some(&begun), 7, None, 20), begun);
        assert_eq!(Reading::goes_on(Some(&begun), 7, Some(1000 + FAIR), 20).since, 20);
        assert_eq!(Reading::goes_on(Some(&begun), 8, Some(1000), 20).since, 20);
    }

    #[test]
    fn a_message_is_told_from_the_pause_between_two() {
        let (now, served) = (100 * SECOND, 90 * SECOND);
        let received = |millis| Some(Received { bytes: 1, quiet: Duration::from_millis(millis) });
        let reads = Activity { reads: true, ..Activity::default() };
        assert_eq!(message(&reads, served, None, now), Some(served));
        assert_eq!(message(&Activity { reads: false, ..reads }, served, received(0), now), None);
        let idles = Activity { in_transaction: true, idles_since: 95 * SECOND, ..reads };
        assert_eq!(message(&idles, served, received(4_800), now), Some(95 * SECOND));
        assert_eq!(message(&idles, served, received(4_950), now), None);
        assert_eq!(message(&idles, served, None, now), None);
        assert_eq!(message(&Activity { failed: true, ..idles }, served, received(0), now), None);
        let copies = Activity { idles_since: 0, runs_since: 95 * SECOND, ..idles };
        assert_eq!(message(&copies, served, received(0), now), None);
    }

    #[test]
    fn limits_are_known_by_their_numbers() {
        for limit in [Limit::Query, Limit::Transaction, Limit::IdleTransaction, Limit::Message] {
            assert_eq!(Limit::of(limit as u32), Some(limit));
            assert!(limit.message().to_string_lossy().contains("postern."));
        }
        assert_eq!(Limit::of(0), None);
    }
}
