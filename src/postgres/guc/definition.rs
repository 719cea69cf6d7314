//! How a setting is defined: texts with a check, numbers with bounds, and the server's way of saying that a value is wrong. Postmaster,
//! and wherever a value is given.

use crate::settings::{Allow, LagLimit, ListenList, banner_addresses};
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::Display;

pub(super) const LIST_HELP: &CStr =
    c"A list host:port[,host:port]; * is every IPv4 and IPv6 interface, a path is a Unix socket, \
    empty is off. At most 8 entries. Takes effect on reload.";

pub(super) type CheckHook =
    unsafe extern "C-unwind" fn(*mut *mut c_char, *mut *mut c_void, pg_sys::GucSource::Type) -> bool;

pub(super) fn text(
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

pub(super) fn number(
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
pub(super) fn refuse_mistake(name: &CStr, check: CheckHook) {
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
        pub(in crate::postgres::guc) unsafe extern "C-unwind" fn $name(
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
pub(super) fn reserve(prefix: &CStr) {
    // SAFETY: a terminated string; called in `_PG_init`, as the function wants.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) };
}

/// Whether a setting is there and more than a placeholder for a line in postgresql.conf.
pub(super) fn is_defined(name: &CStr) -> bool {
    // SAFETY: terminated strings, and no error for a setting that is missing.
    unsafe {
        !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null()
            && pg_sys::GetConfigOptionFlags(name.as_ptr(), true) & pg_sys::GUC_CUSTOM_PLACEHOLDER as i32 == 0
    }
}

/// # Safety
/// `text` is null or a terminated string that stays for the call.
pub(super) unsafe fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

pub(super) fn value(setting: &GucSetting<Option<CString>>) -> String {
    setting.get().map_or(String::new(), |text| text.to_string_lossy().into_owned())
}
