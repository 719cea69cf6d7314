//! What main samples from PostgreSQL for the status answers: plain owned values, no judgement. See
//! [`super::health`] for what follows from them.

use crate::bridge::Lsn;
use std::time::{Duration, SystemTime};

/// One sample.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The wall clock at the sample.
    pub taken_at: Option<SystemTime>,
    /// Whether the server takes connections, by its own word.
    pub server: ServerState,
    /// `RecoveryInProgress()`: a standby, or a server in crash recovery.
    pub in_recovery: bool,
    /// `server_version_num`, such as 150020.
    pub server_version: i32,
    /// The `system_identifier` of `pg_controldata`.
    pub system_identifier: u64,
    /// The timeline written to, or replayed.
    pub timeline: u32,
    /// How far this server has written and flushed; only when not in recovery.
    pub written: Option<Lsn>,
    /// What recovery does; only in recovery.
    pub replay: Option<Replay>,
    /// The WAL receiver, when there is one.
    pub receiver: Option<Receiver>,
    /// Streaming standbys (or other receivers of WAL) that follow this server.
    pub standbys: u32,
    /// Ordinary client connections in use, and how many there may be (less the reserved ones).
    pub clients: u32,
    pub client_capacity: u32,
    /// How long the oldest change that is not replayed yet has been known; kept by [`super::LagClock`].
    pub lag: Option<Duration>,
}

/// The postmaster's state, as it writes it to the last line of postmaster.pid
/// (`PM_STATUS_*`, src/include/utils/pidfile.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServerState {
    /// Starting, in crash recovery, or on the way to consistency: logins are refused.
    #[default]
    Starting,
    /// Takes connections.
    Ready,
    /// A standby with `hot_standby = off`: up, but takes no connections.
    ColdStandby,
    /// A smart, fast or immediate stop is under way: logins are refused.
    Stopping,
}

impl ServerState {
    /// Reads line 8 of postmaster.pid, whose other lines may be in any encoding; `None` when it says nothing known.
    pub fn from_pid_file(bytes: &[u8]) -> Option<Self> {
        match bytes.split(|byte| *byte == b'\n').nth(7)?.trim_ascii() {
            b"starting" => Some(Self::Starting),
            b"ready" => Some(Self::Ready),
            b"standby" => Some(Self::ColdStandby),
            b"stopping" => Some(Self::Stopping),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "running",
            Self::ColdStandby => "cold standby",
            Self::Stopping => "stopping",
        }
    }
}

/// Replay on a server in recovery.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// The end of the last replayed record.
    pub replayed: Lsn,
    /// The end of what the WAL receiver has flushed; zero when nothing was received.
    pub received: Lsn,
    /// The commit time of the last replayed transaction.
    pub last_commit: Option<SystemTime>,
    /// `pg_wal_replay_pause()` was called.
    pub paused: bool,
}

/// The WAL receiver process.
#[derive(Debug, Clone, Default)]
pub struct Receiver {
    pub pid: i32,
    pub state: ReceiverState,
    /// It is connected and has stayed so: a process that starts and fails every few seconds is not streaming.
    pub streaming: bool,
    /// The end of the primary's WAL as of the last message from it.
    pub primary_end: Lsn,
    pub last_message: Option<SystemTime>,
    pub host: String,
    pub port: u16,
    /// The replication slot, or empty.
    pub slot: String,
}

/// `WalRcvState`, src/include/replication/walreceiver.h, in the words of `pg_stat_wal_receiver`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReceiverState {
    #[default]
    Stopped,
    Starting,
    Streaming,
    Waiting,
    Restarting,
    Stopping,
}

impl ReceiverState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Streaming => "streaming",
            Self::Waiting => "waiting",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
        }
    }
}

impl Facts {
    /// The furthest position of the primary that this standby knows of by itself.
    pub fn primary_end(&self) -> Lsn {
        let received = self.replay.as_ref().map_or(Lsn(0), |r| r.received.max(r.replayed));
        self.receiver.as_ref().map_or(received, |r| r.primary_end.max(received))
    }

    /// Bytes from the last replayed record to `primary_end`, on a server in recovery.
    pub fn lag_bytes(&self, primary_end: Lsn) -> Option<u64> {
        self.replay.as_ref().map(|replay| replay.replayed.behind(primary_end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_the_eighth_line_of_postmaster_pid() {
        let read = |state: &str| {
            let mut file = b"123\n/d\xe9ta\n1700000000\n5432\n/tmp\n*\n 1 2\n".to_vec();
            file.extend_from_slice(state.as_bytes());
            ServerState::from_pid_file(&file)
        };
        assert_eq!(read("ready   \n"), Some(ServerState::Ready));
        assert_eq!(read("standby \n"), Some(ServerState::ColdStandby));
        assert_eq!(read("stopping"), Some(ServerState::Stopping));
        assert_eq!(read("starting\n"), Some(ServerState::Starting));
        assert_eq!(read(""), None, "half written");
        assert_eq!(ServerState::from_pid_file(b"123\n/data\n"), None);
    }
}
