//! The pools: each has an epoll instance in which its idle clients are, and as many server connections as its clients have needed, up
//! to its size. Network threads.
//!
//! While some backend waits, the kernel gives ready clients to backends and nothing here runs. Only when nobody waits does the front
//! look at the pool's queue itself: to open another connection, or to end who has waited too long.

use super::control::{FRONT_GONE, PARAMETER, token_text};
use super::front::Front;
use super::limits::{self, Reading};
use super::opening::{self, Opening};
use super::shared::{self, POOL_SIZE_MAX, ServerState, now};
use super::slot::State;
use crate::auth::Credential;
use crate::bridge::Level;
use crate::login::{Admission, Question, Standing, Unanswered};
use crate::wire::message::Report;
use crate::wire::startup::Replication;
use parking_lot::Mutex;
use rustix::event::epoll;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*, fence};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::Notify;

/// How long a ready client waits for a busy backend to come free before another connection is opened.
const PATIENCE: Duration = Duration::from_micros(500);

/// Backends that are called back twice within this time are too few.
const OFTEN: Duration = Duration::from_millis(100);

/// How long backends take turns before the front looks whether they still need to.
const TURN: Duration = Duration::from_millis(5);

/// How often a pool looks for what time does: who has waited too long, which connection nobody needs.
const TICK: Duration = Duration::from_secs(1);

/// One pool as the front holds it.
pub struct Pool {
    pub number: u32,
    pub words: &'static shared::Pool,
    pub epoll: Arc<OwnedFd>,
    /// Of role and database; either may be renamed.
    names: Mutex<(Vec<u8>, Vec<u8>)>,
    /// What logs in as the role, of the last client that showed it.
    credential: Mutex<Option<Credential>>,
    /// Somebody has to look: nobody waits any more, a client has come, a connection has ended.
    pub news: Notify,
    opening: Mutex<bool>,
    /// Main has been asked what has become of the role and the database.
    asking: AtomicBool,
    /// Main has been asked what the backends do that have been serving for a while; and which of these wait for the rest of a message.
    pub watching: AtomicBool,
    pub readings: Mutex<HashMap<u32, Reading>>,
    /// Clients that have sent a part of a message, as slots and generations.
    pub parts: Mutex<HashSet<(u32, u32)>>,
    /// After a failed opening: when the next may be tried, and what the failure was.
    failed: Mutex<Option<(Instant, opening::Error)>>,
    /// Kept open for as long as the pool is.
    _alive: (OwnedFd, OwnedFd),
}

/// All of them, by OIDs of database and role.
#[derive(Default)]
pub struct Pools {
    list: Mutex<HashMap<(u32, u32), Arc<Pool>>>,
}

impl Pools {
    pub fn all(&self) -> Vec<Arc<Pool>> {
        self.list.lock().values().cloned().collect()
    }

    pub fn by_number(&self, number: u32) -> Option<Arc<Pool>> {
        self.list.lock().values().find(|pool| pool.number == number).cloned()
    }

    /// The pool of an admitted client, made if it is the first.
    ///
    /// # Errors
    /// When there are [`shared::POOLS`] of them, or the system gives no epoll instance.
    pub fn of(
        &self,
        front: &Arc<Front>,
        admission: &Admission,
        names: (&[u8], &[u8]),
        credential: Option<Credential>,
    ) -> Result<Arc<Pool>, Report> {
        let mut list = self.list.lock();
        let key = (admission.database, admission.role);
        if let Some(pool) = list.get(&key).cloned() {
            pool.rename(front, names);
            if let Some(credential) = credential {
                pool.set_credential(front, credential);
            }
            return Ok(pool);
        }
        let free = || front.shared.pools.iter().enumerate().find(|(_, words)| words.used.load(Acquire) == 0);
        let (number, words) = free().ok_or_else(|| {
            Report::fatal("53300", "sorry, too many clients already")
                .with_detail(format!("The pooler has {} pools, and no place for another.", shared::POOLS))
        })?;
        words.clear();
        words.database.store(admission.database, Relaxed);
        words.role.store(admission.role, Relaxed);
        words.role_name.set(names.0);
        words.database_name.set(names.1);
        // Until the first backend says what role and database have of their own.
        words.size.store(front.bridge.settings().pooler.pool_size.min(POOL_SIZE_MAX as u32), Relaxed);
        let mut paused = front.shared.is_paused(Some(names.1));
        words.paused.store(paused, Relaxed);
        let made = Pool::make(number as u32, words, names, credential);
        let pool = made.map_err(|error| Report::fatal("53000", format!("could not make a pool: {error}")))?;
        words.used.store(1, Release);
        // Whoever has given or taken back a pause before this has not found the pool; whoever does it from here on does.
        fence(SeqCst);
        while front.shared.is_paused(Some(names.1)) != paused {
            paused = !paused;
            words.paused.store(paused, SeqCst);
        }
        let pool = Arc::new(pool);
        list.insert(key, Arc::clone(&pool));
        front.spawn(keep(Arc::clone(front), Arc::clone(&pool)));
        Ok(pool)
    }

