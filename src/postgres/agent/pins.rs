//! What holds a client at its backend, and what is left to do when such a client has gone. Pooled backends.

use super::super::guc::{self, PoolMode};
use super::super::shim;
use super::{Agent, Transaction};
use crate::pooler::shared::Pin;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::*;

impl Agent {
    /// What else holds the client here.
    pub(super) fn pins(&mut self) -> u32 {
        let mut pins = 0;
        let mode = guc::pool_mode();
        if mode == PoolMode::session {
            pins |= Pin::SessionMode as u32;
        }
        // SAFETY: flags of the shim, and words and tables of the session, read at its top.
        unsafe {
            shim::postern_seen.statement_mode = mode == PoolMode::statement;
            if shim::postern_seen.another
                || self.settings.are_a_librarys(pg_sys::Oid::from(self.pool.role.load(Relaxed)))
            {
                pins |= Pin::SetByLibrary as u32;
            }
            if shim::postern_holds_locks() {
                pins |= Pin::AdvisoryLocks as u32;
            }
            if !self.portals.is_null() && shim::postern_entries(self.portals) > 0 {
                pins |= Pin::HoldCursors as u32;
            }
            if self.converts_notifications() {
                pins |= Pin::Listens as u32;
            }
            if shim::postern_seen.loaded {
                pins |= Pin::LoadedLibrary as u32;
            }
            if shim::postern_seen.seed {
                pins |= Pin::RandomSeed as u32;
            }
            if shim::postern_has_replication_state() {
                pins |= Pin::ReplicationState as u32;
            }
            if shim::postern_has_temporary_schema() && has_temporary_objects() {
                pins |= Pin::TemporaryObjects as u32;
            }
        }
        pins
    }

    /// After a client that had pins has gone.
    pub(super) fn clean(&mut self, pins: u32) {
        let has = |pin: Pin| pins & pin as u32 != 0;
        if has(Pin::LoadedLibrary)
            || has(Pin::SetByLibrary)
            || has(Pin::RandomSeed)
            || has(Pin::ReplicationState)
            || has(Pin::TemporaryObjects)
        {
            // What these leave in a process cannot be taken out of it: even without objects, a temporary schema shows in the
            // search path and temp_buffers cannot be changed.
            self.leave();
        }
        // SAFETY: at the top of the session, as DiscardAll() does it (commands/discard.c).
        unsafe {
            if has(Pin::AdvisoryLocks) {
                shim::postern_release_advisory_locks();
            }
            if has(Pin::HoldCursors) {
                pg_sys::SetCurrentStatementStartTimestamp();
                pg_sys::StartTransactionCommand();
                pg_sys::PortalHashTableDeleteAll();
                pg_sys::CommitTransactionCommand();
            }
        }
    }
}

/// Whether anything is in the session's temporary schema. Starts a transaction of its own.
fn has_temporary_objects() -> bool {
    let mut transaction = Transaction::default();
    transaction.begin();
    // SAFETY: in a transaction, and there is such a schema.
    let found = unsafe { shim::postern_has_temporary_objects() };
    transaction.commit();
    found
}
