//! Reception: a client from its first byte to when it has shown who it is. Network threads.
//!
//! - [`placing`]: where it goes then

mod placing;

use super::conversation::{Conversation, OverTls, canonical};
use super::front::Front;
use super::shown::{Authenticated, Shown};
use super::{cancel, console};
use crate::auth::Challenge;
use crate::bridge::Level;
use crate::login::{self, Door, Login, Method, Origin, Outcome};
use crate::net::linger;
use crate::net::listener::{Accepted, Listener, Stream};
use crate::net::tls::peer::PeerCertificate;
use crate::net::tls::{Identity, TlsStream};
use crate::wire::message::Report;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
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

/// The first byte of a TLS handshake (RFC 8446 section 5.1), which no startup packet begins with.
const TLS_HANDSHAKE: u8 = 0x16;

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

    /// A client from its first byte to its place in a pool. What may follow has its place on the heap when it comes to that: thousands may
    /// wait here that have not said a word.
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
                let mut first = [0];
                let peeked = timeout_at(deadline, tcp.peek(&mut first)).await;
                peeked.is_ok_and(|peeked| peeked.is_ok_and(|length| length == 1)) && first[0] == TLS_HANDSHAKE
            }
            _ => false,
        };
        if !direct {
            let system_user = timeout_at(deadline, self.system_user_of(&stream)).await.ok().flatten();
            let door = self.door(origin, port, system_user, identity.is_some());
            match self.log_in(&mut stream, &door, deadline).await {
                LoggedIn::Tls => {}
                LoggedIn::In(login) => {
                    let proof = Proof::of(&login, &door, None);
                    return Box::pin(self.place(stream, origin, port, login, proof)).await;
                }
                LoggedIn::Over => return,
            }
        }
        let Some(identity) = identity else { return };
        let tls = match timeout_at(deadline, Box::pin(identity.accept(stream))).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                return self
                    .bridge
                    .log(Level::Log, format!("could not accept TLS of {}: {error}", origin.host()));
            }
            Err(_) => return,
        };
        Box::pin(self.receive_over_tls(tls, &identity, (origin, port), direct, deadline)).await;
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
        if let LoggedIn::In(login) = self.log_in(&mut tls, &door, deadline).await {
            let proof = Proof::of(&login, &door, certificate.as_ref());
            Box::pin(self.place(tls, origin, port, login, proof)).await;
        }
    }

    /// The login itself. It has no place of its own for the connection: there may be thousands of logins at once.
    async fn log_in<S: Conversation>(
        self: &Arc<Self>,
        stream: &mut S,
        door: &Door<'_>,
        deadline: Instant,
    ) -> LoggedIn {
        let outcome = timeout_at(deadline, login::log_in(stream, door)).await;
        match outcome.unwrap_or(Err(login::Error::TooSlow)) {
            Ok(Outcome::Tls) => return LoggedIn::Tls,
            Ok(Outcome::In(login)) => return LoggedIn::In(login),
            Ok(Outcome::Cancel { pid, key }) => cancel::cancel(self, pid, &key).await,
            Err(error) => Box::pin(self.turn_away(stream, door.origin, error)).await,
        }
        LoggedIn::Over
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
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.write_all(&report.to_bytes())).await;
        let _ = stream.flush().await;
        linger::close(stream, Duration::from_secs(1)).await;
    }
}

/// What has come of a login.
enum LoggedIn {
    In(Box<Login>),
    /// It goes on over TLS.
    Tls,
    /// The client wanted something else, or has heard why not.
    Over,
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

fn origin_of(socket: &OwnedFd) -> Origin {
    let address = rustix::net::getpeername(socket).ok().flatten();
    match address.map(std::net::SocketAddr::try_from) {
        Some(Ok(address)) => canonical(address),
        _ => Origin::Unix,
    }
}
