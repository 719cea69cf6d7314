//! Clients' texts in dynamic shared memory. Whoever owns a client's slot owns its texts, so no lock is needed beside the
//! allocator's own. Pooled backends, and the front's main thread, which makes the area.
//!
//! A text is its capacity and its length in four bytes each, and its bytes.

use pgrx::prelude::*;
use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering::*};

const HEADER: usize = 8;

/// The area, mapped for as long as the process lives.
#[derive(Clone, Copy)]
pub(in crate::postgres) struct Texts(*mut pg_sys::dsa_area);

impl Texts {
    /// Makes the area; it lives until [`Texts::abandon`] and the end of those who use it.
    ///
    /// # Errors
    /// Raises the server's error when there is no dynamic shared memory.
    pub fn make() -> (Self, u32) {
        // SAFETY: on the worker's main thread; the area is pinned at once, so no resource owner lets it go.
        unsafe {
            let tranche = pg_sys::LWLockNewTrancheId();
            pg_sys::LWLockRegisterTranche(tranche, c"postern texts".as_ptr());
            // What the process knows of the area stands where memory lives as long as the process.
            let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let area = super::super::shim::postern_dsa_create(tranche);
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::dsa_pin(area);
            pg_sys::dsa_pin_mapping(area);
            (Self(area), pg_sys::dsa_get_handle(area))
        }
    }

    /// Maps the area of a handle; `None` when it is gone.
    pub fn attach(handle: u32) -> Option<Self> {
        let attach = || {
            // SAFETY: the handle of an area that the front made; a wrong one is an error, which is caught.
            unsafe {
                // Which context is current during a login differs between versions.
                let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
                let area = pg_sys::dsa_attach(handle);
                pg_sys::MemoryContextSwitchTo(before);
                pg_sys::dsa_pin_mapping(area);
                Some(Self(area))
            }
        };
        PgTryBuilder::new(attach).catch_others(|_| None).execute()
    }

    /// Lets the area go when the last process that uses it has ended.
    pub fn abandon(self) {
        // SAFETY: a live area that was pinned once.
        unsafe { pg_sys::dsa_unpin(self.0) }
    }

    /// The bytes at an address; empty for 0.
    pub fn read(&self, at: u64) -> &[u8] {
        if at == 0 {
            return &[];
        }
        // SAFETY: an address that `store` returned and that its owner has not freed: capacity and length stand before
        // the bytes. Only the slot's owner, which we are, changes them.
        unsafe {
            let place = pg_sys::dsa_get_address(self.0, at).cast::<u8>();
            let length = place.add(4).cast::<u32>().read() as usize;
            std::slice::from_raw_parts(place.add(HEADER), length)
        }
    }

    /// Keeps the bytes at the word's address, or at a new one; false when there is no memory, and then nothing is changed.
    pub fn store(&self, word: &AtomicU64, bytes: &[u8]) -> bool {
        let old = word.load(Relaxed);
        // SAFETY: as in `read`; the block that is written has room for what is written.
        unsafe {
            let mut place = std::ptr::null_mut::<u8>();
            if old != 0 {
                place = pg_sys::dsa_get_address(self.0, old).cast::<u8>();
                let capacity = place.cast::<u32>().read() as usize;
                if capacity < bytes.len() || capacity > 4 * bytes.len() + 256 {
                    place = std::ptr::null_mut();
                }
            }
            if place.is_null() {
                let capacity = bytes.len().max(24);
                let new = pg_sys::dsa_allocate_extended(
                    self.0,
                    capacity + HEADER,
                    pg_sys::DSA_ALLOC_NO_OOM as c_int,
                );
                if new == 0 {
                    return false;
                }
                place = pg_sys::dsa_get_address(self.0, new).cast::<u8>();
                place.cast::<u32>().write(capacity as u32);
                word.store(new, Relaxed);
                if old != 0 {
                    pg_sys::dsa_free(self.0, old);
                }
            }
            place.add(4).cast::<u32>().write(bytes.len() as u32);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.add(HEADER), bytes.len());
        }
        true
    }

    /// Frees what the word points to.
    pub fn free(&self, word: &AtomicU64) {
        let old = word.swap(0, Relaxed);
        if old != 0 {
            // SAFETY: an address that `store` returned, freed once.
            unsafe { pg_sys::dsa_free(self.0, old) }
        }
    }
}
