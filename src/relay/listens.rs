//! LISTENs that are asked for, answered and taken back. The front's first thread; what the others want comes through the engine's lock.

use super::book::Listened;
use super::clients::Clients;
use super::engine::{Engine, Inner};
use super::reader::Reader;
use super::refusal::Refusal;
use super::shared::{ChannelState, Listen, SourceState};
use crate::notification::Request;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;

/// What is called when a LISTEN is in force, or not to be.
pub type Done = Box<dyn FnOnce(Result<(), Refusal>) + Send>;

/// A LISTEN whose channel the relay does not hear yet.
pub(super) struct Waiting {
    pub(super) client: u32,
    pub(super) listened: Listened,
    /// Its number among those that wait for the source.
    pub(super) asked: u64,
    pub(super) done: Done,
}

impl Engine {
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
        if Reader::new(self.shared).listens(client) {
            self.remove(clients, client, |_, _| true);
        }
        // Whoever has its number next has lost nothing.
        self.inner.lock().lost.remove(&client);
    }

    /// A client's listen of a channel, by name.
    pub fn find(&self, client: u32, name: &[u8]) -> Option<u32> {
        self.inner.lock().book.find(client, name)
    }

    fn remove(&self, clients: &dyn Clients, client: u32, which: impl Fn(u32, &Listen) -> bool) {
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
        if !told.is_empty() {
            // Its channels are to be free, and a relay that nobody needs is to go, counted from now.
            self.news.notify_one();
        }
        for source in told {
            self.wake(clients, source);
        }
    }

    /// Whether the channel is heard, and everything has been heard that was committed before the LISTEN.
    pub(super) fn is_heard(&self, wait: &Waiting) -> bool {
        let Listened { channel, source, .. } = wait.listened;
        self.shared.channels[channel as usize].state() == ChannelState::Heard
            && self.source(source).heard.load(Acquire) >= wait.asked
    }

    /// Answers the LISTENs whose channels are heard by now.
    pub(super) fn confirm(&self) {
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

    fn count_listen(&self, client: u32) {
        let counters = &self.shared.header.counters;
        counters.listened.fetch_add(1, Relaxed);
        if self.shared.listeners[client as usize].listens.load(Relaxed) == 1 {
            counters.clients.fetch_add(1, Relaxed);
        }
    }
}
