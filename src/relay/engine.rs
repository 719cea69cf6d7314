//! Writing to clients that nobody serves, and the relays' beginnings and ends. The front's first thread; what the others want comes
//! through a lock that is held for moments.

#[cfg(test)]
mod tests;

use super::TOO_SLOW;
use super::book::{Book, Error, Listened};
use super::reader::{Batch, Collected, Reader};
use super::ring::Ring;
use super::shared::{ChannelState, SOURCES, Shared, Source, SourceState};
use crate::wire::message::Report;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*, fence};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Bytes that a client is given at a time.
const BATCH: usize = 64 * 1024;

/// Batches that a client is given before others have their turn.
const TURN: u32 = 4;

/// How long clients are written to before other tasks of the thread have their turn.
const SLICE: Duration = Duration::from_micros(500);

/// How long it may be gone round the clients before anything else of the relay's is looked at.
const PASS: Duration = Duration::from_millis(20);

/// How long the last words of a client that is too slow may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How often is looked at what tells nobody: a relay that does not start, a client that reads nothing.
const TICK: Duration = Duration::from_millis(100);

/// How long a relay without listeners stays.
const LINGER: Duration = Duration::from_secs(1);

/// After clients have been written to for a while, notifications gather for as many times that long, so that a client gets many at
/// once, and at most for `GATHER`.
const REST: u32 = 2;
const GATHER: Duration = Duration::from_millis(20);

/// Below this, a pass is no reason to rest.
const SHORT: Duration = Duration::from_millis(1);

pub type Wait<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What came of taking a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is ours to write to, until it is given back or ended.
    Yes,
    /// A backend serves it, which gives it its notifications, and has been told when it waits.
    Elsewhere,
    /// Somebody has it for a moment.
    Busy,
    Gone,
}

/// The clients, and what the relay needs of the server.
pub trait Clients: Send + Sync + 'static {
    fn take(&self, client: u32) -> Taken;

    /// Writes to a client that was taken, without waiting; how much of it.
    ///
    /// # Errors
    /// As send(2) has it.
    fn send(&self, client: u32, bytes: &[u8]) -> std::io::Result<usize>;

    /// Waits until more can be written to a client that was taken.
    fn writable(&self, client: u32) -> Wait<()>;

    /// Somebody wants a client ended that was taken.
    fn is_doomed(&self, client: u32) -> bool;

    fn give_back(&self, client: u32);

    /// Ends a client that was taken.
    fn end(&self, client: u32);

    /// Ends a client whose channels nobody hears any more, whoever has it.
    fn lose(&self, client: u32);

    /// Starts the worker of a source, which is to have this number; false when there is no place for one.
    fn start(&self, source: u32, turn: u32) -> Wait<bool>;

    /// Whether that worker of a source, which has been started, has not ended.
    fn is_alive(&self, source: u32, turn: u32) -> Wait<bool>;

    /// Sets the latch of a process of the server.
    fn wake(&self, pid: i32);

    /// For the log: a client is ended because it is too slow.
    fn note_slow(&self, _client: u32) {}

    /// For the log: a database's worker has ended while so many clients listened.
    fn note_end(&self, _database: &str, _clients: usize) {}

    /// A task on this thread.
    fn spawn(&self, task: Wait<()>);
}

/// Why a client cannot listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    Channels = 2,
    Listens = 3,
    Databases = 4,
    /// There is no place for the database's worker.
    NoWorker = 5,
    /// The worker has ended.
    Ended = 6,
}

impl Refusal {
    pub fn of(number: u32) -> Option<Self> {
        [Self::Channels, Self::Listens, Self::Databases, Self::NoWorker, Self::Ended]
            .into_iter()
            .find(|refusal| *refusal as u32 == number)
    }

    /// What the client hears.
    pub fn report(self) -> Report {
        match self {
            Self::Channels => Report::error("53400", "too many notification channels are listened to")
                .with_hint("Raise postern.relay_max_channels and restart the server."),
            Self::Listens => Report::error("53400", "too many LISTENs are in force")
                .with_hint("Raise postern.relay_max_listens and restart the server."),
            Self::Databases => Report::error("53400", "too many databases are listened to")
                .with_hint(format!("There are relays for at most {SOURCES} databases at once.")),
            Self::NoWorker => Report::error("53400", "no background worker for the notification relay")
                .with_hint("Raise max_worker_processes and restart the server."),
            Self::Ended => Report::error("58000", "the notification relay has ended"),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Channels => Self::Channels,
            Error::Listens => Self::Listens,
            Error::Databases => Self::Databases,
        }
    }
}

