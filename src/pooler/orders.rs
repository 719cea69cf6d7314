//! What may be asked of pools from outside the front, by their words in shared memory alone: a backend in which SQL runs, or the
//! front itself for its console. Takes effect by itself, each connection at its next idle moment.

use super::pools::{retire, wake};
use super::shared::{Order, Pool, Server, ServerState, Shared};
use std::sync::atomic::{Ordering::*, fence};

/// Which pools; `None` is every one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Which<'a> {
    pub database: Option<&'a [u8]>,
    pub role: Option<&'a [u8]>,
}

impl<'a> Which<'a> {
    fn is(self, pool: &Pool) -> bool {
        pool.used.load(Acquire) != 0
            && self.database.is_none_or(|name| pool.database_name.is(name))
            && self.role.is_none_or(|name| pool.role_name.is(name))
    }

    /// Those in use, with their numbers.
    pub fn pools(self, pools: &'static [Pool]) -> impl Iterator<Item = (u32, &'static Pool)> + 'a {
        pools.iter().zip(0..).filter(move |(pool, _)| self.is(pool)).map(|(pool, number)| (number, pool))
    }

    /// Their server connections, with their numbers; those too that are being opened.
    pub fn connections(self, shared: Shared) -> impl Iterator<Item = (u32, &'static Server)> + 'a {
        let its = move |server: &Server| {
            server.state() != ServerState::Free
                && shared.pools.get(server.pool.load(Acquire) as usize).is_some_and(|pool| self.is(pool))
        };
        shared
            .servers
            .iter()
            .zip(0..)
            .filter(move |(server, _)| its(server))
            .map(|(server, number)| (number, server))
    }
}

/// Nothing is ordered of another database while there are so many orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many databases are paused or disabled")]
pub struct TooMany;

/// No client of the pools gets a server connection until [`resume`], and those that are open are closed as they become free. Without
/// a role, pools that do not exist yet begin paused too. How many pools there are.
///
/// # Errors
/// [`TooMany`]; nothing is paused then.
pub fn pause(shared: &Shared, which: Which<'_>) -> Result<u32, TooMany> {
    let orders = &shared.header.orders;
    match which {
        Which { role: Some(_), .. } => {}
        Which { database: Some(name), .. } if !orders.give(name, Order::Pause) => return Err(TooMany),
        Which { database: Some(_), .. } => {}
        Which { database: None, .. } => orders.pause.store(true, SeqCst),
    }
    // A pool that is not found here finds the order.
    fence(SeqCst);
    let mut count = 0;
    for (_, pool) in which.pools(shared.pools) {
        pool.paused.store(true, SeqCst);
        count += 1;
    }
    retire_all(shared, which);
    Ok(count)
}

/// Ends every pause of the pools. Without a role, pools that do not exist yet begin as they are used to, and without a database too
/// those of the databases that were paused one by one. How many of the pools were paused. The front opens connections when it
/// looks again.
pub fn resume(shared: &Shared, which: Which<'_>) -> u32 {
    let orders = &shared.header.orders;
    match which {
        Which { role: Some(_), .. } => {}
        Which { database: Some(name), .. } => drop(orders.take_back(name, Order::Pause)),
        Which { database: None, .. } => {
            orders.pause.store(false, SeqCst);
            for name in orders.names() {
                orders.take_back(&name, Order::Pause);
            }
        }
    }
    set_going(shared, which, |_| true)
}

/// Takes back the pause of a database or that of all; neither touches the other, as PgBouncer has it. False when there was none.
pub fn take_back_pause(shared: &Shared, database: Option<&[u8]>) -> bool {
    let orders = &shared.header.orders;
    let was = match database {
        Some(name) => orders.take_back(name, Order::Pause),
        None => orders.pause.swap(false, SeqCst),
    };
    let goes = |pool: &Pool| !shared.is_paused(Some(&pool.database_name.bytes()));
    set_going(shared, Which { database, role: None }, goes) > 0 || was
}

