//! The session agent: what runs inside a pooled backend. After a ReadyForQuery, instead of waiting for more of its client, the
//! backend gives the client back to the pool and waits for any client of the pool; when one is ready, the agent seats it (its
//! socket, its settings, its prepared statements, its address) and PostgresMain() serves it as it serves any other.
//!
//! - `links`: what the front has given: sockets
//! - `look`: what a client has sent
//! - `farewell`: the last words of a backend that the front ends
//! - `pins`: what holds a client here
//! - `session`: beginning a client's session, and bringing the backend from one to another
//! - `unnamed`: the unnamed statement
//! - `settings`, `statements`: what a session has of these
//! - `texts`: dynamic shared memory for it
//! - `transaction`: transactions of the agent's own
//!
//! Single-threaded, in somebody's session: no tokio, no thread. An error in here ends one client and nothing else.

mod farewell;
mod links;
mod look;
mod pins;
mod session;
mod settings;
mod statements;
pub(super) mod texts;
mod transaction;
mod unnamed;

use self::links::Links;
use self::look::Look;
use self::settings::{Environment, Refused, SessionSettings};
use self::statements::Statements;
use self::transaction::Transaction;
use super::{guc, shim, shmem};
use crate::pooler::control::{FRONT_GONE, Word, read_token};
use crate::pooler::shared::{Pin, Pool, Server, ServerState, Shared, Slot, now};
use crate::pooler::slot::{Release, State};
use crate::pooler::state;
use crate::wire::message::Report;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::*;

/// How long a backend serves client after client before it lets others of the machine run: microseconds.
const TURN: i64 = 200;

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
        // The backend's own login is no client's.
        shim::postern_set_identity(0, c"".as_ptr());
        *PLACE.0.get() = Some(Box::new(agent));
    }
}

/// An idle ReadyForQuery has been sent.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_ready() {
    if let Some(agent) = agent() {
        // What the agent itself looks up is not the client's.
        // SAFETY: a flag of shim.c, on the only thread.
        unsafe { shim::postern_seen.nameless = false };
        agent.ready();
        let nameless = agent.statements.as_ref().is_some_and(Statements::has_nameless);
        // SAFETY: as above.
        unsafe { shim::postern_seen.nameless = nameless };
    }
}

/// A prepared statement's name is about to be looked up, in the middle of the server's own work.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn postern_agent_name(name: *const c_char) {
    // SAFETY: a terminated string, as the server's own lookup wants it.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    // The table has names as long as they may be, and compares no more of any.
    let name = &name[..name.len().min(pg_sys::NAMEDATALEN as usize - 1)];
    with_names(|statements, environment| statements.name(name, environment));
}

/// All names are about to be looked at.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_all_names() {
    with_names(Statements::name_all);
}

fn with_names(what: impl FnOnce(&mut Statements, Environment)) {
    let Some(agent) = agent() else { return };
    if let Some(statements) = &mut agent.statements {
        let mut asked = Asked::begin();
        what(statements, agent.environment);
        asked.nameless = statements.has_nameless();
    }
}

/// While names are entered: looking them up asks for none, and what their texts have to say, the client has heard when it prepared
/// them.
struct Asked {
    nameless: bool,
    client_min_messages: c_int,
}

impl Asked {
    fn begin() -> Self {
        // SAFETY: a flag of shim.c and a setting, on the only thread.
        unsafe {
            shim::postern_seen.nameless = false;
            let client_min_messages = pg_sys::client_min_messages;
            pg_sys::client_min_messages = PgLogLevel::ERROR as c_int;
            Self { nameless: true, client_min_messages }
        }
    }
}

/// After an error as well, which may be caught in the client's own code: then it goes on to look for names.
impl Drop for Asked {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            pg_sys::client_min_messages = self.client_min_messages;
            shim::postern_seen.nameless = self.nameless;
        }
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

