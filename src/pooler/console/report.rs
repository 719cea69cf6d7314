//! What the console shows, as plain data. Counts are of now; times of day are the system's. Pure.

use std::time::{Duration, SystemTime};

/// When a client gives its server connection back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    Session,
    Transaction,
    Statement,
}

impl PoolMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        }
    }
}

/// What the pooler does as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Active,
    Paused,
}

/// The console as a pool of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleReport {
    /// Clients that it has now.
    pub clients: u64,
    /// The port that the pooler listens on.
    pub port: u16,
}

/// A notification channel that clients listen to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelReport {
    pub database: String,
    pub channel: String,
    pub listeners: u64,
    /// Notifications that they were given, together.
    pub delivered: u64,
    pub since: SystemTime,
}

/// A pool: a database and a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolReport {
    pub database: String,
    pub user: String,
    /// Clients that have a server connection, or want none now.
    pub cl_active: u64,
    /// Clients that want a server connection and have none yet.
    pub cl_waiting: u64,
    /// Cancel requests that are with the server, and those that are not yet.
    pub cl_active_cancel_req: u64,
    pub cl_waiting_cancel_req: u64,
    /// Server connections with a client.
    pub sv_active: u64,
    /// Server connections that carry a cancel request, and those that wait for one to pass.
    pub sv_active_cancel: u64,
    pub sv_being_canceled: u64,
    /// Server connections that are free; free but to be checked first; being checked; logging in.
    pub sv_idle: u64,
    pub sv_used: u64,
    pub sv_tested: u64,
    pub sv_login: u64,
    /// How long the client has waited that has waited longest.
    pub maxwait: Duration,
    pub pool_mode: PoolMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientState {
    Active,
    Waiting,
    ActiveCancelRequest,
    WaitingCancelRequest,
    /// Not logged in yet: shown by SHOW SOCKETS only.
    Login,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    Active,
    Idle,
    Used,
    Tested,
    /// Logging in.
    New,
    ActiveCancel,
    BeingCanceled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    None,
    Logical,
    Physical,
}

/// What SHOW CLIENTS and SHOW SERVERS both say of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketReport {
    /// No other client or server connection has it; KILL_CLIENT takes a client's.
    pub id: u64,
    /// The id of the server connection that the client has, or of the client that the server connection has.
    pub link: Option<u64>,
    pub user: Option<String>,
    pub database: Option<String>,
    pub replication: Replication,
    /// The other end: an address, or `unix` with the port of the socket's name.
    pub addr: String,
    pub port: u16,
    /// This end, likewise.
    pub local_addr: String,
    pub local_port: u16,
    pub connect_time: SystemTime,
    /// When it last asked for something.
    pub request_time: SystemTime,
    /// How long it has waited for now.
    pub wait: Duration,
    pub close_needed: bool,
    /// The process at the other end where that is known, a server connection's backend; else 0.
    pub remote_pid: u32,
    /// `TLSv1.3/TLS_AES_256_GCM_SHA384`, or empty.
    pub tls: String,
    pub application_name: String,
    pub prepared_statements: u64,
    /// Bytes that the front has read from it and not passed on, and those it has yet to write to it. Both are 0 for a
    /// client whose socket was handed over.
    pub unread: u64,
    pub unsent: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientReport {
    pub state: ClientState,
    pub socket: SocketReport,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerReport {
    pub state: ServerState,
    pub socket: SocketReport,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseReport {
    pub name: String,
    /// `None` is the server's Unix socket.
    pub host: Option<String>,
    pub port: u16,
    /// The database's name on the server.
    pub database: String,
    pub force_user: Option<String>,
    pub pool_size: u32,
    pub min_pool_size: u32,
    pub reserve_pool_size: u32,
    pub server_lifetime: Duration,
    /// `None` where the default holds.
    pub pool_mode: Option<PoolMode>,
    /// Server connections; 0 is no limit.
    pub max_connections: u64,
    pub current_connections: u64,
    /// Clients; 0 is no limit.
    pub max_client_connections: u64,
    pub current_client_connections: u64,
    pub paused: bool,
    pub disabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserReport {
    pub name: String,
    /// `None`, here and below, where the default holds.
    pub pool_size: Option<u32>,
    pub reserve_pool_size: Option<u32>,
    pub pool_mode: Option<PoolMode>,
    /// Server connections; 0 is no limit.
    pub max_user_connections: u64,
    pub current_connections: u64,
    /// Clients; 0 is no limit.
    pub max_user_client_connections: u64,
    pub current_client_connections: u64,
}

/// What is counted of a database. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// How often a client got a server connection.
    pub server_assignment_count: u64,
    pub xact_count: u64,
    pub query_count: u64,
    /// Bytes from and to clients.
    pub received: u64,
    pub sent: u64,
    /// Time in transactions, in queries, and waiting for a server connection.
    pub xact_time: u64,
    pub query_time: u64,
    pub wait_time: u64,
    /// Prepared statements: made by clients, made on server connections, bound.
    pub client_parse_count: u64,
    pub server_parse_count: u64,
    pub bind_count: u64,
}

/// What happened in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsReport {
    pub database: String,
    /// Since the pooler started.
    pub total: Counters,
    /// Within `period`, the last whole period of statistics and what has passed of this one. Averages are made from it.
    pub recent: Counters,
    pub period: Duration,
}

/// How many there are, without the console's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListsReport {
    pub databases: u64,
    pub users: u64,
    pub pools: u64,
    pub free_clients: u64,
    /// Those of the console too.
    pub used_clients: u64,
    pub login_clients: u64,
    pub free_servers: u64,
    pub used_servers: u64,
}

/// A row of SHOW CONFIG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingReport {
    pub key: String,
    pub value: Option<String>,
    pub default: Option<String>,
    /// Whether a reload changes it.
    pub changeable: bool,
}

/// A table of equal places in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryReport {
    pub name: String,
    /// Bytes of a place.
    pub size: u64,
    /// How many places are taken, and how many are not.
    pub used: u64,
    pub free: u64,
}
