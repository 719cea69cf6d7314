//! LISTEN, UNLISTEN and NOTIFY of the client that is served. The server queues and checks them as ever; just before a transaction
//! commits, the relay is told to listen in its stead, and the session itself listens to nothing. A backend gives its client what the
//! relay has heard before an idle ReadyForQuery and while it waits for it. Pooled backends.

use super::super::shim;
use super::links::Links;
use super::{Agent, Seat, agent};
use crate::pooler::control::Word;
use crate::pooler::notifications::IN_FORCE;
use crate::pooler::shared::{Server, Shared, now};
use crate::relay::reader::{Batch, Collected, Reader};
use crate::relay::refusal::{Refusal, too_slow};
use crate::wire::message::Report;
use pgrx::prelude::*;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::atomic::{Ordering::*, fence};

/// Bytes of notifications that a client is given at a time.
const BATCH: usize = 64 * 1024;

/// How long the front may take to answer, and the relay to hear what its own database has committed: microseconds.
const ANSWER: i64 = 30_000_000;
const HEARD: i64 = 1_000_000;

/// What a transaction does, and at which depth it does it.
struct Action {
    level: c_int,
    what: What,
}

#[derive(PartialEq, Eq)]
enum What {
    Listen(Vec<u8>),
    Unlisten(Vec<u8>),
    UnlistenAll,
    Notify,
}

/// What a transaction comes to.
#[derive(Default)]
struct Outcome {
    /// Channels to listen to.
    new: Vec<Vec<u8>>,
    /// Numbers of listens that end.
    over: Vec<u32>,
}

pub(super) struct Listens {
    shared: crate::relay::shared::Shared,
    reader: Reader,
    marker: CString,
    /// Of the transaction under way.
    actions: Vec<Action>,
    outcome: Outcome,
    /// The front has been asked for listens that are tentative.
    asked: bool,
    /// Before the next ReadyForQuery: listens that have ended, and whether tentative ones have.
    over: Vec<u32>,
    take_back: bool,
    /// The number of the last request.
    request: u32,
    /// The number of the transaction under way or the last one that notified; whether it is under way; and the last that has committed
    /// while the client listened.
    sequence: u64,
    notifies: bool,
    sent: u64,
    batch: Batch,
}

impl Listens {
    pub(super) fn new() -> Option<Self> {
        let shared = super::super::shmem::relay()?;
        Some(Self {
            shared,
            reader: Reader::new(shared),
            marker: CString::new(shared.marker()).ok()?,
            actions: Vec::new(),
            outcome: Outcome::default(),
            asked: false,
            over: Vec::new(),
            take_back: false,
            request: 0,
            sequence: 0,
            notifies: false,
            sent: 0,
            batch: Batch::default(),
        })
    }

    fn act(&mut self, level: c_int, what: What) {
        self.actions.push(Action { level, what });
        // SAFETY: a flag of the shim, on the only thread.
        unsafe { shim::postern_seen.acts = true };
    }

    /// What the transaction would come to if it committed now.
    fn outcome(&self, client: u32) -> Outcome {
        let mut had: Vec<(u32, Vec<u8>, bool)> = self
            .shared
            .listens_of(client)
            .filter_map(|(number, listen)| Some((number, self.shared.channel_of(listen)?.name.bytes(), true)))
            .collect();
        let mut new: Vec<Vec<u8>> = Vec::new();
        for action in &self.actions {
            match &action.what {
                What::Listen(name) => match had.iter_mut().find(|(_, had, _)| had == name) {
                    Some((_, _, keep)) => *keep = true,
                    None if new.contains(name) => {}
                    None => new.push(name.clone()),
                },
                What::Unlisten(name) => {
                    new.retain(|new| new != name);
                    had.iter_mut().filter(|(_, had, _)| had == name).for_each(|(_, _, keep)| *keep = false);
                }
                What::UnlistenAll => {
                    new.clear();
                    had.iter_mut().for_each(|(_, _, keep)| *keep = false);
                }
                What::Notify => {}
            }
        }
        let over = had.into_iter().filter(|(_, _, keep)| !keep).map(|(number, _, _)| number).collect();
        Outcome { new, over }
    }

