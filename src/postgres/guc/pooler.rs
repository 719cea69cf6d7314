//! The pooler's settings, and those of the relay that its front heeds. Defined in the postmaster, read on main and in pooled backends.

use super::definition::{LIST_HELP, check_list, copied, number, text, value};
use super::relay::{RELAY_LISTEN, RELAY_MAX_BACKLOG};
use crate::settings::{ListenList, PoolerSettings, ServerDoor, TlsFiles};
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::{CStr, CString};
use std::time::Duration;

static POOLER_LISTEN: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"localhost:6432"));
static POOL_MODE: GucSetting<PoolMode> = GucSetting::<PoolMode>::new(PoolMode::transaction);
static POOL_SIZE: GucSetting<i32> = GucSetting::<i32>::new(20);
static MIN_POOL_SIZE: GucSetting<i32> = GucSetting::<i32>::new(0);
static RESERVE_POOL_SIZE: GucSetting<i32> = GucSetting::<i32>::new(0);
static RESERVE_POOL_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5);
static MAX_CLIENT_CONNECTIONS: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static POOLER_THREADS: GucSetting<i32> = GucSetting::<i32>::new(1);
static MAX_PREPARED_STATEMENTS: GucSetting<i32> = GucSetting::<i32>::new(200);
static CLIENT_STATE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(256);
static CLIENT_LOGIN_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60);
static CLIENT_IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static CLIENT_MESSAGE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30);
static QUERY_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static TRANSACTION_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static IDLE_TRANSACTION_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static QUERY_WAIT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(120);
static SERVER_IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(600);
static SERVER_LIFETIME: GucSetting<i32> = GucSetting::<i32>::new(3600);
static SERVER_CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(15);
static SERVER_LOGIN_RETRY: GucSetting<i32> = GucSetting::<i32>::new(15);

/// `postern.pool_mode`: how long a client keeps the backend that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub(in crate::postgres) enum PoolMode {
    transaction,
    session,
    statement,
}

impl PoolMode {
    /// By number.
    pub const NAMES: [&str; 3] = ["transaction", "session", "statement"];
}

