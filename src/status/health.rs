//! The judgement: from facts to "healthy" or a reason why not. Pure; the agent line, the HTTP answers and the
//! view all take it from here, so they never disagree.

use super::facts::{Facts, ReceiverState, ServerState};
use super::upstream::{AskError, Said};
use crate::bridge::Lsn;
use crate::settings::LagLimit;
use std::fmt;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Primary,
    /// In recovery. A primary in crash recovery is one too: it takes no writes.
    Standby,
}

impl Role {
    pub fn of(facts: &Facts) -> Self {
        if facts.in_recovery { Self::Standby } else { Self::Primary }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// Why a server should get no traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    Starting,
    ColdStandby,
    Stopping,
    /// The text says more, when more is known.
    NotStreaming(String),
    OtherSystem,
    OtherTimeline {
        own: u32,
        primary: u32,
    },
    LagBytes {
        lag: u64,
        limit: LagLimit,
    },
    LagTime {
        lag: Duration,
        limit: LagLimit,
    },
    /// Neither its WAL receiver has heard of the primary for this long, nor does the primary answer.
    Silence {
        time: Duration,
        limit: LagLimit,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::settings::{ByteSize, Span};
        match self {
            Self::Starting => {
                f.write_str("the server is starting up or in recovery: it takes no connections yet")
            }
            Self::ColdStandby => f.write_str("cold standby: hot_standby is off, it takes no connections"),
            Self::Stopping => f.write_str("the server is shutting down"),
            Self::NotStreaming(more) if more.is_empty() => f.write_str("not streaming from its primary"),
            Self::NotStreaming(more) => write!(f, "not streaming from its primary: {more}"),
            Self::OtherSystem => f.write_str("not streaming: its primary is another database system"),
            Self::OtherTimeline { own, primary } => {
                write!(
                    f,
                    "not streaming: this server is on timeline {own}, its primary is on timeline {primary}"
                )
            }
            Self::LagBytes { lag, limit } => write!(f, "lag {} is beyond {limit}", ByteSize(*lag)),
            Self::Silence { time, limit } => {
                write!(f, "nothing heard of its primary for {}, which is beyond {limit}", Span(*time))
            }
            Self::LagTime { lag, limit } => write!(f, "lag {} is beyond {limit}", Span(*lag)),
        }
    }
}

/// What the checks answer from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub role: Role,
    pub problem: Option<Problem>,
    /// The primary's position that the lag is counted from; on a standby.
    pub primary_end: Option<Lsn>,
    pub lag_bytes: Option<u64>,
}

impl Health {
    /// Judges. `upstream` is what the primary said when it was asked, if it was.
    pub fn of(facts: &Facts, limit: Option<LagLimit>, upstream: Option<&Said>) -> Self {
        let role = Role::of(facts);
        let own_end = facts.primary_end();
        let primary_end = match upstream {
            Some(Ok(said)) => own_end.max(said.position_for(facts).unwrap_or(own_end)),
            _ => own_end,
        };
        let lag_bytes = facts.lag_bytes(primary_end);
        let problem = match (facts.server, role) {
            (ServerState::Starting, _) => Some(Problem::Starting),
            (ServerState::ColdStandby, _) => Some(Problem::ColdStandby),
            (ServerState::Stopping, _) => Some(Problem::Stopping),
            (ServerState::Ready, Role::Primary) => None,
            (ServerState::Ready, Role::Standby) => not_streaming(facts, upstream)
                .or_else(|| too_late(facts, lag_bytes, limit))
                .or_else(|| silence(facts, limit, upstream)),
        };
        let primary_end = (role == Role::Standby).then_some(primary_end);
        Self { role, problem, primary_end, lag_bytes }
    }

    pub fn is_healthy(&self) -> bool {
        self.problem.is_none()
    }
}

impl Facts {
    /// Whether a login can succeed.
    pub fn takes_connections(&self) -> bool {
        self.server == ServerState::Ready
    }

    pub fn is_streaming(&self) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| receiver.streaming)
    }
}

fn not_streaming(facts: &Facts, upstream: Option<&Said>) -> Option<Problem> {
    if facts.is_streaming() {
        return None;
    }
    let state = match facts.receiver.as_ref().map(|receiver| receiver.state) {
        None => "stopped",
        // It calls itself so, but has neither got anything yet nor lived long enough to be believed.
        Some(ReceiverState::Streaming) => "only just connected",
        Some(state) => state.name(),
    };
    Some(match upstream {
        Some(Ok(said)) if said.system_identifier != facts.system_identifier => Problem::OtherSystem,
        Some(Ok(said)) if said.timeline != facts.timeline => {
            Problem::OtherTimeline { own: facts.timeline, primary: said.timeline }
        }
        Some(Err(error)) => Problem::NotStreaming(error.to_string()),
        _ => Problem::NotStreaming(format!("its WAL receiver is {state}")),
    })
}

fn too_late(facts: &Facts, lag_bytes: Option<u64>, limit: Option<LagLimit>) -> Option<Problem> {
    match limit? {
        limit @ LagLimit::Bytes(most) => {
            let lag = lag_bytes.filter(|lag| *lag > most)?;
            Some(Problem::LagBytes { lag, limit })
        }
        limit @ LagLimit::Time(most) => {
            let lag = facts.lag.filter(|lag| *lag > most)?;
            Some(Problem::LagTime { lag, limit })
        }
    }
}

