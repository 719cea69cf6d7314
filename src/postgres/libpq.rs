//! Asking the primary through libpq, the language of `primary_conninfo`. Runs on a blocking thread of the HTTP
//! runtime, never on main. libpq is a client library: nothing here is a function of the server.
//!
//! Every wait is a poll(2) with a deadline that also looks at the stop signal. Only name resolution, inside
//! PQconnectStart(), cannot be cut short.

use crate::status::{Ask, AskFor, Lsn, SyncState, UpstreamFacts};
use pq_sys as pq;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// For connecting and asking together.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a wait looks whether the worker is ending.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes of an error of the primary that are passed on.
const ERROR_MAX: usize = 300;

/// Keeps the connection between questions.
#[derive(Default)]
pub(super) struct Asker {
    open: Option<Open>,
}

struct Open {
    connection: Connection,
    conninfo: String,
    /// Why SQL cannot be run here: only the replication protocol was let in.
    no_sql: Option<String>,
}

impl Ask for Asker {
    fn ask(&mut self, question: &AskFor, stop: &CancellationToken) -> Result<UpstreamFacts, String> {
        let wait = Wait { deadline: Instant::now() + PATIENCE, stop };
        if let Some(open) = self.open.take().filter(|open| open.conninfo == question.conninfo) {
            // A kept connection may have died with its server; a new one tells.
            if let Ok(facts) = open.ask(question, &wait) {
                self.open = Some(open);
                return Ok(facts);
            }
        }
        let open = Open::connect(&question.conninfo, &wait)?;
        let facts = open.ask(question, &wait)?;
        self.open = Some(open);
        Ok(facts)
    }

    fn close(&mut self) {
        self.open = None;
    }
}

impl Open {
    /// With `replication=database` both SQL and the replication commands work, but pg_hba.conf must let the role into
    /// the database; with `replication=true` it is let in wherever its WAL receiver is.
    fn connect(conninfo: &str, wait: &Wait<'_>) -> Result<Self, String> {
        let keep = |connection, no_sql| Self { connection, conninfo: conninfo.to_owned(), no_sql };
        match Connection::open(conninfo, c"database", wait) {
            Ok(connection) => Ok(keep(connection, None)),
            Err(refusal) => match Connection::open(conninfo, c"true", wait) {
                Ok(connection) => Ok(keep(connection, Some(refusal))),
                Err(error) => Err(error),
            },
        }
    }

    fn ask(&self, question: &AskFor, wait: &Wait<'_>) -> Result<UpstreamFacts, String> {
        let ask = |command: &str| self.connection.row(command, wait);
        let odd = |what: &str| format!("its primary's answer to {what} makes no sense");
        let system = ask("IDENTIFY_SYSTEM")?;
        let [id, timeline, position, ..] = system.as_slice() else { return Err(odd("IDENTIFY_SYSTEM")) };
        let recovery = ask("SHOW in_hot_standby")?;
        Ok(UpstreamFacts {
            system_identifier: id.parse().map_err(|_| odd("IDENTIFY_SYSTEM"))?,
            timeline: timeline.parse().map_err(|_| odd("IDENTIFY_SYSTEM"))?,
            position: position.parse::<Lsn>().map_err(|()| odd("IDENTIFY_SYSTEM"))?,
            in_recovery: recovery.first().is_some_and(|value| value == "on"),
            sync: self.sync_state(question, wait),
        })
    }

    /// Which of the primary's WAL senders is ours: the one on our slot, or those of our name that come from where we
    /// come from. Two such standbys without slots can only be told apart when they are not in different states.
    fn sync_state(&self, question: &AskFor, wait: &Wait<'_>) -> Result<SyncState, String> {
        if let Some(refusal) = &self.no_sql {
            return Err(refusal.clone());
        }
        let ours = if question.slot.is_empty() {
            let name = quoted(&application_name(question)?);
            format!("r.application_name = {name} AND r.client_addr IS NOT DISTINCT FROM inet_client_addr()")
        } else {
            let slot = quoted(&question.slot);
            format!("r.pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = {slot})")
        };
        let sql = format!(
            "SELECT string_agg(DISTINCT r.sync_state, ' ') FROM pg_stat_replication r \
             WHERE {ours} AND r.pid <> pg_backend_pid() AND r.state IN ('catchup', 'streaming')"
        );
        match self.connection.row(&sql, wait)?.first().map(String::as_str) {
            None | Some("") => Err("it does not show this standby in pg_stat_replication".to_owned()),
            Some(several) if several.contains(' ') => Err(
                "several standbys of this name come from this address; set primary_slot_name or application_name"
                    .to_owned(),
            ),
            Some(state) => SyncState::from_name(state).ok_or_else(|| format!("unknown sync_state \"{state}\"")),
        }
    }
}

