//! Values of columns as JSON, by the form of their type: the table in [`super::types`]. Pure.

use super::types::Form;
use super::{array, clock, json};
use time::{Date, Duration, Month, PrimitiveDateTime, Time};

/// Appends a value that is not null. Whatever the text is, JSON comes out, except that json and jsonb are taken at their word.
///
/// `scratch` is for elements of arrays; what is in it is lost.
#[inline]
pub fn write(form: &Form, text: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    match form {
        Form::Integer if json::is_integer(text) => out.extend_from_slice(text),
        Form::Float if json::is_number(text) => out.extend_from_slice(text),
        Form::Bool if text == b"t" => out.extend_from_slice(b"true"),
        Form::Bool if text == b"f" => out.extend_from_slice(b"false"),
        Form::Date if matches(text, DATE) => {
            out.push(b'"');
            out.extend_from_slice(text);
            out.extend_from_slice(b"T00:00:00Z\"");
        }
        Form::Timestamp => timestamp(text, out),
        Form::TimestampTz => timestamp_with_time_zone(text, out),
        Form::Json => json::embedded(text, out),
        Form::Inet if !text.contains(&b'/') && text.is_ascii() => {
            json::string(text, out);
            let mask: &[u8] = if text.contains(&b':') { b"/128\"" } else { b"/32\"" };
            out.pop();
            out.extend_from_slice(mask);
        }
        Form::Array(element, delimiter) => array::write(element, *delimiter, text, scratch, out),
        _ => json::string(text, out),
    }
}

/// `2026-01-02 03:04:05.5`
fn timestamp(text: &[u8], out: &mut Vec<u8>) {
    match split(text) {
        Some((seconds, fraction, b"")) => in_utc(seconds, fraction, out),
        _ => json::string(text, out),
    }
}

/// `2026-01-02 03:04:05.5+00`, and any other offset.
fn timestamp_with_time_zone(text: &[u8], out: &mut Vec<u8>) {
    match split(text) {
        Some((seconds, fraction, b"+00")) => in_utc(seconds, fraction, out),
        Some((seconds, fraction, zone))
            if let Some(moved) = offset(zone).and_then(|by| moved(seconds, by)) =>
        {
            out.push(b'"');
            clock::date_and_time(moved.assume_utc(), out);
            out.extend_from_slice(fraction);
            out.extend_from_slice(b"Z\"");
        }
        _ => json::string(text, out),
    }
}

/// Date and time, the fraction with its point, and what follows. `None` for infinity and years beyond 9999.
fn split(text: &[u8]) -> Option<(&[u8; 19], &[u8], &[u8])> {
    let (seconds, rest) = text.split_first_chunk::<19>()?;
    if !matches(seconds, DATE_AND_TIME) {
        return None;
    }
    let length = match rest {
        [b'.', digits @ ..] => 1 + digits.iter().take_while(|byte| byte.is_ascii_digit()).count(),
        _ => 0,
    };
    let (fraction, rest) = rest.split_at(length);
    (length != 1).then_some((seconds, fraction, rest))
}

fn in_utc(seconds: &[u8; 19], fraction: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(&seconds[..10]);
    out.push(b'T');
    out.extend_from_slice(&seconds[11..]);
    out.extend_from_slice(fraction);
    out.extend_from_slice(b"Z\"");
}

/// `+05`, `-03:30`, `+00:53:28`: how far ahead of UTC.
fn offset(zone: &[u8]) -> Option<Duration> {
    let (ahead, parts) = match zone {
        [b'+', parts @ ..] => (true, parts),
        [b'-', parts @ ..] => (false, parts),
        _ => return None,
    };
    let shapes: [&[u8]; 3] = [b"00", b"00:00", b"00:00:00"];
    if !shapes.iter().any(|shape| matches(parts, shape)) {
        return None;
    }
    let seconds =
        parts.split(|byte| *byte == b':').zip([3600, 60, 1]).map(|(part, unit)| number(part) * unit);
    let seconds = Duration::seconds(seconds.map(i64::from).sum());
    Some(if ahead { seconds } else { -seconds })
}

