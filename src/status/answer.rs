//! From a request's method, path and query to an answer: Patroni's paths and codes with a small JSON body. Pure,
//! so that every path is tested without a socket; `http` serves it.

use super::body::{listeners, node, stats};
use super::facts::Facts;
use super::health::{Health, Role};
use super::metrics;
use super::shared::kind_name;
use super::snapshot::Snapshot;
use super::upstream::UpstreamFacts;
use crate::settings::LagLimit;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Main samples every second; when it has not for this long, the worker is not alive.
const STUCK: Duration = Duration::from_secs(10);

/// Bytes of a query that are looked at.
const QUERY_MAX: usize = 256;

/// What the path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Primary,
    Replica,
    ReadOnly,
    Sync,
    Async,
    StandbyLeader,
    Health,
    Readiness,
    Liveness,
    Status,
    Stats,
    Metrics,
}

impl Check {
    pub fn from_path(path: &str) -> Option<Self> {
        Some(match path {
            "/" | "/primary" | "/master" | "/read-write" | "/leader" => Self::Primary,
            "/replica" => Self::Replica,
            "/read-only" => Self::ReadOnly,
            "/sync" | "/synchronous" => Self::Sync,
            "/async" | "/asynchronous" => Self::Async,
            "/standby-leader" => Self::StandbyLeader,
            "/health" => Self::Health,
            "/readiness" => Self::Readiness,
            "/liveness" => Self::Liveness,
            "/status" => Self::Status,
            "/stats" => Self::Stats,
            "/metrics" => Self::Metrics,
            _ => return None,
        })
    }

    /// Whether the answer depends on what only the primary knows.
    pub fn needs_upstream(self, facts: &Facts, limit: Option<LagLimit>) -> bool {
        // Statistics are answered from what is known here, so that a scrape never waits for another server.
        let judged =
            !matches!(self, Self::Primary | Self::Health | Self::Liveness | Self::Stats | Self::Metrics);
        let unknown = limit.is_some() || !facts.is_streaming();
        let asks = matches!(self, Self::Sync | Self::Async | Self::StandbyLeader);
        facts.in_recovery && facts.takes_connections() && (asks || (judged && unknown))
    }
}

/// The `lag=` of a query, where it is given: `lag=16MB`, `lag=10s`, `lag=1048576`.
///
/// # Errors
/// When its value is no limit; the text is for the client.
pub fn lag_of_query(query: Option<&str>) -> Result<Option<LagLimit>, String> {
    let Some(query) = query else { return Ok(None) };
    if query.len() > QUERY_MAX {
        return Err(format!("the query is longer than {QUERY_MAX} bytes"));
    }
    match query.split('&').find_map(|pair| pair.strip_prefix("lag=")) {
        Some(value) => value.parse().map(Some).map_err(|e: crate::settings::Error| e.to_string()),
        None => Ok(None),
    }
}

/// Status code, content type and body.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub code: u16,
    /// With 405: the methods that are answered.
    pub allow: Option<&'static str>,
    pub content_type: &'static str,
    pub body: String,
}

/// Answers the method and path of a request to a port whose pages are another service's; called on a network thread, so it must be quick
/// and call nothing of PostgreSQL's.
pub type Pages = Arc<dyn Fn(&str, &str) -> Answer + Send + Sync>;

/// Answers; `lag` is the query's limit, which goes before the setting's.
pub fn answer(check: Check, lag: Option<LagLimit>, snapshot: &Snapshot<'_>) -> Answer {
    let facts = &snapshot.known.facts;
    let limit = lag.or(snapshot.settings.max_lag);
    let health = Health::of(facts, limit, snapshot.known.upstream.as_ref());
    let verdict = match check {
        Check::Metrics => {
            return Answer {
                code: 200,
                allow: None,
                content_type: metrics::CONTENT_TYPE,
                body: metrics::text(snapshot, &health),
            };
        }
        Check::Stats => return json_answer(200, stats(snapshot)),
        Check::Status => return status(snapshot, &health),
        Check::Primary => primary(&health),
        Check::Replica => replica(&health),
        Check::ReadOnly | Check::Readiness => healthy(&health),
        Check::Health => {
            if facts.takes_connections() {
                Ok(())
            } else {
                healthy(&health)
            }
        }
        Check::Liveness => liveness(snapshot.known.age),
        Check::Sync => replica(&health).and_then(|()| synchronous(snapshot, true)),
        Check::Async => replica(&health).and_then(|()| synchronous(snapshot, false)),
        Check::StandbyLeader => replica(&health).and_then(|()| standby_leader(snapshot)),
    };
    let mut body = node(snapshot, &health);
    let code = match verdict {
        Ok(()) => 200,
        Err(reason) => {
            body.insert("reason".to_owned(), reason.into());
            503
        }
    };
    json_answer(code, Value::Object(body))
}

