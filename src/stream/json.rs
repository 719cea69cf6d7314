//! Texts as JSON. Pure.

/// A string: what is valid UTF-8 with what JSON wants escaped, anything else as `\x` and hexadecimal digits, like a bytea.
pub fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    inside(text, out);
    out.push(b'"');
}

/// What stands between the quotes of a string.
pub fn inside(text: &[u8], out: &mut Vec<u8>) {
    if text.chunks(32).all(is_plain) {
        out.extend_from_slice(text);
    } else if std::str::from_utf8(text).is_ok() {
        escaped(text, out);
    } else {
        hexadecimal(text, out);
    }
}

/// A json or jsonb value as it is, but on one line: a line break cannot be inside one of its strings.
pub fn embedded(text: &[u8], out: &mut Vec<u8>) {
    let blank = text.iter().all(u8::is_ascii_whitespace);
    if blank || std::str::from_utf8(text).is_err() {
        return string(text, out);
    }
    let start = out.len();
    out.extend_from_slice(text);
    for byte in &mut out[start..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// Whether it is a number of JSON (RFC 8259, section 6) without a fraction and an exponent.
pub fn is_integer(text: &[u8]) -> bool {
    after_integer(text) == Some(&[])
}

/// Whether it is a number of JSON (RFC 8259, section 6).
pub fn is_number(text: &[u8]) -> bool {
    let Some(mut rest) = after_integer(text) else { return false };
    if let [b'.', fraction @ ..] = rest {
        rest = after_digits(fraction);
        if rest.len() == fraction.len() {
            return false;
        }
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let digits = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent);
        rest = after_digits(digits);
        return !digits.is_empty() && rest.is_empty();
    }
    rest.is_empty()
}

fn after_integer(text: &[u8]) -> Option<&[u8]> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        [b'0', rest @ ..] => Some(rest),
        [b'1'..=b'9', ..] => Some(after_digits(digits)),
        _ => None,
    }
}

fn after_digits(text: &[u8]) -> &[u8] {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    &text[digits..]
}

/// ASCII without anything to escape. Looks at all of it, so that the compiler may look at many bytes at once.
#[inline]
fn is_plain(chunk: &[u8]) -> bool {
    !chunk.iter().fold(false, |found, byte| found | (ESCAPES[usize::from(*byte)] != 0) | !byte.is_ascii())
}

fn escaped(text: &[u8], out: &mut Vec<u8>) {
    let mut start = 0;
    for (place, byte) in text.iter().enumerate() {
        let escape = ESCAPES[usize::from(*byte)];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&text[start..place]);
        start = place + 1;
        out.extend_from_slice(&[b'\\', escape]);
        if escape == b'u' {
            let digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
            out.extend_from_slice(&[b'0', b'0', digits[0], digits[1]]);
        }
    }
    out.extend_from_slice(&text[start..]);
}

fn hexadecimal(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(br"\\x");
    for byte in text {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What stands behind the backslash; 0 where a byte stands for itself.
const ESCAPES: [u8; 256] = {
    let mut escapes = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        escapes[control] = b'u';
        control += 1;
    }
    escapes[0x08] = b'b';
    escapes[0x09] = b't';
    escapes[0x0A] = b'n';
    escapes[0x0C] = b'f';
    escapes[0x0D] = b'r';
    escapes[b'"' as usize] = b'"';
    escapes[b'\\' as usize] = b'\\';
    escapes
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(text: &[u8]) -> String {
        let mut out = Vec::new();
        string(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_text_that_is_not_utf8_is_written_in_hexadecimal() {
        assert_eq!(written(b"a\xff\"\n"), r#""\\x61ff220a""#);
        assert_eq!(written(b"\xed\xa0\x80"), r#""\\xeda080""#, "half of a surrogate pair");
    }

    #[test]
    fn numbers_are_those_of_json() {
        for text in ["0", "-0", "1.5", "1e+20", "1e-05", "-1.7976931348623157e+308", "10", "4.9E-324"] {
            assert!(is_number(text.as_bytes()), "{text}");
            serde_json::from_str::<serde_json::Value>(text).unwrap_or_else(|_| panic!("{text}"));
        }
        for text in
            ["", "-", "+1", "01", "1.", ".5", "1e", "1e+", "1e+5 ", "NaN", "Infinity", "0x1", "1_0", " 1"]
        {
            assert!(!is_number(text.as_bytes()), "{text}");
        }
        assert!(is_integer(b"-9223372036854775808") && !is_integer(b"1.0") && !is_integer(b""));
    }

    #[test]
    fn embedded_json_is_on_one_line_and_otherwise_as_it_was() {
        let mut out = Vec::new();
        embedded(b"{\r\n\t\"k\": [1.50,\n2e400],  \"s\": \"\\n\"}", &mut out);
        assert_eq!(out, b"{  \t\"k\": [1.50, 2e400],  \"s\": \"\\n\"}");
        out.clear();
        embedded(b" ", &mut out);
        assert_eq!(out, b"\" \"");
        out.clear();
        embedded(b"\"\xff\"", &mut out);
        assert_eq!(out, br#""\\x22ff22""#);
    }

    proptest! {
        #[test]
        fn a_text_is_read_back(text in any::<String>(), more in "[\\x00-\\x7f]{0,80}") {
            for text in [text, more] {
                prop_assert_eq!(serde_json::from_str::<String>(&written(text.as_bytes())).unwrap(), text);
            }
        }

        #[test]
        fn any_bytes_are_one_line_of_json(bytes in any::<Vec<u8>>()) {
            let text = written(&bytes);
            prop_assert!(!text.contains(['\n', '\r']));
            serde_json::from_str::<String>(&text).unwrap();
        }
    }
}
