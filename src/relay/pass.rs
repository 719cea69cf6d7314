//! Going round the clients that lack something, and writing to those that are idle. The front's first thread.

use super::clients::Clients;
use super::engine::{BATCH, Engine};
use super::reader::{Batch, Collected, Reader};
use super::ring::Ring;
use super::shared::ChannelState;
use crate::notification::Taken;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Batches that a client is given before others have their turn.
const TURN: u32 = 4;

/// How long clients are written to before other tasks of the thread have their turn.
const SLICE: Duration = Duration::from_micros(500);

/// How long it may be gone round the clients before anything else of the relay's is looked at.
const PASS: Duration = Duration::from_millis(20);

/// Going round the clients that lack something.
pub(super) struct Pass {
    engine: Arc<Engine>,
    clients: Arc<dyn Clients>,
    reader: Reader,
    batch: Batch,
    /// In which pass a channel was last seen, and in which a client was found that may lack something.
    channels: Vec<u64>,
    found: Vec<u64>,
    number: u64,
    seen: u64,
}

impl Pass {
    /// What has come by now, it leaves to others.
    pub(super) fn new(engine: Arc<Engine>, clients: Arc<dyn Clients>) -> Self {
        let shared = engine.shared;
        Self {
            engine,
            clients,
            reader: Reader::new(shared),
            batch: Batch::default(),
            channels: vec![0; shared.channels.len()],
            found: vec![0; shared.listeners.len()],
            number: 0,
            seen: Ring::new(shared).head(),
        }
    }

    /// Up to where of the ring it has looked who lacks something.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Gives those who lack something what they lack; whether anybody did.
    pub(super) async fn run(&mut self) -> bool {
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

    /// Who may lack something since the last time: each once, however often it was found.
    pub(super) fn due(&mut self) -> VecDeque<u32> {
        let ring = Ring::new(self.engine.shared);
        let head = ring.head();
        let mut inner = self.engine.inner.lock();
        let before = std::mem::take(&mut inner.due);
        self.number += 1;
        let (number, found) = (self.number, &mut self.found);
        let mut is_new = |client: &u32| {
            let stamp = found.get_mut(*client as usize);
            stamp.is_some_and(|stamp| std::mem::replace(stamp, number) != number)
        };
        let mut due: VecDeque<u32> = before.into_iter().filter(&mut is_new).collect();
        let mut position = self.seen;
        while position < head {
            let Ok((channel, next)) = ring.at(position) else {
                // So much has come that not all of it can be looked at: those who lack something are found otherwise. Who is
                // missed here would never hear that it is too late.
                for (number, channel) in self.engine.shared.channels.iter().enumerate() {
                    if channel.state() == ChannelState::Heard {
                        due.extend(inner.book.clients_of(number as u32).filter(&mut is_new));
                    }
                }
                break;
            };
            position = next;
            if let Some(stamp) = self.channels.get_mut(channel as usize)
                && *stamp != number
            {
                *stamp = number;
                due.extend(inner.book.clients_of(channel).filter(&mut is_new));
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
