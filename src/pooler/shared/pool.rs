//! One pool's words: how many backends wait for any client, and which may be called back. The front's and its backends'.

use super::POOL_SIZE_MAX;
use super::waiters::Waiters;
use crate::bridge::Name;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::*};

/// One pool: the server connections of one role to one database.
#[repr(C)]
pub struct Pool {
    /// 0 free, 1 in use.
    pub used: AtomicU32,
    pub database: AtomicU32,
    pub role: AtomicU32,
    pub database_name: Name,
    pub role_name: Name,
    /// Backends that wait for any client.
    pub waiters: Waiters,
    /// The front wants to hear when nobody waits any more.
    pub wants_news: AtomicU32,
    pub paused: AtomicBool,
    /// The front has seen ready clients with nobody waiting for them: no backend waits for its own client meanwhile.
    pub crowded: AtomicBool,
    /// `postern.pool_size` for it.
    pub size: AtomicU32,
    /// `postern.pool_mode` for it, plus 1; 0 before the first backend says it.
    pub mode: AtomicU32,
    /// Clients that are logged in, and server connections that are open.
    pub clients: AtomicU32,
    pub servers: AtomicU32,
    /// How many bits of `stayers` are set, and a bit for each member that waits for its own client and may be called back.
    pub stayer_count: AtomicI32,
    stayers: [AtomicU64; POOL_SIZE_MAX / 64],
    /// Numbers of servers, plus 1.
    pub members: [AtomicU32; POOL_SIZE_MAX],
    pub transactions: AtomicU64,
    /// Microseconds that clients have waited for a backend, as far as the front has seen.
    pub wait_micros: AtomicU64,
    pub assignments: AtomicU64,
    /// Assignments of another client than the backend had before.
    pub swaps: AtomicU64,
    /// Clients that the front's last look found waiting.
    pub waiting: AtomicU32,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            used: AtomicU32::new(0),
            database: AtomicU32::new(0),
            role: AtomicU32::new(0),
            database_name: Name::default(),
            role_name: Name::default(),
            waiters: Waiters::default(),
            wants_news: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            size: AtomicU32::new(0),
            mode: AtomicU32::new(0),
            clients: AtomicU32::new(0),
            servers: AtomicU32::new(0),
            stayer_count: AtomicI32::new(0),
            stayers: std::array::from_fn(|_| AtomicU64::new(0)),
            members: std::array::from_fn(|_| AtomicU32::new(0)),
            transactions: AtomicU64::new(0),
            wait_micros: AtomicU64::new(0),
            assignments: AtomicU64::new(0),
            swaps: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
        }
    }
}

impl Pool {
    /// The backend says that it waits for its own client and may be called back.
    pub fn stay(&self, member: u32) {
        let (word, bit) = (member as usize / 64, 1 << (member % 64));
        if let Some(word) = self.stayers.get(word)
            && word.fetch_or(bit, SeqCst) & bit == 0
        {
            self.stayer_count.fetch_add(1, SeqCst);
        }
    }

    /// The backend stays no longer; false when it was called back meanwhile.
    pub fn unstay(&self, member: u32) -> bool {
        let (word, bit) = (member as usize / 64, 1 << (member % 64));
        let was = self.stayers.get(word).is_some_and(|word| word.fetch_and(!bit, SeqCst) & bit != 0);
        if was {
            self.stayer_count.fetch_sub(1, SeqCst);
        }
        was
    }

    pub fn stays(&self, member: u32) -> bool {
        let word = self.stayers.get(member as usize / 64);
        word.is_some_and(|word| word.load(SeqCst) & (1 << (member % 64)) != 0)
    }

    /// Calls one staying backend back: the number of its server, whose latch is to be set.
    pub fn call_back(&self) -> Option<u32> {
        if self.stayer_count.load(SeqCst) <= 0 {
            return None;
        }
        for (index, word) in self.stayers.iter().enumerate() {
            loop {
                let bits = word.load(SeqCst);
                if bits == 0 {
                    break;
                }
                let member = index as u32 * 64 + bits.trailing_zeros();
                if self.unstay(member) {
                    let server = self.members.get(member as usize)?.load(Acquire);
                    return server.checked_sub(1);
                }
            }
        }
        None
    }

    /// Forgets what an earlier front and its backends left: from here on it is that epoch's.
    pub fn clear(&self, epoch: u32) {
        for word in &self.stayers {
            word.store(0, SeqCst);
        }
        for member in &self.members {
            member.store(0, Relaxed);
        }
        self.stayer_count.store(0, SeqCst);
        self.waiters.clear(epoch);
        self.paused.store(false, SeqCst);
        for word in [&self.wants_news, &self.mode, &self.clients, &self.servers, &self.waiting] {
            word.store(0, Relaxed);
        }
        // Another pool's may have been here.
        for count in [&self.transactions, &self.assignments, &self.swaps, &self.wait_micros] {
            count.store(0, Relaxed);
        }
        self.crowded.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staying_backend_is_called_back_once() {
        let pool = Pool::default();
        pool.members[65].store(9, Relaxed);
        pool.stay(65);
        pool.stay(65);
        assert_eq!(pool.stayer_count.load(SeqCst), 1);
        assert_eq!(pool.call_back(), Some(8));
        assert_eq!(pool.call_back(), None);
        assert!(!pool.unstay(65), "it finds that it was called");
    }
}
