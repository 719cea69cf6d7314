//! The banner: on connect `MASTER` or `STANDBY`, no newline, then close; nothing is read. bgw_replstatus's answer,
//! byte for byte.
//!
//! Each address has a thread of its own that does nothing but accept, read one word of shared memory, send and close,
//! so that no other work can starve a check. Its accept blocks: waiting through epoll cost a tenth of the rate here
//! (0.91 to 0.94 of a bare accept-send-close loop, against 1.0).

use super::facts::Facts;
use super::shared::Shared;
use crate::bridge::{Bridge, Level};
use crate::net::listener::{Accepted, Blocking, Listener, Peer};
use crate::net::slots::Slot;
use rustix::net::SendFlags;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// While this server is no master, a sample older than this is renewed before a check is answered, so that a
/// promotion shows at once. A master stays one for as long as the worker lives, and a stop is seen by main's tick.
const STANDBY_FRESH: Duration = Duration::from_millis(1);

/// How long a check waits for main. Main answers in well under a millisecond unless the machine is starved.
const PATIENCE: Duration = Duration::from_millis(100);

/// Main samples every second: when it has not for this long, it is stuck, and no check waits for it.
const STUCK: Duration = Duration::from_secs(2);

/// Pause after an accept that failed for lack of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// The thread needs little, and there may be dozens of addresses.
const STACK: usize = 256 * 1024;

/// Answers checks; cloned for each listener.
#[derive(Clone)]
pub struct Banner {
    pub bridge: Bridge<Facts>,
    pub shared: &'static Shared,
}

impl Banner {
    /// Answers until it is dropped; dropping it closes the address and ends the thread.
    pub async fn serve(self, listener: Listener, slot: &'static Slot) {
        let bridge = self.bridge.clone();
        match AcceptThread::start(self, listener, slot) {
            Ok((_thread, ended)) => {
                // Nobody sends: it is dropped when the thread ends, which it does not do by itself.
                let _ = ended.await;
                bridge.fail("a banner thread has ended");
            }
            Err(error) => bridge.fail(format!("could not start a banner thread: {error}")),
        }
    }

    fn accept_loop(&self, listener: &Blocking, slot: &Slot) {
        let mut said = false;
        while !listener.is_closed() {
            match listener.accept() {
                Ok(client) => self.answer(&client, slot),
                Err(_) if listener.is_closed() => {}
                Err(error) => {
                    slot.failed.fetch_add(1, Relaxed);
                    if !std::mem::replace(&mut said, true) {
                        self.bridge
                            .log(Level::Warning, format!("status banner could not accept a check: {error}"));
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn answer(&self, client: &Accepted, slot: &Slot) {
        if let Peer::Tcp(address) = client.peer
            && !self.bridge.settings().allow.permits(address)
        {
            slot.refused.fetch_add(1, Relaxed);
            return;
        }
        if !self.shared.is_master() && self.bridge.facts_age() < STUCK {
            self.bridge.refresh_blocking(STANDBY_FRESH, PATIENCE);
        }
        let text: &[u8] = if self.shared.is_master() { b"MASTER" } else { b"STANDBY" };
        // Seven bytes always fit a new socket's buffer, so the send is whole or the peer is gone.
        let counter = match rustix::net::send(&client.socket, text, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        {
            Ok(sent) if sent == text.len() => &slot.served,
            _ => &slot.failed,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// The thread of one address.
struct AcceptThread {
    listener: Arc<Blocking>,
    thread: Option<JoinHandle<()>>,
}

impl AcceptThread {
    fn start(
        banner: Banner,
        listener: Listener,
        slot: &'static Slot,
    ) -> std::io::Result<(Self, oneshot::Receiver<()>)> {
        let listener = Arc::new(listener.into_blocking()?);
        let (alive, ended) = oneshot::channel::<()>();
        let accepting = Arc::clone(&listener);
        let thread = std::thread::Builder::new().name("postern banner".to_owned()).stack_size(STACK).spawn(
            move || {
                let _alive = alive;
                banner.accept_loop(&accepting, slot);
            },
        )?;
        Ok((Self { listener, thread: Some(thread) }, ended))
    }
}

impl Drop for AcceptThread {
    /// Wakes the thread out of accept and waits for it, at most for one check: its address must be free when this
    /// returns. It runs on the banner's own runtime, which has nothing else to do.
    fn drop(&mut self) {
        self.listener.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
