//! Roles and databases as the catalogs have them now, by name and by OID. The pooler's main thread, in a transaction.

use super::text;
use crate::auth::{Found, Secret};
use crate::login::Standing;
use pgrx::prelude::*;
use std::ffi::{CStr, c_int};

/// A role as pg_authid has it.
pub(super) struct Role {
    pub(super) oid: pg_sys::Oid,
    pub(super) superuser: bool,
    pub(super) can_login: bool,
    pub(super) connection_limit: i32,
    pub(super) found: Found,
}

/// A database as pg_database has it.
pub(super) struct Database {
    pub(super) oid: pg_sys::Oid,
    pub(super) allowed: bool,
    pub(super) limit: i32,
}

/// The database, if it still has that name. In a transaction.
pub(super) fn database_with(oid: pg_sys::Oid, name: &[u8]) -> Option<Database> {
    // SAFETY: a catalog lookup by OID; what is kept is copied before the tuple is released.
    unsafe {
        pg_sys::AcceptInvalidationMessages();
        let cache = pg_sys::SysCacheIdentifier::DATABASEOID as c_int;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(oid));
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
        let same = CStr::from_ptr(form.datname.data.as_ptr()).to_bytes() == name;
        let found = same.then_some(Database { oid, allowed: form.datallowconn, limit: form.datconnlimit });
        pg_sys::ReleaseSysCache(tuple);
        found
    }
}

/// By OIDs: the names that they have now.
pub(super) fn standing(role: pg_sys::Oid, database: pg_sys::Oid) -> Standing {
    // SAFETY: in a transaction; catalog lookups by OID. What is kept is copied before the tuple is released.
    unsafe {
        pg_sys::AcceptInvalidationMessages();
        let cache = pg_sys::SysCacheIdentifier::AUTHOID as c_int;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(role));
        if tuple.is_null() {
            return Standing::RoleGone;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>();
        let role = CStr::from_ptr(form.rolname.data.as_ptr()).to_bytes().to_vec();
        let can_login = form.rolcanlogin;
        pg_sys::ReleaseSysCache(tuple);
        let name = pg_sys::get_database_name(database);
        if name.is_null() {
            return Standing::DatabaseGone;
        }
        Standing::There { role, database: CStr::from_ptr(name).to_bytes().to_vec(), can_login }
    }
}

/// The databases that take connections, in no order.
pub(super) fn databases() -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    // SAFETY: in a transaction; a scan of a shared catalog, whose rows are read before the next is asked for.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
        let (none, all) = (pg_sys::InvalidOid, std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, none, false, std::ptr::null_mut(), 0, all);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if form.datallowconn {
                names.push(CStr::from_ptr(form.datname.data.as_ptr()).to_bytes().to_vec());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
    }
    names
}

pub(super) fn role_of(name: &[u8]) -> Option<Role> {
    let name = text(name);
    // SAFETY: in a transaction; a catalog lookup by a terminated name. What is kept is copied before the tuple is released.
    unsafe {
        // A role that was made a moment ago is found.
        pg_sys::AcceptInvalidationMessages();
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::AUTHNAME as c_int,
            pg_sys::Datum::from(name.as_ptr()),
        );
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>();
        let attribute = |number: u32| {
            let mut null = false;
            let cache = pg_sys::SysCacheIdentifier::AUTHNAME as c_int;
            let value = pg_sys::SysCacheGetAttr(cache, tuple, number as i16, &raw mut null);
            (!null).then_some(value)
        };
        let secret =
            attribute(pg_sys::Anum_pg_authid_rolpassword).and_then(|value| String::from_datum(value, false));
        let role = Role {
            oid: form.oid,
            superuser: form.rolsuper,
            can_login: form.rolcanlogin,
            connection_limit: form.rolconnlimit,
            found: Found {
                secret: secret.map(|text| Secret::parse(&text)),
                valid_until: attribute(pg_sys::Anum_pg_authid_rolvaliduntil)
                    .map(|value| value.value() as i64),
            },
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(role)
    }
}
