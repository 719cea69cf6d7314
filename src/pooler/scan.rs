//! From a query's text to tokens, as the server's scanner reads it (src/backend/parser/scan.l): comments within comments, quoted
//! names and strings, words. For the console and the listen-only port, which answer queries themselves. Pure; network threads.

use std::borrow::Cow;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An unquoted name or a key word, as it was written.
    Word,
    /// In double quotes.
    Name,
    /// In single quotes.
    Text,
    /// It begins with a digit where no word does.
    Number,
    /// One byte that belongs to nothing else.
    Symbol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: Kind,
    /// Without its quotes.
    pub bytes: Vec<u8>,
    /// Where it is in the query.
    pub start: usize,
    pub end: usize,
}

impl Token {
    pub fn is_symbol(&self, symbol: u8) -> bool {
        self.kind == Kind::Symbol && self.bytes == [symbol]
    }

    /// Whether it is that key word, in any case.
    pub fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.bytes.eq_ignore_ascii_case(word.as_bytes())
    }

    pub fn is_name(&self) -> bool {
        matches!(self.kind, Kind::Word | Kind::Name)
    }

    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// Which bytes a word begins with, and which it has after the first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    pub begin: fn(u8) -> bool,
    pub go_on: fn(u8) -> bool,
}

/// What has a beginning and no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unterminated {0}")]
pub struct Unterminated(pub &'static str);

/// The tokens of a query in order; after an error there are none.
pub(super) fn tokens(query: &[u8], words: Words) -> impl Iterator<Item = Result<Token, Unterminated>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let token = next(query, at, words).transpose()?;
        at = token.as_ref().map_or(query.len(), |token| token.end);
        Some(token)
    })
}

/// The statements between semicolons, without the empty ones.
pub(super) fn statements(tokens: &[Token]) -> impl Iterator<Item = &[Token]> {
    tokens.split(|token| token.is_symbol(b';')).filter(|tokens| !tokens.is_empty())
}

fn next(query: &[u8], from: usize, words: Words) -> Result<Option<Token>, Unterminated> {
    let mut start = from;
    while let Some(first) = query.get(start).copied() {
        let rest = &query[start..];
        let word = || rest.iter().take_while(|byte| (words.go_on)(**byte)).count();
        let plain = |length: usize| (length, rest[..length].to_vec());
        let (kind, (length, bytes)) = match first {
            b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c' => {
                start += 1;
                continue;
            }
            b'-' if rest.starts_with(b"--") => {
                start += rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
                continue;
            }
            b'/' if rest.starts_with(b"/*") => {
                start += comment(rest).ok_or(Unterminated("/* comment"))?;
                continue;
            }
            b'\'' => (Kind::Text, quoted(rest, b'\'').ok_or(Unterminated("quoted string"))?),
            b'"' => (Kind::Name, quoted(rest, b'"').ok_or(Unterminated("quoted identifier"))?),
            _ if (words.begin)(first) => (Kind::Word, plain(word().max(1))),
            _ if first.is_ascii_digit() => (Kind::Number, plain(word().max(1))),
            symbol => (Kind::Symbol, (1, vec![symbol])),
        };
        return Ok(Some(Token { kind, bytes, start, end: start + length }));
    }
    Ok(None)
}

/// The length of a comment, within which comments may stand.
fn comment(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0usize, 0);
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    None
}

/// The length of what stands in quotes, with them, and what it says: a doubled quote is one.
fn quoted(text: &[u8], quote: u8) -> Option<(usize, Vec<u8>)> {
    let (mut said, mut at) = (Vec::new(), 1);
    loop {
        let byte = *text.get(at)?;
        at += 1;
        if byte == quote {
            if text.get(at) != Some(&quote) {
                return Some((at, said));
            }
            at += 1;
        }
        said.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WORDS: Words =
        Words { begin: |byte| byte.is_ascii_alphabetic(), go_on: |byte| byte.is_ascii_alphanumeric() };

    fn scan(query: &str) -> Result<Vec<(Kind, String)>, Unterminated> {
        let tokens = tokens(query.as_bytes(), WORDS).collect::<Result<Vec<_>, _>>()?;
        Ok(tokens.iter().map(|token| (token.kind, token.text().into_owned())).collect())
    }

    #[test]
    fn tokens_are_told_apart_and_unquoted() {
        let found = scan("a1 \"A \"\"b\"\"\" 'it''s'\t1a,;").unwrap();
        let found: Vec<_> = found.iter().map(|(kind, text)| (*kind, &text[..])).collect();
        assert_eq!(
            found,
            [
                (Kind::Word, "a1"),
                (Kind::Name, "A \"b\""),
                (Kind::Text, "it's"),
                (Kind::Number, "1a"),
                (Kind::Symbol, ","),
                (Kind::Symbol, ";"),
            ]
        );
    }

    #[test]
    fn comments_end_where_the_server_ends_them() {
        for query in ["-- a\nb", "-- a\rb", "/* a /* b */ */b", "/**/b--", "b--\"", "b/*'*/"] {
            assert_eq!(scan(query), Ok(vec![(Kind::Word, "b".to_owned())]), "{query:?}");
        }
        assert_eq!(scan("/*/"), Err(Unterminated("/* comment")));
        assert_eq!(scan("b 'a''"), Err(Unterminated("quoted string")));
        assert_eq!(scan("\"a'"), Err(Unterminated("quoted identifier")));
    }

    #[test]
    fn statements_stand_between_semicolons() {
        let tokens: Vec<_> = tokens(b";a b;;c;", WORDS).map(Result::unwrap).collect();
        assert_eq!(statements(&tokens).map(<[_]>::len).collect::<Vec<_>>(), [2, 1]);
    }

    proptest! {
        #[test]
        fn tokens_of_any_bytes_follow_each_other(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut last = 0;
            for token in tokens(&bytes, WORDS).map_while(Result::ok) {
                prop_assert!(last <= token.start && token.start < token.end && token.end <= bytes.len());
                last = token.end;
            }
        }
    }
}