    /// Asks the front, and waits for its answer; `None` when the front is gone or does not answer.
    fn ask(
        &mut self,
        (links, server, shared, epoch): (&Links, &Server, Shared, u32),
        interruptible: bool,
        word: impl FnOnce(u32) -> Word,
    ) -> Option<u32> {
        self.request = self.request.wrapping_add(1).max(1);
        links.say(word(self.request));
        let until = now() + ANSWER;
        let answer = wait_until(until, interruptible, || {
            let answer = server.answer.load(Acquire);
            if (answer >> 32) as u32 == self.request {
                return Some(Some(answer as u32));
            }
            (shared.header.epoch.load(Acquire) != epoch).then_some(None)
        });
        answer.flatten()
    }
}

/// Waits on the latch until there is what is looked for, or it is too late.
fn wait_until<T>(until: i64, interruptible: bool, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let found = loop {
        if let Some(found) = look() {
            break Some(found);
        }
        if now() >= until {
            break None;
        }
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH | pg_sys::WL_TIMEOUT;
        // SAFETY: our own latch, on the process's only thread.
        unsafe {
            pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, 100, pg_sys::PG_WAIT_EXTENSION);
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        if interruptible {
            check_for_interrupts!();
        }
    };
    // It may have been set for somebody who looks later.
    // SAFETY: our own latch.
    unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
    found
}

/// The client has run LISTEN, UNLISTEN or UNLISTEN *, which the server has queued.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_listens(kind: c_int, channel: *const c_char, level: c_int) {
    let Some(agent) = agent() else { return };
    if agent.seat.is_none() {
        return;
    }
    // SAFETY: a terminated string of the statement.
    let name = unsafe { CStr::from_ptr(channel) }.to_bytes().to_vec();
    let what = match kind {
        0 => What::Listen(name),
        1 => What::Unlisten(name),
        _ => What::UnlistenAll,
    };
    agent.listens.act(level, what);
}

/// The client is about to notify: the relay is told who does, before it hears of what.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_notifies(level: c_int) {
    let Some(agent) = agent() else { return };
    // SAFETY: a word of shared memory. On a standby nobody may notify.
    if agent.seat.is_none() || unsafe { pg_sys::RecoveryInProgress() } {
        return;
    }
    agent.announce(level);
}

/// The transaction is about to commit, has, or has not.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_transaction(event: c_int) {
    let Some(agent) = agent() else { return };
    match event {
        0 => agent.before_commit(),
        1 => agent.committed(),
        _ => agent.aborted(),
    }
}

/// A savepoint's transaction has ended, at this depth.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_subtransaction(aborted: bool, level: c_int) {
    let Some(agent) = agent() else { return };
    if aborted {
        agent.listens.actions.retain(|action| action.level < level);
    } else {
        for action in &mut agent.listens.actions {
            action.level = action.level.min(level - 1);
        }
    }
}

/// A ReadyForQuery is about to be sent; whether outside a transaction.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_notifications(idle: bool) {
    if let Some(agent) = agent() {
        agent.look_after_notifications(idle);
    }
}

impl Agent {
    /// Whether the database has a relay.
    fn is_heard(&self) -> bool {
        let database = self.pool.database.load(Relaxed);
        self.listens
            .shared
            .header
            .sources
            .iter()
            .any(|source| source.is_heard() && source.database.load(Relaxed) == database)
    }

    fn announce(&mut self, level: c_int) {
        let Some(seat) = self.seat else { return };
        let listens = &mut self.listens;
        if !listens.notifies {
            listens.notifies = true;
            listens.sequence += 1;
        }
        listens.act(level, What::Notify);
        // Also when the database has no relay: one may begin to hear before this transaction commits, for another client or for a
        // LISTEN that comes later in it; and what is queued at the commit would stand behind what it announces.
        let words = format!("{} {} {}", Shared::client_pid(seat.slot), self.number, listens.sequence);
        if let Ok(payload) = CString::new(words) {
            // SAFETY: in a transaction, as its caller; terminated strings. The same once more is not queued again.
            unsafe { shim::Async_Notify(listens.marker.as_ptr(), payload.as_ptr()) };
        }
    }

