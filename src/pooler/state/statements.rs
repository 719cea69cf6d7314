//! A session's prepared statements as bytes: one list, whose entries can be found and copied without reading them. Pure; what the bytes are is said in `state`.

use super::{byte, number, put_number, put_text, skip, text};

/// One prepared statement of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement<'a> {
    pub name: &'a [u8],
    pub text: &'a [u8],
    /// OIDs of the parameters' types.
    pub types: Vec<u32>,
    /// Made by PREPARE and not by the protocol.
    pub from_sql: bool,
    /// Where in the text the statement begins (RawStmt.stmt_location): PREPARE keeps the text of all that was sent with it.
    pub location: i32,
    /// What its literals were read by, as a hash.
    pub literals: u64,
    /// Microseconds since 2000.
    pub prepared_at: i64,
    /// It depends on more than a name's lookup can give it, so a backend has it before its client speaks.
    pub eager: bool,
    /// The columns of its result; `None` when it has no result.
    pub columns: Option<Vec<ColumnType<'a>>>,
}

/// One column of a statement's result, as far as "cached plan must not change result type" looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnType<'a> {
    pub name: &'a [u8],
    pub type_oid: u32,
    pub type_modifier: i32,
    pub collation: u32,
    /// What pg_type says of the type (typlen, typbyval, typalign, typstorage), so that no catalog is needed to say it again.
    pub length: i16,
    pub by_value: bool,
    pub alignment: u8,
    pub storage: u8,
}

/// Statements as bytes, one after the other; no statements are no bytes.
#[derive(Default)]
pub struct StatementList {
    out: Vec<u8>,
    count: u32,
    eager: u32,
}

const LIST_HEADER: usize = 8;

impl StatementList {
    fn next(&mut self, eager: bool) -> &mut Vec<u8> {
        if self.out.is_empty() {
            self.out.resize(LIST_HEADER, 0);
        }
        self.count += 1;
        self.eager += u32::from(eager);
        &mut self.out
    }

    pub fn push(&mut self, statement: &Statement<'_>) {
        let out = self.next(statement.eager);
        put_text(out, statement.name);
        put_text(out, statement.text);
        put_number(out, statement.types.len() as u32);
        for oid in &statement.types {
            put_number(out, *oid);
        }
        let flags = [statement.from_sql, statement.columns.is_some(), statement.eager];
        out.push(flags.iter().rev().fold(0, |byte, flag| byte << 1 | u8::from(*flag)));
        put_number(out, statement.location as u32);
        out.extend(statement.literals.to_le_bytes());
        out.extend(statement.prepared_at.to_le_bytes());
        let columns = statement.columns.as_deref().unwrap_or_default();
        put_number(out, columns.len() as u32);
        for column in columns {
            put_text(out, column.name);
            put_number(out, column.type_oid);
            put_number(out, column.type_modifier as u32);
            put_number(out, column.collation);
            out.extend(column.length.to_le_bytes());
            out.extend([u8::from(column.by_value), column.alignment, column.storage]);
        }
    }

    /// One that is not eager, out of another list.
    pub fn push_bytes(&mut self, statement: &[u8]) {
        self.next(false).extend(statement);
    }

    pub fn finish(mut self) -> Vec<u8> {
        if let Some(header) = self.out.first_chunk_mut::<LIST_HEADER>() {
            header[..4].copy_from_slice(&self.count.to_le_bytes());
            header[4..].copy_from_slice(&self.eager.to_le_bytes());
        }
        self.out
    }
}

/// As bytes.
pub fn encode_statements(statements: &[Statement<'_>]) -> Vec<u8> {
    let mut list = StatementList::default();
    statements.iter().for_each(|statement| list.push(statement));
    list.finish()
}

/// From bytes; `None` when they are not what [`encode_statements`] makes.
pub fn decode_statements(bytes: &[u8]) -> Option<Vec<Statement<'_>>> {
    let mut statements = Vec::new();
    for place in places(bytes)? {
        statements.push(statement_of(place.of(bytes)?)?);
    }
    (statements.iter().filter(|s| s.eager).count() == eager_count(bytes)).then_some(statements)
}

/// How many statements of the list are eager.
pub fn eager_count(bytes: &[u8]) -> usize {
    bytes
        .get(4..LIST_HEADER)
        .map_or(0, |word| word.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

/// Where a statement lies in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    start: u32,
    end: u32,
}

impl Place {
    /// Its bytes.
    pub fn of(self, list: &[u8]) -> Option<&[u8]> {
        list.get(self.start as usize..self.end as usize)
    }
}

/// The places of a list's statements in their order; `None` when it is no list.
pub fn places(list: &[u8]) -> Option<Vec<Place>> {
    if list.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = list;
    let rest = &mut rest;
    let count = number(rest)?;
    number(rest)?;
    // Each has at least so many bytes: a wrong count allocates no more than there is.
    let mut places = Vec::with_capacity((count as usize).min(rest.len() / 37));
    for _ in 0..count {
        let start = (list.len() - rest.len()) as u32;
        text(rest)?;
        text(rest)?;
        let types = number(rest)? as usize;
        skip(rest, types * 4)?;
        skip(rest, 1 + 4 + 8 + 8)?;
        for _ in 0..number(rest)? {
            text(rest)?;
            skip(rest, COLUMN)?;
        }
        places.push(Place { start, end: (list.len() - rest.len()) as u32 });
    }
    (rest.is_empty() && count > 0).then_some(places)
}

/// A column without its name.
const COLUMN: usize = 4 + 4 + 4 + 2 + 3;

/// The name in a statement's bytes.
pub fn name_of(mut statement: &[u8]) -> &[u8] {
    text(&mut statement).unwrap_or_default()
}

/// A statement from its bytes.
pub fn statement_of(bytes: &[u8]) -> Option<Statement<'_>> {
    let mut rest = bytes;
    let rest = &mut rest;
    let name = text(rest)?;
    let text_of = text(rest)?;
    let mut types = Vec::new();
    for _ in 0..number(rest)? {
        types.push(number(rest)?);
    }
    let flags = byte(rest)?;
    let location = number(rest)? as i32;
    let (literals, after) = rest.split_first_chunk::<8>()?;
    let (at, after) = after.split_first_chunk::<8>()?;
    *rest = after;
    let mut columns = Vec::new();
    for _ in 0..number(rest)? {
        columns.push(ColumnType {
            name: text(rest)?,
            type_oid: number(rest)?,
            type_modifier: number(rest)? as i32,
            collation: number(rest)?,
            length: i16::from_le_bytes([byte(rest)?, byte(rest)?]),
            by_value: byte(rest)? != 0,
            alignment: byte(rest)?,
            storage: byte(rest)?,
        });
    }
    Some(Statement {
        name,
        text: text_of,
        types,
        from_sql: flags & 1 != 0,
        location,
        literals: u64::from_le_bytes(*literals),
        prepared_at: i64::from_le_bytes(*at),
        eager: flags & 4 != 0,
        columns: (flags & 2 != 0).then_some(columns),
    })
}
