//! The banner: on connect `MASTER` or `STANDBY`, no newline, then close; nothing is read. bgw_replstatus's answer,
//! byte for byte. It has a network thread of its own, so that no other work can starve a check.
//!
//! A check costs one accept, one read of shared memory, one send and one close; the socket is never
//! registered with the runtime.

use super::facts::Facts;
use super::shared::Shared;
use crate::bridge::{Bridge, Level};
use crate::net::listener::{Accepted, Listener, Peer};
use crate::net::slots::Slot;
use rustix::net::SendFlags;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// While this server is no master, a sample older than this is renewed before a check is answered, so that a
/// promotion shows at once. A master stays one for as long as the worker lives, and a stop is seen by main's tick.
const STANDBY_FRESH: Duration = Duration::from_millis(1);

/// How long a check waits for main. Main answers in well under a millisecond unless the machine is starved.
const PATIENCE: Duration = Duration::from_millis(100);

/// Main samples every second: when it has not for this long, it is stuck, and no check waits for it.
const STUCK: Duration = Duration::from_secs(2);

/// Pause after an accept that failed for lack of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves one listener.
#[derive(Clone)]
pub struct Banner {
    pub bridge: Bridge<Facts>,
    pub shared: &'static Shared,
}

impl Banner {
    /// Answers until it is dropped.
    pub async fn serve(self, listener: Listener, slot: &'static Slot) {
        let mut said = false;
        loop {
            match listener.accept().await {
                Ok(client) => self.answer(client, slot).await,
                Err(error) => {
                    slot.failed.fetch_add(1, Relaxed);
                    if !std::mem::replace(&mut said, true) {
                        self.bridge.log(Level::Warning, format!("status banner could not accept a check: {error}"));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn answer(&self, client: Accepted, slot: &Slot) {
        if let Peer::Tcp(address) = client.peer {
            if !self.bridge.settings().allow.permits(address) {
                slot.refused.fetch_add(1, Relaxed);
                return;
            }
        }
        if !self.shared.is_master() && self.bridge.facts_age() < STUCK {
            self.bridge.refresh(STANDBY_FRESH, PATIENCE).await;
        }
        let master = self.shared.is_master();
        let text: &[u8] = if master { b"MASTER" } else { b"STANDBY" };
        // Seven bytes always fit a new socket's buffer, so the send is whole or the peer is gone.
        let counter = match rustix::net::send(&client.socket, text, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) if sent == text.len() => &slot.served,
            _ => &slot.failed,
        };
        counter.fetch_add(1, Relaxed);
    }
}
