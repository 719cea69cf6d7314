//! From a query's text to the statements that the listen-only port knows: LISTEN and its kin, and what drivers send unasked. Read as
//! the server's scanner reads (src/backend/parser/scan.l): folded and quoted names, comments, several statements between semicolons;
//! all are read before any is run. Pure; network threads.

use super::Error;
use crate::pooler::scan::{Kind, Token, Unterminated, Words, statements, tokens};

/// Bytes of a name that count (NAMEDATALEN - 1).
const NAME_MAX: usize = 63;

/// A name, cut as the server cuts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub bytes: Vec<u8>,
    /// As it was written, when it was longer than it may be.
    pub whole: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    Listen(Name),
    Unlisten(Name),
    UnlistenAll,
    /// BEGIN or START TRANSACTION.
    Begin(&'static str),
    Commit,
    Rollback,
    /// A setting and its value; `None` is its default.
    Set(String, Option<String>),
    /// A SET that changes nothing here, with its tag.
    SetNothing,
    Reset(String),
    ResetAll,
    Show(String),
    Select(Item, Option<String>),
    DiscardAll,
    /// One prepared statement, or all.
    Deallocate(Option<Vec<u8>>),
    /// Nothing, with this tag.
    Nothing(&'static str),
}

/// What a SELECT asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Number(i32),
    Text(String),
    Version,
    ListeningChannels,
    BackendPid,
    Database,
    Schema,
    /// The role, under one of the names for it.
    Role(&'static str),
    InRecovery,
    /// pg_advisory_unlock_all(): there are none.
    Unlock,
    Setting(String),
}

impl Statement {
    /// Runs also in a transaction that has failed.
    pub fn ends_transaction(&self) -> bool {
        matches!(self, Self::Commit | Self::Rollback)
    }
}

/// The statements of `query` in order; none for an empty query. `utf8` says that a character may have several bytes.
///
/// # Errors
/// For the first that is none or is not known here.
pub(super) fn parse(query: &[u8], utf8: bool) -> Result<Vec<Statement>, Error> {
    let tokens = tokens(query, WORDS).map(folded).collect::<Result<Vec<_>, _>>()?;
    statements(&tokens).map(|tokens| Reader { query, tokens, utf8 }.statement()).collect()
}

const WORDS: Words = Words { begin: begins_word, go_on: continues_word };

fn begins_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || !byte.is_ascii()
}

fn continues_word(byte: u8) -> bool {
    begins_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// Words in small letters: beyond ASCII the server folds in encodings of one byte only, by the database's locale, which nobody knows
/// here.
fn folded(token: Result<Token, Unterminated>) -> Result<Token, Error> {
    let mut token = token?;
    match token.kind {
        Kind::Word => token.bytes.make_ascii_lowercase(),
        Kind::Name if token.bytes.is_empty() => return Err(Error::EmptyName),
        _ => {}
    }
    Ok(token)
}

/// One statement's tokens, at least one.
struct Reader<'a> {
    query: &'a [u8],
    tokens: &'a [Token],
    utf8: bool,
}

