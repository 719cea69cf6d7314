//! The notification relay: LISTEN for any number of clients at the price of one listener a database. What the relay's worker hears
//! goes into a ring in shared memory; clients are written to by the front's threads while they are idle and by their backends while
//! these serve them.
//!
//! - [`shared`]: what stands in shared memory
//! - [`ring`]: the notifications
//! - [`book`]: who listens to what; the front's, which alone changes it
//! - [`reader`]: what a client is still to be sent
//! - [`listens`]: LISTENs that are asked for and answered
//! - [`pass`] and [`backlog`]: writing to clients, and to those that do not take all at once
//! - [`refusal`]: what clients hear
//! - [`clients`]: what the relay needs of the server
//! - [`engine`]: all of it together; starting and ending relays

#![forbid(unsafe_code)]

mod backlog;
pub mod book;
pub mod clients;
pub mod engine;
pub mod listens;
mod pass;
pub mod reader;
pub mod refusal;
pub mod ring;
pub mod shared;

/// The SQLSTATE of a client that is ended because it has not read its notifications while the ring still held them. Class PN is
/// Postern's own, of those that the SQL standard leaves to implementations (ISO 9075-2, clause 24.1).
pub const TOO_SLOW: &str = "PN001";
