//! What can be wrong with a stream. Pure.

/// A stream that cannot go on. Nothing of it comes from what somebody wrote into a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("pgoutput message is cut short")]
    Short,
    #[error("pgoutput message has {0} bytes too many")]
    Long(usize),
    /// A kind of message that the stream has not asked for, such as those of streamed transactions.
    #[error("unexpected pgoutput message type {}", .0.escape_ascii())]
    Unexpected(u8),
    /// `what` is the part of the message.
    #[error("invalid {what} {} in pgoutput message", .byte.escape_ascii())]
    Invalid { what: &'static str, byte: u8 },
    #[error("change of relation {0}, which was not described")]
    UnknownRelation(u32),
    #[error("row of table \"{table}\" has {found} columns, but {described} were described")]
    Columns { table: String, found: usize, described: usize },
    #[error("column \"{column}\" of table \"{table}\" came in binary format")]
    Binary { table: String, column: String },
}
