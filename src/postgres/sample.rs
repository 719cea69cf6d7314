//! Taking [`Facts`] from the server: reads of shared memory, no catalogs, no waiting. Runs on the status worker's
//! main thread, and in backends for the view.

use super::versions::reserved_connections;
use crate::status::facts::{Facts, Receiver, ReceiverState, Replay, ServerState};
use crate::status::{Guess, LagClock, Lsn};
use parking_lot::Mutex;
use pgrx::prelude::*;
use std::ffi::{CStr, c_char};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A WAL receiver that has lived for this long, or that has got a message, streams. One that cannot follow (another
/// timeline, a slot that is gone) connects, fails and is started again every few seconds.
const SETTLED: Duration = Duration::from_secs(1);

/// Takes samples and remembers what a single one cannot show.
pub(super) struct Sampler {
    lag: LagClock,
    receiver: Option<Seen>,
    pid_file: PidFile,
}

/// A WAL receiver when it was first seen.
struct Seen {
    pid: i32,
    at: Instant,
    last_message: pg_sys::TimestampTz,
}

impl Sampler {
    /// `streaming` is the process id of the WAL receiver that an earlier worker saw streaming, or 0: it need not prove
    /// itself again because this worker is new.
    pub fn new(streaming: i32) -> Self {
        let settled = Instant::now().checked_sub(SETTLED).filter(|_| streaming != 0);
        let receiver = settled.map(|at| Seen { pid: streaming, at, last_message: 0 });
        Self { lag: LagClock::default(), receiver, pid_file: PidFile::default() }
    }

    /// One sample with everything in it.
    pub fn sample(&mut self) -> Facts {
        let mut facts = look(self.pid_file.state());
        if let Some((receiver, last_message)) = receiver() {
            let streaming = self.is_streaming(&receiver, last_message);
            facts.receiver = Some(Receiver { streaming, ..receiver });
        } else {
            self.receiver = None;
        }
        if let Some(replay) = &facts.replay {
            let age = replay.last_commit.and_then(|commit| commit.elapsed().ok());
            let guess = Guess { streaming: facts.is_streaming(), last_commit_age: age };
            let primary = facts.primary_end();
            facts.lag = Some(self.lag.observe(Instant::now(), primary, replay.replayed, guess));
        }
        facts
    }

    fn is_streaming(&mut self, receiver: &Receiver, last_message: pg_sys::TimestampTz) -> bool {
        if receiver.state != ReceiverState::Streaming {
            self.receiver = None;
            return false;
        }
        match &self.receiver {
            Some(seen) if seen.pid == receiver.pid => {
                seen.last_message != last_message || seen.at.elapsed() >= SETTLED
            }
            _ => {
                self.receiver = Some(Seen { pid: receiver.pid, at: Instant::now(), last_message });
                false
            }
        }
    }
}

/// What one look shows, for a process that does not keep looking. Whether a receiver streams takes two looks: it is
/// left `false`, and the lag as a time is left out.
pub(super) fn snapshot() -> Facts {
    look(said())
}

/// What the server does, without the rest of what a look shows, which takes longer the more connections there may be.
pub(super) fn server_state() -> ServerState {
    unless_inconsistent(said())
}

/// What the postmaster says, to a process that does not keep looking.
fn said() -> ServerState {
    /// Kept for when there are no more descriptors to be had.
    static FILE: Mutex<PidFile> = Mutex::new(PidFile { file: None, last: ServerState::Starting });
    FILE.lock().state()
}

/// After a crash the postmaster does not take its "ready" back.
fn unless_inconsistent(said: ServerState) -> ServerState {
    // SAFETY: reads of shared memory.
    let inconsistent = unsafe { pg_sys::RecoveryInProgress() && !pg_sys::HotStandbyActive() };
    if said == ServerState::Ready && inconsistent { ServerState::Starting } else { said }
}

fn look(said: ServerState) -> Facts {
    let server = unless_inconsistent(said);
    // SAFETY: functions that read shared memory which exists from the postmaster's start on. Timeline and flushed
    // position of a primary may be asked only once recovery is over, which never reverts.
    let (in_recovery, timeline, written) = unsafe {
        if pg_sys::RecoveryInProgress() {
            let mut timeline = 0;
            pg_sys::GetXLogReplayRecPtr(&mut timeline);
            (true, timeline, None)
        } else {
            let mut timeline = 0;
            let flushed = pg_sys::GetFlushRecPtr(&mut timeline);
            (false, timeline, Some(Lsn(flushed)))
        }
    };
    let (clients, client_capacity) = clients();
    Facts {
        taken_at: Some(SystemTime::now()),
        server,
        in_recovery,
        server_version: server_version(),
        // SAFETY: reads the control file's copy in shared memory.
        system_identifier: unsafe { pg_sys::GetSystemIdentifier() },
        timeline,
        written,
        replay: in_recovery.then(replay),
        receiver: if in_recovery { receiver().map(|(receiver, _)| receiver) } else { None },
        standbys: standbys(),
        clients,
        client_capacity,
        lag: None,
    }
}

/// The postmaster keeps its state in the last line of postmaster.pid; shared memory does not show it. Every process of
/// the server has the data directory as its working directory. The file is rewritten in place, so one descriptor serves
/// for ever, also when there are no more to be had.
#[derive(Default)]
struct PidFile {
    file: Option<File>,
    /// A read that fails says nothing, least of all that the server is stopping.
    last: ServerState,
}

impl PidFile {
    fn state(&mut self) -> ServerState {
        if self.file.is_none() {
            self.file = File::open("postmaster.pid").ok();
        }
        let mut bytes = [0; 4096];
        let read = self.file.as_ref().and_then(|file| file.read_at(&mut bytes, 0).ok());
        if let Some(state) = read.and_then(|length| ServerState::from_pid_file(&bytes[..length])) {
            self.last = state;
        }
        self.last
    }
}

/// `server_version_num` of the running server; the headers that we were built with may be of another minor version.
fn server_version() -> i32 {
    static VERSION: OnceLock<i32> = OnceLock::new();
    *VERSION.get_or_init(|| {
        // SAFETY: a setting that always exists and never changes, given as a terminated text.
        let text =
            unsafe { CStr::from_ptr(pg_sys::GetConfigOption(c"server_version_num".as_ptr(), false, false)) };
        text.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(pg_sys::PG_VERSION_NUM as i32)
    })
}

fn replay() -> Replay {
    // SAFETY: reads of shared memory.
    unsafe {
        let replayed = pg_sys::GetXLogReplayRecPtr(std::ptr::null_mut());
        let received = pg_sys::GetWalRcvFlushRecPtr(std::ptr::null_mut(), std::ptr::null_mut());
        let paused = pg_sys::GetRecoveryPauseState() != pg_sys::RecoveryPauseState::RECOVERY_NOT_PAUSED;
        Replay {
            replayed: Lsn(replayed),
            received: Lsn(received),
            last_commit: system_time(pg_sys::GetLatestXTime()),
            paused,
        }
    }
}

/// The WAL receiver and the time of its last message. `streaming` is not judged here.
fn receiver() -> Option<(Receiver, pg_sys::TimestampTz)> {
    use pg_sys::WalRcvState as S;
    // SAFETY: the structure is in shared memory from the start on. Its spinlock is held for a few copies, with
    // nothing in between that could fail or wait (src/backend/replication/walreceiver.c does the same).
    unsafe {
        let shared = pg_sys::WalRcv;
        if shared.is_null() {
            return None;
        }
        pg_sys::SpinLockAcquire(&raw mut (*shared).mutex);
        let pid = (*shared).pid;
        let state = (*shared).walRcvState;
        let ready = (*shared).ready_to_display;
        let latest_end = (*shared).latestWalEnd;
        let last_message = (*shared).lastMsgReceiptTime;
        let (host, port, slot) = ((*shared).sender_host, (*shared).sender_port, (*shared).slotname);
        pg_sys::SpinLockRelease(&raw mut (*shared).mutex);
        let state = match state {
            // A process that has not reached its primary yet calls itself streaming too.
            S::WALRCV_STREAMING if ready => ReceiverState::Streaming,
            S::WALRCV_STREAMING | S::WALRCV_STARTING => ReceiverState::Starting,
            S::WALRCV_WAITING => ReceiverState::Waiting,
            S::WALRCV_RESTARTING => ReceiverState::Restarting,
            S::WALRCV_STOPPING => ReceiverState::Stopping,
            _ => return None,
        };
        let receiver = Receiver {
            pid,
            state,
            streaming: false,
            primary_end: Lsn(latest_end),
            last_message: system_time(last_message),
            host: text(&host),
            port: u16::try_from(port).unwrap_or(0),
            slot: text(&slot),
        };
        Some((receiver, last_message))
    }
}

/// WAL senders that stream: how many standbys follow this server.
fn standbys() -> u32 {
    // SAFETY: the table has `max_wal_senders` entries in shared memory. Unlocked reads of aligned words: a sender that
    // comes or goes at this moment is counted or not.
    unsafe {
        let all = (&raw const (*pg_sys::WalSndCtl).walsnds).cast::<pg_sys::WalSnd>();
        let streams = |i: &usize| {
            let sender = all.add(*i);
            (&raw const (*sender).pid).read_volatile() != 0
                && (&raw const (*sender).state).read_volatile() == pg_sys::WalSndState::WALSNDSTATE_STREAMING
        };
        (0..pg_sys::max_wal_senders.max(0) as usize).filter(streams).count() as u32
    }
}

/// Client connections in use, and how many there may be. The first `max_connections` places of the process table are
/// those of ordinary clients (InitProcGlobal(), src/backend/storage/lmgr/proc.c): when none is free, a login fails. A
/// place is in use while its latch has an owner; its pid stays behind on 15.
fn clients() -> (u32, u32) {
    // SAFETY: the table has at least `MaxConnections` entries and stays where it is; a pid is an aligned int, so that
    // an unlocked read gives the old or the new one.
    unsafe {
        let places = pg_sys::MaxConnections.max(0) as usize;
        let all = (*pg_sys::ProcGlobal).allProcs;
        let owner = |i: usize| (&raw const (*all.add(i)).procLatch.owner_pid).read_volatile();
        let used = (0..places).filter(|i| owner(*i) != 0).count();
        let capacity = (pg_sys::MaxConnections - reserved_connections()).max(1);
        (used as u32, capacity as u32)
    }
}

/// PostgreSQL's timestamps are microseconds since 2000-01-01 00:00 UTC; zero means none here.
fn system_time(timestamp: pg_sys::TimestampTz) -> Option<SystemTime> {
    const FROM_UNIX: u64 = 946_684_800;
    let micros = u64::try_from(timestamp).ok().filter(|micros| *micros > 0)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(FROM_UNIX))?.checked_add(Duration::from_micros(micros))
}

/// A fixed-size text of shared memory up to its terminating zero, which may be missing.
fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().map(|c| *c as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map_or(String::new(), |text| text.to_string_lossy().into_owned())
}
