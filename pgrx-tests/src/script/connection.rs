//! A raw connection: bytes out, whole backend messages in. Runs in test programs.

use super::frontend::Message;
use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between the pieces of a message that is sent in pieces: long enough that they arrive one by one.
const BETWEEN_PIECES: Duration = Duration::from_millis(1);

/// Where a server or a pooler listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Tcp(SocketAddr),
    /// The path of the socket.
    Unix(PathBuf),
    /// TCP with TLS, after an SSLRequest; `localhost`'s certificate must be of that authority.
    Tls {
        address: SocketAddr,
        authority: PathBuf,
    },
}

impl Target {
    /// A port on this machine.
    pub fn tcp(port: u16) -> Self {
        Self::Tcp(([127, 0, 0, 1], port).into())
    }

    /// The same with TLS; the authority's certificate as a PEM file.
    pub fn tls(port: u16, authority: &Path) -> Self {
        Self::Tls { address: ([127, 0, 0, 1], port).into(), authority: authority.to_owned() }
    }

    /// PostgreSQL's name for the socket of a port.
    pub fn unix(directory: &Path, port: u16) -> Self {
        Self::Unix(directory.join(format!(".s.PGSQL.{port}")))
    }

    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) | Self::Tls { address, .. } => Some(address.port()),
            Self::Unix(path) => path.extension()?.to_str()?.parse().ok(),
        }
    }

    /// The same place for the `postgres` crate.
    pub fn config(&self) -> postgres::Config {
        let mut config = postgres::Config::new();
        match self {
            Self::Tcp(address) | Self::Tls { address, .. } => config.host(&address.ip().to_string()),
            Self::Unix(path) => config.host_path(path.parent().unwrap_or(path)),
        };
        config.port(self.port().unwrap_or_default()).user("postgres").dbname("postgres");
        config.connect_timeout(Duration::from_secs(10));
        config
    }
}

/// A stream of bytes whose reads end when nothing comes.
pub trait Wire: Read + Write + Send {
    /// How long a read waits before it fails with `WouldBlock` or `TimedOut`.
    ///
    /// # Errors
    /// The system's.
    fn set_patience(&self, patience: Duration) -> io::Result<()>;

    /// The client's own port, where there is one.
    fn local_port(&self) -> Option<u16> {
        None
    }
}

impl Wire for TcpStream {
    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }

    fn local_port(&self) -> Option<u16> {
        self.local_addr().ok().map(|address| address.port())
    }
}

impl Wire for UnixStream {
    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }
}

/// TLS whose end is the connection's, as the server has it: it often closes without a close_notify.
struct TlsStream(StreamOwned<ClientConnection, TcpStream>);

impl Read for TlsStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.0.read(bytes) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
            read => read,
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Wire for TlsStream {
    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.0.sock.set_read_timeout(Some(patience))
    }

    fn local_port(&self) -> Option<u16> {
        Wire::local_port(&self.0.sock)
    }
}

fn plain(address: &SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| address.to_string())?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

fn over_tls(address: &SocketAddr, authority: &Path) -> Result<TlsStream> {
    let mut stream = plain(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    ensure!(answer == *b"S", "there is no TLS at {address}");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).context("the authority's certificate")?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    let mut stream = StreamOwned::new(session, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(TlsStream(stream))
}

/// What a read gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    Message {
        tag: u8,
        body: Vec<u8>,
    },
    /// One byte outside any message: the answer to SSLRequest.
    Byte(u8),
    /// The other end has closed; a reset counts as that. Normally after a whole message.
    Closed {
        unfinished: Vec<u8>,
    },
    /// Nothing came in time.
    Silence,
}

/// One client's connection.
pub struct Connection {
    wire: Box<dyn Wire>,
    inbox: Vec<u8>,
    /// How much of `inbox` has been given out.
    taken: usize,
    pub closed: bool,
    /// How many `ReadyForQuery` are still to come.
    pub owed: u32,
    /// Process id and key of BackendKeyData.
    pub key: Option<(Vec<u8>, Vec<u8>)>,
}

