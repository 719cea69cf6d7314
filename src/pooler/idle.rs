//! How long a client may want nothing: `idle_session_timeout`, which is its session's own, and `postern.client_idle_timeout`, which is
//! for all. The first network thread.

use super::front::Front;
use super::limits::sends_a_part;
use super::pools::wake;
use super::shared::{ServerState, Slot, now};
use super::slot::State;
use crate::wire::message::Report;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

/// How often clients are looked at for `postern.client_idle_timeout`.
const LOOK: Duration = Duration::from_secs(1);

impl Front {
    /// A backend has let go of a client whose session has an `idle_session_timeout`, or had one before: ends it when it has not been
    /// served for so long.
    pub(super) fn time_idle_session(self: &Arc<Self>, number: u32, generation: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        if slot.word.seen().generation() != generation {
            return;
        }
        let Some(left) = left_of_session(slot, now()) else {
            return self.seats.end_timer(number, generation);
        };
        if left > Duration::ZERO {
            // It looks again then: the client may have been served meanwhile.
            self.seats.time(number, generation, Instant::now() + left, || {
                let front = Arc::clone(self);
                let look = async move {
                    tokio::time::sleep(left).await;
                    front.seats.end_timer(number, generation);
                    front.time_idle_session(number, generation);
                };
                self.spawn(look).abort_handle()
            });
        } else if !self.seats.is_ready(number, generation) {
            // One that is served or about to be is timed anew when it is idle again.
            let report = Report::fatal("57P05", "terminating connection due to idle-session timeout");
            self.end_idle(number, generation, &report);
        }
    }

    /// Ends the clients, of whatever pool, that have wanted nothing for longer than `postern.client_idle_timeout`.
    pub(super) async fn watch_idle_clients(self: Arc<Self>) {
        let stop = self.bridge.stop();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            if let Some(limit) = self.bridge.settings().pooler.client_idle_timeout {
                self.end_idle_clients(i64::try_from(limit.as_micros()).unwrap_or(i64::MAX));
            }
        }
    }

    fn end_idle_clients(self: &Arc<Self>, limit: i64) {
        let now = now();
        for (number, slot) in self.shared.slots_in_use() {
            let seen = slot.word.seen();
            let generation = seen.generation();
            match seen.state() {
                State::Idle | State::Attached if now - slot.since.load(Relaxed) < limit => {}
                State::Attached => call_back_from(self, seen.server()),
                // Who waits for a backend wants something; how long it may is postern.query_wait_timeout's affair, and how long the
                // rest of a message may take is postern.client_message_timeout's.
                State::Idle
                    if !slot.is_fresh()
                        && !self.seats.is_ready(number, generation)
                        && !sends_a_part(self, number, generation) =>
                {
                    let report = Report::fatal("57P05", "client_idle_timeout")
                        .with_hint("The setting is postern.client_idle_timeout.");
                    self.end_idle(number, generation, &report);
                }
                _ => {}
            }
        }
    }
}

/// How long the session may still be idle; `None` when it has no limit.
fn left_of_session(slot: &Slot, now: i64) -> Option<Duration> {
    let limit = match slot.idle_millis.load(Relaxed) {
        0 => return None,
        millis => i64::from(millis) * 1000,
    };
    let left = slot.since.load(Relaxed) + limit - now;
    Some(Duration::from_micros(u64::try_from(left).unwrap_or(0)))
}

/// A backend that waits for its own client gives it back, so that time can have its way with it.
fn call_back_from(front: &Front, number: u32) {
    let Some(server) = front.shared.servers.get(number as usize) else { return };
    if server.state() == ServerState::Staying
        && let Some(pool) = front.shared.pools.get(server.pool.load(Acquire) as usize)
    {
        pool.unstay(server.member.load(Acquire));
        wake(server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_as_long_as_it_says_now() {
        let slot = Slot::default();
        slot.since.store(5_000_000, Relaxed);
        assert_eq!(left_of_session(&slot, 5_000_000), None);
        slot.idle_millis.store(2_000, Relaxed);
        assert_eq!(left_of_session(&slot, 6_500_000), Some(Duration::from_millis(500)));
        assert_eq!(left_of_session(&slot, 9_000_000), Some(Duration::ZERO));
        slot.idle_millis.store(0, Relaxed);
        assert_eq!(left_of_session(&slot, 9_000_000), None);
    }
}
