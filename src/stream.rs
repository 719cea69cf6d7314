//! Change streams: what committed, delivered to sinks, nothing lost. A source (the server's own WAL, or topics of a Kafka broker)
//! feeds sinks (Kafka, a file, or one that only counts); a stream is one source feeding one sink.
//!
//! - [`options`]: what the operator wrote as jsonb, read key by key
//! - [`definition`]: what a source is to do
//! - [`position`]: where a stream is
//! - [`pgoutput`]: the messages of logical decoding as they come
//! - [`types`]: what form a type has in an event
//! - [`relation`]: tables, as the messages describe them
//! - [`clock`]: times of events, and of words in shared memory
//! - [`event`]: a change as one line of JSON
//! - [`buffer`]: decoded changes on their way from the PostgreSQL thread
//! - [`engine`]: gives events to the sinks of a source's streams, and knows what has been delivered
//! - [`gap`]: what was lost, in words
//! - [`sink`]: the small trait behind which each sink stands, and the sinks
//! - [`source`]: where events come from beside the server's own WAL
//! - [`lines`]: what threads have for the server's log
//! - [`ledger`]: what was given to a sink and has not been confirmed yet
//! - [`shared`]: the words in shared memory
//! - [`timings`]: how long things took, in such words
//! - [`page`]: what the port of `postern.stream_listen` answers
//! - [`broker`]: what the Kafka sink and the Kafka source have in common
//!
//! No PostgreSQL in here. What runs on which thread stands in each file; where nothing stands, it is pure.

#![forbid(unsafe_code)]

mod array;
#[cfg(feature = "kafka")]
pub mod broker;
pub mod buffer;
pub mod clock;
pub mod definition;
pub mod engine;
mod error;
pub mod event;
pub mod gap;
mod json;
pub mod ledger;
pub mod lines;
pub mod options;
pub mod page;
pub mod pgoutput;
pub mod position;
pub mod relation;
pub mod shared;
pub mod sink;
pub mod source;
pub mod timings;
pub mod types;
mod value;

pub use error::Error;
