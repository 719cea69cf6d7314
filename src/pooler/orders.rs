//! What may be asked of pools from outside the front, by their words in shared memory alone: a backend in which SQL runs, or the
//! front itself for its console. Takes effect by itself, each connection at its next idle moment.

use super::glance::is_asked;
use super::pools::{retire, wake};
use super::shared::{Pool, Server, ServerState, Shared};
use std::sync::atomic::Ordering::*;

/// Which pools; `None` is every one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Which<'a> {
    pub database: Option<&'a [u8]>,
    pub role: Option<&'a [u8]>,
}

impl Which<'_> {
    fn pools<'a>(&'a self, shared: &Shared) -> impl Iterator<Item = (u32, &'static Pool)> + 'a {
        let fits = |pool: &Pool| {
            pool.used.load(Acquire) != 0
                && is_asked(&pool.database_name, self.database)
                && is_asked(&pool.role_name, self.role)
        };
        shared.pools.iter().enumerate().filter(move |(_, pool)| fits(pool)).map(|(n, pool)| (n as u32, pool))
    }
}

/// No client of the pools gets a server connection until [`resume`], and those that are open are closed as they become free. Without
/// a role, pools that do not exist yet begin paused too. How many pools there are.
pub fn pause(shared: &Shared, which: Which<'_>) -> u32 {
    let mut count = 0;
    if which.role.is_none() {
        // For the pools to come as well, as the console's PAUSE.
        shared.pause(which.database);
    }
    for (number, pool) in which.pools(shared) {
        pool.paused.store(true, SeqCst);
        shared.connections(number).for_each(retire);
        count += 1;
    }
    count
}

/// How many of the pools were paused. The front opens connections when it looks again.
pub fn resume(shared: &Shared, which: Which<'_>) -> u32 {
    let mut count = 0;
    let paused: Vec<_> = which.pools(shared).filter(|(_, pool)| pool.paused.load(SeqCst)).collect();
    if which.role.is_none() {
        shared.resume(which.database);
    }
    for (number, pool) in paused {
        pool.paused.store(false, SeqCst);
        count += 1;
        shared.connections(number).for_each(wake);
    }
    count
}

/// Every server connection of now is closed once it is free. How many.
pub fn reconnect(shared: &Shared, which: Which<'_>) -> u32 {
    retire_those(shared, which, |_| true)
}

/// Server connections that no client has are closed. How many.
pub fn disconnect_idle(shared: &Shared, which: Which<'_>) -> u32 {
    retire_those(shared, which, |server| server.state() == ServerState::Idle)
}

fn retire_those(shared: &Shared, which: Which<'_>, those: impl Fn(&Server) -> bool) -> u32 {
    let mut count = 0;
    for (number, _) in which.pools(shared) {
        for server in shared.connections(number).filter(|server| those(server)) {
            retire(server);
            count += 1;
        }
    }
    count
}