    fn drop_pool(&self, pool: &Arc<Pool>) {
        self.list.lock().retain(|_, other| !Arc::ptr_eq(other, pool));
        pool.words.used.store(0, Release);
    }
}

impl Pool {
    fn make(
        number: u32,
        words: &'static shared::Pool,
        (role, database): (&[u8], &[u8]),
        credential: Option<Credential>,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        epoll::add(&epoll, &read, epoll::EventData::new_u64(FRONT_GONE), epoll::EventFlags::IN)?;
        Ok(Self {
            number,
            words,
            epoll: Arc::new(epoll),
            names: Mutex::new((role.to_vec(), database.to_vec())),
            credential: Mutex::new(credential),
            news: Notify::new(),
            opening: Mutex::new(false),
            asking: AtomicBool::new(false),
            watching: AtomicBool::new(false),
            readings: Mutex::default(),
            parts: Mutex::default(),
            failed: Mutex::new(None),
            _alive: (read, write),
        })
    }

    /// A changed one means another password: connections of the old one are not lent again.
    fn set_credential(&self, front: &Front, credential: Credential) {
        let old = self.credential.lock().replace(credential.clone());
        if old.is_some_and(|old| old != credential) {
            *self.failed.lock() = None;
            retire_all(front, self);
        }
    }

    /// Under other names than before, connections are opened anew.
    fn rename(&self, front: &Front, (role, database): (&[u8], &[u8])) {
        let mut names = self.names.lock();
        if (&names.0[..], &names.1[..]) != (role, database) {
            *names = (role.to_vec(), database.to_vec());
            drop(names);
            self.words.role_name.set(role);
            self.words.database_name.set(database);
            *self.failed.lock() = None;
            retire_all(front, self);
        }
    }

    pub fn title(&self) -> String {
        let names = self.names.lock();
        format!("\"{}\" as \"{}\"", String::from_utf8_lossy(&names.1), String::from_utf8_lossy(&names.0))
    }

    /// Whether a connection may be tried now: none is being opened, and the last failure was long enough ago.
    fn may_open(&self) -> bool {
        !*self.opening.lock() && self.failed.lock().as_ref().is_none_or(|(until, _)| *until <= Instant::now())
    }

    /// Whether some client of the pool is ready and no backend has taken it.
    pub fn has_ready_clients(&self) -> bool {
        super::seats::can_read(self.epoll.as_fd())
    }
}

/// Every connection of the pool ends at its next idle moment.
pub fn retire_all(front: &Front, pool: &Pool) {
    front.shared.connections(pool.number).for_each(retire);
}

/// The connection ends at its next idle moment.
pub fn retire(server: &shared::Server) {
    server.retire.store(true, Release);
    wake(server);
}

/// A waiting backend looks at its words again.
pub fn wake(server: &shared::Server) {
    // Without a reason beside it, this signal of the server's own only sets the process's latch.
    signal(server, rustix::process::Signal::USR1);
}

/// A signal for the connection's backend, once it is known.
pub fn signal(server: &shared::Server, signal: rustix::process::Signal) {
    signal_process(server.pid.load(Acquire), signal);
}

/// A process of the server looks at its words again.
pub fn wake_process(pid: i32) {
    signal_process(pid, rustix::process::Signal::USR1);
}

