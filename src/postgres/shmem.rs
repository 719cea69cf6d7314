//! Mapping [`Shared`] into the server's shared memory. The postmaster makes it; every process inherits the pointer.

use crate::status::shared::Shared;
use pgrx::prelude::*;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::*};

/// Set in the postmaster before there is shared memory; copied into each newly made one.
pub(super) static NO_WORKER_SLOT: AtomicBool = AtomicBool::new(false);

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(null_mut());

/// The shared words; `None` when the library is not in `shared_preload_libraries`.
pub(super) fn shared() -> Option<&'static Shared> {
    // SAFETY: null, or what `make` has put there: initialized, aligned, and mapped for as long as the process
    // lives. All its fields are atomics.
    unsafe { SHARED.load(Acquire).as_ref() }
}

/// Asks for the memory and arranges for it to be made. Postmaster, while libraries are preloaded.
pub(super) fn reserve() {
    // SAFETY: hook chains may be changed here, and the postmaster has one thread.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(make);
    }
}

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called once by the postmaster; the previous hook is one of the server's kind.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
    }
}

/// Called at start, and again after a crash of a backend, with new and empty memory.
#[pg_guard]
unsafe extern "C-unwind" fn make() {
    // SAFETY: called by the postmaster alone (every supported platform forks), so no lock is needed; the memory is
    // aligned to a cache line and of the asked size. It is written before the pointer is published.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let mut found = false;
        let place = pg_sys::ShmemInitStruct(c"postern status".as_ptr(), size_of::<Shared>(), &mut found)
            .cast::<Shared>();
        if !found {
            place.write(Shared::default());
            (*place).no_worker_slot.store(u32::from(NO_WORKER_SLOT.load(Relaxed)), Relaxed);
        }
        SHARED.store(place, Release);
    }
}
