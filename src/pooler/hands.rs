//! The front's network threads: which of them a client is given to, and what they still do when the front ends.
//!
//! The first keeps everything that there is once: listeners, the control socket, pools, the console. What a client costs beyond that,
//! its login and its TLS, is done where it was given to, on any of them, and stays there. Network threads.

use super::front::Front;
use crate::net::threads::watched;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The most that `postern.pooler_threads` may be.
pub const MOST: u32 = 64;

/// How long the last words of backends may take to their clients when the front ends.
const FAREWELL: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub struct Hands {
    /// All, the first first; set once they have all been started.
    threads: OnceLock<Vec<Handle>>,
    first: OnceLock<ThreadId>,
    next: AtomicUsize,
    /// TLS clients that may still be told something.
    pumps: AtomicUsize,
    pump_ended: Notify,
    /// Everything has been said.
    said: CancellationToken,
}

impl Hands {
    /// The threads, the first first.
    pub(super) fn set(&self, threads: Vec<Handle>) {
        let _ = self.threads.set(threads);
    }

    /// Called by the first.
    pub(super) fn is_first(&self) {
        let _ = self.first.set(std::thread::current().id());
    }

    /// Whose turn it is to get a client; `None` is the first, which asks.
    fn next(&self) -> Option<&Handle> {
        let threads = self.threads.get()?;
        let number = self.next.fetch_add(1, Relaxed) % threads.len().max(1);
        if number == 0 { None } else { threads.get(number) }
    }

    /// The first, for those that are another.
    fn first(&self) -> Option<&Handle> {
        if self.first.get() == Some(&std::thread::current().id()) {
            return None;
        }
        self.threads.get()?.first()
    }

    /// A TLS client is served from now on, until what is returned is dropped.
    pub(super) fn pump(front: &Arc<Front>) -> Pumping {
        front.hands.pumps.fetch_add(1, AcqRel);
        Pumping(Arc::clone(front))
    }

    /// The first waits until the clients of TLS have heard their last words, for a moment, and `others` theirs; then all threads
    /// may end. Not before: connections of `others` may be on any of them.
    pub(super) async fn farewell(&self, others: impl Future<Output = ()>) {
        tokio::join!(none_left(&self.pump_ended, || self.pumps.load(Acquire) == 0), others);
        self.said.cancel();
    }

    /// What the others do: their tasks, until the front ends and has said so. The first may have panicked: then it says nothing.
    pub(super) async fn help(self: Arc<Self>, stop: CancellationToken) {
        stop.cancelled().await;
        let _ = tokio::time::timeout(2 * FAREWELL, self.said.cancelled()).await;
    }
}

/// Waits until there is none, for as long as goodbyes may take when the front ends. `one_left` is notified whenever one goes.
pub(super) async fn none_left(one_left: &Notify, is_none: impl Fn() -> bool) {
    let none = async {
        loop {
            // Made before the look, so that who goes after it is heard.
            let left = one_left.notified();
            if is_none() {
                return;
            }
            left.await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL, none).await;
}

/// A TLS client that may still be told something.
pub(super) struct Pumping(Arc<Front>);

impl Drop for Pumping {
    fn drop(&mut self) {
        if self.0.hands.pumps.fetch_sub(1, AcqRel) == 1 {
            self.0.hands.pump_ended.notify_waiters();
        }
    }
}

impl Front {
    /// A task on this thread. Its panic ends the worker.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        tokio::spawn(watched(self.bridge.clone(), work))
    }

    /// A task for a client, on the thread whose turn it is. Called by the first.
    pub(super) fn spawn_in_turn(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        match self.hands.next() {
            Some(thread) => thread.spawn(watched(self.bridge.clone(), work)),
            None => self.spawn(work),
        }
    }

    /// A task on the first thread.
    pub fn spawn_on_first<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        match self.hands.first() {
            Some(thread) => thread.spawn(watched(self.bridge.clone(), work)),
            None => self.spawn(work),
        }
    }

    /// Does on the first thread what only that one may; `None` when the front ends.
    pub(super) async fn on_first<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        match self.hands.first() {
            Some(thread) => thread.spawn(watched(self.bridge.clone(), work)).await.ok(),
            None => Some(work.await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::Builder;

    #[test]
    fn every_thread_has_its_turn_and_the_first_is_itself() {
        let runtimes: Vec<_> = (0..3).map(|_| Builder::new_current_thread().build().unwrap()).collect();
        let hands = Hands::default();
        assert!(hands.next().is_none() && hands.first().is_none(), "before they are known");
        hands.set(runtimes.iter().map(|runtime| runtime.handle().clone()).collect());
        let turns: Vec<_> = (0..6).map(|_| hands.next().is_some()).collect();
        assert_eq!(turns, [false, true, true, false, true, true]);
        assert!(hands.first().is_some());
        hands.is_first();
        assert!(hands.first().is_none());
    }

    #[test]
    fn the_threads_end_when_everybody_has_heard_it() {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let hands = Hands::default();
            let start = tokio::time::Instant::now();
            hands
                .farewell(async {
                    tokio::time::sleep(FAREWELL / 2).await;
                    assert!(!hands.said.is_cancelled(), "somebody on another thread is still to hear it");
                })
                .await;
            assert!(hands.said.is_cancelled());
            assert_eq!(start.elapsed(), FAREWELL / 2);
            none_left(&Notify::new(), || false).await;
            assert_eq!(start.elapsed(), FAREWELL / 2 + FAREWELL, "for a moment only");
        });
    }
}