fn signal_process(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 1) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The life of a pool.
async fn keep(front: Arc<Front>, pool: Arc<Pool>) {
    let Ok(queue) = rustix::io::fcntl_dupfd_cloexec(&*pool.epoll, 0) else { return };
    // Deprecated because a type might change its descriptor; `OwnedFd` keeps one for life.
    #[allow(deprecated)]
    let Ok(queue) = AsyncFd::with_interest(queue, Interest::READABLE) else { return };
    let stop = front.bridge.stop();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut empty_since: Option<Instant> = None;
    let mut called_at: Option<Instant> = None;
    loop {
        let words = pool.words;
        // Before anybody has to wait. After a failure only once a second, because nobody waits for it.
        if words.servers.load(Relaxed) < least_of(&front, words)
            && !*pool.opening.lock()
            && pool.failed.lock().is_none()
        {
            start_opening(&front, &pool, For::Later);
        }
        let may_grow = words.servers.load(Relaxed) < words.size.load(Relaxed) && !words.paused.load(Relaxed);
        let may_open = may_grow && pool.may_open() && !has_newcomer(&front, words);
        let mut watch = false;
        if may_grow {
            // First the wish to hear, then the look: who stops waiting in between says so.
            words.wants_news.store(1, SeqCst);
            watch = words.waiters.load(SeqCst) <= 0;
        }
        let crowded = watch && pool.has_ready_clients();
        words.crowded.store(crowded, Relaxed);
        if crowded {
            // A backend that waits for its own client may serve this one as well; when that is wanted again and again, there
            // are too few.
            let called = words.call_back().and_then(|server| front.shared.servers.get(server as usize));
            if let Some(server) = called {
                wake(server);
            }
            let often = called_at.is_some_and(|at| at.elapsed() < OFTEN);
            called_at = called.map(|_| Instant::now()).or(called_at);
            tokio::time::sleep(PATIENCE).await;
            let still = words.waiters.load(SeqCst) <= 0 && pool.has_ready_clients();
            if may_open && (still && called.is_none() || often) {
                start_opening(&front, &pool, For::Client);
            } else if !may_open {
                // No more can be had at the moment; the backends that there are take turns.
                tokio::time::sleep(TURN).await;
            }
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = pool.news.notified() => {}
            ready = queue.readable(), if watch => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
            _ = tick.tick() => {
                look_at_time(&front, &pool);
                let used = words.clients.load(Relaxed) > 0 || words.servers.load(Relaxed) > 0;
                if used && !pool.asking.swap(true, Relaxed) {
                    front.spawn(look_at_standing(Arc::clone(&front), Arc::clone(&pool)));
                }
                limits::look_at_parts(&front, &pool);
                if limits::concern(&front, &pool) && !pool.watching.swap(true, Relaxed) {
                    front.spawn(limits::look_at_backends(Arc::clone(&front), Arc::clone(&pool)));
                }
                // A paused pool is kept, or it would be forgotten that it is.
                let empty = words.clients.load(Relaxed) == 0
                    && words.servers.load(Relaxed) == 0
                    && !words.paused.load(Relaxed);
                let opening = *pool.opening.lock();
                empty_since = (empty && !opening).then(|| empty_since.unwrap_or_else(Instant::now));
                if empty_since.is_some_and(|since| since.elapsed() > 10 * TICK) {
                    front.history.keep(words);
                    front.pools.drop_pool(&pool);
                    return;
                }
            }
        }
    }
}

/// The catalogs say whom the pool is for: one that is gone, or that may not log in any more, has its connections ended, and what is
/// renamed has them opened anew.
async fn look_at_standing(front: Arc<Front>, pool: Arc<Pool>) {
    let (role, database) = (pool.words.role.load(Relaxed), pool.words.database.load(Relaxed));
    let standing = front.questions.ask(|reply| Question::Standing { role, database, reply }).await;
    pool.asking.store(false, Relaxed);
    match standing {
        Err(Unanswered) => {}
        Ok(Standing::There { role, database, can_login }) => {
            pool.rename(&front, (&role, &database));
            if !can_login {
                retire_all(&front, &pool);
            }
        }
        Ok(Standing::RoleGone) => end_all(&front, &pool, "The role of the session has been dropped."),
        Ok(Standing::DatabaseGone) => end_all(&front, &pool, "The database of the session has been dropped."),
    }
}

/// Ends a pool for good: its clients as far as they are idle, its connections when they are.
fn end_all(front: &Arc<Front>, pool: &Pool, why: &str) {
    retire_all(front, pool);
    let report =
        Report::fatal("57P01", "terminating connection due to administrator command").with_detail(why);
    for (number, generation) in idle_clients(front, pool) {
        front.end_idle(number, generation, &report);
    }
}

