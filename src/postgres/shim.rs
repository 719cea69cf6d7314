//! The Rust side of the C files in `shim/`, and functions and words of the server that pgrx has no binding for. PostgreSQL threads only.
//!
//! Those in the guarded block may raise an error, which comes out as a panic that pgrx carries; the others only read or write
//! words and cannot.

use pg_sys::panic::{CaughtError, ErrorReportWithLevel};
use pgrx::prelude::*;
use std::ffi::{c_char, c_int};

/// What has gone by since the agent last looked (`PosternSeen` in shim/shim.h).
#[repr(C)]
pub(super) struct Seen {
    pub mute: bool,
    pub ready: bool,
    pub status: c_char,
    pub told: bool,
    pub names: bool,
    pub settings: bool,
    pub seed: bool,
    pub loaded: bool,
    pub acts: bool,
    pub listens: bool,
    pub report: bool,
    pub statement_mode: bool,
    pub nameless: bool,
    pub another: bool,
}

/// `PosternColumn` in shim/catalog.c.
#[repr(C)]
#[derive(Default)]
pub(super) struct RawColumn {
    pub type_oid: u32,
    pub modifier: i32,
    pub collation: u32,
    pub length: i16,
    pub by_value: bool,
    pub alignment: u8,
    pub storage: u8,
}

/// `PosternVerdict` in shim/hba.c.
#[repr(C)]
pub(super) struct RawVerdict {
    pub method: c_int,
    pub line: c_int,
    pub client_certificate: c_int,
    pub certificate_by_dn: bool,
    pub map: [c_char; 128],
    pub text: [c_char; 512],
}

impl Default for RawVerdict {
    fn default() -> Self {
        // SAFETY: numbers, false and bytes: all-zero is a value of each.
        unsafe { std::mem::zeroed() }
    }
}

/// `PosternActivity` in shim/activity.c.
#[repr(C)]
#[derive(Default)]
pub(super) struct RawActivity {
    pub reads: bool,
    pub in_transaction: bool,
    pub failed: bool,
    pub runs_since: i64,
    pub idles_since: i64,
    pub transaction_since: i64,
}

unsafe extern "C" {
    pub(super) static mut postern_seen: Seen;

    pub(super) fn postern_install_methods();
    pub(super) fn postern_install_authentication();
    pub(super) fn postern_input_waits() -> bool;
    pub(super) fn postern_socket() -> c_int;
    pub(super) fn postern_set_socket(descriptor: c_int);
    pub(super) fn postern_reload_pending() -> bool;
    pub(super) fn postern_dying() -> bool;
    pub(super) fn postern_hold_cancel();
    pub(super) fn postern_resume_cancel();
    pub(super) fn postern_has_temporary_schema() -> bool;
    pub(super) fn postern_column(
        description: pg_sys::TupleDesc,
        index: c_int,
        out: *mut RawColumn,
    ) -> *const c_char;
    pub(super) fn postern_set_column(
        description: pg_sys::TupleDesc,
        index: c_int,
        name: *const c_char,
        column: *const RawColumn,
    );
    pub(super) fn postern_watch_names(table: *mut pg_sys::HTAB) -> bool;
    pub(super) fn postern_wait_on_none();
    pub(super) fn postern_has_replication_state() -> bool;
    pub(super) fn postern_entries(table: *mut pg_sys::HTAB) -> std::ffi::c_long;
    pub(super) fn postern_holds_locks() -> bool;
    pub(super) fn postern_proc_number() -> c_int;
    pub(super) fn postern_wake(number: c_int);
    pub(super) fn postern_answer_remote();
    pub(super) fn postern_use_message_context();
    pub(super) fn postern_encoding_name(encoding: c_int) -> *const c_char;
    pub(super) fn postern_named_table(name: *const c_char) -> *mut pg_sys::HTAB;
    pub(super) fn postern_watch_statements(table: *mut pg_sys::HTAB, sentinel: *mut pg_sys::CachedPlanSource);
    pub(super) fn postern_recount_statements();
    pub(super) fn postern_unnamed() -> *mut pg_sys::CachedPlanSource;
    pub(super) fn postern_unnamed_number() -> u64;
    pub(super) fn postern_status() -> u64;
    pub(super) fn postern_activity(number: c_int, status: u64, pid: c_int, out: *mut RawActivity) -> bool;
    pub(super) fn postern_wait_for_any(epoll: c_int, data: *mut u64, slept: *mut bool) -> c_int;
}