/// A LISTEN that somebody asks for.
pub struct Request<'a> {
    pub client: u32,
    /// The database's OID and name.
    pub database: u32,
    pub database_name: &'a [u8],
    pub channel: &'a [u8],
    /// It is given nothing until it is confirmed.
    pub tentative: bool,
}

/// What is called when a LISTEN is in force, or not to be.
pub type Done = Box<dyn FnOnce(Result<(), Refusal>) + Send>;

/// A LISTEN whose channel the relay does not hear yet.
struct Waiting {
    client: u32,
    listened: Listened,
    /// Its number among those that wait for the source.
    asked: u64,
    done: Done,
}

struct Inner {
    book: Book,
    waiting: Vec<Waiting>,
    /// Clients that may lack something, whatever has come.
    due: VecDeque<u32>,
    /// The workers that the postmaster has been asked for: by source, with their numbers.
    started: HashMap<u32, u32>,
    /// Clients whose relay has ended, until they have.
    lost: HashSet<u32>,
    /// Since when sources have had no listener.
    unused: HashMap<u32, Instant>,
    /// Clients that have not taken all that they were sent, and by how many bytes they are behind.
    behind: HashMap<u32, u64>,
}

impl Inner {
    /// A source whose worker has ended is free when its last listener has gone.
    fn free_if_over(&mut self, words: &Source, source: u32) {
        if words.state() == SourceState::Ended && !self.book.has_listeners(source) {
            self.book.forget(source);
            words.state.store(SourceState::Free as u32, Release);
        }
    }
}

pub struct Engine {
    shared: Shared,
    inner: Mutex<Inner>,
    news: Notify,
    /// The most that a client may be behind, in bytes of the ring; 0 is as much as the ring holds.
    most_behind: AtomicU64,
    running: AtomicBool,
}

impl Engine {
    /// `secret` names the channel by which pooled backends tell the relay which client notifies.
    pub fn new(shared: Shared, secret: [u64; 2]) -> Arc<Self> {
        for (word, value) in shared.header.secret.iter().zip(secret) {
            word.store(value, Release);
        }
        shared.header.behind.store(0, Relaxed);
        shared.header.backlog.store(0, Relaxed);
        for source in &shared.header.sources {
            source.turn.fetch_add(1, AcqRel);
            source.state.store(SourceState::Free as u32, Release);
        }
        let inner = Inner {
            book: Book::new(shared),
            waiting: Vec::new(),
            due: VecDeque::new(),
            started: HashMap::new(),
            lost: HashSet::new(),
            unused: HashMap::new(),
            behind: HashMap::new(),
        };
        Arc::new(Self {
            shared,
            inner: Mutex::new(inner),
            news: Notify::new(),
            most_behind: AtomicU64::new(0),
            running: AtomicBool::new(true),
        })
    }

    /// The most that a client may be behind, in bytes of the ring; 0 is as much as the ring holds.
    pub fn set_most_behind(&self, bytes: u64) {
        self.most_behind.store(bytes, Relaxed);
    }

