//! Change streams: from what pgoutput writes to events that sinks deliver. No PostgreSQL; what is here is pure unless its file
//! says which thread runs it.
//!
//! - [`position`]: where a stream is
//! - [`pgoutput`]: the messages of logical decoding as they come
//! - [`types`]: what form a type has in an event
//! - [`relation`]: tables, as the messages describe them
//! - [`event`]: a change as one line of JSON

#![forbid(unsafe_code)]

mod array;
mod clock;
mod error;
pub mod event;
mod json;
pub mod pgoutput;
pub mod position;
pub mod relation;
pub mod types;
mod value;

pub use error::Error;
