//! The relays' workers as the pooler's main thread starts them and asks after them.

use super::source_of;
use crate::bridge::{Level, LogLine};
use crate::postgres::worker::log;
use pgrx::bgworkers::{
    BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime, DynamicBackgroundWorker,
};
use pgrx::prelude::*;
use std::collections::HashMap;

const FUNCTION: &str = "postern_relay_main";

/// The workers that the front's main thread has started.
#[derive(Default)]
pub(in crate::postgres) struct Relays(HashMap<u32, (u32, DynamicBackgroundWorker)>);

impl Relays {
    /// Starts the worker of a source; false when there is no place for one.
    pub fn start(&mut self, number: u32, turn: u32) -> bool {
        let Some(source) = source_of(number) else { return false };
        let name = format!("postern relay {}", source.database_name.text());
        // SAFETY: a word of this process.
        let pid = unsafe { pg_sys::MyProcPid };
        let worker = BackgroundWorkerBuilder::new(&name)
            .set_type("postern relay")
            .set_library("postern")
            .set_function(FUNCTION)
            .set_argument(Some(pg_sys::Datum::from(u64::from(turn) << 32 | u64::from(number))))
            .set_restart_time(None)
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_notify_pid(pid)
            .enable_spi_access()
            .load_dynamic();
        match worker {
            Ok(worker) => {
                self.0.insert(number, (turn, worker));
                true
            }
            Err(_) => {
                log(LogLine {
                    level: Level::Warning,
                    text: format!("no background worker for \"{name}\": raise max_worker_processes"),
                });
                false
            }
        }
    }

    /// Whether that worker of a source has not ended.
    pub fn lives(&self, number: u32, turn: u32) -> bool {
        let worker = self.0.get(&number).filter(|(its, _)| *its == turn);
        let status = worker.map(|(_, worker)| worker.pid());
        matches!(status, Some(Ok(_) | Err(BackgroundWorkerStatus::NotYetStarted)))
    }
}
