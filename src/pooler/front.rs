//! The front: accepts clients, logs them in, hands their sockets to pools, and ends them. Network threads, started by main after it
//! has blocked every signal.

use super::console_client::Consoles;
use super::history::{self, History};
use super::pools::{self, Pools};
use super::seats::{Room, Seats, raise_file_limit};
use super::shared::{Order, ServerState, Shared, Slot, now};
use super::slot::State;
use super::{agents, cancel, console, console_client, replication};
use crate::bridge::{Bridge, Level};
use crate::login::{self, Arrival, Door, Login, Origin, Outcome, Question, Questions};
use crate::net::keeper::{Family, keep};
use crate::net::linger;
use crate::net::listener::{Accepted, Listener, Stream};
use crate::net::threads::Threads;
use crate::net::tls::peer::PeerCertificate;
use crate::net::tls::pump::pump;
use crate::net::tls::{Identity, TlsStream};
use crate::pooler::state::Startup;
use crate::wire::message::Report;
use crate::wire::startup::Replication;
use parking_lot::Mutex;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_util::either::Either;

/// Databases in which the front itself answers: the reserved one, and the one that PgBouncer's exporters and scripts name, where the
/// server has no such database.
const CONSOLES: &[&str] = &[console::DATABASE, console::PGBOUNCER_DATABASE];

/// The kind of the pooler's listeners.
pub const POOLER: crate::net::slots::Kind = 4;

const LISTENERS: Family = Family {
    kind: POOLER,
    name: "pooler",
    setting: "postern.pooler_listen",
    addresses: |settings| &settings.pooler.listen,
};

/// How long a client that is to be ended may finish what it has running.
const PROMPT: Duration = Duration::from_millis(50);

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
    /// The name of a host whose address is confirmed by it. May take its time.
    pub host_name: fn(std::net::IpAddr) -> Option<String>,
    /// The server is stopping and waits for its sessions' end.
    pub stopping: AtomicBool,
    identity: Mutex<Option<Arc<Identity>>>,
    /// The postmaster's process id.
    pub postmaster: i32,
    pub consoles: Consoles,
    pub history: History,
    free: Mutex<Vec<u32>>,
    logins: Mutex<std::collections::VecDeque<(u64, tokio::task::AbortHandle)>>,
}

/// What main knows when it starts the front.
pub struct Start {
    pub shared: Shared,
    pub questions: Questions,
    pub system_user: String,
    pub user_name: fn(u32) -> Option<String>,
    pub host_name: fn(std::net::IpAddr) -> Option<String>,
    pub postmaster: i32,
    /// Files that a server process may open for itself.
    pub own_files: u64,
}

