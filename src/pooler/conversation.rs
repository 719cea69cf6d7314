//! A client's connection as reception talks over it: plain, or by TLS. Network threads.

use super::front::Front;
use super::hands::Hands;
use crate::login::Origin;
use crate::net::listener::Stream;
use crate::net::tls::pump::pump;
use crate::net::tls::{TlsStream, session};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::either::Either;

/// A client's connection up to its place in a pool.
pub(super) trait Conversation: AsyncRead + AsyncWrite + Unpin + Send {
    /// What a backend serves: the client's own socket, or the plain end of a pump.
    fn socket(&mut self) -> std::io::Result<OwnedFd>;
    /// The number of its TLS connection's cipher; 0 is no TLS.
    fn cipher(&self) -> u8;
    /// The number of the client's own TCP connection, where a backend serves another socket.
    fn wire(&self) -> Option<RawFd>;
    /// Our own end.
    fn local(&self) -> Origin;
    /// What is left to do while a backend serves it.
    fn go_on(self, front: &Arc<Front>) -> impl Future<Output = ()> + Send + 'static;
}

impl Conversation for Stream {
    fn socket(&mut self) -> std::io::Result<OwnedFd> {
        match self {
            Either::Left(tcp) => tcp.as_fd().try_clone_to_owned(),
            Either::Right(unix) => unix.as_fd().try_clone_to_owned(),
        }
    }

    fn cipher(&self) -> u8 {
        0
    }

    fn wire(&self) -> Option<RawFd> {
        None
    }

    fn local(&self) -> Origin {
        match self {
            Either::Left(tcp) => tcp.local_addr().map_or(Origin::Unix, canonical),
            Either::Right(_) => Origin::Unix,
        }
    }

    fn go_on(self, _: &Arc<Front>) -> impl Future<Output = ()> + Send + 'static {
        std::future::ready(())
    }
}

/// A TLS client, and our end of the socket pair whose other end its backend serves.
pub(super) struct OverTls {
    pub(super) tls: TlsStream<Stream>,
    pub(super) plain: Option<UnixStream>,
}

impl Conversation for OverTls {
    fn socket(&mut self) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        self.plain = Some(UnixStream::from_std(ours)?);
        Ok(theirs.into())
    }

    fn cipher(&self) -> u8 {
        session::number_of(&self.tls)
    }

    fn wire(&self) -> Option<RawFd> {
        match self.tls.get_ref().0 {
            Either::Left(tcp) => Some(tcp.as_raw_fd()),
            Either::Right(_) => None,
        }
    }

    fn local(&self) -> Origin {
        self.tls.get_ref().0.local()
    }

    fn go_on(self, front: &Arc<Front>) -> impl Future<Output = ()> + Send + 'static {
        let pumping = Hands::pump(front);
        let pump = self.plain.map(|plain| pump(self.tls, plain, Duration::from_secs(5), pumping));
        // No `async fn`: that would keep room for the pump twice.
        async move {
            if let Some(pump) = pump {
                let _ = pump.await;
            }
        }
    }
}

impl AsyncRead for OverTls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, out)
    }
}

impl AsyncWrite for OverTls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// An IPv4 address that a socket of both families shows as IPv6 is IPv4.
pub(super) fn canonical(address: std::net::SocketAddr) -> Origin {
    Origin::Tcp(std::net::SocketAddr::new(address.ip().to_canonical(), address.port()))
}