impl Reader<'_> {
    fn statement(&self) -> Result<Statement, Error> {
        let all = self.tokens;
        let Some(first) = all.first().filter(|first| first.kind == Kind::Word) else {
            return Err(Error::NotHere);
        };
        let rest = &all[1..];
        let word = |at: usize, word: &str| all.get(at).is_some_and(|token| token.is_word(word));
        match &first.bytes[..] {
            b"listen" => self.only_name(1).map(Statement::Listen),
            b"unlisten" if rest.len() == 1 && rest[0].is_symbol(b'*') => Ok(Statement::UnlistenAll),
            b"unlisten" => self.only_name(1).map(Statement::Unlisten),
            b"begin" => Ok(Statement::Begin("BEGIN")),
            b"start" if word(1, "transaction") => Ok(Statement::Begin("START TRANSACTION")),
            b"commit" | b"end" if plain_end(rest) => Ok(Statement::Commit),
            b"rollback" | b"abort" if plain_end(rest) => Ok(Statement::Rollback),
            b"set" => self.set(rest),
            b"reset" => match setting_name(rest) {
                Some((name, [])) if name == "all" => Ok(Statement::ResetAll),
                Some((name, [])) => Ok(Statement::Reset(name)),
                _ => Err(Error::NotHere),
            },
            b"show" => match setting_name(rest) {
                Some((name, [])) => Ok(Statement::Show(name)),
                _ => Err(Error::NotHere),
            },
            b"select" => self.select(rest),
            b"discard" if rest.len() == 1 && word(1, "all") => Ok(Statement::DiscardAll),
            b"close" if rest.len() == 1 && word(1, "all") => Ok(Statement::Nothing("CLOSE CURSOR ALL")),
            b"deallocate" => {
                let rest = if word(1, "prepare") { &rest[1..] } else { rest };
                match rest {
                    [all] if all.is_word("all") => Ok(Statement::Deallocate(None)),
                    [name] if name.is_name() => Ok(Statement::Deallocate(Some(self.cut(&name.bytes).bytes))),
                    _ => Err(Error::NotHere),
                }
            }
            _ => Err(Error::NotHere),
        }
    }

    /// The one name from a token on.
    fn only_name(&self, at: usize) -> Result<Name, Error> {
        let wrong = match (self.tokens.get(at), self.tokens.get(at + 1)) {
            (Some(name), None) if name.is_name() => {
                return Ok(self.cut(&name.bytes));
            }
            (Some(name), Some(more)) if name.is_name() => Some(more),
            (wrong, _) => wrong,
        };
        Err(Error::Syntax(
            wrong.map(|token| String::from_utf8_lossy(&self.query[token.start..token.end]).into_owned()),
        ))
    }

    /// At the end of a character.
    fn cut(&self, name: &[u8]) -> Name {
        let inside = |at: usize| self.utf8 && name.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
        if name.len() <= NAME_MAX {
            return Name { bytes: name.to_vec(), whole: None };
        }
        let end = (0..=NAME_MAX).rev().find(|at| !inside(*at)).unwrap_or(0);
        Name { bytes: name[..end].to_vec(), whole: Some(name.to_vec()) }
    }

    fn set(&self, rest: &[Token]) -> Result<Statement, Error> {
        let word = |at: usize, word: &str| rest.get(at).is_some_and(|token| token.is_word(word));
        // What holds for a transaction has no meaning beyond one that only listens.
        if word(0, "transaction") || word(0, "local") || (word(0, "session") && word(1, "characteristics")) {
            return Ok(Statement::SetNothing);
        }
        let rest = if word(0, "session") && !word(1, "authorization") { &rest[1..] } else { rest };
        if rest.first().is_some_and(|token| token.is_word("names")) {
            let value = rest.get(1).map(|value| value.text().into_owned());
            return Ok(Statement::Set("client_encoding".to_owned(), value));
        }
        let Some((name, rest)) = setting_name(rest) else { return Err(Error::NotHere) };
        if ["role", "session_authorization"].contains(&&name[..]) {
            return Err(Error::NotHere);
        }
        let values = match rest {
            [first, rest @ ..] if first.is_symbol(b'=') || first.is_word("to") => rest,
            rest if name == "timezone" => rest,
            _ => return Err(Error::NotHere),
        };
        if values.is_empty() {
            return Err(Error::Syntax(None));
        }
        if let [only] = values
            && (only.is_word("default") || only.is_word("local"))
        {
            return Ok(Statement::Set(name, None));
        }
        let mut value = String::new();
        for token in values {
            match token.kind {
                Kind::Symbol if token.bytes == b"," => value.push_str(", "),
                Kind::Symbol if matches!(&token.bytes[..], b"-" | b"+" | b".") => {
                    value.push_str(&token.text())
                }
                Kind::Symbol => return Err(Error::NotHere),
                _ => value.push_str(&token.text()),
            }
        }
        Ok(Statement::Set(name, Some(value)))
    }

    fn select(&self, rest: &[Token]) -> Result<Statement, Error> {
        if let [all, from, rest @ ..] = rest
            && all.is_symbol(b'*')
            && from.is_word("from")
        {
            return match item(rest) {
                Some((Item::ListeningChannels, [])) => Ok(Statement::Select(Item::ListeningChannels, None)),
                _ => Err(Error::NotHere),
            };
        }
        let Some((item, rest)) = item(rest) else { return Err(Error::NotHere) };
        let alias = match rest {
            [] => None,
            [name] if name.is_name() => Some(name.text().into_owned()),
            [of, name] if of.is_word("as") && name.is_name() => Some(name.text().into_owned()),
            _ => return Err(Error::NotHere),
        };
        if alias.as_deref().is_some_and(|alias| RESERVED.contains(&alias)) {
            return Err(Error::NotHere);
        }
        Ok(Statement::Select(item, alias))
    }
}

