//! Writing to idle clients from the relay's worker itself, where a channel has few listeners: the front takes and gives the clients, by
//! their words in shared memory. The worker's main thread.

use super::{FEW, Worker};
use crate::pooler::control::Word;
use crate::pooler::shared::ServerState;
use crate::pooler::slot::State;
use crate::postgres::agent::answer;
use crate::postgres::shim;
use crate::relay::reader::Collected;
use rustix::net::SendFlags;
use std::sync::atomic::{Ordering::*, fence};

/// Bytes that a client is given at a time.
const BATCH: usize = 64 * 1024;

/// Clients' sockets that are kept at hand.
const SOCKETS: usize = 10_000;

impl Worker {
    /// Writes to the listeners of channels that have few, where these are idle: waking the front for it would take as long as all the
    /// rest. The front does what is left.
    pub(super) fn give_directly(&mut self) {
        if self.heard_of.is_empty() {
            return;
        }
        let mut left = false;
        for number in std::mem::take(&mut self.heard_of) {
            let clients = self.clients_of(number);
            let Some(channel) = self.shared.channels.get(number as usize) else { continue };
            left |= (clients.len() as u32) < channel.listeners.load(Relaxed);
            for client in clients {
                if !self.give(client) {
                    // The front may have looked at it while it was ours.
                    self.leave(client);
                }
            }
        }
        if left {
            self.tell();
        }
    }

    /// The client is the front's to look at.
    fn leave(&self, client: u32) {
        if let Some(slot) = self.pooler.slots.get(client as usize) {
            self.say(Word::Behind { slot: client, generation: slot.word.seen().generation() });
        }
    }

    /// The listeners of a channel, as far as they can be seen: the front may be changing the list.
    fn clients_of(&self, number: u32) -> Vec<u32> {
        let mut clients = Vec::new();
        let mut next = self.shared.channels.get(number as usize).and_then(|channel| channel.first.get());
        while let Some(listen) = next.and_then(|listen| self.shared.listens.get(listen as usize))
            && listen.channel.load(Relaxed) == number
            && clients.len() < FEW as usize
        {
            clients.push(listen.client.load(Relaxed));
            next = listen.next_of_channel.get();
        }
        clients
    }

    /// Gives a client what it lacks, if it is idle; whether it lacks nothing now or is the front's.
    fn give(&mut self, client: u32) -> bool {
        let Some(slot) = self.pooler.slots.get(client as usize) else { return true };
        // What there is for the client was published before; a backend that begins to wait for it looks after it has said so.
        fence(SeqCst);
        let seen = slot.word.seen();
        let generation = seen.generation();
        if seen.state() == State::Attached {
            // Its backend gives it to it: at its next idle ReadyForQuery, or now if it waits for the client. If it has just let go,
            // it says so to the front.
            if let Some(server) = self.pooler.servers.get(seen.server() as usize)
                && matches!(server.state(), ServerState::Staying | ServerState::Pinned)
            {
                // SAFETY: the number of a process that was listed; a latch that is set once too often harms nobody.
                unsafe { shim::postern_wake(server.proc.load(Acquire)) };
            }
            return true;
        }
        if seen.state() != State::Idle
            || !self.has_socket(client, generation)
            || !slot.word.notify(generation)
        {
            return !self.reader.is_behind(client);
        }
        // From here to the end the client is ours, and nothing may fail.
        let mut done = true;
        loop {
            let (collected, given) = self.reader.peek(client, BATCH, &mut self.batch);
            let bytes = &self.batch.bytes;
            if collected == Collected::TooLate {
                done = false;
                break;
            }
            let Some((_, socket)) = self.sockets.get(&client).filter(|_| !bytes.is_empty()) else { break };
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(socket, bytes, flags) {
                Ok(length) if length == bytes.len() => self.reader.commit(&given),
                Ok(length) => {
                    self.say(Word::Finish { slot: client, generation, sent: length as u32 });
                    return true;
                }
                // It does not read, or is gone: who finds it idle finds out.
                Err(_) => {
                    done = false;
                    break;
                }
            }
            if collected == Collected::All {
                break;
            }
        }
        if slot.word.notified(generation) {
            self.say(Word::Arm { slot: client, generation });
        }
        done
    }

    /// Whether the client's socket is at hand. It is asked for once; the front answers at once, or has ended.
    fn has_socket(&mut self, client: u32, generation: u32) -> bool {
        if self.sockets.get(&client).is_some_and(|(of, _)| *of == generation) {
            return true;
        }
        self.sockets.remove(&client);
        if self.sockets.len() >= SOCKETS {
            self.sweep();
        }
        if self.sockets.len() >= SOCKETS {
            return false;
        }
        self.say(Word::Want { slot: client, generation });
        match answer(&self.control) {
            Some(socket) => {
                self.sockets.insert(client, (generation, socket));
                true
            }
            None => false,
        }
    }

    /// Closes the sockets of clients that have gone.
    pub(super) fn sweep(&mut self) {
        let slots = self.pooler.slots;
        let listens = |client: &u32| self.reader.listens(*client);
        self.sockets.retain(|client, (generation, _)| {
            let slot = slots.get(*client as usize);
            listens(client) && slot.is_some_and(|slot| slot.word.seen().generation() == *generation)
        });
    }
}
