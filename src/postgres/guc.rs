//! The settings as PostgreSQL knows them: names, descriptions, checks. Defined in the postmaster, read on main.
//!
//! A value is checked when it is given, by the same code that reads it later; so a mistake is refused with the
//! server's own message for an invalid value, and a reload keeps the old one.

use crate::settings::{
    Allow, LagLimit, ListenList, PoolerSettings, ServerDoor, ServerSettings, Settings, TlsFiles,
    banner_addresses,
};
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::Display;
use std::time::Duration;

const DEFAULT_STATUS_LISTEN: &CStr = c"*:5400";

static STATUS_LISTEN: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(DEFAULT_STATUS_LISTEN));
static STATUS_ALLOW: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"all"));
static STATUS_MAX_LAG: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"0"));
static AGENT_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static HTTP_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"localhost:5480"));
static OLD_PORT: GucSetting<i32> = GucSetting::<i32>::new(0);
static OLD_BIND: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

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

static RELAY_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static RELAY_RING_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);
static RELAY_MAX_CHANNELS: GucSetting<i32> = GucSetting::<i32>::new(4096);
static RELAY_MAX_LISTENS: GucSetting<i32> = GucSetting::<i32>::new(65_536);
static RELAY_MAX_BACKLOG: GucSetting<i32> = GucSetting::<i32>::new(0);

static MAX_STREAMS: GucSetting<i32> = GucSetting::<i32>::new(32);
static STREAM_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static STREAM_BUFFER_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64 * 1024);

/// `postern.pool_mode`: how long a client keeps the backend that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
#[allow(non_camel_case_types)]
pub(super) enum PoolMode {
    transaction,
    session,
    statement,
}

impl PoolMode {
    /// By number.
    pub const NAMES: [&str; 3] = ["transaction", "session", "statement"];
}

const LIST_HELP: &CStr =
    c"A list host:port[,host:port]; * is every IPv4 and IPv6 interface, a path is a Unix socket, \
    empty is off. At most 8 entries. Takes effect on reload.";

/// Defines every setting. Postmaster, while libraries are preloaded.
pub(super) fn define() {
    text(
        c"postern.status_listen",
        c"Addresses on which the server says MASTER or STANDBY to whoever connects.",
        LIST_HELP,
        &STATUS_LISTEN,
        check_list,
    );
    text(
        c"postern.status_allow",
        c"Addresses that may connect to the status, agent and HTTP ports and that of postern.stream_listen.",
        c"\"all\", or a list of addresses and ranges like 10.0.0.0/8, ::1; empty lets only Unix sockets in. \
          Takes effect on reload.",
        &STATUS_ALLOW,
        check_allow,
    );
    text(
        c"postern.status_max_lag",
        c"Replication lag beyond which a standby stops counting as healthy.",
        c"Bytes (16MB) or a time (10s); 0 is no limit. Units are B, kB, MB, GB, TB and us, ms, s, min, h, d. \
          Takes effect on reload.",
        &STATUS_MAX_LAG,
        check_lag,
    );
    text(
        c"postern.agent_listen",
        c"Addresses on which the server answers haproxy's agent-check.",
        LIST_HELP,
        &AGENT_LISTEN,
        check_list,
    );
    text(
        c"postern.http_listen",
        c"Addresses on which the server answers HTTP health checks, statistics and metrics.",
        LIST_HELP,
        &HTTP_LISTEN,
        check_list,
    );
    define_pooler();
    define_relay();
    define_streams();
    reserve(c"postern");
    define_old();
}

