//! The settings as PostgreSQL knows them: names, descriptions, checks. Defined in the postmaster, read on main.
//!
//! A value is checked when it is given, by the same code that reads it later; so a mistake is refused with the
//! server's own message for an invalid value, and a reload keeps the old one.

use crate::settings::{Allow, LagLimit, ListenList, ServerSettings, Settings, banner_addresses};
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::Display;

const DEFAULT_STATUS_LISTEN: &CStr = c"*:5400";

static STATUS_LISTEN: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(DEFAULT_STATUS_LISTEN));
static STATUS_ALLOW: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"all"));
static STATUS_MAX_LAG: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"0"));
static AGENT_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static HTTP_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"localhost:5480"));
static OLD_PORT: GucSetting<i32> = GucSetting::<i32>::new(0);
static OLD_BIND: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

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
        c"Addresses that may connect to the status, agent and HTTP ports.",
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
        allow: value(&STATUS_ALLOW).parse()?,
        max_lag: LagLimit::from_setting(&value(&STATUS_MAX_LAG))?,
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
