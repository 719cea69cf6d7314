//! What everybody may know of a background worker, as words in shared memory. Its main thread writes.

use super::now;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering::*};

/// One background worker.
#[repr(C)]
#[derive(Default)]
pub struct WorkerWords {
    /// 0 while it does not run.
    pub pid: AtomicI32,
    /// How often it was started since the server's (re)start.
    pub starts: AtomicU64,
    /// Microseconds since 1970.
    started_at: AtomicI64,
}

impl WorkerWords {
    pub fn started(&self, pid: i32) {
        self.started_at.store(now(), Relaxed);
        self.starts.fetch_add(1, Relaxed);
        self.pid.store(pid, Release);
    }

    pub fn ended(&self) {
        self.pid.store(0, Release);
    }

    /// Microseconds since 1970; `None` before the first start.
    pub fn started_at(&self) -> Option<i64> {
        Some(self.started_at.load(Relaxed)).filter(|at| *at > 0)
    }
}
