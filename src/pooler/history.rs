//! What has been counted of each database: of its pools of now and those that are gone, and how much of it a while ago, for averages.
//! Network threads.

use super::console::{Counters, StatsReport};
use super::front::Front;
use super::orders::Which;
use super::shared;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

/// PgBouncer's `stats_period`, by its default.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Counts by the database's name. A name stays for as long as the front runs.
type Counts = BTreeMap<Vec<u8>, Counters>;

#[derive(Debug)]
pub struct History(Mutex<Past>);

#[derive(Debug)]
struct Past {
    /// Of pools that are gone.
    gone: Counts,
    /// At the beginnings of the last period and of this one.
    last: (Instant, Counts),
    this: (Instant, Counts),
}

impl Default for History {
    fn default() -> Self {
        let start = (Instant::now(), Counts::new());
        Self(Mutex::new(Past { gone: Counts::new(), last: start.clone(), this: start }))
    }
}

/// A pool's counts. Bytes and times are not counted: both pass the front by. A query is counted with its transaction.
fn counters(pool: &shared::Pool) -> Counters {
    let transactions = pool.transactions.load(Relaxed);
    Counters {
        server_assignment_count: pool.assignments.load(Relaxed),
        xact_count: transactions,
        query_count: transactions,
        wait_time: pool.wait_micros.load(Relaxed),
        ..Counters::default()
    }
}

fn add(counts: &mut Counts, database: Vec<u8>, more: Counters) {
    let sum = counts.entry(database).or_default();
    sum.server_assignment_count += more.server_assignment_count;
    sum.xact_count += more.xact_count;
    sum.query_count += more.query_count;
    sum.wait_time += more.wait_time;
}

fn since(now: Counters, then: Counters) -> Counters {
    Counters {
        server_assignment_count: now.server_assignment_count.saturating_sub(then.server_assignment_count),
        xact_count: now.xact_count.saturating_sub(then.xact_count),
        query_count: now.query_count.saturating_sub(then.query_count),
        wait_time: now.wait_time.saturating_sub(then.wait_time),
        ..Counters::default()
    }
}

impl History {
    /// The counts of a pool that is about to go.
    pub fn keep(&self, pool: &shared::Pool) {
        add(&mut self.0.lock().gone, pool.database_name.bytes(), counters(pool));
    }

    fn totals(&self, pools: &'static [shared::Pool]) -> Counts {
        let mut totals = self.0.lock().gone.clone();
        for (_, pool) in Which::default().pools(pools) {
            add(&mut totals, pool.database_name.bytes(), counters(pool));
        }
        totals
    }

    /// One report a database that has or had a pool.
    pub fn report(&self, pools: &'static [shared::Pool]) -> Vec<StatsReport> {
        let totals = self.totals(pools);
        let past = self.0.lock();
        let (at, then) = &past.last;
        let report = |(name, total): (Vec<u8>, Counters)| StatsReport {
            recent: since(total, then.get(&name).copied().unwrap_or_default()),
            database: String::from_utf8_lossy(&name).into_owned(),
            total,
            period: at.elapsed(),
        };
        totals.into_iter().map(report).collect()
    }

    fn turn(&self, pools: &'static [shared::Pool]) {
        let totals = self.totals(pools);
        let mut past = self.0.lock();
        past.last = std::mem::replace(&mut past.this, (Instant::now(), totals));
    }
}

/// Turns the period over until the front ends.
pub async fn turn(front: &Arc<Front>) {
    let stop = front.bridge.stop();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => front.history.turn(front.shared.pools),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_outlive_their_pool_and_averages_are_of_two_periods() {
        let pools: &'static [shared::Pool] = Box::leak(Box::new([shared::Pool::default()]));
        let pool = &pools[0];
        pool.used.store(1, Relaxed);
        pool.database_name.set(b"app");
        pool.transactions.store(5, Relaxed);
        let history = History::default();
        let seen = |history: &History| {
            let report = history.report(pools);
            (report[0].total.xact_count, report[0].recent.xact_count)
        };
        assert_eq!(seen(&history), (5, 5));
        history.turn(pools);
        assert_eq!(seen(&history), (5, 5), "the period before has begun with nothing");
        history.turn(pools);
        assert_eq!(seen(&history), (5, 0));
        pool.transactions.store(7, Relaxed);
        assert_eq!(seen(&history), (7, 2));
        history.keep(pool);
        pool.used.store(0, Relaxed);
        pool.clear(0);
        assert_eq!(seen(&history), (7, 2));
        pool.used.store(1, Relaxed);
        pool.transactions.store(1, Relaxed);
        assert_eq!(seen(&history), (8, 3), "the next pool goes on");
    }
}