/// Words after an expression that are no name for it.
const RESERVED: &[&str] = &[
    "from",
    "where",
    "group",
    "having",
    "order",
    "limit",
    "offset",
    "fetch",
    "for",
    "union",
    "intersect",
    "except",
    "into",
    "window",
    "and",
    "or",
    "is",
    "in",
    "like",
    "between",
    "collate",
    "as",
];

/// WORK or TRANSACTION, AND NO CHAIN.
fn plain_end(rest: &[Token]) -> bool {
    let rest = match rest {
        [first, rest @ ..] if first.is_word("work") || first.is_word("transaction") => rest,
        rest => rest,
    };
    match rest {
        [] => true,
        [and, no, chain] => and.is_word("and") && no.is_word("no") && chain.is_word("chain"),
        _ => false,
    }
}

/// A setting's name, in small letters, and what follows it.
fn setting_name(tokens: &[Token]) -> Option<(String, &[Token])> {
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(word));
    if word(0, "time") && word(1, "zone") {
        return Some(("timezone".to_owned(), &tokens[2..]));
    }
    if word(0, "transaction") && word(1, "isolation") && word(2, "level") {
        return Some(("transaction_isolation".to_owned(), &tokens[3..]));
    }
    if word(0, "session") && word(1, "authorization") {
        return Some(("session_authorization".to_owned(), &tokens[2..]));
    }
    let (first, mut rest) = tokens.split_first()?;
    if !first.is_name() {
        return None;
    }
    let mut name = first.text().to_ascii_lowercase();
    while let [point, next, more @ ..] = rest
        && point.is_symbol(b'.')
        && next.is_name()
    {
        name = format!("{name}.{}", next.text().to_ascii_lowercase());
        rest = more;
    }
    Some((name, rest))
}

/// What is asked for, and what follows it.
fn item(tokens: &[Token]) -> Option<(Item, &[Token])> {
    let (first, rest) = tokens.split_first()?;
    match first.kind {
        Kind::Number => return Some((Item::Number(first.text().parse().ok()?), rest)),
        Kind::Text => return Some((Item::Text(first.text().into_owned()), rest)),
        Kind::Word => {}
        _ => return None,
    }
    for name in ["current_user", "session_user", "user", "current_role"] {
        if first.is_word(name) {
            return Some((Item::Role(name), rest));
        }
    }
    if first.is_word("current_catalog") {
        return Some((Item::Database, rest));
    }
    let (function, rest) = match rest {
        [point, function, rest @ ..] if first.is_word("pg_catalog") && point.is_symbol(b'.') => {
            (function, rest)
        }
        rest => (first, rest),
    };
    if function.is_word("current_schema") && !rest.first().is_some_and(|token| token.is_symbol(b'(')) {
        return Some((Item::Schema, rest));
    }
    if function.is_word("current_setting") {
        return match rest {
            [open, name, close, rest @ ..]
                if open.is_symbol(b'(') && name.kind == Kind::Text && close.is_symbol(b')') =>
            {
                Some((Item::Setting(name.text().to_ascii_lowercase()), rest))
            }
            _ => None,
        };
    }
    let item = match &function.bytes[..] {
        b"version" => Item::Version,
        b"pg_listening_channels" => Item::ListeningChannels,
        b"pg_backend_pid" => Item::BackendPid,
        b"current_database" => Item::Database,
        b"current_schema" => Item::Schema,
        b"pg_is_in_recovery" => Item::InRecovery,
        b"pg_advisory_unlock_all" => Item::Unlock,
        _ => return None,
    };
    match rest {
        [open, close, rest @ ..] if open.is_symbol(b'(') && close.is_symbol(b')') => Some((item, rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
