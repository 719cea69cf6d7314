//! The listen-only port: clients that listen and use no server connection. The front's own threads answer them, and give them what
//! the notification relay has heard.
//!
//! - [`Session`]: bytes of a client in, answers and what the relay is to do out; pure
//! - `statement`: from text to a statement; pure
//! - `values`: the session's settings and what a SELECT shows; pure
//! - `client`: a client's socket, its place among the clients, and the relay; network threads

mod client;
mod session;
mod statement;
mod values;

pub use client::{Listeners, Place, serve, watch_standing};
pub use session::{Change, MESSAGE_MAX, Session, Step};
pub use values::{Facts, Identity, Parameter, options};

use super::scan::Unterminated;
use crate::wire::{self, message::Report};

/// The number of no pool.
pub const NO_POOL: u16 = u16::MAX;

/// Why something fails. The words are the server's where it has them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("syntax error at {}", .0.as_ref().map_or("end of input".to_owned(), |near| format!("or near \"{near}\"")))]
    Syntax(Option<String>),
    #[error(transparent)]
    Unterminated(#[from] Unterminated),
    #[error("zero-length delimited identifier")]
    EmptyName,
    /// A query.
    #[error("only LISTEN and UNLISTEN work at this port")]
    NotHere,
    #[error("cannot insert multiple commands into a prepared statement")]
    SeveralCommands,
    #[error("invalid byte sequence for encoding \"UTF8\"")]
    NotUtf8,
    #[error("current transaction is aborted, commands ignored until end of transaction block")]
    Aborted,
    #[error("cannot execute LISTEN during recovery")]
    Recovery,
    #[error("DISCARD ALL cannot run inside a transaction block")]
    InBlock,
    #[error("unrecognized configuration parameter \"{0}\"")]
    NoSetting(String),
    #[error("parameter \"{0}\" cannot be changed")]
    FixedSetting(String),
    /// The encoding that notifications have.
    #[error("conversion between encodings is not supported at this port: client_encoding must be {0}")]
    Encoding(String),
    #[error("too many channels for one client")]
    TooManyChannels,
    #[error(transparent)]
    Wire(#[from] wire::Error),
}

impl Error {
    fn sqlstate(&self) -> &'static str {
        match self {
            Self::Syntax(_) | Self::Unterminated(_) | Self::EmptyName | Self::SeveralCommands => "42601",
            Self::NotHere | Self::Encoding(_) => "0A000",
            Self::NotUtf8 => "22021",
            Self::Aborted => "25P02",
            Self::Recovery => "25006",
            Self::InBlock => "25001",
            Self::NoSetting(_) => "42704",
            Self::FixedSetting(_) => "55P02",
            Self::TooManyChannels => "54000",
            Self::Wire(error) => error.sqlstate(),
        }
    }

    fn report(&self) -> Report {
        Report::error(self.sqlstate(), self.to_string())
    }
}
