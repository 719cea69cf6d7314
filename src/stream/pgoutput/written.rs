//! Messages as pgoutput writes them, for tests.

use crate::stream::pgoutput::Column;

/// A column of a table: `(is of the replica identity, name, type's OID)`.
pub type Described<'a> = (bool, &'a str, u32);

pub fn begin(commit: u64, micros: i64, xid: u32) -> Vec<u8> {
    [b"B".as_slice(), &commit.to_be_bytes(), &micros.to_be_bytes(), &xid.to_be_bytes()].concat()
}

pub fn commit(commit: u64, end: u64, micros: i64) -> Vec<u8> {
    [b"C\0".as_slice(), &commit.to_be_bytes(), &end.to_be_bytes(), &micros.to_be_bytes()].concat()
}

pub fn relation(oid: u32, schema: &str, name: &str, identity: u8, columns: &[Described]) -> Vec<u8> {
    let mut message = [b"R".as_slice(), &oid.to_be_bytes()].concat();
    message.extend([schema.as_bytes(), b"\0", name.as_bytes(), b"\0", &[identity]].concat());
    message.extend((columns.len() as u16).to_be_bytes());
    for (key, name, type_oid) in columns {
        message.extend([&[u8::from(*key)], name.as_bytes(), b"\0"].concat());
        message.extend([type_oid.to_be_bytes(), (-1i32).to_be_bytes()].concat());
    }
    message
}

pub fn tuple(columns: &[Column]) -> Vec<u8> {
    let mut bytes = (columns.len() as u16).to_be_bytes().to_vec();
    for column in columns {
        let (kind, text) = match column {
            Column::Null => (b'n', None),
            Column::Unchanged => (b'u', None),
            Column::Text(text) => (b't', Some(text)),
            Column::Binary(value) => (b'b', Some(value)),
        };
        bytes.push(kind);
        if let Some(text) = text {
            bytes.extend((text.len() as u32).to_be_bytes());
            bytes.extend_from_slice(text);
        }
    }
    bytes
}

pub fn insert(oid: u32, new: &[Column]) -> Vec<u8> {
    [b"I".as_slice(), &oid.to_be_bytes(), b"N", &tuple(new)].concat()
}

/// `old` with its kind: `K` or `O`.
pub fn update(oid: u32, old: Option<(u8, &[Column])>, new: &[Column]) -> Vec<u8> {
    let old = old.map_or(Vec::new(), |(kind, old)| [&[kind], tuple(old).as_slice()].concat());
    [b"U".as_slice(), &oid.to_be_bytes(), &old, b"N", &tuple(new)].concat()
}

pub fn delete(oid: u32, kind: u8, old: &[Column]) -> Vec<u8> {
    [b"D".as_slice(), &oid.to_be_bytes(), &[kind], &tuple(old)].concat()
}

pub fn truncate(oids: &[u32], flags: u8) -> Vec<u8> {
    let count = (oids.len() as u32).to_be_bytes();
    let mut message = [b"T".as_slice(), &count, &[flags]].concat();
    oids.iter().for_each(|oid| message.extend(oid.to_be_bytes()));
    message
}

pub fn message(prefix: &str, content: &[u8]) -> Vec<u8> {
    let (lsn, length) = (7u64.to_be_bytes(), (content.len() as u32).to_be_bytes());
    [b"M\x01".as_slice(), &lsn, prefix.as_bytes(), b"\0", &length, content].concat()
}