/// A primary that hangs, or is cut off, sends nothing and so seems to have written nothing. What it has not said for
/// longer than the limit may be late by as much. Where it cannot be asked for another reason (its pg_hba.conf), an idle
/// primary would look the same, so there the WAL receiver's own time-out decides.
fn silence(facts: &Facts, limit: Option<LagLimit>, upstream: Option<&Said>) -> Option<Problem> {
    let (Some(limit @ LagLimit::Time(most)), Some(Err(AskError::TooLate | AskError::Unreachable))) =
        (limit, upstream)
    else {
        return None;
    };
    let heard = facts.receiver.as_ref()?.last_message?;
    let time = facts.taken_at?.duration_since(heard).ok().filter(|time| *time > most)?;
    Some(Problem::Silence { time, limit })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::facts::{Receiver, Replay};
    use super::super::upstream::{SyncState, UpstreamFacts};
    use super::*;

    pub(in super::super) fn primary() -> Facts {
        Facts {
            server: ServerState::Ready,
            timeline: 1,
            server_version: 150020,
            system_identifier: 42,
            written: Some(Lsn(1000)),
            client_capacity: 100,
            ..Default::default()
        }
    }

    pub(in super::super) fn standby() -> Facts {
        Facts {
            in_recovery: true,
            written: None,
            replay: Some(Replay { replayed: Lsn(900), received: Lsn(950), last_commit: None, paused: false }),
            receiver: Some(Receiver {
                pid: 7,
                state: ReceiverState::Streaming,
                streaming: true,
                primary_end: Lsn(1000),
                ..Default::default()
            }),
            lag: Some(Duration::from_secs(2)),
            ..primary()
        }
    }

    pub(in super::super) fn upstream() -> UpstreamFacts {
        UpstreamFacts {
            system_identifier: 42,
            timeline: 1,
            position: Lsn(5000),
            in_recovery: false,
            sync: Ok(SyncState::Async),
        }
    }

    fn problem(facts: &Facts, limit: Option<LagLimit>, upstream: Option<Said>) -> String {
        Health::of(facts, limit, upstream.as_ref()).problem.map_or(String::new(), |p| p.to_string())
    }

    #[test]
    fn lag_is_counted_from_the_primarys_position() {
        let health = Health::of(&standby(), None, None);
        assert_eq!((health.lag_bytes, health.primary_end), (Some(100), Some(Lsn(1000))));
        let asked = Health::of(&standby(), None, Some(&Ok(upstream())));
        assert_eq!((asked.lag_bytes, asked.primary_end), (Some(4100), Some(Lsn(5000))));
    }

    #[test]
    fn the_limit_itself_is_still_healthy() {
        assert_eq!(problem(&standby(), Some(LagLimit::Bytes(100)), None), "");
        assert_eq!(problem(&standby(), Some(LagLimit::Bytes(99)), None), "lag 100B is beyond 99B");
        let seconds = |s| Some(LagLimit::Time(Duration::from_secs(s)));
        assert_eq!(problem(&standby(), seconds(2), None), "");
        assert_eq!(problem(&standby(), seconds(1), None), "lag 2000ms is beyond 1000ms");
        assert_eq!(problem(&primary(), Some(LagLimit::Bytes(1)), None), "", "a primary has no lag");
    }

    #[test]
    fn each_reason_is_told_apart() {
        let with = |server| Facts { server, ..primary() };
        assert!(problem(&with(ServerState::Stopping), None, None).contains("shutting down"));
        assert!(problem(&with(ServerState::Starting), None, None).contains("starting up"));
        assert!(problem(&with(ServerState::ColdStandby), None, None).contains("cold standby"));
        let cut = Facts { receiver: None, ..standby() };
        assert!(problem(&cut, None, None).contains("WAL receiver is stopped"));
        assert!(
            problem(&cut, None, Some(Err(AskError::Unreachable)))
                .ends_with(": its primary cannot be reached")
        );
        let promoted = UpstreamFacts { timeline: 2, ..upstream() };
        assert!(
            problem(&cut, None, Some(Ok(promoted.clone())))
                .contains("on timeline 1, its primary is on timeline 2")
        );
        let other = UpstreamFacts { system_identifier: 43, ..upstream() };
        assert!(problem(&cut, None, Some(Ok(other))).contains("another database system"));
        assert_eq!(problem(&standby(), None, Some(Ok(promoted))), "", "it streams, so it will follow");
    }
    #[test]
    fn a_primary_that_is_silent_for_longer_than_the_limit_is_told() {
        let now = std::time::SystemTime::now();
        let heard = |seconds| {
            let receiver = standby().receiver.map(|receiver| Receiver {
                last_message: now.checked_sub(Duration::from_secs(seconds)),
                ..receiver
            });
            Facts { taken_at: Some(now), receiver, ..standby() }
        };
        let limit = Some(LagLimit::Time(Duration::from_secs(10)));
        let hangs = || Some(Err(AskError::TooLate));
        assert!(problem(&heard(11), limit, hangs()).starts_with("nothing heard of its primary for 11s"));
        assert_eq!(problem(&heard(10), limit, hangs()), "");
        assert_eq!(
            problem(&heard(11), limit, Some(Err(AskError::Refused))),
            "",
            "an idle primary looks the same"
        );
        assert_eq!(problem(&heard(11), limit, Some(Ok(upstream()))), "", "idle, and it says so");
    }
}
