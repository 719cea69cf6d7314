//! What a pooled backend does, as the server's own tables in shared memory show it. The pooler's main thread.

use super::shim;
use crate::pooler::limits::Activity;
use crate::pooler::shared::Shared;
use std::sync::atomic::Ordering::*;

/// `None` when the connection's backend is not known yet, or gone.
pub(super) fn of(shared: Shared, server: u32) -> Option<Activity> {
    let server = shared.servers.get(server as usize)?;
    let (pid, number, status) =
        (server.pid.load(Acquire), server.proc.load(Acquire), server.status.load(Acquire));
    if pid <= 1 || status == 0 {
        return None;
    }
    let mut raw = shim::RawActivity::default();
    // SAFETY: a number and an address that a backend of this server has written down; both tables stay for as long as the server
    // runs, and the pid tells whether the entries are still that backend's.
    let alive = unsafe { shim::postern_activity(number, status, pid, &raw mut raw) };
    alive.then_some(Activity {
        reads: raw.reads,
        in_transaction: raw.in_transaction,
        runs_since: raw.runs_since,
        idles_since: raw.idles_since,
        failed: raw.failed,
        transaction_since: raw.transaction_since,
    })
}
