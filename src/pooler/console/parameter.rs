//! Session settings of a PostgreSQL client, which drivers set and ask for unasked. The console has one value of each:
//! SHOW tells it, SET is taken and ignored (PgBouncer does so for five of them). Pure.

use super::SERVER_VERSION;

/// Name and value, in the order of the names.
const PARAMETERS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("datestyle", "ISO"),
    ("default_transaction_deferrable", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("extra_float_digits", "1"),
    ("idle_in_transaction_session_timeout", "0"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("lock_timeout", "0"),
    ("max_identifier_length", "63"),
    ("search_path", ""),
    ("server_encoding", "UTF8"),
    ("server_version", SERVER_VERSION),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("timezone", "GMT"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
];

/// The parameter's own name and its value; `name` in any case.
pub(super) fn find(name: &str) -> Option<(&'static str, &'static str)> {
    PARAMETERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_found_in_any_case() {
        assert!(PARAMETERS.is_sorted_by_key(|(name, _)| *name));
        assert_eq!(find("TimeZone"), Some(("timezone", "GMT")));
        assert_eq!(find("pool_mode"), None);
    }
}