fn define_pooler() {
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

fn define_relay() {
    text(
        c"postern.relay_listen",
        c"Addresses of the listen-only port; also a Unix socket of the same port beside each of the server's.",
        LIST_HELP,
        &RELAY_LISTEN,
        check_list,
    );
    number(
        c"postern.relay_ring_size",
        c"Shared memory for notifications that clients of the pooler have still to be sent.",
        c"A client that has not read a notification when it is overwritten is disconnected. Takes effect at the server's start.",
        &RELAY_RING_SIZE,
        (64, 1_048_576),
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    number(
        c"postern.relay_max_channels",
        c"Channels that clients of the pooler listen to at once, in all databases.",
        c"Beyond it LISTEN is an error. Takes effect at the server's start.",
        &RELAY_MAX_CHANNELS,
        (1, 1_048_576),
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"postern.relay_max_listens",
        c"LISTENs of all clients of the pooler that are in force at once: one for each client and channel.",
        c"Beyond it LISTEN is an error. Takes effect at the server's start.",
        &RELAY_MAX_LISTENS,
        (1, 16_777_216),
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"postern.relay_max_backlog",
        c"Memory of the ring of notifications by which a client may be behind before it is disconnected.",
        c"0 is as much as postern.relay_ring_size. Takes effect on reload.",
        &RELAY_MAX_BACKLOG,
        (0, 1_048_576),
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
}

fn define_streams() {
    text(
        c"postern.stream_listen",
        c"Addresses on which the server answers psql-streamer's HTTP requests about change streams.",
        LIST_HELP,
        &STREAM_LISTEN,
        check_list,
    );
    number(
        c"postern.max_streams",
        c"Sources and streams of change streams that the server runs, of each.",
        c"Sizes their tables in shared memory; takes effect at the server's start.",
        &MAX_STREAMS,
        (1, 1_024),
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"postern.stream_buffer_size",
        c"Memory that a source of change streams uses for changes that its sinks have not taken.",
        c"One change that is larger passes all the same. Takes effect when the source's worker starts again.",
        &STREAM_BUFFER_SIZE,
        (1_024, 1_048_576),
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
}

pub(super) fn max_streams() -> usize {
    usize::try_from(MAX_STREAMS.get()).unwrap_or(1)
}

/// Bytes.
pub(super) fn stream_buffer_size() -> usize {
    usize::try_from(STREAM_BUFFER_SIZE.get()).unwrap_or(1) * 1024
}

/// What the relay's tables are as long as. Fixed at the server's start.
pub(super) struct RelaySizes {
    /// Words of eight bytes.
    pub ring: usize,
    pub channels: usize,
    pub listens: usize,
}

pub(super) fn relay_sizes() -> RelaySizes {
    let of = |setting: &GucSetting<i32>| usize::try_from(setting.get()).unwrap_or(1);
    RelaySizes {
        ring: of(&RELAY_RING_SIZE) * 128,
        channels: of(&RELAY_MAX_CHANNELS),
        listens: of(&RELAY_MAX_LISTENS),
    }
}

/// The modes and bounds that the agent reads in its own session.
pub(super) fn pool_mode() -> PoolMode {
    POOL_MODE.get()
}

pub(super) fn max_prepared_statements() -> usize {
    usize::try_from(MAX_PREPARED_STATEMENTS.get()).unwrap_or(0)
}

/// `postern.pool_size` of this session: its role's and database's, if they have one.
pub(super) fn pool_size() -> u32 {
    u32::try_from(POOL_SIZE.get()).unwrap_or(1)
}

/// Bytes.
pub(super) fn client_state_size() -> usize {
    usize::try_from(CLIENT_STATE_SIZE.get()).unwrap_or(0) * 1024
}

/// Places in the table of clients. Fixed at the server's start.
pub(super) fn max_client_connections() -> usize {
    usize::try_from(MAX_CLIENT_CONNECTIONS.get()).unwrap_or(1)
}

fn pooler_settings() -> Result<PoolerSettings, crate::settings::Error> {
    let seconds = |setting: &GucSetting<i32>| u64::try_from(setting.get()).unwrap_or(0);
    let time = |setting| Some(Duration::from_secs(seconds(setting))).filter(|time| !time.is_zero());
    // SAFETY: settings of the server, read on the thread that reloads them; strings are null or terminated.
    let (directories, addresses, port) = unsafe {
        (copied(pg_sys::Unix_socket_directories), copied(pg_sys::ListenAddresses), pg_sys::PostPortNumber)
    };
    let directories: Vec<&str> = directories.split(',').map(|d| d.trim().trim_matches('"')).collect();
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
            socket_directory: directories.first().map_or(String::new(), |d| (*d).to_owned()),
            loopback: loopback(&addresses),
            protocol_minor: super::versions::PROTOCOL_MINOR,
        },
        tls: tls_files(),
    })
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

/// The settings of bgw_replstatus, so that its users change one word. Where that extension itself is loaded
/// they are its own.
fn define_old() {
    if is_defined(c"bgw_replstatus.port") {
        return;
    }
    refuse_mistake(c"bgw_replstatus.port", check_port);
    GucRegistry::define_int_guc(
        c"bgw_replstatus.port",
        c"Port of the MASTER or STANDBY answer, as bgw_replstatus has it.",
        c"0 is not set. When this or bgw_replstatus.bind is set, they replace the default of postern.status_listen; \
          they join a value of it that is not the default. Takes effect on reload.",
        &OLD_PORT,
        0,
        65535,
        GucContext::Sighup,
        GucFlags::default(),
    );
    text(
        c"bgw_replstatus.bind",
        c"Address of the MASTER or STANDBY answer, as bgw_replstatus has it.",
        c"Empty is every IPv4 interface. Takes effect on reload.",
        &OLD_BIND,
        check_bind,
    );
    reserve(c"bgw_replstatus");
}

/// The settings as they are now. Main only.
///
/// # Errors
/// Never in practice: every value passed its check when it was given.
pub(super) fn settings() -> Result<Settings, crate::settings::Error> {
    let status_listen = value(&STATUS_LISTEN);
    let is_default = status_listen.as_bytes() == DEFAULT_STATUS_LISTEN.to_bytes();
    let old_port = u16::try_from(OLD_PORT.get()).ok().filter(|port| *port > 0);
    Ok(Settings {
        banner: banner_addresses(&status_listen, is_default, old_port, &value(&OLD_BIND))?,
        agent: value(&AGENT_LISTEN).parse()?,
        http: value(&HTTP_LISTEN).parse()?,
        stream: value(&STREAM_LISTEN).parse()?,
        allow: value(&STATUS_ALLOW).parse()?,
        max_lag: LagLimit::from_setting(&value(&STATUS_MAX_LAG))?,
        pooler: pooler_settings()?,
        server: server_settings(),
    })
}

fn server_settings() -> ServerSettings {
    // SAFETY: settings of the server, read on the thread that reloads them; strings are null or terminated.
    unsafe {
        ServerSettings {
            primary_conninfo: copied(pg_sys::PrimaryConnInfo),
            cluster_name: copied(pg_sys::cluster_name),
            socket_mode: pg_sys::Unix_socket_permissions as u32,
        }
    }
}

/// # Safety
/// `text` is null or a terminated string that stays for the call.
unsafe fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn value(setting: &GucSetting<Option<CString>>) -> String {
    setting.get().map_or(String::new(), |text| text.to_string_lossy().into_owned())
}

type CheckHook =
    unsafe extern "C-unwind" fn(*mut *mut c_char, *mut *mut c_void, pg_sys::GucSource::Type) -> bool;

fn text(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
    check: CheckHook,
) {
    refuse_mistake(name, check);
    // SAFETY: the hooks are guarded, and touch only the value that they are given.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            name,
            short,
            long,
            setting,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check),
            None,
            None,
        );
    }
}