impl Connection {
    /// # Errors
    /// When nobody listens there.
    pub fn open(target: &Target) -> Result<Self> {
        let wire: Box<dyn Wire> = match target {
            Target::Tcp(address) => Box::new(plain(address)?),
            Target::Tls { address, authority } => Box::new(over_tls(address, authority)?),
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
                stream.set_write_timeout(Some(Duration::from_secs(20)))?;
                Box::new(stream)
            }
        };
        Ok(Self { wire, inbox: Vec::new(), taken: 0, closed: false, owed: 0, key: None })
    }

    /// A session of `postgres` in the database of that name, ready for a query.
    ///
    /// # Errors
    /// When nobody listens there, or it is not let in.
    pub fn log_in(target: &Target) -> Result<Self> {
        let mut connection = Self::open(target)?;
        let parameters = ["user", "database"].map(|name| (name.as_bytes().to_vec(), b"postgres".to_vec()));
        connection.send(&Message::startup((3, 0), &parameters).bytes, None);
        connection.until(b'Z', Duration::from_secs(20))?;
        Ok(connection)
    }

    /// The body of the next message of a type. Each message may take that long.
    ///
    /// # Errors
    /// With what the server says when an error of its comes first, and when the connection ends or nothing comes.
    pub fn until(&mut self, wanted: u8, patience: Duration) -> Result<Vec<u8>> {
        loop {
            match self.receive(patience)? {
                Received::Message { tag, body } if tag == wanted => return Ok(body),
                Received::Message { tag: b'E', body } => {
                    bail!("{}", String::from_utf8_lossy(&body).replace('\0', " "))
                }
                Received::Message { .. } => {}
                other => bail!("{other:?}"),
            }
        }
    }

    pub fn local_port(&self) -> Option<u16> {
        self.wire.local_port()
    }

    /// Sends in pieces of so many bytes, or at once. That the other end has closed shows when reading.
    pub fn send(&mut self, bytes: &[u8], piece: Option<usize>) {
        let piece = piece.unwrap_or(bytes.len()).max(1);
        for (number, part) in bytes.chunks(piece).enumerate() {
            if number > 0 {
                std::thread::sleep(BETWEEN_PIECES);
            }
            if self.wire.write_all(part).and_then(|()| self.wire.flush()).is_err() {
                return;
            }
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// When the system fails otherwise than by a closed connection.
    pub fn receive(&mut self, patience: Duration) -> Result<Received> {
        let head = match self.fill(5, patience)? {
            Some(end) => return Ok(end),
            None => &self.inbox[self.taken..self.taken + 5],
        };
        let tag = head[0];
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        // A server may answer to an unknown version in the way of protocol 2: a text without a length.
        let wanted = if (4..1 << 30).contains(&length) { length + 1 } else { usize::MAX };
        if let Some(end) = self.fill(wanted, patience)? {
            return Ok(end);
        }
        let body = self.inbox[self.taken + 5..self.taken + 1 + length].to_vec();
        self.taken += length + 1;
        if tag == b'Z' {
            self.owed = self.owed.saturating_sub(1);
        }
        if tag == b'K' && body.len() > 4 {
            self.key = Some((body[..4].to_vec(), body[4..].to_vec()));
        }
        Ok(Received::Message { tag, body })
    }

    /// The next byte, which belongs to no message.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn receive_byte(&mut self, patience: Duration) -> Result<Received> {
        if let Some(end) = self.fill(1, patience)? {
            return Ok(end);
        }
        self.taken += 1;
        Ok(Received::Byte(self.inbox[self.taken - 1]))
    }

    /// Reads until so many bytes are there; otherwise says why there are not.
    fn fill(&mut self, wanted: usize, patience: Duration) -> Result<Option<Received>> {
        if self.inbox.len() - self.taken >= wanted {
            return Ok(None);
        }
        self.inbox.drain(..self.taken);
        self.taken = 0;
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 65536];
        while self.inbox.len() < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Some(Received::Silence));
            }
            self.wire.set_patience(left)?;
            match self.wire.read(&mut buffer) {
                Ok(0) => return Ok(Some(self.close())),
                Ok(read) => self.inbox.extend_from_slice(&buffer[..read]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                        return Ok(Some(self.close()));
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(None)
    }

    fn close(&mut self) -> Received {
        self.closed = true;
        self.taken = 0;
        Received::Closed { unfinished: std::mem::take(&mut self.inbox) }
    }
}
