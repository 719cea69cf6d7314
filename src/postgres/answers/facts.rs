//! What a session of a role and a database begins with, for clients that have none. The pooler's main thread, in a transaction.

use crate::pooler::listening::{Facts, Parameter};
use crate::wire::message::Report;
use pgrx::prelude::*;
use std::ffi::{CStr, c_int};

/// Settings that drivers ask for, beside those that a server reports unasked.
const PARAMETERS: &[&CStr] = &[
    c"DateStyle",
    c"IntervalStyle",
    c"TimeZone",
    c"application_name",
    c"bytea_output",
    c"client_encoding",
    c"client_min_messages",
    c"default_transaction_deferrable",
    c"default_transaction_isolation",
    c"default_transaction_read_only",
    c"extra_float_digits",
    c"idle_in_transaction_session_timeout",
    c"idle_session_timeout",
    c"in_hot_standby",
    c"integer_datetimes",
    c"is_superuser",
    c"jit",
    c"lock_timeout",
    c"max_identifier_length",
    c"row_security",
    c"scram_iterations",
    c"search_path",
    c"server_encoding",
    c"server_version",
    c"server_version_num",
    c"session_authorization",
    c"standard_conforming_strings",
    c"statement_timeout",
    c"synchronous_commit",
    c"transaction_deferrable",
    c"transaction_isolation",
    c"transaction_read_only",
];

/// What a session of a role and a database begins with, as far as it is not set for these: what the configuration says, and who they
/// are. In a transaction.
pub(super) fn facts(role: pg_sys::Oid, database: pg_sys::Oid) -> Result<Facts, Report> {
    let gone = || Report::fatal("3D000", "the database or the role has been dropped");
    let encoding = encoding_of(database).ok_or_else(gone)?;
    // SAFETY: in a transaction, by OID; a name is null or terminated.
    let (name, superuser) = unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() {
            return Err(gone());
        }
        (CStr::from_ptr(name).to_string_lossy().into_owned(), pg_sys::superuser_arg(role))
    };
    let parameter = |setting: &&CStr| {
        // SAFETY: terminated names; a setting that is missing has no value. What is shown is copied.
        let (shown, flags) = unsafe {
            let shown = pg_sys::GetConfigOptionByName(setting.as_ptr(), std::ptr::null_mut(), true);
            if shown.is_null() {
                return None;
            }
            let flags = pg_sys::GetConfigOptionFlags(setting.as_ptr(), true);
            (CStr::from_ptr(shown).to_string_lossy().into_owned(), flags)
        };
        let setting = setting.to_string_lossy();
        let value = match &setting[..] {
            "application_name" => String::new(),
            // Nothing is converted.
            "client_encoding" | "server_encoding" => encoding.clone(),
            "is_superuser" => if superuser { "on" } else { "off" }.to_owned(),
            "session_authorization" => name.clone(),
            _ => shown,
        };
        let reported = flags & pg_sys::GUC_REPORT as c_int != 0;
        Some(Parameter { name: setting.into_owned(), value, reported })
    };
    // SAFETY: takes no argument, and returns a text.
    let version = unsafe { pgrx::direct_function_call::<String>(pg_sys::pgsql_version, &[]) };
    let parameters = PARAMETERS.iter().filter_map(parameter).collect();
    Ok(Facts { parameters, version: version.unwrap_or_default() })
}

/// The name of a database's encoding. In a transaction.
fn encoding_of(database: pg_sys::Oid) -> Option<String> {
    // SAFETY: a catalog lookup by OID; what is kept is copied before the tuple is released. The name is a terminated constant.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::DATABASEOID as c_int;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(database));
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
        let encoding = form.encoding;
        pg_sys::ReleaseSysCache(tuple);
        let name = pg_sys::pg_encoding_to_char(encoding);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}
