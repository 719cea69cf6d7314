//! The launcher: starts a scout for each database whose definitions may have changed, and a worker for each source that is to run; and
//! again when one has ended. Its main thread, which has no other. It starts when the server takes writes: on a standby streams wait.

use super::super::dynamic::Started;
use super::super::worker::{heed_signals, log};
use super::super::{shim, shmem};
use super::{decoding, scout, worker};
use crate::bridge::{Level, LogLine};
use crate::stream::clock::now;
use crate::stream::shared::{Shared, Source, SourceState};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

pub(in crate::postgres) const NAME: &str = "postern launcher";
pub(in crate::postgres) const FUNCTION: &str = "postern_launcher_main";

/// How often workers are looked after, when nothing wakes the launcher.
const TICK: std::ffi::c_long = 1_000;

/// How often databases with sources are looked at without being asked: an extension may have been dropped,
/// or too much WAL be kept for a source that does not run.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Between two questions to scouts after what one of them has not settled.
const ASK_AGAIN: Duration = Duration::from_secs(1);

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_launcher_main(_argument: pg_sys::Datum) {
    let code = match shmem::streams() {
        Some(shared) => run(shared),
        None => 1,
    };
    if let Some(shared) = shmem::streams() {
        shared.header.launcher.store(0, Release);
    }
    // SAFETY: the end of a process, with no Rust value alive in this frame.
    unsafe { super::super::versions::proc_exit(code) }
}

struct Launcher {
    shared: Shared,
    /// Databases to be looked at.
    queue: VecDeque<u32>,
    scout: Option<(u32, Started)>,
    /// By the number of the source: which worker it is.
    workers: HashMap<usize, (u32, Started)>,
    looked: Instant,
    /// When scouts were asked to settle something.
    asked: Option<Instant>,
    /// It was said that there is no place for a worker.
    said: bool,
}

fn run(shared: Shared) -> i32 {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    // SAFETY: in a new worker: shared catalogs only.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null_mut(), std::ptr::null_mut(), 0);
        shared.header.proc.store(shim::postern_proc_number(), Release);
        shared.header.launcher.store(pg_sys::MyProcPid, Release);
    }
    shared.header.scan_all.store(1, Release);
    let mut launcher = Launcher {
        shared,
        queue: VecDeque::new(),
        scout: None,
        workers: HashMap::new(),
        looked: Instant::now(),
        asked: None,
        said: false,
    };
    loop {
        launcher.scouts();
        launcher.sources();
        if BackgroundWorker::sigterm_received() {
            return 1;
        }
        worker::wait(TICK);
        heed_signals();
    }
}

impl Launcher {
    /// Databases are looked at one after the other.
    fn scouts(&mut self) {
        let header = self.shared.header;
        if header.scan_all.swap(0, AcqRel) == 1 {
            self.look_at_all();
        }
        if self.looked.elapsed() >= LOOK_AGAIN {
            self.looked = Instant::now();
            let databases: Vec<_> =
                self.shared.sources_in_use().map(|(_, source)| source.database.load(Relaxed)).collect();
            databases.into_iter().for_each(|database| self.look_at(database));
            if header.is_refusing() {
                // There may be a place by now, for one in whatever database.
                self.look_at_all();
            }
        }
        while let Some(database) = header.next_scan() {
            self.look_at(database);
        }
        if let Some((_, scout)) = &self.scout
            && scout.lives()
        {
            return;
        }
        if let Some((database, _)) = self.scout.take() {
            // What has no database any more has no scout that could say so.
            self.forget_database(database);
        }
        let Some(database) = self.queue.pop_front() else { return };
        if !Self::databases().contains(&database) {
            header.no_scout_slot.store(0, Relaxed);
            return self.forget(database);
        }
        if is_locked(database) {
            return self.queue.push_back(database);
        }
        let worker = Started::new("postern scout", "postern scout", scout::FUNCTION, (database, 0));
        match worker {
            Some(worker) => {
                header.no_scout_slot.store(0, Relaxed);
                self.scout = Some((database, worker));
            }
            None => {
                header.no_scout_slot.store(1, Relaxed);
                self.queue.push_front(database);
                self.say_no_place("a scout");
            }
        }
    }

    fn look_at(&mut self, database: u32) {
        if !self.queue.contains(&database) {
            self.queue.push_back(database);
        }
    }

    fn databases() -> Vec<u32> {
        BackgroundWorker::transaction(|| decoding::databases().into_iter().map(|(oid, _)| oid).collect())
    }

    fn look_at_all(&mut self) {
        let databases = Self::databases();
        for (_, source) in self.shared.sources_in_use() {
            if !databases.contains(&source.database.load(Relaxed)) {
                gone(source);
            }
        }
        databases.into_iter().for_each(|database| self.look_at(database));
    }

