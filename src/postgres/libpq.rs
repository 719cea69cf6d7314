//! A connection by libpq, the language of `primary_conninfo`, for [`super::asker`]. Runs on a blocking thread of the HTTP
//! runtime, never on main. libpq is a client library: nothing here is a function of the server.
//!
//! Every wait is a poll(2) with a deadline that also looks at the stop signal. Only name resolution, inside
//! PQconnectStart(), cannot be cut short.

use crate::status::AskError;
use pq_sys as pq;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often a wait looks whether the worker is ending.
const LOOK: Duration = Duration::from_millis(50);

/// SQLSTATEs, as libpq writes them, that another try would not change: invalid_authorization_specification (also of
/// pg_hba.conf), invalid_password, invalid_catalog_name, insufficient_privilege.
const NOT_LET_IN: [&str; 4] = [" 28000:", " 28P01:", " 3D000:", " 42501:"];

/// Bytes of an error of the primary that are logged.
const ERROR_MAX: usize = 300;

/// An error for the network, and words for the log.
pub(super) struct Failure {
    pub error: AskError,
    pub words: Option<String>,
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self { error, words: None }
    }
}

/// One option of a connection string; `None` where it is not given. What libpq says of a mistake may quote the password,
/// so it is told to nobody.
pub(super) fn option_of(conninfo: &str, keyword: &CStr) -> Result<Option<String>, AskError> {
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

/// How long a question may take, and what ends it earlier.
pub(super) struct Wait<'a> {
    pub deadline: Instant,
    pub stop: &'a CancellationToken,
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
pub(super) struct Connection(*mut pq::PGconn);

// SAFETY: libpq's connections may be used by any thread, one at a time, which `&self` methods keep since the value is
// owned by one asker (libpq documentation, "Behavior in Threaded Programs").
unsafe impl Send for Connection {}

impl Connection {
    /// An ordinary connection, or one that speaks the replication protocol.
    pub fn open(conninfo: &str, replication: Option<&CStr>, wait: &Wait<'_>) -> Result<Self, Failure> {
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
    pub fn row(&self, command: &str, wait: &Wait<'_>) -> Result<Vec<String>, Failure> {
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
