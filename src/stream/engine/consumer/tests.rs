//! The consumer with a source and sinks that a test holds in its hand.

use super::*;
use crate::stream::engine::{Sort, StreamReport};
use crate::stream::shared::Stream;
use crate::stream::sink::{Given, Progress, Sink};
use crate::stream::source::{Message, Place};

#[derive(Default)]
struct Hand {
    messages: VecDeque<Received>,
    acknowledged: u64,
}

struct HeldSource(Arc<Mutex<Hand>>);

impl Source for HeldSource {
    fn poll(&mut self, most: usize, _patience: Duration) -> Result<Vec<Received>, Failure> {
        std::thread::sleep(Duration::from_millis(1));
        let mut hand = self.0.lock();
        let most = most.min(hand.messages.len());
        Ok(hand.messages.drain(..most).collect())
    }

    fn acknowledge(&mut self, serial: u64) {
        self.0.lock().acknowledged = serial;
    }

    fn trouble(&mut self) -> Option<String> {
        None
    }
}

#[derive(Default)]
struct Taken {
    serials: Vec<u64>,
    holds: Option<u64>,
    fails: bool,
}

struct HeldSink(Arc<Mutex<Taken>>);

impl Sink for HeldSink {
    fn give(&mut self, event: &Event<'_>) -> Result<Given, Failure> {
        let mut taken = self.0.lock();
        if taken.fails {
            return Err(Failure { message: "no".into(), lasting: true });
        }
        taken.serials.push(event.serial);
        Ok(Given::Taken)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn poll(&mut self, _patience: Duration) -> Result<Progress, Failure> {
        let taken = self.0.lock();
        let last = taken.serials.last().copied().unwrap_or(0);
        Ok(Progress {
            delivered: taken.holds.map_or(last, |holds| holds.min(last)),
            skipped: 0,
            trouble: None,
        })
    }
}

struct Rig {
    shared: Arc<Shared>,
    source: Arc<Mutex<Hand>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn rig(sinks: &[&Arc<Mutex<Taken>>], messages: Vec<Received>) -> Rig {
    let shared = Arc::new(Shared::new(|| {}));
    let source = Arc::new(Mutex::new(Hand { messages: messages.into(), acknowledged: 0 }));
    let streams = sinks.iter().map(|sink| From {
        sink: Sort::Sink(Box::new(HeldSink(Arc::clone(sink)))),
        begins: StreamReport::default(),
        shown: Box::leak(Box::<Stream>::default()),
        retry: Duration::from_millis(10),
    });
    let consumer = Consumer::new(
        Arc::clone(&shared),
        Box::new(HeldSource(Arc::clone(&source))),
        streams.collect(),
        1 << 20,
    );
    let thread = Some(std::thread::spawn(move || consumer.run()));
    Rig { shared, source, thread }
}

fn place(offset: u64) -> Place {
    Place { topic: "t".into(), partition: 0, offset: offset as i64 }
}

fn message(serial: u64) -> Received {
    let payload = b"{}".to_vec();
    Received::Message(Message { serial, place: place(serial), key: None, payload, table: "t".into() })
}

fn bad(serial: u64) -> Received {
    let why = "is no JSON".to_owned();
    Received::Rejected(Rejected { serial, place: place(serial), key: None, payload: b"?".to_vec(), why })
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_message_is_acknowledged_when_every_sink_has_it() {
    let (one, two) = (Arc::new(Mutex::new(Taken::default())), Arc::new(Mutex::new(Taken::default())));
    two.lock().holds = Some(0);
    let rig = rig(&[&one, &two], (1..=5).map(message).collect());
    until("both were given all", || one.lock().serials.len() == 5 && two.lock().serials.len() == 5);
    assert_eq!(rig.source.lock().acknowledged, 0);
    two.lock().holds = Some(3);
    until("as far as the slower has it", || rig.source.lock().acknowledged == 3);
    two.lock().holds = None;
    until("all", || rig.source.lock().acknowledged == 5);
}

#[test]
fn what_is_no_event_is_acknowledged_when_it_is_kept_aside() {
    let sink = Arc::new(Mutex::new(Taken::default()));
    let rig = rig(&[&sink], vec![message(1), bad(2), message(3), bad(4)]);
    until("what came before it", || rig.source.lock().acknowledged == 1);
    until("both wait", || rig.shared.rejected().len() == 2);
    assert_eq!(rig.source.lock().acknowledged, 1);
    rig.shared.keep(2);
    until("up to the next", || rig.source.lock().acknowledged == 3);
    rig.shared.keep(4);
    until("all", || rig.source.lock().acknowledged == 4);
    assert_eq!(sink.lock().serials, [1, 3]);
}

#[test]
fn a_sink_that_has_given_up_keeps_messages_from_being_acknowledged() {
    let (well, failed) = (Arc::new(Mutex::new(Taken::default())), Arc::new(Mutex::new(Taken::default())));
    failed.lock().fails = true;
    let rig = rig(&[&well, &failed], (1..=3).map(message).collect());
    until("the first was given to who is well", || well.lock().serials == [1]);
    let begun = Instant::now();
    until("a while", || begun.elapsed() > Duration::from_millis(100));
    assert_eq!((rig.source.lock().acknowledged, rig.shared.outcome()), (0, None));
    assert_eq!(well.lock().serials, [1]);
}
