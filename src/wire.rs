//! PostgreSQL's frontend/backend protocol, versions 3.0 to 3.2, as bytes and structs: no I/O, no PostgreSQL. Runs on
//! whatever thread asks. Names are those of the documentation's chapter "Frontend/Backend Protocol".
//!
//! - [`startup`]: the first packet of a connection
//! - [`frame`]: where one message of a client ends and the next begins, and whether the server would take it
//! - [`inbox`]: what a client has sent and nobody has answered yet, message by message
//! - [`extended`]: the bodies of a client's extended-protocol messages
//! - [`kept`]: the prepared statements and portals of a session, by their names
//! - [`message`]: messages to a client, and the few that a client sends

#![forbid(unsafe_code)]

pub mod extended;
pub mod frame;
pub mod inbox;
pub mod kept;
pub mod message;
pub mod startup;

/// A packet or message that the server itself would refuse, with its own words and SQLSTATE; and what is beyond a bound
/// that a service gives this room, for which the service may have words of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server closes such a connection without an answer and logs this.
    #[error("invalid length of startup packet")]
    StartupLength,
    #[error("invalid startup packet layout: expected terminator as last byte")]
    StartupLayout,
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.{2}")]
    Version(u16, u16, u16),
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    #[error("invalid value for parameter \"replication\": \"{0}\"")]
    Replication(String),
    #[error("invalid frontend message type {0}")]
    MessageType(u8),
    #[error("invalid message length")]
    MessageLength,
    #[error("invalid message format")]
    MessageFormat,
    #[error("prepared statement \"{0}\" does not exist")]
    NoStatement(String),
    #[error("prepared statement \"{0}\" already exists")]
    StatementExists(String),
    #[error("portal \"{0}\" does not exist")]
    NoPortal(String),
    #[error("portal \"{0}\" already exists")]
    PortalExists(String),
    /// It had no rows, and is not run twice.
    #[error("portal \"{0}\" cannot be run")]
    PortalDone(String),
    /// How many parameters have a value, and the statement, which has none.
    #[error("bind message supplies {0} parameters, but prepared statement \"{1}\" requires 0")]
    BindParameters(usize, String),
    /// How many format codes there are for how many columns.
    #[error("bind message has {0} result formats but query has {1} columns")]
    Formats(usize, usize),
    #[error("unsupported format code: {0}")]
    FormatCode(u16),
    #[error("too many prepared statements or portals")]
    TooManyKept,
    /// Bytes of the whole message.
    #[error("message of {0} bytes is too long")]
    MessageTooLong(usize),
    #[error("too much was sent before it could be read")]
    TooFarAhead,
}

impl Error {
    /// The SQLSTATE that the server gives it.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::Version(..) => "0A000",
            Self::NoUser => "28000",
            Self::Replication(_) | Self::FormatCode(_) => "22023",
            Self::NoStatement(_) => "26000",
            Self::StatementExists(_) => "42P05",
            Self::NoPortal(_) => "34000",
            Self::PortalExists(_) => "42P03",
            Self::PortalDone(_) => "55000",
            Self::TooManyKept | Self::MessageTooLong(_) | Self::TooFarAhead => "54000",
            _ => "08P01",
        }
    }
}
