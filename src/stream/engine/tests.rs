//! The engine with sinks that a test holds in its hand.

use super::held::{self, Hand, fail};
use super::*;
use crate::stream::event::{EventOptions, KeyForm};
use crate::stream::pgoutput::written;
use crate::stream::shared::{Stream, StreamState};
use parking_lot::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

/// An engine that runs, with a chunk of our own to fill.
struct Rig {
    shared: Arc<Shared>,
    chunk: Chunk,
    thread: Option<JoinHandle<()>>,
    shown: Vec<&'static Stream>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn options() -> EventOptions {
    EventOptions {
        host: "h".into(),
        database: "d".into(),
        schema: false,
        commit_lsn: false,
        ordinal: true,
        xid: false,
        commit_timestamp: false,
        old: false,
        unchanged: None,
        truncate: false,
        transactions: false,
        messages: true,
        key: KeyForm::PrimaryKey,
    }
}

fn at(commit: u64, ordinal: u64) -> StreamReport {
    StreamReport { position: Position { commit: Lsn(commit), ordinal }, delivered: Lsn(commit) }
}

/// A transaction of so many logical messages.
fn transaction(chunk: &mut Chunk, commit_end: u64, messages: u64) {
    let commit_end = Lsn(commit_end);
    chunk.push(&Record::Transaction { commit_end, commit_time: 0, xid: 1 });
    for number in 0..messages {
        chunk.push(&Record::Message { lsn: Lsn(number), data: &written::message("p", b"x") });
    }
    chunk.push(&Record::Commit { commit_end });
}

/// Bytes that are kept for who has failed.
const ARREARS: usize = 10_000;

/// What an engine is given of these sinks.
fn froms(sinks: &[(&Arc<Mutex<Hand>>, StreamReport)]) -> Vec<From> {
    let from = |(hand, begins): &(&Arc<Mutex<Hand>>, StreamReport)| {
        let retry = Duration::from_millis(20);
        let shown = Box::leak(Box::default());
        From { make: Some(held::make(hand)), begins: *begins, shown, retry, log: Arc::new(|_| {}) }
    };
    sinks.iter().map(from).collect()
}

/// An engine whose work a test does itself.
fn engine(sinks: &[(&Arc<Mutex<Hand>>, StreamReport)]) -> Engine {
    let shared = Arc::new(Shared::new(1 << 20, || {}));
    Engine::new(shared, Encoder::new(options(), 1), froms(sinks), Lsn(100), ARREARS)
}

impl Rig {
    fn new(sinks: &[(&Arc<Mutex<Hand>>, StreamReport)]) -> Self {
        let shared = Arc::new(Shared::new(1 << 20, || {}));
        let streams = froms(sinks);
        let shown = streams.iter().map(|from| from.shown).collect();
        let engine = Engine::new(Arc::clone(&shared), Encoder::new(options(), 1), streams, Lsn(100), ARREARS);
        let thread = std::thread::spawn(move || engine.run());
        Self { shared, chunk: Chunk::default(), thread: Some(thread), shown }
    }

    fn transaction(&mut self, commit_end: u64, messages: u64) {
        transaction(&mut self.chunk, commit_end, messages);
    }

    fn send(&mut self) {
        assert!(self.shared.buffer.push(&mut self.chunk));
    }

