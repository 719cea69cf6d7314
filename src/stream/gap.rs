//! What a source's `gap` says: each gap that was ever stated, the latest at the end. Pure; a stream worker's main thread states them.

/// Bytes of earlier gaps that a new one leaves.
const EARLIER: usize = 4096;

/// What it says from now on. Where what it said before is too much, only the log has that.
pub fn stated(before: Option<&str>, gap: &str) -> String {
    match before {
        None => gap.to_owned(),
        Some(before) if before.len() < EARLIER => format!("{before}; {gap}"),
        Some(_) => format!("the log has earlier ones; {gap}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_gaps_stay_and_what_they_are_has_an_end() {
        assert_eq!(stated(None, "a"), "a");
        assert_eq!(stated(Some("a"), "b"), "a; b");
        let mut said = None;
        for _ in 0..200 {
            said = Some(stated(said.as_deref(), &"x".repeat(100)));
            assert!(said.as_ref().is_some_and(|said| said.len() < EARLIER + 150));
        }
        let long = "x".repeat(EARLIER);
        assert_eq!(stated(Some(&long), "last"), "the log has earlier ones; last");
    }
}
