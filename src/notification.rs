//! LISTEN and NOTIFY as the pooler and the relay speak of them to each other, which do not know each other. Values only.

#![forbid(unsafe_code)]

/// A LISTEN that somebody asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub client: u32,
    /// The database's OID and name.
    pub database: u32,
    pub database_name: &'a [u8],
    pub channel: &'a [u8],
    /// Its transaction has not committed: it is given nothing until it is confirmed.
    pub tentative: bool,
}

/// Who has a client that is to be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Whoever asked, who writes to it until it is given back or ended.
    Yes,
    /// A backend, which has been told if it waits and else looks what there is for the client before its next command; or the client's
    /// own task, likewise.
    Elsewhere,
    /// Somebody, for a moment.
    Busy,
    Gone,
}
