//! A client that says whatever bytes it likes, and writes down what it hears.

use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::frontend::Message;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a client comes from; it connects to the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Address(IpAddr),
    Unix,
}

pub enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A backend message, or how the connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Message(u8, Vec<u8>),
    /// One byte, the answer to a request for encryption.
    Byte(u8),
    Closed,
    /// Bytes that are no message, and then the end.
    Scraps(Vec<u8>),
}

impl Raw {
    pub fn open(cluster: &Cluster, port: u16, source: Source) -> Result<Self> {
        let this = match source {
            Source::Address(from) => {
                let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let socket =
                    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
                rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
                let to = if from.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { from };
                rustix::net::connect(&socket, &SocketAddr::new(to, port))
                    .with_context(|| format!("{from}"))?;
                Self::Tcp(TcpStream::from(socket))
            }
            Source::Unix => {
                Self::Unix(UnixStream::connect(cluster.socket_directory().join(format!(".s.PGSQL.{port}")))?)
            }
        };
        match &this {
            Self::Tcp(stream) => stream.set_read_timeout(Some(PATIENCE))?,
            Self::Unix(stream) => stream.set_read_timeout(Some(PATIENCE))?,
        }
        Ok(this)
    }

    /// From 127.0.0.1.
    pub fn tcp(cluster: &Cluster, port: u16) -> Result<Self> {
        Self::open(cluster, port, Source::Address([127, 0, 0, 1].into()))
    }

    /// That the other end has closed shows when reading.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        };
    }

    pub fn startup(&mut self, parameters: &[(&str, &str)]) {
        let parameters: Vec<_> =
            parameters.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
        self.send(&Message::startup((3, 0), &parameters).bytes);
    }

    /// Sends nothing more.
    pub fn finish(&mut self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    /// As much as comes, up to the wanted length.
    fn take(&mut self, wanted: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; wanted];
        let mut there = 0;
        while there < wanted {
            match self.read(&mut bytes[there..]) {
                Ok(0) => break,
                Ok(read) => there += read,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error).context("nothing was heard in time"),
            }
        }
        bytes.truncate(there);
        Ok(bytes)
    }

    pub fn hear(&mut self) -> Result<Heard> {
        let head = self.take(5)?;
        let Ok(head) = <[u8; 5]>::try_from(&head[..]) else {
            return Ok(if head.is_empty() { Heard::Closed } else { Heard::Scraps(head) });
        };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..1 << 24).contains(&length) {
            // An error of protocol 2.
            let rest = self.take(1 << 16)?;
            return Ok(Heard::Scraps([&head[..], &rest].concat()));
        }
        let body = self.take(length - 4)?;
        Ok(Heard::Message(head[0], body))
    }

    pub fn hear_byte(&mut self) -> Result<Heard> {
        Ok(self.take(1)?.first().map_or(Heard::Closed, |byte| Heard::Byte(*byte)))
    }

    /// Everything up to an idle ReadyForQuery, a request that wants an answer, or the end.
    pub fn hear_all(&mut self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        loop {
            let heard = self.hear()?;
            all.push(heard.shown());
            match heard {
                Heard::Message(b'Z', _) | Heard::Closed | Heard::Scraps(_) | Heard::Byte(_) => {
                    return Ok(all);
                }
                Heard::Message(b'R', body) if !matches!(body[..4], [0, 0, 0, 0 | 12]) => return Ok(all),
                Heard::Message(..) => {}
            }
        }
    }
}

impl Heard {
    /// In words, without what is random: salts, nonces and keys; source places and process ids are left out.
    pub fn shown(&self) -> String {
        let (tag, body) = match self {
            Self::Message(tag, body) => (*tag, body),
            other => return format!("{other:?}"),
        };
        match tag {
            b'E' | b'N' => {
                let fields = body.split(|byte| *byte == 0).filter(|field| !field.is_empty());
                let shown = fields
                    .filter(|field| !matches!(field[0], b'F' | b'L' | b'R'))
                    .map(|field| String::from_utf8_lossy(field).into_owned());
                format!("{}: {}", tag as char, shown.collect::<Vec<_>>().join(" | "))
            }
            b'R' => {
                let code = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                let data = String::from_utf8_lossy(&body[4..]).into_owned();
                match code {
                    10 => format!("SASL {}", data.replace('\0', " ")),
                    11 => {
                        let parts =
                            data.split(',').map(|part| if part.starts_with("r=") { "r=…" } else { part });
                        format!("SASL challenge {}", parts.collect::<Vec<_>>().join(","))
                    }
                    12 => "SASL final".to_owned(),
                    code => format!("authentication {code}"),
                }
            }
            b'K' => "BackendKeyData".to_owned(),
            _ => format!("{} {}", tag as char, String::from_utf8_lossy(body).replace('\0', " ")),
        }
    }
}
