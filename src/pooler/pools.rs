//! The pools: each has an epoll instance in which its idle clients are, and as many server connections as its clients have needed, up
//! to its size. Network threads.
//!
//! While some backend waits, the kernel gives ready clients to backends and nothing here runs. Only when nobody waits does the front
//! look at the pool's queue itself: to open another connection, or to end who has waited too long.
//!
//! - `life`: the task that each pool has
//! - `connections`: opening server connections, and their ends
//! - `time`: what is looked at once a second

mod connections;
mod life;
mod time;

use super::control::FRONT_GONE;
use super::front::Front;
use super::limits::Reading;
use super::opening;
use super::shared::{self, POOL_SIZE_MAX};
use super::slot::State;
use crate::auth::Credential;
use crate::login::Admission;
use crate::wire::message::Report;
use parking_lot::Mutex;
use rustix::event::epoll;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*, fence};
use std::time::Instant;
use tokio::sync::Notify;

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
        words.clear(front.shared.header.epoch.load(Acquire));
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
        front.spawn(life::keep(Arc::clone(front), Arc::clone(&pool)));
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

/// The pool's clients that nobody serves, as slots and generations.
fn idle_clients<'a>(front: &'a Front, pool: &'a Pool) -> impl Iterator<Item = (u32, u32)> + 'a {
    front.shared.slots_in_use().filter_map(|(number, slot)| {
        let seen = slot.word.seen();
        let its = seen.state() == State::Idle && u32::from(slot.pool.load(Relaxed)) == pool.number;
        its.then_some((number, seen.generation()))
    })
}

/// How many connections the pool is to have now, whether clients need them or not: as in PgBouncer, none are opened for a pool that
/// has no client, because its role may be gone.
fn least_of(front: &Front, words: &shared::Pool) -> u32 {
    let wanted =
        words.clients.load(Relaxed) > 0 && !words.paused.load(Relaxed) && !front.stopping.load(Relaxed);
    if wanted { front.bridge.settings().pooler.min_pool_size.min(words.size.load(Relaxed)) } else { 0 }
}
