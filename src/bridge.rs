//! The one door between the PostgreSQL thread of a worker (main) and its network threads.
//!
//! Main puts in what it knows (facts, settings) as owned values and takes out what the threads want from it
//! (log lines, a fresh sample, news of a failure). No side ever waits for the other with a lock held, and no
//! thread calls PostgreSQL: the only thing it may do to main is to wake it.

#![forbid(unsafe_code)]

mod bytes;
mod clock;
mod lsn;
mod worker;

pub use bytes::{Bytes, Name};
pub use clock::now;
pub use lsn::Lsn;
pub use worker::WorkerWords;

use crate::settings::Settings;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Log lines that may wait for main. Beyond it, lines are dropped and counted.
pub const LOG_QUEUE: usize = 256;

/// Bytes of one log line; what is longer is cut.
pub const LOG_LINE_MAX: usize = 1024;

/// How serious a line is, in the server log's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Log,
    Warning,
}

/// One line for the server log, written there by main.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub level: Level,
    pub text: String,
}

/// Facts with the time at which main took them.
#[derive(Debug, Clone)]
pub struct Stamped<F> {
    pub at: Instant,
    pub value: F,
}

/// The threads' side: cloned freely. `F` is what main samples from PostgreSQL.
pub struct Bridge<F> {
    inner: Arc<Inner<F>>,
}

impl<F> Clone for Bridge<F> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<F> {
    facts: watch::Sender<Stamped<F>>,
    settings: watch::Sender<Arc<Settings>>,
    log: SyncSender<LogLine>,
    /// Lines that found the queue full; lives in shared memory, so that it survives this worker.
    dropped: &'static AtomicU64,
    sample_wanted: AtomicBool,
    /// When main last sampled, for threads without a runtime.
    sampled: Mutex<Instant>,
    sampled_news: Condvar,
    failure: Mutex<Option<String>>,
    wake: Box<dyn Fn() + Send + Sync>,
    stop: CancellationToken,
}

/// Main's side: there is one, and it stays on the PostgreSQL thread.
pub struct MainEnd<F> {
    bridge: Bridge<F>,
    log: Receiver<LogLine>,
}

/// Makes both ends. `wake` must be callable from any thread and make main run soon; `dropped` counts lost lines.
pub fn bridge<F: Clone + Send + Sync + 'static>(
    facts: F,
    settings: Settings,
    dropped: &'static AtomicU64,
    wake: impl Fn() + Send + Sync + 'static,
) -> (MainEnd<F>, Bridge<F>) {
    let (log, log_out) = sync_channel(LOG_QUEUE);
    let inner = Inner {
        facts: watch::Sender::new(Stamped { at: Instant::now(), value: facts }),
        settings: watch::Sender::new(Arc::new(settings)),
        log,
        dropped,
        sample_wanted: AtomicBool::new(false),
        sampled: Mutex::new(Instant::now()),
        sampled_news: Condvar::new(),
        failure: Mutex::new(None),
        wake: Box::new(wake),
        stop: CancellationToken::new(),
    };
    let bridge = Bridge { inner: Arc::new(inner) };
    (MainEnd { bridge: bridge.clone(), log: log_out }, bridge)
}

