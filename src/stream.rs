//! Change streams: what committed, delivered to sinks, nothing lost. A source (the server's own WAL, or topics of a Kafka broker)
//! feeds sinks (Kafka, a file, or one that only counts); a stream is one source feeding one sink.
//!
//! - [`options`]: what the operator wrote as jsonb, read key by key
//! - [`sink`]: the small trait behind which each sink stands, and the sinks
//! - [`source`]: where events come from beside the server's own WAL
//! - [`ledger`]: what was given to a sink and has not been confirmed yet
//! - [`broker`]: what the Kafka sink and the Kafka source have in common
//!
//! No PostgreSQL in here. What runs on which thread stands in each file.

#![forbid(unsafe_code)]

#[cfg(feature = "kafka")]
pub mod broker;
pub mod ledger;
pub mod options;
pub mod sink;
pub mod source;
