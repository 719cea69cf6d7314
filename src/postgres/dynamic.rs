//! Workers that a worker starts while the server runs, and asks after. The launcher's and the front's main threads.

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::prelude::*;
use std::ptr::{NonNull, null_mut};

/// A worker that was started by this process.
pub(super) struct Started(NonNull<pg_sys::BackgroundWorkerHandle>);

impl Started {
    /// Starts a function of this library, which gets a number and a turn of it, in a worker that the postmaster does not start again.
    /// `kind` is what `pg_stat_activity` has as its type. None when there is no place for a worker.
    pub fn new(name: &str, kind: &str, function: &str, (number, turn): (u32, u32)) -> Option<Self> {
        // SAFETY: a word of this process.
        let pid = unsafe { pg_sys::MyProcPid };
        let worker = BackgroundWorkerBuilder::new(name)
            .set_type(kind)
            .set_library("postern")
            .set_function(function)
            .set_argument(Some(pg_sys::Datum::from(u64::from(turn) << 32 | u64::from(number))))
            .set_restart_time(None)
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_notify_pid(pid)
            .enable_spi_access();
        let mut handle = null_mut();
        // SAFETY: a worker's description, which is copied. The handle stands where memory lives as long as the process, until it is dropped.
        let registered = unsafe {
            let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut (&worker).into(), &raw mut handle);
            pg_sys::MemoryContextSwitchTo(before);
            registered
        };
        NonNull::new(handle).filter(|_| registered).map(Self)
    }

    /// Whether it has not ended.
    pub fn lives(&self) -> bool {
        use pg_sys::BgwHandleStatus::{BGWH_NOT_YET_STARTED, BGWH_STARTED};
        let mut pid = 0;
        // SAFETY: a handle of the server's, and a word of ours.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0.as_ptr(), &raw mut pid) };
        matches!(status, BGWH_STARTED | BGWH_NOT_YET_STARTED)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // SAFETY: the server has allocated it, and nobody else has it. pgrx's own kind of handle is never freed.
        unsafe { pg_sys::pfree(self.0.as_ptr().cast()) }
    }
}

/// The number and the turn that a worker was started with.
pub(super) fn argument(argument: pg_sys::Datum) -> (u32, u32) {
    let argument = argument.value() as u64;
    (argument as u32, (argument >> 32) as u32)
}
