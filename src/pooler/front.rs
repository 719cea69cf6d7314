//! The front: accepts clients, logs them in, hands their sockets to pools, and ends them. Network threads, started by main after it
//! has blocked every signal.

use super::pools::{self, Pools};
use super::seats::{Room, Seats, raise_file_limit};
use super::shared::{ServerState, Shared, Slot, now};
use super::slot::State;
use super::{agents, cancel};
use crate::bridge::{Bridge, Level};
use crate::login::{self, Arrival, Door, Login, Origin, Outcome, Question, Questions};
use crate::net::keeper::{Family, keep};
use crate::net::linger;
use crate::net::listener::{Accepted, Listener};
use crate::net::threads::Threads;
use crate::pooler::state::Startup;
use crate::wire::message::Report;
use parking_lot::Mutex;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio_util::either::Either;

/// The reserved database in which the front itself answers.
pub const CONSOLE: &str = "postern";

/// The kind of the pooler's listeners.
pub const POOLER: crate::net::slots::Kind = 4;

const LISTENERS: Family = Family {
    kind: POOLER,
    name: "pooler",
    setting: "postern.pooler_listen",
    addresses: |settings| &settings.pooler.listen,
};

/// Clients that are logging in at once; the next one makes the one that has been at it longest go.
const LOGINS: usize = 2000;

/// Everything that the front's threads share.
pub struct Front {
    pub shared: Shared,
    pub bridge: Bridge<()>,
    pub questions: Questions,
    pub pools: Pools,
    pub seats: Seats,
    pub room: Room,
    /// The system's name of the user that we run as.
    pub system_user: String,
    /// The system's name of any user. May take its time.
    pub user_name: fn(u32) -> Option<String>,
    free: Mutex<Vec<u32>>,
    logins: Mutex<std::collections::VecDeque<(u64, tokio::task::AbortHandle)>>,
}

/// What main knows when it starts the front.
pub struct Start {
    pub shared: Shared,
    pub questions: Questions,
    pub system_user: String,
    pub user_name: fn(u32) -> Option<String>,
    /// Files that a server process may open for itself.
    pub own_files: u64,
}

/// Starts the front's threads; dropping what is returned ends them within [`Threads::END`].
///
/// # Errors
/// When the system gives no thread, or not the control socket's name.
pub fn start(bridge: &Bridge<()>, start: Start) -> std::io::Result<Threads> {
    let Start { shared, questions, system_user, user_name, own_files } = start;
    let wanted = u32::try_from(shared.slots.len()).unwrap_or(u32::MAX);
    let limit = raise_file_limit();
    let room = Room::of(limit, own_files, wanted);
    if room.capacity < wanted {
        bridge.log(
            Level::Warning,
            format!(
                "the pooler takes at most {} clients and not {wanted} (postern.max_client_connections), because the limit of open \
                 files is {limit}",
                room.capacity
            ),
        );
    }
    let header = shared.header;
    header.base.store(room.base, Release);
    header.capacity.store(room.capacity, Release);
    let name = random_words().ok_or(std::io::ErrorKind::Unsupported)?;
    for (word, value) in header.control.iter().zip(name) {
        word.store(value, Release);
    }
    let control = agents::listen(&shared.control_name())?;
    let front = Arc::new(Front {
        shared,
        bridge: bridge.clone(),
        questions,
        pools: Pools::default(),
        seats: Seats::new(room),
        room,
        system_user,
        user_name,
        free: Mutex::new((0..room.capacity).rev().collect()),
        logins: Mutex::default(),
    });
    let mut threads = Threads::new(bridge);
    let to_keep = bridge.clone();
    threads.spawn("postern front", bridge, move || async move {
        let listeners = &front.shared.header.listeners;
        let to_serve = Arc::clone(&front);
        let serve = move |listener, counts| Arc::clone(&to_serve).accept(listener, counts);
        tokio::join!(agents::serve(Arc::clone(&front), control), keep(to_keep, LISTENERS, listeners, serve));
        front.say_goodbye();
    })?;
    Ok(threads)
}

