//! Postern: the side gate that a PostgreSQL server keeps for itself. This file is the map of the house.
//!
//! - [`settings`]: what the operator writes, checked and made into plain structs. No PostgreSQL, no threads.
//! - [`bridge`]: the one door between the PostgreSQL thread of a worker and its network threads.
//! - [`net`]: network threads, listeners that follow a reload, accepting and closing.
//! - [`wire`]: the frontend/backend protocol as bytes and structs. No I/O, no PostgreSQL.
//! - [`pooler`]: the front of the pooler: PgBouncer's console.
//! - [`status`]: the banner, the agent line and the HTTP answers.
//! - `postgres`: the only room that knows pgrx; it exists with a `pgNN` feature only.
//!
//! `postgres` may use every room and nobody uses `postgres`. Services do not use each other.

pub mod bridge;
pub mod net;
pub mod pooler;
#[cfg(feature = "postgres")]
mod postgres;
pub mod settings;
pub mod status;
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
