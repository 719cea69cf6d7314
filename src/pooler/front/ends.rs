//! The ends of clients: of one that has gone or is to go, wherever it is, and of all when the front ends. Network threads.

use super::Front;
use crate::bridge::Level;
use crate::login::Question;
use crate::pooler::listening::NO_POOL;
use crate::pooler::pools;
use crate::pooler::shared::{Doom, ServerState, Shared, Slot};
use crate::pooler::slot::State;
use crate::wire::message::Report;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

/// When the front ends: how often clients are looked at that may become idle yet, and after which pause.
const LAST_LOOKS: u32 = 20;
const LAST_LOOK: Duration = Duration::from_millis(5);

/// How long a client that is to be ended may finish what it has running.
const PROMPT: Duration = Duration::from_millis(50);

impl Front {
    /// For the log: a client that nobody serves is ended.
    pub fn log_end(&self, number: u32, report: &Report) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let pool = slot.pool.load(Acquire);
        let names = if pool == NO_POOL {
            self.listeners.names(number)
        } else {
            let pool = self.shared.pools.get(usize::from(pool));
            pool.map(|pool| (pool.role_name.text(), pool.database_name.text()))
        };
        let Some((role, database)) = names else { return };
        let pid = Shared::client_pid(number);
        let text = format!("client {pid} of {role}@{database} ended: {}", report.message);
        self.bridge.log(Level::Log, text);
    }

    /// Ends a client whose slot is Closing: its socket, its texts, its slot.
    pub fn end_client(self: &Arc<Self>, number: u32, generation: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let seen = slot.word.seen();
        if seen.state() != State::Closing || seen.generation() != generation {
            return;
        }
        self.seats.close(number, generation);
        self.relay.unlisten_all(self, number);
        if let Some(pool) = self.shared.pools.get(slot.pool.load(Acquire) as usize) {
            pool.clients.fetch_sub(1, Relaxed);
        }
        if slot.has_texts() {
            let front = Arc::clone(self);
            self.spawn(async move { front.forget(number, generation).await });
        } else {
            // Its last backend has freed them.
            self.free_slot(number, generation);
        }
    }

    /// Main frees the client's texts before anybody else gets the slot.
    pub(in crate::pooler) async fn forget(&self, number: u32, generation: u32) {
        while self.questions.ask(|reply| Question::Forget { slot: number, reply }).await.is_err() {
            if self.bridge.stop().is_cancelled() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.free_slot(number, generation);
    }

    /// A slot without texts is for the next client.
    pub(in crate::pooler) fn free_slot(&self, number: u32, generation: u32) {
        let slot = &self.shared.slots[number as usize];
        slot.admitted_role.store(0, Relaxed);
        slot.admitted_database.store(0, Relaxed);
        if slot.word.free(generation) {
            self.free.lock().push(number);
        }
    }

    /// Ends a client that nobody serves, with its last words; false when somebody does, or it is gone.
    pub fn end_idle(self: &Arc<Self>, number: u32, generation: u32, report: &Report) -> bool {
        let Some(slot) = self.shared.slots.get(number as usize) else { return false };
        let closed = slot.word.close_idle(generation);
        if closed {
            self.seats.say(number, generation, &slot.last_words(report));
            self.end_client(number, generation);
        }
        closed
    }

    /// Has a client ended, whoever has it: one that is served hears it from its backend, which ends with it. False when that client
    /// is gone already.
    pub fn kill_client(self: &Arc<Self>, number: u32, generation: u32) -> bool {
        let Some(slot) = self.shared.slots.get(number as usize) else { return false };
        let seen = slot.word.seen();
        let there = seen.generation() == generation
            && !matches!(seen.state(), State::Free | State::Login | State::Closing);
        if there {
            let front = Arc::clone(self);
            let doom = Doom::Administrator;
            self.spawn(async move { front.end_wherever_it_is(number, generation, doom).await });
        }
        there
    }

    /// A backend that is told may let go of the client before it hears it: then the next look finds the client elsewhere.
    pub(in crate::pooler) async fn end_wherever_it_is(
        self: Arc<Self>,
        number: u32,
        generation: u32,
        doom: Doom,
    ) {
        let slot = &self.shared.slots[number as usize];
        let report = doom.report();
        let mut pause = Duration::from_millis(5);
        loop {
            let seen = slot.word.seen();
            if seen.generation() != generation {
                return;
            }
            // Said again each time: one that comes too late to end the client before may have said over it.
            slot.doom.store(doom as u32, Relaxed);
            slot.doomed.store(generation, SeqCst);
            match seen.state() {
                State::Free | State::Login | State::Closing => return,
                State::Idle if self.end_idle(number, generation, &report) => return,
                State::Attached => {
                    let insist = doom == Doom::Administrator && pause > PROMPT;
                    self.tell_backend_of(slot, generation, insist);
                }
                State::Listening => self.listeners.doom(number, generation),
                // Whoever writes to it looks, too.
                State::Idle | State::Cancelling | State::Notifying | State::Called => {}
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(Duration::from_secs(1));
        }
    }

    /// As with a cancel: meanwhile the backend keeps the client.
    fn tell_backend_of(&self, slot: &Slot, generation: u32, insist: bool) {
        let Some(number) = slot.word.start_cancel(generation) else { return };
        if let Some(server) = self.shared.servers.get(number as usize) {
            if insist && server.state() == ServerState::Serving {
                // Busy for longer than a moment: it is ended with its query.
                pools::signal(server, rustix::process::Signal::TERM);
            } else {
                // At its next idle moment, which may be now, it ends the client itself.
                pools::wake(server);
            }
        }
        slot.word.cancelled(generation, number);
    }

    /// The front ends: idle clients hear why. Those that are served are their backends' affair; over TLS they hear them only while
    /// we are there.
    pub(super) async fn say_goodbye(self: &Arc<Self>) {
        self.end_idle_clients_for_good(false);
        self.retire_servers();
        for _ in 0..LAST_LOOKS {
            // Backends give back the clients that they have waited for, and whoever writes to one is soon done.
            tokio::time::sleep(LAST_LOOK).await;
            if !self.end_idle_clients_for_good(false) {
                break;
            }
        }
        // Who becomes idle from here on is ended by the backend that has served it.
        let header = self.shared.header;
        header.ending.store(header.epoch.load(Acquire), SeqCst);
        self.end_idle_clients_for_good(true);
    }

    /// Whether some may be idle in a moment. At last, those that are still being written to are ended without a word.
    fn end_idle_clients_for_good(self: &Arc<Self>, at_last: bool) -> bool {
        let report = Doom::Administrator.report();
        let mut soon = false;
        for (number, slot) in self.shared.slots_in_use() {
            let seen = slot.word.seen();
            match seen.state() {
                State::Idle if slot.word.close_idle(seen.generation()) => {
                    self.seats.say(number, seen.generation(), &slot.last_words(&report));
                    self.seats.close(number, seen.generation());
                }
                State::Notifying | State::Called if at_last => {
                    if slot.word.close_notifying(seen.generation()) {
                        self.seats.close(number, seen.generation());
                    }
                }
                State::Idle | State::Notifying | State::Called => soon = true,
                State::Attached => {
                    let server = self.shared.servers.get(seen.server() as usize);
                    soon |= server.is_some_and(|server| server.state() == ServerState::Staying);
                }
                State::Free | State::Login | State::Closing | State::Cancelling | State::Listening => {}
            }
        }
        soon
    }

    fn retire_servers(&self) {
        for server in self.shared.servers {
            if server.state() != ServerState::Free {
                pools::retire(server);
                let slot = server.slot.load(Acquire).checked_sub(1);
                let slot = slot.and_then(|number| self.shared.slots.get(number as usize));
                if slot.is_some_and(|slot| slot.tls.load(Relaxed) != 0) {
                    pools::signal(server, rustix::process::Signal::TERM);
                }
            }
        }
    }
}
