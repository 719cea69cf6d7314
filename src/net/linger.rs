//! Closing without losing the answer. Network threads.
//!
//! A socket that is closed while bytes from the peer are unread sends a reset, and the peer's system may then
//! throw away the answer before the peer has read it. So: say that nothing more comes, read what is still
//! on its way within bounds, then close.

use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes read and thrown away at most.
const MOST: usize = 256 * 1024;

/// Ends a conversation in which everything has been said; takes at most `patience`.
pub async fn close<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, patience: Duration) {
    let _ = tokio::time::timeout(patience, async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut scrap = [0u8; 4096];
        let mut total = 0;
        while let Ok(read @ 1..) = stream.read(&mut scrap).await {
            total += read;
            if total >= MOST {
                return;
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn a_peer_that_never_stops_sending_is_left_at_the_bound() {
        let (mut ours, mut theirs) = duplex(1024);
        let flood = tokio::spawn(async move {
            let mut sent = 0;
            while theirs.write_all(&[0; 1024]).await.is_ok() {
                sent += 1024;
            }
            sent
        });
        close(&mut ours, Duration::from_secs(60)).await;
        drop(ours);
        assert!(flood.await.unwrap() <= MOST + 8192);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_left_in_time() {
        let (mut ours, _theirs) = duplex(64);
        let before = tokio::time::Instant::now();
        close(&mut ours, Duration::from_secs(1)).await;
        assert_eq!(before.elapsed(), Duration::from_secs(1));
    }
}