    fn forget_database(&mut self, database: u32) {
        let has = self.shared.sources_in_use().any(|(_, source)| source.database.load(Relaxed) == database);
        if has && !Self::databases().contains(&database) {
            self.forget(database);
        }
    }

    /// It is no more.
    fn forget(&self, database: u32) {
        let its = |source: &Source| source.database.load(Relaxed) == database;
        let mut name = None;
        for (_, source) in self.shared.sources_in_use().filter(|(_, source)| its(source)) {
            name = Some(source.database_name.text());
            gone(source);
        }
        if let Some(name) = name {
            let text = format!("database \"{name}\" is no more, and its change streams with it");
            log(LogLine { level: Level::Log, text });
        }
    }

    fn sources(&mut self) {
        let now = now();
        // The end of a scout wakes us: without a pause there would be one after the other.
        let may_ask = self.asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN);
        for (number, source) in self.shared.sources_in_use() {
            let turn = source.turn.load(Acquire);
            let known = self.workers.get(&number).filter(|(its, _)| *its == turn);
            // A launcher before us may have started it.
            let runs = known.is_some_and(|(_, worker)| worker.lives()) || source.pid.load(Acquire) != 0;
            if runs {
                continue;
            }
            match source.state() {
                SourceState::Waiting if source.retry_at.load(Relaxed) <= now => self.start(number, source),
                // Its worker has ended without saying why: the server has restarted, or it was killed.
                SourceState::Starting | SourceState::Snapshot | SourceState::Streaming => {
                    retry_later(source);
                    source.set_state(SourceState::Failed);
                }
                SourceState::Failed if source.retry_at.load(Relaxed) <= now => self.start(number, source),
                _ if source.rests_for_what_was() => self.ask(may_ask, source.database.load(Relaxed)),
                SourceState::Dropped => {
                    let database = source.database.load(Relaxed);
                    if database == 0 {
                        free(self.shared, number, source);
                    } else {
                        // The scout drops the slot.
                        self.ask(may_ask, database);
                    }
                }
                _ => {}
            }
        }
    }

    fn ask(&mut self, may_ask: bool, database: u32) {
        if may_ask {
            self.asked = Some(Instant::now());
            self.shared.header.ask_for_scan(database);
        }
    }

    fn start(&mut self, number: usize, source: &'static Source) {
        let database = source.database.load(Relaxed);
        if is_locked(database) {
            return;
        }
        // A worker that connects to what is no more ends with a FATAL, and again at each retry.
        if !Self::databases().contains(&database) {
            return self.forget(database);
        }
        let turn = source.turn.load(Relaxed).wrapping_add(1);
        source.turn.store(turn, Release);
        source.stop.store(0, Release);
        let name = format!("postern stream {}", source.name.text());
        let argument = (u32::try_from(number).unwrap_or(u32::MAX), turn);
        match Started::new(&name, "postern stream", worker::FUNCTION, argument) {
            Some(worker) => {
                source.set_state(SourceState::Starting);
                self.workers.insert(number, (turn, worker));
                self.said = false;
            }
            None => {
                source.retry_at.store(now() + 5_000_000, Relaxed);
                source.set_state(SourceState::Waiting);
                source.error.say("no background worker is free: raise max_worker_processes");
                self.say_no_place(&format!("\"{name}\""));
            }
        }
    }

    fn say_no_place(&mut self, whom: &str) {
        if !std::mem::replace(&mut self.said, true) {
            let text = format!("no background worker for {whom}: raise max_worker_processes");
            log(LogLine { level: Level::Warning, text });
        }
    }
}

/// Somebody is dropping or copying it: who connects now would wait, and then die of it.
fn is_locked(database: u32) -> bool {
    BackgroundWorker::transaction(|| decoding::is_locked(database))
}

/// Its database is gone, and its slot with it.
fn gone(source: &Source) {
    source.database.store(0, Relaxed);
    source.stop.store(1, Release);
    source.set_state(SourceState::Dropped);
    end(source);
}

/// When its pause is over it may be started again.
pub(super) fn retry_later(source: &Source) {
    let pause = i64::from(source.retry_interval.load(Relaxed)) * 1000;
    source.retry_at.store(now() + pause, Relaxed);
}

/// Its place is free.
pub(super) fn free(shared: Shared, number: usize, source: &Source) {
    shared.streams_of(number).for_each(|stream| stream.free());
    source.set_state(SourceState::Free);
}

/// Ends a source's worker, also while the server waits for something in it: transactions, before a slot begins.
pub(super) fn end(source: &Source) {
    let pid = source.pid.load(Acquire);
    if pid != 0 {
        // SAFETY: a child of the postmaster's that has told its number.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}
