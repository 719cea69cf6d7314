//! Opening one address and accepting on it. Network threads.

use super::Error;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

/// Connections that may wait to be accepted; the system takes less where `net.core.somaxconn` is lower.
const BACKLOG: i32 = 4096;

/// A concrete address: names are resolved, `*` is spelled out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// An open listener. Closing is dropping; a Unix socket's file goes with it.
pub struct Listener {
    socket: AsyncFd<Socket>,
    file: Option<SocketFile>,
}

/// A listener for a thread of its own, whose accept blocks.
pub struct Blocking {
    socket: Socket,
    closed: AtomicBool,
    _file: Option<SocketFile>,
}

/// A client that was just accepted: a non-blocking, close-on-exec socket that no runtime knows yet.
pub struct Accepted {
    pub socket: OwnedFd,
    pub peer: Peer,
}

/// Where a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Tcp(IpAddr),
    /// Whoever the file's permissions let in.
    Unix,
}

/// An accepted client as a tokio stream.
pub type Stream = Either<TcpStream, UnixStream>;

impl Listener {
    /// Opens the address; `mode` is the permission bits of a Unix socket's file. Call it on a runtime.
    ///
    /// # Errors
    /// What the system says, or that somebody else has the Unix socket.
    pub fn open(endpoint: &Endpoint, mode: u32) -> Result<Self, Error> {
        let (socket, file) = match endpoint {
            Endpoint::Tcp(address) => (open_tcp(*address).map_err(Error::Listen)?, None),
            Endpoint::Unix(path) => {
                let (socket, file) = open_unix(path, mode)?;
                (socket, Some(file))
            }
        };
        socket.set_nonblocking(true).map_err(Error::Listen)?;
        // Deprecated because a type might change its descriptor; `Socket` keeps one for life. The new function is
        // unsafe, which this room forbids.
        #[allow(deprecated)]
        let socket = AsyncFd::new(socket).map_err(Error::Listen)?;
        Ok(Self { socket, file })
    }

    /// Clients' connections as a server has them (StreamConnection() in pqcomm.c): TCP_NODELAY and SO_KEEPALIVE, which Linux hands down
    /// from the listening socket.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn keep_clients_alive(&self) -> io::Result<()> {
        let socket = self.socket.get_ref();
        if self.file.is_none() {
            socket.set_tcp_nodelay(true)?;
            socket.set_keepalive(true)?;
        }
        Ok(())
    }

    /// Waits for the next client.
    ///
    /// # Errors
    /// What accept(2) says; a lack of descriptors or memory passes, so the caller goes on after a pause.
    pub async fn accept(&self) -> io::Result<Accepted> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| accept(socket.get_ref())) {
                Ok(Err(e)) if is_the_clients(&e) => {}
                Ok(accepted) => return accepted,
                Err(_would_block) => {}
            }
        }
    }
}

impl Listener {
    /// Takes it from the runtime.
    ///
    /// # Errors
    /// When the system does not let the socket block.
    pub fn into_blocking(self) -> io::Result<Blocking> {
        let socket = self.socket.into_inner();
        socket.set_nonblocking(false)?;
        Ok(Blocking { socket, closed: AtomicBool::new(false), _file: self.file })
    }
}

impl Blocking {
    /// Waits for the next client, or for [`Blocking::close`].
    ///
    /// # Errors
    /// As [`Listener::accept`], and any error at all once it is closed.
    pub fn accept(&self) -> io::Result<Accepted> {
        loop {
            match accept(&self.socket) {
                Err(e) if is_the_clients(&e) && !self.is_closed() => {}
                accepted => return accepted,
            }
        }
    }

    /// Ends every accept, from any thread: shutdown(2) of a listening socket makes accept(2) fail with EINVAL.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Accepted {
    /// Registers the client with the runtime of this thread.
    ///
    /// # Errors
    /// When the system refuses to watch the socket.
    pub fn into_stream(self) -> io::Result<Stream> {
        match self.peer {
            Peer::Tcp(_) => Ok(Either::Left(TcpStream::from_std(self.socket.into())?)),
            Peer::Unix => Ok(Either::Right(UnixStream::from_std(self.socket.into())?)),
        }
    }
}

