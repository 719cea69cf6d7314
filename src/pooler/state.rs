//! What a client's session consists of when no backend serves it, as bytes: its settings and its prepared statements.
//! Pure; written and read by the session agents and the front's main thread, kept in dynamic shared memory.
//!
//! Numbers are little-endian; a text is its length in four bytes and its bytes. Both kinds of bytes are only ever read by the
//! same library that wrote them.

/// One setting of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    /// The server's GucSource and GucContext of the value, and the role that set it.
    pub source: u32,
    pub context: u32,
    pub role: u32,
}

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

/// What a client that has just logged in brings: the rest is made of it when a backend first takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Startup {
    /// The value of `options`.
    pub options: Option<Vec<u8>>,
    /// Names and values in the order given.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A client's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settings<'a> {
    /// Logged in, and no backend has taken it yet.
    Startup(Startup),
    Session {
        /// What RESET returns to, where it is not the server's own default: sorted by name.
        base: Vec<Setting<'a>>,
        /// What the session has set: sorted by name.
        session: Vec<Setting<'a>>,
        /// The values of the reported settings as the client was last told, in the server's order of settings.
        told: Vec<&'a [u8]>,
    },
}

const STARTUP: u8 = 1;
const SESSION: u8 = 2;

/// As bytes.
pub fn encode_settings(settings: &Settings<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    match settings {
        Settings::Startup(startup) => {
            out.push(STARTUP);
            out.push(u8::from(startup.options.is_some()));
            put_text(&mut out, startup.options.as_deref().unwrap_or_default());
            put_number(&mut out, startup.settings.len() as u32);
            for (name, value) in &startup.settings {
                put_text(&mut out, name);
                put_text(&mut out, value);
            }
        }
        Settings::Session { base, session, told } => {
            out.push(SESSION);
            for list in [base, session] {
                put_number(&mut out, list.len() as u32);
                for setting in list {
                    put_text(&mut out, setting.name);
                    put_text(&mut out, setting.value);
                    put_number(&mut out, setting.source);
                    put_number(&mut out, setting.context);
                    put_number(&mut out, setting.role);
                }
            }
            put_number(&mut out, told.len() as u32);
            for value in told {
                put_text(&mut out, value);
            }
        }
    }
    out
}

/// From bytes; `None` when they are not what [`encode_settings`] makes.
pub fn decode_settings(bytes: &[u8]) -> Option<Settings<'_>> {
    let (kind, mut rest) = bytes.split_first()?;
    let rest = &mut rest;
    let settings = match *kind {
        STARTUP => {
            let has_options = byte(rest)? == 1;
            let options = text(rest)?;
            let mut settings = Vec::new();
            for _ in 0..number(rest)? {
                settings.push((text(rest)?.to_vec(), text(rest)?.to_vec()));
            }
            Settings::Startup(Startup { options: has_options.then(|| options.to_vec()), settings })
        }
        SESSION => {
            let base = list(rest)?;
            let session = list(rest)?;
            let mut told = Vec::new();
            for _ in 0..number(rest)? {
                told.push(text(rest)?);
            }
            Settings::Session { base, session, told }
        }
        _ => return None,
    };
    rest.is_empty().then_some(settings)
}

fn list<'a>(rest: &mut &'a [u8]) -> Option<Vec<Setting<'a>>> {
    let mut list = Vec::new();
    for _ in 0..number(rest)? {
        list.push(Setting {
            name: text(rest)?,
            value: text(rest)?,
            source: number(rest)?,
            context: number(rest)?,
            role: number(rest)?,
        });
    }
    Some(list)
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

/// Tells contents apart; 0 is for none. Collisions are as likely as those of any good 64-bit hash, so whoever acts on equality
/// compares the bytes too where a mistake would mix two clients.
pub fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a over words of eight bytes, with a final mix.
    let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = chunk.first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word));
        hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
    for byte in chunks.remainder() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash ^ (hash >> 29)).max(1)
}

fn put_number(out: &mut Vec<u8>, number: u32) {
    out.extend(number.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_number(out, text.len() as u32);
    out.extend(text);
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*word))
}

fn skip(rest: &mut &[u8], length: usize) -> Option<()> {
    *rest = rest.get(length..)?;
    Some(())
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(rest)? as usize;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn setting<'a>(name: &'a [u8], value: &'a [u8]) -> Setting<'a> {
        Setting { name, value, source: 13, context: 6, role: 10 }
    }

    #[test]
    fn a_session_is_read_back_as_it_was_written() {
        let settings = Settings::Session {
            base: vec![setting(b"work_mem", b"1MB")],
            session: vec![setting(b"DateStyle", b"ISO, MDY"), setting(b"app.x", b"")],
            told: vec![b"UTF8", b""],
        };
        assert_eq!(decode_settings(&encode_settings(&settings)), Some(settings));
        let startup = Settings::Startup(Startup {
            options: Some(b"-c a=b".to_vec()),
            settings: vec![(b"application_name".to_vec(), b"x".to_vec())],
        });
        assert_eq!(decode_settings(&encode_settings(&startup)), Some(startup));
        let statements = vec![
            Statement {
                name: b"s1",
                text: b"select $1",
                types: vec![23, 25],
                from_sql: true,
                location: 17,
                literals: 8,
                prepared_at: -5,
                eager: true,
                columns: Some(vec![ColumnType {
                    name: b"c",
                    type_oid: 23,
                    type_modifier: -1,
                    collation: 0,
                    length: 4,
                    by_value: true,
                    alignment: b'i',
                    storage: b'p',
                }]),
            },
            Statement {
                name: b"",
                text: b"",
                types: vec![],
                from_sql: false,
                location: -1,
                literals: 0,
                prepared_at: 0,
                eager: false,
                columns: None,
            },
        ];
        let list = encode_statements(&statements);
        assert_eq!(decode_statements(&list).as_ref(), Some(&statements));
        assert_eq!(eager_count(&list), 1);
        let one = places(&list).unwrap()[1].of(&list).unwrap();
        assert_eq!((name_of(one), statement_of(one).as_ref()), (&b""[..], statements.get(1)));
        let mut again = StatementList::default();
        again.push(&statements[0]);
        again.push_bytes(one);
        assert_eq!(again.finish(), list);
        assert_eq!((encode_statements(&[]), decode_statements(&[])), (vec![], Some(vec![])));
    }

    #[test]
    fn contents_are_told_apart() {
        assert_ne!(hash(b""), 0);
        assert_ne!(hash(b"a"), hash(b"b"));
        assert_ne!(hash(b"12345678a"), hash(b"12345678b"));
        assert_ne!(hash(b"a2345678"), hash(b"b2345678"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_settings(&bytes);
            let _ = decode_statements(&bytes);
        }
    }
}