/// Functions that may raise an error: a wrapper each, through which the error comes out as a panic and no jump crosses Rust.
macro_rules! guarded {
    ($($(#[$about:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {$(
        $(#[$about])*
        /// # Safety
        /// As the function of the server or of the shim wants it.
        #[allow(non_snake_case, clippy::too_many_arguments)]
        pub(super) unsafe fn $name($($argument: $type),*) $(-> $result)? {
            mod raw {
                #[allow(unused_imports)]
                use super::*;
                unsafe extern "C-unwind" {
                    pub fn $name($($argument: $type),*) $(-> $result)?;
                }
            }
            // SAFETY: by the caller; the guard turns the server's long jump into an unwinding panic.
            unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::$name($($argument),*)) }
        }
    )*};
}

pub(super) use guarded;

/// What an error says that was caught.
pub(super) fn report(error: &CaughtError) -> &ErrorReportWithLevel {
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = error;
    report
}

guarded! {
    fn postern_install_hooks();
    fn postern_count_settings() -> c_int;
    fn postern_settings(into: *mut *mut pg_sys::config_generic, room: c_int) -> c_int;
    fn postern_dsa_create(tranche: c_int) -> *mut pg_sys::dsa_area;
    fn postern_send(bytes: *const c_char, length: usize);
    fn postern_send_converted(bytes: *const c_char, length: usize);
    fn postern_flush() -> c_int;
    fn postern_peek_input() -> c_int;
    fn postern_wait_on(descriptor: c_int);
    fn postern_wait_for_client(notify: bool) -> u32;
    fn postern_disarm();
    fn postern_interrupts();
    fn postern_notify_interrupts(attached: bool);
    fn postern_reload();
    fn postern_set_client(
        family: c_int,
        address: *const u32,
        port: c_int,
        local: *const u32,
        local_port: c_int,
    );
    /// All null: no TLS.
    fn postern_set_tls(
        bits: c_int,
        version: *const c_char,
        cipher: *const c_char,
        subject: *const c_char,
        serial: *const c_char,
        issuer: *const c_char,
    );
    /// `Authenticated` in pooler/shown.rs, and who that is where it is not the role.
    fn postern_set_identity(method: c_int, identity: *const c_char);
    fn postern_hba(
        database: *const c_char,
        role: *const c_char,
        family: c_int,
        address: *const u32,
        tls: bool,
        host_name: *const c_char,
        replication: c_int,
        out: *mut RawVerdict,
    );
    fn postern_map_allows(
        map: *const c_char,
        role: *const c_char,
        outside: *const c_char,
    ) -> bool;
    fn postern_database(
        name: *const c_char,
        oid: *mut pg_sys::Oid,
        allows_connections: *mut bool,
        connection_limit: *mut i32,
    ) -> bool;
    fn postern_first_load(hba: *mut bool, ident: *mut bool) -> bool;
    fn postern_load_hba() -> bool;
    fn postern_load_ident() -> bool;
    fn postern_skip_message() -> bool;
    fn postern_discard_input();
    fn postern_welcome(pid: u32, key: *const u8, key_length: usize);
    /// Every change of a setting so far is no news to the client.
    fn postern_report_nothing();
    fn postern_release_advisory_locks();
    /// `transaction_isolation` and its like as if a SET had touched them, or none. Outside a transaction.
    fn postern_mark_transaction_setting(setting: *mut pg_sys::config_generic, set: bool);
    fn postern_apply_options(options: *const c_char, superuser: bool);

    fn postern_apply_role_settings();
    fn postern_has_temporary_objects() -> bool;
    /// commands/sequence.h
    fn ResetSequenceCaches();
    /// commands/async.h
    fn Async_Listen(channel: *const c_char);
    fn Async_Unlisten(channel: *const c_char);
    fn Async_UnlistenAll();
    fn Async_Notify(channel: *const c_char, payload: *const c_char);

    fn postern_relay_begin();
    fn postern_relay_hear();
}
