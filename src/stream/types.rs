//! What form a type has in an event. Pure.
//!
//! Values come as the type's output function writes them, with DateStyle ISO, TimeZone UTC, IntervalStyle postgres, bytea_output hex
//! and extra_float_digits 1, which whoever decodes has set.
//!
//! | type | in the event | example |
//! |---|---|---|
//! | smallint, integer, bigint | number | `9007199254740993` |
//! | real, double precision | number; NaN and infinities as strings | `1e+20`, `"NaN"` |
//! | boolean | `true`, `false` | |
//! | date | RFC 3339, midnight | `"2026-01-02T00:00:00Z"` |
//! | timestamp | RFC 3339 as if it were UTC | `"2026-01-02T03:04:05.5Z"` |
//! | timestamp with time zone | RFC 3339 in UTC | `"2026-01-02T01:04:05.678901Z"` |
//! | the three before: infinity, before Christ, after 9999 | as the server writes it | `"infinity"`, `"0044-03-15 BC"` |
//! | json, jsonb | embedded; line breaks become spaces | `{"k": [1, 2.50, null]}` |
//! | inet | with its mask | `"10.0.0.1/32"` |
//! | bytea | hexadecimal | `"\\xdeadbeef"` |
//! | array | array, nested by its dimensions, elements by their type's form | `[[1,2],[3,null]]` |
//! | array with lower bounds other than 1 | as the server writes it | `"[0:1]={1,2}"` |
//! | domain | as the type it is over | |
//! | anything else: numeric, money, uuid, time, interval, enums, composites, ranges, … | string, as the server writes it | `"12.50"` |
//!
//! Null is `null` in every type. A text that is not valid UTF-8, which only a database in SQL_ASCII can have, is written like a
//! bytea, `"\\x…"`. So is a name. A text of a form that is not what its type's output function writes becomes a string as it is.

use std::collections::HashMap;

/// How values of a type are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    Integer,
    Float,
    Bool,
    Date,
    Timestamp,
    TimestampTz,
    Json,
    Bytea,
    Inet,
    Text,
    /// Of elements of a form, with `pg_type.typdelim` between them.
    Array(Box<Form>, u8),
}

impl Form {
    /// The form of a built-in type; `None` when the OID is no built-in type's and a catalog has to be asked. Built in are those that
    /// `pg_type.dat` numbers: other OIDs, also below 16384, differ from one version of the server to the next.
    pub fn of(type_oid: u32) -> Option<Self> {
        if let Ok(place) = ARRAYS.binary_search_by_key(&type_oid, |(array, _)| *array) {
            let element = ARRAYS[place].1;
            let delimiter = if element == BOX { b';' } else { b',' };
            return Some(Self::Array(Box::new(Self::of(element)?), delimiter));
        }
        Some(match type_oid {
            20 | 21 | 23 => Self::Integer,
            700 | 701 => Self::Float,
            16 => Self::Bool,
            1082 => Self::Date,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            114 | 3802 => Self::Json,
            17 => Self::Bytea,
            869 => Self::Inet,
            1..FIRST_GENERATED => Self::Text,
            _ => return None,
        })
    }
}

/// What a catalog says of a type that is not built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Described {
    /// A domain: `pg_type.typbasetype`.
    Same(u32),
    /// `pg_type.typelem` and the element's `typdelim`.
    Array {
        element: u32,
        delimiter: u8,
    },
    Text,
}

/// The types that are not built in, as far as somebody has asked the catalogs for them.
#[derive(Debug, Default)]
pub struct Types {
    known: HashMap<u32, Described>,
}

impl Types {
    /// Beyond [`MAX_TYPES`] all others are forgotten, and have to be learned again when they are missing again.
    pub fn learn(&mut self, type_oid: u32, described: Described) {
        if self.known.len() >= MAX_TYPES {
            self.known.clear();
        }
        self.known.insert(type_oid, described);
    }

    /// The form of a type; [`Form::Text`] where it, what it is a domain over, or its elements' type is not known.
    pub fn form(&self, type_oid: u32) -> Form {
        self.resolve(type_oid, 0).unwrap_or(Form::Text)
    }

    fn resolve(&self, type_oid: u32, depth: usize) -> Option<Form> {
        if let Some(form) = Form::of(type_oid) {
            return Some(form);
        }
        if depth >= MAX_DEPTH {
            return Some(Form::Text);
        }
        Some(match self.known.get(&type_oid)? {
            Described::Same(base) => self.resolve(*base, depth + 1)?,
            Described::Array { element, delimiter } => {
                Form::Array(Box::new(self.resolve(*element, depth + 1)?), *delimiter)
            }
            Described::Text => Form::Text,
        })
    }
}

/// Types that are kept.
pub const MAX_TYPES: usize = 65_536;

/// Domains over arrays of domains over …: beyond it a type is text.
const MAX_DEPTH: usize = 16;

/// `FirstGenbkiObjectId` of `access/transam.h`.
const FIRST_GENERATED: u32 = 10_000;

/// The one built-in type whose delimiter is not a comma.
const BOX: u32 = 603;

/// Array types and their elements: `array_type_oid` and `oid` of `pg_type.dat`. int2vector and oidvector are none: they are
/// written without braces.
#[rustfmt::skip]
const ARRAYS: &[(u32, u32)] = &[
    (143, 142), (199, 114), (210, 71), (270, 75), (271, 5069), (272, 81), (273, 83), (629, 628), (651, 650),
    (719, 718), (775, 774), (791, 790), (1000, 16), (1001, 17), (1002, 18), (1003, 19), (1005, 21),
    (1006, 22), (1007, 23), (1008, 24), (1009, 25), (1010, 27), (1011, 28), (1012, 29), (1013, 30),
    (1014, 1042), (1015, 1043), (1016, 20), (1017, 600), (1018, 601), (1019, 602), (1020, 603), (1021, 700),
    (1022, 701), (1027, 604), (1028, 26), (1034, 1033), (1040, 829), (1041, 869), (1115, 1114),
    (1182, 1082), (1183, 1083), (1185, 1184), (1187, 1186), (1231, 1700), (1263, 2275), (1270, 1266),
    (1561, 1560), (1563, 1562), (2201, 1790), (2207, 2202), (2208, 2203), (2209, 2204), (2210, 2205),
    (2211, 2206), (2949, 2970), (2951, 2950), (3221, 3220), (3643, 3614), (3644, 3642), (3645, 3615),
    (3735, 3734), (3770, 3769), (3807, 3802), (3905, 3904), (3907, 3906), (3909, 3908), (3911, 3910),
    (3913, 3912), (3927, 3926), (4073, 4072), (4090, 4089), (4097, 4096), (4192, 4191), (5039, 5038),
    (6150, 4451), (6151, 4532), (6152, 4533), (6153, 4534), (6155, 4535), (6157, 4536),
];

#[cfg(test)]
mod tests;
