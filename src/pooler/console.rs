//! The console: a client of the reserved database `postern` speaks to the front itself, which answers PgBouncer's
//! commands as PgBouncer 1.24 does (its documentation, "Admin console"), so that exporters and scripts need no change.
//! Beyond PgBouncer it speaks the extended protocol and takes what drivers send unasked. Pure, no I/O; network threads.
//!
//! - [`Session`]: bytes of a client in, answers out
//! - [`Operator`]: what the front must be able to tell and do
//! - `report`: what is shown, as plain data
//! - `command`: from text to a command
//! - `run`: a command upon an operator
//! - `show`, `table`: from reports to rows, in PgBouncer's columns
//!
//! A console is a client without a server connection: it counts in no pool but its own, which is shown as PgBouncer
//! shows its own, because exporters take an empty answer for a failure.

mod command;
mod operator;
mod parameter;
#[cfg(test)]
mod rehearsal;
mod report;
mod run;
mod session;
mod show;
mod table;

pub use operator::{Operator, Progress, Shutdown};
pub use report::{
    ChannelReport, ClientReport, ClientState, ConsoleReport, Counters, DatabaseReport, ListsReport,
    MemoryReport, PoolMode, PoolReport, Replication, ServerReport, ServerState, SettingReport, SocketReport,
    State, StatsReport, UserReport,
};
pub use session::{MESSAGE_MAX, Session, Step, greeting};

use super::scan::Unterminated;
use crate::wire::{self, message::Report};

/// The database's name.
pub const DATABASE: &str = "postern";

/// The name that scripts and exporters have in them (Debian's exporter and Datadog's have no setting for it): the front
/// may send a client of it here where the server has no such database.
pub const PGBOUNCER_DATABASE: &str = "pgbouncer";

/// `server_version`. PgBouncer's number, because drivers choose by it what they may ask: they take this for a server too
/// old to be asked about types, as they take PgBouncer.
pub const SERVER_VERSION: &str = "1.24.1/postern";

/// What `SHOW VERSION` answers. Checks look for the first three numbers with points in it, to know which columns there
/// are: these must be PgBouncer's.
pub const VERSION: &str = concat!("PgBouncer 1.24.1 (postern ", env!("CARGO_PKG_VERSION"), ")");

/// What a client of the console may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything: PgBouncer's `admin_users`, here superusers.
    Admin,
    /// SHOW only: PgBouncer's `stats_users`, here members of pg_monitor.
    Monitor,
}

/// Why a command fails. The first line of each is PgBouncer's own where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("invalid command '{0}', use SHOW HELP;")]
    InvalidCommand(String),
    #[error(transparent)]
    Unterminated(#[from] Unterminated),
    #[error("the console takes no parameters")]
    TakesNoParameters,
    #[error("cannot insert multiple commands into a prepared statement")]
    SeveralCommands,
    #[error("invalid byte sequence for encoding \"UTF8\"")]
    NotUtf8,
    #[error("admin access needed")]
    AdminNeeded,
    #[error("a database is required")]
    DatabaseRequired,
    #[error("no such database: {0}")]
    NoSuchDatabase(String),
    /// What cannot be done, and the console's name.
    #[error("cannot {0} admin db: {1}")]
    OwnDatabase(&'static str, String),
    #[error("database {0} is not paused")]
    DatabaseNotPaused(String),
    #[error("pooler is not paused/suspended")]
    NotPaused,
    #[error("already suspended/paused")]
    AlreadyPaused,
    #[error("invalid client pointer supplied")]
    ClientId,
    #[error("client not found")]
    NoSuchClient,
    #[error("unrecognized configuration parameter \"{0}\"")]
    UnknownSetting(String),
    /// The setting, the value, and what would be one.
    #[error("invalid value for parameter \"{0}\": \"{1}\"")]
    SettingValue(String, String, String),
    /// The setting, and when or where it can be changed.
    #[error("parameter \"{0}\" cannot be changed here")]
    SettingFixed(String, String),
    /// The command, and what to do instead.
    #[error("{0} is not supported")]
    Unsupported(&'static str, &'static str),
    /// What the front says when it cannot do what it was told, without a better word for it.
    #[error("{0}")]
    Failed(String),
    #[error("{0} was undone by another command")]
    Undone(&'static str),
    #[error("canceling statement due to user request")]
    Canceled,
    #[error("too many prepared statements or portals")]
    TooManyKept,
    #[error("message of {0} bytes is too long for the console")]
    MessageTooLong(usize),
    #[error("more is sent than the console reads ahead")]
    TooFarAhead,
    #[error(transparent)]
    Wire(wire::Error),
}

impl From<wire::Error> for Error {
    /// What is beyond this room's own bounds has its own words and SQLSTATE.
    fn from(error: wire::Error) -> Self {
        match error {
            wire::Error::TooManyKept => Self::TooManyKept,
            wire::Error::MessageTooLong(length) => Self::MessageTooLong(length),
            wire::Error::TooFarAhead => Self::TooFarAhead,
            other => Self::Wire(other),
        }
    }
}

impl Error {
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::InvalidCommand(_)
            | Self::Unterminated(_)
            | Self::SeveralCommands
            | Self::DatabaseRequired => "42601",
            Self::TakesNoParameters => "42P02",
            Self::NotUtf8 => "22021",
            Self::AdminNeeded => "42501",
            Self::NoSuchDatabase(_) => "3D000",
            Self::OwnDatabase(..) | Self::Unsupported(..) => "0A000",
            Self::DatabaseNotPaused(_) | Self::NotPaused | Self::AlreadyPaused | Self::Undone(_) => "55000",
            Self::ClientId | Self::SettingValue(..) => "22023",
            Self::NoSuchClient | Self::UnknownSetting(_) => "42704",
            Self::SettingFixed(..) => "55P02",
            // What PgBouncer gives every error of its console.
            Self::Failed(_) => "08P01",
            Self::Canceled => "57014",
            Self::TooManyKept => "53400",
            Self::MessageTooLong(_) | Self::TooFarAhead => "08P01",
            Self::Wire(error) => error.sqlstate(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::InvalidCommand(text) => command::possible_instead_of(text).to_owned(),
            Self::TakesNoParameters => "Write the value into the command.".to_owned(),
            Self::AdminNeeded => "Members of pg_monitor may use SHOW; all else needs a superuser.".to_owned(),
            Self::ClientId => "KILL_CLIENT takes the id that SHOW CLIENTS shows.".to_owned(),
            Self::SettingValue(_, _, hint) | Self::SettingFixed(_, hint) => hint.clone(),
            Self::Unsupported(_, hint) => (*hint).to_owned(),
            Self::Canceled => "What was begun goes on; RESUME undoes a PAUSE.".to_owned(),
            Self::MessageTooLong(_) => format!("It takes {MESSAGE_MAX} bytes at most."),
            _ => return None,
        })
    }

    fn report(&self, severity: &'static str) -> Report {
        let mut report = Report::error(self.sqlstate(), self.to_string());
        report.severity = severity;
        report.hint = self.hint();
        report
    }
}