fn number(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<i32>,
    (least, most): (i32, i32),
    context: GucContext,
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(name, short, long, setting, least, most, context, flags);
}

/// PostgreSQL starts with the default when the value in postgresql.conf of an extension's setting is wrong. A mistyped
/// `postern.status_allow` would then let everybody in, so the server does not start, as with a setting of its own.
fn refuse_mistake(name: &CStr, check: CheckHook) {
    // SAFETY: terminated strings; the setting is not defined yet, so this is the text of the file, or null. The hook gets
    // a pointer to it and changes nothing.
    let (text, reason) = unsafe {
        let text = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        let mut value = text.cast_mut();
        if text.is_null() || check(&raw mut value, std::ptr::null_mut(), pg_sys::GucSource::PGC_S_FILE) {
            return;
        }
        (copied(text), copied(pg_sys::GUC_check_errdetail_string))
    };
    ereport!(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        format!("invalid value for parameter \"{}\": \"{text}\"", name.to_string_lossy()),
        reason
    );
}

/// Check hooks of the server's kind, each from what reads the text later.
macro_rules! check_hooks {
    ($($(#[$about:meta])* $name:ident: $parse:expr;)*) => {$(
        $(#[$about])*
        #[pg_guard]
        unsafe extern "C-unwind" fn $name(
            new: *mut *mut c_char,
            _extra: *mut *mut c_void,
            _source: pg_sys::GucSource::Type,
        ) -> bool {
            // SAFETY: called with a pointer to a null or terminated string.
            unsafe { check(new, $parse) }
        }
    )*};
}

check_hooks! {
    check_list: |text| text.parse::<ListenList>().map(drop);
    check_allow: |text| text.parse::<Allow>().map(drop);
    check_lag: |text| LagLimit::from_setting(text).map(drop);
    check_bind: |text| banner_addresses("", true, Some(1), text).map(drop);
    /// Only before the setting is defined: afterwards the server checks a number by itself.
    check_port: |text| text.trim().parse::<u16>().map(drop).map_err(|_| "a port is a number from 0 to 65535");
}

/// Runs a check and leaves the reason as the DETAIL of the server's message.
///
/// # Safety
/// `new` points to a null or terminated string, as the server's check hooks get it.
unsafe fn check<E: Display>(new: *mut *mut c_char, parse: impl FnOnce(&str) -> Result<(), E>) -> bool {
    // SAFETY: by the caller.
    let text = unsafe { if (*new).is_null() { c"" } else { CStr::from_ptr(*new) } };
    let reason = match text.to_str() {
        Ok(text) => match parse(text) {
            Ok(()) => return true,
            Err(error) => error.to_string(),
        },
        Err(_) => "The value is not valid UTF-8.".to_owned(),
    };
    let mut sentence = CString::new(reason).unwrap_or_default().into_bytes();
    if let Some(first) = sentence.first_mut() {
        first.make_ascii_uppercase();
    }
    sentence.extend(b".\0");
    // SAFETY: a terminated string, copied into the server's memory, in a place that the server reads and resets;
    // it is what the GUC_check_errdetail() macro does.
    unsafe { pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(sentence.as_ptr().cast()) };
    false
}

/// From here on, an unknown setting with this prefix is refused.
fn reserve(prefix: &CStr) {
    // SAFETY: a terminated string; called in `_PG_init`, as the function wants.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) };
}

/// Whether a setting is there and more than a placeholder for a line in postgresql.conf.
fn is_defined(name: &CStr) -> bool {
    // SAFETY: terminated strings, and no error for a setting that is missing.
    unsafe {
        !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null()
            && pg_sys::GetConfigOptionFlags(name.as_ptr(), true) & pg_sys::GUC_CUSTOM_PLACEHOLDER as i32 == 0
    }
}
