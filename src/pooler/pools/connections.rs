//! A pool's connections to the server: how each is opened, what clients hear where none can be had, and what its end means. Network
//! threads.

use super::{Pool, idle_clients, retire};
use crate::bridge::Level;
use crate::pooler::control::{PARAMETER, token_text};
use crate::pooler::front::{Front, random_words};
use crate::pooler::opening::{self, Opening};
use crate::pooler::sabotage;
use crate::pooler::shared::{self, ServerState, now};
use crate::pooler::slot::State;
use crate::wire::message::Report;
use crate::wire::startup::Replication;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

/// After a failure that may pass at any moment, or while a pool has no connection, another one is tried so soon.
const SOON: Duration = Duration::from_millis(100);

/// For whom a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A client waits for it.
    Client,
    /// `postern.min_pool_size` wants it; no connection of another pool is worth less.
    Later,
}

pub(super) fn start_opening(front: &Arc<Front>, pool: &Arc<Pool>, whom: For) {
    *pool.opening.lock() = true;
    let (to_open, pool) = (Arc::clone(front), Arc::clone(pool));
    front.spawn(async move {
        let front = to_open;
        if let Err(error) = open_one(&front, &pool).await {
            refuse(&front, &pool, &error);
            if whom == For::Client && matches!(&error, opening::Error::Server(code, _) if code == "53300") {
                make_room(&front, &pool);
            }
            let soon = is_passing(&error) || pool.words.servers.load(Relaxed) == 0;
            let retry = if soon { SOON } else { front.bridge.settings().pooler.server_login_retry };
            *pool.failed.lock() = Some((Instant::now() + retry, error));
            let pool = Arc::clone(&pool);
            front.spawn(async move {
                tokio::time::sleep(retry).await;
                pool.news.notify_one();
            });
        } else {
            *pool.failed.lock() = None;
        }
        *pool.opening.lock() = false;
        pool.news.notify_one();
    });
}

/// The server, or a limit of the role or the database, has no place for another connection: the idle one of another pool that has
/// been open longest gives its own, of the same role or database if there is one.
fn make_room(front: &Front, pool: &Pool) {
    let words = pool.words;
    let mut idle: Vec<_> =
        front.shared.servers.iter().filter(|server| server.state() == ServerState::Idle).collect();
    idle.retain(|server| server.pool.load(Acquire) != pool.number && !server.retire.load(Relaxed));
    let others = |server: &&shared::Server| {
        let related = front.shared.pools.get(server.pool.load(Acquire) as usize).is_some_and(|other| {
            other.role.load(Relaxed) == words.role.load(Relaxed)
                || other.database.load(Relaxed) == words.database.load(Relaxed)
        });
        (!related, server.opened_at.load(Relaxed))
    };
    if let Some(server) = idle.into_iter().min_by_key(others) {
        retire(server);
    }
}

/// The server is full, or is starting or stopping, somebody has ended the backend amid its login, or wrote over the connection's words: that
/// may pass at any moment.
fn is_passing(error: &opening::Error) -> bool {
    match error {
        opening::Error::Server(code, _) => matches!(&code[..], "53300" | "57P01" | "57P03"),
        opening::Error::Closed | opening::Error::Unclaimed => true,
        _ => false,
    }
}

/// A failure that waiting does not mend is told to those who wait and have no backend to hope for.
fn refuse(front: &Arc<Front>, pool: &Arc<Pool>, error: &opening::Error) {
    let new = pool.failed.lock().as_ref().is_none_or(|(_, before)| before != error);
    if new {
        front
            .bridge
            .log(Level::Warning, format!("no server connection for database {}: {error}", pool.title()));
    }
    if is_passing(error) || pool.words.servers.load(Relaxed) > 0 {
        return;
    }
    let report = match error {
        opening::Error::Server(code, text) => Report::fatal(code, text.clone()),
        opening::Error::NoWay { hint, .. } => {
            Report::fatal("08006", error.to_string()).with_hint(hint.clone())
        }
        _ => Report::fatal("08006", error.to_string()),
    };
    for (number, generation) in idle_clients(front, pool) {
        // One that has been welcomed and wants nothing does not wait, though it has not had a transaction.
        if front.shared.slots[number as usize].is_fresh() || front.seats.is_ready(number, generation) {
            front.end_idle(number, generation, &report);
        }
    }
}

