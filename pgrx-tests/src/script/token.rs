//! The words, texts and brackets of a script's line. Runs in test programs.

use anyhow::{Context, Result, bail, ensure};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(Vec<u8>),
    Open,
    Close,
}

/// The parts of a line, in order.
pub(super) struct Tokens(std::iter::Peekable<std::vec::IntoIter<Token>>);

impl Tokens {
    pub(super) fn new(line: &str) -> Result<Self> {
        let mut tokens = Vec::new();
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let token;
            (token, rest) = match first {
                '[' => (Token::Open, &rest[1..]),
                ']' => (Token::Close, &rest[1..]),
                '"' => text(&rest[1..])?,
                _ => {
                    let end = rest.find([' ', '"', '[', ']']).unwrap_or(rest.len());
                    (Token::Word(rest[..end].to_owned()), &rest[end..])
                }
            };
            tokens.push(token);
            rest = rest.trim_start();
        }
        Ok(Self(tokens.into_iter().peekable()))
    }

    pub(super) fn at_end(&mut self) -> bool {
        self.0.peek().is_none()
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        match self.0.next() {
            None => Ok(()),
            Some(more) => bail!("what is {more:?} for?"),
        }
    }

    pub(super) fn word(&mut self) -> Result<String> {
        match self.0.next() {
            Some(Token::Word(word)) => Ok(word),
            other => bail!("a word is expected, not {other:?}"),
        }
    }

    pub(super) fn text(&mut self) -> Result<Vec<u8>> {
        match self.0.next() {
            Some(Token::Text(text)) => Ok(text),
            other => bail!("a text in quotes is expected, not {other:?}"),
        }
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let word = self.word()?;
        word.parse().ok().with_context(|| format!("{word} is no number that fits"))
    }

    /// `statement` or `portal` as the protocol's letter.
    pub(super) fn kind(&mut self) -> Result<u8> {
        match self.word()?.as_str() {
            "statement" => Ok(b'S'),
            "portal" => Ok(b'P'),
            other => bail!("statement or portal, not {other}"),
        }
    }

    pub(super) fn values(&mut self) -> Result<Vec<Option<Vec<u8>>>> {
        ensure!(self.0.next() == Some(Token::Open), "values stand in brackets");
        let mut values = Vec::new();
        loop {
            values.push(match self.0.next() {
                Some(Token::Close) => return Ok(values),
                Some(Token::Text(text)) => Some(text),
                Some(Token::Word(word)) if word == "null" => None,
                Some(Token::Word(word)) => Some(bytes_of_hex(&word)?),
                other => bail!("a value is a text, null or 0x..., not {other:?}"),
            });
        }
    }

    /// `in=0,1`: nothing where the next word is another.
    pub(super) fn formats(&mut self, label: &str) -> Result<Vec<u16>> {
        let Some(Token::Word(word)) = self.0.peek() else { return Ok(Vec::new()) };
        let Some(list) = word.strip_prefix(label) else { return Ok(Vec::new()) };
        let formats = list.split(',').map(|format| Ok(format.parse()?)).collect();
        self.0.next();
        formats
    }
}

/// From behind the opening quote: the text, and what follows it.
fn text(rest: &str) -> Result<(Token, &str)> {
    let mut bytes = Vec::new();
    let mut chars = rest.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return repeated(bytes, &rest[at + 1..]),
            '\\' => {
                let (at, escaped) = chars.next().context("a backslash at the end")?;
                bytes.push(match escaped {
                    'n' => b'\n',
                    't' => b'\t',
                    'r' => b'\r',
                    '0' => 0,
                    'x' => {
                        chars.nth(1);
                        let digits = rest.get(at + 1..at + 3).context("\\x takes two digits")?;
                        u8::from_str_radix(digits, 16)?
                    }
                    '\\' | '"' => escaped as u8,
                    other => bail!("what is \\{other}?"),
                });
            }
            _ => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bail!("a text has no end")
}

fn repeated(bytes: Vec<u8>, rest: &str) -> Result<(Token, &str)> {
    let Some(after) = rest.strip_prefix('*') else { return Ok((Token::Text(bytes), rest)) };
    let end = after.find(|char: char| !char.is_ascii_digit()).unwrap_or(after.len());
    Ok((Token::Text(bytes.repeat(after[..end].parse()?)), &after[end..]))
}

/// `0x0a0b`.
pub(super) fn bytes_of_hex(word: &str) -> Result<Vec<u8>> {
    let digits = word.strip_prefix("0x").with_context(|| format!("{word} is no 0x..."))?;
    ensure!(digits.len().is_multiple_of(2) && digits.is_ascii(), "{word} has half a byte");
    (0..digits.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&digits[at..at + 2], 16)?)).collect()
}
