//! The settings as PostgreSQL knows them: names, descriptions, checks. Defined in the postmaster, read on main.
//!
//! A value is checked when it is given, by the same code that reads it later; so a mistake is refused with the
//! server's own message for an invalid value, and a reload keeps the old one.
//!
//! - `definition`: how a setting is defined and a value refused
//! - `pooler`, `relay`, `streams`: the settings of each; those of the status answers stand here

mod definition;
mod pooler;
mod relay;
mod streams;

pub(super) use self::pooler::{
    PoolMode, client_state_size, max_client_connections, max_prepared_statements, pool_mode, pool_size,
};
pub(super) use self::relay::relay_sizes;
use self::streams::STREAM_LISTEN;
pub(super) use self::streams::{max_streams, stream_buffer_size};
use crate::settings::{LagLimit, ServerSettings, Settings, banner_addresses};
use definition::{
    LIST_HELP, check_allow, check_bind, check_lag, check_list, check_port, copied, is_defined,
    refuse_mistake, reserve, text, value,
};
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CStr, CString};

const DEFAULT_STATUS_LISTEN: &CStr = c"*:5400";

static STATUS_LISTEN: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(DEFAULT_STATUS_LISTEN));
static STATUS_ALLOW: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"all"));
static STATUS_MAX_LAG: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"0"));
static AGENT_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static HTTP_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"localhost:5480"));
static OLD_PORT: GucSetting<i32> = GucSetting::<i32>::new(0);
static OLD_BIND: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

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
    pooler::define();
    relay::define();
    streams::define();
    reserve(c"postern");
    define_old();
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
        pooler: pooler::settings()?,
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