/// The pool's clients that nobody serves, as slots and generations.
fn idle_clients<'a>(front: &'a Front, pool: &'a Pool) -> impl Iterator<Item = (u32, u32)> + 'a {
    front.shared.slots_in_use().filter_map(|(number, slot)| {
        let seen = slot.word.seen();
        let its = seen.state() == State::Idle && u32::from(slot.pool.load(Relaxed)) == pool.number;
        its.then_some((number, seen.generation()))
    })
}

/// Whether a connection has been opened whose backend has not come to its first wait: it is about to take who is ready.
fn has_newcomer(front: &Front, words: &shared::Pool) -> bool {
    words.members.iter().filter_map(|member| member.load(Acquire).checked_sub(1)).any(|number| {
        front.shared.servers.get(number as usize).is_some_and(|server| server.state() == ServerState::Opening)
    })
}

/// How many connections the pool is to have now, whether clients need them or not: as in PgBouncer, none are opened for a pool that
/// has no client, because its role may be gone.
fn least_of(front: &Front, words: &shared::Pool) -> u32 {
    let wanted =
        words.clients.load(Relaxed) > 0 && !words.paused.load(Relaxed) && !front.stopping.load(Relaxed);
    if wanted { front.bridge.settings().pooler.min_pool_size.min(words.size.load(Relaxed)) } else { 0 }
}

/// For whom a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// A client waits for it.
    Client,
    /// `postern.min_pool_size` wants it; no connection of another pool is worth less.
    Later,
}

fn start_opening(front: &Arc<Front>, pool: &Arc<Pool>, whom: For) {
    *pool.opening.lock() = true;
    let (to_open, pool) = (Arc::clone(front), Arc::clone(pool));
    front.spawn(async move {
        let front = to_open;
        if let Err(error) = open_one(&front, &pool).await {
            refuse(&front, &pool, &error);
            if whom == For::Client && matches!(&error, opening::Error::Server(code, _) if code == "53300") {
                make_room(&front, &pool);
            }
            let retry = match &error {
                // The server is full, or is starting or stopping: that may pass at any moment.
                opening::Error::Server(code, _) if matches!(&code[..], "53300" | "57P03") => {
                    Duration::from_millis(100)
                }
                _ if pool.words.servers.load(Relaxed) == 0 => Duration::from_millis(100),
                _ => front.bridge.settings().pooler.server_login_retry,
            };
            *pool.failed.lock() = Some((Instant::now() + retry, error));
            let pool = Arc::clone(&pool);
            front.spawn(async move {
                tokio::time::sleep(retry).await;
                pool.news.notify_one();
            });
        } else {
            *pool.failed.lock() = None;
        }
        *pool.opening.lock() = false;
        pool.news.notify_one();
    });
}

/// The server, or a limit of the role or the database, has no place for another connection: the idle one of another pool that has
/// been open longest gives its own, of the same role or database if there is one.
fn make_room(front: &Front, pool: &Pool) {
    let words = pool.words;
    let mut idle: Vec<_> =
        front.shared.servers.iter().filter(|server| server.state() == ServerState::Idle).collect();
    idle.retain(|server| server.pool.load(Acquire) != pool.number && !server.retire.load(Relaxed));
    let others = |server: &&shared::Server| {
        let related = front.shared.pools.get(server.pool.load(Acquire) as usize).is_some_and(|other| {
            other.role.load(Relaxed) == words.role.load(Relaxed)
                || other.database.load(Relaxed) == words.database.load(Relaxed)
        });
        (!related, server.opened_at.load(Relaxed))
    };
    if let Some(server) = idle.into_iter().min_by_key(others) {
        retire(server);
    }
}