struct Agent {
    shared: Shared,
    /// The front's, when the front had this backend made.
    epoch: u32,
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
    /// What pg_stat_ssl shows, of the client that was served last: the number of its cipher, and whether a certificate too.
    shows_tls: (u8, bool),
    /// The session's settings and statements as bytes, and what parsing depends on.
    now_settings: Vec<u8>,
    now_statements: Vec<u8>,
    environment: Environment,
    /// As of which reading of postgresql.conf.
    environment_as_of: i64,
    /// Whose the session's unnamed statement is, and which it was when the client was seated.
    unnamed_of: Option<Seat>,
    unnamed_before: u64,
    /// Since when it has not waited for a client: microseconds since 1970.
    awake_since: i64,
    /// The type of the client's first message and the first byte of its body, when it is ready.
    first: Option<(u8, Option<u8>)>,
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
            epoch: shared.header.epoch.load(Acquire),
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
            shows_tls: (0, false),
            now_settings: Vec::new(),
            now_statements: Vec::new(),
            environment: Environment::default(),
            environment_as_of: 0,
            unnamed_of: None,
            unnamed_before: 0,
            awake_since: 0,
            first: None,
            injecting: None,
            // SAFETY: a word of this process.
            parked: unsafe { shim::postern_socket() },
        })
    }

    fn slot(&self, seat: Seat) -> &'static Slot {
        &self.shared.slots[seat.slot as usize]
    }

    /// The front that had this backend made has ended: the words in shared memory are the next one's, or will be. The backend has been
    /// sent a SIGTERM, which it notices when it reads on; its client hears it then.
    fn is_orphan(&self) -> bool {
        self.shared.header.epoch.load(Acquire) != self.epoch
    }

    /// After ReadyForQuery with status I. Returns when PostgresMain() is to read a client's message.
    fn ready(&mut self) {
        if self.is_orphan() {
            if self.seat.is_none() {
                self.leave();
            }
            return;
        }
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
            if self.seat.is_some() && shim::postern_input_waits() && !self.skip_copy_data() {
                self.terminated = true;
            }
            if self.seat.is_some() && !self.terminated && shim::postern_input_waits() {
                // What is behind a Terminate is nobody's. And a message that failed before it could take the place of another
                // client's unnamed statement is followed by others, which must not find that one.
                let anothers = !shim::postern_unnamed().is_null()
                    && self.unnamed_of != self.seat
                    && shim::postern_unnamed_number() == self.unnamed_before;
                if shim::postern_peek_input() != c_int::from(b'X') && !anothers {
                    // The time of what follows begins now.
                    self.server.since.store(now(), Relaxed);
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

    /// Throws away what is left of a COPY that has failed and is buffered already: the server would drop it, and then wait for the
    /// client, which may be idle. False when the client has sent what is no message.
    fn skip_copy_data(&self) -> bool {
        let skip = AssertUnwindSafe(|| {
            // SAFETY: the session's own input buffer.
            unsafe {
                while shim::postern_input_waits()
                    && [b'd', b'c', b'f'].map(c_int::from).contains(&shim::postern_peek_input())
                {
                    if !shim::postern_skip_message() {
                        return false;
                    }
                }
            }
            true
        });
        PgTryBuilder::new(skip).catch_others(|_| false).execute()
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
        // SAFETY: a word of this process.
        self.server.status.store(unsafe { shim::postern_status() }, Release);
        farewell::install(self.server);
        self.settings.after_login();
        self.pool.size.store(guc::pool_size(), Relaxed);
        self.pool.mode.store(guc::pool_mode() as u32 + 1, Relaxed);
        self.now_settings = self.settings.read(&[]);
        self.look_around();
        self.now_statements.clear();
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

    /// After postgresql.conf was read again; whether literals are read otherwise since.
    fn look_around(&mut self) -> bool {
        let now = settings::reload_time();
        if std::mem::replace(&mut self.environment_as_of, now) == now {
            return false;
        }
        let before = std::mem::replace(&mut self.environment, self.settings.environment());
        before.literals != self.environment.literals
    }

    /// Writes down what the client has now.
    fn settle(&mut self) {
        let reloaded = self.look_around();
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
        names |= reloaded;
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
            let (bytes, fixed) = statements.read(self.environment, (settings || reloaded) && names_before);
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
            if self.is_orphan() {
                return true;
            }
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
        slot.part_since.store(0, Relaxed);
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
        let ours = self.release(true).is_some();
        if ours && let Some(links) = &self.links {
            // Here and now, so that the front need not have main do it. Until it hears of the end, nobody else gets the slot.
            self.slot(seat).texts().iter().for_each(|word| links.texts.free(word));
        }
        self.wait_on_no(seat.slot);
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

    /// Waits until a client of the pool is ready, and seats it. False: look again.
    fn wait_for_any(&mut self) -> bool {
        self.enter(ServerState::Idle);
        // SAFETY: the session's own interrupts, at its top, with no client attached.
        unsafe {
            shim::postern_seen.mute = true;
            pg_sys::ResetLatch(pg_sys::MyLatch);
            shim::postern_interrupts();
            shim::postern_notify_interrupts(false);
            if shim::postern_reload_pending() {
                shim::postern_reload();
                self.look_around();
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
        // The others of the pool that have taken a client and wait for a processor go first now and then: whoever has one would
        // serve client after client for as long as the system lets it, and theirs would wait for many times a query's time.
        if self.server.since.load(Relaxed) - self.awake_since > TURN {
            std::thread::yield_now();
            self.awake_since = now();
        }
        let Some(links) = &self.links else { return false };
        let (mut data, mut slept) = (0, false);
        self.pool.waiters.fetch_add(1, SeqCst);
        // SAFETY: the pool's epoll instance, and words of ours.
        let found =
            unsafe { shim::postern_wait_for_any(links.epoll.as_raw_fd(), &raw mut data, &raw mut slept) };
        if self.is_orphan() {
            self.leave();
        }
        if slept {
            self.awake_since = now();
        }
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
        let waited_since = slot.waiting_since.end();
        if waited_since != 0 {
            let waited = u64::try_from(now - waited_since).unwrap_or(0);
            self.pool.wait_micros.fetch_add(waited, Relaxed);
        }
        self.seat = Some(seat);
        if self.last == Some(seat) && self.last_count != slot.transactions.load(Relaxed) {
            // Another backend has served it since. Also when it is let go again at once, what the session has is not the client's.
            self.last = None;
        }
        if self.wait_set.is_some_and(|waited| waited != seat) {
            // If that client has gone, this one may have its slot and close its descriptor.
            self.wait_on_no(seat.slot);
        }
        let Some(links) = &mut self.links else { return false };
        if !links.meet(seat) {
            // The front has no descriptor to give, or is gone. It ends the client when it finds this backend ended.
            self.leave();
        }
        let fresh = slot.settings_hash.load(Relaxed) == 0 && slot.transactions.load(Relaxed) == 0;
        if !fresh {
            match self.look(seat) {
                Look::Ready => {}
                Look::Nothing if slot.discard.load(Relaxed) == 0 => {
                    slot.parts.store(0, Relaxed);
                    slot.part_since.store(0, Relaxed);
                    self.let_go();
                    return false;
                }
                Look::Part | Look::Nothing => {
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
        if self.last != Some(seat)
            && let Err(Refused(why)) = self.swap(seat)
        {
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

    /// Before a descriptor of the slot is closed.
    fn wait_on_no(&mut self, slot: u32) {
        if self.wait_set.is_some_and(|waited| waited.slot == slot) {
            self.wait_set = None;
            // SAFETY: the wait set that was made for it.
            unsafe { shim::postern_wait_on_none() };
        }
    }

    /// The session's socket is the client's.
    fn sit(&mut self, seat: Seat) {
        let Some(links) = &self.links else { return };
        let descriptor = links.number(seat.slot);
        // SAFETY: the descriptor is open: `meet` made it so.
        unsafe {
            shim::postern_set_socket(descriptor);
            if self.wait_set != Some(seat) {
                shim::postern_wait_on(descriptor);
                self.wait_set = Some(seat);
            }
        }
    }
}

fn application_name() -> Vec<u8> {
    // SAFETY: a setting of the server; null or terminated.
    unsafe {
        let name = pg_sys::GetConfigOption(c"application_name".as_ptr(), true, false);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
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
