//! Where a client that has shown who it is goes: to the console, to a replication connection, among those that only listen, or into a slot
//! and a pool. Network threads; slots and pools are given out on the first of them.

use super::{Port, Proof};
use crate::login::{self, Admission, Arrival, Login, Origin, Question};
use crate::pooler::conversation::Conversation;
use crate::pooler::front::{Front, random_words};
use crate::pooler::listening::{self, Session};
use crate::pooler::shared::{Order, Shared, Slot, now};
use crate::pooler::state::Startup;
use crate::pooler::{console_client, replication, sabotage};
use crate::wire::message::{self, Report};
use crate::wire::startup::Replication;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use tokio::io::AsyncWriteExt;

impl Front {
    /// Where a client that has shown who it is goes.
    pub(super) async fn place<S: Conversation + 'static>(
        self: &Arc<Self>,
        mut stream: S,
        origin: Origin,
        port: Port,
        mut login: Box<Login>,
        proof: Proof,
    ) {
        sabotage::break_on_purpose(self, &login);
        // What a backend says first goes out with the rest of it.
        let by_backend = login.console.is_none()
            && port == Port::Pooler
            && login.message.replication == Replication::No
            && login.granted == message::AUTHENTICATION_OK;
        if !by_backend && stream.write_all(&std::mem::take(&mut login.granted)).await.is_err() {
            return;
        }
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
        let newcomer = Newcomer { origin, local, cipher, login, proof, by_backend };
        let front = Arc::clone(self);
        match self.on_first(async move { front.admit(newcomer, wire, socket).await }).await {
            Some(Ok(())) if cipher != 0 => drop(self.spawn(stream.go_on(self))),
            Some(Err(error)) => {
                // As the server, which has said it when it refuses the session.
                if !by_backend || stream.write_all(message::AUTHENTICATION_OK).await.is_ok() {
                    self.turn_away(&mut stream, origin, error).await;
                }
            }
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
        let newcomer = Newcomer { origin, local, cipher, login, proof, by_backend: false };
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
        if pool.words.waiters.count() <= 0 || pool.words.paused.load(Relaxed) {
            // No backend may come for long, and who has shown who it is hears so at once, as from the server.
            self.tell_authenticated(number, generation);
        }
        slot.word.enter(generation);
        // From here on the client is the pool's.
        if self.seats.announce(number).is_err() && slot.word.close_idle(generation) {
            self.end_client(number, generation);
        }
        pool.news.notify_one();
        Ok(())
    }

    /// Tells a client that it has been authenticated, unless it has been told. By whoever has it.
    fn tell_authenticated(&self, number: u32, generation: u32) {
        let slot = &self.shared.slots[number as usize];
        if slot.to_be_told.load(Relaxed) && self.seats.say(number, generation, message::AUTHENTICATION_OK) {
            slot.to_be_told.store(false, Relaxed);
        }
    }

    /// [`Front::tell_authenticated`] for a client that waits for its welcome, if nobody has it: when it came, a backend waited that has
    /// taken another.
    pub(in crate::pooler) fn tell_waiting(&self, number: u32, generation: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        if !slot.to_be_told.load(Relaxed) || !slot.word.notify(generation) {
            return;
        }
        self.tell_authenticated(number, generation);
        if slot.word.notified(generation) {
            // A backend has come for it meanwhile, and the pool hears of it once only.
            self.seats.announce_again(number, generation);
        }
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
            key: slot.cancel_key(),
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
        let Newcomer { origin, local, cipher, login, proof, by_backend } = newcomer;
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
        slot.to_be_told.store(*by_backend, Relaxed);
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
    /// A backend is to tell it that it has been authenticated.
    by_backend: bool,
}

fn no_place(error: std::io::Error) -> Report {
    Report::fatal("53000", format!("no place for the client: {error}"))
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
    let random: [u64; 4] =
        random_words().ok_or_else(|| Report::fatal("XX000", "could not generate random cancel key"))?;
    for (word, value) in slot.key.iter().zip(random) {
        word.store(value, Relaxed);
    }
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