impl Front {
    async fn accept(self: Arc<Self>, listener: Listener, counts: &'static crate::net::slots::Slot) {
        let mut number = 0u64;
        loop {
            match listener.accept().await {
                Ok(accepted) => {
                    number += 1;
                    counts.served.fetch_add(1, Relaxed);
                    if self.make_room_for_login() {
                        // A login that was told to go gives its descriptor back when it is next looked at: now.
                        tokio::task::yield_now().await;
                    }
                    let front = Arc::clone(&self);
                    let login = tokio::spawn(async move {
                        front.shared.header.logins.fetch_add(1, Relaxed);
                        let _login = LoginCount(&front);
                        front.receive(accepted).await;
                    });
                    self.logins.lock().push_back((number, login.abort_handle()));
                }
                Err(error) => {
                    counts.failed.fetch_add(1, Relaxed);
                    self.bridge.log(Level::Warning, format!("pooler could not accept a client: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Whoever has been logging in longest goes when there are too many; whether somebody had to.
    fn make_room_for_login(&self) -> bool {
        let mut logins = self.logins.lock();
        // Their descriptors are below the clients' numbers.
        let most = LOGINS.min(self.room.base as usize / 4);
        if logins.len() < most {
            return false;
        }
        logins.retain(|(_, login)| !login.is_finished());
        let mut any = false;
        while logins.len() >= most {
            if let Some((_, oldest)) = logins.pop_front() {
                oldest.abort();
                any = true;
            }
        }
        any
    }

    /// A client from its first byte to its place in a pool.
    async fn receive(self: &Arc<Self>, accepted: Accepted) {
        let limit = self.bridge.settings().pooler.client_login_timeout.unwrap_or(Duration::from_secs(86_400));
        let origin = origin_of(&accepted.socket);
        let keepalive = matches!(origin, Origin::Tcp(_));
        if keepalive {
            let _ = rustix::net::sockopt::set_tcp_nodelay(&accepted.socket, true);
            let _ = rustix::net::sockopt::set_socket_keepalive(&accepted.socket, true);
        }
        let Ok(mut stream) = accepted.into_stream() else { return };
        let logged_in = tokio::time::timeout(limit, self.log_in(&mut stream, origin)).await;
        let error = match logged_in {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(login))) => match self.admit(&mut stream, origin, login).await {
                Ok(()) => return,
                Err(error) => error,
            },
            Ok(Err(error)) => error,
            Err(_) => login::Error::TooSlow,
        };
        self.shared.header.counters.logins_failed.fetch_add(1, Relaxed);
        if let login::Error::Told(report, detail) = error {
            let detail = detail.map_or(String::new(), |detail| format!(" ({detail})"));
            let text = format!("login from {} failed: {}{detail}", origin.host(), report.message);
            self.bridge.log(Level::Log, text);
            let bytes =
                if report.severity.is_empty() { report.message.into_bytes() } else { report.to_bytes() };
            let _ = tokio::time::timeout(Duration::from_secs(5), stream.write_all(&bytes)).await;
            linger::close(&mut stream, Duration::from_secs(1)).await;
        }
    }

    async fn log_in(
        self: &Arc<Self>,
        stream: &mut crate::net::listener::Stream,
        origin: Origin,
    ) -> Result<Option<Box<Login>>, login::Error> {
        let settings = self.bridge.settings();
        let system_user = match (&*stream, origin) {
            (Either::Right(socket), Origin::Unix) => {
                let uid = socket.peer_cred().map(|peer| peer.uid()).ok();
                let name = self.user_name;
                match uid {
                    Some(uid) => tokio::task::spawn_blocking(move || name(uid)).await.ok().flatten(),
                    None => None,
                }
            }
            _ => None,
        };
        let door = Door {
            questions: &self.questions,
            origin,
            certificate: None,
            tls: None,
            offers_tls: false,
            has_authorities: false,
            minor: settings.pooler.door.protocol_minor,
            system_user,
            console: Some(CONSOLE),
        };
        match login::log_in(stream, &door).await? {
            Outcome::In(login) => Ok(Some(login)),
            Outcome::Cancel { pid, key } => {
                cancel::cancel(self, pid, &key);
                Ok(None)
            }
            Outcome::Tls => Ok(None),
        }
    }

    /// A place in a pool for a client that has shown who it is.
    async fn admit(
        self: &Arc<Self>,
        stream: &mut crate::net::listener::Stream,
        origin: Origin,
        login: Box<Login>,
    ) -> Result<(), login::Error> {
        let full = || {
            Report::fatal("53300", "sorry, too many clients already").with_detail(format!(
                "The pooler has {} clients, as many as postern.max_client_connections and the limit of open files allow.",
                self.room.capacity
            ))
        };
        let number = self.free.lock().pop().ok_or_else(full)?;
        let slot = &self.shared.slots[number as usize];
        let Some(generation) = slot.word.claim() else { return Err(full().into()) };
        let mut claim = Claim { front: self, number, generation, done: false, admitted: false };
        fill(slot, origin, login.minor)?;
        let arrival = Arrival {
            slot: number,
            role: login.message.user.clone(),
            database: login.message.database.clone(),
            startup: Startup {
                options: login.message.options.clone(),
                settings: login.message.settings.clone(),
            },
        };
        claim.admitted = true;
        let admission = self.questions.ask(|reply| Question::Admit { arrival, reply }).await??;
        let names = (&login.message.user[..], &login.message.database[..]);
        let pool = self.pools.of(self, &admission, names, login.credential)?;
        slot.pool.store(pool.number as u16, Release);
        let broken =
            |error: std::io::Error| Report::fatal("53000", format!("no place for the client: {error}"));
        let socket = match stream {
            Either::Left(tcp) => tcp.as_fd().try_clone_to_owned(),
            Either::Right(unix) => unix.as_fd().try_clone_to_owned(),
        };
        let socket = socket.map_err(broken)?;
        self.seats.seat(number, generation, &socket, &pool.epoll).map_err(broken)?;
        pool.words.clients.fetch_add(1, Relaxed);
        self.shared.header.counters.clients.fetch_add(1, Relaxed);
        claim.done = true;
        slot.word.enter(generation);
        // From here on the client is the pool's.
        if self.seats.announce(number).is_err() && slot.word.close_idle(generation) {
            self.end_client(number, generation);
        }
        pool.news.notify_one();
        Ok(())
    }

    /// Ends a client whose slot is Closing: its socket, its texts, its slot.
    pub fn end_client(self: &Arc<Self>, number: u32, generation: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let seen = slot.word.seen();
        if seen.state() != State::Closing || seen.generation() != generation {
            return;
        }
        self.seats.close(number, generation);
        if let Some(pool) = self.shared.pools.get(slot.pool.load(Acquire) as usize) {
            pool.clients.fetch_sub(1, Relaxed);
        }
        let front = Arc::clone(self);
        tokio::spawn(async move { front.free_slot(number, generation).await });
    }

    /// Main frees the client's texts before anybody else gets the slot.
    async fn free_slot(&self, number: u32, generation: u32) {
        while self.questions.ask(|reply| Question::Forget { slot: number, reply }).await.is_err() {
            if self.bridge.stop().is_cancelled() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if self.shared.slots[number as usize].word.free(generation) {
            self.free.lock().push(number);
        }
    }

    /// Ends a client that has not been served for as long as its `idle_session_timeout` says.
    pub async fn end_idle_session(self: &Arc<Self>, number: u32, generation: u32, millis: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let served = slot.transactions.load(Relaxed);
        tokio::time::sleep(Duration::from_millis(u64::from(millis))).await;
        if slot.transactions.load(Relaxed) == served
            && !self.seats.is_ready(number, generation)
            && slot.word.close_idle(generation)
        {
            let report = Report::fatal("57P05", "terminating connection due to idle-session timeout");
            self.seats.say(number, generation, &report.to_bytes());
            self.end_client(number, generation);
        }
    }

    /// Asks that a client be ended, whoever has it.
    pub fn kill_client(self: &Arc<Self>, number: u32, report: &Report) -> bool {
        let Some(slot) = self.shared.slots.get(number as usize) else { return false };
        let seen = slot.word.seen();
        match seen.state() {
            State::Idle if slot.word.close_idle(seen.generation()) => {
                self.seats.say(number, seen.generation(), &report.to_bytes());
                self.end_client(number, seen.generation());
                true
            }
            State::Attached | State::Cancelling => {
                // Its backend finds the connection closed, as if the client had gone.
                match self.seats.copy(number, seen.generation()) {
                    Some(socket) => rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).is_ok(),
                    None => false,
                }
            }
            _ => false,
        }
    }

    /// The front ends: idle clients hear why. Those that are served are their backends' affair.
    fn say_goodbye(self: &Arc<Self>) {
        let report = Report::fatal("57P01", "terminating connection due to administrator command");
        let bytes = report.to_bytes();
        for (number, slot) in self.shared.slots.iter().enumerate() {
            let seen = slot.word.seen();
            if seen.state() == State::Idle && slot.word.close_idle(seen.generation()) {
                self.seats.say(number as u32, seen.generation(), &bytes);
                self.seats.close(number as u32, seen.generation());
            }
        }
        for server in self.shared.servers {
            if server.state() != ServerState::Free {
                pools::retire(server);
            }
        }
    }
}

/// A slot on its way to a client; gives it back when the login fails.
struct Claim<'a> {
    front: &'a Arc<Front>,
    number: u32,
    generation: u32,
    /// The client has it.
    done: bool,
    /// Main may have kept texts for it.
    admitted: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (front, number, generation) = (Arc::clone(self.front), self.number, self.generation);
        if self.admitted {
            tokio::spawn(async move { front.free_slot(number, generation).await });
        } else if front.shared.slots[number as usize].word.free(generation) {
            front.free.lock().push(number);
        }
    }
}

struct LoginCount<'a>(&'a Front);

impl Drop for LoginCount<'_> {
    fn drop(&mut self) {
        self.0.shared.header.logins.fetch_sub(1, Relaxed);
    }
}

