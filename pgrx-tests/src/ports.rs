//! Free ports for listeners, below the range that the system gives to outgoing connections, so that nobody takes one
//! between our look and the server's bind.

use anyhow::{Result, bail};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 15_000;
const LAST: u16 = 31_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// Whether somebody on this machine listens on the port, as the system's tables have it (proc(5)): nobody is called by asking.
pub fn is_listened_on(port: u16) -> bool {
    let (address, listening) = (format!(":{port:04X}"), "0A");
    let has = |file: &str| {
        let table = std::fs::read_to_string(file).unwrap_or_default();
        table.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&address)) && words.nth(1) == Some(listening)
        })
    };
    has("/proc/net/tcp") || has("/proc/net/tcp6")
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_seen_without_a_call() -> Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free()?))?;
        let port = listener.local_addr()?.port();
        assert!(is_listened_on(port));
        drop(listener);
        // A child that another test starts just now has it until it runs its own program.
        crate::wait::until("nobody listens any more", || !is_listened_on(port))
    }
}
