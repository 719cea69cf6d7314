//! Array literals, as `array_out` writes them, as JSON arrays. Pure.

use super::types::Form;
use super::{json, value};
use std::mem;

/// Appends an array. One that has its lower bounds written, or is no array literal, is a string, so that nothing of it is lost.
pub fn write(element: &Form, delimiter: u8, text: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    let start = out.len();
    if elements(element, delimiter, text, scratch, out).is_none() {
        out.truncate(start);
        json::string(text, out);
    }
}

/// `None` when the text is no array literal; what has been written then is of no use.
fn elements(
    form: &Form,
    delimiter: u8,
    mut text: &[u8],
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Option<()> {
    if text == b"{}" {
        out.extend_from_slice(b"[]");
        return Some(());
    }
    let mut depth = 0;
    loop {
        // An element, or the arrays that it is the first of.
        while let [b'{', rest @ ..] = text {
            depth += 1;
            if depth > MAX_DIMENSIONS {
                return None;
            }
            out.push(b'[');
            text = rest;
        }
        if depth == 0 {
            return None;
        }
        text = if let [b'"', rest @ ..] = text {
            let rest = unquoted(rest, scratch)?;
            // The scratch is free for arrays that are elements: domains over arrays.
            let content = mem::take(scratch);
            value::write(form, &content, scratch, out);
            *scratch = content;
            rest
        } else {
            let ends = |byte: &u8| *byte == delimiter || matches!(byte, b'}' | b'{' | b'"' | b'\\');
            let (content, rest) = text.split_at_checked(text.iter().position(ends)?)?;
            match content {
                b"" => return None,
                b"NULL" => out.extend_from_slice(b"null"),
                _ => value::write(form, content, scratch, out),
            }
            rest
        };
        // Where it and its arrays end.
        while let [b'}', rest @ ..] = text {
            depth -= 1;
            out.push(b']');
            text = rest;
            if depth == 0 {
                return text.is_empty().then_some(());
            }
        }
        let [next, rest @ ..] = text else { return None };
        if *next != delimiter {
            return None;
        }
        out.push(b',');
        text = rest;
    }
}

/// Puts what stands before the closing quote into `content`, without the backslashes, and returns what stands behind it.
fn unquoted<'a>(mut text: &'a [u8], content: &mut Vec<u8>) -> Option<&'a [u8]> {
    content.clear();
    loop {
        let special = text.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        content.extend_from_slice(&text[..special]);
        match &text[special..] {
            [b'"', rest @ ..] => return Some(rest),
            [_, escaped, rest @ ..] => {
                content.push(*escaped);
                text = rest;
            }
            _ => return None,
        }
    }
}

/// `MAXDIM` of `utils/array.h`.
const MAX_DIMENSIONS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    fn written(form: Form, text: &str) -> String {
        let (mut scratch, mut out) = (Vec::new(), b"x".to_vec());
        write(&form, b',', text.as_bytes(), &mut scratch, &mut out);
        String::from_utf8(out).unwrap().split_off(1)
    }

    #[test]
    fn elements_have_the_form_of_their_type() {
        assert_eq!(written(Form::Integer, "{1,-2,NULL}"), "[1,-2,null]");
        assert_eq!(written(Form::Integer, "{}"), "[]");
        assert_eq!(written(Form::Integer, "{{1,2},{3,NULL}}"), "[[1,2],[3,null]]");
        assert_eq!(written(Form::Float, "{NaN,1e+20,-0}"), r#"["NaN",1e+20,-0]"#);
        assert_eq!(written(Form::Bool, "{t,f}"), "[true,false]");
        assert_eq!(written(Form::Timestamp, r#"{"2026-01-02 03:04:05"}"#), r#"["2026-01-02T03:04:05Z"]"#);
        assert_eq!(written(Form::Json, r#"{"{\"a\": \"\\\\\\\"\"}",1}"#), r#"[{"a": "\\\""},1]"#);
        assert_eq!(written(Form::Bytea, r#"{"\\xdead"}"#), r#"["\\xdead"]"#);
        let text = r#"{plain,"","NULL",NULL,"with \"quotes\"","back\\slash","{a,b}"," "}"#;
        let expected = r#"["plain","","NULL",null,"with \"quotes\"","back\\slash","{a,b}"," "]"#;
        assert_eq!(written(Form::Text, text), expected);
    }

    #[test]
    fn an_array_of_arrays_of_a_domain_keeps_both_levels() {
        let inner = Form::Array(Box::new(Form::Text), b',');
        assert_eq!(written(inner, r#"{"{a,\"b c\"}","{NULL}",NULL}"#), r#"[["a","b c"],[null],null]"#);
    }

    #[test]
    fn lower_bounds_and_what_is_no_array_stay_a_string() {
        let broken =
            ["", "{", "}", "{,}", "{1", "{1,", "{1}}", "{1}2", "{{1},2", "1", r#"{"a}"#, r#"{"a"b}"#, "{{}}"];
        for text in broken.into_iter().chain(["[0:2]={1,2,3}", "{{{{{{{1}}}}}}}", r#"{a\b}"#, r#"{"\"#]) {
            let written = written(Form::Text, text);
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }

    #[test]
    fn boxes_are_delimited_by_a_semicolon() {
        let mut out = Vec::new();
        write(&Form::Text, b';', b"{(1,1),(0,0);(2,2),(1,1)}", &mut Vec::new(), &mut out);
        assert_eq!(out, br#"["(1,1),(0,0)","(2,2),(1,1)"]"#);
    }

    /// As `array_out` writes it when every element is quoted.
    fn literal(elements: &[Option<String>]) -> String {
        let quoted = |element: &Option<String>| match element {
            None => "NULL".to_owned(),
            Some(text) => format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"")),
        };
        format!("{{{}}}", elements.iter().map(quoted).collect::<Vec<_>>().join(","))
    }

    proptest! {
        #[test]
        fn texts_are_read_back(elements in prop::collection::vec(any::<Option<String>>(), 0..8)) {
            let written = written(Form::Text, &literal(&elements));
            prop_assert_eq!(serde_json::from_str::<Vec<Option<String>>>(&written).unwrap(), elements);
        }

        #[test]
        fn any_text_is_json(text in r#"[{}",\\ 1aNULL]{0,40}"#) {
            serde_json::from_str::<IgnoredAny>(&written(Form::Text, &text)).unwrap();
            serde_json::from_str::<IgnoredAny>(&written(Form::Float, &text)).unwrap();
        }
    }
}
