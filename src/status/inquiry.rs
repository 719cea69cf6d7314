//! Gathering what one check needs to know: fresh facts from main, and the primary's word where it matters. The HTTP
//! thread; its answers are judged by `health`.

use super::answer::Check;
use super::facts::Facts;
use super::lag::{Guess, LagClock};
use super::upstream::{AskError, AskFor, Said, Upstream};
use crate::bridge::Bridge;
use crate::settings::LagLimit;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A sample older than this is renewed before it is used; one of a server that is starting or stopping always is.
const FRESH: Duration = Duration::from_millis(1);

/// How long an answer waits for main.
const PATIENCE: Duration = Duration::from_millis(500);

/// Asks; cloned for each connection.
#[derive(Clone)]
pub struct Inquiry {
    bridge: Bridge<Facts>,
    upstream: Upstream,
    /// Main's own clock counts from what the WAL receiver has heard; this one from what the primary says.
    clock: Arc<Mutex<LagClock>>,
}

/// What is known at the time of a check.
pub struct Known {
    pub facts: Facts,
    /// Since main took the facts.
    pub age: Duration,
    /// What the primary said, if it was asked.
    pub upstream: Option<Said>,
}

impl Inquiry {
    pub fn new(bridge: Bridge<Facts>, upstream: Upstream) -> Self {
        Self { bridge, upstream, clock: Arc::default() }
    }

    /// Takes at most about a second, however stuck main and the primary are.
    pub async fn known(&self, check: Check, limit: Option<LagLimit>) -> Known {
        let fresh = if self.bridge.facts().value.takes_connections() { FRESH } else { Duration::ZERO };
        let sample = self.bridge.fresh_facts(fresh, PATIENCE).await;
        let mut facts = sample.value;
        let upstream = if check.needs_upstream(&facts, limit) { Some(self.ask(&facts).await) } else { None };
        if let (Some(Ok(said)), Some(replay)) = (&upstream, &facts.replay)
            && let Some(position) = said.position_for(&facts)
        {
            let primary = position.max(facts.primary_end());
            let guess = Guess { streaming: facts.is_streaming(), last_commit_age: facts.lag };
            let lag = self.clock.lock().observe(Instant::now(), primary, replay.replayed, guess);
            facts.lag = facts.lag.max(Some(lag));
        }
        Known { facts, age: sample.at.elapsed(), upstream }
    }

    async fn ask(&self, facts: &Facts) -> Said {
        let settings = self.bridge.settings();
        if settings.server.primary_conninfo.is_empty() {
            return Err(AskError::NotSet);
        }
        let question = AskFor {
            conninfo: settings.server.primary_conninfo.clone(),
            cluster_name: settings.server.cluster_name.clone(),
            slot: facts.receiver.as_ref().map_or(String::new(), |r| r.slot.clone()),
            streaming: facts.is_streaming(),
        };
        self.upstream.ask(question).await
    }
}