async fn open_one(front: &Arc<Front>, pool: &Arc<Pool>) -> Result<(), opening::Error> {
    let full = || opening::Error::Server("53300".to_owned(), "sorry, too many clients already".to_owned());
    let servers = front.shared.servers;
    let member = pool.words.members.iter().position(|member| member.load(Acquire) == 0).ok_or_else(full)?;
    let claim = |server: &&shared::Server| {
        let (free, opening) = (ServerState::Free as u32, ServerState::Opening as u32);
        server.state.compare_exchange(free, opening, AcqRel, Acquire).is_ok()
    };
    let number = servers.iter().position(|server| claim(&server)).ok_or_else(full)?;
    let server = &servers[number];
    let token = random_words().ok_or(opening::Error::Protocol)?;
    server.pid.store(0, Relaxed);
    server.slot.store(0, Relaxed);
    server.retire.store(false, Relaxed);
    server.ending.store(0, Relaxed);
    server.status.store(0, Relaxed);
    server.transactions.store(0, Relaxed);
    server.swaps.store(0, Relaxed);
    server.pool.store(pool.number, Relaxed);
    server.member.store(member as u32, Relaxed);
    server.opened_at.store(now(), Relaxed);
    server.since.store(now(), Relaxed);
    server.expect(token);
    sabotage::spoil(server);
    pool.words.members[member].store(number as u32 + 1, Release);
    pool.words.servers.fetch_add(1, Relaxed);
    let settings = front.bridge.settings();
    let credential = pool.credential.lock().clone();
    let (role, name) = pool.names.lock().clone();
    let token = token_text(number as u32, token);
    let opening = Opening {
        role: &role,
        database: &name,
        credential: credential.as_ref(),
        parameters: &[(PARAMETER.as_bytes(), token.as_bytes())],
        replication: Replication::No,
        only_let_in: false,
        door: &settings.pooler.door,
        system_user: &front.system_user,
        limit: settings.pooler.server_connect_timeout,
    };
    match opening::open(&opening, &front.questions).await {
        // Its backend serves it as any client's: it would never come to the pool, which would wait for it.
        Ok(_) if !server.is_claimed() => {
            release(pool, server, member);
            Err(opening::Error::Unclaimed)
        }
        Ok(line) => {
            let (to_end, pool) = (Arc::clone(front), Arc::clone(pool));
            front.spawn(async move {
                hear_the_end(line).await;
                server_ended(&to_end, &pool, number as u32);
            });
            Ok(())
        }
        Err(error) => {
            release(pool, server, member);
            Err(error)
        }
    }
}

/// The backend itself says nothing on this connection any more; its end is its end.
async fn hear_the_end(mut line: opening::Line) {
    let mut bytes = [0; 512];
    while !matches!(line.read(&mut bytes).await, Ok(0) | Err(_)) {}
}

fn release(pool: &Pool, server: &shared::Server, member: usize) {
    server.expect([0, 0]);
    pool.words.unstay(member as u32);
    pool.words.members[member].store(0, Release);
    pool.words.servers.fetch_sub(1, Relaxed);
    server.pid.store(0, Relaxed);
    server.set_state(ServerState::Free);
}

/// A backend has ended: its client, if it had one, has ended with it.
fn server_ended(front: &Arc<Front>, pool: &Arc<Pool>, number: u32) {
    let server = &front.shared.servers[number as usize];
    for (client, slot) in front.shared.slots_in_use() {
        loop {
            let seen = slot.word.seen();
            let its = matches!(seen.state(), State::Attached | State::Cancelling) && seen.server() == number;
            if !its {
                break;
            }
            if slot.word.bury(seen.generation(), number) {
                front.end_client(client, seen.generation());
                break;
            }
            // A cancel is under way on another thread: a matter of microseconds.
            std::thread::yield_now();
        }
    }
    release(pool, server, server.member.load(Acquire) as usize);
    pool.news.notify_one();
}
