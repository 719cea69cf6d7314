//! What a session agent and the front say to each other on the control socket: records of sixteen bytes from the agent, and for
//! two of them an answer of eight bytes with a descriptor. The relays' workers speak on it too. Pure.

/// Data of the pipe in every pool's epoll instance whose other end the front holds: it becomes readable when the front is gone.
pub const FRONT_GONE: u64 = u64::MAX;

/// What an agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The first: the number of its server connection and the front's epoch. Answered with the pool's epoll instance.
    Hello { server: u32, epoch: u32 },
    /// It has taken a client that it never met. Answered with the client's socket.
    Want { slot: u32, generation: u32 },
    /// The client is gone or is to go; its slot's state is Closing.
    Gone { slot: u32, generation: u32 },
    /// Nobody waits in the pool any more.
    Nobody,
    /// The client has sent a part of a message: arm it again in a moment.
    Later { slot: u32, generation: u32 },
    /// The client, now idle, has an `idle_session_timeout` or had one before; its slot says which.
    Idle { slot: u32, generation: u32 },
    /// Not an agent's, but from a backend in which SQL runs: the client is to be ended, whoever has it.
    Kill { slot: u32, generation: u32 },
    /// Likewise: something has changed that pools are to look at.
    Look,
    /// The client is to listen to the channel whose name the connection's words have. Answered there, with the request's number.
    Listen { slot: u32, generation: u32, request: u32 },
    /// The client listens no longer to what has this number. Answered likewise.
    Unlisten { slot: u32, listen: u32, request: u32 },
    /// The client's LISTENs that have not committed are not in force. Answered likewise.
    TakeBack { slot: u32, generation: u32, request: u32 },
    /// The client, now idle, lacks notifications.
    Behind { slot: u32, generation: u32 },
    /// The first of a relay's worker: its source, and its number there.
    Relay { source: u32, turn: u32 },
    /// A relay has put something into the ring, or listens otherwise.
    News,
    /// A relay had taken the client to write to it, and a backend has come for it meanwhile: the pool is to hear of it again.
    Arm { slot: u32, generation: u32 },
    /// A relay has taken the client to write to it, and only so many bytes of what it lacks have gone. The client is the front's.
    Finish { slot: u32, generation: u32, sent: u32 },
}

/// Bytes of a record and of an answer.
pub const RECORD: usize = 16;
pub const ANSWER: usize = 8;

impl Word {
    pub fn to_bytes(self) -> [u8; RECORD] {
        let words: [u32; 4] = match self {
            Self::Hello { server, epoch } => [1, server, epoch, 0],
            Self::Want { slot, generation } => [2, slot, generation, 0],
            Self::Gone { slot, generation } => [3, slot, generation, 0],
            Self::Nobody => [4, 0, 0, 0],
            Self::Later { slot, generation } => [5, slot, generation, 0],
            Self::Idle { slot, generation } => [6, slot, generation, 0],
            Self::Kill { slot, generation } => [7, slot, generation, 0],
            Self::Look => [8, 0, 0, 0],
            Self::Listen { slot, generation, request } => [9, slot, generation, request],
            Self::Unlisten { slot, listen, request } => [10, slot, listen, request],
            Self::TakeBack { slot, generation, request } => [11, slot, generation, request],
            Self::Behind { slot, generation } => [12, slot, generation, 0],
            Self::Relay { source, turn } => [13, source, turn, 0],
            Self::News => [14, 0, 0, 0],
            Self::Arm { slot, generation } => [15, slot, generation, 0],
            Self::Finish { slot, generation, sent } => [16, slot, generation, sent],
        };
        let mut bytes = [0; RECORD];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8; RECORD]) -> Option<Self> {
        let mut words = [0u32; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = chunk.first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk));
        }
        let [kind, slot, generation, request] = words;
        match kind {
            1 => Some(Self::Hello { server: slot, epoch: generation }),
            2 => Some(Self::Want { slot, generation }),
            3 => Some(Self::Gone { slot, generation }),
            4 => Some(Self::Nobody),
            5 => Some(Self::Later { slot, generation }),
            6 => Some(Self::Idle { slot, generation }),
            7 => Some(Self::Kill { slot, generation }),
            8 => Some(Self::Look),
            9 => Some(Self::Listen { slot, generation, request }),
            10 => Some(Self::Unlisten { slot, listen: generation, request }),
            11 => Some(Self::TakeBack { slot, generation, request }),
            12 => Some(Self::Behind { slot, generation }),
            13 => Some(Self::Relay { source: slot, turn: generation }),
            14 => Some(Self::News),
            15 => Some(Self::Arm { slot, generation }),
            16 => Some(Self::Finish { slot, generation, sent: request }),
            _ => None,
        }
    }
}

/// The parameter of a startup packet by which a backend knows that it is pooled.
pub const PARAMETER: &str = "postern.agent";

/// Its value: the server connection's number and its token.
pub fn token_text(server: u32, token: [u64; 2]) -> String {
    format!("{server}:{:016x}{:016x}", token[0], token[1])
}

/// The number and the token of such a value.
pub fn read_token(text: &str) -> Option<(u32, [u64; 2])> {
    let (server, token) = text.split_once(':')?;
    let (high, low) = token.split_at_checked(16)?;
    let word = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
    Some((server.parse().ok()?, [word(high)?, word(low)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_tokens_are_read_back() {
        for word in [
            Word::Hello { server: 1, epoch: 2 },
            Word::Want { slot: 3, generation: 4 },
            Word::Gone { slot: 5, generation: u32::MAX },
            Word::Nobody,
            Word::Later { slot: 0, generation: 1 },
            Word::Idle { slot: 7, generation: 1 },
            Word::Kill { slot: 8, generation: 2 },
            Word::Look,
            Word::Listen { slot: 9, generation: 3, request: 4 },
            Word::Unlisten { slot: 9, listen: 3, request: 4 },
            Word::TakeBack { slot: 9, generation: 3, request: 4 },
            Word::Behind { slot: 9, generation: 3 },
            Word::Relay { source: 3, turn: 5 },
            Word::News,
            Word::Arm { slot: 9, generation: 3 },
            Word::Finish { slot: 9, generation: 3, sent: 70_000 },
        ] {
            assert_eq!(Word::from_bytes(&word.to_bytes()), Some(word));
        }
        assert_eq!(Word::from_bytes(&[0; RECORD]), None);
        assert_eq!(read_token(&token_text(7, [1, u64::MAX])), Some((7, [1, u64::MAX])));
        for wrong in ["", "7", "7:", "x:0", "7:00000000000000010000000000000001f", "7:ä"] {
            assert_eq!(read_token(wrong), None, "{wrong}");
        }
    }
}
