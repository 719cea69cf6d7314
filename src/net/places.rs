//! How many connections of one kind may be open at once, over all its listeners. Network threads.
//!
//! Beyond the limit new clients wait in the listener's backlog until one ends. Only a connection that has had its time
//! and is still there, a silent or slow one, is ended for a new one; an honest check is answered within milliseconds.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The limit, where the system gives descriptors enough.
pub const MOST: usize = 256;

/// The limit of a kind of connection that nobody balances load by.
const FEW: usize = 64;

/// A connection may keep its place for this long while others want it.
const TURN: Duration = Duration::from_secs(1);

/// The open connections, oldest first.
pub struct Places {
    limit: usize,
    open: Mutex<VecDeque<(Instant, AbortHandle)>>,
    ended: Notify,
}

impl Places {
    /// Takes at most a quarter of this process's descriptors, so that two kinds leave about half to the rest.
    pub fn new() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let quarter = descriptors.map_or(MOST, |most| usize::try_from(most / 4).unwrap_or(MOST));
        Self::with_limit(quarter.clamp(1, MOST))
    }

    /// For what few ask at once: at most [`FEW`], and a sixteenth of the descriptors.
    pub fn few() -> Self {
        Self::with_limit((Self::new().limit / 4).clamp(1, FEW))
    }

    fn with_limit(limit: usize) -> Self {
        Self { limit, open: Mutex::default(), ended: Notify::new() }
    }

    /// Waits until a place is free, ending the oldest connection when it has had its turn; whether it did.
    pub async fn wait(&self) -> bool {
        loop {
            let ended = self.ended.notified();
            let turn_left = {
                let mut open = self.open.lock();
                open.retain(|(_, task)| !task.is_finished());
                if open.len() < self.limit {
                    return false;
                }
                let left = open.front().map_or(TURN, |(since, _)| TURN.saturating_sub(since.elapsed()));
                if left.is_zero() {
                    if let Some((_, task)) = open.pop_front() {
                        task.abort();
                    }
                    return true;
                }
                left
            };
            let _ = tokio::time::timeout(turn_left, ended).await;
        }
    }

    /// Runs a connection in a place that [`Places::wait`] found.
    pub fn spawn(places: &std::sync::Arc<Self>, connection: impl Future<Output = ()> + Send + 'static) {
        let end = End(std::sync::Arc::clone(places));
        let task = tokio::spawn(async move {
            let _end = end;
            connection.await;
        });
        places.open.lock().push_back((Instant::now(), task.abort_handle()));
    }
}

impl Default for Places {
    fn default() -> Self {
        Self::new()
    }
}

/// Tells that a place is free, however the connection ended.
struct End(std::sync::Arc<Places>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn at_the_limit_a_client_waits_for_an_end() {
        let places = Arc::new(Places::with_limit(2));
        let go = Arc::new(Notify::new());
        for _ in 0..2 {
            assert!(!places.wait().await);
            let go = Arc::clone(&go);
            Places::spawn(&places, async move { go.notified().await });
        }
        let waiting = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.wait().await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        go.notify_one();
        assert!(!waiting.await.unwrap(), "nobody was ended for it");
    }

    #[tokio::test]
    async fn who_has_had_a_turn_makes_room() {
        let places = Arc::new(Places::with_limit(1));
        places.wait().await;
        Places::spawn(&places, std::future::pending());
        let before = Instant::now();
        assert!(places.wait().await, "the silent one was ended");
        assert!(before.elapsed() >= TURN - Duration::from_millis(50));
    }
}