    fn source(&self, number: u32) -> &'static Source {
        &self.shared.header.sources[number as usize]
    }

    /// A client is to listen to a channel of a database.
    pub fn listen(self: &Arc<Self>, clients: &Arc<dyn Clients>, request: &Request<'_>, done: Done) {
        let client = request.client;
        let mut inner = self.inner.lock();
        if inner.lost.contains(&client) {
            // It is about to hear that it may have missed something; before that it is not to hear what came later.
            drop(inner);
            self.shared.header.counters.refused.fetch_add(1, Relaxed);
            return done(Err(Refusal::Ended));
        }
        if inner.book.find(client, request.channel).is_some() {
            drop(inner);
            return done(Ok(()));
        }
        let added = inner.book.source(request.database).and_then(|source| {
            let words = self.source(source);
            let starts = words.state() == SourceState::Free;
            if starts {
                words.database.store(request.database, Relaxed);
                words.database_name.set(request.database_name);
                words.retire.store(0, Relaxed);
                words.pid.store(0, Relaxed);
                words.turn.fetch_add(1, AcqRel);
                words.wants_news.store(1, Relaxed);
            }
            let listened = inner.book.add(client, source, request.channel, request.tentative)?;
            if starts {
                words.state.store(SourceState::Starting as u32, Release);
            }
            Ok((listened, starts))
        });
        let (listened, starts) = match added {
            Ok(added) => added,
            Err(error) => {
                drop(inner);
                self.shared.header.counters.refused.fetch_add(1, Relaxed);
                return done(Err(error.into()));
            }
        };
        inner.unused.remove(&listened.source);
        // Also when its channel is heard: what was committed before, and the relay has not read yet, is not the client's.
        let asked = self.source(listened.source).asked.fetch_add(1, AcqRel) + 1;
        inner.waiting.push(Waiting { client, listened, asked, done });
        drop(inner);
        if starts {
            let (engine, to_start) = (Arc::clone(self), Arc::clone(clients));
            let turn = self.source(listened.source).turn.load(Acquire);
            clients.spawn(Box::pin(async move {
                if to_start.start(listened.source, turn).await {
                    engine.inner.lock().started.insert(listened.source, turn);
                } else {
                    engine.end_source(&*to_start, listened.source, turn, Refusal::NoWorker);
                }
            }));
        } else {
            self.wake(&**clients, listened.source);
        }
    }

    fn wake(&self, clients: &dyn Clients, source: u32) {
        let pid = self.source(source).pid.load(Acquire);
        if pid > 1 {
            clients.wake(pid);
        }
    }

    fn count_listen(&self, client: u32) {
        let counters = &self.shared.header.counters;
        counters.listened.fetch_add(1, Relaxed);
        if self.shared.listeners[client as usize].listens.load(Relaxed) == 1 {
            counters.clients.fetch_add(1, Relaxed);
        }
    }

    /// A client listens no longer to a channel.
    pub fn unlisten(&self, clients: &dyn Clients, client: u32, number: u32) {
        self.remove(clients, client, |listen, _| listen == number);
    }

    /// A client's transaction has not committed: its LISTENs are not in force.
    pub fn take_back(&self, clients: &dyn Clients, client: u32) {
        self.remove(clients, client, |_, listen| listen.tentative.load(Relaxed) == 1);
    }

    /// A client listens to nothing any more, or has gone.
    pub fn unlisten_all(&self, clients: &dyn Clients, client: u32) {
        if self.shared.listeners.get(client as usize).is_some_and(|listener| listener.first.get().is_some()) {
            self.remove(clients, client, |_, _| true);
        }
        // Whoever has its number next has lost nothing.
        self.inner.lock().lost.remove(&client);
    }

    /// A client's listen of a channel, by name.
    pub fn find(&self, client: u32, name: &[u8]) -> Option<u32> {
        self.inner.lock().book.find(client, name)
    }

    fn remove(
        &self,
        clients: &dyn Clients,
        client: u32,
        which: impl Fn(u32, &super::shared::Listen) -> bool,
    ) {
        let mut inner = self.inner.lock();
        let Inner { book, waiting, .. } = &mut *inner;
        let before = self.shared.listeners[client as usize].listens.load(Relaxed);
        let told = book.remove(client, &which);
        let count = before - self.shared.listeners[client as usize].listens.load(Relaxed);
        self.shared.header.counters.unlistened.fetch_add(count.into(), Relaxed);
        // What it still waits for is over too; nobody waits for the answer.
        let shared = self.shared;
        waiting.retain(|wait| {
            wait.client != client
                || shared.listens_of(client).any(|(number, _)| number == wait.listened.listen)
        });
        for source in &told {
            inner.free_if_over(self.source(*source), *source);
        }
        drop(inner);
        for source in told {
            self.wake(clients, source);
        }
    }

    /// A client may lack something: nobody has it any more.
    pub fn behind(&self, client: u32) {
        self.inner.lock().due.push_back(client);
        self.news.notify_one();
    }

    /// A relay has taken an idle client to write to it, and has sent only so many bytes of what the client lacks. It is ours from here
    /// on.
    pub fn finish(self: &Arc<Self>, clients: &Arc<dyn Clients>, client: u32, sent: usize) {
        let mut batch = Batch::default();
        let collected = Reader::new(self.shared).collect(client, BATCH.max(sent), &mut batch);
        if collected == Collected::TooLate || batch.bytes.len() < sent {
            // What it has a part of is gone.
            self.shared.header.counters.too_slow.fetch_add(1, Relaxed);
            return clients.end(client);
        }
        let rest = batch.bytes.split_off(sent);
        clients.spawn(Box::pin(Arc::clone(self).persist(Arc::clone(clients), client, rest, false)));
    }

    /// A relay has put something into the ring, or listens otherwise.
    pub fn news(&self) {
        self.news.notify_one();
    }

    /// That worker of a source has ended. Its listeners hear it.
    pub fn ended(&self, clients: &dyn Clients, source: u32, turn: u32) {
        self.end_source(clients, source, turn, Refusal::Ended);
    }

    fn end_source(&self, clients: &dyn Clients, source: u32, turn: u32, why: Refusal) {
        let Some(words) = self.shared.header.sources.get(source as usize) else { return };
        let mut inner = self.inner.lock();
        if !words.is_heard() || words.turn.load(Acquire) != turn {
            return;
        }
        // Should it live after all, it has nothing to say from here on.
        words.turn.fetch_add(1, AcqRel);
        inner.started.remove(&source);
        let (over, waiting) =
            std::mem::take(&mut inner.waiting).into_iter().partition(|wait| wait.listened.source == source);
        inner.waiting = waiting;
        let over: Vec<Waiting> = over;
        for wait in &over {
            inner.book.remove(wait.client, |number, _| number == wait.listened.listen);
        }
        let channels: Vec<u32> = inner.book.channels_of(source).collect();
        let mut listeners: Vec<u32> =
            channels.iter().flat_map(|channel| inner.book.clients_of(*channel)).collect();
        listeners.sort_unstable();
        listeners.dedup();
        inner.unused.remove(&source);
        words.pid.store(0, Relaxed);
        // What clients listen to stays theirs until they end: whoever has one of them may be reading its list.
        words.state.store(SourceState::Ended as u32, Release);
        inner.free_if_over(words, source);
        inner.lost.extend(&listeners);
        drop(inner);
        for wait in over {
            self.shared.header.counters.refused.fetch_add(1, Relaxed);
            (wait.done)(Err(why));
        }
        if !listeners.is_empty() {
            clients.note_end(&words.database_name.text(), listeners.len());
        }
        for client in listeners {
            clients.lose(client);
        }
    }

    /// Writes to clients until the front ends.
    pub async fn run(self: Arc<Self>, clients: Arc<dyn Clients>, stop: CancellationToken) {
        let ring = Ring::new(self.shared);
        let mut pass = Pass {
            engine: Arc::clone(&self),
            clients: Arc::clone(&clients),
            reader: Reader::new(self.shared),
            batch: Batch::default(),
            stamps: vec![0; self.shared.channels.len()],
            number: 0,
            seen: ring.head(),
        };
        let mut ticked = Instant::now();
        loop {
            for source in self.shared.header.sources.iter().filter(|s| s.state() == SourceState::Running) {
                source.wants_news.store(1, SeqCst);
            }
            fence(SeqCst);
            if ring.head() == pass.seen && self.is_idle() {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = self.news.notified() => {}
                    () = tokio::time::sleep(self.pause()), if self.is_in_use() => {}
                }
            }
            self.confirm();
            let began = Instant::now();
            let written = pass.run().await;
            let took = began.elapsed();
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick(&clients);
            }
            if stop.is_cancelled() {
                break;
            }
            if written && took > SHORT {
                tokio::time::sleep((took * REST).min(GATHER)).await;
            }
        }
        self.running.store(false, Relaxed);
    }

    fn is_idle(&self) -> bool {
        let inner = self.inner.lock();
        inner.due.is_empty() && !inner.waiting.iter().any(|wait| self.is_heard(wait))
    }

    /// Whether the channel is heard, and everything has been heard that was committed before the LISTEN.
    fn is_heard(&self, wait: &Waiting) -> bool {
        let Listened { channel, source, .. } = wait.listened;
        self.shared.channels[channel as usize].state() == ChannelState::Heard
            && self.source(source).heard.load(Acquire) >= wait.asked
    }

    /// How long nothing has to be looked at of what tells nobody.
    fn pause(&self) -> Duration {
        let inner = self.inner.lock();
        let sources = &self.shared.header.sources;
        let changes = !inner.waiting.is_empty()
            || !inner.unused.is_empty()
            || sources.iter().any(|source| source.state() == SourceState::Starting);
        if changes { TICK } else { LINGER }
    }

    /// Whether there is anything to look at from time to time.
    fn is_in_use(&self) -> bool {
        self.shared.header.sources.iter().any(Source::is_heard)
    }

    /// Answers the LISTENs whose channels are heard by now.
    fn confirm(&self) {
        let mut inner = self.inner.lock();
        if inner.waiting.is_empty() {
            return;
        }
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut inner.waiting).into_iter().partition(|wait| self.is_heard(wait));
        inner.waiting = waiting;
        for wait in &ready {
            inner.book.begin(wait.listened.listen);
        }
        drop(inner);
        for wait in ready {
            self.count_listen(wait.client);
            (wait.done)(Ok(()));
        }
    }

    /// Relays that have not started, and those that nobody needs any more.
    fn tick(self: &Arc<Self>, clients: &Arc<dyn Clients>) {
        let mut inner = self.inner.lock();
        inner.book.sweep();
        for (number, source) in self.shared.header.sources.iter().enumerate() {
            let number = number as u32;
            match source.state() {
                SourceState::Free | SourceState::Ended => {}
                SourceState::Starting => {
                    // One that has not been started yet has not ended.
                    let turn = source.turn.load(Acquire);
                    if inner.started.get(&number) != Some(&turn) {
                        continue;
                    }
                    let (engine, to_ask) = (Arc::clone(self), Arc::clone(clients));
                    clients.spawn(Box::pin(async move {
                        if !to_ask.is_alive(number, turn).await {
                            engine.ended(&*to_ask, number, turn);
                        }
                    }));
                }
                SourceState::Running if inner.book.has_listeners(number) => {
                    inner.unused.remove(&number);
                }
                SourceState::Running => {
                    let since = *inner.unused.entry(number).or_insert_with(Instant::now);
                    if since.elapsed() >= LINGER && source.retire.swap(1, AcqRel) == 0 {
                        self.wake(&**clients, number);
                    }
                }
            }
        }
    }

    /// A client that has taken only a part of what it was sent. It is ours until it has the rest.
    async fn persist(self: Arc<Self>, clients: Arc<dyn Clients>, client: u32, rest: Vec<u8>, late: bool) {
        self.note_backlog(client, Some(rest.len() as u64));
        self.write_on(&*clients, client, rest, late).await;
        self.note_backlog(client, None);
    }

    /// How far a client is behind that does not take all that it is sent; `None` once that is over.
    fn note_backlog(&self, client: u32, bytes: Option<u64>) {
        let behind = &mut self.inner.lock().behind;
        match bytes {
            Some(bytes) => drop(behind.insert(client, bytes)),
            None => drop(behind.remove(&client)),
        }
        let header = self.shared.header;
        header.behind.store(behind.len() as u32, Relaxed);
        header.backlog.store(behind.values().copied().max().unwrap_or(0), Relaxed);
    }

    async fn write_on(&self, clients: &dyn Clients, client: u32, mut rest: Vec<u8>, late: bool) {
        let reader = Reader::new(self.shared);
        let mut batch = Batch::default();
        let mut until = late.then(|| Instant::now() + LAST_WORDS);
        while self.running.load(Relaxed) {
            tokio::select! {
                () = clients.writable(client) => {}
                () = tokio::time::sleep(TICK) => {}
            }
            match clients.send(client, &rest) {
                Ok(count) => drop(rest.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return clients.end(client),
            }
            if clients.is_doomed(client) {
                return clients.end(client);
            }
            if let Some(until) = until {
                if rest.is_empty() || Instant::now() >= until {
                    return clients.end(client);
                }
                continue;
            }
            let mut too_late = false;
            if rest.is_empty() {
                match reader.collect(client, BATCH, &mut batch) {
                    Collected::All if batch.bytes.is_empty() => return clients.give_back(client),
                    Collected::TooLate => too_late = true,
                    Collected::All | Collected::Part => {}
                }
                rest.extend(&batch.bytes);
            } else {
                let most = self.most_behind.load(Relaxed);
                too_late = match reader.backlog(client) {
                    Ok(behind) => {
                        self.note_backlog(client, Some(behind + rest.len() as u64));
                        most != 0 && behind > most
                    }
                    Err(_) => true,
                };
            }
            if too_late {
                rest.extend(self.too_slow(clients, client));
                until = Some(Instant::now() + LAST_WORDS);
            }
        }
    }

    /// The last words of a client that is too slow; it is counted.
    pub fn too_slow(&self, clients: &dyn Clients, client: u32) -> Vec<u8> {
        clients.note_slow(client);
        self.shared.header.counters.too_slow.fetch_add(1, Relaxed);
        too_slow().to_bytes()
    }
}