/// How many of the pools were paused and are no longer.
fn set_going(shared: &Shared, which: Which<'_>, goes: impl Fn(&Pool) -> bool) -> u32 {
    let mut count = 0;
    for (number, pool) in which.pools(shared.pools) {
        let goes = goes(pool);
        if pool.paused.swap(!goes, SeqCst) && goes {
            count += 1;
            shared.connections(number).for_each(wake);
        }
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

/// As [`reconnect`], for one who asks again and again: a connection that is told already is not told anew.
pub fn retire_all(shared: &Shared, which: Which<'_>) {
    retire_those(shared, which, |server| !server.retire.load(Acquire));
}

fn retire_those(shared: &Shared, which: Which<'_>, those: impl Fn(&Server) -> bool) -> u32 {
    let mut count = 0;
    for (_, server) in which.connections(*shared).filter(|(_, server)| those(server)) {
        retire(server);
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::shared::Header;
    use super::*;

    /// Pools of the databases a, a and b.
    fn tables() -> Shared {
        let header: &'static Header = Box::leak(Box::default());
        let shared = Shared {
            header,
            pools: Box::leak((0..4).map(|_| Pool::default()).collect()),
            servers: Box::leak((0..4).map(|_| Server::default()).collect()),
            slots: &[],
        };
        for (number, names) in [(0, ("a", "x")), (1, ("a", "y")), (3, ("b", "x"))] {
            shared.pools[number].database_name.set(names.0.as_bytes());
            shared.pools[number].role_name.set(names.1.as_bytes());
            shared.pools[number].used.store(1, Relaxed);
        }
        for (server, pool) in shared.servers.iter().zip([0, 3, 3, 2]) {
            server.pool.store(pool, Relaxed);
            server.set_state(ServerState::Idle);
        }
        shared
    }

    fn of(database: &str) -> Which<'_> {
        Which { database: Some(database.as_bytes()), role: None }
    }

    fn paused(shared: &Shared) -> Vec<u32> {
        let pools = Which::default().pools(shared.pools);
        pools.filter(|(_, pool)| pool.paused.load(Relaxed)).map(|(number, _)| number).collect()
    }

    #[test]
    fn pools_and_connections_are_found_by_their_names() {
        let shared = tables();
        let pools =
            |which: Which<'_>| which.pools(shared.pools).map(|(number, _)| number).collect::<Vec<_>>();
        assert_eq!(pools(Which::default()), [0, 1, 3]);
        assert_eq!(pools(of("a")), [0, 1]);
        assert_eq!(pools(Which { role: Some(b"x"), ..Which::default() }), [0, 3]);
        assert!(pools(Which { role: Some(b"y"), ..of("b") }).is_empty());
        assert_eq!(of("b").connections(shared).map(|(number, _)| number).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(reconnect(&shared, of("b")), 2);
        assert_eq!(reconnect(&shared, Which::default()), 3, "one is of a pool that is gone");
    }

    #[test]
    fn a_resume_of_everything_ends_every_pause() {
        let shared = tables();
        assert_eq!((pause(&shared, of("b")), pause(&shared, of("elsewhere"))), (Ok(1), Ok(0)));
        assert_eq!(pause(&shared, Which::default()), Ok(3));
        assert!(shared.is_paused(None) && shared.is_paused(Some(b"elsewhere")));
        assert_eq!(resume(&shared, Which::default()), 3);
        assert!(!shared.is_paused(Some(b"elsewhere")) && !shared.is_paused(Some(b"b")));
        assert!(shared.header.orders.names().is_empty() && paused(&shared).is_empty());
        assert!(shared.header.orders.give(b"b", Order::Disable));
        resume(&shared, Which::default());
        assert!(shared.header.orders.has(b"b", Order::Disable), "another order stays");
    }

    #[test]
    fn the_consoles_resume_takes_back_one_order() {
        let shared = tables();
        assert!(!take_back_pause(&shared, None));
        assert_eq!((pause(&shared, of("b")), pause(&shared, Which::default())), (Ok(1), Ok(3)));
        assert!(take_back_pause(&shared, None));
        assert_eq!(paused(&shared), [3]);
        assert!(take_back_pause(&shared, Some(b"b")) && paused(&shared).is_empty());
        assert_eq!(pause(&shared, Which { role: Some(b"y"), ..Which::default() }), Ok(1));
        assert!(take_back_pause(&shared, Some(b"a")), "a pool by itself");
    }

    #[test]
    fn a_pause_for_which_there_is_no_place_is_refused_and_pauses_nothing() {
        let shared = tables();
        let orders = &shared.header.orders;
        assert!((0..).any(|number: u32| !orders.give(&number.to_be_bytes(), Order::Disable)));
        assert_eq!(pause(&shared, of("b")), Err(TooMany));
        assert!(paused(&shared).is_empty() && !shared.servers[1].retire.load(Relaxed));
    }
}
