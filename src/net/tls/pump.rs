//! Bytes between a TLS client and one end of a plain socket pair, both ways, in one task of a network thread.
//!
//! Nothing is kept for an idle client beyond what rustls keeps: what the client sends is written out of rustls's own buffer,
//! and what goes to it is read into 16 kB of stack and encrypted from there. What the slower side has not taken stays in
//! the faster side's socket: at most one record each way is held here.

use super::TlsStream;
use std::future::poll_fn;
use std::io::{ErrorKind, Result};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Bytes that are encrypted at once: the content of the longest TLS record.
const BATCH: usize = 16 * 1024;

/// Bytes that are read and thrown away at most after the plain side has ended.
const MOST_SCRAP: u64 = 256 * 1024;

/// How many bytes went through, without TLS's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pumped {
    pub from_client: u64,
    pub to_client: u64,
}

/// Copies until both sides have ended.
///
/// When the client ends (close_notify, or its socket does), writing to `plain` is shut down, and what still comes from there goes to
/// the client. When `plain` ends, the client is sent close_notify and the end of the stream; then it has `patience` to end too,
/// during which what it sends is still taken off its socket, so that closing does not take back what it has not yet
/// read. A server that is gone can therefore not be kept waiting by a client that is idle.
///
/// Dropping the future closes both sides. `until_said` is dropped when the client has been sent the last that it is sent.
///
/// # Errors
/// When the client cannot be written to, or sends what is no TLS; both sides are closed then.
pub fn pump<S, P, G>(
    tls: TlsStream<S>,
    plain: P,
    patience: Duration,
    until_said: G,
) -> impl Future<Output = Result<Pumped>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let mut pump = Pump {
        tls,
        plain,
        up: Up::Open,
        has_plain_ended: false,
        must_flush: false,
        left: Vec::new(),
        scrap: 0,
        pumped: Pumped::default(),
    };
    // No `async fn`: that would keep the room of its arguments beside `pump`, a kilobyte for each client.
    async move {
        poll_fn(|cx| match pump.poll_up(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            _ => pump.poll_down(cx),
        })
        .await?;
        pump.has_plain_ended = true;
        // The client may be gone or not read any more; either way this is the end.
        let _ = tokio::time::timeout(patience, async {
            pump.tls.shutdown().await?;
            drop(until_said);
            poll_fn(|cx| pump.poll_up(cx)).await
        })
        .await;
        Ok(pump.pumped)
    }
}

/// What becomes of the client's bytes.
#[derive(Clone, Copy)]
enum Up {
    Open,
    /// The client has ended, and the plain side is still to be told.
    Closing,
    /// The plain side takes no more.
    Refused,
    Ended,
}

struct Pump<S, P> {
    tls: TlsStream<S>,
    plain: P,
    up: Up,
    has_plain_ended: bool,
    must_flush: bool,
    /// Read from the plain side and not taken by rustls; it takes a batch whole when nothing waits in it.
    left: Vec<u8>,
    scrap: u64,
    pumped: Pumped,
}

impl<S, P> Pump<S, P>
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    /// From the client; ready when no more can come.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            match self.up {
                Up::Ended => return Poll::Ready(Ok(())),
                Up::Closing => {
                    // An error means that the plain side has gone: then it knows.
                    let _ = ready!(Pin::new(&mut self.plain).poll_shutdown(cx));
                    self.up = Up::Ended;
                }
                // What the plain side said last comes first; poll_down() ends with it.
                Up::Refused if !self.has_plain_ended => return Poll::Pending,
                Up::Refused if self.scrap >= MOST_SCRAP => self.up = Up::Ended,
                Up::Open | Up::Refused => {
                    let bytes = match ready!(Pin::new(&mut self.tls).poll_fill_buf(cx)) {
                        Ok(bytes) if !bytes.is_empty() => bytes,
                        // Not TLS any more: nothing that it sends or is sent can be trusted.
                        Err(e) if e.kind() == ErrorKind::InvalidData => return Poll::Ready(Err(e)),
                        _ => {
                            self.up = Up::Closing;
                            continue;
                        }
                    };
                    let taken = if matches!(self.up, Up::Refused) {
                        self.scrap += bytes.len() as u64;
                        bytes.len()
                    } else {
                        match ready!(Pin::new(&mut self.plain).poll_write(cx, bytes)) {
                            Ok(taken @ 1..) => {
                                self.pumped.from_client += taken as u64;
                                taken
                            }
                            _ => {
                                self.up = Up::Refused;
                                continue;
                            }
                        }
                    };
                    Pin::new(&mut self.tls).consume(taken);
                }
            }
        }
    }

    /// To the client; ready when the plain side has ended and all that it said has been sent.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            while !self.left.is_empty() {
                let taken = ready!(Pin::new(&mut self.tls).poll_write(cx, &self.left))?;
                self.left.drain(..taken);
                self.must_flush = true;
            }
            if self.must_flush {
                ready!(Pin::new(&mut self.tls).poll_flush(cx))?;
                self.must_flush = false;
                self.left = Vec::new();
            }
            let mut space = [const { MaybeUninit::<u8>::uninit() }; BATCH];
            let mut batch = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.plain).poll_read(cx, &mut batch));
            let bytes = batch.filled();
            // A server that ends with bytes of ours unread resets the pair, after what it has sent.
            if read.is_err() || bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.pumped.to_client += bytes.len() as u64;
            self.must_flush = true;
            let taken = match Pin::new(&mut self.tls).poll_write(cx, bytes) {
                Poll::Ready(taken) => taken?,
                Poll::Pending => 0,
            };
            self.left.extend_from_slice(&bytes[taken..]);
        }
    }
}
