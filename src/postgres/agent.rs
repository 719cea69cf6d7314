//! The session agent: what runs inside a pooled backend. After a ReadyForQuery, instead of waiting for more of its client, the
//! backend gives the client back to the pool and waits for any client of the pool; when one is ready, the agent seats it (its
//! socket, its settings, its prepared statements, its address) and PostgresMain() serves it as it serves any other.
//!
//! - `seating`: who has the client: waiting, taking, giving back
//! - `links`: what the front has given: sockets
//! - `look`: what a client has sent
//! - `listens`: its LISTENs and notifications
//! - `failure`: an error of the server's between two queries
//! - `farewell`: the last words of a backend that the front ends
//! - `settling`: writing down what the client has
//! - `pins`: what holds a client here
//! - `session`: beginning a client's session, and bringing the backend from one to another
//! - `unnamed`: the unnamed statement
//! - `settings`, `statements`: what a session has of these
//! - `names`: where the server looks a statement up
//! - `texts`: dynamic shared memory for it
//! - `transaction`: transactions of the agent's own
//!
//! Single-threaded, in somebody's session: no tokio, no thread. An error in here ends one client and nothing else.

mod failure;
mod farewell;
mod links;
mod listens;
mod look;
mod names;
mod pins;
mod seating;
mod session;
mod settings;
mod settling;
mod statements;
pub(super) mod texts;
mod transaction;
mod unnamed;

use self::links::Links;
pub(super) use self::links::answer;
use self::listens::Listens;
use self::settings::{Environment, SessionSettings};
use self::statements::Statements;
use self::transaction::Transaction;
use super::{guc, shim, shmem};
use crate::pooler::control::read_token;
use crate::pooler::shared::{Pool, Server, Shared, Slot, now};
use pgrx::prelude::*;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::*;

/// The one agent of the process.
struct Place(UnsafeCell<Option<Box<Agent>>>);

// SAFETY: a backend has one thread.
unsafe impl Sync for Place {}

static PLACE: Place = Place(UnsafeCell::new(None));

fn agent() -> Option<&'static mut Agent> {
    // SAFETY: one thread; of the entries that call this, those of `names` have nothing to do while another is at work.
    unsafe { (*PLACE.0.get()).as_deref_mut() }
}

/// The number of the client that this pooled backend serves.
pub(super) fn client() -> Option<u32> {
    Some(agent()?.seat?.slot)
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
        // SAFETY: a flag of the shim, on the only thread.
        unsafe { shim::postern_seen.nameless = false };
        agent.ready();
        let nameless = agent.statements.as_ref().is_some_and(Statements::has_nameless);
        // SAFETY: as above.
        unsafe { shim::postern_seen.nameless = nameless };
    }
}

/// The server recovers from an error.
#[unsafe(no_mangle)]
pub extern "C" fn postern_agent_reset() {
    // SAFETY: a flag of the shim.
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
    listens: Listens,
    /// The client has missed notifications and is to hear it.
    too_late: bool,
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
        // Before the token, which is the old front's only while this is its epoch.
        let epoch = shared.header.epoch.load(Acquire);
        let (number, token) = read_token(token)?;
        let server = shared.servers.get(number as usize)?;
        if !server.claim(token) {
            return None;
        }
        let pool = shared.pools.get(server.pool.load(Acquire) as usize)?;
        // SAFETY: words of this process.
        unsafe {
            server.pid.store(pg_sys::MyProcPid, Release);
            server.proc.store(shim::postern_proc_number(), Release);
        }
        // A backend that had this place before may have been answered, and heard, under the same numbers.
        server.answer.store(0, Release);
        server.notified.store(0, Release);
        Some(Self {
            epoch,
            shared,
            number,
            server,
            pool,
            member: server.member.load(Acquire),
            settings: SessionSettings::before_login(),
            statements: None,
            links: None,
            listens: Listens::new()?,
            too_late: false,
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
            // SAFETY: the session's own input buffer, and a flag of the session.
            unsafe {
                while shim::postern_input_waits()
                    && !shim::postern_dying()
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

    fn idle(&mut self) {
        if self.links.is_none() {
            self.begin();
        }
        if self.seat.is_some() {
            self.settling = true;
            self.settle();
            self.settling = false;
        }
        if self.ends_late() {
            self.terminated = false;
        }
        if std::mem::take(&mut self.terminated) {
            // Only now is it written down what the client leaves behind.
            self.hang_up();
        }
        loop {
            if self.is_orphan() {
                // Not a word more: those in shared memory are the next front's. A client hears the end when its session reads on.
                if self.seat.is_none() {
                    self.leave();
                }
                return;
            }
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
        // SAFETY: flags of the shim.
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
}
