//! What a standby cannot know by itself, it asks its primary, through `primary_conninfo` and only when a check
//! needs it. One task on a network thread; the asking itself blocks and runs on a blocking thread.
//!
//! The answer is kept for a second, so any number of checks cost the primary one short query a second at most;
//! the connection is closed when nobody has asked for a while. What went wrong is told to the network in our own fixed
//! words, because the library's may quote the connection string; its words go to the server log, said once a change.

use super::facts::Facts;
use crate::bridge::Lsn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How old an answer may be that a check uses.
const FRESH: Duration = Duration::from_secs(1);

/// How long a check waits for the primary. haproxy gives an agent check its check interval, 2 s by default.
const PATIENCE: Duration = Duration::from_millis(800);

/// How long a check waits for a primary that did not answer the last one in time.
const HANGING_PATIENCE: Duration = Duration::from_millis(20);

/// How old an answer may be that is used when the primary does not answer in time.
const STALE: Duration = Duration::from_secs(5);

/// After this long without a question the connection is closed.
const IDLE: Duration = Duration::from_secs(30);

/// What the primary (or, in a cascade, the standby above) says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamFacts {
    pub system_identifier: u64,
    pub timeline: u32,
    /// How far it has written.
    pub position: Lsn,
    pub in_recovery: bool,
    /// How it replicates to this standby, or why it would not say.
    pub sync: Result<SyncState, SyncUnknown>,
}

impl UpstreamFacts {
    /// Its position, where it speaks for the history that this server follows: with several hosts in `primary_conninfo`
    /// a question may reach another server than the WAL receiver does.
    pub fn position_for(&self, facts: &Facts) -> Option<Lsn> {
        let ours = self.system_identifier == facts.system_identifier && self.timeline >= facts.timeline;
        ours.then_some(self.position)
    }
}

/// What a primary said when it was asked.
pub type Said = Result<UpstreamFacts, AskError>;

/// Why it could not be asked, in words that anybody may read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("primary_conninfo is not set")]
    NotSet,
    #[error("primary_conninfo is not valid")]
    NotValid,
    #[error("its primary cannot be reached")]
    Unreachable,
    #[error("its primary refuses the login; the server log has its words")]
    Refused,
    #[error("its primary takes no connection now; the server log has its words")]
    NotNow,
    #[error("its primary does not answer in time")]
    TooLate,
    #[error("its primary gave no usable answer; the server log has more")]
    Unusable,
}

/// Why a primary that could be asked does not tell how it replicates to us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncUnknown {
    #[error(
        "it lets the role of primary_conninfo only replicate; pg_hba.conf there must let it into a database too"
    )]
    OnlyReplication,
    #[error("the role of primary_conninfo needs pg_monitor there")]
    Hidden,
    #[error("it does not show this standby in pg_stat_replication")]
    NotShown,
    #[error(
        "several standbys of this name come from this address; set primary_slot_name or application_name"
    )]
    Several,
}

/// `pg_stat_replication.sync_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncState {
    Async,
    Potential,
    Sync,
    Quorum,
}

impl SyncState {
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "async" => Self::Async,
            "potential" => Self::Potential,
            "sync" => Self::Sync,
            "quorum" => Self::Quorum,
            _ => return None,
        })
    }

    /// Whether a commit on the primary may be waiting for this standby.
    pub fn is_synchronous(self) -> bool {
        matches!(self, Self::Sync | Self::Quorum)
    }
}

/// Whom to ask, and who we are to it.
#[derive(Clone, PartialEq, Eq)]
pub struct AskFor {
    /// `primary_conninfo`.
    pub conninfo: String,
    /// `cluster_name`, which a WAL receiver uses as its application name when it has no other.
    pub cluster_name: String,
    /// The replication slot of our WAL receiver, or empty.
    pub slot: String,
    /// Our WAL receiver has its place at the primary; one that has not must never find it taken by a question.
    pub streaming: bool,
}

/// Asks over a connection that it keeps. Blocks, on a thread of its own, but ends soon after `stop`.
pub trait Ask: Send + 'static {
    /// # Errors
    /// Why it could not; [`Ask::words`] may have more.
    fn ask(&mut self, question: &AskFor, stop: &CancellationToken) -> Said;

    /// The library's or the primary's own words for the last trouble, for the server log only.
    fn words(&mut self) -> Option<String>;

    /// Closes the connection.
    fn close(&mut self);
}

/// An answer and when it came.
#[derive(Clone)]
struct Answered {
    at: Instant,
    question: AskFor,
    said: Said,
}

/// The checks' side.
#[derive(Clone)]
pub struct Upstream {
    answer: watch::Receiver<Option<Answered>>,
    question: watch::Sender<Option<AskFor>>,
    wanted: Arc<Notify>,
    /// A check has waited in vain; until the primary answers again, no other waits as long.
    hangs: Arc<AtomicBool>,
}

impl Upstream {
    /// Makes the checks' side and the task that asks; the task runs until `stop`. `log` gets what the operator, and
    /// nobody else, should read.
    pub fn new(
        asker: Box<dyn Ask>,
        stop: CancellationToken,
        log: impl Fn(String) + Send,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (answers, answer) = watch::channel(None);
        let question = watch::Sender::new(None);
        let wanted = Arc::new(Notify::new());
        let hangs = Arc::new(AtomicBool::new(false));
        let inbox =
            Inbox { question: question.subscribe(), wanted: Arc::clone(&wanted), hangs: Arc::clone(&hangs) };
        let task = run(asker, inbox, answers, stop, log);
        (Self { answer, question, wanted, hangs }, task)
    }

