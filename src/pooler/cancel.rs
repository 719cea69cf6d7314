//! A CancelRequest: it reaches the backend that serves the client of that key, and no other. Network threads.

use super::front::Front;
use super::shared::Shared;
use rustix::process::{Pid, Signal, kill_process};
use std::sync::atomic::Ordering::*;

/// Cancels what the client of that pid and key has running. Nothing tells whether it did, as with a server.
pub fn cancel(front: &Front, pid: u32, key: &[u8]) {
    let Some(number) = Shared::slot_of_pid(pid) else {
        if front.consoles.cancel(pid, key) {
            front.shared.header.counters.cancels.fetch_add(1, Relaxed);
        }
        return;
    };
    let Some(slot) = front.shared.slots.get(number as usize) else { return };
    let seen = slot.word.seen();
    if slot.key.load(Relaxed).to_be_bytes() != key {
        return;
    }
    front.shared.header.counters.cancels.fetch_add(1, Relaxed);
    // While it is cancelling, the backend does not let go of the client.
    let Some(server) = slot.word.start_cancel(seen.generation()) else { return };
    if let Some(words) = front.shared.servers.get(server as usize)
        && let Some(pid) = Pid::from_raw(words.pid.load(Acquire))
        && pid.as_raw_nonzero().get() > 1
    {
        let _ = kill_process(pid, Signal::INT);
    }
    slot.word.cancelled(seen.generation(), server);
}
