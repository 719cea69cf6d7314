//! Rows with their columns, and how they go over the wire, as text and in PostgreSQL's binary formats
//! (src/backend/utils/adt/int.c, int8.c, numeric.c: the functions that end in `send`). Pure.

use crate::wire::extended::Format;
use crate::wire::message::{self, data_row_with, row_description_in};

/// The type of a column: those that PgBouncer's columns have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int4,
    Int8,
    Numeric,
    Bytea,
}

impl Kind {
    /// The type's OID and length (pg_type.dat).
    fn oid_and_length(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int4 => (23, 4),
            Self::Int8 => (20, 8),
            Self::Numeric => (1700, -1),
            Self::Bytea => (17, -1),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Text(String),
    /// A value of any of the number types; what is beyond an int4 or int8 is shown as its greatest.
    Count(u64),
    /// Only `SELECT <number>` has these.
    Int(i32),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<u32> for Value {
    fn from(count: u32) -> Self {
        Self::Count(count.into())
    }
}

impl From<u16> for Value {
    fn from(count: u16) -> Self {
        Self::Count(count.into())
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Count(is.into())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Value>>,
}

/// `formats` is one for each column, or fewer: the rest is text.
pub(super) fn describe(out: &mut Vec<u8>, columns: &[Column], formats: &[Format]) {
    let described: Vec<_> = columns
        .iter()
        .map(|column| {
            let (type_oid, type_length) = column.kind.oid_and_length();
            message::Column { name: column.name, type_oid, type_length }
        })
        .collect();
    row_description_in(out, &described, |place| *formats.get(place).unwrap_or(&Format::Text) as u16);
}

impl Table {
    /// Appends one row.
    pub fn put_row(&self, out: &mut Vec<u8>, row: &[Value], formats: &[Format]) {
        data_row_with(out, self.columns.len(), |place, out| {
            let (Some(column), Some(value)) = (self.columns.get(place), row.get(place)) else { return false };
            match formats.get(place) {
                Some(Format::Binary) => put_binary(out, column.kind, value),
                _ => put_text(out, column.kind, value),
            }
        });
    }
}

fn put_text(out: &mut Vec<u8>, kind: Kind, value: &Value) -> bool {
    match (value, kind) {
        (Value::Null, _) => return false,
        (Value::Text(text), _) => out.extend(text.as_bytes()),
        (Value::Int(number), _) => out.extend(number.to_string().as_bytes()),
        (Value::Count(count), Kind::Int4) => out.extend(int4(*count).to_string().as_bytes()),
        (Value::Count(count), Kind::Int8) => out.extend(int8(*count).to_string().as_bytes()),
        (Value::Count(count), _) => out.extend(count.to_string().as_bytes()),
    }
    true
}

fn put_binary(out: &mut Vec<u8>, kind: Kind, value: &Value) -> bool {
    match (value, kind) {
        (Value::Count(count), Kind::Int4) => out.extend(int4(*count).to_be_bytes()),
        (Value::Count(count), Kind::Int8) => out.extend(int8(*count).to_be_bytes()),
        (Value::Count(count), Kind::Numeric) => put_numeric(out, *count),
        (Value::Int(number), Kind::Int4) => out.extend(number.to_be_bytes()),
        // Binary text is text; no column of another kind has such values.
        _ => return put_text(out, kind, value),
    }
    true
}

fn int4(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn int8(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// numeric_send(): how many digits to the base of 10,000, the first one's weight, sign, scale, and the digits without
/// zeroes at the end.
fn put_numeric(out: &mut Vec<u8>, count: u64) {
    // 2^64 has five digits.
    let mut digits = [0u16; 5];
    let mut rest = count;
    for digit in digits.iter_mut().rev() {
        *digit = (rest % 10_000) as u16;
        rest /= 10_000;
    }
    let first = digits.iter().position(|digit| *digit != 0).unwrap_or(digits.len());
    let last = digits.iter().rposition(|digit| *digit != 0).map_or(first, |last| last + 1);
    let significant = &digits[first..last];
    let weight = (digits.len() - first).saturating_sub(1);
    out.extend((significant.len() as u16).to_be_bytes());
    out.extend((weight as u16).to_be_bytes());
    out.extend([0; 4]);
    for digit in significant {
        out.extend(digit.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(kind: Kind, value: impl Into<Value>) -> Vec<u8> {
        let mut out = Vec::new();
        put_binary(&mut out, kind, &value.into());
        out
    }

    #[test]
    fn numbers_in_binary_are_postgresqls() {
        assert_eq!(binary(Kind::Int4, 7u64), [0, 0, 0, 7]);
        assert_eq!(binary(Kind::Int8, 258u64), [0, 0, 0, 0, 0, 0, 1, 2]);
        // From numeric_send(): select encode(numeric_send(n), 'hex').
        assert_eq!(binary(Kind::Numeric, 0u64), [0; 8]);
        assert_eq!(binary(Kind::Numeric, 1u64), [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(binary(Kind::Numeric, 10_000u64), [0, 1, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(binary(Kind::Numeric, 123_456_789u64), *b"\0\x03\0\x02\0\0\0\0\0\x01\x09\x29\x1a\x85");
        assert_eq!(
            binary(Kind::Numeric, u64::MAX),
            *b"\0\x05\0\x04\0\0\0\0\x07\x34\x1a\x58\x02\xe1\x03\xbb\x06\x4f"
        );
        assert_eq!(binary(Kind::Text, "añb"), "añb".as_bytes());
    }

    #[test]
    fn a_count_beyond_its_column_is_shown_as_the_greatest() {
        let text = |kind| {
            let mut out = Vec::new();
            put_text(&mut out, kind, &Value::Count(u64::MAX));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(Kind::Int4), "2147483647");
        assert_eq!(text(Kind::Int8), "9223372036854775807");
        assert_eq!(text(Kind::Numeric), "18446744073709551615");
        assert_eq!(binary(Kind::Int4, u64::MAX), i32::MAX.to_be_bytes());
    }

    #[test]
    fn null_has_no_bytes_in_either_format() {
        let table = Table { columns: vec![Column { name: "n", kind: Kind::Int4 }], rows: Vec::new() };
        for formats in [&[][..], &[Format::Binary]] {
            let mut out = Vec::new();
            table.put_row(&mut out, &[Value::Null], formats);
            assert_eq!(out, b"D\0\0\0\x0a\0\x01\xff\xff\xff\xff");
        }
    }
}
