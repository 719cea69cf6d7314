//! Clients that do not take all that they are sent: each is written to by a task of its own until it has the rest or is too slow. The
//! front's first thread.

use super::clients::Clients;
use super::engine::{BATCH, Engine, TICK};
use super::reader::{Batch, Collected, Reader};
use super::refusal::too_slow;
use super::ring::Ring;
use super::shared::Header;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

/// How long the last words of a client that is too slow may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Clients that have not taken all that they were sent, and by how many bytes of the ring they are behind.
#[derive(Default)]
pub(super) struct Behind {
    clients: HashMap<u32, u64>,
    /// When all were last looked at for the furthest.
    looked: Option<Instant>,
}

impl Behind {
    /// Each client notes itself at least once a tick, and all of them under one lock: the furthest is looked for once a tick, not
    /// by each. One that is further than any was is shown at once.
    pub(super) fn note(&mut self, client: u32, bytes: Option<u64>, header: &Header) {
        match bytes {
            Some(bytes) => drop(self.clients.insert(client, bytes)),
            None => drop(self.clients.remove(&client)),
        }
        header.behind.store(self.clients.len() as u32, Relaxed);
        if self.clients.is_empty() || self.looked.is_none_or(|looked| looked.elapsed() >= TICK) {
            self.looked = Some(Instant::now());
            header.backlog.store(self.clients.values().copied().max().unwrap_or(0), Relaxed);
        } else {
            header.backlog.fetch_max(bytes.unwrap_or(0), Relaxed);
        }
    }
}

impl Engine {
    /// A relay has taken an idle client to write to it, and has sent only so many bytes of what the client lacks. It is ours from here
    /// on.
    pub fn finish(self: &Arc<Self>, clients: &Arc<dyn Clients>, client: u32, sent: usize) {
        let mut batch = Batch::default();
        let collected = Reader::new(self.shared).collect(client, BATCH.max(sent), &mut batch);
        if collected == Collected::TooLate || batch.bytes.len() < sent {
            // What it has a part of is gone, and words cannot follow a part.
            drop(self.too_slow(&**clients, client));
            return clients.end(client);
        }
        let rest = batch.bytes.split_off(sent);
        clients.spawn(Box::pin(Arc::clone(self).persist(Arc::clone(clients), client, rest, false)));
    }

    /// A client that has taken only a part of what it was sent. It is ours until it has the rest.
    pub(super) async fn persist(
        self: Arc<Self>,
        clients: Arc<dyn Clients>,
        client: u32,
        rest: Vec<u8>,
        late: bool,
    ) {
        let ring = Ring::new(self.shared);
        let behind = Reader::new(self.shared).backlog(client).unwrap_or_else(|_| ring.size());
        self.note_backlog(client, Some(behind));
        self.write_on(&*clients, client, rest, late).await;
        self.note_backlog(client, None);
    }

    /// How far a client is behind in the ring that does not take all that it is sent; `None` once that is over.
    fn note_backlog(&self, client: u32, bytes: Option<u64>) {
        self.inner.lock().behind.note(client, bytes, self.shared.header);
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
                        self.note_backlog(client, Some(behind));
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

    /// The last words of a client that is too slow; it is counted and noted.
    pub fn too_slow(&self, clients: &dyn Clients, client: u32) -> Vec<u8> {
        clients.note_slow(client);
        self.shared.header.counters.too_slow.fetch_add(1, Relaxed);
        too_slow().to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_furthest_is_shown_at_once_and_nobody_is_behind_when_all_have_gone() {
        let (header, mut behind) = (Header::default(), Behind::default());
        let shown = || (header.behind.load(Relaxed), header.backlog.load(Relaxed));
        behind.note(1, Some(100), &header);
        behind.note(2, Some(300), &header);
        behind.note(3, Some(200), &header);
        assert_eq!(shown(), (3, 300));
        behind.note(2, None, &header);
        std::thread::sleep(TICK);
        behind.note(1, Some(50), &header);
        assert_eq!(shown(), (2, 200));
        behind.note(3, None, &header);
        behind.note(1, None, &header);
        assert_eq!(shown(), (0, 0));
    }

    #[test]
    fn many_that_are_behind_note_it_without_looking_at_each_other() {
        let (header, mut behind) = (Header::default(), Behind::default());
        let began = Instant::now();
        for client in 0..50_000 {
            behind.note(client, Some(client.into()), &header);
        }
        // Each looking at all of them takes half a minute.
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(header.backlog.load(Relaxed), 49_999);
    }
}