/// The name that a WAL receiver gives itself (libpqrcv_connect(), src/backend/replication/libpqwalreceiver).
fn application_name(question: &AskFor) -> Result<String, String> {
    let given = option_of(&question.conninfo, c"application_name")?;
    Ok(given.unwrap_or_else(|| {
        if question.cluster_name.is_empty() {
            "walreceiver".to_owned()
        } else {
            question.cluster_name.clone()
        }
    }))
}

/// An SQL string literal that no setting of the server can make mean something else.
fn quoted(text: &str) -> String {
    format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// One option of a connection string; `None` where it is not given.
fn option_of(conninfo: &str, keyword: &CStr) -> Result<Option<String>, String> {
    let conninfo = CString::new(conninfo).map_err(|_| "primary_conninfo has a zero byte".to_owned())?;
    let mut message: *mut c_char = std::ptr::null_mut();
    // SAFETY: a terminated string in; what comes out is an array ended by a null keyword, which we free, or null and a
    // message, which we free.
    unsafe {
        let options = pq::PQconninfoParse(conninfo.as_ptr(), &raw mut message);
        if options.is_null() {
            let text = if message.is_null() { "out of memory".to_owned() } else { sentence(message) };
            pq::PQfreemem(message.cast());
            return Err(format!("primary_conninfo: {text}"));
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
    fn until_ready(&self, descriptor: c_int, events: i16) -> Result<(), String> {
        loop {
            if self.stop.is_cancelled() {
                return Err("the status worker is ending".to_owned());
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("its primary does not answer in time".to_owned());
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
    fn open(conninfo: &str, replication: &CStr, wait: &Wait<'_>) -> Result<Self, String> {
        let text = CString::new(conninfo).map_err(|_| "primary_conninfo has a zero byte".to_owned())?;
        let no_database = option_of(conninfo, c"dbname")?.is_none_or(|name| name == "replication");
        let mut keywords = vec![c"dbname".as_ptr(), c"replication".as_ptr(), c"application_name".as_ptr()];
        let mut values = vec![text.as_ptr(), replication.as_ptr(), c"postern status".as_ptr()];
        if no_database && replication == c"database" {
            // Only the first dbname is expanded as a connection string; this one is a plain name.
            keywords.push(c"dbname".as_ptr());
            values.push(c"postgres".as_ptr());
        }
        keywords.push(null());
        values.push(null());
        // SAFETY: two arrays of terminated strings, each ended by a null, alive for the call.
        let connection = Self(unsafe { pq::PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 1) });
        if connection.0.is_null() {
            return Err("out of memory".to_owned());
        }
        let mut polled = pq::PostgresPollingStatusType::PGRES_POLLING_WRITING;
        loop {
            // SAFETY: a live connection; the order of calls is that of libpq's documentation of PQconnectStart().
            let bad = unsafe { pq::PQstatus(connection.0) } == pq::ConnStatusType::CONNECTION_BAD;
            match polled {
                _ if bad => return Err(connection.error()),
                pq::PostgresPollingStatusType::PGRES_POLLING_OK => return Ok(connection),
                pq::PostgresPollingStatusType::PGRES_POLLING_FAILED => return Err(connection.error()),
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
    fn row(&self, command: &str, wait: &Wait<'_>) -> Result<Vec<String>, String> {
        let command = CString::new(command).map_err(|_| "a command has a zero byte".to_owned())?;
        // SAFETY: a live connection with no command under way, and a terminated string.
        if unsafe { pq::PQsendQuery(self.0, command.as_ptr()) } == 0 {
            return Err(self.error());
        }
        let mut row = Err("its primary gave no row".to_owned());
        loop {
            // SAFETY: a live connection; PQgetResult() does not block once PQisBusy() says 0.
            unsafe {
                while pq::PQisBusy(self.0) != 0 {
                    self.wait(wait, libc::POLLIN)?;
                    if pq::PQconsumeInput(self.0) == 0 {
                        return Err(self.error());
                    }
                }
                let result = pq::PQgetResult(self.0);
                if result.is_null() {
                    return row;
                }
                row = self.first_row(result);
                pq::PQclear(result);
            }
        }
    }

    /// # Safety
    /// `result` is a live result.
    unsafe fn first_row(&self, result: *mut pq::PGresult) -> Result<Vec<String>, String> {
        // SAFETY: by the caller; rows and columns are within what the result says of itself.
        unsafe {
            if pq::PQresultStatus(result) != pq::ExecStatusType::PGRES_TUPLES_OK {
                return Err(sentence(pq::PQresultErrorMessage(result)));
            }
            if pq::PQntuples(result) < 1 {
                return Err("its primary gave no row".to_owned());
            }
            let columns = pq::PQnfields(result);
            let value =
                |column| CStr::from_ptr(pq::PQgetvalue(result, 0, column)).to_string_lossy().into_owned();
            Ok((0..columns).map(value).collect())
        }
    }

    fn wait(&self, wait: &Wait<'_>, events: i16) -> Result<(), String> {
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

/// libpq's text on one line and of a bounded length; it never holds the password.
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
