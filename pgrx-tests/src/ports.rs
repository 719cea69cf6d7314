//! Free ports for listeners, below the range that the system gives to outgoing connections, so that nobody takes one
//! between our look and the server's bind.

use anyhow::{Result, bail};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 15_000;
const LAST: u16 = 31_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on, and that this program has not given out lately.
///
/// # Errors
/// When no port of the range is free.
pub fn free() -> Result<u16> {
    let range = LAST - FIRST;
    // Programs that run at the same time begin at different places.
    let start = (std::process::id() as u16).wrapping_mul(397) % range;
    for _ in 0..range {
        let port = FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % range;
        let v4 = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop);
        let v6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).map(drop);
        let taken = |bound: &std::io::Result<()>| {
            bound.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
        };
        if !taken(&v4) && !taken(&v6) {
            return Ok(port);
        }
    }
    bail!("no free port from {FIRST} to {LAST}")
}
