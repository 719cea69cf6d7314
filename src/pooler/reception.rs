//! Reception: a client from its first byte to its place in a pool, at the console or on a replication connection. Network threads.

use super::conversation::{Conversation, OverTls, canonical};
use super::front::{Front, random_words};
use super::listening::{self, Session};
use super::shared::{Order, Shared, Slot, now};
use super::shown::{Authenticated, Shown};
use super::{cancel, console, console_client, replication, sabotage};
use crate::auth::Challenge;
use crate::bridge::Level;
use crate::login::{self, Admission, Arrival, Door, Login, Method, Origin, Outcome, Question};
use crate::net::linger;
use crate::net::listener::{Accepted, Listener, Stream};
use crate::net::tls::peer::PeerCertificate;
use crate::net::tls::{Identity, TlsStream};
use crate::pooler::state::Startup;
use crate::wire::message::Report;
use crate::wire::startup::Replication;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::either::Either;

/// Which of the front's ports a client has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    /// `postern.pooler_listen`.
    Pooler,
    /// `postern.relay_listen`.
    ListenOnly,
}

/// Databases in which the front itself answers: the reserved one, and the one that PgBouncer's exporters and scripts name, where the
/// server has no such database.
const CONSOLES: &[&str] = &[console::DATABASE, console::PGBOUNCER_DATABASE];

/// Names that are looked up at once. Fewer than a thread has for what blocks: passwords are hashed there too.
pub(super) const LOOK_UPS: usize = 4;

/// Clients that are logging in at once; the next one makes the one that has been at it longest go.
const LOGINS: usize = 2000;