    /// Everything that may fail is done now, while the transaction can still be refused.
    fn before_commit(&mut self) {
        let Some(seat) = self.seat else { return };
        self.listens.outcome = self.listens.outcome(seat.slot);
        if !self.listens.outcome.over.is_empty() && self.is_heard() {
            // When the relay hears of this it has heard everything that was committed before: that is still the client's.
            self.announce(1);
        }
        let Some(links) = &self.links else { return };
        let listens = &mut self.listens;
        let new = std::mem::take(&mut listens.outcome.new);
        for name in new {
            self.server.channel.set(&name);
            listens.asked = true;
            let front = (links, self.server, self.shared, self.epoch);
            let answer = listens.ask(front, true, |request| Word::Listen {
                slot: seat.slot,
                generation: seat.generation,
                request,
            });
            match answer {
                Some(IN_FORCE) => {}
                Some(number) => refuse(Refusal::of(number).unwrap_or(Refusal::Ended).report()),
                None => refuse(Report::error("58000", "the notification relay does not answer")),
            }
        }
        if listens.actions.iter().any(|action| matches!(action.what, What::Listen(_))) {
            // The session itself listens to nothing.
            // SAFETY: in the transaction that is about to commit, where queuing is still allowed.
            unsafe { shim::Async_UnlistenAll() };
        }
    }

    fn committed(&mut self) {
        let Some(seat) = self.seat else { return };
        let orphan = self.is_orphan();
        let listens = &mut self.listens;
        if listens.asked && !orphan {
            for (_, listen) in listens.shared.listens_of(seat.slot) {
                listen.tentative.store(0, Relaxed);
            }
        }
        let over = std::mem::take(&mut listens.outcome.over);
        listens.over.extend(over);
        if listens.actions.iter().any(|action| action.what == What::Notify) {
            listens.sent = listens.sequence;
        }
        self.transaction_is_over();
    }

    fn aborted(&mut self) {
        self.listens.take_back |= self.listens.asked;
        self.transaction_is_over();
    }

    fn transaction_is_over(&mut self) {
        let listens = &mut self.listens;
        listens.actions.clear();
        listens.outcome = Outcome::default();
        listens.asked = false;
        listens.notifies = false;
        // SAFETY: flags of the shim, on the only thread.
        unsafe {
            shim::postern_seen.acts = false;
            shim::postern_seen.listens = true;
        }
    }

    /// Whether only this backend can give the client its notifications: they are to be converted, which nobody else can do.
    pub(super) fn converts_notifications(&self) -> bool {
        self.seat.is_some_and(|seat| self.listens.reader.listens(seat.slot)) && converts()
    }

    /// The client is seated: whether its notifications are to be looked after.
    pub(super) fn begin_listening(&mut self, seat: Seat) {
        let listens = self.listens.reader.listens(seat.slot);
        self.listens.sent = 0;
        // SAFETY: a flag of the shim, on the only thread.
        unsafe { shim::postern_seen.listens = listens };
    }

    fn look_after_notifications(&mut self, idle: bool) {
        if self.is_orphan() {
            // Who has the slot's number now listens to what is not this client's to hear.
            return;
        }
        let (Some(seat), Some(links)) = (self.seat, &self.links) else { return };
        let listens = &mut self.listens;
        let front = (links, self.server, self.shared, self.epoch);
        if std::mem::take(&mut listens.take_back) {
            listens.ask(front, false, |request| Word::TakeBack {
                slot: seat.slot,
                generation: seat.generation,
                request,
            });
        }
        // A client's own notifications come before the answer to its COMMIT ends, as the server sends them; and what was committed before
        // its UNLISTEN comes before the answer to that.
        let over = std::mem::take(&mut listens.over);
        let sent = if idle || !over.is_empty() { std::mem::take(&mut listens.sent) } else { 0 };
        if sent != 0 && listens.reader.listens(seat.slot) {
            wait_until(now() + HEARD, false, || (self.server.notified.load(Acquire) >= sent).then_some(()));
        }
        if !over.is_empty() {
            self.give_all_notifications(seat);
        }
        let (Some(links), listens) = (&self.links, &mut self.listens) else { return };
        let front = (links, self.server, self.shared, self.epoch);
        for listen in over {
            listens.ask(front, false, |request| Word::Unlisten { slot: seat.slot, listen, request });
        }
        if !listens.reader.listens(seat.slot) {
            // SAFETY: a flag of the shim, on the only thread.
            unsafe { shim::postern_seen.listens = false };
            return;
        }
        if !idle {
            return;
        }
        self.give_notifications(seat);
    }