/// A failure that waiting does not mend is told to those who wait and have no backend to hope for.
fn refuse(front: &Arc<Front>, pool: &Arc<Pool>, error: &opening::Error) {
    let new = pool.failed.lock().as_ref().is_none_or(|(_, before)| before != error);
    if new {
        front
            .bridge
            .log(Level::Warning, format!("no server connection for database {}: {error}", pool.title()));
    }
    let passing = matches!(error, opening::Error::Server(code, _) if matches!(&code[..], "53300" | "57P03"));
    if passing || pool.words.servers.load(Relaxed) > 0 {
        return;
    }
    let report = match error {
        opening::Error::Server(code, text) => Report::fatal(code, text.clone()),
        opening::Error::NoWay { hint, .. } => {
            Report::fatal("08006", error.to_string()).with_hint(hint.clone())
        }
        _ => Report::fatal("08006", error.to_string()),
    };
    for (number, generation) in idle_clients(front, pool) {
        // One that has been welcomed and wants nothing does not wait, though it has not had a transaction.
        if front.shared.slots[number as usize].is_fresh() || front.seats.is_ready(number, generation) {
            front.end_idle(number, generation, &report);
        }
    }
}

async fn open_one(front: &Arc<Front>, pool: &Arc<Pool>) -> Result<(), opening::Error> {
    let full = || opening::Error::Server("53300".to_owned(), "sorry, too many clients already".to_owned());
    let servers = front.shared.servers;
    let member = pool.words.members.iter().position(|member| member.load(Acquire) == 0).ok_or_else(full)?;
    let claim = |server: &&shared::Server| {
        let (free, opening) = (ServerState::Free as u32, ServerState::Opening as u32);
        server.state.compare_exchange(free, opening, AcqRel, Acquire).is_ok()
    };
    let number = servers.iter().position(|server| claim(&server)).ok_or_else(full)?;
    let server = &servers[number];
    let token = super::front::random_words().ok_or(opening::Error::Protocol)?;
    server.pid.store(0, Relaxed);
    server.slot.store(0, Relaxed);
    server.retire.store(false, Relaxed);
    server.ending.store(0, Relaxed);
    server.status.store(0, Relaxed);
    server.transactions.store(0, Relaxed);
    server.swaps.store(0, Relaxed);
    server.pool.store(pool.number, Relaxed);
    server.member.store(member as u32, Relaxed);
    server.opened_at.store(now(), Relaxed);
    server.since.store(now(), Relaxed);
    for (word, value) in server.token.iter().zip(token) {
        word.store(value, Release);
    }
    pool.words.members[member].store(number as u32 + 1, Release);
    pool.words.servers.fetch_add(1, Relaxed);
    let settings = front.bridge.settings();
    let credential = pool.credential.lock().clone();
    let (role, name) = pool.names.lock().clone();
    let token = token_text(number as u32, token);
    let opening = Opening {
        role: &role,
        database: &name,
        credential: credential.as_ref(),
        parameters: &[(PARAMETER.as_bytes(), token.as_bytes())],
        replication: Replication::No,
        only_let_in: false,
        door: &settings.pooler.door,
        system_user: &front.system_user,
        limit: settings.pooler.server_connect_timeout,
    };
    match opening::open(&opening, &front.questions).await {
        Ok(line) => {
            let (to_end, pool) = (Arc::clone(front), Arc::clone(pool));
            front.spawn(async move {
                hear_the_end(line).await;
                server_ended(&to_end, &pool, number as u32);
            });
            Ok(())
        }
        Err(error) => {
            release(pool, server, member);
            Err(error)
        }
    }
}

/// The backend itself says nothing on this connection any more; its end is its end.
async fn hear_the_end(mut line: opening::Line) {
    let mut bytes = [0; 512];
    while !matches!(line.read(&mut bytes).await, Ok(0) | Err(_)) {}
}

fn release(pool: &Pool, server: &shared::Server, member: usize) {
    for word in &server.token {
        word.store(0, Relaxed);
    }
    pool.words.unstay(member as u32);
    pool.words.members[member].store(0, Release);
    pool.words.servers.fetch_sub(1, Relaxed);
    server.pid.store(0, Relaxed);
    server.set_state(ServerState::Free);
}

/// A backend has ended: its client, if it had one, has ended with it.
fn server_ended(front: &Arc<Front>, pool: &Arc<Pool>, number: u32) {
    let server = &front.shared.servers[number as usize];
    for (client, slot) in front.shared.slots_in_use() {
        loop {
            let seen = slot.word.seen();
            let its = matches!(seen.state(), State::Attached | State::Cancelling) && seen.server() == number;
            if !its {
                break;
            }
            if slot.word.bury(seen.generation(), number) {
                front.end_client(client, seen.generation());
                break;
            }
            // A cancel is under way on another thread: a matter of microseconds.
            std::thread::yield_now();
        }
    }
    release(pool, server, server.member.load(Acquire) as usize);
    pool.news.notify_one();
}