fn accept(socket: &Socket) -> io::Result<Accepted> {
    use rustix::net::{SocketFlags, acceptfrom_with};
    let (socket, address) = acceptfrom_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = match address.map(SocketAddr::try_from) {
        Some(Ok(address)) => Peer::Tcp(address.ip().to_canonical()),
        _ => Peer::Unix,
    };
    Ok(Accepted { socket, peer })
}

/// Errors of a connection that was gone before it was accepted (accept(2), "Error handling").
fn is_the_clients(error: &io::Error) -> bool {
    use rustix::io::Errno as E;
    let passing = [
        E::CONNABORTED,
        E::INTR,
        E::PROTO,
        E::NETDOWN,
        E::NOPROTOOPT,
        E::HOSTDOWN,
        E::HOSTUNREACH,
        E::OPNOTSUPP,
        E::NETUNREACH,
    ];
    passing.iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

fn open_tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own, so that a range check never sees a mapped address.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn open_unix(path: &Path, mode: u32) -> Result<(Socket, SocketFile), Error> {
    make_way(path)?;
    let address = SockAddr::unix(path).map_err(Error::Listen)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(Error::Listen)?;
    socket.bind(&address).map_err(Error::Listen)?;
    let meta = std::fs::metadata(path).map_err(Error::Listen)?;
    let file = SocketFile { path: path.to_owned(), inode: meta.ino() };
    // Nobody can connect before listen(), so there is no moment with the wrong permissions.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o777)).map_err(Error::Listen)?;
    socket.listen(BACKLOG).map_err(Error::Listen)?;
    Ok((socket, file))
}

/// Removes the socket file that a killed server left behind; never one that somebody answers on.
fn make_way(path: &Path) -> Result<(), Error> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(Error::NotASocket);
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(Error::Listen)?;
    probe.set_nonblocking(true).map_err(Error::Listen)?;
    let address = SockAddr::unix(path).map_err(Error::Listen)?;
    match probe.connect(&address) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(Error::Listen)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(Error::Listen(e)),
        _ => Err(Error::SocketInUse),
    }
}

/// The file of a Unix socket, removed on drop when it is still ours.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("postern-listener-{}-{name}", std::process::id()))
    }

    #[tokio::test]
    async fn a_socket_file_left_behind_is_taken_over_and_a_live_one_is_not() {
        let path = scratch("stale");
        let left = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        left.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        drop(left);
        let endpoint = Endpoint::Unix(path.clone());
        let live = Listener::open(&endpoint, 0o777).unwrap();
        assert!(matches!(Listener::open(&endpoint, 0o777), Err(Error::SocketInUse)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        drop(live);
        assert!(!path.exists(), "the file goes with the listener");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let path = scratch("file");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::open(&Endpoint::Unix(path.clone()), 0o777), Err(Error::NotASocket)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn closing_wakes_a_blocked_accept_and_frees_the_address() {
        let path = scratch("blocking");
        let tcp = Endpoint::Tcp("127.0.0.1:0".parse().unwrap());
        for endpoint in [tcp, Endpoint::Unix(path.clone())] {
            let listener =
                std::sync::Arc::new(Listener::open(&endpoint, 0o777).unwrap().into_blocking().unwrap());
            let accepting = std::sync::Arc::clone(&listener);
            let thread = std::thread::spawn(move || accepting.accept().map(drop));
            std::thread::sleep(std::time::Duration::from_millis(50));
            listener.close();
            assert!(thread.join().unwrap().is_err(), "{endpoint}");
        }
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_peers_address_is_told() {
        let address = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::open(&Endpoint::Tcp(address), 0).unwrap();
        let bound = listener.socket.get_ref().local_addr().unwrap().as_socket().unwrap();
        let _client = std::net::TcpStream::connect(bound).unwrap();
        let accepted = listener.accept().await.unwrap();
        assert_eq!(accepted.peer, Peer::Tcp("127.0.0.1".parse().unwrap()));
    }
}
