//! Asking the primary through libpq, the language of `primary_conninfo`. Runs on a blocking thread of the HTTP
//! runtime, never on main. libpq is a client library: nothing here is a function of the server.
//!
//! Every wait is a poll(2) with a deadline that also looks at the stop signal. Only name resolution, inside
//! PQconnectStart(), cannot be cut short.

use crate::status::{Ask, AskError, AskFor, Lsn, Said, SyncState, SyncUnknown, UpstreamFacts};
use pq_sys as pq;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// For connecting and asking together.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a wait looks whether the worker is ending.
const LOOK: Duration = Duration::from_millis(50);

/// A role that was not let into a database is not let in a second later either.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// SQLSTATEs, as libpq writes them, that another try would not change: invalid_authorization_specification (also of
/// pg_hba.conf), invalid_password, invalid_catalog_name, insufficient_privilege.
const NOT_LET_IN: [&str; 4] = [" 28000:", " 28P01:", " 3D000:", " 42501:"];

/// How often the replication protocol is used, which takes one of the primary's `max_wal_senders` for a moment.
const REPLICATION_EVERY: Duration = Duration::from_secs(5);

/// Bytes of an error of the primary that are logged.
const ERROR_MAX: usize = 300;

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

/// An error for the network, and words for the log.
struct Failure {
    error: AskError,
    words: Option<String>,
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self { error, words: None }
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

/// One option of a connection string; `None` where it is not given. What libpq says of a mistake may quote the password,
/// so it is told to nobody.
fn option_of(conninfo: &str, keyword: &CStr) -> Result<Option<String>, AskError> {
    let conninfo = CString::new(conninfo).map_err(|_| AskError::NotValid)?;
    let mut message: *mut c_char = std::ptr::null_mut();
    // SAFETY: a terminated string in; what comes out is an array ended by a null keyword, which we free, or null and a
    // message, which we free.
    unsafe {
        let options = pq::PQconninfoParse(conninfo.as_ptr(), &raw mut message);
        if options.is_null() {
            pq::PQfreemem(message.cast());
            return Err(AskError::NotValid);
        }
        let mut found = None;
        let mut option = options;
        while !(*option).keyword.is_null() {
            if CStr::from_ptr((*option).keyword) == keyword && !(*option).val.is_null() {
                found = Some(CStr::from_ptr((*option).val).to_string_lossy().into_owned());
            }
            option = option.add(1);
        }
        pq::PQconninfoFree(options);
        Ok(found.filter(|value| !value.is_empty()))
    }
}

struct Wait<'a> {
    deadline: Instant,
    stop: &'a CancellationToken,
}

impl Wait<'_> {
    /// Waits until the descriptor is readable or writable.
    fn until_ready(&self, descriptor: c_int, events: i16) -> Result<(), AskError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stop.is_cancelled() {
                return Err(AskError::TooLate);
            }
            let mut poll = libc::pollfd { fd: descriptor, events, revents: 0 };
            // SAFETY: one descriptor, on our stack. A negative one is ignored by the system.
            if unsafe { libc::poll(&raw mut poll, 1, left.min(LOOK).as_millis() as c_int + 1) } > 0 {
                return Ok(());
            }
        }
    }
}

/// A libpq connection, closed on drop.
struct Connection(*mut pq::PGconn);

// SAFETY: libpq's connections may be used by any thread, one at a time, which `&self` methods keep since the value is
// owned by one asker (libpq documentation, "Behavior in Threaded Programs").
unsafe impl Send for Connection {}