/// Starts the front's threads; dropping what is returned ends them within [`Threads::END`].
///
/// # Errors
/// When the system gives no thread, or not the control socket's name.
pub fn start(bridge: &Bridge<()>, start: Start) -> std::io::Result<Threads> {
    let Start { shared, questions, system_user, user_name, host_name, postmaster, own_files } = start;
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
        stopping: AtomicBool::new(false),
        seats: Seats::new(room),
        room,
        system_user,
        user_name,
        host_name,
        identity: Mutex::default(),
        postmaster,
        consoles: Consoles::default(),
        history: History::default(),
        free: Mutex::new((0..room.capacity).rev().collect()),
        logins: Mutex::default(),
    });
    front.load_identity();
    let mut threads = Threads::new(bridge);
    let to_keep = bridge.clone();
    threads.spawn("postern front", bridge, move || async move {
        let listeners = &front.shared.header.listeners;
        let to_serve = Arc::clone(&front);
        let serve = move |listener, counts| Arc::clone(&to_serve).accept(listener, counts);
        tokio::join!(
            Arc::clone(&front).watch_server(),
            Arc::clone(&front).keep_identity(),
            agents::serve(Arc::clone(&front), control),
            keep(to_keep, LISTENERS, listeners, serve),
            history::turn(&front)
        );
        front.say_goodbye();
        front.consoles.ended().await;
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
        let deadline = Instant::now() + limit;
        let origin = origin_of(&accepted.socket);
        if let Origin::Tcp(_) = origin {
            let _ = rustix::net::sockopt::set_tcp_nodelay(&accepted.socket, true);
            let _ = rustix::net::sockopt::set_socket_keepalive(&accepted.socket, true);
        }
        let Ok(mut stream) = accepted.into_stream() else { return };
        // As a server, which offers TLS over TCP only.
        let identity = match &stream {
            Either::Left(_) => self.identity.lock().clone(),
            Either::Right(_) => None,
        };
        let direct = match &stream {
            Either::Left(tcp) if identity.is_some() => {
                timeout_at(deadline, tcp.peek(&mut [0])).await.is_ok_and(|peeked| peeked.is_ok())
                    && starts_with_tls(tcp)
            }
            _ => false,
        };
        if !direct {
            let mut door = self.door(origin, system_user(self, &stream).await, identity.is_some());
            door.host_name = self.name_of(origin).await;
            match timeout_at(deadline, login::log_in(&mut stream, &door)).await {
                Ok(Ok(Outcome::Tls)) => {}
                Ok(Ok(Outcome::Cancel { pid, key })) => return cancel::cancel(self, pid, &key).await,
                Ok(Ok(Outcome::In(login))) => return self.place(stream, origin, login).await,
                Ok(Err(error)) => return self.turn_away(&mut stream, origin, error).await,
                Err(_) => return self.turn_away(&mut stream, origin, login::Error::TooSlow).await,
            }
        }
        let Some(identity) = identity else { return };
        let tls = match timeout_at(deadline, identity.accept(stream)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                return self
                    .bridge
                    .log(Level::Log, format!("could not accept TLS of {}: {error}", origin.host()));
            }
            Err(_) => return,
        };
        self.receive_over_tls(tls, &identity, origin, direct, deadline).await;
    }

    async fn receive_over_tls(
        self: &Arc<Self>,
        tls: TlsStream<Stream>,
        identity: &Identity,
        origin: Origin,
        direct: bool,
        deadline: Instant,
    ) {
        let mut tls = OverTls { tls, plain: None };
        if direct && !crate::net::tls::names_postgresql(&tls.tls) {
            let words = "received direct SSL connection request without ALPN protocol negotiation extension";
            return self.turn_away(&mut tls, origin, Report::fatal("08P01", words).into()).await;
        }
        let certificate = match PeerCertificate::of(&tls.tls) {
            Ok(certificate) => certificate,
            Err(error) => {
                return self
                    .turn_away(&mut tls, origin, Report::fatal("08P01", error.to_string()).into())
                    .await;
            }
        };
        let mut door = self.door(origin, None, false);
        door.host_name = self.name_of(origin).await;
        door.tls = Some(identity.binding().map(<[u8]>::to_vec));
        door.has_authorities = identity.has_authorities();
        door.certificate = certificate.map(|certificate| login::exchange::Certificate {
            common_name: certificate.common_name,
            distinguished_name: certificate.distinguished_name,
        });
        match timeout_at(deadline, login::log_in(&mut tls, &door)).await {
            Ok(Ok(Outcome::Tls)) => {}
            Ok(Ok(Outcome::Cancel { pid, key })) => cancel::cancel(self, pid, &key).await,
            Ok(Ok(Outcome::In(login))) => self.place(tls, origin, login).await,
            Ok(Err(error)) => self.turn_away(&mut tls, origin, error).await,
            Err(_) => self.turn_away(&mut tls, origin, login::Error::TooSlow).await,
        }
    }

    fn door(&self, origin: Origin, system_user: Option<String>, offers_tls: bool) -> Door<'_> {
        Door {
            questions: &self.questions,
            origin,
            certificate: None,
            tls: None,
            offers_tls,
            has_authorities: false,
            minor: self.bridge.settings().pooler.door.protocol_minor,
            system_user,
            host_name: None,
            consoles: CONSOLES,
        }
    }

    /// The client's host name, where pg_hba.conf asks for names: main must not wait for a name server.
    async fn name_of(&self, origin: Origin) -> Option<String> {
        let Origin::Tcp(address) = origin else { return None };
        if !self.shared.header.names_hosts.load(Relaxed) {
            return None;
        }
        let name = self.host_name;
        tokio::task::spawn_blocking(move || name(address.ip())).await.ok().flatten()
    }

    /// The end of a login that failed: the log hears why, and the client what it may hear.
    async fn turn_away<S>(&self, stream: &mut S, origin: Origin, error: login::Error)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.shared.header.counters.logins_failed.fetch_add(1, Relaxed);
        let login::Error::Told(report, detail) = error else { return };
        let detail = detail.map_or(String::new(), |detail| format!(" ({detail})"));
        let text = format!("login from {} failed: {}{detail}", origin.host(), report.message);
        self.bridge.log(Level::Log, text);
        let bytes = if report.severity.is_empty() { report.message.into_bytes() } else { report.to_bytes() };
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.write_all(&bytes)).await;
        let _ = stream.flush().await;
        linger::close(stream, Duration::from_secs(1)).await;
    }

    /// Where a client that has shown who it is goes.
    async fn place<S: Conversation + 'static>(
        self: &Arc<Self>,
        mut stream: S,
        origin: Origin,
        login: Box<Login>,
    ) {
        if login.console.is_some() {
            match console_client::admit(self, origin, &login) {
                // A task of its own: this one counts as a login and may be ended as such.
                Ok(client) => drop(tokio::spawn(console_client::serve(Arc::clone(self), stream, client))),
                Err(error) => self.turn_away(&mut stream, origin, error).await,
            }
            return;
        }
        if login.message.replication != Replication::No {
            let front = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = replication::serve(&front, &mut stream, &login).await {
                    front.turn_away(&mut stream, origin, error).await;
                }
            });
            return;
        }
        match self.admit(&mut stream, origin, login).await {
            Ok(()) if stream.is_tls() => drop(tokio::spawn(stream.go_on())),
            Ok(()) => {}
            Err(error) => self.turn_away(&mut stream, origin, error).await,
        }
    }

    /// A place in a pool for a client that has shown who it is.
    async fn admit<S: Conversation>(
        self: &Arc<Self>,
        stream: &mut S,
        origin: Origin,
        login: Box<Login>,
    ) -> Result<(), login::Error> {
        let full = || {
            Report::fatal("53300", "sorry, too many clients already").with_detail(format!(
                "The pooler has {} clients, as many as postern.max_client_connections and the limit of open files allow.",
                self.room.capacity
            ))
        };
        if self.shared.header.orders.has(&login.message.database, Order::Disable) {
            // PgBouncer's words.
            let name = String::from_utf8_lossy(&login.message.database).into_owned();
            let report = Report::fatal("55000", format!("database does not allow connections: {name}"));
            return Err(report.with_hint("ENABLE in the pooler's console takes a DISABLE back.").into());
        }
        if self.stopping.load(Relaxed) {
            return Err(Report::fatal("57P03", "the database system is shutting down").into());
        }
        let number = self.free.lock().pop().ok_or_else(full)?;
        let slot = &self.shared.slots[number as usize];
        let Some(generation) = slot.word.claim() else { return Err(full().into()) };
        let mut claim = Claim { front: self, number, generation, done: false, admitted: false };
        fill(slot, origin, stream.local(), login.minor)?;
        slot.tls.store(stream.is_tls(), Relaxed);
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
        let socket = stream.socket().map_err(broken)?;
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

    /// The server's certificate as the settings name it now. A mistake leaves the one of before in force, as with a server.
    fn load_identity(&self) {
        let settings = self.bridge.settings();
        let Some(files) = &settings.pooler.tls else {
            *self.identity.lock() = None;
            return;
        };
        if self.identity.lock().as_ref().is_some_and(|identity| !identity.changed(files)) {
            return;
        }
        match Identity::load(files) {
            Ok(identity) => *self.identity.lock() = Some(Arc::new(identity)),
            Err(error) => {
                self.bridge.log(Level::Warning, format!("the pooler's TLS settings were not loaded: {error}"))
            }
        }
    }

    async fn keep_identity(self: Arc<Self>) {
        let stop = self.bridge.stop();
        let mut settings = self.bridge.settings_watch();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = settings.changed() => if changed.is_err() { return },
            }
            self.load_identity();
        }
    }

    /// A smart shutdown tells nobody: the postmaster only writes it into its file, and waits for the end of every session.
    async fn watch_server(self: Arc<Self>) {
        let stop = self.bridge.stop();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            // A server's process runs in its data directory. The eighth line (LOCK_FILE_LINE_PM_STATUS in miscadmin.h).
            let file = std::fs::read_to_string("postmaster.pid").unwrap_or_default();
            let stopping = file.lines().nth(7).is_some_and(|state| state.trim() == "stopping");
            self.stopping.store(stopping, Relaxed);
        }
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

    /// Has a client ended, whoever has it: one that is served hears it from its backend, which ends with it. False when that client
    /// is gone already.
    pub fn kill_client(self: &Arc<Self>, number: u32, generation: u32) -> bool {
        let Some(slot) = self.shared.slots.get(number as usize) else { return false };
        let seen = slot.word.seen();
        let there = seen.generation() == generation
            && matches!(seen.state(), State::Idle | State::Attached | State::Cancelling);
        if there {
            let front = Arc::clone(self);
            tokio::spawn(async move { front.end_wherever_it_is(number, generation).await });
        }
        there
    }

    /// A backend that is told may let go of the client before it hears it: then the next look finds the client elsewhere.
    async fn end_wherever_it_is(self: Arc<Self>, number: u32, generation: u32) {
        let slot = &self.shared.slots[number as usize];
        slot.doomed.store(generation, SeqCst);
        let mut pause = Duration::from_millis(5);
        loop {
            let seen = slot.word.seen();
            if seen.generation() != generation {
                return;
            }
            match seen.state() {
                State::Free | State::Login | State::Closing => return,
                State::Idle if slot.word.close_idle(generation) => {
                    let report =
                        Report::fatal("57P01", "terminating connection due to administrator command");
                    self.seats.say(number, generation, &report.to_bytes());
                    self.end_client(number, generation);
                    return;
                }
                State::Attached => self.tell_backend_of(slot, generation, pause > PROMPT),
                State::Idle | State::Cancelling => {}
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(Duration::from_secs(1));
        }
    }

    /// As with a cancel: meanwhile the backend keeps the client.
    fn tell_backend_of(&self, slot: &Slot, generation: u32, insist: bool) {
        let Some(number) = slot.word.start_cancel(generation) else { return };
        if let Some(server) = self.shared.servers.get(number as usize) {
            let pool = self.shared.pools.get(server.pool.load(Acquire) as usize);
            match (server.state(), pool) {
                // Busy for longer than a moment: it is ended with its query.
                (ServerState::Serving, Some(_)) if insist => {
                    pools::signal(server, rustix::process::Signal::TERM)
                }
                // At its next idle moment, which may be now, it ends the client itself.
                _ => pools::wake(server),
            }
        }
        slot.word.cancelled(generation, number);
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

/// A client's connection up to its place in a pool.
trait Conversation: AsyncRead + AsyncWrite + Unpin + Send {
    /// What a backend serves: the client's own socket, or the plain end of a pump.
    fn socket(&mut self) -> std::io::Result<OwnedFd>;
    fn is_tls(&self) -> bool;
    /// Our own end.
    fn local(&self) -> Origin;
    /// What is left to do while a backend serves it.
    fn go_on(self) -> impl Future<Output = ()> + Send;
}

impl Conversation for Stream {
    fn socket(&mut self) -> std::io::Result<OwnedFd> {
        match self {
            Either::Left(tcp) => tcp.as_fd().try_clone_to_owned(),
            Either::Right(unix) => unix.as_fd().try_clone_to_owned(),
        }
    }

    fn is_tls(&self) -> bool {
        false
    }

    fn local(&self) -> Origin {
        match self {
            Either::Left(tcp) => tcp.local_addr().map_or(Origin::Unix, canonical),
            Either::Right(_) => Origin::Unix,
        }
    }

    async fn go_on(self) {}
}

/// A TLS client, and our end of the socket pair whose other end its backend serves.
struct OverTls {
    tls: TlsStream<Stream>,
    plain: Option<UnixStream>,
}

impl Conversation for OverTls {
    fn socket(&mut self) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        self.plain = Some(UnixStream::from_std(ours)?);
        Ok(theirs.into())
    }

    fn is_tls(&self) -> bool {
        true
    }

    fn local(&self) -> Origin {
        self.tls.get_ref().0.local()
    }

    async fn go_on(self) {
        if let Some(plain) = self.plain {
            let _ = pump(self.tls, plain, Duration::from_secs(5)).await;
        }
    }
}

impl AsyncRead for OverTls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, out)
    }
}

