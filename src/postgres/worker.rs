//! The status worker: its main thread, and nothing but it. Main waits on its latch, and when woken looks at signals,
//! reloads, takes a sample, writes the threads' log lines; it never waits for a thread while it runs.
//!
//! Exit code 1 makes the postmaster start it again after a second; 0, which means never again, is used only when the
//! server is stopping.

use super::asker::Asker;
use super::sample::Sampler;
use super::{guc, pool_metrics, relay_metrics, shmem, signals, stream_metrics};
use crate::bridge::{Level, LogLine, MainEnd, bridge};
use crate::status::facts::{Facts, ServerState};
use crate::status::metrics::MoreMetrics;
use crate::status::shared::Shared;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const NAME: &str = "postern status";
pub(super) const FUNCTION: &str = "postern_status_main";

/// Main samples at least this often while there is something to answer. One wake-up a second is all that an idle
/// worker costs.
const TICK: Duration = Duration::from_secs(1);

/// While a stop is under way and clients are still connected, main looks whether they have gone.
const STOP_TICK: Duration = Duration::from_millis(50);

/// The longest that a terminated worker goes on answering during a stop. The postmaster waits for the same clients.
const STOP_ANSWERS: Duration = Duration::from_secs(60);

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_status_main(_arg: pg_sys::Datum) {
    let code = match shmem::shared() {
        Some(shared) => run(shared),
        None => 1,
    };
    // SAFETY: the end of a process; every thread has ended, and no Rust value is alive in this frame.
    unsafe { super::versions::proc_exit(code) }
}

/// Returns the exit code. Whatever ends it, an error of PostgreSQL included, drops the threads first.
fn run(shared: &'static Shared) -> i32 {
    // SAFETY: set for every process of the server.
    let (latch, pid) = unsafe { (pg_sys::MyLatch, pg_sys::MyProcPid) };
    signals::block_all();
    shared.worker.started(pid);
    let _ended = EndedMark(shared);
    shared.listeners.close_all();

    let settings = match guc::settings() {
        Ok(settings) => settings,
        Err(error) => {
            log(LogLine {
                level: Level::Warning,
                text: format!("could not read Postern's settings: {error}"),
            });
            return 1;
        }
    };
    let idle = settings.listens_nowhere();
    let mut main = Main { shared, sampler: Sampler::new(shared.streaming()), idle, stop_seen: None };
    let facts = main.sample();
    let wake = Latch(latch);
    let (end, threads_end) = bridge(facts, settings, &shared.log_dropped, move || wake.set());
    let pages = stream_metrics::pages(shmem::streams(), shared);
    let asker = Box::new(Asker::default());
    let threads = match crate::status::start(&threads_end, shared, asker, others(shared), pages) {
        Ok(threads) => threads,
        Err(error) => {
            log(LogLine { level: Level::Warning, text: format!("could not start network threads: {error}") });
            return 1;
        }
    };
    // Sets the handlers and gives main the server's own mask back; the threads keep all signals blocked.
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);

    let code = main.serve(&end);
    end.stop();
    drop(threads);
    end.drain_log(log);
    code
}

/// What the page of metrics has of the other services.
fn others(shared: &'static Shared) -> MoreMetrics {
    let (pooler, relay, streams) = (shmem::pooler(), shmem::relay(), shmem::streams());
    Arc::new(move || {
        let mut families = pooler.as_ref().map_or_else(Vec::new, pool_metrics::families);
        families.extend(relay.into_iter().flat_map(relay_metrics::families));
        families.extend(streams.into_iter().flat_map(|streams| stream_metrics::families(streams, shared)));
        families
    })
}

struct Main {
    shared: &'static Shared,
    sampler: Sampler,
    /// No listener is wanted: there is nothing to sample for.
    idle: bool,
    /// When SIGTERM came while the server was stopping.
    stop_seen: Option<Instant>,
}

