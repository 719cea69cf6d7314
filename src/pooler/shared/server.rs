//! One server connection's words. The front's until its backend has claimed it; then what is the agent's is so by what stands at each.

use crate::bridge::Name;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::*};

/// One connection of the front to the server, and the backend at its other end.
#[repr(C)]
#[derive(Default)]
pub struct Server {
    /// [`ServerState`].
    pub state: AtomicU32,
    pub pool: AtomicU32,
    /// Its place in [`Pool::members`].
    pub member: AtomicU32,
    /// The backend's process id, and its number in the server's table of processes; the agent's.
    pub pid: AtomicI32,
    pub proc: AtomicI32,
    /// What the backend must show once in its startup packet.
    pub token: [AtomicU64; 2],
    /// The client that it serves or serves next: slot number and 1; 0 is none.
    pub slot: AtomicU32,
    /// Where the backend's entry of `pg_stat_activity` is: one address in every process of the server.
    pub status: AtomicU64,
    /// It is to end at its next idle moment.
    pub retire: AtomicBool,
    /// It has been told to end, with its client, because of this [`super::limits::Limit`]; 0 when it has not.
    pub ending: AtomicU32,
    pub opened_at: AtomicI64,
    /// When its state last changed, or the client's next transaction began that it had sent already.
    pub since: AtomicI64,
    pub transactions: AtomicU64,
    /// As the front last looked.
    pub seen_transactions: AtomicU64,
    pub swaps: AtomicU64,
    /// The channel that its client is to listen to: the agent's, before it asks. And the front's answer: the request's number, and in
    /// the lower half what came of it.
    pub channel: Name,
    pub answer: AtomicU64,
    /// Up to which of its clients' notifying transactions the relay has heard everything.
    pub notified: AtomicU64,
}

/// What a server connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ServerState {
    Free = 0,
    /// The front is logging in.
    Opening = 1,
    /// Waiting for any client of its pool.
    Idle = 2,
    /// Serving a client.
    Serving = 3,
    /// Waiting for its own client, and may be called back.
    Staying = 4,
    /// Waiting for its own client, whose state cannot move.
    Pinned = 5,
}

impl Server {
    pub fn state(&self) -> ServerState {
        match self.state.load(Acquire) {
            1 => ServerState::Opening,
            2 => ServerState::Idle,
            3 => ServerState::Serving,
            4 => ServerState::Staying,
            5 => ServerState::Pinned,
            _ => ServerState::Free,
        }
    }

    pub fn set_state(&self, state: ServerState) {
        self.state.store(state as u32, Release);
    }

    /// What the backend that is being opened must show.
    pub fn expect(&self, token: [u64; 2]) {
        for (word, value) in self.token.iter().zip(token) {
            word.store(value, Release);
        }
    }

    /// Whether a backend has the connection that was opened: before it is ready for its first query.
    pub fn is_claimed(&self) -> bool {
        self.token[0].load(Acquire) == 0
    }

    /// The backend that shows this token has the connection; a token serves once. Who shows another changes nothing: a login of the
    /// front before this one may have taken its time, and would take that of the login which has the same number now. That is also
    /// why the half that says it is the only word that is written: the next token may stand there a moment later.
    pub fn claim(&self, token: [u64; 2]) -> bool {
        let [first, second] = &self.token;
        self.state() == ServerState::Opening
            && token[0] != 0
            && second.load(Acquire) == token[1]
            && first.compare_exchange(token[0], 0, AcqRel, Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_once_and_only_whole() {
        let server = Server::default();
        assert!(!server.claim([0, 0]), "nothing is being opened");
        server.set_state(ServerState::Opening);
        assert!(!server.claim([0, 0]));
        server.expect([7, 8]);
        for wrong in [[7, 9], [9, 8], [0, 8], [7, 0], [0, 0]] {
            assert!(!server.claim(wrong));
        }
        assert!(!server.is_claimed());
        assert!(server.claim([7, 8]) && server.is_claimed());
        for again in [[7, 8], [0, 8], [0, 0]] {
            assert!(!server.claim(again), "half of it is left, and is none");
        }
        server.expect([9, 8]);
        server.set_state(ServerState::Serving);
        assert!(!server.claim([9, 8]));
    }
}
