//! A named thread with a single-threaded tokio runtime, its end within a bounded time, and tasks whose panic is not lost.
//!
//! Main starts these after it has blocked every signal, so no handler of PostgreSQL ever runs on one. An
//! implicit drop of a runtime waits for its blocking tasks for ever; here the runtime is always dropped
//! through `shutdown_timeout`, also when its work panics.

use crate::bridge::Bridge;
use std::future::Future;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};

/// How long a runtime's blocking tasks may take to end.
const RUNTIME_END: Duration = Duration::from_millis(500);

/// Blocking tasks at once: a look-up for each of the 8 names of a list, and asking the primary.
const BLOCKING_THREADS: usize = 9;

/// The running threads of a worker. Dropping it waits for them, up to [`Threads::END`] in all.
pub struct Threads {
    /// One a thread; disconnected when the thread has ended.
    ended: Vec<Receiver<()>>,
    stop: tokio_util::sync::CancellationToken,
}

impl Threads {
    /// The most that dropping takes.
    pub const END: Duration = Duration::from_secs(2);

    pub fn new<F: Clone + Send + Sync + 'static>(bridge: &Bridge<F>) -> Self {
        Self { ended: Vec::new(), stop: bridge.stop() }
    }

    /// Starts a thread called `name` (at most 15 bytes are shown by the system) that runs `work`.
    /// When `work` ends without having been told to, or panics, the whole worker is ended. By the handle, other threads give
    /// it tasks.
    ///
    /// # Errors
    /// When the system gives no thread or no epoll instance.
    pub fn spawn<F, W>(
        &mut self,
        name: impl Into<String>,
        bridge: &Bridge<F>,
        work: impl FnOnce() -> W + Send + 'static,
    ) -> std::io::Result<Handle>
    where
        F: Clone + Send + Sync + 'static,
        W: Future<Output = ()>,
    {
        let runtime =
            Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
        let (alive, ended) = channel::<()>();
        let name = name.into();
        let handle = runtime.handle().clone();
        let guard = EndGuard { name: name.clone(), bridge: bridge.clone() };
        std::thread::Builder::new().name(name).spawn(move || {
            let _alive = alive;
            let _guard = guard;
            let runtime = Bounded(Some(runtime));
            runtime.block_on(work());
        })?;
        self.ended.push(ended);
        Ok(handle)
    }
}

/// A task whose panic ends the worker, as that of a thread does: tokio by itself would only end the task.
pub async fn watched<F, W>(bridge: Bridge<F>, work: W) -> W::Output
where
    F: Clone + Send + Sync + 'static,
    W: Future,
{
    let _guard = TaskGuard(bridge);
    work.await
}

/// Dropped while unwinding, when its task panics.
struct TaskGuard<F: Clone + Send + Sync + 'static>(Bridge<F>);

impl<F: Clone + Send + Sync + 'static> Drop for TaskGuard<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            self.0.fail(format!("a task of thread \"{}\" panicked", thread.name().unwrap_or_default()));
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.cancel();
        let deadline = Instant::now() + Self::END;
        for ended in &self.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(left) {
                // The process is about to end; what the thread waits for (a name server) ends with it.
                return;
            }
        }
    }
}

/// A runtime that is never dropped without a time limit.
struct Bounded(Option<Runtime>);

impl Bounded {
    fn block_on(&self, work: impl Future<Output = ()>) {
        if let Some(runtime) = &self.0 {
            runtime.block_on(work);
        }
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(RUNTIME_END);
        }
    }
}

/// Reports a thread that ended by itself; a panic passes here too, while unwinding.
struct EndGuard<F: Clone + Send + Sync + 'static> {
    name: String,
    bridge: Bridge<F>,
}

impl<F: Clone + Send + Sync + 'static> Drop for EndGuard<F> {
    fn drop(&mut self) {
        if !self.bridge.stop().is_cancelled() {
            let how = if std::thread::panicking() { "panicked" } else { "ended" };
            self.bridge.fail(format!("thread \"{}\" {how}", self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::bridge;
    use crate::settings::Settings;
    use std::sync::atomic::AtomicU64;

    static DROPPED: AtomicU64 = AtomicU64::new(0);

    #[test]
    fn a_panic_in_a_thread_is_a_failure_of_the_worker() {
        let (main, threads) = bridge((), Settings::default(), &DROPPED, || ());
        let mut running = Threads::new(&threads);
        running.spawn("panics", &threads, || async { panic!("on purpose") }).unwrap();
        drop(running);
        let failure = main.failure();
        assert!(failure.is_none() || failure.as_deref() == Some("thread \"panics\" panicked"), "{failure:?}");
        // Dropping tells the thread to stop, which may come before its panic; a second one is waited for.
        let (main, threads) = bridge((), Settings::default(), &DROPPED, || ());
        let mut running = Threads::new(&threads);
        running.spawn("panics", &threads, || async { panic!("on purpose") }).unwrap();
        let limit = Instant::now() + Duration::from_secs(5);
        while main.failure().is_none() && Instant::now() < limit {
            std::thread::yield_now();
        }
        assert_eq!(main.failure().as_deref(), Some("thread \"panics\" panicked"));
    }

    #[test]
    fn a_panic_in_a_task_is_a_failure_of_the_worker() {
        let (main, threads) = bridge((), Settings::default(), &DROPPED, || ());
        let mut running = Threads::new(&threads);
        let stop = threads.stop();
        let handle =
            running.spawn("has tasks", &threads, move || async move { stop.cancelled().await }).unwrap();
        let limit = Instant::now() + Duration::from_secs(5);
        handle.spawn(watched(threads.clone(), async {
            tokio::task::yield_now().await;
            panic!("on purpose")
        }));
        while main.failure().is_none() && Instant::now() < limit {
            std::thread::yield_now();
        }
        assert_eq!(main.failure().as_deref(), Some("a task of thread \"has tasks\" panicked"));
    }

    #[test]
    fn a_blocking_task_cannot_hold_the_end_up() {
        let (_main, threads) = bridge((), Settings::default(), &DROPPED, || ());
        let mut running = Threads::new(&threads);
        let stop = threads.stop();
        running
            .spawn("stuck", &threads, move || async move {
                tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(60)));
                stop.cancelled().await;
            })
            .unwrap();
        let started = Instant::now();
        drop(running);
        // And not when it has ended.
        assert!(started.elapsed() < 10 * Threads::END, "{:?}", started.elapsed());
    }
}
