//! The life of a pool: who is to be looked at, and when another connection is opened. Network threads.

use super::connections::{For, start_opening};
use super::time::look_at_time;
use super::{Pool, idle_clients, least_of, retire_all, wake};
use crate::login::{Question, Standing, Unanswered};
use crate::pooler::front::Front;
use crate::pooler::limits;
use crate::pooler::shared::{self, ServerState};
use crate::wire::message::Report;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a ready client waits for a busy backend to come free before another connection is opened.
const PATIENCE: Duration = Duration::from_micros(500);

/// Backends that are called back twice within this time are too few.
const OFTEN: Duration = Duration::from_millis(100);

/// How long backends take turns before the front looks whether they still need to.
const TURN: Duration = Duration::from_millis(5);

/// How often a pool looks for what time does: who has waited too long, which connection nobody needs.
const TICK: Duration = Duration::from_secs(1);

/// The life of a pool.
pub(super) async fn keep(front: Arc<Front>, pool: Arc<Pool>) {
    let Ok(queue) = rustix::io::fcntl_dupfd_cloexec(&*pool.epoll, 0) else { return };
    // Deprecated because a type might change its descriptor; `OwnedFd` keeps one for life.
    #[allow(deprecated)]
    let Ok(queue) = AsyncFd::with_interest(queue, Interest::READABLE) else { return };
    let stop = front.bridge.stop();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticked_at = Instant::now();
    let mut empty_since: Option<Instant> = None;
    let mut called_at: Option<Instant> = None;
    loop {
        let words = pool.words;
        // Before anybody has to wait. After a failure only once a second, because nobody waits for it.
        if words.servers.load(Relaxed) < least_of(&front, words)
            && !*pool.opening.lock()
            && pool.failed.lock().is_none()
        {
            start_opening(&front, &pool, For::Later);
        }
        let may_grow = words.servers.load(Relaxed) < words.size.load(Relaxed) && !words.paused.load(Relaxed);
        let may_open = may_grow && pool.may_open() && !has_newcomer(&front, words);
        let mut watch = false;
        if may_grow {
            // First the wish to hear, then the look: who stops waiting in between says so.
            words.wants_news.store(1, SeqCst);
            watch = words.waiters.count() <= 0;
        }
        let crowded = watch && pool.has_ready_clients();
        words.crowded.store(crowded, Relaxed);
        if crowded {
            // A backend that waits for its own client may serve this one as well; when that is wanted again and again, there
            // are too few.
            let called = words.call_back().and_then(|server| front.shared.servers.get(server as usize));
            if let Some(server) = called {
                wake(server);
            }
            let often = called_at.is_some_and(|at| at.elapsed() < OFTEN);
            called_at = called.map(|_| Instant::now()).or(called_at);
            tokio::time::sleep(PATIENCE).await;
            let still = words.waiters.count() <= 0 && pool.has_ready_clients();
            if may_open && (still && called.is_none() || often) {
                start_opening(&front, &pool, For::Client);
            } else if !may_open {
                // No more can be had at the moment; the backends that there are take turns.
                tokio::time::sleep(TURN).await;
            }
            // It may be so for as long as no connection can be opened, and what time does is not to wait for that.
            if ticked_at.elapsed() < TICK {
                continue;
            }
        }
        tokio::select! {
            // There is always something to be read when the pool is crowded.
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                ticked_at = Instant::now();
                look_at_time(&front, &pool);
                let used = words.clients.load(Relaxed) > 0 || words.servers.load(Relaxed) > 0;
                if used && !pool.asking.swap(true, Relaxed) {
                    front.spawn(look_at_standing(Arc::clone(&front), Arc::clone(&pool)));
                }
                limits::look_at_parts(&front, &pool);
                if limits::concern(&front, &pool) && !pool.watching.swap(true, Relaxed) {
                    front.spawn(limits::look_at_backends(Arc::clone(&front), Arc::clone(&pool)));
                }
                // A paused pool is kept, or it would be forgotten that it is.
                let empty = words.clients.load(Relaxed) == 0
                    && words.servers.load(Relaxed) == 0
                    && !words.paused.load(Relaxed);
                let opening = *pool.opening.lock();
                empty_since = (empty && !opening).then(|| empty_since.unwrap_or_else(Instant::now));
                if empty_since.is_some_and(|since| since.elapsed() > 10 * TICK) {
                    front.history.keep(words);
                    front.pools.drop_pool(&pool);
                    return;
                }
            }
            () = pool.news.notified() => {}
            ready = queue.readable(), if watch => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
        }
    }
}

/// The catalogs say whom the pool is for: one that is gone, or that may not log in any more, has its connections ended, and what is
/// renamed has them opened anew.
async fn look_at_standing(front: Arc<Front>, pool: Arc<Pool>) {
    let (role, database) = (pool.words.role.load(Relaxed), pool.words.database.load(Relaxed));
    let standing = front.questions.ask(|reply| Question::Standing { role, database, reply }).await;
    pool.asking.store(false, Relaxed);
    match standing {
        Err(Unanswered) => {}
        Ok(Standing::There { role, database, can_login }) => {
            pool.rename(&front, (&role, &database));
            if !can_login {
                retire_all(&front, &pool);
            }
        }
        Ok(Standing::RoleGone) => end_all(&front, &pool, "The role of the session has been dropped."),
        Ok(Standing::DatabaseGone) => end_all(&front, &pool, "The database of the session has been dropped."),
    }
}

/// Ends a pool for good: its clients as far as they are idle, its connections when they are.
fn end_all(front: &Arc<Front>, pool: &Pool, why: &str) {
    retire_all(front, pool);
    let report =
        Report::fatal("57P01", "terminating connection due to administrator command").with_detail(why);
    for (number, generation) in idle_clients(front, pool) {
        front.end_idle(number, generation, &report);
    }
}

/// Whether a connection has been opened whose backend has not come to its first wait: it is about to take who is ready.
fn has_newcomer(front: &Front, words: &shared::Pool) -> bool {
    words.members.iter().filter_map(|member| member.load(Acquire).checked_sub(1)).any(|number| {
        front.shared.servers.get(number as usize).is_some_and(|server| server.state() == ServerState::Opening)
    })
}
