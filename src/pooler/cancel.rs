//! A CancelRequest: it reaches the backend that serves the client of that key, and no other. Network threads.

use super::front::Front;
use super::pools::signal;
use super::shared::Shared;
use crate::wire::message;
use rustix::process::Signal;
use std::sync::atomic::Ordering::*;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::io::AsyncWriteExt;

/// Cancels what the client of that pid and key has running. Nothing tells whether it did, as with a server.
pub async fn cancel(front: &Front, pid: u32, key: &[u8]) {
    match Shared::slot_of_pid(pid) {
        Some(number) => cancel_client(front, number, key),
        None if front.consoles.cancel(pid, key) => {
            front.shared.header.counters.cancels.fetch_add(1, Relaxed);
        }
        // A replication connection has the server's own key.
        None => {
            let _ = tokio::time::timeout(Duration::from_secs(5), pass_on(front, pid, key)).await;
        }
    }
}

fn cancel_client(front: &Front, number: u32, key: &[u8]) {
    let Some(slot) = front.shared.slots.get(number as usize) else { return };
    let seen = slot.word.seen();
    // How long the comparison takes tells nothing of where they differ.
    if !bool::from(slot.cancel_key().ct_eq(key)) {
        return;
    }
    front.shared.header.counters.cancels.fetch_add(1, Relaxed);
    // While it is cancelling, the backend does not let go of the client.
    let Some(server) = slot.word.start_cancel(seen.generation()) else { return };
    if let Some(words) = front.shared.servers.get(server as usize) {
        signal(words, Signal::INT);
    }
    slot.word.cancelled(seen.generation(), server);
}

async fn pass_on(front: &Front, pid: u32, key: &[u8]) -> std::io::Result<()> {
    let settings = front.bridge.settings();
    let mut request = Vec::new();
    message::cancel_request(&mut request, pid, key);
    super::opening::connect_only(&settings.pooler.door).await?.write_all(&request).await
}