impl AsyncWrite for OverTls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// The system's name of the user at the other end of a Unix socket.
async fn system_user(front: &Front, stream: &Stream) -> Option<String> {
    let Either::Right(socket) = stream else { return None };
    let uid = socket.peer_cred().ok()?.uid();
    let name = front.user_name;
    tokio::task::spawn_blocking(move || name(uid)).await.ok().flatten()
}

/// Whether what the client has sent first is a TLS handshake (RFC 8446 section 5.1) and no startup packet.
fn starts_with_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut first, flags).is_ok_and(|(length, _)| length == 1) && first[0] == 0x16
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
fn fill(slot: &Slot, origin: Origin, local: Origin, minor: u16) -> Result<(), Report> {
    let (family, address, port) = origin.words();
    let (_, local_address, local_port) = local.words();
    slot.local_port.store(local_port, Relaxed);
    for (word, value) in slot.local_address.iter().zip(local_address) {
        word.store(value, Relaxed);
    }
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
    slot.doomed.store(0, Relaxed);
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

/// An IPv4 address that a socket of both families shows as IPv6 is IPv4.
fn canonical(address: std::net::SocketAddr) -> Origin {
    Origin::Tcp(std::net::SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Sixteen random bytes.
pub fn random_words() -> Option<[u64; 2]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).ok()?;
    let (high, low) = bytes.split_at(8);
    Some([u64::from_ne_bytes(*high.first_chunk()?), u64::from_ne_bytes(*low.first_chunk()?)])
}
