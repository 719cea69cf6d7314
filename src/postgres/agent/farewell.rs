//! The last words of a backend that the front ends because its client is beyond a limit: the server would say that an administrator
//! did it. Pooled backends.

use crate::pooler::limits::Limit;
use crate::pooler::shared::Server;
use pgrx::prelude::*;
use std::sync::atomic::{AtomicPtr, Ordering::*};

/// This backend's words, and the hook that was there before.
static SERVER: AtomicPtr<Server> = AtomicPtr::new(std::ptr::null_mut());
static NEXT: AtomicPtr<std::ffi::c_void> = AtomicPtr::new(std::ptr::null_mut());

type Hook = unsafe extern "C-unwind" fn(*mut pg_sys::ErrorData);

/// From here on the end of this backend is told with its reason.
pub(super) fn install(server: &'static Server) {
    SERVER.store(std::ptr::from_ref(server).cast_mut(), Release);
    // SAFETY: a hook of this process, on its only thread.
    unsafe {
        if let Some(next) = pg_sys::emit_log_hook {
            NEXT.store(next as *mut std::ffi::c_void, Release);
        }
        pg_sys::emit_log_hook = Some(see_report);
    }
}

/// A report is about to go to the log and to the client.
#[pg_guard]
unsafe extern "C-unwind" fn see_report(report: *mut pg_sys::ErrorData) {
    // SAFETY: the server gives a report; the words are shared memory, which stays.
    unsafe {
        let shutdown = PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN as i32;
        if (*report).elevel == PgLogLevel::FATAL as i32
            && (*report).sqlerrcode == shutdown
            && let Some(server) = SERVER.load(Acquire).as_ref()
            && let Some(limit) = Limit::of(server.ending.load(Acquire))
        {
            (*report).sqlerrcode = code(limit.sqlstate());
            // In the report's own memory: the server frees its parts.
            let context = (*report).assoc_context;
            (*report).message = pg_sys::MemoryContextStrdup(context, limit.message().as_ptr());
        }
        let next = NEXT.load(Acquire);
        if !next.is_null() {
            std::mem::transmute::<*mut std::ffi::c_void, Hook>(next)(report);
        }
    }
}

/// MAKE_SQLSTATE of utils/elog.h.
fn code(sqlstate: &str) -> i32 {
    let characters = sqlstate.bytes().enumerate();
    characters
        .fold(0, |code, (at, character)| code | (i32::from(character.wrapping_sub(b'0')) & 0x3f) << (6 * at))
}
