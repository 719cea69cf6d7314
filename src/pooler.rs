//! The pooler: a front that logs clients in and hands their sockets to pooled backends, which serve them as their own.
//! Everything here runs on the front's network threads or is pure; what runs inside the pooled backends is
//! `postgres::agent`.
//!
//! - [`front`]: what its threads share; ending clients
//! - [`hands`]: its threads
//! - `reception`, `conversation`: a client from its first byte to its place
//! - [`seats`]: the clients' sockets, each at its number
//! - [`pools`]: when a server connection is opened and closed, who has waited too long
//! - [`limits`]: time limits of clients that a backend serves
//! - `idle`: of clients that want nothing
//! - [`opening`]: logging in at the server
//! - [`notifications`]: what the front and the notification relay are to each other
//! - [`agents`], [`control`]: what the front and the session agents say to each other
//! - [`cancel`]: cancel requests
//! - [`replication`]: connections that are copied to one of their own
//! - [`console`]: PgBouncer's console
//! - [`listening`]: clients that only listen
//! - `scan`: from a query's text to tokens, for both of these
//! - [`glance`], [`orders`]: what others may see and ask, by shared memory alone
//! - [`console_client`], [`operator`]: its clients, and what it sees and does
//! - [`history`]: counts of databases
//! - [`shown`]: what a client has shown of itself
//! - `sabotage`: how tests break it
//! - [`shared`], [`slot`], [`state`]: what stands in shared memory

#![forbid(unsafe_code)]

pub mod agents;
pub mod cancel;
pub mod console;
pub mod console_client;
pub mod control;
mod conversation;
pub mod front;
pub mod glance;
pub mod hands;
pub mod history;
mod idle;
pub mod limits;
pub mod listening;
pub mod notifications;
pub mod opening;
pub mod operator;
pub mod orders;
pub mod pools;
mod reception;
pub mod replication;
mod sabotage;
mod scan;
pub mod seats;
pub mod shared;
pub mod shown;
pub mod slot;
pub mod state;