impl Main {
    fn serve(&mut self, end: &MainEnd<Facts>) -> i32 {
        // A reload that came before the handlers were set is not lost.
        self.reload(end);
        let mut sampled = Instant::now();
        let mut terminated = false;
        loop {
            let postmaster_died = self.wait();
            if postmaster_died {
                return 1;
            }
            check_for_interrupts!();
            if BackgroundWorker::sighup_received() {
                self.reload(end);
            }
            end.drain_log(log);
            if let Some(reason) = end.failure() {
                log(LogLine {
                    level: Level::Warning,
                    text: format!("status worker ends to be started again: {reason}"),
                });
                return 1;
            }
            terminated |= BackgroundWorker::sigterm_received();
            if terminated || end.sample_wanted() || (!self.idle && sampled.elapsed() >= self.tick()) {
                // Stamped with the time before it: who asks meanwhile wants a later one.
                sampled = Instant::now();
                let facts = self.sample();
                let verdict = terminated.then(|| self.may_end(&facts)).flatten();
                end.publish(facts, sampled);
                if let Some(code) = verdict {
                    return code;
                }
            }
        }
    }

    /// After SIGTERM: the exit code, or `None` to go on answering that the server is stopping for as long as it
    /// still has clients.
    fn may_end(&mut self, facts: &Facts) -> Option<i32> {
        if facts.server != ServerState::Stopping {
            return Some(1);
        }
        let since = *self.stop_seen.get_or_insert_with(Instant::now);
        match facts.clients {
            0 => Some(0),
            // In a smart stop that goes on for longer the postmaster starts another worker.
            _ => (since.elapsed() >= STOP_ANSWERS).then_some(1),
        }
    }

    fn tick(&self) -> Duration {
        if self.stop_seen.is_some() { STOP_TICK } else { TICK }
    }

    /// Sleeps until something is to be done; whether the postmaster has died.
    fn wait(&self) -> bool {
        let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_POSTMASTER_DEATH;
        if !self.idle || self.stop_seen.is_some() {
            events |= pg_sys::WL_TIMEOUT;
        }
        let millis = self.tick().as_millis() as std::ffi::c_long;
        // SAFETY: our own latch, on the thread that owns it.
        let happened = unsafe {
            let happened =
                pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, millis, pg_sys::PG_WAIT_EXTENSION);
            pg_sys::ResetLatch(pg_sys::MyLatch);
            happened
        };
        happened & pg_sys::WL_POSTMASTER_DEATH as i32 != 0
    }

    fn reload(&mut self, end: &MainEnd<Facts>) {
        // SAFETY: on main, outside a transaction, as every worker does.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        match guc::settings() {
            Ok(settings) => {
                self.idle = settings.listens_nowhere();
                end.reload(settings);
            }
            Err(error) => {
                log(LogLine {
                    level: Level::Warning,
                    text: format!("Postern keeps its old settings: {error}"),
                });
            }
        }
    }

    fn sample(&mut self) -> Facts {
        let facts = self.sampler.sample();
        self.shared.publish(&facts);
        facts
    }
}

/// Marks the worker as not running, also when an error unwinds.
struct EndedMark(&'static Shared);

impl Drop for EndedMark {
    fn drop(&mut self) {
        self.0.worker.ended();
    }
}

/// `pg_cancel_backend()` between two queries is nobody's, as with an idle session.
pub(super) fn cancels_nothing() {
    // SAFETY: a word of this process, which its signal handler sets.
    unsafe { (&raw mut pg_sys::QueryCancelPending).write_volatile(0) }
}

/// What a worker's main does between two steps: interrupts, and a reload. For those that answer no question of anybody's and so have
/// nothing to be cancelled.
pub(super) fn heed_signals() {
    cancels_nothing();
    check_for_interrupts!();
    if BackgroundWorker::sighup_received() {
        // SAFETY: on main; in a transaction too, as the server's own WAL sender does amid its decoding.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
}

pub(super) fn log(line: LogLine) {
    let text = format!("postern: {}", line.text);
    match line.level {
        Level::Log => log!("{text}"),
        Level::Warning => warning!("{text}"),
    }
}

unsafe extern "C" {
    /// The server's own, without pgrx's guard: that one refuses any thread but main. It touches only the latch and
    /// sends a signal; it neither allocates nor raises errors (src/backend/storage/ipc/latch.c).
    #[link_name = "SetLatch"]
    fn raw_set_latch(latch: *mut pg_sys::Latch);
}

/// Main's latch as threads hold it.
#[derive(Clone, Copy)]
pub(super) struct Latch(pub *mut pg_sys::Latch);

// SAFETY: the latch is in shared memory and outlives the threads; setting it from any thread is its purpose.
unsafe impl Send for Latch {}
// SAFETY: as above.
unsafe impl Sync for Latch {}

impl Latch {
    pub fn set(&self) {
        // SAFETY: see `raw_set_latch` and above.
        unsafe { raw_set_latch(self.0) }
    }
}
