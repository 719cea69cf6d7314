//! Every difference between major versions, in one place.

use super::shim;
use pgrx::prelude::*;

/// The newest minor version of protocol 3 (PG_PROTOCOL_LATEST in libpq/pqcomm.h).
#[cfg(not(feature = "pg18"))]
pub(super) const PROTOCOL_MINOR: u16 = 0;
#[cfg(feature = "pg18")]
pub(super) const PROTOCOL_MINOR: u16 = 2;

/// Whether there is SYSTEM_USER.
pub(super) const HAS_SYSTEM_USER: bool = cfg!(not(feature = "pg15"));

/// Connections that ordinary roles cannot have: `superuser_reserved_connections`, and from 16 on
/// `reserved_connections` too.
pub(super) fn reserved_connections() -> i32 {
    // SAFETY: int settings that do not change while the server runs.
    #[cfg(feature = "pg15")]
    unsafe {
        pg_sys::ReservedBackends
    }
    // SAFETY: as above.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        pg_sys::SuperuserReservedConnections + pg_sys::ReservedConnections
    }
}

/// Whether a role may connect to a database.
///
/// # Safety
/// In a transaction.
pub(super) unsafe fn may_connect(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    let connect = pg_sys::AclMode::from(pg_sys::ACL_CONNECT);
    // SAFETY: by the caller.
    unsafe {
        #[cfg(feature = "pg15")]
        let result = pg_sys::pg_database_aclcheck(database, role, connect);
        #[cfg(not(feature = "pg15"))]
        let result = pg_sys::object_aclcheck(pg_sys::DatabaseRelationId, database, role, connect);
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

type Variable = *mut pg_sys::config_generic;

/// How many settings the process knows. There are never fewer later.
pub(super) fn count_settings() -> i32 {
    // SAFETY: reads the server's own list.
    unsafe { shim::postern_count_settings() }
}

/// Every setting of the process, in no order.
pub(super) fn settings() -> impl Iterator<Item = Variable> {
    let room = count_settings();
    let mut all = vec![std::ptr::null_mut(); usize::try_from(room).unwrap_or(0)];
    // SAFETY: room for as many; settings are never taken away.
    let count = unsafe { shim::postern_settings(all.as_mut_ptr(), room) };
    all.truncate(usize::try_from(count).unwrap_or(0));
    all.into_iter()
}

/// The setting of that name, in any case of letters.
pub(super) fn setting(name: &[u8]) -> Option<Variable> {
    #[cfg(feature = "pg15")]
    {
        // The array is sorted by name as guc_name_compare() compares (guc.c).
        let count = usize::try_from(count_settings()).unwrap_or(0);
        // SAFETY: as in `settings`.
        let list = unsafe { std::slice::from_raw_parts(pg_sys::get_guc_variables(), count) };
        // SAFETY: each is a setting with a terminated name.
        let found = list.binary_search_by(|v| unsafe {
            let theirs = std::ffi::CStr::from_ptr((**v).name).to_bytes();
            theirs.iter().map(u8::to_ascii_lowercase).cmp(name.iter().map(u8::to_ascii_lowercase))
        });
        found.ok().map(|index| list[index])
    }
    #[cfg(not(feature = "pg15"))]
    {
        let name = std::ffi::CString::new(name).ok()?;
        // SAFETY: a terminated name; a missing one gives null.
        let found = unsafe { pg_sys::find_option(name.as_ptr(), false, true, pg_sys::DEBUG5 as i32) };
        (!found.is_null()).then_some(found)
    }
}

/// What the client was last told of a setting. The server frees it with free() on 15, with guc_free() from 16 on.
///
/// # Safety
/// One of the server's settings.
pub(super) unsafe fn set_last_reported(
    variable: &mut pg_sys::config_generic,
    value: Option<&std::ffi::CStr>,
) {
    // SAFETY: the text is of the allocator that the server uses for it.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            libc::free(variable.last_reported.cast());
            variable.last_reported = value.map_or(std::ptr::null_mut(), |value| libc::strdup(value.as_ptr()));
        }
        #[cfg(not(feature = "pg15"))]
        {
            if !variable.last_reported.is_null() {
                pg_sys::guc_free(variable.last_reported.cast());
            }
            let log = pg_sys::LOG as i32;
            variable.last_reported =
                value.map_or(std::ptr::null_mut(), |value| pg_sys::guc_strdup(log, value.as_ptr()));
        }
    }
}

/// Ends the process; its exit callbacks run. From 18 on the server's headers say in a way that the binding does not read that it
/// does not return.
///
/// # Safety
/// Where no Rust value is alive that has to be dropped.
pub(super) unsafe fn proc_exit(code: i32) -> ! {
    // SAFETY: by the caller; it does not return.
    #[allow(unreachable_code)]
    unsafe {
        pg_sys::proc_exit(code);
        std::hint::unreachable_unchecked()
    }
}
