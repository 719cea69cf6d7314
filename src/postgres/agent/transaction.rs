//! Transactions of the agent's own, at the top of the session. Pooled backends.

use super::super::shim;
use pgrx::prelude::*;

/// A transaction of the agent's own, begun when something needs one.
#[derive(Default)]
pub(super) struct Transaction(bool);

impl Transaction {
    pub(super) fn begin(&mut self) {
        if !self.0 {
            // SAFETY: at the top of the session.
            unsafe {
                pg_sys::SetCurrentStatementStartTimestamp();
                pg_sys::StartTransactionCommand();
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
                // What the swap allocates is the message's, not the transaction's.
                shim::postern_use_message_context();
            }
            self.0 = true;
        }
    }

    pub(super) fn commit(&mut self) {
        if self.0 {
            self.0 = false;
            // SAFETY: begun above.
            unsafe {
                pg_sys::PopActiveSnapshot();
                pg_sys::CommitTransactionCommand();
                shim::postern_use_message_context();
            }
        }
    }
}