impl Connection {
    /// An ordinary connection, or one that speaks the replication protocol.
    fn open(conninfo: &str, replication: Option<&CStr>, wait: &Wait<'_>) -> Result<Self, Failure> {
        let text = CString::new(conninfo).map_err(|_| AskError::NotValid)?;
        let database = option_of(conninfo, c"dbname")?.filter(|name| name != "replication");
        let mut keywords = vec![c"dbname".as_ptr(), c"application_name".as_ptr()];
        let mut values = vec![text.as_ptr(), c"postern status".as_ptr()];
        match replication {
            Some(mode) => {
                keywords.push(c"replication".as_ptr());
                values.push(mode.as_ptr());
            }
            // Only the first dbname is expanded as a connection string; this one is a plain name.
            None if database.is_none() => {
                keywords.push(c"dbname".as_ptr());
                values.push(c"postgres".as_ptr());
            }
            None => {}
        }
        keywords.push(null());
        values.push(null());
        // SAFETY: two arrays of terminated strings, each ended by a null, alive for the call.
        let connection = Self(unsafe { pq::PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 1) });
        if connection.0.is_null() {
            return Err(AskError::Unreachable.into());
        }
        // SAFETY: a live connection. Errors then have their SQLSTATE.
        unsafe { pq::PQsetErrorVerbosity(connection.0, pq::PGVerbosity::PQERRORS_VERBOSE) };
        let mut polled = pq::PostgresPollingStatusType::PGRES_POLLING_WRITING;
        // Whether it was a server that said no, or nobody was there.
        let mut answered = false;
        loop {
            // SAFETY: a live connection; the order of calls is that of libpq's documentation of PQconnectStart().
            let status = unsafe { pq::PQstatus(connection.0) };
            answered |= status == pq::ConnStatusType::CONNECTION_AWAITING_RESPONSE;
            match polled {
                pq::PostgresPollingStatusType::PGRES_POLLING_OK => return Ok(connection),
                _ if status == pq::ConnStatusType::CONNECTION_BAD
                    || polled == pq::PostgresPollingStatusType::PGRES_POLLING_FAILED =>
                {
                    let words = connection.error();
                    let error = match () {
                        () if !answered => AskError::Unreachable,
                        () if NOT_LET_IN.iter().any(|state| words.contains(state)) => AskError::Refused,
                        () => AskError::NotNow,
                    };
                    return Err(Failure { error, words: Some(words) });
                }
                pq::PostgresPollingStatusType::PGRES_POLLING_READING => {
                    connection.wait(wait, libc::POLLIN)?
                }
                _ => connection.wait(wait, libc::POLLOUT)?,
            }
            // SAFETY: as above.
            polled = unsafe { pq::PQconnectPoll(connection.0) };
        }
    }

    /// Runs one command and returns its only row, nulls as empty texts.
    fn row(&self, command: &str, wait: &Wait<'_>) -> Result<Vec<String>, Failure> {
        let command = CString::new(command).map_err(|_| AskError::Unusable)?;
        let broken = || Failure { error: AskError::Unreachable, words: Some(self.error()) };
        // SAFETY: a live connection with no command under way, and a terminated string.
        if unsafe { pq::PQsendQuery(self.0, command.as_ptr()) } == 0 {
            return Err(broken());
        }
        let mut row = Err(AskError::Unusable.into());
        loop {
            // SAFETY: a live connection; PQgetResult() does not block once PQisBusy() says 0.
            unsafe {
                while pq::PQisBusy(self.0) != 0 {
                    self.wait(wait, libc::POLLIN)?;
                    if pq::PQconsumeInput(self.0) == 0 {
                        return Err(broken());
                    }
                }
                let result = pq::PQgetResult(self.0);
                if result.is_null() {
                    return row;
                }
                let first = Self::first_row(result);
                pq::PQclear(result);
                // On an error the rest is not waited for: whoever asked closes the connection.
                row = Ok(first?);
            }
        }
    }

    /// # Safety
    /// `result` is a live result.
    unsafe fn first_row(result: *mut pq::PGresult) -> Result<Vec<String>, Failure> {
        // SAFETY: by the caller; rows and columns are within what the result says of itself.
        unsafe {
            if pq::PQresultStatus(result) != pq::ExecStatusType::PGRES_TUPLES_OK {
                let words = sentence(pq::PQresultErrorMessage(result));
                return Err(Failure { error: AskError::Unusable, words: Some(words) });
            }
            if pq::PQntuples(result) < 1 {
                return Err(AskError::Unusable.into());
            }
            let columns = pq::PQnfields(result);
            let value =
                |column| CStr::from_ptr(pq::PQgetvalue(result, 0, column)).to_string_lossy().into_owned();
            Ok((0..columns).map(value).collect())
        }
    }

    fn wait(&self, wait: &Wait<'_>, events: i16) -> Result<(), AskError> {
        // SAFETY: a live connection.
        wait.until_ready(unsafe { pq::PQsocket(self.0) }, events)
    }

    fn error(&self) -> String {
        // SAFETY: a live connection; the text is its own.
        unsafe { sentence(pq::PQerrorMessage(self.0)) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this.
        unsafe { pq::PQfinish(self.0) }
    }
}

/// libpq's text on one line and of a bounded length, for the server log. A connection string that parses is not quoted in
/// it beyond host, port, role and database.
///
/// # Safety
/// `text` is null or terminated.
unsafe fn sentence(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: by the caller.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(ERROR_MAX).collect()
}