impl Front {
    pub(super) async fn accept(
        self: Arc<Self>,
        listener: Listener,
        counts: &'static crate::net::slots::Slot,
        port: Port,
    ) {
        if let Err(error) = listener.keep_clients_alive() {
            self.bridge.log(Level::Warning, format!("a listener of the pooler: {error}"));
        }
        loop {
            match listener.accept().await {
                Ok(accepted) => {
                    counts.served.fetch_add(1, Relaxed);
                    if self.make_room_for_login() {
                        // A login that was told to go gives its descriptor back when it is next looked at: now.
                        tokio::task::yield_now().await;
                    }
                    let login = Registered::next(&self);
                    let number = login.number;
                    // It is known before it can end, and its end looks here.
                    self.logins.lock().insert(number, None);
                    let task = self.spawn_in_turn(async move { login.front.receive(accepted, port).await });
                    if let Some(handle) = self.logins.lock().get_mut(&number) {
                        *handle = Some(task.abort_handle());
                    }
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
        // Their descriptors are below the clients' numbers.
        let most = LOGINS.min(self.room.base as usize / 4);
        let mut any = false;
        while let Some(oldest) = self.oldest_beyond(most) {
            oldest.abort();
            any = true;
        }
        any
    }

    fn oldest_beyond(&self, most: usize) -> Option<AbortHandle> {
        let mut logins = self.logins.lock();
        if logins.len() < most { None } else { logins.pop_first().and_then(|(_, oldest)| oldest) }
    }

    /// A client from its first byte to its place in a pool.
    async fn receive(self: &Arc<Self>, accepted: Accepted, port: Port) {
        let limit = self.bridge.settings().pooler.client_login_timeout.unwrap_or(Duration::from_secs(86_400));
        let deadline = Instant::now() + limit;
        let origin = origin_of(&accepted.socket);
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
            let system_user = timeout_at(deadline, self.system_user_of(&stream)).await.ok().flatten();
            let door = self.door(origin, port, system_user, identity.is_some());
            match timeout_at(deadline, login::log_in(&mut stream, &door)).await {
                Ok(Ok(Outcome::Tls)) => {}
                Ok(Ok(Outcome::Cancel { pid, key })) => return cancel::cancel(self, pid, &key).await,
                Ok(Ok(Outcome::In(login))) => {
                    let proof = Proof::of(&login, &door, None);
                    return self.place(stream, origin, port, login, proof).await;
                }
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
        self.receive_over_tls(tls, &identity, (origin, port), direct, deadline).await;
    }

    async fn receive_over_tls(
        self: &Arc<Self>,
        tls: TlsStream<Stream>,
        identity: &Identity,
        (origin, port): (Origin, Port),
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
        let mut door = self.door(origin, port, None, false);
        door.tls = Some(identity.binding().map(<[u8]>::to_vec));
        door.has_authorities = identity.has_authorities();
        door.certificate = certificate.as_ref().map(|certificate| login::exchange::Certificate {
            common_name: certificate.common_name.clone(),
            distinguished_name: certificate.distinguished_name.clone(),
        });
        match timeout_at(deadline, login::log_in(&mut tls, &door)).await {
            Ok(Ok(Outcome::Tls)) => {}
            Ok(Ok(Outcome::Cancel { pid, key })) => cancel::cancel(self, pid, &key).await,
            Ok(Ok(Outcome::In(login))) => {
                let proof = Proof::of(&login, &door, certificate.as_ref());
                self.place(tls, origin, port, login, proof).await;
            }
            Ok(Err(error)) => self.turn_away(&mut tls, origin, error).await,
            Err(_) => self.turn_away(&mut tls, origin, login::Error::TooSlow).await,
        }
    }

    fn door(&self, origin: Origin, port: Port, system_user: Option<String>, offers_tls: bool) -> Door<'_> {
        Door {
            questions: &self.questions,
            origin,
            certificate: None,
            tls: None,
            offers_tls,
            has_authorities: false,
            minor: self.bridge.settings().pooler.door.protocol_minor,
            system_user,
            host_name: Box::new(move || Box::pin(self.name_of(origin))),
            consoles: match port {
                Port::Pooler => CONSOLES,
                Port::ListenOnly => &[],
            },
        }
    }

    /// The client's host name, where pg_hba.conf asks for names: main must not wait for a name server.
    async fn name_of(&self, origin: Origin) -> Option<String> {
        let Origin::Tcp(address) = origin else { return None };
        if !self.shared.header.names_hosts.load(Relaxed) {
            return None;
        }
        let name = self.host_name;
        self.look_up(move || name(address.ip())).await
    }

    /// The system's name of the user at the other end of a Unix socket.
    async fn system_user_of(&self, stream: &Stream) -> Option<String> {
        let Either::Right(socket) = stream else { return None };
        let uid = socket.peer_cred().ok()?.uid();
        let name = self.user_name;
        self.look_up(move || name(uid)).await
    }

    /// Asks the system for what may take its time. Whoever comes while too many do waits for its turn, within its login's time.
    async fn look_up<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> Option<T> + Send + 'static,
    ) -> Option<T> {
        let place = Arc::clone(&self.look_ups).acquire_owned().await.ok()?;
        let asked = tokio::task::spawn_blocking(move || {
            // One that nobody waits for any more goes on, and takes a place for as long as it does.
            let _place = place;
            what()
        });
        asked.await.ok().flatten()
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
        port: Port,
        login: Box<Login>,
        proof: Proof,
    ) {
        sabotage::break_on_purpose(self, &login);
        if login.console.is_some() {
            match console_client::admit(self, origin, &login) {
                // A task of its own: this one counts as a login and may be ended as such.
                Ok(client) => {
                    drop(self.spawn_on_first(console_client::serve(Arc::clone(self), stream, client)));
                }
                Err(error) => self.turn_away(&mut stream, origin, error).await,
            }
            return;
        }
        if port == Port::ListenOnly {
            return self.place_listener(stream, origin, login, proof).await;
        }
        if login.message.replication != Replication::No {
            let front = Arc::clone(self);
            self.spawn(async move {
                if let Err(error) = replication::serve(&front, &mut stream, &login).await {
                    front.turn_away(&mut stream, origin, error).await;
                }
            });
            return;
        }
        let (cipher, local, wire) = (stream.cipher(), stream.local(), stream.wire());
        let socket = match stream.socket() {
            Ok(socket) => socket,
            Err(error) => return self.turn_away(&mut stream, origin, no_place(error).into()).await,
        };
        let newcomer = Newcomer { origin, local, cipher, login, proof };
        let front = Arc::clone(self);
        match self.on_first(async move { front.admit(newcomer, wire, socket).await }).await {
            Some(Ok(())) if cipher != 0 => drop(self.spawn(stream.go_on(self))),
            Some(Err(error)) => self.turn_away(&mut stream, origin, error).await,
            Some(Ok(())) | None => {}
        }
    }

    /// A place for a client that only listens, with a task of its own on this thread.
    async fn place_listener<S: Conversation + 'static>(
        self: &Arc<Self>,
        mut stream: S,
        origin: Origin,
        login: Box<Login>,
        proof: Proof,
    ) {
        if login.message.replication != Replication::No {
            let words = "replication connections are not possible at this port (postern.relay_listen)";
            return self.turn_away(&mut stream, origin, Report::fatal("0A000", words).into()).await;
        }
        let (local, cipher) = (stream.local(), stream.cipher());
        let newcomer = Newcomer { origin, local, cipher, login, proof };
        let front = Arc::clone(self);
        match self.on_first(async move { front.admit_listener(newcomer).await }).await {
            Some(Ok((place, session))) => drop(self.spawn(listening::serve(place, session, stream))),
            Some(Err(error)) => self.turn_away(&mut stream, origin, error).await,
            None => {}
        }
    }

    /// A place in a pool for a client that has shown who it is; `socket` is what a backend is to serve, and `wire` the number of the
    /// client's own TCP connection, where that is another. On the first thread.
    async fn admit(
        self: &Arc<Self>,
        newcomer: Newcomer,
        wire: Option<RawFd>,
        socket: OwnedFd,
    ) -> Result<(), login::Error> {
        let (mut claim, admission) = self.claim(&newcomer).await?;
        let (number, generation) = (claim.number, claim.generation);
        let slot = &self.shared.slots[number as usize];
        let login = newcomer.login;
        let names = (&login.message.user[..], &login.message.database[..]);
        let pool = self.pools.of(self, &admission, names, login.credential)?;
        slot.pool.store(pool.number as u16, Release);
        self.seats.seat(number, generation, &socket, &pool.epoll, wire).map_err(no_place)?;
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

    /// A place for a client that only listens. On the first thread.
    async fn admit_listener(
        self: &Arc<Self>,
        newcomer: Newcomer,
    ) -> Result<(listening::Place, Session), login::Error> {
        let (mut claim, admission) = self.claim(&newcomer).await?;
        let (number, generation) = (claim.number, claim.generation);
        let slot = &self.shared.slots[number as usize];
        let message = &newcomer.login.message;
        let Admission { role, database } = admission;
        let facts = self.questions.ask(|reply| Question::Facts { role, database, reply }).await??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let client = listening::Identity {
            database: text(&message.database),
            role: text(&message.user),
            pid: Shared::client_pid(number),
            key: slot.key.load(Relaxed).to_be_bytes(),
            pooler: self.bridge.settings().pooler.listen.to_string(),
        };
        let mut session = Session::new(self.listeners.share(facts), client);
        let options = message.options.as_deref().map(listening::options).unwrap_or_default();
        let settings = message.settings.iter().map(|(name, value)| (text(name), text(value)));
        for (name, value) in options.into_iter().chain(settings) {
            session.set_at_startup(&name, &value)?;
        }
        slot.pool.store(listening::NO_POOL, Release);
        let slot_of = (number, generation);
        let place = listening::Place::take(self, slot_of, (database, &message.database), &message.user);
        let place = place.ok_or_else(|| no_place(std::io::ErrorKind::Interrupted.into()))?;
        self.shared.header.counters.clients.fetch_add(1, Relaxed);
        claim.done = true;
        Ok((place, session))
    }

    /// A slot for a client that has shown who it is and may come in; it is in its login still. On the first thread.
    async fn claim<'a>(
        self: &'a Arc<Self>,
        newcomer: &Newcomer,
    ) -> Result<(Claim<'a>, Admission), login::Error> {
        let Newcomer { origin, local, cipher, login, proof } = newcomer;
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
        fill(slot, *origin, *local, login.minor)?;
        slot.tls.store(*cipher, Relaxed);
        slot.authenticated.store(proof.authenticated as u8, Relaxed);
        let arrival = Arrival {
            slot: number,
            role: login.message.user.clone(),
            database: login.message.database.clone(),
            startup: Startup {
                options: login.message.options.clone(),
                settings: login.message.settings.clone(),
            },
            shown: proof.shown.clone(),
        };
        claim.admitted = true;
        let admission = self.questions.ask(|reply| Question::Admit { arrival, reply }).await??;
        Ok((claim, admission))
    }
}

/// A client that has shown who it is, on its way to the first thread.
struct Newcomer {
    origin: Origin,
    /// Our own end.
    local: Origin,
    cipher: u8,
    login: Box<Login>,
    proof: Proof,
}

fn no_place(error: std::io::Error) -> Report {
    Report::fatal("53000", format!("no place for the client: {error}"))
}

/// How a client has shown who it is, for its slot.
struct Proof {
    authenticated: Authenticated,
    /// [`Shown`] as bytes.
    shown: Vec<u8>,
}

impl Proof {
    fn of(login: &Login, door: &Door<'_>, certificate: Option<&PeerCertificate>) -> Self {
        // set_authn_id() of the server (src/backend/libpq/auth.c): which identity each method has.
        let (authenticated, identity) = match &login.method {
            Method::Password => (Authenticated::Password, ""),
            Method::Challenge(Challenge::Md5) => (Authenticated::Md5, ""),
            Method::Challenge(Challenge::Scram) => (Authenticated::Scram, ""),
            Method::Cert => {
                (Authenticated::Cert, certificate.map_or("", |shown| &shown.distinguished_name[..]))
            }
            Method::Peer => (Authenticated::Peer, door.system_user.as_deref().unwrap_or_default()),
            Method::Reject | Method::NoLine | Method::Trust | Method::Other(_) => (Authenticated::Not, ""),
        };
        let mut shown = Shown { identity: identity.as_bytes(), ..Shown::default() };
        if let Some(certificate) = certificate {
            shown.subject = &certificate.subject;
            shown.serial = certificate.serial.as_bytes();
            shown.issuer = &certificate.issuer;
        }
        Self { authenticated, shown: shown.encode() }
    }
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
            // Main may be at it just now.
            let to_free = Arc::clone(&front);
            front.spawn(async move { to_free.forget(number, generation).await });
        } else {
            front.free_slot(number, generation);
        }
    }
}

