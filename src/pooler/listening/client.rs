//! Clients of the listen-only port: each has a task of its own, on the thread where it logged in, which answers it and gives it what
//! the relay has heard. Network threads.
//!
//! Bounds: what a client has not read yet is at most one answer or [`BATCH`] of notifications; the rest stays in the relay's ring, and
//! a client that is further behind than that holds is ended.

use super::session::{Change, MESSAGE_MAX, Session, Step};
use super::values::Facts;
use crate::login::{Question, Standing};
use crate::net::linger;
use crate::pooler::front::Front;
use crate::pooler::hands::none_left;
use crate::pooler::notifications::{Given, IN_FORCE, Request};
use crate::pooler::shared::{Doom, Slot, now};
use crate::wire::message::Report;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// Bytes of notifications that a client is given at a time.
const BATCH: usize = 64 * 1024;

/// How often is looked at a client that does not read.
const TICK: Duration = Duration::from_millis(100);

/// How long the last words of a client that is too slow may take; and those of another.
const LAST_WORDS: Duration = Duration::from_secs(5);
const GOODBYE: Duration = Duration::from_millis(500);

/// How often is looked whether clients' roles and databases are still there.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes that are read at a time: an idle client costs its place for them.
const READ: usize = 1024;

/// A client of the listen-only port.
#[derive(Debug)]
pub struct Listener {
    number: u32,
    generation: u32,
    /// The database's OID and name, and the role's name.
    database: u32,
    database_name: Vec<u8>,
    role_name: Vec<u8>,
    /// There may be something for it.
    news: Notify,
    /// It is to end; its slot says why.
    doomed: CancellationToken,
}

/// Those of now, by the numbers of their slots.
#[derive(Debug, Default)]
pub struct Listeners {
    list: Mutex<HashMap<u32, Arc<Listener>>>,
    came: Notify,
    left: Notify,
    /// The server does not recover, and never will.
    primary: AtomicBool,
    /// What the last client was told: the next one mostly hears the same, and need not keep it twice.
    facts: Mutex<Arc<Facts>>,
}

impl Listeners {
    fn of(&self, number: u32) -> Option<Arc<Listener>> {
        self.list.lock().get(&number).cloned()
    }

    /// There may be something for a client.
    pub fn wake(&self, number: u32) {
        if let Some(listener) = self.of(number) {
            listener.news.notify_one();
        }
    }

    /// A client is to end, as its slot says.
    pub fn doom(&self, number: u32, generation: u32) {
        if let Some(listener) = self.of(number).filter(|listener| listener.generation == generation) {
            listener.doomed.cancel();
        }
    }

    /// The names of a client's role and database.
    pub fn names(&self, number: u32) -> Option<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.of(number).map(|listener| (text(&listener.role_name), text(&listener.database_name)))
    }

    /// Waits until every client has heard that the front ends, for a moment.
    pub async fn ended(&self) {
        none_left(&self.left, || self.list.lock().is_empty()).await;
    }

    /// The same as another client has, if it is.
    pub fn share(&self, facts: Facts) -> Arc<Facts> {
        self.primary.fetch_or(!facts.recovers(), Relaxed);
        let mut last = self.facts.lock();
        if **last != facts {
            *last = Arc::new(facts);
        }
        Arc::clone(&last)
    }
}

