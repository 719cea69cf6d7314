//! Which version this library is, and what to do where a database's SQL is of another. Pure.

/// This library's version, `major.minor.patch`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What an operator has to do about a database whose extension is of version `sql`, when `library` is loaded; `None` when they are one.
pub fn advice(sql: &str, library: &str) -> Option<&'static str> {
    if sql == library {
        None
    } else if numbers(sql) > numbers(library) {
        Some("install the library of that version and restart the server")
    } else {
        Some("run ALTER EXTENSION postern UPDATE in that database")
    }
}

/// Words that are no numbers come before those that are.
fn numbers(version: &str) -> Vec<Option<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_older_is_brought_up_to_the_other() {
        assert_eq!(advice(VERSION, VERSION), None);
        for (older, newer) in
            [("0.1.0", "0.2.0"), ("0.9.0", "0.10.0"), ("0.1", "0.1.1"), ("0.1.beta", "0.1.0")]
        {
            assert!(
                advice(older, newer).unwrap().contains("ALTER EXTENSION postern UPDATE"),
                "{older} {newer}"
            );
            assert!(advice(newer, older).unwrap().contains("library"), "{older} {newer}");
        }
    }
}
