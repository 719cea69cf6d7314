//! Whether a message is an event: a JSON object with the strings `UUID` and `Table`, as psql-streamer writes it and asks for it. It is
//! looked at and not rewritten. Engine's thread.

use serde::Deserialize;
use std::borrow::Cow;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "UUID", borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(rename = "Table", borrow)]
    table: Option<Cow<'a, str>>,
}

/// The table of an event.
///
/// # Errors
/// Why it is none, as a continuation of "the message".
pub fn table(payload: &[u8]) -> Result<String, String> {
    match payload.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Err("is empty".to_owned()),
        Some(b'{') => {}
        Some(_) => return Err("is no JSON object".to_owned()),
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(payload).map_err(|error| format!("is no event: {error}"))?;
    match envelope {
        Envelope { uuid: None, .. } => Err("has no UUID".to_owned()),
        Envelope { uuid: Some(uuid), .. } if uuid.is_empty() => Err("has an empty UUID".to_owned()),
        Envelope { table: None, .. } => Err("has no Table".to_owned()),
        Envelope { table: Some(table), .. } => Ok(table.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_uuid_and_a_table() {
        let good = r#" {"Table":"orders","UUID":"u","Columns":{"n":[1e999,18446744073709551616]}}"#;
        assert_eq!(table(good.as_bytes()), Ok("orders".to_owned()));
        assert_eq!(table(br#"{"UUID":"u","Table":"a\"\u00e9"}"#), Ok("a\"é".to_owned()));
        for (bad, why) in [
            (&b""[..], "is empty"),
            (b" \n", "is empty"),
            (b"[\"u\",\"t\"]", "is no JSON object"),
            (b"null", "is no JSON object"),
            (b"{", "is no event: EOF"),
            (b"{\"UUID\":\"u\",\"Table\":\"\xff\"}", "is no event: "),
            (br#"{"UUID":"u","Table":"t"} x"#, "is no event: trailing"),
            (br#"{"UUID":1,"Table":"t"}"#, "is no event: invalid type"),
            (br#"{"Table":"t"}"#, "has no UUID"),
            (br#"{"UUID":"","Table":"t"}"#, "has an empty UUID"),
            (br#"{"UUID":"u"}"#, "has no Table"),
            (br#"{"UUID":"u","Table":null}"#, "has no Table"),
        ] {
            let error = table(bad).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
        // Deep nesting is read without a stack to overflow.
        let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
        assert!(table(deep.as_bytes()).is_err());
    }
}
