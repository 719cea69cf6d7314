//! The pooler's settings as plain structs. Times are PgBouncer's, in seconds there; 0 is off.

use super::ListenList;
use std::time::Duration;

/// What the front is told. Replaced as a whole on reload.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolerSettings {
    /// `postern.pooler_listen`, and a Unix socket beside each of the server's.
    pub listen: ListenList,
    /// `postern.relay_listen`, likewise.
    pub relay_listen: ListenList,
    /// `postern.pool_size`: server connections a database and role.
    pub pool_size: u32,
    /// `postern.min_pool_size`: connections that a pool keeps open.
    pub min_pool_size: u32,
    /// `postern.reserve_pool_size`: connections beyond `pool_size`, for clients that have waited for `reserve_pool_timeout`.
    pub reserve_pool_size: u32,
    /// `postern.reserve_pool_timeout`; none means that the reserve is never used.
    pub reserve_pool_timeout: Option<Duration>,
    /// `postern.pool_mode`: 0 transaction, 1 session, 2 statement.
    pub pool_mode: u32,
    /// `postern.max_client_connections`.
    pub max_clients: u32,
    /// `postern.pooler_threads`; 0 is as 1.
    pub threads: u32,
    /// `postern.relay_max_backlog`, in bytes; 0 is as much as the ring holds.
    pub relay_max_backlog: u64,
    /// `postern.client_login_timeout`.
    pub client_login_timeout: Option<Duration>,
    /// `postern.client_idle_timeout`.
    pub client_idle_timeout: Option<Duration>,
    /// `postern.client_message_timeout`.
    pub client_message_timeout: Option<Duration>,
    /// `postern.query_timeout`.
    pub query_timeout: Option<Duration>,
    /// `postern.transaction_timeout`.
    pub transaction_timeout: Option<Duration>,
    /// `postern.idle_transaction_timeout`.
    pub idle_transaction_timeout: Option<Duration>,
    /// `postern.query_wait_timeout`.
    pub query_wait_timeout: Option<Duration>,
    /// `postern.server_idle_timeout`.
    pub server_idle_timeout: Option<Duration>,
    /// `postern.server_lifetime`.
    pub server_lifetime: Option<Duration>,
    /// `postern.server_connect_timeout`.
    pub server_connect_timeout: Option<Duration>,
    /// `postern.server_login_retry`.
    pub server_login_retry: Duration,
    pub door: ServerDoor,
    pub tls: Option<TlsFiles>,
}

/// Where the server itself listens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerDoor {
    /// `port`.
    pub port: u16,
    /// The first of `unix_socket_directories` where its socket is; empty when there is none.
    pub socket_directory: String,
    /// Whether `listen_addresses` lets loopback TCP in, and by which address.
    pub loopback: Option<std::net::IpAddr>,
    /// The newest minor version of protocol 3 that it speaks.
    pub protocol_minor: u16,
}

/// The server's TLS settings: `ssl_cert_file` and so on, as whole paths. `None` where `ssl` is off.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TlsFiles {
    pub certificate: String,
    pub key: String,
    pub authorities: String,
    pub revocations: String,
    pub revocation_directory: String,
    /// `ssl_min_protocol_version` is TLSv1.3.
    pub only_1_3: bool,
    /// `ssl_max_protocol_version` is TLSv1.2 or less.
    pub only_1_2: bool,
}