/// What a client that is too slow hears.
pub fn too_slow() -> Report {
    Report::fatal(TOO_SLOW, "terminating connection because it does not read its notifications fast enough")
        .with_hint(
            "Raise postern.relay_max_backlog or postern.relay_ring_size, read notifications more often, or keep \
             transactions short.",
        )
}

/// Going round the clients that lack something.
struct Pass {
    engine: Arc<Engine>,
    clients: Arc<dyn Clients>,
    reader: Reader,
    batch: Batch,
    /// In which pass a channel was last seen.
    stamps: Vec<u64>,
    number: u64,
    seen: u64,
}

impl Pass {
    /// Gives those who lack something what they lack; whether anybody did.
    async fn run(&mut self) -> bool {
        let mut due = self.due();
        let any = !due.is_empty();
        let began = Instant::now();
        let mut slice = began;
        let mut again = 0;
        while let Some(client) = due.pop_front() {
            if began.elapsed() > PASS {
                // Whoever is far behind has its turn again; those who wait for the answer to a LISTEN come first.
                due.push_front(client);
                self.engine.inner.lock().due.extend(due);
                break;
            }
            match self.give(client) {
                Given::Done => {}
                Given::More => due.push_back(client),
                Given::Busy => {
                    again += 1;
                    due.push_back(client);
                    if again > due.len() {
                        again = 0;
                        tokio::time::sleep(Duration::from_micros(100)).await;
                    }
                }
            }
            if slice.elapsed() > SLICE {
                tokio::task::yield_now().await;
                slice = Instant::now();
            }
        }
        any
    }

