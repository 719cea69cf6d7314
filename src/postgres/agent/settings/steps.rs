//! The way from one client's settings to the next one's: what is reset, taken off, put on and set, and in which order. Pooled
//! backends.

use super::environment::{LITERALS_BY, NAMES_BY};
use super::variable::{Variable, find, identity_order, is_identity, reload_time};
use super::{KNOWN, OF_A_TRANSACTION, SessionSettings};
use crate::pooler::state::{Setting, Settings};
use pgrx::prelude::*;
use std::ffi::{CStr, c_int};

/// Settings of the server's own whose check looks at a catalog, so they need a transaction. An extension's may as well.
const NEED_TRANSACTION: [&[u8]; 7] = [
    b"role",
    b"session_authorization",
    b"default_tablespace",
    b"temp_tablespaces",
    b"default_table_access_method",
    b"default_text_search_config",
    b"client_encoding",
];

/// From one client's settings to another's.
pub(in crate::postgres::agent) struct Steps<'a> {
    /// Session values that are reset.
    pub(super) back: Vec<&'a Setting<'a>>,
    /// Base values that are taken off.
    pub(super) lower: Vec<&'a Setting<'a>>,
    /// Base values that both have; what they cover is looked at again after a reload.
    pub(super) kept: Vec<&'a Setting<'a>>,
    /// postgresql.conf was read since.
    pub(super) stale: bool,
    /// Base values that are put on.
    pub(super) raise: Vec<&'a Setting<'a>>,
    /// Session values that are set.
    pub(super) forth: Vec<&'a Setting<'a>>,
}

impl Steps<'_> {
    fn all(&self) -> impl Iterator<Item = &Setting<'_>> {
        [&self.back, &self.lower, &self.kept, &self.raise, &self.forth].into_iter().flatten().copied()
    }

    /// Whether they need a transaction: a setting's check may look at a catalog.
    pub fn need_transaction(&self) -> bool {
        self.stale || self.all().any(|s| NEED_TRANSACTION.contains(&s.name) || is_an_extensions(s.name))
    }

    /// Whether what statements depend on may change.
    pub fn change_environment(&self) -> bool {
        let among = |s: &Setting<'_>, names: &[&CStr]| {
            names.iter().any(|name| name.to_bytes().eq_ignore_ascii_case(s.name))
        };
        self.stale || self.all().any(|s| is_identity(s.name) || among(s, &NAMES_BY) || among(s, &LITERALS_BY))
    }
}

/// A setting of a library that is loaded; a placeholder of no library's has no check.
pub(super) fn is_an_extensions(name: &[u8]) -> bool {
    let placeholder =
        // SAFETY: one of the server's settings.
        |variable: Variable| unsafe { (*variable).flags & pg_sys::GUC_CUSTOM_PLACEHOLDER as c_int != 0 };
    name.contains(&b'.') && find(name).is_none_or(|variable| !placeholder(variable))
}

/// Whether a value is accepted whatever the others are: log_statement_stats and its kin exclude each other, and what an extension's
/// settings do nobody knows.
pub(super) fn is_alone(name: &[u8]) -> bool {
    !name.ends_with(b"_stats") && !is_an_extensions(name)
}

impl SessionSettings {
    /// What brings the settings of the last client to those of the next.
    pub fn steps<'a>(&self, from: &'a Settings<'a>, to: &'a Settings<'a>) -> Steps<'a> {
        let lists = |settings: &'a Settings<'a>| -> (&'a [Setting<'a>], &'a [Setting<'a>]) {
            match settings {
                Settings::Session { base, session, .. } => (base, session),
                Settings::Startup(_) => (&[], &[]),
            }
        };
        let ((from_base, from_session), (to_base, to_session)) = (lists(from), lists(to));
        let stays = |setting: &Setting<'_>, list: &[Setting<'_>]| list.contains(setting);
        // Back to the base: who the client is first, because it decides what may be set.
        let mut back: Vec<_> = from_session.iter().filter(|s| !stays(s, to_session)).collect();
        back.retain(|s| !OF_A_TRANSACTION.contains(&s.name) && s.source != KNOWN);
        back.sort_by_key(|s| !is_identity(s.name));
        let lower: Vec<_> = from_base.iter().filter(|s| !stays(s, to_base)).collect();
        let mut raise: Vec<_> = to_base.iter().filter(|s| !stays(s, from_base)).collect();
        raise.sort_by_key(|s| identity_order(s.name));
        // A covered value may have changed in postgresql.conf while it was covered.
        let stale = reload_time() != self.reloaded_at;
        let kept: Vec<_> =
            if stale { from_base.iter().filter(|s| stays(s, to_base)).collect() } else { Vec::new() };
        // What stands over a base value goes with it when that is taken off.
        let rebased =
            |s: &Setting<'_>| [&lower, &raise, &kept].into_iter().flatten().any(|b| b.name == s.name);
        let mut forth: Vec<_> = to_session.iter().filter(|s| !stays(s, from_session) || rebased(s)).collect();
        forth.retain(|s| !OF_A_TRANSACTION.contains(&s.name));
        forth.sort_by_key(|s| identity_order(s.name));
        // A change of identity undoes and redoes the other: session_authorization resets role.
        let identity = back.iter().chain(&forth).any(|s| is_identity(s.name));
        if identity {
            back.retain(|s| !is_identity(s.name));
            forth.retain(|s| !is_identity(s.name));
            let mut all: Vec<_> = from_session.iter().filter(|s| is_identity(s.name)).collect();
            all.append(&mut back);
            back = all;
            let mut last: Vec<_> = to_session.iter().filter(|s| is_identity(s.name)).collect();
            last.sort_by_key(|s| identity_order(s.name));
            forth.append(&mut last);
        } else {
            // What is set anew need not be reset first, where no other setting has a say in it.
            back.retain(|s| {
                !(forth.iter().any(|f| f.name == s.name && f.source != KNOWN) && is_alone(s.name))
            });
        }
        Steps { back, lower, kept, stale, raise, forth }
    }
}