/// What the slot says of its client from the start.
fn fill(slot: &Slot, origin: Origin, minor: u16) -> Result<(), Report> {
    let (family, address, port) = origin.words();
    slot.family.store(family, Relaxed);
    slot.port.store(port, Relaxed);
    for (word, value) in slot.address.iter().zip(address) {
        word.store(value, Relaxed);
    }
    let random =
        random_words().ok_or_else(|| Report::fatal("XX000", "could not generate random cancel key"))?;
    slot.key.store(random[0] as u32, Relaxed);
    slot.minor.store(minor, Relaxed);
    slot.tls.store(false, Relaxed);
    slot.pins.store(0, Relaxed);
    slot.parts.store(0, Relaxed);
    for word in [&slot.settings_hash, &slot.statements_hash, &slot.transactions, &slot.seen_transactions] {
        word.store(0, Relaxed);
    }
    slot.connected_at.store(now(), Relaxed);
    slot.since.store(now(), Relaxed);
    slot.waiting_since.store(0, Relaxed);
    slot.application_name.set(b"");
    Ok(())
}

fn origin_of(socket: &OwnedFd) -> Origin {
    let address = rustix::net::getpeername(socket).ok().flatten();
    match address.map(std::net::SocketAddr::try_from) {
        Some(Ok(address)) => {
            Origin::Tcp(std::net::SocketAddr::new(address.ip().to_canonical(), address.port()))
        }
        _ => Origin::Unix,
    }
}

/// Sixteen random bytes.
pub fn random_words() -> Option<[u64; 2]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).ok()?;
    let (high, low) = bytes.split_at(8);
    Some([u64::from_ne_bytes(*high.first_chunk()?), u64::from_ne_bytes(*low.first_chunk()?)])
}
