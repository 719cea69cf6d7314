//! A client that says and hears messages as they are.

use anyhow::{Result, ensure};
use pgrx_tests::script::Target;
use pgrx_tests::script::connection::{Connection, Received};
use pgrx_tests::script::frontend::Message;
use std::time::Duration;

/// A raw client, logged in.
pub struct Raw(Connection);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Raw {
    pub fn open(port: u16) -> Result<Self> {
        Self::at(&Target::tcp(port))
    }

    /// Says goodbye, and waits until the connection is closed.
    pub fn goodbye(mut self) -> Result<()> {
        self.0.send(&Message::terminate().bytes, None);
        while !matches!(self.0.receive(PATIENCE)?, Received::Closed { .. }) {}
        Ok(())
    }

    /// Also over TLS or a Unix socket.
    pub fn at(target: &Target) -> Result<Self> {
        let mut connection = Connection::open(target)?;
        let parameters = [("user", "postgres"), ("database", "postgres")];
        let parameters =
            parameters.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        connection.send(&Message::startup((3, 0), &parameters).bytes, None);
        let mut raw = Self(connection);
        raw.answer()?;
        Ok(raw)
    }

    /// All messages up to ReadyForQuery.
    fn answer(&mut self) -> Result<Vec<(u8, Vec<u8>)>> {
        let mut messages = Vec::new();
        loop {
            match self.0.receive(PATIENCE)? {
                Received::Message { tag, body } => {
                    messages.push((tag, body));
                    if tag == b'Z' {
                        return Ok(messages);
                    }
                }
                other => anyhow::bail!("{other:?} after {}", words(&messages)),
            }
        }
    }

    /// An error of the server's is one here.
    pub fn query(&mut self, sql: &str) -> Result<Vec<(u8, Vec<u8>)>> {
        self.ask(sql);
        let answer = self.answer()?;
        ensure!(answer.iter().all(|(tag, _)| *tag != b'E'), "{sql}: {}", words(&answer));
        Ok(answer)
    }

    /// Sends a query and reads nothing.
    pub fn ask(&mut self, sql: &str) {
        self.0.send(&Message::query(sql.as_bytes()).bytes, None);
    }

    /// Sends bytes that need not be whole messages.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.send(bytes, None);
    }

    /// Sends bytes, and returns the messages up to the next ReadyForQuery.
    pub fn send_and_hear(&mut self, bytes: &[u8]) -> Result<Vec<(u8, Vec<u8>)>> {
        self.send(bytes);
        self.answer()
    }

    /// What the server said last before it closed: the text of every message. The `postgres` crate loses it when the end comes
    /// with it.
    pub fn last_words(&mut self) -> Result<String> {
        let mut messages = Vec::new();
        loop {
            match self.0.receive(PATIENCE)? {
                Received::Message { tag, body } => messages.push((tag, body)),
                Received::Closed { unfinished } if unfinished.is_empty() => return Ok(words(&messages)),
                other => anyhow::bail!("{other:?} after {}", words(&messages)),
            }
        }
    }

    /// Whatever comes without being asked for.
    pub fn unasked(&mut self, patience: Duration) -> Result<Vec<(u8, Vec<u8>)>> {
        let mut messages = Vec::new();
        while let Received::Message { tag, body } = self.0.receive(patience)? {
            messages.push((tag, body));
        }
        Ok(messages)
    }
}

/// Messages as text, a line each.
fn words(messages: &[(u8, Vec<u8>)]) -> String {
    let line = |(tag, body): &(u8, Vec<u8>)| {
        format!("{} {}\n", *tag as char, String::from_utf8_lossy(body).replace('\0', " "))
    };
    messages.iter().map(line).collect()
}