/// A login under way, known to the front until its task has ended: whoever keeps a task's handle keeps its memory.
struct Registered {
    front: Arc<Front>,
    number: u64,
}

impl Registered {
    fn next(front: &Arc<Front>) -> Self {
        front.shared.header.logins.fetch_add(1, Relaxed);
        Self { front: Arc::clone(front), number: front.login_number.fetch_add(1, Relaxed) }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.front.logins.lock().remove(&self.number);
        self.front.shared.header.logins.fetch_sub(1, Relaxed);
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
    slot.pins.store(0, Relaxed);
    slot.doomed.store(0, Relaxed);
    slot.discard.store(0, Relaxed);
    slot.idle_millis.store(0, Relaxed);
    slot.parts.store(0, Relaxed);
    slot.part_since.store(0, Relaxed);
    for word in [&slot.settings_hash, &slot.statements_hash, &slot.transactions] {
        word.store(0, Relaxed);
    }
    slot.connected_at.store(now(), Relaxed);
    slot.since.store(now(), Relaxed);
    slot.waiting_since.clear();
    slot.application_name.set(b"");
    Ok(())
}

fn origin_of(socket: &OwnedFd) -> Origin {
    let address = rustix::net::getpeername(socket).ok().flatten();
    match address.map(std::net::SocketAddr::try_from) {
        Some(Ok(address)) => canonical(address),
        _ => Origin::Unix,
    }
}
