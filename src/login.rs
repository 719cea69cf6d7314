//! From a startup packet to an authenticated client, as a server does it: for the pooler's port and the listen-only port. Network
//! threads.
//!
//! Bytes are read exactly as far as they belong to the login, so that whatever a client sends behind it is still in its socket.

#![forbid(unsafe_code)]

pub mod exchange;
pub mod question;

pub use exchange::{Door, Login, Outcome, log_in};
pub use question::{
    Admission, Arrival, Method, Origin, Question, Questions, Rights, Standing, Unanswered, Verdict,
};

use crate::wire::message::Report;

/// Why a login ends. What the client hears and what the log gets are different texts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client went away or sent what is not answered; the log need not hear of it.
    #[error("the connection was closed")]
    Closed,
    #[error("{}", .0.message)]
    Told(Box<Report>, Option<String>),
    #[error("the login took longer than postern.client_login_timeout")]
    TooSlow,
}

impl From<std::io::Error> for Error {
    fn from(_: std::io::Error) -> Self {
        Self::Closed
    }
}

impl From<Report> for Error {
    fn from(report: Report) -> Self {
        Self::Told(Box::new(report), None)
    }
}

impl From<crate::auth::Error> for Error {
    fn from(error: crate::auth::Error) -> Self {
        let mut report = Report::fatal(error.sqlstate(), error.to_string());
        report.detail = error.detail().map(str::to_owned);
        Self::Told(Box::new(report), error.log_detail().map(str::to_owned))
    }
}

impl From<crate::wire::Error> for Error {
    fn from(error: crate::wire::Error) -> Self {
        match error {
            // The server closes these without a word.
            crate::wire::Error::StartupLength => Self::Closed,
            crate::wire::Error::Version(0..=2, ..) => Report::before_protocol_3(error.to_string()).into(),
            crate::wire::Error::Replication(_) => Report::fatal(error.sqlstate(), error.to_string())
                .with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
                .into(),
            _ => Report::fatal(error.sqlstate(), error.to_string()).into(),
        }
    }
}

impl From<Unanswered> for Error {
    fn from(_: Unanswered) -> Self {
        Report::fatal("53300", "sorry, too many clients already")
            .with_detail("The pooler has too many logins under way.")
            .into()
    }
}
