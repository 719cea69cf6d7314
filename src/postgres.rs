//! The only room that knows PostgreSQL. Everything here runs on a PostgreSQL thread: the postmaster's, a backend's,
//! or a worker's main thread. The one exception is asking the primary through libpq, a client library, which runs on a blocking thread.
//!
//! - `agent`: what runs inside pooled backends
//! - `init`: what happens when the server loads the library
//! - `guc`: the settings as PostgreSQL knows them
//! - `shim`: what only C can reach
//! - `shmem`: mapping the shared words
//! - `worker`: the status worker's main loop
//! - `front`: the pooler's main loop
//! - `relay`: a database's notification relay
//! - `notifications`: where the pooler and the relay meet
//! - `activity`: what a pooled backend does
//! - `answers`: what logins ask of the catalogs and of pg_hba.conf
//! - `sample`: taking facts from the server
//! - `asker`, `libpq`: asking the primary
//! - `dynamic`: workers that a worker starts
//! - `functions`, `pool_functions`, `relay_functions`: what SQL can call
//! - `pool_metrics`, `relay_metrics`, `stream_metrics`: what the status worker shows of the pooler, of the relay and of change streams
//! - `stream`: change streams
//! - `versions`: every difference between major versions

mod activity;
mod agent;
mod answers;
mod asker;
mod dynamic;
mod front;
mod functions;
mod guc;
mod init;
mod libpq;
mod notifications;
mod pool_functions;
mod pool_metrics;
mod relay;
mod relay_functions;
mod relay_metrics;
mod sample;
mod shim;
mod shmem;
mod signals;
mod stream;
mod stream_metrics;
mod versions;
mod worker;

#[cfg(any(test, feature = "pg_test"))]
mod in_server_tests;