impl<F: Clone + Send + Sync + 'static> Bridge<F> {
    /// What main sampled last, however old.
    pub fn facts(&self) -> Stamped<F> {
        self.inner.facts.borrow().clone()
    }

    /// How long ago main took its last sample.
    pub fn facts_age(&self) -> Duration {
        self.inner.facts.borrow().at.elapsed()
    }

    /// Facts no older than `max_age`: asks main for a sample when they are, and waits for it up to `patience`.
    /// When main does not answer in time, the old facts are returned; their age tells.
    pub async fn fresh_facts(&self, max_age: Duration, patience: Duration) -> Stamped<F> {
        if self.facts_age() > max_age {
            let asked = Instant::now();
            let mut news = self.inner.facts.subscribe();
            self.want_sample();
            let _ = tokio::time::timeout(patience, news.wait_for(|facts| facts.at >= asked)).await;
        }
        self.facts()
    }

    /// Asks main for a sample when the last one is older than `max_age`, and blocks until it is taken, at most for
    /// `patience`. For a thread that runs no tasks; it leans on no runtime, so that it ends while one is ending.
    pub fn refresh_blocking(&self, max_age: Duration, patience: Duration) {
        let asked = Instant::now();
        let mut sampled = self.inner.sampled.lock();
        if sampled.elapsed() <= max_age {
            return;
        }
        self.want_sample();
        let too_old = |at: &mut Instant| *at < asked;
        self.inner.sampled_news.wait_while_until(&mut sampled, too_old, asked + patience);
    }

    /// Asks main for a sample soon; does not wait.
    pub fn want_sample(&self) {
        if !self.inner.sample_wanted.swap(true, Ordering::AcqRel) {
            (self.inner.wake)();
        }
    }

    /// The settings as of the last reload.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.inner.settings.borrow())
    }

    /// Wakes its holder at each reload.
    pub fn settings_watch(&self) -> watch::Receiver<Arc<Settings>> {
        self.inner.settings.subscribe()
    }

    /// Queues a line for the server log. Never blocks: a full queue drops the line and counts it.
    pub fn log(&self, level: Level, text: impl Into<String>) {
        let mut text = text.into();
        if text.len() > LOG_LINE_MAX {
            text.truncate(text.floor_char_boundary(LOG_LINE_MAX));
        }
        match self.inner.log.try_send(LogLine { level, text }) {
            Ok(()) => (self.inner.wake)(),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.inner.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reports that a service has ended that should not have: main ends the worker, and the postmaster starts
    /// it again. Only the first reason is kept.
    pub fn fail(&self, reason: impl Into<String>) {
        self.inner.failure.lock().get_or_insert_with(|| reason.into());
        self.inner.stop.cancel();
        (self.inner.wake)();
    }

    /// Cancelled when the worker ends; every task watches it.
    pub fn stop(&self) -> CancellationToken {
        self.inner.stop.clone()
    }
}

impl<F: Clone + Send + Sync + 'static> MainEnd<F> {
    /// Gives the threads a new sample; `at` is a time from before it was taken.
    pub fn publish(&self, facts: F, at: Instant) {
        self.bridge.inner.facts.send_replace(Stamped { at, value: facts });
        *self.bridge.inner.sampled.lock() = at;
        self.bridge.inner.sampled_news.notify_all();
    }

    /// Whether a thread asked for a sample since the last call. The asking is taken.
    pub fn sample_wanted(&self) -> bool {
        self.bridge.inner.sample_wanted.swap(false, Ordering::AcqRel)
    }

    /// Gives the threads new settings.
    pub fn reload(&self, settings: Settings) {
        self.bridge.inner.settings.send_replace(Arc::new(settings));
    }

    /// The next waiting log line, at most [`LOG_QUEUE`] of them a call to `drain`.
    pub fn drain_log(&self, mut write: impl FnMut(LogLine)) {
        for line in self.log.try_iter().take(LOG_QUEUE) {
            write(line);
        }
    }

    /// Why the worker has to end, if a service failed.
    pub fn failure(&self) -> Option<String> {
        self.bridge.inner.failure.lock().clone()
    }

    /// Tells every task to end.
    pub fn stop(&self) {
        self.bridge.inner.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn make(wakes: &'static AtomicUsize, dropped: &'static AtomicU64) -> (MainEnd<u32>, Bridge<u32>) {
        bridge(0, Settings::default(), dropped, move || {
            wakes.fetch_add(1, Ordering::SeqCst);
        })
    }

    #[test]
    fn a_full_log_queue_drops_and_counts() {
        static WAKES: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        let (main, threads) = make(&WAKES, &DROPPED);
        for i in 0..LOG_QUEUE + 10 {
            threads.log(Level::Log, format!("line {i}"));
        }
        assert_eq!(DROPPED.load(Ordering::Relaxed), 10);
        let mut lines = Vec::new();
        main.drain_log(|line| lines.push(line.text));
        assert_eq!(lines.len(), LOG_QUEUE);
        assert_eq!(lines[0], "line 0");
        threads.log(Level::Warning, "after");
        main.drain_log(|line| lines.push(line.text));
        assert_eq!(lines.last().map(String::as_str), Some("after"));
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        static WAKES: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        let (main, threads) = make(&WAKES, &DROPPED);
        threads.log(Level::Log, "é".repeat(LOG_LINE_MAX));
        main.drain_log(|line| assert_eq!(line.text.len(), LOG_LINE_MAX));
        threads.log(Level::Log, format!("x{}", "é".repeat(LOG_LINE_MAX)));
        main.drain_log(|line| assert_eq!(line.text.len(), LOG_LINE_MAX - 1));
    }

    #[tokio::test]
    async fn fresh_facts_wait_for_main_but_not_for_ever() {
        static WAKES: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        let (main, threads) = make(&WAKES, &DROPPED);
        let stuck = threads.fresh_facts(Duration::ZERO, Duration::from_millis(20)).await;
        assert_eq!(stuck.value, 0, "main is stuck: old facts");
        assert!(main.sample_wanted() && !main.sample_wanted());
        let asking = tokio::spawn({
            let threads = threads.clone();
            async move { threads.fresh_facts(Duration::ZERO, Duration::from_secs(5)).await.value }
        });
        while !main.sample_wanted() {
            tokio::task::yield_now().await;
        }
        main.publish(7, Instant::now());
        assert_eq!(asking.await.unwrap(), 7);
    }

    #[test]
    fn a_thread_without_a_runtime_waits_too_but_not_for_ever() {
        static WAKES: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        let (main, threads) = make(&WAKES, &DROPPED);
        threads.refresh_blocking(Duration::ZERO, Duration::from_millis(20));
        assert!(main.sample_wanted(), "main is stuck, and was asked");
        let asking = std::thread::spawn(move || {
            threads.refresh_blocking(Duration::ZERO, Duration::from_secs(60));
            threads.facts().value
        });
        while !main.sample_wanted() {
            std::thread::yield_now();
        }
        main.publish(7, Instant::now());
        assert_eq!(asking.join().unwrap(), 7);
    }

    #[test]
    fn a_failure_stops_the_tasks_and_keeps_the_first_reason() {
        static WAKES: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        let (main, threads) = make(&WAKES, &DROPPED);
        assert_eq!(main.failure(), None);
        threads.fail("first");
        threads.fail("second");
        assert_eq!(main.failure().as_deref(), Some("first"));
        assert!(threads.stop().is_cancelled());
        assert!(WAKES.load(Ordering::SeqCst) > 0);
    }
}
