//! What a client's session consists of when no backend serves it, as bytes: its settings and its prepared statements.
//! Pure; written and read by the session agents and the front's main thread, kept in dynamic shared memory.
//!
//! Numbers are little-endian; a text is its length in four bytes and its bytes. Both kinds of bytes are only ever read by the
//! same library that wrote them.

mod settings;
mod statements;

pub use self::settings::{Setting, Settings, Startup, decode_settings, encode_settings};
pub use self::statements::{
    ColumnType, Place, Statement, StatementList, decode_statements, eager_count, encode_statements, name_of,
    places, statement_of,
};

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
