//! The engine: what the front's threads share of the relay, when clients are written to, and the relays' beginnings and ends. The
//! front's first thread; what the others want comes through a lock that is held for moments.

#[cfg(test)]
mod tests;

use super::backlog::Behind;
use super::book::Book;
use super::clients::Clients;
use super::listens::Waiting;
use super::pass::Pass;
use super::refusal::Refusal;
use super::ring::Ring;
use super::shared::{Shared, Source, SourceState};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*, fence};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Bytes that a client is given at a time.
pub(super) const BATCH: usize = 64 * 1024;

/// How often is looked at what tells nobody: a relay that does not start, a client that reads nothing.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// How long a relay without listeners stays.
const LINGER: Duration = Duration::from_secs(1);

/// After clients have been written to for a while, notifications gather for as many times that long, so that a client gets many at
/// once, and at most for `GATHER`.
const REST: u32 = 2;
const GATHER: Duration = Duration::from_millis(20);

/// Below this, a pass is no reason to rest.
const SHORT: Duration = Duration::from_millis(1);

pub(super) struct Inner {
    pub(super) book: Book,
    pub(super) waiting: Vec<Waiting>,
    /// Clients that may lack something, whatever has come.
    pub(super) due: VecDeque<u32>,
    /// The workers that the postmaster has been asked for: by source, with their numbers.
    pub(super) started: HashMap<u32, u32>,
    /// Clients whose relay has ended, until they have.
    pub(super) lost: HashSet<u32>,
    /// Since when sources have had no listener.
    pub(super) unused: HashMap<u32, Instant>,
    pub(super) behind: Behind,
}

impl Inner {
    /// A source whose worker has ended is free when its last listener has gone.
    pub(super) fn free_if_over(&mut self, words: &Source, source: u32) {
        if words.state() == SourceState::Ended && !self.book.has_listeners(source) {
            self.book.forget(source);
            words.state.store(SourceState::Free as u32, Release);
        }
    }
}

pub struct Engine {
    pub(super) shared: Shared,
    pub(super) inner: Mutex<Inner>,
    pub(super) news: Notify,
    /// The most that a client may be behind, in bytes of the ring; 0 is as much as the ring holds.
    pub(super) most_behind: AtomicU64,
    pub(super) running: AtomicBool,
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
            behind: Behind::default(),
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

    pub(super) fn source(&self, number: u32) -> &'static Source {
        &self.shared.header.sources[number as usize]
    }

    pub(super) fn wake(&self, clients: &dyn Clients, source: u32) {
        let pid = self.source(source).pid.load(Acquire);
        if pid > 1 {
            clients.wake(pid);
        }
    }

    /// A client may lack something: nobody has it any more.
    pub fn behind(&self, client: u32) {
        self.inner.lock().due.push_back(client);
        self.news.notify_one();
    }

    /// A relay has put something into the ring, or listens otherwise.
    pub fn news(&self) {
        self.news.notify_one();
    }

    /// That worker of a source has ended. Its listeners hear it.
    pub fn ended(&self, clients: &dyn Clients, source: u32, turn: u32) {
        self.end_source(clients, source, turn, Refusal::Ended);
    }

    pub(super) fn end_source(&self, clients: &dyn Clients, source: u32, turn: u32, why: Refusal) {
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
        let mut pass = Pass::new(Arc::clone(&self), Arc::clone(&clients));
        let mut ticked = Instant::now();
        loop {
            for source in self.shared.header.sources.iter().filter(|s| s.state() == SourceState::Running) {
                source.wants_news.store(1, SeqCst);
            }
            fence(SeqCst);
            if ring.head() == pass.seen() && self.is_idle() {
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

    /// How long nothing has to be looked at of what tells nobody.
    fn pause(&self) -> Duration {
        let inner = self.inner.lock();
        let sources = &self.shared.header.sources;
        let changes = !inner.waiting.is_empty()
            || !inner.unused.is_empty()
            || inner.book.is_leaving()
            || sources.iter().any(|source| source.state() == SourceState::Starting);
        if changes { TICK } else { LINGER }
    }

    /// Whether there is anything to look at from time to time.
    fn is_in_use(&self) -> bool {
        self.shared.header.sources.iter().any(Source::is_heard)
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
}
