//! What the status worker shares with every process, as words in shared memory. The worker's main thread and its
//! network threads write, backends and the HTTP answers read.

use super::facts::Facts;
use super::health::Role;
use crate::bridge::{Lsn, WorkerWords};
use crate::net::slots::{Kind, Slots};
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::*};
use std::time::Duration;

/// Kinds of listeners, as numbered in [`Slots`].
pub const BANNER: Kind = 1;
pub const AGENT: Kind = 2;
pub const HTTP: Kind = 3;
/// 4 and 5 are the pooler's, whose listeners are in the same view.
pub const STREAM: Kind = 6;

/// How a kind is called in views and metrics.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        BANNER => "banner",
        AGENT => "agent",
        HTTP => "http",
        STREAM => "stream",
        _ => "unknown",
    }
}

/// All-zero bytes are a valid initial state: no worker yet, the banner says STANDBY.
#[repr(C)]
#[derive(Default)]
pub struct Shared {
    /// 1 while this server takes writes; what the banner reads.
    master: AtomicU32,
    /// The postmaster had no place for the worker.
    pub no_worker_slot: AtomicU32,
    pub worker: WorkerWords,
    /// Milliseconds; -1 when not known.
    lag_ms: AtomicI64,
    /// The process id of the WAL receiver that streams; 0 when none does.
    streaming: AtomicI32,
    /// Position up to which this server has written WAL, at the last sample; 0 on a standby.
    written: AtomicU64,
    /// Log lines that found the queue full.
    pub log_dropped: AtomicU64,
    pub listeners: Slots,
}

impl Shared {
    /// Main: what the banner and the view need of a sample.
    pub fn publish(&self, facts: &Facts) {
        self.master.store(u32::from(Role::of(facts) == Role::Primary && facts.takes_connections()), Release);
        let lag = facts.lag.map_or(-1, |lag| i64::try_from(lag.as_millis()).unwrap_or(i64::MAX));
        self.lag_ms.store(lag, Relaxed);
        let streaming = facts.receiver.as_ref().filter(|receiver| receiver.streaming);
        self.streaming.store(streaming.map_or(0, |receiver| receiver.pid), Relaxed);
        self.written.store(facts.written.map_or(0, |lsn| lsn.0), Relaxed);
    }

    /// The WAL receiver that streamed at the last sample, which may be an earlier worker's; 0 when none did.
    pub fn streaming(&self) -> i32 {
        self.streaming.load(Relaxed)
    }

    /// Whether that WAL receiver streamed at the last sample.
    pub fn is_streaming(&self, receiver: i32) -> bool {
        receiver != 0 && self.streaming.load(Relaxed) == receiver
    }

    /// How far this server had written WAL at the last sample, where it does.
    pub fn written(&self) -> Option<Lsn> {
        Some(Lsn(self.written.load(Relaxed))).filter(|lsn| lsn.0 != 0)
    }

    /// The one read that the banner makes.
    pub fn is_master(&self) -> bool {
        self.master.load(Acquire) == 1
    }

    /// The lag of the last sample.
    pub fn lag(&self) -> Option<Duration> {
        u64::try_from(self.lag_ms.load(Relaxed)).ok().map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::ServerState;
    use super::*;

    #[test]
    fn only_a_server_that_takes_writes_is_master() {
        let shared = Shared::default();
        assert!(!shared.is_master(), "before the first sample");
        for (server, in_recovery, master) in [
            (ServerState::Ready, false, true),
            (ServerState::Ready, true, false),
            (ServerState::Starting, true, false),
            (ServerState::ColdStandby, true, false),
            (ServerState::Stopping, false, false),
        ] {
            shared.publish(&Facts { server, in_recovery, ..Default::default() });
            assert_eq!(shared.is_master(), master, "{server:?} {in_recovery}");
        }
    }
}