/// An answer to a request that is not one of ours.
pub fn refusal(code: u16, reason: &str) -> Answer {
    json_answer(code, json!({ "reason": reason }))
}

type Verdict = Result<(), String>;

fn healthy(health: &Health) -> Verdict {
    health.problem.as_ref().map_or(Ok(()), |problem| Err(problem.to_string()))
}

fn primary(health: &Health) -> Verdict {
    healthy_as(Role::Primary, health, "this server is a standby")
}

fn replica(health: &Health) -> Verdict {
    healthy_as(Role::Standby, health, "this server is the primary")
}

/// The role is said first: that a standby is late is no reason why it is not the primary.
fn healthy_as(role: Role, health: &Health, otherwise: &str) -> Verdict {
    if health.role == role { healthy(health) } else { Err(otherwise.to_owned()) }
}

fn liveness(age: Duration) -> Verdict {
    if age < STUCK {
        Ok(())
    } else {
        Err(format!("the status worker has taken no sample for {} s", age.as_secs()))
    }
}

fn said<'a>(snapshot: &Snapshot<'a>) -> Result<&'a UpstreamFacts, String> {
    match &snapshot.known.upstream {
        Some(Ok(said)) => Ok(said),
        Some(Err(error)) => Err(format!("only its primary knows, and it could not be asked: {error}")),
        None => Err("only its primary knows, and it was not asked".to_owned()),
    }
}

fn synchronous(snapshot: &Snapshot<'_>, wanted: bool) -> Verdict {
    let state = said(snapshot)?
        .sync
        .as_ref()
        .map_err(|e| format!("only its primary knows, and does not say: {e}"))?;
    match (state.is_synchronous(), wanted) {
        (true, false) => Err("its primary replicates to it synchronously".to_owned()),
        (false, true) => Err("its primary replicates to it asynchronously".to_owned()),
        _ => Ok(()),
    }
}

/// The head of a cascade: it follows a primary, and standbys follow it. PostgreSQL knows no other mark of a standby
/// cluster's leader; `cluster_name` is none, because people give each server its own.
fn standby_leader(snapshot: &Snapshot<'_>) -> Verdict {
    if said(snapshot)?.in_recovery {
        Err("it follows another standby, so it is not the head of a standby cluster".to_owned())
    } else if snapshot.known.facts.standbys == 0 {
        Err("no standby follows it, so it is not the head of a standby cluster".to_owned())
    } else {
        Ok(())
    }
}

/// Every part's state; 500 when something is wrong.
fn status(snapshot: &Snapshot<'_>, health: &Health) -> Answer {
    let mut problems: Vec<String> = Vec::new();
    problems.extend(healthy(health).err());
    problems.extend(liveness(snapshot.known.age).err());
    for listener in snapshot.shared.listeners.report() {
        if let Some(error) = listener.error() {
            problems.push(format!(
                "{} does not listen on {}: {error}",
                kind_name(listener.kind),
                listener.address
            ));
        }
    }
    let code = if problems.is_empty() { 200 } else { 500 };
    let body = json!({
        "status": if problems.is_empty() { "ok" } else { "failing" },
        "problems": problems,
        "parts": {
            "server": Value::Object(node(snapshot, health)),
            "status": {
                "state": if liveness(snapshot.known.age).is_ok() { "running" } else { "stuck" },
                "listeners": listeners(snapshot.shared),
            },
        },
    });
    json_answer(code, body)
}

fn json_answer(code: u16, body: Value) -> Answer {
    Answer { code, allow: None, content_type: "application/json", body: format!("{body}\n") }
}

