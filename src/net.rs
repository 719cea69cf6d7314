//! Network threads, and listeners that follow a reload. Nothing here knows what is served.
//!
//! - [`threads`]: a named thread with a single-threaded runtime, and its end within a bounded time
//! - [`listener`]: opening and accepting on one address
//! - `resolve`: from what a list says to concrete addresses
//! - [`keeper`]: the set of listeners that the settings want, opened, retried, closed
//! - [`places`]: how many connections of a kind at once
//! - [`slots`]: what each listener has done, in shared memory
//! - [`linger`]: closing without losing the answer
//! - [`tls`]: the server's certificates, the handshake, and copying between TLS and plain bytes

#![forbid(unsafe_code)]

pub mod keeper;
pub mod linger;
pub mod listener;
pub mod places;
mod resolve;
pub mod slots;
pub mod threads;
pub mod tls;

/// What goes wrong with an address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Listen(#[source] std::io::Error),
    #[error("another process answers on that socket")]
    SocketInUse,
    #[error("a file that is no socket is in the way")]
    NotASocket,
    #[error("could not resolve the host name: {0}")]
    Resolve(#[source] std::io::Error),
    #[error("all {0} places for listeners are taken")]
    NoSlot(usize),
}

impl Error {
    /// The error number for [`slots::Slot`]; -1 where the system gives none.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Listen(e) | Self::Resolve(e) => e.raw_os_error().unwrap_or(-1),
            Self::SocketInUse => rustix::io::Errno::ADDRINUSE.raw_os_error(),
            Self::NotASocket => rustix::io::Errno::NOTSOCK.raw_os_error(),
            Self::NoSlot(_) => -1,
        }
    }
}
