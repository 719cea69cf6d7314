//! Asking the primary what a standby cannot know by itself: over an ordinary connection where its pg_hba.conf lets us into
//! a database, else in the replication protocol. Runs on a blocking thread of the HTTP runtime, never on main.

use super::libpq::{Connection, Failure, Wait, option_of};
use crate::status::{Ask, AskError, AskFor, Lsn, Said, SyncState, SyncUnknown, UpstreamFacts};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// For connecting and asking together.
const PATIENCE: Duration = Duration::from_secs(3);

/// A role that was not let into a database is not let in a second later either.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// How often the replication protocol is used, which takes one of the primary's `max_wal_senders` for a moment.
const REPLICATION_EVERY: Duration = Duration::from_secs(5);

/// Where the primary is, on an ordinary connection. Its timeline is in the name of the segment that it writes; a standby
/// has it from its own WAL receiver or the last checkpoint.
const WHERE: &str = "SELECT s.system_identifier, pg_is_in_recovery(), \
    CASE WHEN pg_is_in_recovery() \
        THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), c.timeline_id) \
        ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int END, \
    CASE WHEN pg_is_in_recovery() \
        THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
        ELSE pg_current_wal_flush_lsn() END \
    FROM pg_control_system() s, pg_control_checkpoint() c";

/// Keeps the connection between questions.
#[derive(Default)]
pub(super) struct Asker {
    open: Option<Connection>,
    conninfo: String,
    /// When the primary last refused an ordinary connection.
    refused: Option<Instant>,
    by_replication: Option<(Instant, Said)>,
    words: Option<String>,
}

impl Ask for Asker {
    fn ask(&mut self, question: &AskFor, stop: &CancellationToken) -> Said {
        if self.conninfo != question.conninfo {
            *self = Self { conninfo: question.conninfo.clone(), ..Self::default() };
        }
        let wait = Wait { deadline: Instant::now() + PATIENCE, stop };
        if let Some(open) = self.open.take() {
            // A kept connection may have died with its server; a new one tells.
            if let Ok(facts) = ask_by_sql(&open, question, &wait) {
                self.open = Some(open);
                return Ok(facts);
            }
        }
        let said = self.ask_anew(question, &wait);
        if said.is_ok() && self.refused.is_none() {
            self.words = None;
        }
        said.map_err(|failure| self.told(failure))
    }

    fn words(&mut self) -> Option<String> {
        self.words.clone()
    }

    fn close(&mut self) {
        self.open = None;
    }
}

impl Asker {
    fn ask_anew(&mut self, question: &AskFor, wait: &Wait<'_>) -> Result<UpstreamFacts, Failure> {
        if self.refused.is_none_or(|at| at.elapsed() >= REFUSED_FOR) {
            match Connection::open(&question.conninfo, None, wait) {
                Ok(open) => {
                    // Nothing of a role's or database's search_path is run.
                    open.row("SELECT pg_catalog.set_config('search_path', 'pg_catalog', false)", wait)?;
                    let facts = ask_by_sql(&open, question, wait)?;
                    self.open = Some(open);
                    self.refused = None;
                    return Ok(facts);
                }
                Err(failure) if failure.error == AskError::Refused => {
                    self.refused = Some(Instant::now());
                    self.told(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        if !question.streaming {
            return Err(AskError::Refused.into());
        }
        self.ask_by_replication(question, wait).map_err(Failure::from)
    }

    /// A role is let in for replication wherever its WAL receiver is. The connection is not kept.
    fn ask_by_replication(&mut self, question: &AskFor, wait: &Wait<'_>) -> Said {
        if let Some((at, said)) = &self.by_replication
            && at.elapsed() < REPLICATION_EVERY
        {
            return said.clone();
        }
        let said = Connection::open(&question.conninfo, Some(c"true"), wait).and_then(|open| {
            let system = open.row("IDENTIFY_SYSTEM", wait)?;
            let recovery = open.row("SHOW in_hot_standby", wait)?;
            let ([id, timeline, position, ..], [recovery]) = (system.as_slice(), recovery.as_slice()) else {
                return Err(AskError::Unusable.into());
            };
            facts([id, recovery, timeline, position], Err(SyncUnknown::OnlyReplication))
        });
        let said = said.map_err(|failure| self.told(failure));
        self.by_replication = Some((Instant::now(), said.clone()));
        said
    }

    fn told(&mut self, failure: Failure) -> AskError {
        self.words = failure.words.or_else(|| self.words.take());
        failure.error
    }
}

fn ask_by_sql(open: &Connection, question: &AskFor, wait: &Wait<'_>) -> Result<UpstreamFacts, Failure> {
    let row = open.row(WHERE, wait)?;
    let [id, recovery, timeline, position] = row.as_slice() else { return Err(AskError::Unusable.into()) };
    facts([id, recovery, timeline, position], sync_state(open, question, wait)?)
}

fn facts(
    [id, recovery, timeline, position]: [&String; 4],
    sync: Result<SyncState, SyncUnknown>,
) -> Result<UpstreamFacts, Failure> {
    let parsed = || {
        let position = position.parse::<Lsn>().ok()?;
        Some((
            id.parse::<i64>().map(i64::cast_unsigned).ok().or(id.parse().ok())?,
            timeline.parse().ok()?,
            position,
        ))
    };
    let (system_identifier, timeline, position) = parsed().ok_or(AskError::Unusable)?;
    let in_recovery = matches!(recovery.as_str(), "t" | "on");
    Ok(UpstreamFacts { system_identifier, timeline, position, in_recovery, sync })
}

/// Which of the primary's WAL senders is ours: the one on our slot, or those of our name that come from where we
/// come from. Two such standbys without slots can only be told apart when they are not in different states.
fn sync_state(
    open: &Connection,
    question: &AskFor,
    wait: &Wait<'_>,
) -> Result<Result<SyncState, SyncUnknown>, Failure> {
    let ours = if question.slot.is_empty() {
        let name = quoted(&application_name(question)?);
        format!("r.application_name = {name} AND r.client_addr IS NOT DISTINCT FROM inet_client_addr()")
    } else {
        let slot = quoted(&question.slot);
        format!("r.pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = {slot})")
    };
    let sql = format!(
        "SELECT count(*), coalesce(string_agg(DISTINCT r.sync_state, ' '), '') FROM pg_stat_replication r \
         WHERE {ours} AND coalesce(r.state, 'streaming') IN ('catchup', 'streaming')"
    );
    let row = open.row(&sql, wait)?;
    let [count, states] = row.as_slice() else { return Err(AskError::Unusable.into()) };
    Ok(match (count.as_str(), states.as_str()) {
        ("0", _) => Err(SyncUnknown::NotShown),
        (_, "") => Err(SyncUnknown::Hidden),
        (_, several) if several.contains(' ') => Err(SyncUnknown::Several),
        (_, state) => Ok(SyncState::from_name(state).ok_or(AskError::Unusable)?),
    })
}

/// The name that a WAL receiver gives itself (libpqrcv_connect(), src/backend/replication/libpqwalreceiver).
fn application_name(question: &AskFor) -> Result<String, AskError> {
    let given = option_of(&question.conninfo, c"application_name")?;
    let name = given.unwrap_or_else(|| {
        if question.cluster_name.is_empty() {
            "walreceiver".to_owned()
        } else {
            question.cluster_name.clone()
        }
    });
    // The server cuts it to NAMEDATALEN less one.
    Ok(name.chars().take(63).collect())
}

/// An SQL string literal that no setting of the server can make mean something else.
fn quoted(text: &str) -> String {
    format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