/// The same moment in UTC, if it is in the years 1 to 9999 there too.
fn moved(seconds: &[u8; 19], ahead: Duration) -> Option<PrimitiveDateTime> {
    let part = |from: usize, to: usize| number(&seconds[from..to]);
    let byte = |from: usize| u8::try_from(part(from, from + 2)).ok();
    let month = Month::try_from(byte(5)?).ok()?;
    let date = Date::from_calendar_date(part(0, 4).cast_signed(), month, byte(8)?).ok()?;
    let time = Time::from_hms(byte(11)?, byte(14)?, byte(17)?).ok()?;
    let moved = PrimitiveDateTime::new(date, time).checked_sub(ahead)?;
    (1..=9999).contains(&moved.year()).then_some(moved)
}

fn number(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit & 15))
}

/// Whether it has digits where the shape has zeros, and is equal elsewhere.
fn matches(text: &[u8], shape: &[u8]) -> bool {
    let same = |(byte, shape): (&u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
    text.len() == shape.len() && text.iter().zip(shape).all(same)
}

const DATE: &[u8] = b"0000-00-00";
const DATE_AND_TIME: &[u8] = b"0000-00-00 00:00:00";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    fn written(form: &Form, text: &[u8]) -> String {
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        write(form, text, &mut scratch, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn all_written(form: Form, values: &[(&str, &str)]) {
        for (text, expected) in values {
            assert_eq!(written(&form, text.as_bytes()), *expected, "{text}");
        }
    }

    #[test]
    fn numbers_stay_as_the_server_writes_them() {
        let integers = ["0", "-32768", "9223372036854775807", "-9223372036854775808", "9007199254740993"];
        all_written(Form::Integer, &integers.map(|text| (text, text)));
        let floats = ["1.5", "0.1", "-0", "1e+20", "1e-07", "1.7976931348623157e+308", "5e-324"];
        all_written(Form::Float, &floats.map(|text| (text, text)));
        all_written(
            Form::Float,
            &[("NaN", r#""NaN""#), ("Infinity", r#""Infinity""#), ("-Infinity", r#""-Infinity""#)],
        );
        all_written(Form::Bool, &[("t", "true"), ("f", "false"), ("true", r#""true""#)]);
    }

    #[test]
    fn dates_and_timestamps_without_a_zone_end_in_z() {
        all_written(
            Form::Date,
            &[
                ("2026-12-31", r#""2026-12-31T00:00:00Z""#),
                ("0044-03-15 BC", r#""0044-03-15 BC""#),
                ("10000-01-01", r#""10000-01-01""#),
                ("-infinity", r#""-infinity""#),
            ],
        );
        all_written(
            Form::Timestamp,
            &[
                ("2026-01-02 03:04:05", r#""2026-01-02T03:04:05Z""#),
                ("2026-01-02 03:04:05.5", r#""2026-01-02T03:04:05.5Z""#),
                ("9999-12-31 23:59:59.999999", r#""9999-12-31T23:59:59.999999Z""#),
                ("10000-01-01 00:00:00", r#""10000-01-01 00:00:00""#),
                ("4714-11-24 00:00:00 BC", r#""4714-11-24 00:00:00 BC""#),
                ("infinity", r#""infinity""#),
                ("2026-01-02 03:04:05.", r#""2026-01-02 03:04:05.""#),
                ("2026-01-02 03:04:05+00", r#""2026-01-02 03:04:05+00""#),
            ],
        );
    }

    #[test]
    fn timestamps_with_a_zone_are_moved_to_utc() {
        all_written(
            Form::TimestampTz,
            &[
                ("2026-01-02 01:04:05.678901+00", r#""2026-01-02T01:04:05.678901Z""#),
                ("2026-01-02 03:04:05.678901+02", r#""2026-01-02T01:04:05.678901Z""#),
                ("2026-01-01 00:00:00+05:30", r#""2025-12-31T18:30:00Z""#),
                ("2024-02-28 20:30:00.25-03:30", r#""2024-02-29T00:00:00.25Z""#),
                ("1890-01-01 00:53:28+00:53:28", r#""1890-01-01T00:00:00Z""#),
                // In UTC they are of a year that RFC 3339 has not.
                ("9999-12-31 23:00:00-02", r#""9999-12-31 23:00:00-02""#),
                ("0001-01-01 00:00:00+01", r#""0001-01-01 00:00:00+01""#),
                ("0044-03-15 12:00:00+00 BC", r#""0044-03-15 12:00:00+00 BC""#),
                ("infinity", r#""infinity""#),
                ("2026-02-30 00:00:00+01", r#""2026-02-30 00:00:00+01""#),
                ("2026-01-02 00:00:00+1", r#""2026-01-02 00:00:00+1""#),
                ("2026-01-02 00:00:00", r#""2026-01-02 00:00:00""#),
            ],
        );
    }

    #[test]
    fn an_address_without_a_mask_gains_the_one_it_has() {
        all_written(
            Form::Inet,
            &[
                ("10.0.0.1", r#""10.0.0.1/32""#),
                ("10.0.0.1/8", r#""10.0.0.1/8""#),
                ("::1", r#""::1/128""#),
                ("fe80::/10", r#""fe80::/10""#),
            ],
        );
    }

    #[test]
    fn everything_else_is_a_string() {
        all_written(
            Form::Text,
            &[
                ("ch   ", r#""ch   ""#),
                ("123456789012345678901234567890.123456789", r#""123456789012345678901234567890.123456789""#),
                ("line\nbreak\ttab\\", r#""line\nbreak\ttab\\""#),
                ("first \"quoted\" <tag> & ünïcode", r#""first \"quoted\" <tag> & ünïcode""#),
                ("", r#""""#),
                ("\u{1}\u{7f}\u{2028}", "\"\\u0001\u{7f}\u{2028}\""),
            ],
        );
        all_written(Form::Bytea, &[(r"\xdeadbeef", r#""\\xdeadbeef""#)]);
    }

    fn forms() -> impl Strategy<Value = Form> {
        use Form::*;
        prop::sample::select(vec![Integer, Float, Bool, Date, Timestamp, TimestampTz, Bytea, Inet, Text])
    }

    proptest! {
        #[test]
        fn every_moment_of_every_zone_is_the_same_moment_in_utc(
            (year, month, day) in (1000..9000i32, 1..=12u8, 1..=28u8),
            (hour, minute, second) in (0..24u8, 0..60u8, 0..60u8),
            zone in -57_599..57_600i32,
        ) {
            let date = Date::from_calendar_date(year, Month::try_from(month).unwrap(), day).unwrap();
            let utc = PrimitiveDateTime::new(date, Time::from_hms(hour, minute, second).unwrap());
            let local = utc + Duration::seconds(zone.into());
            let (sign, ahead) = (if zone < 0 { '-' } else { '+' }, zone.unsigned_abs());
            let (h, m, s) = (ahead / 3600, ahead / 60 % 60, ahead % 60);
            let text = format!(
                "{:04}-{:02}-{:02} {:02}:{:02}:{:02}{sign}{h:02}:{m:02}:{s:02}",
                local.year(), u8::from(local.month()), local.day(), local.hour(), local.minute(), local.second(),
            );
            let expected = format!("\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z\"");
            prop_assert_eq!(written(&Form::TimestampTz, text.as_bytes()), expected);
        }

        #[test]
        fn integers_are_read_back(number in any::<i64>()) {
            let text = written(&Form::Integer, number.to_string().as_bytes());
            prop_assert_eq!(serde_json::from_str::<i64>(&text).unwrap(), number);
        }

        #[test]
        fn any_bytes_of_any_form_are_one_line_of_json(
            form in forms(), nested in 0..3usize, bytes in any::<Vec<u8>>(), text in "[-+0-9:. {},\"e]{0,30}",
        ) {
            let form = (0..nested).fold(form, |form, _| Form::Array(Box::new(form), b','));
            for text in [bytes.as_slice(), text.as_bytes()] {
                let written = written(&form, text);
                prop_assert!(!written.contains(['\n', '\r']));
                serde_json::from_str::<IgnoredAny>(&written).unwrap();
            }
        }
    }
}
