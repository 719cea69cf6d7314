//! What time does to a pool, looked at once a second: who has waited too long, which connections nobody needs. Network threads.

use super::connections::{For, start_opening};
use super::{Pool, least_of, retire};
use crate::bridge::Level;
use crate::pooler::front::Front;
use crate::pooler::limits;
use crate::pooler::shared::{self, POOL_SIZE_MAX, ServerState, now};
use crate::pooler::slot::State;
use crate::wire::message::Report;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

/// Once a second.
pub(super) fn look_at_time(front: &Arc<Front>, pool: &Arc<Pool>) {
    let settings = front.bridge.settings();
    let words = pool.words;
    let now = now();
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    // Waiting clients.
    let queue = words.waiters.count() <= 0 && pool.has_ready_clients();
    let (mut waiting, mut first) = (0, 0);
    if queue || words.waiting.load(Relaxed) > 0 {
        for (client, slot) in front.shared.slots_in_use() {
            let seen = slot.word.seen();
            if seen.state() != State::Idle || u32::from(slot.pool.load(Relaxed)) != pool.number {
                continue;
            }
            let generation = seen.generation();
            let part = limits::sends_a_part(front, client, generation);
            if queue && front.seats.has_gone(client, generation) {
                // No backend comes to see it. Nobody hears this.
                front.end_idle(client, generation, &Report::fatal("08006", "connection to client lost"));
            } else if queue && !part && (slot.is_fresh() || front.seats.is_ready(client, generation)) {
                front.tell_waiting(client, generation);
                let Some(since) = slot.waiting_since.mark(&slot.word, seen, now) else { continue };
                waiting += 1;
                first = if first == 0 { since } else { since.min(first) };
                let limit = settings.pooler.query_wait_timeout.map(micros);
                if limit.is_some_and(|limit| now - since >= limit) {
                    let report = Report::fatal("08P01", "query_wait_timeout")
                        .with_detail(format!(
                            "No server connection for database {} came free in time.",
                            pool.title()
                        ))
                        .with_hint("Raise postern.pool_size or postern.query_wait_timeout.");
                    front.end_idle(client, generation, &report);
                }
            } else {
                slot.waiting_since.clear();
            }
        }
    }
    words.waiting.store(waiting, Relaxed);
    let open = words.servers.load(Relaxed);
    if open < least_of(front, words) && pool.may_open() {
        start_opening(front, pool, For::Later);
    }
    let reserve = words.size.load(Relaxed)..words.size.load(Relaxed) + settings.pooler.reserve_pool_size;
    if waiting > 0
        && settings.pooler.reserve_pool_timeout.is_some_and(|limit| now - first >= micros(limit))
        && reserve.contains(&open)
        && (open as usize) < POOL_SIZE_MAX
        && !words.paused.load(Relaxed)
        && pool.may_open()
    {
        front.bridge.log(
            Level::Warning,
            format!("taking a connection from postern.reserve_pool_size for database {}", pool.title()),
        );
        start_opening(front, pool, For::Client);
    }
    // Connections that nobody has used for a while, and old ones, busy or not: one at a time, so that a pool is not emptied at once.
    let mut renewed = false;
    let retiring = |server: &&shared::Server| server.retire.load(Relaxed);
    let mut spare = i64::from(open) - front.shared.connections(pool.number).filter(retiring).count() as i64;
    spare -= i64::from(settings.pooler.min_pool_size.min(words.size.load(Relaxed)));
    for member in &words.members {
        let Some(number) = member.load(Acquire).checked_sub(1) else { continue };
        let Some(server) = front.shared.servers.get(number as usize) else { continue };
        let done = server.transactions.load(Relaxed);
        let serves = server.state() == ServerState::Serving;
        if server.seen_transactions.swap(done, Relaxed) != done && !serves {
            server.since.store(now, Relaxed);
        }
        let idle = server.state() == ServerState::Idle;
        // A server that waits for its sessions' end opens no more of them, and need not wait for ours.
        if front.stopping.load(Relaxed) {
            if words.clients.load(Relaxed) == 0 && !server.retire.load(Relaxed) {
                retire(server);
            }
            continue;
        }
        let unused = settings
            .pooler
            .server_idle_timeout
            .is_some_and(|limit| now - server.since.load(Relaxed) >= micros(limit));
        let old = settings
            .pooler
            .server_lifetime
            .is_some_and(|limit| now - server.opened_at.load(Relaxed) >= micros(limit));
        // One that was being opened when the pool was paused.
        let paused = words.paused.load(Relaxed);
        let renews = old && !renewed && server.state() != ServerState::Opening;
        if ((idle && (unused && spare > 0 || paused)) || renews) && !server.retire.load(Relaxed) {
            renewed |= old;
            spare -= 1;
            retire(server);
        }
    }
}
