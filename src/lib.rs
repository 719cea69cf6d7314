//! Postern: the side gate that a PostgreSQL server keeps for itself. This file is the map of the house.
//!
//! - [`settings`]: what the operator writes, checked and made into plain structs. No PostgreSQL, no threads.
//! - [`bridge`]: the one door between the PostgreSQL thread of a worker and its network threads.
//! - [`auth`]: who a client is: SCRAM, md5 and password, from both ends. No sockets, no PostgreSQL.
//! - [`net`]: network threads, listeners that follow a reload, accepting and closing.
//! - [`wire`]: the frontend/backend protocol as bytes and structs. No I/O, no PostgreSQL.
//! - [`login`]: from a startup packet to an authenticated client.
//! - [`status`]: the banner, the agent line and the HTTP answers.
//! - [`notification`]: LISTEN and NOTIFY as the pooler and the relay speak of them to each other.
//! - [`pooler`]: the front that hands clients' sockets to pooled backends.
//! - [`relay`]: LISTEN for everybody at the price of one listener.
//! - [`stream`]: what committed, delivered to Kafka and elsewhere.
//! - [`release`]: which version this is, and what goes with it.
//! - `postgres`: the only room that knows pgrx; it exists with a `pgNN` feature only.
//!
//! `postgres` may use every room and nobody uses `postgres`. Services do not use each other.

pub mod auth;
pub mod bridge;
pub mod login;
pub mod net;
pub mod notification;
pub mod pooler;
#[cfg(feature = "postgres")]
mod postgres;
pub mod relay;
pub mod release;
pub mod settings;
pub mod status;
pub mod stream;
pub mod wire;

#[cfg(feature = "postgres")]
::pgrx::pg_module_magic!(name, version);

/// What `#[pg_test]` calls before a test; it looks for it here.
#[cfg(all(test, feature = "postgres"))]
pub mod pg_test {
    pub fn setup(_options: Vec<&str>) {}

    pub fn postgresql_conf_options() -> Vec<&'static str> {
        Vec::new()
    }
}
