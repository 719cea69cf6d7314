//! The session agent: what runs inside a pooled backend. After a ReadyForQuery, instead of waiting for more of its client, the
//! backend gives the client back to the pool and waits for any client of the pool; when one is ready, the agent seats it (its
//! socket, its settings, its prepared statements, its address) and PostgresMain() serves it as it serves any other.
//!
//! - `links`: what the front has given: sockets
//! - `settings`, `statements`: what a session has, and bringing it from one client's to another's
//! - `texts`: dynamic shared memory for it
//! - `transaction`: transactions of the agent's own
//!
//! Single-threaded, in somebody's session: no tokio, no thread. An error in here ends one client and nothing else.

mod links;
mod settings;
mod statements;
pub(super) mod texts;
mod transaction;

use self::links::Links;
use self::settings::{Environment, Refused, SessionSettings};
use self::statements::Statements;
use self::transaction::Transaction;
use super::guc::PoolMode;
use super::{guc, shim, shmem};
use crate::pooler::control::{FRONT_GONE, Word, read_token};
use crate::pooler::shared::{Pin, Pool, Server, ServerState, Shared, Slot, now};
use crate::pooler::slot::{Release, State};
use crate::pooler::state::{self, Settings};
use crate::wire::frame;
use crate::wire::message::Report;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use rustix::net::{RecvFlags, SendFlags};
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::*;

/// A message of at most so many bytes is waited for as a whole before a backend takes its client; a longer one is taken when so much
/// of it is there.
const WHOLE: usize = 4096;

/// The one agent of the process.
struct Place(UnsafeCell<Option<Box<Agent>>>);

// SAFETY: a backend has one thread.
unsafe impl Sync for Place {}

static PLACE: Place = Place(UnsafeCell::new(None));

fn agent() -> Option<&'static mut Agent> {
    // SAFETY: one thread; the two entries that call this do not call each other.
    unsafe { (*PLACE.0.get()).as_deref_mut() }
}

/// Makes every later backend look at its startup packet. Postmaster, while libraries are preloaded.
pub(super) fn install() {
    // SAFETY: a hook chain, changed where that is allowed.
    unsafe { shim::postern_install_authentication() }
}

/// A session's authentication has succeeded and its startup packet says that it is pooled. A wrong token makes it an ordinary one.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_session_begins(token: *const c_char) {
    // SAFETY: a terminated string of the startup packet.
    let token = unsafe { CStr::from_ptr(token) }.to_string_lossy();
    let Some(agent) = Agent::claim(&token) else { return };
    // SAFETY: the hooks of this process, on its only thread.
    unsafe {
        shim::postern_install_methods();
        shim::postern_install_hooks();
        *PLACE.0.get() = Some(Box::new(agent));
    }
}

/// An idle ReadyForQuery has been sent.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_ready() {
    if let Some(agent) = agent() {
        agent.ready();
    }
}

/// The server recovers from an error.
#[unsafe(no_mangle)]
pub extern "C" fn postern_agent_reset() {
    // SAFETY: a flag of shim.c.
    unsafe { shim::postern_seen.ready = false }
}

/// A client, and which of those that had its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seat {
    slot: u32,
    generation: u32,
}

/// What is known of a client's next message.
enum Look {
    /// It can be served.
    Ready,
    /// Nothing has come.
    Nothing,
    /// A part has come.
    Part,
    /// It has gone, or must go without a word.
    Gone,
    /// It must go, and hears why.
    Wrong(Report),
}

struct Agent {
    shared: Shared,
    number: u32,
    server: &'static Server,
    pool: &'static Pool,
    member: u32,
    settings: SessionSettings,
    statements: Option<Statements>,
    links: Option<Links>,
    /// The client that is served.
    seat: Option<Seat>,
    /// The client that was served last, whose state the session has, and how many transactions it had had then: one more since, and
    /// another backend has served it meanwhile.
    last: Option<Seat>,
    last_count: u64,
    /// The session's table of portals.
    portals: *mut pg_sys::HTAB,
    /// The client has said goodbye behind its last query.
    terminated: bool,
    /// It is being written down what the client has: after an error amid it nobody knows.
    settling: bool,
    /// For whom the wait set stands.
    wait_set: Option<Seat>,
    /// The session's settings and statements as bytes, and what parsing depends on.
    now_settings: Vec<u8>,
    now_statements: Vec<u8>,
    environment: Environment,
    /// Whose the session's unnamed statement is, and which it was when the client was seated.
    unnamed_of: Option<Seat>,
    unnamed_before: u64,
    /// Messages of our own are being answered; the socket to go back to.
    injecting: Option<OwnedFd>,
    parked: c_int,
}

