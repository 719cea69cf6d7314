//! What pgoutput writes: messages of the logical replication protocol, versions 1 to 4, without streamed and two-phase transactions.
//! Pure.
//!
//! PostgreSQL's documentation, "Logical Replication Message Formats"; `src/backend/replication/logical/proto.c`.

use super::error::Error;
use super::position::Lsn;

/// One message. What has a list in it was walked through once already, so that walking it again meets no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// `commit` is where the commit record begins; the time is in microseconds since 2000-01-01 UTC.
    Begin {
        commit: Lsn,
        commit_time_micros: i64,
        xid: u32,
    },
    /// `end` is the end of the commit record: what the slot is confirmed with.
    Commit {
        commit: Lsn,
        end: Lsn,
        commit_time_micros: i64,
    },
    /// Where the transaction came from, if by replication.
    Origin {
        commit: Lsn,
        name: &'a [u8],
    },
    Relation(RelationMessage<'a>),
    /// A type that is not built in; comes before the first relation that has it.
    Type {
        oid: u32,
        schema: &'a [u8],
        name: &'a [u8],
    },
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    /// `old` comes when the key changed, or with REPLICA IDENTITY FULL.
    Update {
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    Truncate {
        relations: Oids<'a>,
        cascade: bool,
        restart_identity: bool,
    },
    /// `pg_logical_emit_message`.
    Message {
        transactional: bool,
        lsn: Lsn,
        prefix: &'a [u8],
        content: &'a [u8],
    },
}

impl<'a> Message<'a> {
    /// # Errors
    /// When these bytes are not exactly one message of a kind that the stream asks for.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut rest = Rest(bytes);
        let message = match rest.byte()? {
            b'B' => Self::Begin { commit: rest.lsn()?, commit_time_micros: rest.i64()?, xid: rest.u32()? },
            b'C' => {
                rest.byte()?; // flags, none defined
                Self::Commit { commit: rest.lsn()?, end: rest.lsn()?, commit_time_micros: rest.i64()? }
            }
            b'O' => Self::Origin { commit: rest.lsn()?, name: rest.string()? },
            b'R' => Self::Relation(RelationMessage::read(&mut rest)?),
            b'Y' => Self::Type { oid: rest.u32()?, schema: rest.string()?, name: rest.string()? },
            b'I' => Self::Insert { relation: rest.u32()?, new: rest.new_tuple()? },
            b'U' => {
                let relation = rest.u32()?;
                let old = if rest.0.first() == Some(&b'N') { None } else { Some(rest.old()?) };
                Self::Update { relation, old, new: rest.new_tuple()? }
            }
            b'D' => Self::Delete { relation: rest.u32()?, old: rest.old()? },
            b'T' => {
                let count = rest.u32()?;
                let flags = rest.byte()?;
                let oids = rest.bytes((count as usize).checked_mul(4).ok_or(Error::Short)?)?;
                Self::Truncate {
                    relations: Oids(oids),
                    cascade: flags & 1 != 0,
                    restart_identity: flags & 2 != 0,
                }
            }
            b'M' => {
                let transactional = rest.byte()? & 1 != 0;
                let (lsn, prefix, length) = (rest.lsn()?, rest.string()?, rest.u32()?);
                Self::Message { transactional, lsn, prefix, content: rest.bytes(length as usize)? }
            }
            other => return Err(Error::Unexpected(other)),
        };
        if rest.0.is_empty() { Ok(message) } else { Err(Error::Long(rest.0.len())) }
    }
}

/// What identifies a row for UPDATE and DELETE: `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    Nothing,
    /// All columns.
    Full,
    Index,
}

/// A relation as it is at this point of the stream; comes before the first change of it and again when it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationMessage<'a> {
    pub oid: u32,
    pub schema: &'a [u8],
    pub name: &'a [u8],
    pub identity: ReplicaIdentity,
    count: u16,
    columns: &'a [u8],
}

impl<'a> RelationMessage<'a> {
    fn read(rest: &mut Rest<'a>) -> Result<Self, Error> {
        let (oid, schema, name) = (rest.u32()?, rest.string()?, rest.string()?);
        let identity = match rest.byte()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            byte => return Err(Error::Invalid { what: "replica identity", byte }),
        };
        let count = rest.u16()?;
        let columns = rest.walked(|rest| (0..count).try_for_each(|_| rest.described_column().map(drop)))?;
        // pg_catalog is written as an empty name.
        let schema = if schema.is_empty() { b"pg_catalog" } else { schema };
        Ok(Self { oid, schema, name, identity, count, columns })
    }

    /// The columns in the order in which tuples have them.
    pub fn columns(&self) -> impl Iterator<Item = DescribedColumn<'a>> {
        let mut rest = Rest(self.columns);
        (0..self.count).map_while(move |_| rest.described_column().ok())
    }
}

