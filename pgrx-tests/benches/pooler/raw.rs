//! A client that is as cheap as can be: the wire protocol by hand, so that what is measured is the server. Logs in
//! where the HBA says trust.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Protocol 3.0, user and database postgres.
const STARTUP: &[u8] = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";

pub struct Client {
    pub stream: TcpStream,
    /// What has come and is not looked at yet.
    input: Vec<u8>,
}

/// How far an answer is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// ReadyForQuery has come.
    pub ready: bool,
    pub errors: u32,
}

impl Client {
    pub fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut client = Self { stream, input: Vec::new() };
        client.stream.write_all(STARTUP)?;
        client.answer()?;
        // Thousands of these are kept: an empty buffer costs nothing.
        client.input = Vec::new();
        Ok(client)
    }

    /// Runs statements by the simple protocol and gives the first value of each row, as text.
    pub fn query(&mut self, sql: &str) -> Result<Vec<String>> {
        let mut message = Vec::new();
        push(&mut message, b'Q', &[sql.as_bytes(), b"\0"]);
        self.stream.write_all(&message)?;
        let values = self.answer()?;
        self.input = Vec::new();
        Ok(values)
    }

    /// Prepares a statement by the extended protocol, with one int4 parameter. Not several in a pipeline: that puts
    /// PgBouncer 1.24 out of step when it makes room for them by closing others.
    pub fn prepare(&mut self, name: &str, sql: &str) -> Result<()> {
        let mut messages = Vec::new();
        let int4 = 23_i32.to_be_bytes();
        push(&mut messages, b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\x01", &int4]);
        push(&mut messages, b'S', &[]);
        self.stream.write_all(&messages)?;
        self.answer().map(drop)
    }

    /// Reads to ReadyForQuery; an error is an error.
    fn answer(&mut self) -> Result<Vec<String>> {
        let mut values = Vec::new();
        let mut error = None;
        loop {
            while let Some((kind, length)) = self.head() {
                let body = &self.input[5..length];
                match kind {
                    b'D' => values.push(first_value(body).context("a broken DataRow")?),
                    b'E' => error = Some(String::from_utf8_lossy(body).replace('\0', " ")),
                    b'R' if body != [0; 4] => bail!("an authentication that this client does not know"),
                    _ => {}
                }
                self.input.drain(..length);
                match (kind, &error) {
                    (b'Z', None) => return Ok(values),
                    (b'Z', Some(error)) => bail!("{error}"),
                    _ => {}
                }
            }
            if self.fill()? == 0 {
                bail!(
                    "the connection has ended{}",
                    error.map_or(String::new(), |error| format!(": {error}"))
                );
            }
        }
    }

    /// The type and the whole length of the message at the front, once it is all there.
    fn head(&self) -> Option<(u8, usize)> {
        let length = u32::from_be_bytes(self.input.get(1..5)?.try_into().ok()?) as usize + 1;
        (self.input.len() >= length).then(|| (self.input[0], length))
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        let mut buffer = [0; 4096];
        let read = self.stream.read(&mut buffer)?;
        self.input.extend_from_slice(&buffer[..read]);
        Ok(read)
    }

    /// After an event on a socket that does not block: what has come. An error is counted and not looked at.
    pub fn advance(&mut self) -> Result<Progress> {
        if self.fill()? == 0 {
            bail!("the connection has ended");
        }
        let (mut progress, mut place) = (Progress::default(), 0);
        while let Some(head) = self.input.get(place..place + 5) {
            let length = u32::from_be_bytes(head[1..].try_into()?) as usize + 1;
            if self.input.len() < place + length {
                break;
            }
            match head[0] {
                b'E' => progress.errors += 1,
                b'Z' => progress.ready = true,
                _ => {}
            }
            place += length;
        }
        self.input.drain(..place);
        Ok(progress)
    }
}

/// Bind, Execute and Sync of a prepared statement with one int4, in binary.
pub fn execute(message: &mut Vec<u8>, statement: &str, parameter: i32) {
    message.clear();
    let value = parameter.to_be_bytes();
    // The unnamed portal; one format code, binary; one parameter of four bytes; results as text.
    let formats = b"\0\0\x01\0\x01\0\x01\0\0\0\x04";
    push(message, b'B', &[b"\0", statement.as_bytes(), formats, &value, b"\0\0"]);
    push(message, b'E', &[b"\0\0\0\0\0"]);
    push(message, b'S', &[]);
}

fn push(message: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    message.push(kind);
    message.extend_from_slice(&(length as u32).to_be_bytes());
    for part in parts {
        message.extend_from_slice(part);
    }
}

fn first_value(row: &[u8]) -> Option<String> {
    let length = i32::from_be_bytes(row.get(2..6)?.try_into().ok()?);
    let length = usize::try_from(length).unwrap_or(0);
    Some(String::from_utf8_lossy(row.get(6..6 + length)?).into_owned())
}
