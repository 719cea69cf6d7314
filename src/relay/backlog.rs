//! Clients that do not take all that they are sent: each is written to by a task of its own until it has the rest or is too slow. The
//! front's first thread.

use super::clients::Clients;
use super::engine::{BATCH, Engine, TICK};
use super::reader::{Batch, Collected, Reader};
use super::refusal::too_slow;
use super::ring::Ring;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

/// How long the last words of a client that is too slow may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

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
