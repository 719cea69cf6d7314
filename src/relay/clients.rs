//! The clients, and what the relay needs of the server: whoever has both gives it to the engine. The front's first thread.

use crate::notification::Taken;
use std::future::Future;
use std::pin::Pin;

pub type Wait<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The clients, and what the relay needs of the server.
pub trait Clients: Send + Sync + 'static {
    fn take(&self, client: u32) -> Taken;

    /// Writes to a client that was taken, without waiting; how much of it.
    ///
    /// # Errors
    /// As send(2) has it.
    fn send(&self, client: u32, bytes: &[u8]) -> std::io::Result<usize>;

    /// Waits until more can be written to a client that was taken.
    fn writable(&self, client: u32) -> Wait<()>;

    /// Somebody wants a client ended that was taken.
    fn is_doomed(&self, client: u32) -> bool;

    fn give_back(&self, client: u32);

    /// Ends a client that was taken.
    fn end(&self, client: u32);

    /// Ends a client whose channels nobody hears any more, whoever has it.
    fn lose(&self, client: u32);

    /// Starts the worker of a source, which is to have this number; false when there is no place for one.
    fn start(&self, source: u32, turn: u32) -> Wait<bool>;

    /// Whether that worker of a source, which has been started, has not ended.
    fn is_alive(&self, source: u32, turn: u32) -> Wait<bool>;

    /// Sets the latch of a process of the server.
    fn wake(&self, pid: i32);

    /// For the log: a client is ended because it is too slow.
    fn note_slow(&self, client: u32);

    /// For the log: a database's worker has ended while so many clients listened.
    fn note_end(&self, database: &str, clients: usize);

    /// A task on this thread.
    fn spawn(&self, task: Wait<()>);
}