    /// Gives the client everything that there is now; more than the ring holds is none of that.
    fn give_all_notifications(&mut self, seat: Seat) {
        let mut bytes = self.listens.shared.words.len() * 8;
        while !self.give_notifications(seat) && !self.too_late && bytes > 0 {
            bytes = bytes.saturating_sub(self.listens.batch.bytes.len().max(1));
        }
    }

    /// Puts what the client lacks among what is sent to it, as much as one goes; whether that was all.
    pub(super) fn give_notifications(&mut self, seat: Seat) -> bool {
        let listens = &mut self.listens;
        let collected = listens.reader.collect(seat.slot, BATCH, &mut listens.batch);
        let bytes = &listens.batch.bytes;
        if !bytes.is_empty() {
            // SAFETY: whole messages, to the client that is attached.
            unsafe {
                if converts() {
                    shim::postern_send_converted(bytes.as_ptr().cast(), bytes.len());
                } else {
                    shim::postern_send(bytes.as_ptr().cast(), bytes.len());
                }
            }
        }
        if collected == Collected::TooLate {
            listens.shared.header.counters.too_slow.fetch_add(1, Relaxed);
            self.too_late = true;
        }
        collected == Collected::All
    }

    /// Gives a client that its backend waits for what there is for it. False when the client is attached no longer: one that waits for
    /// notifications gets the next ones sooner from the relay itself, which writes to idle clients, and one that does not read them holds
    /// no backend.
    pub(super) fn notify(&mut self, seat: Seat, pinned: bool) -> bool {
        if !self.listens.reader.listens(seat.slot) {
            return true;
        }
        fence(SeqCst);
        if !self.listens.reader.is_behind(seat.slot) {
            return true;
        }
        if !pinned {
            // It may be one that does not read, and others wait for this backend: the front writes, which waits for nobody.
            self.let_go();
            return false;
        }
        let all = self.give_notifications(seat);
        // SAFETY: to the client that is attached.
        unsafe { shim::postern_flush() };
        if self.ends_late() {
            return false;
        }
        if !all {
            // The rest after a look at what the client has sent, and at interrupts.
            // SAFETY: our own latch.
            unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
        }
        true
    }

    /// Ends the attached client if it has missed notifications; whether.
    pub(super) fn ends_late(&mut self) -> bool {
        let late = std::mem::take(&mut self.too_late);
        if late {
            self.dismiss(&too_slow());
        }
        late
    }

    /// A client that was given back may lack what has come since it was last looked at: the front did not find it idle.
    pub(super) fn leave_behind(&self, seat: Seat) {
        if !self.listens.reader.listens(seat.slot) {
            return;
        }
        fence(SeqCst);
        if let Some(links) = &self.links
            && self.listens.reader.is_behind(seat.slot)
        {
            links.say(Word::Behind { slot: seat.slot, generation: seat.generation });
        }
    }
}

/// Whether what the client is sent is converted. Nothing is from or to SQL_ASCII, which is no encoding (mbutils.c,
/// PrepareClientEncoding()).
pub(super) fn converts() -> bool {
    const NONE: c_int = pg_sys::pg_enc::PG_SQL_ASCII as c_int;
    // SAFETY: words of the session.
    let (client, database) = unsafe { (pg_sys::pg_get_client_encoding(), pg_sys::GetDatabaseEncoding()) };
    client != database && client != NONE && database != NONE
}

/// Raises the report as an error of the transaction.
fn refuse(report: Report) -> ! {
    let code = match &report.sqlstate[..] {
        "53400" => PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        _ => PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
    };
    let mut error = pgrx::pg_sys::panic::ErrorReport::new(code, report.message, "LISTEN");
    if let Some(hint) = report.hint {
        error = error.set_hint(hint);
    }
    error.report(PgLogLevel::ERROR);
    unreachable!("an error does not return")
}
