//! What happens when the server loads the library: settings, shared memory, the worker's registration. Runs in the
//! postmaster, so there is no thread, no runtime and no socket here.

use super::stream::launcher;
use super::{agent, front, guc, shmem, worker};
use pgrx::bgworkers::BgWorkerStartTime;
use pgrx::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// How long after its end the worker is started again: load balancers depend on it.
const RESTART_TIME: Duration = Duration::from_secs(1);

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: a plain flag of the server, set before any library is loaded.
    if !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        // Loaded by CREATE EXTENSION or LOAD without being preloaded: the functions say what to do.
        return;
    }
    guc::define();
    // SAFETY: plain flags of the server, set before any library is loaded. While pg_upgrade runs the server, nobody may be let in or told
    // that it is the primary; in single-user mode there is nobody.
    if unsafe { pg_sys::IsBinaryUpgrade || !pg_sys::IsPostmasterEnvironment } {
        return;
    }
    shmem::reserve();
    agent::install();
    let status =
        register(worker::NAME, worker::FUNCTION, BgWorkerStartTime::PostmasterStart, "no status answers");
    shmem::NO_STATUS_PLACE.store(!status, Relaxed);
    let pooler = register(front::NAME, front::FUNCTION, BgWorkerStartTime::ConsistentState, "no pooler");
    shmem::NO_POOLER_PLACE.store(!pooler, Relaxed);
    let launcher = register(
        launcher::NAME,
        launcher::FUNCTION,
        BgWorkerStartTime::RecoveryFinished,
        "no change streams",
    );
    shmem::NO_LAUNCHER_PLACE.store(!launcher, Relaxed);
}

/// Registers a worker; whether there is a place for it. Where `max_worker_processes` leaves no place for it the
/// server only logs a line that does not say whose worker it was, so we say it.
fn register(name: &str, function: &str, start: BgWorkerStartTime, without: &str) -> bool {
    use pgrx::bgworkers::BackgroundWorkerBuilder;
    let watch = RefusalWatch::start();
    let worker = BackgroundWorkerBuilder::new(name)
        .set_type(name)
        .set_library("postern")
        .set_function(function)
        .set_restart_time(Some(RESTART_TIME));
    // One that starts with the postmaster cannot have catalogs.
    let worker = match start {
        BgWorkerStartTime::PostmasterStart => worker.enable_shmem_access(None),
        _ => worker.enable_spi_access(),
    };
    worker.set_start_time(start).load();
    let refused = watch.refused();
    if refused {
        // SAFETY: an int setting, read in the postmaster.
        let places = unsafe { pg_sys::max_worker_processes };
        ereport!(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("background worker \"{name}\" has no place, so Postern gives {without}"),
            format!("max_worker_processes is {places}; raise it by at least one and restart the server.")
        );
    }
    !refused
}

/// RegisterBackgroundWorker() returns nothing. That it refused can be seen by the line that it logs.
struct RefusalWatch {
    previous: pg_sys::emit_log_hook_type,
}

static REFUSED: AtomicBool = AtomicBool::new(false);

impl RefusalWatch {
    fn start() -> Self {
        REFUSED.store(false, Relaxed);
        // SAFETY: the postmaster has one thread, and the hook is put back before anything else can set it.
        unsafe {
            let previous = pg_sys::emit_log_hook;
            pg_sys::emit_log_hook = Some(see_log_line);
            Self { previous }
        }
    }

    fn refused(self) -> bool {
        // SAFETY: as above.
        unsafe { pg_sys::emit_log_hook = self.previous };
        REFUSED.load(Relaxed)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn see_log_line(line: *mut pg_sys::ErrorData) {
    // SAFETY: the server passes a valid line for the time of the call.
    let code = unsafe { (*line).sqlerrcode };
    if code == PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED as i32 {
        REFUSED.store(true, Relaxed);
    }
}