    /// What the primary says: at most a second old when it answers, at most five when it hangs.
    ///
    /// # Errors
    /// Why it could not be asked.
    pub async fn ask(&self, question: AskFor) -> Said {
        let mut answer = self.answer.clone();
        let asked = Instant::now();
        let usable = |given: &Option<Answered>, age: Duration| {
            given.as_ref().filter(|a| a.question == question && a.at + age >= asked).map(|a| a.said.clone())
        };
        if let Some(said) = usable(&answer.borrow(), FRESH) {
            return said;
        }
        self.question.send_replace(Some(question.clone()));
        self.wanted.notify_one();
        let patience = if self.hangs.load(Relaxed) { HANGING_PATIENCE } else { PATIENCE };
        let in_time = answer.wait_for(|given| usable(given, Duration::ZERO).is_some());
        if tokio::time::timeout(patience, in_time).await.is_err() {
            self.hangs.store(true, Relaxed);
        }
        usable(&answer.borrow(), STALE).unwrap_or(Err(AskError::TooLate))
    }
}

/// The task's side.
struct Inbox {
    question: watch::Receiver<Option<AskFor>>,
    wanted: Arc<Notify>,
    hangs: Arc<AtomicBool>,
}

async fn run(
    mut asker: Box<dyn Ask>,
    inbox: Inbox,
    answers: watch::Sender<Option<Answered>>,
    stop: CancellationToken,
    log: impl Fn(String) + Send,
) {
    let mut connected = false;
    let mut logged = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(IDLE), if connected => {
                asker.close();
                connected = false;
                continue;
            }
            () = inbox.wanted.notified() => {}
        }
        let Some(question) = inbox.question.borrow().clone() else { continue };
        // Checks that came while it was being answered have their answer.
        if answers.borrow().as_ref().is_some_and(|a| a.question == question && a.at.elapsed() < FRESH / 2) {
            continue;
        }
        let asking = {
            let (question, stop) = (question.clone(), stop.clone());
            tokio::task::spawn_blocking(move || {
                let said = asker.ask(&question, &stop);
                (asker, said)
            })
        };
        // A panic in there ends this thread too, and with it the worker, as any panic does.
        let (back, said) = match asking.await {
            Ok(done) => done,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => return,
        };
        asker = back;
        connected = true;
        let words = asker.words();
        if words != logged {
            if let Some(words) = &words {
                log(format!("asking the primary: {words}"));
            }
            logged = words;
        }
        inbox.hangs.store(said == Err(AskError::TooLate), Relaxed);
        answers.send_replace(Some(Answered { at: Instant::now(), question, said }));
    }
}

#[cfg(test)]
mod tests {
    use super::super::health::tests::upstream;
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Fake {
        asked: Arc<AtomicU32>,
        hangs: bool,
        takes: Duration,
    }

    impl Ask for Fake {
        fn ask(&mut self, _: &AskFor, stop: &CancellationToken) -> Said {
            self.asked.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(self.takes);
            while self.hangs && !stop.is_cancelled() {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(upstream())
        }

        fn words(&mut self) -> Option<String> {
            None
        }

        fn close(&mut self) {}
    }

    fn question() -> AskFor {
        AskFor {
            conninfo: "host=a".into(),
            cluster_name: String::new(),
            slot: String::new(),
            streaming: true,
        }
    }

    #[tokio::test]
    async fn a_hundred_checks_ask_once() {
        let asked = Arc::new(AtomicU32::new(0));
        let stop = CancellationToken::new();
        let (upstream, task) = Upstream::new(
            Box::new(Fake { asked: Arc::clone(&asked), hangs: false, takes: Duration::ZERO }),
            stop.clone(),
            |_| (),
        );
        let task = tokio::spawn(task);
        for _ in 0..100 {
            assert_eq!(upstream.ask(question()).await.unwrap().timeline, 1);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_primary_that_hangs_delays_a_check_by_a_bounded_time() {
        let stop = CancellationToken::new();
        let (upstream, task) = Upstream::new(
            Box::new(Fake { asked: Arc::default(), hangs: true, takes: Duration::ZERO }),
            stop.clone(),
            |_| (),
        );
        let task = tokio::spawn(task);
        let before = Instant::now();
        assert_eq!(upstream.ask(question()).await, Err(AskError::TooLate));
        assert!(before.elapsed() < PATIENCE * 10, "{:?}", before.elapsed());
        let before = Instant::now();
        for _ in 0..5 {
            assert_eq!(upstream.ask(question()).await, Err(AskError::TooLate));
        }
        assert!(before.elapsed() < PATIENCE * 3, "the next ones wait less: {:?}", before.elapsed());
        stop.cancel();
        task.await.unwrap();
    }
    #[tokio::test]
    async fn a_primary_that_was_slow_once_is_waited_for_again() {
        let stop = CancellationToken::new();
        let slow = Fake { asked: Arc::default(), hangs: false, takes: Duration::from_millis(100) };
        let (upstream, task) = Upstream::new(Box::new(slow), stop.clone(), |_| ());
        let task = tokio::spawn(task);
        upstream.hangs.store(true, Relaxed);
        assert_eq!(upstream.ask(question()).await, Err(AskError::TooLate));
        tokio::time::sleep(FRESH + Duration::from_millis(200)).await;
        assert!(upstream.ask(question()).await.is_ok());
        stop.cancel();
        task.await.unwrap();
    }
}