/// Ends clients whose role or database has been dropped, until the front ends.
pub async fn watch_standing(front: &Arc<Front>) {
    let stop = front.bridge.stop();
    let look = async {
        loop {
            front.listeners.came.notified().await;
            while !front.listeners.list.lock().is_empty() {
                tokio::time::sleep(LOOK).await;
                end_dropped(front).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = look => {}
    }
}

async fn end_dropped(front: &Arc<Front>) {
    let mut clients: HashMap<(u32, u32), Vec<Arc<Listener>>> = HashMap::new();
    for listener in front.listeners.list.lock().values() {
        let Some(slot) = front.shared.slots.get(listener.number as usize) else { continue };
        let of = (slot.admitted_role.load(Relaxed), listener.database);
        // One that is about to end is in nobody's count any more.
        if of.0 != 0 {
            clients.entry(of).or_default().push(Arc::clone(listener));
        }
    }
    for ((role, database), clients) in clients {
        let standing = front.questions.ask(|reply| Question::Standing { role, database, reply }).await;
        if let Ok(Standing::RoleGone | Standing::DatabaseGone) = standing {
            for listener in clients {
                front.kill_client(listener.number, listener.generation);
            }
        }
    }
}

/// A client's place among the others; dropping it ends the client.
pub struct Place {
    front: Arc<Front>,
    listener: Arc<Listener>,
}

impl Place {
    /// For a client whose slot is in its login; `None` when it is not any more.
    pub fn take(
        front: &Arc<Front>,
        (number, generation): (u32, u32),
        database: (u32, &[u8]),
        role_name: &[u8],
    ) -> Option<Self> {
        let listener = Arc::new(Listener {
            number,
            generation,
            database: database.0,
            database_name: database.1.to_vec(),
            role_name: role_name.to_vec(),
            news: Notify::new(),
            doomed: CancellationToken::new(),
        });
        let slot = front.shared.slots.get(number as usize)?;
        front.listeners.list.lock().insert(number, Arc::clone(&listener));
        let place = Self { front: Arc::clone(front), listener };
        front.listeners.came.notify_one();
        slot.word.enter_listening(generation).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Listener { number, generation, .. } = *self.listener;
        let listeners = &self.front.listeners;
        // Before the slot may be another's.
        listeners.list.lock().remove(&number);
        if let Some(slot) = self.front.shared.slots.get(number as usize)
            && slot.word.close_listening(generation)
        {
            self.front.end_client(number, generation);
        }
        listeners.left.notify_waiters();
    }
}

/// Speaks to a client until it goes, is ended, or the front ends.
pub async fn serve<S>(place: Place, mut session: Session, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let front = Arc::clone(&place.front);
    let listener = &*place.listener;
    let Some(slot) = front.shared.slots.get(listener.number as usize) else { return };
    let stop = front.bridge.stop();
    let mut line = Line { front: &front, listener, slot, stream: &mut stream, between: true };
    let doom = tokio::select! {
        () = stop.cancelled() => Some(Doom::Administrator),
        () = listener.doomed.cancelled() => Some(Doom::of(slot)),
        () = line.converse(&mut session) => None,
    };
    if let Some(doom) = doom.filter(|_| line.between) {
        line.last_words(&doom.report().to_bytes(), GOODBYE).await;
    }
    // An idle client does not notice the end before it wants something: the front does not wait for that.
    let patience = if stop.is_cancelled() { GOODBYE / 10 } else { GOODBYE };
    linger::close(&mut stream, patience).await;
}

/// A client's connection.
struct Line<'a, S> {
    front: &'a Arc<Front>,
    listener: &'a Listener,
    slot: &'a Slot,
    stream: &'a mut S,
    /// Between two messages to the client.
    between: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<'_, S> {
    async fn converse(&mut self, session: &mut Session) {
        let welcome = session.welcome();
        self.slot.application_name.set(session.application_name().as_bytes());
        if !self.say(&welcome).await {
            return;
        }
        drop(welcome);
        loop {
            match session.step() {
                Step::Reply(bytes) => {
                    self.slot.application_name.set(session.application_name().as_bytes());
                    if !self.say(&bytes).await {
                        return;
                    }
                }
                Step::Change(change) => session.changed(self.change(&change).await),
                Step::More => {
                    if !self.more(session).await {
                        return;
                    }
                }
                Step::Close(bytes) => {
                    self.say(&bytes).await;
                    return;
                }
            }
        }
    }

    /// Gives the client what there is for it, and takes what it sends. False when it has gone, or has to.
    async fn more(&mut self, session: &mut Session) -> bool {
        let Some(given) = self.give(session).await else { return false };
        let more = async {
            match given {
                Given::More => {}
                // In a transaction there is nothing to be told; the news is kept.
                _ if session.is_idle() => self.listener.news.notified().await,
                _ => std::future::pending().await,
            }
        };
        let mut buffer = [0; READ];
        let read = tokio::select! {
            biased;
            read = self.stream.read(&mut buffer) => read,
            () = more => return true,
        };
        let Ok(count @ 1..) = read else { return false };
        // What has been heard before an UNLISTEN comes before its answer.
        if self.give(session).await.is_none() {
            return false;
        }
        self.slot.since.store(now(), Relaxed);
        if !self.front.listeners.primary.load(Relaxed) {
            // Without an answer it is as it was.
            if let Ok(recovers) = self.front.questions.ask(|reply| Question::Recovers { reply }).await {
                self.front.listeners.primary.fetch_or(!recovers, Relaxed);
            }
        }
        if self.front.listeners.primary.load(Relaxed) {
            session.set_recovery(false);
        }
        session.receive(&buffer[..count]);
        true
    }

    /// Gives the client a part of what there is for it, unless it is in a transaction; `None` when it has gone, or has to.
    async fn give(&mut self, session: &Session) -> Option<Given> {
        if !session.is_idle() {
            return Some(Given::All);
        }
        let mut bytes = Vec::new();
        let given = self.front.relay.collect(self.listener.number, BATCH, &mut bytes);
        if given == Given::TooLate {
            self.too_slow(bytes).await;
            return None;
        }
        (bytes.is_empty() || self.say(&bytes).await).then_some(given)
    }

    /// All of it or nothing.
    async fn change(&mut self, change: &Change) -> Result<(), Report> {
        let (front, number) = (self.front, self.listener.number);
        let mut answers = Vec::with_capacity(change.listen.len());
        for channel in &change.listen {
            let (tell, told) = oneshot::channel();
            let request = Request {
                client: number,
                database: self.listener.database,
                database_name: &self.listener.database_name,
                channel,
                tentative: false,
            };
            let done = move |answer| {
                let _ = tell.send(answer);
            };
            front.relay.listen(front, request, Box::new(done));
            answers.push(told);
        }
        let mut refused = None;
        for told in answers {
            match told.await {
                Ok(IN_FORCE) => {}
                answer => refused = Some(answer.unwrap_or(0)),
            }
        }
        if let Some(why) = refused {
            change.listen.iter().for_each(|channel| front.relay.unlisten_channel(front, number, channel));
            return Err(front.relay.refusal(why));
        }
        if change.is_all {
            front.relay.unlisten_all(front, number);
        } else {
            change.unlisten.iter().for_each(|channel| front.relay.unlisten_channel(front, number, channel));
        }
        Ok(())
    }

    /// Sends whole messages. False when the client has gone, or reads so slowly that it has to.
    async fn say(&mut self, bytes: &[u8]) -> bool {
        self.between = false;
        let (mut rest, mut looked) = (bytes, Instant::now());
        loop {
            let step = async {
                if rest.is_empty() {
                    self.stream.flush().await.map(|()| 0)
                } else {
                    self.stream.write(rest).await
                }
            };
            match tokio::time::timeout(TICK, step).await {
                Ok(Ok(_)) if rest.is_empty() => {
                    self.between = true;
                    return true;
                }
                Ok(Ok(count @ 1..)) => rest = &rest[count..],
                Ok(_) => return false,
                Err(_) => {}
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                if self.is_too_far_behind() {
                    self.too_slow(rest.to_vec()).await;
                    return false;
                }
            }
        }
    }

    fn is_too_far_behind(&self) -> bool {
        let most = self.front.bridge.settings().pooler.relay_max_backlog;
        self.front.relay.backlog(self.listener.number).is_none_or(|behind| most != 0 && behind > most)
    }

    /// Ends a client that does not read, after the rest of what it has got a part of.
    async fn too_slow(&mut self, mut rest: Vec<u8>) {
        rest.extend(self.front.relay.too_slow(self.front, self.listener.number));
        self.last_words(&rest, LAST_WORDS).await;
    }

    async fn last_words(&mut self, bytes: &[u8], patience: Duration) {
        self.between = false;
        let said = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let _ = tokio::time::timeout(patience, said).await;
    }
}

const _: () = assert!(READ <= MESSAGE_MAX);