    /// Who may lack something since the last time.
    fn due(&mut self) -> VecDeque<u32> {
        let ring = Ring::new(self.engine.shared);
        let head = ring.head();
        let mut inner = self.engine.inner.lock();
        let mut due = std::mem::take(&mut inner.due);
        self.number += 1;
        let mut position = self.seen;
        while position < head {
            let Ok((channel, next)) = ring.at(position) else {
                // So much has come that not all of it can be looked at: those who lack something are found otherwise. Who is
                // missed here would never hear that it is too late.
                due.extend(self.engine.shared.channels.iter().enumerate().flat_map(|(number, channel)| {
                    let heard = channel.state() == ChannelState::Heard;
                    inner.book.clients_of(number as u32).filter(move |_| heard)
                }));
                break;
            };
            position = next;
            if let Some(stamp) = self.stamps.get_mut(channel as usize)
                && *stamp != self.number
            {
                *stamp = self.number;
                due.extend(inner.book.clients_of(channel));
            }
        }
        self.seen = head;
        due
    }

    fn give(&mut self, client: u32) -> Given {
        if !self.reader.is_behind(client) {
            return Given::Done;
        }
        match self.clients.take(client) {
            Taken::Yes => {}
            Taken::Busy => return Given::Busy,
            Taken::Elsewhere | Taken::Gone => return Given::Done,
        }
        for _ in 0..TURN {
            let collected = self.reader.collect(client, BATCH, &mut self.batch);
            if collected == Collected::TooLate {
                let mut rest = std::mem::take(&mut self.batch).bytes;
                rest.extend(self.engine.too_slow(&*self.clients, client));
                self.persist(client, rest, true);
                return Given::Done;
            }
            let bytes = &self.batch.bytes;
            let sent = if bytes.is_empty() { Ok(0) } else { self.clients.send(client, bytes) };
            match sent {
                Ok(count) if count == bytes.len() => {}
                Ok(count) => {
                    let rest = bytes[count..].to_vec();
                    self.persist(client, rest, false);
                    return Given::Done;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let rest = bytes.clone();
                    self.persist(client, rest, false);
                    return Given::Done;
                }
                Err(_) => {
                    self.clients.end(client);
                    return Given::Done;
                }
            }
            if collected == Collected::All {
                self.clients.give_back(client);
                return Given::Done;
            }
        }
        self.clients.give_back(client);
        Given::More
    }

    fn persist(&self, client: u32, rest: Vec<u8>, late: bool) {
        let engine = Arc::clone(&self.engine);
        self.clients.spawn(Box::pin(engine.persist(Arc::clone(&self.clients), client, rest, late)));
    }
}

enum Given {
    Done,
    /// There is more than fits a turn.
    More,
    Busy,
}
