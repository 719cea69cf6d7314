//! Change streams as the server runs them: the launcher, the scouts, the workers that decode, the definitions in the catalogs, and what
//! SQL can call. PostgreSQL threads only.
//!
//! - `launcher`: starts the other workers, and starts them again
//! - `scout`: reads the definitions of one database
//! - `worker`: a source's process, from its start to its end
//! - `prepare`: the publication and the slot
//! - `work`: decodes, confirms, writes down
//! - `confirming`: what the slot may confirm
//! - `intake`: takes what is decoded
//! - `feeds`: what the engine is given
//! - `snapshot`: what is there before a stream begins
//! - `consumer`: a source that is not this server's WAL
//! - `catalog`: the definitions and positions as tables
//! - `records`: what workers write there
//! - `limit`: how much WAL may wait for the sinks, and what then
//! - `decoding`: logical decoding in this process
//! - `functions`: what SQL can call

mod catalog;
mod confirming;
mod consumer;
mod decoding;
mod feeds;
mod functions;
mod intake;
pub(super) mod launcher;
mod limit;
mod prepare;
mod records;
mod scout;
mod snapshot;
mod work;
mod worker;
