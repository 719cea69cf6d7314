//! haproxy's agent-check line (haproxy's configuration manual, "agent-check"): one line that always tells the
//! whole state, because what an agent has set (drain, a weight) stays set until an agent unsets it.
//! Network threads; what `agent-send` may send is ignored.

use super::facts::Facts;
use super::health::{Health, Problem};
use crate::settings::LagLimit;

/// The line, newline included:
/// `up ready 75%`, `up drain #lag 80MB is beyond 16MB`, `down ready #...` while no login can succeed at all.
pub fn line(facts: &Facts, health: &Health, limit: Option<LagLimit>) -> String {
    match &health.problem {
        None => format!("up ready {}%\n", weight(facts, health, limit)),
        Some(problem @ (Problem::Starting | Problem::ColdStandby)) => {
            format!("down ready #{}\n", comment(problem))
        }
        // What is connected may finish; nobody new is sent here.
        Some(problem) => format!("up drain #{}\n", comment(problem)),
    }
}

/// Free client connections in per cent, less the part of the lag limit that is used up. Never 0, which haproxy
/// takes for a drain.
fn weight(facts: &Facts, health: &Health, limit: Option<LagLimit>) -> u64 {
    let capacity = u64::from(facts.client_capacity.max(1));
    let free = capacity.saturating_sub(u64::from(facts.clients));
    let room = match limit {
        Some(LagLimit::Bytes(most)) => left(health.lag_bytes.unwrap_or(0), most),
        Some(LagLimit::Time(most)) => {
            let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            left(facts.lag.map_or(0, micros), micros(most))
        }
        None => 100,
    };
    (free * 100 / capacity * room / 100).clamp(1, 100)
}

/// What is left of `most` in per cent.
fn left(used: u64, most: u64) -> u64 {
    let used = u128::from(used) * 100 / u128::from(most.max(1));
    100 - u64::try_from(used.min(100)).unwrap_or(100)
}

/// One line, and nothing that would end it or start another word list.
fn comment(problem: &Problem) -> String {
    problem.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::super::facts::ServerState;
    use super::super::health::tests::{primary, standby};
    use super::*;
    use std::time::Duration;

    fn said(facts: &Facts, limit: Option<LagLimit>) -> String {
        line(facts, &Health::of(facts, limit, None), limit)
    }

    #[test]
    fn the_weight_is_the_free_capacity() {
        let busy = |clients| Facts { clients, ..primary() };
        assert_eq!(said(&busy(0), None), "up ready 100%\n");
        assert_eq!(said(&busy(25), None), "up ready 75%\n");
        assert_eq!(said(&busy(100), None), "up ready 1%\n", "never 0, which haproxy takes for a drain");
        assert_eq!(said(&busy(4_000_000_000), None), "up ready 1%\n");
    }

    #[test]
    fn lag_takes_from_the_weight_and_drains_beyond_the_limit() {
        assert_eq!(said(&standby(), Some(LagLimit::Bytes(400))), "up ready 75%\n");
        assert_eq!(said(&standby(), Some(LagLimit::Bytes(100))), "up ready 1%\n");
        assert_eq!(said(&standby(), Some(LagLimit::Bytes(99))), "up drain #lag 100B is beyond 99B\n");
        assert_eq!(said(&standby(), Some(LagLimit::Time(Duration::from_secs(8)))), "up ready 75%\n");
        assert!(said(&standby(), Some(LagLimit::Time(Duration::from_secs(1)))).starts_with("up drain #lag"));
    }

    #[test]
    fn every_line_is_one_whole_state() {
        let states =
            [ServerState::Starting, ServerState::Stopping, ServerState::ColdStandby, ServerState::Ready];
        for server in states {
            let line = said(&Facts { server, receiver: None, ..standby() }, None);
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line:?}");
            let mut words = line.split_whitespace();
            assert!(matches!(words.next(), Some("up" | "down")), "{line:?}");
            assert!(matches!(words.next(), Some("ready" | "drain")), "{line:?}");
        }
    }

    #[test]
    fn a_reason_from_elsewhere_cannot_add_a_line() {
        let problem = Problem::NotStreaming("refused\nup ready 100%".into());
        let health = Health { problem: Some(problem), ..Health::of(&standby(), None, None) };
        assert_eq!(line(&standby(), &health, None).matches('\n').count(), 1);
    }
}
