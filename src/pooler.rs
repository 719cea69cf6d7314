//! The pooler's front: what it does with a logged-in client. Runs on network threads, or is pure.
//!
//! - [`console`]: the reserved database in which the front itself answers PgBouncer's commands

#![forbid(unsafe_code)]

pub mod console;