pub(super) fn define() {
    text(
        c"postern.pooler_listen",
        c"Addresses of the pooler; also a Unix socket of the same port beside each of the server's.",
        LIST_HELP,
        &POOLER_LISTEN,
        check_list,
    );
    GucRegistry::define_enum_guc(
        c"postern.pool_mode",
        c"How long a client of the pooler keeps its server connection.",
        c"transaction: until the transaction ends; session: until the client goes; statement: as transaction, and \
          transaction blocks are refused. May be set by role, database, session or the client's own options.",
        &POOL_MODE,
        GucContext::Userset,
        GucFlags::default(),
    );
    number(
        c"postern.pool_size",
        c"Server connections that the pooler opens for a database and role.",
        c"ALTER ROLE and ALTER DATABASE may give other values for theirs. Takes effect on reload.",
        &POOL_SIZE,
        (1, 512),
        GucContext::Suset,
        GucFlags::default(),
    );
    number(
        c"postern.min_pool_size",
        c"Server connections that the pooler keeps open for a database and role.",
        c"They are opened while the pool has a client, up to postern.pool_size, and are not closed for being unused. \
          Takes effect on reload.",
        &MIN_POOL_SIZE,
        (0, 512),
        GucContext::Sighup,
        GucFlags::default(),
    );
    number(
        c"postern.reserve_pool_size",
        c"Server connections for a database and role beyond postern.pool_size, for when clients wait too long.",
        c"postern.reserve_pool_timeout says how long that is. Takes effect on reload.",
        &RESERVE_POOL_SIZE,
        (0, 512),
        GucContext::Sighup,
        GucFlags::default(),
    );
    number(
        c"postern.max_client_connections",
        c"Clients that the pooler serves at once.",
        c"Sizes the table of clients in shared memory; takes effect at the server's start. The limit of open files may allow fewer.",
        &MAX_CLIENT_CONNECTIONS,
        (1, 100_000),
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"postern.pooler_threads",
        c"Network threads of the pooler, over which logins and the encryption of TLS clients are spread.",
        c"A client without TLS needs none of them once it is logged in. Takes effect at the server's start.",
        &POOLER_THREADS,
        (1, crate::pooler::hands::MOST as i32),
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"postern.max_prepared_statements",
        c"Plans of prepared statements that a pooled backend keeps for its clients together.",
        c"Beyond it those used longest ago are made again when needed. Takes effect on reload.",
        &MAX_PREPARED_STATEMENTS,
        (0, 100_000),
        GucContext::Sighup,
        GucFlags::default(),
    );
    number(
        c"postern.client_state_size",
        c"Memory for the settings and prepared statements of one client of the pooler.",
        c"A client that needs more keeps its server connection. Takes effect on reload.",
        &CLIENT_STATE_SIZE,
        (1, 1_048_576),
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    let times: [(&CStr, &CStr, &'static GucSetting<i32>); 12] = [
        (
            c"postern.client_login_timeout",
            c"Time in which a client must have logged in.",
            &CLIENT_LOGIN_TIMEOUT,
        ),
        (
            c"postern.client_idle_timeout",
            c"Time after which an idle client is disconnected.",
            &CLIENT_IDLE_TIMEOUT,
        ),
        (
            c"postern.client_message_timeout",
            c"Time after which a client is disconnected that has sent a part of a message and not the rest.",
            &CLIENT_MESSAGE_TIMEOUT,
        ),
        (
            c"postern.query_timeout",
            c"Time that a query of a client of the pooler may take before the client is disconnected.",
            &QUERY_TIMEOUT,
        ),
        (
            c"postern.transaction_timeout",
            c"Time that a transaction of a client of the pooler may take before the client is disconnected.",
            &TRANSACTION_TIMEOUT,
        ),
        (
            c"postern.idle_transaction_timeout",
            c"Time that a client of the pooler may be idle in a transaction before it is disconnected.",
            &IDLE_TRANSACTION_TIMEOUT,
        ),
        (
            c"postern.query_wait_timeout",
            c"Time that a client's query may wait for a server connection before the client is disconnected.",
            &QUERY_WAIT_TIMEOUT,
        ),
        (
            c"postern.reserve_pool_timeout",
            c"Time that a client must have waited before connections of postern.reserve_pool_size are opened.",
            &RESERVE_POOL_TIMEOUT,
        ),
        (
            c"postern.server_idle_timeout",
            c"Time after which a server connection that nobody uses is closed.",
            &SERVER_IDLE_TIMEOUT,
        ),
        (
            c"postern.server_lifetime",
            c"Age at which an unused server connection is closed.",
            &SERVER_LIFETIME,
        ),
        (
            c"postern.server_connect_timeout",
            c"Time in which a server connection must be open and logged in.",
            &SERVER_CONNECT_TIMEOUT,
        ),
        (
            c"postern.server_login_retry",
            c"Pause after a failed server connection before another is tried.",
            &SERVER_LOGIN_RETRY,
        ),
    ];
    for (name, short, setting) in times {
        let long = c"0 is none. Takes effect on reload.";
        number(name, short, long, setting, (0, 2_147_483), GucContext::Sighup, GucFlags::UNIT_S);
    }
}

/// The modes and bounds that the agent reads in its own session.
pub(in crate::postgres) fn pool_mode() -> PoolMode {
    POOL_MODE.get()
}

pub(in crate::postgres) fn max_prepared_statements() -> usize {
    usize::try_from(MAX_PREPARED_STATEMENTS.get()).unwrap_or(0)
}

/// `postern.pool_size` of this session: its role's and database's, if they have one.
pub(in crate::postgres) fn pool_size() -> u32 {
    u32::try_from(POOL_SIZE.get()).unwrap_or(1)
}

/// Bytes.
pub(in crate::postgres) fn client_state_size() -> usize {
    usize::try_from(CLIENT_STATE_SIZE.get()).unwrap_or(0) * 1024
}

/// Places in the table of clients. Fixed at the server's start.
pub(in crate::postgres) fn max_client_connections() -> usize {
    usize::try_from(MAX_CLIENT_CONNECTIONS.get()).unwrap_or(1)
}

pub(super) fn settings() -> Result<PoolerSettings, crate::settings::Error> {
    let seconds = |setting: &GucSetting<i32>| u64::try_from(setting.get()).unwrap_or(0);
    let time = |setting| Some(Duration::from_secs(seconds(setting))).filter(|time| !time.is_zero());
    // SAFETY: settings of the server, read on the thread that reloads them; strings are null or terminated.
    let (directories, addresses, port) = unsafe {
        (copied(pg_sys::Unix_socket_directories), copied(pg_sys::ListenAddresses), pg_sys::PostPortNumber)
    };
    let directories = directories.split(',').map(|d| d.trim().trim_matches('"')).filter(|d| !d.is_empty());
    let directories: Vec<&str> = directories.collect();
    let listens = |setting| -> Result<ListenList, crate::settings::Error> {
        let list: ListenList = value(setting).parse()?;
        Ok(list.with_sockets_in(directories.iter().copied()))
    };
    Ok(PoolerSettings {
        listen: listens(&POOLER_LISTEN)?,
        relay_listen: listens(&RELAY_LISTEN)?,
        pool_size: u32::try_from(POOL_SIZE.get()).unwrap_or(1),
        min_pool_size: u32::try_from(MIN_POOL_SIZE.get()).unwrap_or(0),
        reserve_pool_size: u32::try_from(RESERVE_POOL_SIZE.get()).unwrap_or(0),
        reserve_pool_timeout: time(&RESERVE_POOL_TIMEOUT),
        pool_mode: POOL_MODE.get() as u32,
        max_clients: u32::try_from(MAX_CLIENT_CONNECTIONS.get()).unwrap_or(1),
        threads: u32::try_from(POOLER_THREADS.get()).unwrap_or(1),
        relay_max_backlog: u64::try_from(RELAY_MAX_BACKLOG.get()).unwrap_or(0) * 1024,
        client_login_timeout: time(&CLIENT_LOGIN_TIMEOUT),
        client_idle_timeout: time(&CLIENT_IDLE_TIMEOUT),
        client_message_timeout: time(&CLIENT_MESSAGE_TIMEOUT),
        query_timeout: time(&QUERY_TIMEOUT),
        transaction_timeout: time(&TRANSACTION_TIMEOUT),
        idle_transaction_timeout: time(&IDLE_TRANSACTION_TIMEOUT),
        query_wait_timeout: time(&QUERY_WAIT_TIMEOUT),
        server_idle_timeout: time(&SERVER_IDLE_TIMEOUT),
        server_lifetime: time(&SERVER_LIFETIME),
        server_connect_timeout: time(&SERVER_CONNECT_TIMEOUT),
        server_login_retry: Duration::from_secs(seconds(&SERVER_LOGIN_RETRY)),
        door: ServerDoor {
            port: u16::try_from(port).unwrap_or(0),
            socket_directory: socket_directory(&directories, port),
            loopback: loopback(&addresses),
            protocol_minor: super::super::versions::PROTOCOL_MINOR,
        },
        tls: tls_files(),
    })
}

/// The first where the server has its socket. It goes on without those in which it could make none, as long as there is one; a socket
/// that is there all the same is another user's.
fn socket_directory(directories: &[&str], port: i32) -> String {
    use std::os::unix::fs::MetadataExt;
    let us = rustix::process::geteuid().as_raw();
    let has_socket = |directory: &&&str| {
        let file = || std::fs::metadata(format!("{directory}/.s.PGSQL.{port}"));
        directory.starts_with('@') || file().is_ok_and(|file| file.uid() == us)
    };
    directories.iter().find(has_socket).or(directories.first()).map_or(String::new(), |d| (*d).to_owned())
}

/// By which loopback address the server can be reached, as `listen_addresses` says.
fn loopback(addresses: &str) -> Option<std::net::IpAddr> {
    let four = std::net::IpAddr::from([127, 0, 0, 1]);
    addresses.split(',').map(|entry| entry.trim().trim_matches('"')).find_map(|entry| match entry {
        "*" | "0.0.0.0" | "localhost" => Some(four),
        "::" => Some(std::net::Ipv6Addr::LOCALHOST.into()),
        other => other.parse::<std::net::IpAddr>().ok().filter(std::net::IpAddr::is_loopback),
    })
}

/// The files that `ssl` and its companions name; relative ones are in the data directory.
fn tls_files() -> Option<TlsFiles> {
    // SAFETY: settings of the server, read on the thread that reloads them; strings are null or terminated.
    let (on, data) = unsafe { (pg_sys::EnableSSL, copied(pg_sys::DataDir)) };
    if !on {
        return None;
    }
    // SAFETY: as above; a setting that is missing is null.
    let option = |name: &CStr| unsafe { copied(pg_sys::GetConfigOption(name.as_ptr(), true, false)) };
    let path = |name: &CStr| {
        let file = option(name);
        if file.is_empty() || file.starts_with('/') { file } else { format!("{data}/{file}") }
    };
    Some(TlsFiles {
        certificate: path(c"ssl_cert_file"),
        key: path(c"ssl_key_file"),
        authorities: path(c"ssl_ca_file"),
        revocations: path(c"ssl_crl_file"),
        revocation_directory: path(c"ssl_crl_dir"),
        only_1_3: option(c"ssl_min_protocol_version") == "TLSv1.3",
        only_1_2: matches!(&option(c"ssl_max_protocol_version")[..], "TLSv1" | "TLSv1.1" | "TLSv1.2"),
    })
}