/// `type_modifier` is `pg_attribute.atttypmod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescribedColumn<'a> {
    /// It is of the replica identity; with REPLICA IDENTITY FULL every column is.
    pub key: bool,
    pub name: &'a [u8],
    pub type_oid: u32,
    pub type_modifier: i32,
}

/// What comes of the row before the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old<'a> {
    /// The columns of the replica identity; the others stand as null.
    Key(Tuple<'a>),
    /// All columns, by REPLICA IDENTITY FULL.
    Row(Tuple<'a>),
}

impl<'a> Old<'a> {
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Row(tuple) => *tuple,
        }
    }
}

/// A row's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// How many columns it has.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn columns(&self) -> impl Iterator<Item = Column<'a>> {
        let mut rest = Rest(self.bytes);
        (0..self.count).map_while(move |_| rest.column().ok())
    }

    /// Where its columns are, so that they can be had in another order.
    pub(super) fn places(&self, places: &mut Vec<Place>) {
        places.clear();
        let mut rest = Rest(self.bytes);
        places.extend((0..self.count).map_while(|_| {
            let column = rest.column().ok()?;
            let end = self.bytes.len() - rest.0.len();
            Some(match column {
                Column::Null => Place::Null,
                Column::Unchanged => Place::Unchanged,
                Column::Text(text) => Place::Text { start: end - text.len(), end },
                Column::Binary(_) => Place::Binary,
            })
        }));
    }

    /// The text at a place of this tuple's.
    pub(super) fn text(&self, start: usize, end: usize) -> &'a [u8] {
        self.bytes.get(start..end).unwrap_or_default()
    }
}

/// [`Column`] without the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Null,
    Unchanged,
    Text { start: usize, end: usize },
    Binary,
}

/// A column of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column<'a> {
    Null,
    /// A TOASTed value that the UPDATE left as it was; the server does not send it.
    Unchanged,
    /// What the type's output function writes.
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

/// The relations of a TRUNCATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oids<'a>(&'a [u8]);

impl Oids<'_> {
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.as_chunks::<4>().0.iter().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

/// What is still to be read.
#[derive(Clone, Copy)]
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(Error::Short)?;
        self.0 = rest;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, Error> {
        self.array().map(i64::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, Error> {
        self.array().map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Error::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Up to a zero byte.
    fn string(&mut self) -> Result<&'a [u8], Error> {
        let length = self.0.iter().position(|byte| *byte == 0).ok_or(Error::Short)?;
        let string = self.bytes(length)?;
        self.byte()?;
        Ok(string)
    }

    /// The bytes that `walk` goes over.
    fn walked(&mut self, walk: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<&'a [u8], Error> {
        let from = self.0;
        walk(self)?;
        Ok(&from[..from.len() - self.0.len()])
    }

    fn described_column(&mut self) -> Result<DescribedColumn<'a>, Error> {
        let key = self.byte()? & 1 != 0;
        let (name, type_oid) = (self.string()?, self.u32()?);
        Ok(DescribedColumn { key, name, type_oid, type_modifier: self.u32()?.cast_signed() })
    }

    fn new_tuple(&mut self) -> Result<Tuple<'a>, Error> {
        match self.byte()? {
            b'N' => self.tuple(),
            byte => Err(Error::Invalid { what: "kind of new row", byte }),
        }
    }

    fn old(&mut self) -> Result<Old<'a>, Error> {
        match self.byte()? {
            b'K' => self.tuple().map(Old::Key),
            b'O' => self.tuple().map(Old::Row),
            byte => Err(Error::Invalid { what: "kind of old row", byte }),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, Error> {
        let count = self.u16()?;
        let bytes = self.walked(|rest| (0..count).try_for_each(|_| rest.column().map(drop)))?;
        Ok(Tuple { count, bytes })
    }

    #[inline]
    fn column(&mut self) -> Result<Column<'a>, Error> {
        match self.byte()? {
            b'n' => Ok(Column::Null),
            b'u' => Ok(Column::Unchanged),
            kind @ (b't' | b'b') => {
                let length = self.u32()?;
                let bytes = self.bytes(length as usize)?;
                Ok(if kind == b't' { Column::Text(bytes) } else { Column::Binary(bytes) })
            }
            byte => Err(Error::Invalid { what: "kind of column", byte }),
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod written;