    fn until(&self, what: &str, holds: impl Fn(&Report) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds(&self.shared.report()) {
            assert!(Instant::now() < end, "{what}: {:?}", self.shared.report());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn ordinals(hand: &Mutex<Hand>) -> Vec<u64> {
    let read = |payload: &String| -> u64 {
        let event: serde_json::Value = serde_json::from_str(payload).unwrap();
        event["Ordinal"].as_u64().unwrap()
    };
    hand.lock().taken.iter().map(|(_, payload)| read(payload)).collect()
}

#[test]
fn only_what_every_sink_has_may_be_confirmed() {
    let (quick, slow) = (Arc::new(Mutex::new(Hand::default())), Arc::new(Mutex::new(Hand::default())));
    slow.lock().holds = Some(0);
    let mut rig = Rig::new(&[(&quick, at(100, u64::MAX)), (&slow, at(100, u64::MAX))]);
    rig.transaction(200, 3);
    rig.transaction(300, 2);
    rig.send();
    rig.until("the quick one has all", |report| {
        report.streams.first().is_some_and(|stream| *stream == at(300, u64::MAX))
    });
    assert_eq!(rig.shared.report().delivered, Lsn(100));
    // Amid the second transaction: the first may be confirmed, the second not.
    let second = slow.lock().taken[3].0;
    slow.lock().holds = Some(second);
    rig.until("the slow one is amid the second", |report| report.delivered == Lsn(200));
    let position = rig.shared.report().streams[1].position;
    assert_eq!(position, Position { commit: Lsn(300), ordinal: 1 });
    slow.lock().holds = None;
    rig.until("all have all", |report| report.delivered == Lsn(300));
}

#[test]
fn what_was_not_committed_has_no_time_of_a_commit_and_is_not_behind_since_2000() {
    let hand = Arc::new(Mutex::new(Hand { holds: Some(0), ..Hand::default() }));
    let mut engine = engine(&[(&hand, at(100, u64::MAX))]);
    engine.encoder = Encoder::new(EventOptions { commit_timestamp: true, ..options() }, 1);
    let begun = now();
    let mut chunk = Chunk::default();
    chunk.push(&Record::Transaction { commit_end: Lsn(200), commit_time: 0, xid: 0 });
    chunk.push(&Record::Message { lsn: Lsn(199), data: &written::message("p", b"x") });
    chunk.push(&Record::Commit { commit_end: Lsn(200) });
    chunk.push(&Record::Transaction { commit_end: Lsn(300), commit_time: 0, xid: 7 });
    chunk.push(&Record::Message { lsn: Lsn(299), data: &written::message("p", b"x") });
    chunk.push(&Record::Commit { commit_end: Lsn(300) });
    engine.work(&chunk).unwrap();
    engine.publish();
    let taken = hand.lock().taken.clone();
    assert!(taken[0].1.contains("\"CommitTimestamp\":null"), "{taken:?}");
    assert!(taken[1].1.contains("\"CommitTimestamp\":\"2000-01-01T00:00:00Z\""), "{taken:?}");
    let shown = engine.feeds[0].shown();
    assert!(shown.behind_since.load(Relaxed) >= begun, "{}", shown.behind_since.load(Relaxed));
}

#[test]
fn each_stream_goes_on_where_it_was_amid_a_transaction_too() {
    let (one, two) = (Arc::new(Mutex::new(Hand::default())), Arc::new(Mutex::new(Hand::default())));
    let mut rig = Rig::new(&[(&one, at(200, 2)), (&two, at(200, u64::MAX))]);
    rig.transaction(200, 4);
    rig.transaction(300, 1);
    rig.send();
    rig.until("all have all", |report| report.delivered == Lsn(300));
    assert_eq!((ordinals(&one), ordinals(&two)), (vec![3, 4, 1], vec![1]));
    assert_eq!(rig.shown[0].events.load(Relaxed), 3);
}

#[test]
fn wal_without_anything_for_us_is_confirmed_too() {
    let hand = Arc::new(Mutex::new(Hand::default()));
    let mut rig = Rig::new(&[(&hand, at(100, u64::MAX))]);
    rig.chunk.push(&Record::Commit { commit_end: Lsn(150) });
    rig.chunk.push(&Record::Progress { lsn: Lsn(400) });
    rig.send();
    rig.until("it is reached", |report| report.delivered == Lsn(400));
    rig.transaction(500, 1);
    rig.chunk.push(&Record::Progress { lsn: Lsn(600) });
    rig.send();
    rig.until("behind a transaction too", |report| report.delivered == Lsn(600));
}

#[test]
fn transactions_without_an_event_leave_no_mark_while_a_sink_is_down() {
    let hand = Arc::new(Mutex::new(Hand { holds: Some(0), ..Hand::default() }));
    let mut engine = engine(&[(&hand, at(100, u64::MAX))]);
    let mut chunk = Chunk::default();
    transaction(&mut chunk, 200, 1);
    // Their beginnings and ends are told, and no event is made of them.
    for commit_end in 201..1_200 {
        let commit_end = Lsn(commit_end);
        chunk.push(&Record::Transaction { commit_end, commit_time: 0, xid: 1 });
        chunk.push(&Record::Message { lsn: Lsn(1), data: &written::begin(1, 0, 1) });
        chunk.push(&Record::Commit { commit_end });
    }
    engine.work(&chunk).unwrap();
    assert_eq!(engine.marks.len(), 1);
    hand.lock().holds = None;
    engine.feeds.poll(Duration::ZERO);
    engine.publish();
    assert_eq!((engine.marks.len(), engine.shared.report().delivered), (0, Lsn(1_199)));
}

#[test]
fn a_sink_that_holds_the_others_up_is_left_behind_and_asks_for_what_it_lacks_when_it_is_well() {
    let (quick, full) = (Arc::new(Mutex::new(Hand::default())), Arc::new(Mutex::new(Hand::default())));
    full.lock().full = true;
    let mut rig = Rig::new(&[(&quick, at(100, u64::MAX)), (&full, at(100, u64::MAX))]);
    rig.transaction(200, 1);
    rig.transaction(300, 1);
    rig.send();
    rig.until("the engine ends to begin again", |report| report.outcome == Some(Outcome::Again));
    let report = rig.shared.report();
    assert_eq!(report.delivered, Lsn(100), "nothing is confirmed that it lacks");
    assert_eq!(report.streams[1], at(100, u64::MAX));
    assert!(quick.lock().taken.len() <= 2);
}

#[test]
fn a_sink_that_fails_is_made_again_and_nobody_else_notices() {
    let (failed, well) = (Arc::new(Mutex::new(Hand::default())), Arc::new(Mutex::new(Hand::default())));
    failed.lock().holds = Some(0);
    let mut rig = Rig::new(&[(&failed, at(100, u64::MAX)), (&well, at(100, u64::MAX))]);
    rig.transaction(200, 3);
    rig.send();
    rig.until("both were given all", |_| failed.lock().taken.len() == 3);
    // It confirms the first two.
    let second = failed.lock().taken[1].0;
    failed.lock().holds = Some(second);
    rig.until("it is amid the transaction", |report| {
        report.streams[0].position == Position { commit: Lsn(200), ordinal: 2 }
    });
    failed.lock().fails = fail(false);
    rig.transaction(300, 2);
    rig.send();
    rig.until("the other goes on", |report| report.streams[1] == at(300, u64::MAX));
    rig.until("it has failed again and again", |_| rig.shown[0].errors.load(Relaxed) > 2);
    rig.transaction(400, 1);
    rig.send();
    rig.until("the other goes on", |report| report.streams[1] == at(400, u64::MAX));
    let report = rig.shared.report();
    assert_eq!((report.outcome, report.delivered), (None, Lsn(100)), "nothing is confirmed that it lacks");
    assert_eq!(report.streams[0].position, Position { commit: Lsn(200), ordinal: 2 });
    assert_eq!((rig.shown[0].error.get(), rig.shown[0].state()), (Some("no".into()), StreamState::Failed));
    (failed.lock().fails, failed.lock().holds) = (None, None);
    rig.until("all have all", |report| report.delivered == Lsn(400));
    // What it had not confirmed came again, in order, to a sink that knows what it has.
    assert_eq!((ordinals(&failed), ordinals(&well)), (vec![1, 2, 3, 3, 1, 2, 1], vec![1, 2, 3, 1, 2, 1]));
    assert_eq!((failed.lock().made.last().copied(), well.lock().made.len()), (Some(second), 1));
    rig.transaction(500, 1);
    rig.send();
    rig.until("they go on", |report| report.delivered == Lsn(500));
    assert_eq!((rig.shared.report().outcome, rig.shown[0].state()), (None, StreamState::Running));
}

#[test]
fn the_only_sink_that_fails_holds_decoding_up_when_no_more_is_kept_and_lacks_nothing_in_the_end() {
    let hand = Arc::new(Mutex::new(Hand { fails: fail(false), ..Hand::default() }));
    let mut rig = Rig::new(&[(&hand, at(100, u64::MAX))]);
    for commit_end in 200..260 {
        rig.transaction(commit_end, 10);
    }
    rig.send();
    rig.until("it has failed again and again", |_| rig.shown[0].errors.load(Relaxed) > 2);
    assert!(rig.shared.buffer.bytes().0 > 0, "the engine is amid the chunk");
    hand.lock().fails = None;
    rig.until("all is delivered", |report| report.delivered == Lsn(259));
    assert_eq!(ordinals(&hand), (200..260).flat_map(|_| 1..=10).collect::<Vec<_>>());
    assert_eq!(rig.shared.report().outcome, None);
}

#[test]
fn a_sink_that_lacks_more_than_is_kept_is_well_before_it_is_decoded_again_for_it() {
    let (failed, well) = (Arc::new(Mutex::new(Hand::default())), Arc::new(Mutex::new(Hand::default())));
    failed.lock().fails = fail(false);
    let mut rig = Rig::new(&[(&failed, at(100, u64::MAX)), (&well, at(100, u64::MAX))]);
    for commit_end in 200..260 {
        rig.transaction(commit_end, 10);
    }
    rig.send();
    rig.until("the other goes on", |report| {
        report.streams.get(1).is_some_and(|stream| *stream == at(259, u64::MAX))
    });
    rig.until("it has failed again and again", |_| rig.shown[0].errors.load(Relaxed) > 2);
    assert_eq!((rig.shared.report().outcome, rig.shared.report().delivered), (None, Lsn(100)));
    failed.lock().fails = None;
    rig.until("a worker is to begin anew", |report| report.outcome == Some(Outcome::Again));
    let report = rig.shared.report();
    let taken = failed.lock().taken.len() as u64;
    assert!((10..200).contains(&taken), "{taken}");
    // Where it is, so that nothing comes twice.
    let Position { commit, ordinal } = report.streams[0].position;
    let whole = (commit.0 - 199) * 10;
    assert_eq!(if ordinal == u64::MAX { whole } else { whole - 10 + ordinal }, taken);
    assert!(report.delivered < Lsn(259) && report.delivered == report.streams[0].delivered);
}

#[test]
fn a_lasting_failure_waits_for_the_operator() {
    let (lasting, well) = (
        Arc::new(Mutex::new(Hand { fails: fail(true), ..Hand::default() })),
        Arc::new(Mutex::new(Hand::default())),
    );
    let mut rig = Rig::new(&[(&lasting, at(100, u64::MAX)), (&well, at(100, u64::MAX))]);
    rig.transaction(200, 1);
    rig.send();
    rig.until("the other goes on", |report| {
        report.streams.get(1).is_some_and(|stream| *stream == at(200, u64::MAX))
    });
    let report = rig.shared.report();
    assert_eq!((report.outcome, report.delivered), (None, Lsn(100)));
    assert_eq!(rig.shown[0].state(), StreamState::Blocked);
}

#[test]
fn what_cannot_be_understood_ends_the_engine_with_words() {
    let hand = Arc::new(Mutex::new(Hand::default()));
    let mut rig = Rig::new(&[(&hand, at(100, u64::MAX))]);
    rig.chunk.push(&Record::Message { lsn: Lsn(1), data: b"?" });
    rig.send();
    rig.until(
        "it ends",
        |report| matches!(&report.outcome, Some(Outcome::Broken(why)) if why.contains("unexpected")),
    );
}