#[cfg(test)]
mod tests {
    use super::super::facts::ServerState;
    use super::super::health::tests::{primary, standby, upstream};
    use super::super::inquiry::Known;
    use super::super::shared::Shared;
    use super::super::upstream::{AskError, Said, SyncState, SyncUnknown};
    use super::*;
    use crate::settings::Settings;
    use proptest::prelude::*;

    type Told = Option<Said>;

    fn get(path: &str, facts: &Facts, said: Told) -> Answer {
        let settings = Settings::default();
        let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
        let check = Check::from_path(path).unwrap();
        let known = Known { facts: facts.clone(), age: Duration::ZERO, upstream: said };
        let snapshot =
            Snapshot { known: &known, settings: &settings, shared: &Shared::default(), more: &Vec::new };
        answer(check, lag_of_query(query).unwrap(), &snapshot)
    }

    fn reason(answer: &Answer) -> String {
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        body["reason"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn codes_are_patronis() {
        let stopping = Facts { server: ServerState::Stopping, ..primary() };
        let cut = Facts { receiver: None, ..standby() };
        //   path            primary standby stopping not-streaming
        for (path, codes) in [
            ("/", [200, 503, 503, 503]),
            ("/primary", [200, 503, 503, 503]),
            ("/read-write", [200, 503, 503, 503]),
            ("/leader", [200, 503, 503, 503]),
            ("/replica", [503, 200, 503, 503]),
            ("/replica?lag=100", [503, 200, 503, 503]),
            ("/replica?lag=99", [503, 503, 503, 503]),
            ("/replica?lag=1s", [503, 503, 503, 503]),
            ("/read-only", [200, 200, 503, 503]),
            ("/read-only?lag=99", [200, 503, 503, 503]),
            ("/health", [200, 200, 503, 200]),
            ("/readiness", [200, 200, 503, 503]),
            ("/liveness", [200, 200, 200, 200]),
            ("/status", [200, 200, 500, 500]),
            ("/stats", [200, 200, 200, 200]),
            ("/metrics", [200, 200, 200, 200]),
        ] {
            for (facts, code) in [primary(), standby(), stopping.clone(), cut.clone()].iter().zip(codes) {
                let answer = get(path, facts, None);
                assert_eq!(answer.code, code, "{path} {answer:?}");
                if code == 503 {
                    assert!(!reason(&answer).is_empty(), "{path} {answer:?}");
                }
            }
        }
    }

    #[test]
    fn what_only_the_primary_knows_is_asked_or_refused_with_the_reason() {
        let with = |sync| Some(Ok(UpstreamFacts { sync, ..upstream() }));
        assert_eq!(get("/sync", &standby(), with(Ok(SyncState::Sync))).code, 200);
        assert_eq!(get("/sync", &standby(), with(Ok(SyncState::Quorum))).code, 200);
        assert_eq!(get("/sync", &standby(), with(Ok(SyncState::Potential))).code, 503);
        assert_eq!(get("/async", &standby(), with(Ok(SyncState::Sync))).code, 503);
        assert_eq!(get("/async", &standby(), with(Ok(SyncState::Async))).code, 200);
        assert!(
            reason(&get("/sync", &standby(), with(Err(SyncUnknown::OnlyReplication))))
                .contains("pg_hba.conf")
        );
        assert!(
            reason(&get("/async", &standby(), Some(Err(AskError::Refused)))).contains("refuses the login")
        );
        assert!(reason(&get("/sync", &primary(), None)).contains("is the primary"));
    }

    #[test]
    fn a_standby_leader_follows_a_primary_and_is_followed() {
        let of = |in_recovery| Some(Ok(UpstreamFacts { in_recovery, ..upstream() }));
        let followed = Facts { standbys: 1, ..standby() };
        assert_eq!(get("/standby-leader", &followed, of(false)).code, 200);
        assert!(reason(&get("/standby-leader", &followed, of(true))).contains("follows another standby"));
        assert!(reason(&get("/standby-leader", &standby(), of(false))).contains("no standby follows it"));
    }

    #[test]
    fn liveness_says_when_main_is_stuck() {
        assert!(liveness(STUCK - Duration::from_millis(1)).is_ok());
        assert!(liveness(STUCK).is_err());
    }

    proptest! {
        #[test]
        fn no_query_of_the_network_panics(query in "\\PC{0,300}") {
            let _ = lag_of_query(Some(&query));
            let _ = lag_of_query(Some(&format!("lag={query}")));
        }
    }
}