impl Agent {
    fn claim(token: &str) -> Option<Self> {
        let shared = shmem::pooler()?;
        let (number, token) = read_token(token)?;
        let server = shared.servers.get(number as usize)?;
        // A token serves once.
        let told = server.token.each_ref().map(|word| word.swap(0, AcqRel));
        if told != token || told == [0, 0] || server.state() != ServerState::Opening {
            return None;
        }
        let pool = shared.pools.get(server.pool.load(Acquire) as usize)?;
        // SAFETY: words of this process.
        unsafe {
            server.pid.store(pg_sys::MyProcPid, Release);
            server.proc.store(shim::postern_proc_number(), Release);
        }
        Some(Self {
            shared,
            number,
            server,
            pool,
            member: server.member.load(Acquire),
            settings: SessionSettings::before_login(),
            statements: None,
            links: None,
            seat: None,
            last: None,
            last_count: 0,
            portals: std::ptr::null_mut(),
            terminated: false,
            settling: false,
            wait_set: None,
            now_settings: Vec::new(),
            now_statements: Vec::new(),
            environment: Environment::default(),
            unnamed_of: None,
            unnamed_before: 0,
            injecting: None,
            // SAFETY: a word of this process.
            parked: unsafe { shim::postern_socket() },
        })
    }

    fn slot(&self, seat: Seat) -> &'static Slot {
        &self.shared.slots[seat.slot as usize]
    }

    /// After ReadyForQuery with status I. Returns when PostgresMain() is to read a client's message.
    fn ready(&mut self) {
        if self.injecting.take().is_some() {
            let injected = AssertUnwindSafe(|| {
                self.injected();
                true
            });
            if !PgTryBuilder::new(injected).catch_others(|_| false).execute() {
                self.leave();
            }
            return;
        }
        // SAFETY: the session's own input buffer.
        unsafe {
            if self.seat.is_some() && shim::postern_input_waits() {
                // What is behind a Terminate is nobody's. And a message that failed before it could take the place of another
                // client's unnamed statement is followed by others, which must not find that one.
                let anothers = !shim::postern_unnamed().is_null()
                    && self.unnamed_of != self.seat
                    && shim::postern_unnamed_number() == self.unnamed_before;
                if shim::postern_peek_input() != c_int::from(b'X') && !anothers {
                    return;
                }
                shim::postern_discard_input();
                self.terminated = true;
            }
            shim::postern_hold_cancel();
        }
        loop {
            let idle = AssertUnwindSafe(|| {
                self.idle();
                None
            });
            match PgTryBuilder::new(idle).catch_others(Some).execute() {
                None => break,
                Some(error) => {
                    let recover = AssertUnwindSafe(|| {
                        self.failed(error);
                        true
                    });
                    // An error of the recovery itself must not answer a client's next query.
                    if !PgTryBuilder::new(recover).catch_others(|_| false).execute() {
                        self.leave();
                    }
                }
            }
        }
        // SAFETY: matches the hold above; the message's memory is what the server expects to be current.
        unsafe {
            shim::postern_resume_cancel();
            shim::postern_use_message_context();
            shim::postern_answer_remote();
        }
    }

    /// An error of the server's in here ends the client that is attached, and no other.
    fn failed(&mut self, error: CaughtError) {
        // SAFETY: at the top of the session, with no transaction of the client's.
        unsafe {
            shim::postern_hold_cancel();
            pg_sys::AbortOutOfAnyTransaction();
        }
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. }) = &error;
        let mut told = Report::fatal(&sqlstate(report.sql_error_code()), report.message());
        told.detail = report.detail().map(str::to_owned);
        told.hint = report.hint().map(str::to_owned);
        told.place = Some((
            report.file().to_owned(),
            report.line_number(),
            report.function_name().unwrap_or_default().to_owned(),
        ));
        self.dismiss(&told);
        if self.settling {
            self.leave();
        }
        // The session is somewhere between two clients.
        // SAFETY: a flag of shim.c.
        unsafe { shim::postern_seen.mute = true };
        let mut transaction = Transaction::default();
        transaction.begin();
        self.settings.recover();
        transaction.commit();
        self.now_settings = self.settings.read(&[]);
        self.environment = self.settings.environment();
        if let Some(statements) = &mut self.statements {
            self.now_statements = statements.read(self.environment, false).0;
        }
        self.last = None;
        if self.links.is_none() {
            self.leave();
        }
    }

    /// Ends the attached client with an error.
    fn dismiss(&mut self, report: &Report) {
        let bytes = report.to_bytes();
        if self.seat.is_some() {
            // SAFETY: whole messages to the attached client's socket; a failed send only marks the connection as lost.
            unsafe {
                shim::postern_seen.mute = false;
                shim::postern_send(bytes.as_ptr().cast(), bytes.len());
                shim::postern_flush();
            }
            log!("postern: client ended: {}", report.message);
            self.hang_up();
        }
    }

    fn idle(&mut self) {
        if self.links.is_none() {
            self.begin();
        }
        if self.seat.is_some() {
            self.settling = true;
            self.settle();
            self.settling = false;
        }
        if std::mem::take(&mut self.terminated) {
            // Only now is it written down what the client leaves behind.
            self.hang_up();
        }
        loop {
            if let Some(seat) = self.seat {
                if self.is_doomed(seat) {
                    continue;
                }
                let pinned = self.slot(seat).pins.load(Relaxed) != 0;
                if pinned || self.may_stay() {
                    if self.stay(seat, pinned) {
                        return;
                    }
                } else {
                    self.let_go();
                }
            } else if self.wait_for_any() {
                return;
            }
        }
    }

    /// The backend's first idle moment: meets the front.
    fn begin(&mut self) {
        // SAFETY: at the top of a new session, outside a transaction.
        unsafe {
            shim::postern_seen.mute = true;
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            self.statements = Statements::find();
            self.portals = shim::postern_named_table(c"Portal hash".as_ptr());
            pg_sys::CommitTransactionCommand();
        }
        // A name may have become another's between the front's look and the login.
        // SAFETY: words of the session.
        let (role, database) = unsafe { (pg_sys::GetSessionUserId(), pg_sys::MyDatabaseId) };
        if role.to_u32() != self.pool.role.load(Relaxed)
            || database.to_u32() != self.pool.database.load(Relaxed)
        {
            log!("postern: a pooled backend has found its role or database renamed");
            self.leave();
        }
        self.settings.after_login();
        self.pool.size.store(guc::pool_size(), Relaxed);
        self.pool.mode.store(guc::pool_mode() as u32 + 1, Relaxed);
        self.now_settings = self.settings.read(&[]);
        self.now_statements = state::encode_statements(&[]);
        let links = if self.statements.is_some() { Links::open(self) } else { Err("no table of statements") };
        match links {
            Ok(links) => self.links = Some(links),
            Err(what) => {
                log!("postern: a pooled backend could not meet the front: {what}");
                self.leave();
            }
        }
        // SAFETY: flags of shim.c.
        unsafe {
            shim::postern_seen.settings = false;
            shim::postern_seen.names = false;
            shim::postern_seen.told = false;
        }
    }

    /// Ends this backend without a word to anybody.
    fn leave(&mut self) -> ! {
        // SAFETY: at the top of the session; exit callbacks run as for any backend.
        unsafe {
            shim::postern_seen.mute = true;
            pg_sys::proc_exit(0)
        }
    }

    /// Writes down what the client has now.
    fn settle(&mut self) {
        let (Some(seat), Some(links)) = (self.seat, &self.links) else { return };
        let slot = &self.shared.slots[seat.slot as usize];
        for count in [&slot.transactions, &self.server.transactions, &self.pool.transactions] {
            count.fetch_add(1, Relaxed);
        }
        // SAFETY: flags of shim.c, and words of the session.
        let (settings, mut names, told) = unsafe {
            let seen = &raw mut shim::postern_seen;
            let found = ((*seen).settings, (*seen).names, (*seen).told);
            (*seen).settings = false;
            (*seen).names = false;
            (*seen).told = false;
            found
        };
        let most = guc::client_state_size();
        let mut pins = 0;
        let names_before = names;
        if settings || told {
            let bytes = self.settings.read(&self.now_settings);
            if bytes != self.now_settings {
                self.now_settings = bytes;
                if settings {
                    let before = std::mem::replace(&mut self.environment, self.settings.environment());
                    // Whether the statements can move depends on it.
                    names |= before.literals != self.environment.literals;
                }
                slot.settings_hash.store(0, Relaxed);
                slot.application_name.set(&application_name());
            }
        }
        let kept_pins = slot.pins.load(Relaxed);
        if names && let Some(statements) = &mut self.statements {
            let (bytes, fixed) = statements.read(self.environment, settings && names_before);
            if fixed {
                pins |= Pin::StatementNotMovable as u32;
            }
            if bytes != self.now_statements {
                self.now_statements = bytes;
                slot.statements_hash.store(0, Relaxed);
            }
        } else {
            pins |= kept_pins & Pin::StatementNotMovable as u32;
        }
        // What has no hash is not kept yet; until it is, the client stays.
        for (hash, word, bytes) in [
            (&slot.settings_hash, &slot.settings, &self.now_settings),
            (&slot.statements_hash, &slot.statements, &self.now_statements),
        ] {
            if hash.load(Relaxed) != 0 {
                continue;
            }
            if bytes.len() <= most && links.texts.store(word, bytes) {
                hash.store(state::hash(bytes), Relaxed);
            } else {
                pins |= Pin::StateTooLarge as u32;
            }
        }
        self.settle_unnamed(seat);
        pins |= self.pins();
        if pins != kept_pins {
            slot.pins.store(pins, Relaxed);
        }
    }

    /// What else holds the client here.
    fn pins(&mut self) -> u32 {
        let mut pins = 0;
        let mode = guc::pool_mode();
        if mode == PoolMode::session {
            pins |= Pin::SessionMode as u32;
        }
        // SAFETY: flags of shim.c, and words and tables of the session, read at its top.
        unsafe {
            shim::postern_seen.statement_mode = mode == PoolMode::statement;
            if shim::postern_holds_locks() {
                pins |= Pin::AdvisoryLocks as u32;
            }
            if !self.portals.is_null() && shim::postern_entries(self.portals) > 0 {
                pins |= Pin::HoldCursors as u32;
            }
            // A LISTEN and an UNLISTEN take effect when their transaction commits, so the session itself is asked.
            if shim::postern_seen.listens {
                shim::postern_seen.listens = shim::postern_listens();
            }
            if shim::postern_seen.listens {
                pins |= Pin::Listens as u32;
            }
            if shim::postern_seen.loaded {
                pins |= Pin::LoadedLibrary as u32;
            }
            if shim::postern_seen.seed {
                pins |= Pin::RandomSeed as u32;
            }
            if shim::postern_has_replication_state() {
                pins |= Pin::ReplicationState as u32;
            }
            if shim::postern_has_temporary_schema() && has_temporary_objects() {
                pins |= Pin::TemporaryObjects as u32;
            }
        }
        pins
    }

    /// Keeps the text of the client's unnamed statement, which survives a Sync.
    fn settle_unnamed(&mut self, seat: Seat) {
        let Some(links) = &self.links else { return };
        let slot = &self.shared.slots[seat.slot as usize];
        // SAFETY: null, or a plan source that the session has.
        let (plan, number) = unsafe { (shim::postern_unnamed(), shim::postern_unnamed_number()) };
        let anothers = number == self.unnamed_before && self.unnamed_of != Some(seat);
        if plan.is_null() || anothers {
            if slot.unnamed.load(Relaxed) != 0 {
                links.texts.free(&slot.unnamed);
            }
            if self.unnamed_of == Some(seat) {
                self.unnamed_of = None;
            }
            return;
        }
        if number == self.unnamed_before {
            return;
        }
        self.unnamed_before = number;
        // SAFETY: a complete plan source of the session.
        let bytes = unsafe { statements::unnamed(plan, self.environment.literals) };
        if links.texts.read(slot.unnamed.load(Relaxed)) != bytes
            && (bytes.len() > guc::client_state_size() || !links.texts.store(&slot.unnamed, &bytes))
        {
            links.texts.free(&slot.unnamed);
        }
        self.unnamed_of = Some(seat);
    }

    fn may_stay(&self) -> bool {
        // Somebody sees the next ready client: another backend that waits for any, or the front, while the pool may still grow.
        (self.pool.waiters.load(SeqCst) >= 1
            || (self.pool.servers.load(Relaxed) < self.pool.size.load(Relaxed)
                && !self.pool.crowded.load(Relaxed)))
            && !self.pool.paused.load(Relaxed)
            && !self.server.retire.load(Relaxed)
    }

    /// Ends the attached client when somebody has asked for that; whether.
    fn is_doomed(&mut self, seat: Seat) -> bool {
        let doomed = self.slot(seat).doomed.load(SeqCst) == seat.generation;
        if doomed {
            self.dismiss(&Report::fatal("57P01", "terminating connection due to administrator command"));
        }
        doomed
    }

    /// Waits for the attached client itself. True: it is ready; false: it is attached no longer.
    fn stay(&mut self, seat: Seat, pinned: bool) -> bool {
        self.enter(if pinned { ServerState::Pinned } else { ServerState::Staying });
        self.slot(seat).since.store(self.server.since.load(Relaxed), Relaxed);
        if !pinned {
            self.pool.stay(self.member);
            // Whoever became the last idle one before we were listed did not see us.
            if !self.may_stay() {
                self.pool.unstay(self.member);
                self.let_go();
                return false;
            }
        }
        loop {
            // SAFETY: the session's own waits and interrupts.
            let events = unsafe {
                if shim::postern_dying() && !pinned {
                    // An idle client is not to notice that this backend ends.
                    self.pool.unstay(self.member);
                    self.let_go();
                    return false;
                }
                shim::postern_wait_for_client(pinned)
            };
            if events & pg_sys::WL_POSTMASTER_DEATH != 0 {
                self.leave();
            }
            if events & pg_sys::WL_LATCH_SET != 0 {
                // SAFETY: our own latch.
                unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
                if self.slot(seat).doomed.load(SeqCst) == seat.generation {
                    self.pool.unstay(self.member);
                    self.is_doomed(seat);
                    return false;
                }
                let called = !pinned && !self.pool.stays(self.member);
                let to_leave =
                    !pinned && (self.pool.paused.load(Relaxed) || self.server.retire.load(Relaxed));
                if called || to_leave {
                    self.pool.unstay(self.member);
                    self.let_go();
                    return false;
                }
                continue;
            }
            let look = self.look(seat);
            if let Look::Nothing = look {
                continue;
            }
            if !pinned && !self.pool.unstay(self.member) && self.pool.waiters.load(SeqCst) <= 0 {
                // Called back for somebody just when its own client spoke: the call goes on to another.
                self.nobody_waits();
            }
            // SAFETY: a flag of the session. It came with the message: somebody else is to serve it.
            if !pinned && unsafe { shim::postern_dying() } {
                self.let_go();
                return false;
            }
            match look {
                Look::Ready => return self.serve(seat),
                // Its backend is its own: the message may come as it comes.
                Look::Part if pinned => return self.serve(seat),
                Look::Part => {
                    self.let_go_later();
                    return false;
                }
                Look::Wrong(report) => {
                    self.dismiss(&report);
                    return false;
                }
                Look::Gone | Look::Nothing => {
                    self.hang_up();
                    return false;
                }
            }
        }
    }

    /// PostgresMain() is to read the client's message.
    fn serve(&mut self, seat: Seat) -> bool {
        self.enter(ServerState::Serving);
        let slot = self.slot(seat);
        slot.since.store(self.server.since.load(Relaxed), Relaxed);
        slot.parts.store(0, Relaxed);
        let restored = self.restore_unnamed(seat);
        if !restored {
            self.dismiss(&Report::fatal("53000", "the session's unnamed statement could not be restored"));
        }
        restored
    }

    /// The connection's state, and since when it has it.
    fn enter(&self, state: ServerState) {
        if self.server.state() != state {
            self.server.since.store(now(), Relaxed);
            self.server.set_state(state);
        }
    }

    /// Gives the client back to the pool.
    fn let_go(&mut self) {
        // SAFETY: an int setting.
        let idle = u32::try_from(unsafe { pg_sys::IdleSessionTimeout }).unwrap_or(0);
        if let Some(seat) = self.release(false)
            && let Some(links) = &self.links
        {
            links.arm(seat);
            if idle > 0 {
                // The server's own timer would end this backend; the front keeps the time of the client.
                links.say(Word::Idle { slot: seat.slot, generation: seat.generation, millis: idle });
            }
        }
    }

    /// Gives the client back, to be looked at again in a moment.
    fn let_go_later(&mut self) {
        if let Some(seat) = self.release(false)
            && let Some(links) = &self.links
        {
            links.say(Word::Later { slot: seat.slot, generation: seat.generation });
        }
    }

    /// Hands the client to the front to be ended, and leaves nothing of it behind.
    fn hang_up(&mut self) {
        let Some(seat) = self.seat else { return };
        let pins = self.slot(seat).pins.load(Relaxed);
        self.release(true);
        if let Some(links) = &mut self.links {
            links.forget(seat);
            links.say(Word::Gone { slot: seat.slot, generation: seat.generation });
        }
        self.clean(pins);
    }

    /// The client is attached no longer.
    fn release(&mut self, hang_up: bool) -> Option<Seat> {
        let seat = self.seat.take()?;
        let slot = self.slot(seat);
        // SAFETY: words of the session; nothing goes out and no timer of the client's runs from here on.
        unsafe {
            shim::postern_seen.mute = true;
            shim::postern_set_socket(self.parked);
            shim::postern_disarm();
        }
        self.server.slot.store(0, Release);
        if self.last == Some(seat) {
            self.last_count = slot.transactions.load(Relaxed);
        }
        if self.server.state() == ServerState::Serving {
            // It becomes idle only now; one whose backend has stayed with it has been so for as long as that.
            slot.since.store(now(), Relaxed);
        }
        loop {
            let done = if hang_up {
                slot.word.hang_up(seat.generation, self.number)
            } else {
                slot.word.release(seat.generation, self.number)
            };
            match done {
                Release::Done => return Some(seat),
                // The front is between looking and signalling: a matter of microseconds.
                Release::Later => std::thread::yield_now(),
                Release::Lost => return None,
            }
        }
    }

    /// After a client that had pins has gone.
    fn clean(&mut self, pins: u32) {
        let has = |pin: Pin| pins & pin as u32 != 0;
        if has(Pin::LoadedLibrary)
            || has(Pin::RandomSeed)
            || has(Pin::ReplicationState)
            || has(Pin::TemporaryObjects)
        {
            // What these leave in a process cannot be taken out of it: even without objects, a temporary schema shows in the
            // search path and temp_buffers cannot be changed.
            self.leave();
        }
        // SAFETY: at the top of the session, as DiscardAll() does it (commands/discard.c).
        unsafe {
            if has(Pin::AdvisoryLocks) {
                shim::postern_release_advisory_locks();
            }
            if has(Pin::HoldCursors) || has(Pin::Listens) {
                pg_sys::SetCurrentStatementStartTimestamp();
                pg_sys::StartTransactionCommand();
                pg_sys::PortalHashTableDeleteAll();
                if has(Pin::Listens) {
                    shim::postern_seen.listens = false;
                    shim::Async_UnlistenAll();
                }
                pg_sys::CommitTransactionCommand();
            }
        }
    }

    /// Waits until a client of the pool is ready, and seats it. False: look again.
    fn wait_for_any(&mut self) -> bool {
        let Some(links) = &self.links else { return false };
        self.enter(ServerState::Idle);
        // SAFETY: the session's own interrupts, at its top, with no client attached.
        unsafe {
            shim::postern_seen.mute = true;
            pg_sys::ResetLatch(pg_sys::MyLatch);
            shim::postern_interrupts();
            shim::postern_notify_interrupts(false);
            if shim::postern_reload_pending() {
                shim::postern_reload();
            }
        }
        if self.server.retire.load(Relaxed) {
            self.leave();
        }
        if self.pool.paused.load(Relaxed) {
            // SAFETY: our own latch, and the postmaster's death.
            unsafe {
                let events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH | pg_sys::WL_TIMEOUT;
                pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, 100, pg_sys::PG_WAIT_EXTENSION);
            }
            return false;
        }
        let mut data = 0;
        self.pool.waiters.fetch_add(1, SeqCst);
        // SAFETY: the pool's epoll instance, and a word of ours.
        let found = unsafe { shim::postern_wait_for_any(links.epoll.as_raw_fd(), &raw mut data) };
        if self.pool.waiters.fetch_sub(1, SeqCst) <= 1 {
            self.nobody_waits();
        }
        if found == 0 {
            return false;
        }
        if found < 0 || data == FRONT_GONE {
            self.leave();
        }
        self.take(data as u32)
    }

    /// This was the last idle one: a staying one is called back, and the front hears of it if it wants to.
    fn nobody_waits(&self) {
        if let Some(server) = self.pool.call_back()
            && let Some(server) = self.shared.servers.get(server as usize)
        {
            // SAFETY: the number of a process that was listed; a latch that is set once too often harms nobody.
            unsafe { shim::postern_wake(server.proc.load(Acquire)) };
        }
        if self.pool.wants_news.load(Relaxed) == 1
            && self.pool.wants_news.swap(0, AcqRel) == 1
            && let Some(links) = &self.links
        {
            links.say(Word::Nobody);
        }
    }

    /// Seats the client of a slot that the pool said is ready.
    fn take(&mut self, number: u32) -> bool {
        let Some(slot) = self.shared.slots.get(number as usize) else { return false };
        let seen = slot.word.seen();
        let seat = Seat { slot: number, generation: seen.generation() };
        if seen.state() != State::Idle || !slot.word.take(seat.generation, self.number) {
            return false;
        }
        self.server.slot.store(number + 1, Release);
        self.enter(ServerState::Serving);
        let now = self.server.since.load(Relaxed);
        slot.since.store(now, Relaxed);
        let waited_since = slot.waiting_since.swap(0, SeqCst);
        if waited_since != 0 {
            let waited = u64::try_from(now - waited_since).unwrap_or(0);
            self.pool.wait_micros.fetch_add(waited, Relaxed);
        }
        self.seat = Some(seat);
        let Some(links) = &mut self.links else { return false };
        if !links.meet(seat) {
            // The front has no descriptor to give, or is gone. It ends the client when it finds this backend ended.
            self.leave();
        }
        let fresh = slot.settings_hash.load(Relaxed) == 0 && slot.transactions.load(Relaxed) == 0;
        if !fresh {
            match self.look(seat) {
                Look::Ready => {}
                Look::Nothing => {
                    self.let_go();
                    return false;
                }
                Look::Part => {
                    self.let_go_later();
                    return false;
                }
                Look::Gone => {
                    self.sit(seat);
                    self.hang_up();
                    return false;
                }
                Look::Wrong(report) => {
                    self.sit(seat);
                    self.dismiss(&report);
                    return false;
                }
            }
        }
        self.sit(seat);
        // SAFETY: a word of shim.c.
        self.unnamed_before = unsafe { shim::postern_unnamed_number() };
        self.pool.assignments.fetch_add(1, Relaxed);
        // SAFETY: a flag of the session. The end of this backend came with the client: it is for another one.
        if unsafe { shim::postern_dying() } {
            if self.release(false).is_some()
                && let Some(links) = &self.links
            {
                if fresh { links.announce(seat) } else { links.arm(seat) }
            }
            return false;
        }
        if fresh {
            self.welcome(seat);
            return false;
        }
        let as_it_left = self.last == Some(seat) && self.last_count == slot.transactions.load(Relaxed);
        if !as_it_left && let Err(Refused(why)) = self.swap(seat) {
            self.last = None;
            // A session that cannot be brought from one client to another serves nobody any more.
            self.server.retire.store(true, Relaxed);
            self.now_settings = self.settings.read(&[]);
            let report =
                Report::fatal("57P01", "the session's state could not be brought to another backend")
                    .with_detail(why);
            self.dismiss(&report);
            return false;
        }
        self.last = Some(seat);
        // SAFETY: as above; it came during the swap.
        if unsafe { shim::postern_dying() } {
            self.let_go();
            return false;
        }
        // SAFETY: a flag of shim.c: from here on the client hears its session.
        unsafe { shim::postern_seen.mute = false };
        self.serve(seat)
    }

    /// The session's socket is the client's.
    fn sit(&mut self, seat: Seat) {
        let Some(links) = &self.links else { return };
        let descriptor = links.number(seat.slot);
        // SAFETY: the descriptor is open: `meet` made it so.
        unsafe {
            shim::postern_set_socket(descriptor);
            if self.wait_set != Some(seat) {
                shim::postern_make_wait_set(descriptor);
                self.wait_set = Some(seat);
            }
        }
    }

    /// A client's first moment in a session: its own defaults, and everything that a server says first.
    fn welcome(&mut self, seat: Seat) {
        let slot = self.slot(seat);
        let Some(links) = &self.links else { return };
        let bytes = links.texts.read(slot.settings.load(Relaxed)).to_vec();
        let Some(Settings::Startup(startup)) = state::decode_settings(&bytes) else {
            self.hang_up();
            return;
        };
        self.show_client(seat);
        let mut transaction = Transaction::default();
        let neutral = Settings::Session { base: Vec::new(), session: Vec::new(), told: Vec::new() };
        let from = std::mem::take(&mut self.now_settings);
        let from = state::decode_settings(&from).unwrap_or_else(|| neutral.clone());
        self.settings.mark(&neutral);
        transaction.begin();
        if let Err(Refused(why)) = self.settings.swap(&from, &neutral) {
            drop(from);
            self.now_settings = self.settings.read(&[]);
            transaction.commit();
            self.last = None;
            self.server.retire.store(true, Relaxed);
            self.dismiss(&Report::fatal("57P01", "the session's state could not be reset").with_detail(why));
            return;
        }
        drop(from);
        // What follows may fail and be rolled back; this must not be.
        transaction.commit();
        transaction.begin();
        // SAFETY: a flag of shim.c, and a word of the session: warnings about stored settings go to the client.
        unsafe {
            shim::postern_seen.mute = false;
            let superuser = pg_sys::superuser_arg(pg_sys::GetSessionUserId());
            self.settings.begin(&startup, superuser);
        }
        self.settings.begun();
        self.pool.size.store(guc::pool_size(), Relaxed);
        let empty = state::encode_statements(&[]);
        if self.now_statements != empty
            && let Some(statements) = &mut self.statements
        {
            statements.swap(&empty, Environment::default(), guc::max_prepared_statements(), &mut || ());
            self.now_statements = empty;
        }
        transaction.commit();
        self.settings.tell_nothing();
        // SAFETY: the attached client's socket; the session's own messages.
        unsafe {
            shim::ResetSequenceCaches();
            shim::postern_welcome(Shared::client_pid(seat.slot), slot.key.load(Relaxed));
            shim::postern_seen.settings = true;
            shim::postern_seen.names = false;
        }
        self.environment = self.settings.environment();
        self.last = Some(seat);
        self.settle();
        // That was no transaction of the client's.
        for count in [&slot.transactions, &self.server.transactions, &self.pool.transactions] {
            count.fetch_sub(1, Relaxed);
        }
    }

    /// From the last client's session to this one's.
    fn swap(&mut self, seat: Seat) -> Result<(), Refused> {
        let slot = self.slot(seat);
        self.server.swaps.fetch_add(1, Relaxed);
        if self.unnamed_of == Some(seat) {
            // It may have another by now.
            self.unnamed_of = None;
        }
        self.pool.swaps.fetch_add(1, Relaxed);
        let Some(links) = &self.links else { return Ok(()) };
        let texts = links.texts;
        self.show_client(seat);
        let mut transaction = Transaction::default();
        let wanted = texts.read(slot.settings.load(Relaxed));
        if wanted != self.now_settings {
            let from = std::mem::take(&mut self.now_settings);
            let lists = state::decode_settings(&from).zip(state::decode_settings(wanted));
            let Some((from, to)) = lists else {
                return Err(Refused("its settings could not be read".to_owned()));
            };
            self.settings.mark(&to);
            if SessionSettings::needs_transaction(&from, &to) {
                transaction.begin();
            }
            let swapped = self.settings.swap(&from, &to);
            self.now_settings = wanted.to_vec();
            if swapped.is_err() {
                transaction.commit();
                return swapped;
            }
            self.environment = self.settings.environment();
        }
        let wanted = texts.read(slot.statements.load(Relaxed));
        let empty = state::encode_statements(&[]);
        let wanted = if wanted.is_empty() { &empty[..] } else { wanted };
        if wanted != self.now_statements
            && let Some(statements) = &mut self.statements
        {
            let most = guc::max_prepared_statements();
            statements.swap(wanted, self.environment, most, &mut || transaction.begin());
            self.now_statements = wanted.to_vec();
        }
        transaction.commit();
        // SAFETY: the session's caches, and flags of shim.c: what the swap did is not the client's doing.
        unsafe {
            shim::ResetSequenceCaches();
            shim::postern_seen.settings = false;
            shim::postern_seen.names = false;
            shim::postern_seen.told = false;
            shim::postern_seen.statement_mode = guc::pool_mode() == PoolMode::statement;
        }
        Ok(())
    }

    /// pg_stat_activity and the log show the client.
    fn show_client(&self, seat: Seat) {
        let slot = self.slot(seat);
        let address = slot.address.each_ref().map(|word| word.load(Relaxed));
        let (family, port) = (c_int::from(slot.family.load(Relaxed)), c_int::from(slot.port.load(Relaxed)));
        let local = slot.local_address.each_ref().map(|word| word.load(Relaxed));
        let local_port = c_int::from(slot.local_port.load(Relaxed));
        // SAFETY: four words of address each.
        unsafe { shim::postern_set_client(family, address.as_ptr(), port, local.as_ptr(), local_port) }
    }

    /// When the session's unnamed statement is another's and the client's first message may use its own, messages of ours bring
    /// it back first: PostgresMain() then reads those. False when that cannot be.
    fn restore_unnamed(&mut self, seat: Seat) -> bool {
        let Some(links) = &self.links else { return false };
        let slot = &self.shared.slots[seat.slot as usize];
        // SAFETY: a word of shim.c.
        let there = unsafe { !shim::postern_unnamed().is_null() };
        let wanted = slot.unnamed.load(Relaxed) != 0;
        if (self.unnamed_of == Some(seat) && there == wanted) || (!there && !wanted) {
            return true;
        }
        let mut peeked = [0; 64];
        let descriptor = links.descriptor(seat.slot);
        let length = rustix::net::recv(descriptor, &mut peeked, RecvFlags::PEEK | RecvFlags::DONTWAIT)
            .map_or(0, |(length, _)| length);
        let first = frame::first(&peeked[..length]).ok().flatten();
        let replaces = first.is_some_and(|f| f.tag == b'Q' || (f.tag == b'P' && f.body.first() == Some(&0)));
        if replaces {
            return true;
        }
        let mut messages = Vec::new();
        let kept = links.texts.read(slot.unnamed.load(Relaxed));
        match state::decode_statements(kept).unwrap_or_default().first() {
            Some(statement) => crate::wire::message::put(&mut messages, b'P', |out| {
                out.push(0);
                out.extend(statement.text);
                out.push(0);
                out.extend((statement.types.len() as u16).to_be_bytes());
                out.extend(statement.types.iter().flat_map(|oid| oid.to_be_bytes()));
            }),
            None => crate::wire::message::put(&mut messages, b'C', |out| out.extend(b"S\0")),
        }
        crate::wire::message::bodiless(&mut messages, b'S');
        let Ok((ours, its)) = std::os::unix::net::UnixStream::pair() else { return false };
        let _ = its.set_nonblocking(true);
        // A text of up to the state's size may be longer than a socket holds.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&its, messages.len() * 2 + 4096);
        if rustix::net::send(&its, &messages, SendFlags::NOSIGNAL) != Ok(messages.len()) {
            return false;
        }
        let _ = ours.set_nonblocking(true);
        // SAFETY: an open socket until `injected`.
        unsafe {
            shim::postern_seen.mute = true;
            shim::postern_set_socket(ours.as_raw_fd());
        }
        self.injecting = Some(OwnedFd::from(ours));
        self.unnamed_of = Some(seat);
        true
    }

    /// Our own messages are answered: now the client's.
    fn injected(&mut self) {
        let Some((seat, links)) = self.seat.zip(self.links.as_ref()) else { return };
        let kept = links.texts.read(self.shared.slots[seat.slot as usize].unnamed.load(Relaxed));
        if let Some(statement) = state::decode_statements(kept).unwrap_or_default().first() {
            let mut transaction = Transaction::default();
            // SAFETY: null, or the plan source that our own Parse has just made.
            unsafe {
                let plan = shim::postern_unnamed();
                if !plan.is_null() {
                    statements::expect_columns(plan, statement, &mut || transaction.begin());
                }
            }
            transaction.commit();
        }
        // SAFETY: the attached client's socket.
        unsafe {
            shim::postern_set_socket(links.number(seat.slot));
            shim::postern_seen.mute = false;
            shim::postern_seen.told = false;
            self.unnamed_before = shim::postern_unnamed_number();
        }
    }

    /// What the client has sent, without taking it.
    fn look(&self, seat: Seat) -> Look {
        let Some(links) = &self.links else { return Look::Gone };
        let descriptor = links.descriptor(seat.slot);
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); WHOLE];
        loop {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let peeked: &[u8] = match rustix::net::recv(descriptor, &mut space[..], flags) {
                Ok(((&mut [], _), _)) => return Look::Gone,
                Ok(((peeked, _), _)) => peeked,
                Err(rustix::io::Errno::AGAIN) => return Look::Nothing,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Look::Gone,
            };
            let length = peeked.len();
            let first = match frame::first(peeked) {
                Ok(Some(first)) => first,
                Ok(None) => return part_of(descriptor),
                Err(error @ crate::wire::Error::MessageType(_)) => {
                    return Look::Wrong(Report::fatal(error.sqlstate(), error.to_string()));
                }
                Err(_) => return Look::Gone,
            };
            match first.tag {
                b'X' => return Look::Gone,
                // Left over from a COPY that has failed: the server would drop it and wait for more.
                b'd' | b'c' | b'f' if first.is_complete() => {
                    let mut rest = vec![0; first.length];
                    if rustix::net::recv(descriptor, &mut rest, RecvFlags::DONTWAIT).is_err() {
                        return Look::Gone;
                    }
                }
                _ if first.is_complete() || length >= WHOLE => return Look::Ready,
                _ => return part_of(descriptor),
            }
        }
    }
}

/// A part of a message, of a client that may have gone after it.
fn part_of(descriptor: BorrowedFd<'_>) -> Look {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut polled, Some(&now)) {
        Ok(_) if polled[0].revents().intersects(ends) => Look::Gone,
        _ => Look::Part,
    }
}

fn application_name() -> Vec<u8> {
    // SAFETY: a setting of the server; null or terminated.
    unsafe {
        let name = pg_sys::GetConfigOption(c"application_name".as_ptr(), true, false);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}

/// Whether anything is in the session's temporary schema. Starts a transaction of its own.
fn has_temporary_objects() -> bool {
    let mut transaction = Transaction::default();
    transaction.begin();
    // SAFETY: in a transaction, and there is such a schema.
    let found = unsafe { shim::postern_has_temporary_objects() };
    transaction.commit();
    found
}

/// The five characters of an error code.
fn sqlstate(code: PgSqlErrorCode) -> String {
    let mut code = code as i32;
    (0..5)
        .map(|_| {
            let character = (code & 0x3f) as u8 + b'0';
            code >>= 6;
            character as char
        })
        .collect()
}