/// Once a second.
fn look_at_time(front: &Arc<Front>, pool: &Arc<Pool>) {
    let settings = front.bridge.settings();
    let words = pool.words;
    let now = now();
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    // Waiting clients.
    let queue = words.waiters.load(SeqCst) <= 0 && pool.has_ready_clients();
    let (mut waiting, mut first) = (0, 0);
    if queue || words.waiting.load(Relaxed) > 0 {
        for (client, slot) in front.shared.slots_in_use() {
            let seen = slot.word.seen();
            if seen.state() != State::Idle || u32::from(slot.pool.load(Relaxed)) != pool.number {
                continue;
            }
            let generation = seen.generation();
            let part = limits::sends_a_part(front, client, generation);
            if queue && !part && (slot.is_fresh() || front.seats.is_ready(client, generation)) {
                let Some(since) = slot.waiting_since.mark(&slot.word, seen, now) else { continue };
                waiting += 1;
                first = if first == 0 { since } else { since.min(first) };
                let limit = settings.pooler.query_wait_timeout.map(micros);
                if limit.is_some_and(|limit| now - since >= limit) {
                    let report = Report::fatal("08P01", "query_wait_timeout")
                        .with_detail(format!(
                            "No server connection for database {} came free in time.",
                            pool.title()
                        ))
                        .with_hint("Raise postern.pool_size or postern.query_wait_timeout.");
                    front.end_idle(client, generation, &report);
                }
            } else {
                slot.waiting_since.clear();
            }
        }
    }
    words.waiting.store(waiting, Relaxed);
    let open = words.servers.load(Relaxed);
    if open < least_of(front, words) && pool.may_open() {
        start_opening(front, pool, For::Later);
    }
    let reserve = words.size.load(Relaxed)..words.size.load(Relaxed) + settings.pooler.reserve_pool_size;
    if waiting > 0
        && settings.pooler.reserve_pool_timeout.is_some_and(|limit| now - first >= micros(limit))
        && reserve.contains(&open)
        && (open as usize) < POOL_SIZE_MAX
        && !words.paused.load(Relaxed)
        && pool.may_open()
    {
        front.bridge.log(
            Level::Warning,
            format!("taking a connection from postern.reserve_pool_size for database {}", pool.title()),
        );
        start_opening(front, pool, For::Client);
    }
    // Connections that nobody has used for a while, and old ones, busy or not: one at a time, so that a pool is not emptied at once.
    let mut renewed = false;
    let retiring = |server: &&shared::Server| server.retire.load(Relaxed);
    let mut spare = i64::from(open) - front.shared.connections(pool.number).filter(retiring).count() as i64;
    spare -= i64::from(settings.pooler.min_pool_size.min(words.size.load(Relaxed)));
    for member in &words.members {
        let Some(number) = member.load(Acquire).checked_sub(1) else { continue };
        let Some(server) = front.shared.servers.get(number as usize) else { continue };
        let done = server.transactions.load(Relaxed);
        let serves = server.state() == ServerState::Serving;
        if server.seen_transactions.swap(done, Relaxed) != done && !serves {
            server.since.store(now, Relaxed);
        }
        let idle = server.state() == ServerState::Idle;
        // A server that waits for its sessions' end opens no more of them, and need not wait for ours.
        if front.stopping.load(Relaxed) {
            if words.clients.load(Relaxed) == 0 && !server.retire.load(Relaxed) {
                retire(server);
            }
            continue;
        }
        let unused = settings
            .pooler
            .server_idle_timeout
            .is_some_and(|limit| now - server.since.load(Relaxed) >= micros(limit));
        let old = settings
            .pooler
            .server_lifetime
            .is_some_and(|limit| now - server.opened_at.load(Relaxed) >= micros(limit));
        // One that was being opened when the pool was paused.
        let paused = words.paused.load(Relaxed);
        let renews = old && !renewed && server.state() != ServerState::Opening;
        if ((idle && (unused && spare > 0 || paused)) || renews) && !server.retire.load(Relaxed) {
            renewed |= old;
            spare -= 1;
            retire(server);
        }
    }
}
