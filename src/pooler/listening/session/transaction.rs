//! A session's transactions: LISTEN and UNLISTEN take effect when one commits, all together or not at all, and the relay has to agree.
//! Pure; network threads.

use super::{CHANNELS_MAX, Session};
use crate::pooler::listening::Error;
use crate::wire::message::{Report, command_complete, error_response};

/// What a transaction that commits changes: in force all together, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Channels that the client has not listened to, and such that it has.
    pub listen: Vec<Vec<u8>>,
    pub unlisten: Vec<Vec<u8>>,
    /// It listens to nothing afterwards.
    pub is_all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    None,
    Open,
    Failed,
}

/// What follows a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// CommandComplete with this tag, and what comes next.
    Complete(&'static str),
    /// ReadyForQuery.
    Ready,
}

impl Session {
    pub(super) fn commit_unless_block(&mut self, then: Then) {
        if self.block == Block::None { self.commit(then) } else { self.follow(then) }
    }

    /// What the transaction has named comes into force; the relay may have to be asked.
    pub(super) fn commit(&mut self, then: Then) {
        let named = std::mem::take(&mut self.named);
        let all_left = std::mem::take(&mut self.all_left);
        if named.is_empty() && !all_left {
            return self.committed(then);
        }
        // Whoever listens to much pays for what it names, not for all that it has.
        let unlisten: Vec<_> = if all_left {
            self.channels.iter().filter(|name| named.get(*name) != Some(&true)).cloned().collect()
        } else {
            let left = named.iter().filter(|(name, wanted)| !**wanted && self.channels.contains(*name));
            left.map(|(name, _)| name.clone()).collect()
        };
        let new = named.into_iter().filter(|(name, wanted)| *wanted && !self.channels.contains(name));
        let listen: Vec<_> = new.map(|(name, _)| name).collect();
        if listen.is_empty() && unlisten.is_empty() {
            return self.committed(then);
        }
        if self.channels.len() + listen.len() > CHANNELS_MAX + unlisten.len() {
            return self.not_committed(then, &Error::TooManyChannels.report());
        }
        let is_all = listen.is_empty() && unlisten.len() == self.channels.len();
        self.waiting = Some((Change { listen, unlisten, is_all }, then));
    }

    fn committed(&mut self, then: Then) {
        self.before = None;
        self.block = Block::None;
        self.follow(then);
    }

    fn not_committed(&mut self, then: Then, report: &Report) {
        self.block = Block::None;
        if self.query.is_some() {
            return self.fail_query_with(report);
        }
        error_response(&mut self.out, report);
        self.abort();
        match then {
            Then::Complete(_) => self.skipping = true,
            Then::Ready => self.ready(),
        }
    }

    fn follow(&mut self, then: Then) {
        match then {
            Then::Complete(tag) => command_complete(&mut self.out, tag),
            Then::Ready => self.ready(),
        }
    }

    /// What came of a [`Step::Change`]: in force, or an error and nothing of it is.
    pub fn changed(&mut self, result: Result<(), Report>) {
        if !std::mem::take(&mut self.asked) {
            return;
        }
        let Some((change, then)) = self.waiting.take() else { return };
        match result {
            Ok(()) => {
                for name in &change.unlisten {
                    self.channels.remove(name);
                }
                self.channels.extend(change.listen);
                self.committed(then);
            }
            Err(report) => self.not_committed(then, &report),
        }
    }

    /// Nothing of the transaction comes to pass.
    pub(super) fn abort(&mut self) {
        self.named.clear();
        self.all_left = false;
        if let Some(before) = self.before.take() {
            self.settings = before;
        }
        self.block = match self.block {
            Block::None => Block::None,
            Block::Open | Block::Failed => Block::Failed,
        };
    }

    pub(super) fn name_channel(&mut self, name: Vec<u8>, wanted: bool) -> Result<(), Error> {
        if self.named.len() >= CHANNELS_MAX && !self.named.contains_key(&name) {
            return Err(Error::TooManyChannels);
        }
        self.named.insert(name, wanted);
        Ok(())
    }

    pub(super) fn leave_all(&mut self) {
        self.named.clear();
        self.all_left = true;
    }
}
