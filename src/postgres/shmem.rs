//! Mapping the shared words into the server's shared memory. The postmaster makes it; every process inherits the pointers.

use super::guc;
use crate::pooler::shared as pooler;
use crate::relay::shared as relay;
use crate::status::shared::Shared;
use crate::stream::shared as stream;
use pgrx::prelude::*;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::*};

/// Set in the postmaster before there is shared memory; copied into each newly made one.
pub(super) static NO_STATUS_PLACE: AtomicBool = AtomicBool::new(false);
pub(super) static NO_POOLER_PLACE: AtomicBool = AtomicBool::new(false);
pub(super) static NO_LAUNCHER_PLACE: AtomicBool = AtomicBool::new(false);

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(null_mut());

/// The shared words; `None` when the library is not in `shared_preload_libraries`.
pub(super) fn shared() -> Option<&'static Shared> {
    // SAFETY: null, or what `make` has put there: initialized, aligned, and mapped for as long as the process
    // lives. All its fields are atomics.
    unsafe { SHARED.load(Acquire).as_ref() }
}

static POOLER: AtomicPtr<PoolerTables> = AtomicPtr::new(null_mut());

/// The fixed part of the pooler's tables; servers and clients follow it, each as long as a setting says.
#[repr(C)]
struct PoolerTables {
    header: pooler::Header,
    pools: [pooler::Pool; pooler::POOLS],
}

/// The pooler's tables; `None` when the library is not in `shared_preload_libraries`.
pub(super) fn pooler() -> Option<pooler::Shared> {
    let tables = POOLER.load(Acquire);
    if tables.is_null() {
        return None;
    }
    // SAFETY: what `make` has mapped, as large as `pooler_size` says, zeroed by the system, which is a valid value of every
    // part; aligned, since each part's size is a multiple of its alignment and none asks for more than 8. All fields are
    // atomics.
    unsafe {
        let servers = tables.add(1).cast::<pooler::Server>();
        let slots = servers.add(server_places()).cast::<pooler::Slot>();
        Some(pooler::Shared {
            header: &(*tables).header,
            pools: &(*tables).pools,
            servers: std::slice::from_raw_parts(servers, server_places()),
            slots: std::slice::from_raw_parts(slots, guc::max_client_connections()),
        })
    }
}

fn server_places() -> usize {
    // SAFETY: an int setting that does not change while the server runs.
    usize::try_from(unsafe { pg_sys::MaxConnections }).unwrap_or(0)
}

fn pooler_size() -> usize {
    size_of::<PoolerTables>()
        + size_of::<pooler::Server>() * server_places()
        + size_of::<pooler::Slot>() * guc::max_client_connections()
}

static RELAY: AtomicPtr<relay::Header> = AtomicPtr::new(null_mut());

/// The relay's tables; `None` when the library is not in `shared_preload_libraries`.
pub(super) fn relay() -> Option<relay::Shared> {
    let header = RELAY.load(Acquire);
    if header.is_null() {
        return None;
    }
    let sizes = guc::relay_sizes();
    // SAFETY: what `make` has mapped, as large as `relay_size` says, zeroed by the system, which is a valid value of every part; aligned,
    // since each part's size is a multiple of its alignment but that of the numbers, after which words of eight bytes begin anew. All
    // fields are atomics.
    unsafe {
        let words = header.add(1).cast::<AtomicU64>();
        let channels = words.add(sizes.ring).cast::<relay::Channel>();
        let listens = channels.add(sizes.channels).cast::<relay::Listen>();
        let listeners = listens.add(sizes.listens).cast::<relay::Listener>();
        Some(relay::Shared {
            header: &*header,
            words: std::slice::from_raw_parts(words, sizes.ring),
            channels: std::slice::from_raw_parts(channels, sizes.channels),
            listens: std::slice::from_raw_parts(listens, sizes.listens),
            listeners: std::slice::from_raw_parts(listeners, guc::max_client_connections()),
        })
    }
}

fn relay_size() -> usize {
    let sizes = guc::relay_sizes();
    size_of::<relay::Header>()
        + size_of::<AtomicU64>() * sizes.ring
        + size_of::<relay::Channel>() * sizes.channels
        + size_of::<relay::Listen>() * sizes.listens
        + size_of::<relay::Listener>() * guc::max_client_connections()
}

static STREAMS: AtomicPtr<stream::Header> = AtomicPtr::new(null_mut());

/// The change streams' tables; `None` when the library is not in `shared_preload_libraries`.
pub(super) fn streams() -> Option<stream::Shared> {
    let header = STREAMS.load(Acquire);
    if header.is_null() {
        return None;
    }
    let places = guc::max_streams();
    // SAFETY: what `make` has mapped, as large as `streams_size` says, zeroed by the system, which is a valid value of every part;
    // aligned, since each part's size is a multiple of its alignment and none asks for more than 8. All fields are atomics.
    unsafe {
        let sources = header.add(1).cast::<stream::Source>();
        let streams = sources.add(places).cast::<stream::Stream>();
        Some(stream::Shared {
            header: &*header,
            sources: std::slice::from_raw_parts(sources, places),
            streams: std::slice::from_raw_parts(streams, places),
        })
    }
}

fn streams_size() -> usize {
    let places = guc::max_streams();
    size_of::<stream::Header>() + places * (size_of::<stream::Source>() + size_of::<stream::Stream>())
}

/// The name of the lock under which relays write into the ring.
pub(super) const RELAY_LOCK: &std::ffi::CStr = c"postern relay";

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
        pg_sys::RequestAddinShmemSpace(pooler_size());
        pg_sys::RequestAddinShmemSpace(relay_size());
        pg_sys::RequestAddinShmemSpace(streams_size());
        pg_sys::RequestNamedLWLockTranche(RELAY_LOCK.as_ptr(), 1);
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
            (*place).no_worker_slot.store(u32::from(NO_STATUS_PLACE.load(Relaxed)), Relaxed);
        }
        SHARED.store(place, Release);
        // New shared memory is zero, and touching it would make all of it resident.
        let tables = pg_sys::ShmemInitStruct(c"postern pooler".as_ptr(), pooler_size(), &mut found)
            .cast::<PoolerTables>();
        if !found {
            (*tables).header.no_worker_slot.store(u32::from(NO_POOLER_PLACE.load(Relaxed)), Relaxed);
        }
        POOLER.store(tables, Release);
        let relay = pg_sys::ShmemInitStruct(RELAY_LOCK.as_ptr(), relay_size(), &mut found);
        RELAY.store(relay.cast::<relay::Header>(), Release);
        let streams = pg_sys::ShmemInitStruct(c"postern streams".as_ptr(), streams_size(), &mut found)
            .cast::<stream::Header>();
        if !found {
            (*streams).no_worker_slot.store(u32::from(NO_LAUNCHER_PLACE.load(Relaxed)), Relaxed);
        }
        STREAMS.store(streams, Release);
    }
}
