//! What a plan of a statement depends on beside its text: the settings by which its names and its literals are read. Pooled backends.

use super::SessionSettings;
use super::variable::{Variable, put_value};
use crate::pooler::state::Statement;
use pgrx::prelude::*;
use std::ffi::CStr;

/// Settings that decide what the names in a statement mean. When they change, the server analyses the statement again.
pub(super) const NAMES_BY: [&CStr; 2] = [c"search_path", c"row_security"];

/// Settings by which the literals in a statement are read, once and for all when it is parsed.
pub(super) const LITERALS_BY: [&CStr; 11] = [
    c"DateStyle",
    c"IntervalStyle",
    c"TimeZone",
    c"timezone_abbreviations",
    c"standard_conforming_strings",
    c"backslash_quote",
    c"transform_null_equals",
    c"array_nulls",
    c"xmloption",
    c"lc_monetary",
    c"default_text_search_config",
];

/// What a plan of a statement depends on beside its text: hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::postgres::agent) struct Environment {
    pub literals: u64,
    /// Names, and the role.
    pub names: u64,
}

impl Environment {
    /// As far as a statement depends on it: one without a quoted literal and without NULL (transform_null_equals) is read the same
    /// by all settings of [`LITERALS_BY`].
    pub fn of(self, text: &[u8]) -> Self {
        Self { literals: if Self::has_literals(text) { self.literals } else { 0 }, names: self.names }
    }

    /// As far as a statement depends on it that has been read before.
    pub fn at(self, statement: &Statement<'_>) -> Self {
        Self { literals: statement.literals, names: self.names }
    }

    pub fn has_literals(text: &[u8]) -> bool {
        let quotes = |pair: &[u8]| pair[0] == b'$' && !pair[1].is_ascii_digit();
        text.contains(&b'\'')
            || text.windows(2).any(quotes)
            || text.windows(4).any(|word| word.eq_ignore_ascii_case(b"null"))
    }
}

impl SessionSettings {
    /// What the session's statements depend on now.
    pub fn environment(&self) -> Environment {
        let hashed = |variables: &[Variable], more: u32| {
            let mut bytes = Vec::with_capacity(256);
            for variable in variables {
                // SAFETY: one of the server's settings.
                unsafe { put_value(*variable, &mut bytes) };
                bytes.push(0);
            }
            bytes.extend(more.to_le_bytes());
            crate::pooler::state::hash(&bytes)
        };
        // SAFETY: a word of the session.
        let role = unsafe { pg_sys::GetUserId() }.to_u32();
        Environment { literals: hashed(&self.literals_by, 0), names: hashed(&self.names_by, role) }
    }
}
