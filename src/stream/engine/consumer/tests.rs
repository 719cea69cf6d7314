//! The consumer with a source and sinks that a test holds in its hand.

use super::*;
use crate::stream::engine::StreamReport;
use crate::stream::engine::held::{self, Hand, fail};
use crate::stream::lines::{Waiting, lines};
use crate::stream::shared::{Header, Source as Words, Stream, StreamState};
use crate::stream::source::{Message, Place};

#[derive(Default)]
struct Flow {
    messages: VecDeque<Received>,
    taken: usize,
    polls: u64,
    acknowledged: u64,
    trouble: Option<String>,
}

struct HeldSource(Arc<Mutex<Flow>>);

impl Source for HeldSource {
    fn poll(&mut self, room: usize, _patience: Duration) -> Result<Vec<Received>, Failure> {
        std::thread::sleep(Duration::from_millis(1));
        let mut hand = self.0.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < room
            && let Some(message) = hand.messages.pop_front()
        {
            bytes += message.size();
            taken.push(message);
        }
        hand.taken += taken.len();
        hand.polls += 1;
        Ok(taken)
    }

    fn acknowledge(&mut self, serial: u64) {
        self.0.lock().acknowledged = serial;
    }

    fn trouble(&mut self) -> Option<String> {
        self.0.lock().trouble.clone()
    }
}

struct Rig {
    shared: Arc<Shared>,
    source: Arc<Mutex<Flow>>,
    thread: Option<std::thread::JoinHandle<()>>,
    header: &'static Header,
    words: &'static Words,
    shown: Vec<&'static Stream>,
    lines: Waiting,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn rig(sinks: &[&Arc<Mutex<Hand>>], messages: Vec<Received>) -> Rig {
    rig_of(sinks, messages, 1 << 20)
}

fn rig_of(sinks: &[&Arc<Mutex<Hand>>], messages: Vec<Received>, buffer_size: usize) -> Rig {
    let (header, words): (&'static Header, &'static Words) =
        (Box::leak(Box::default()), Box::leak(Box::default()));
    let (line, lines) = lines(header);
    let mut shown = Vec::new();
    let shared = Arc::new(Shared::new(|| {}));
    let source = Arc::new(Mutex::new(Flow { messages: messages.into(), ..Flow::default() }));
    let streams = sinks.iter().map(|sink| {
        let words: &'static Stream = Box::leak(Box::default());
        shown.push(words);
        From {
            make: Some(held::make(sink)),
            begins: StreamReport::default(),
            shown: words,
            retry: Duration::from_millis(10),
            log: line.log(),
        }
    });
    let streams = streams.collect();
    let watch = Watch { header, source: words, lines: line };
    let consumer = Consumer::new(
        Arc::clone(&shared),
        Box::new(HeldSource(Arc::clone(&source))),
        streams,
        watch,
        buffer_size,
    );
    let thread = Some(std::thread::spawn(move || consumer.run()));
    Rig { shared, source, thread, header, words, shown, lines }
}

fn place(offset: u64) -> Place {
    Place { topic: "t".into(), partition: 0, offset: offset as i64 }
}

fn message(serial: u64) -> Received {
    let payload = b"{}".to_vec();
    Received::Message(Message { serial, place: place(serial), key: None, payload, table: "t".into() })
}

fn bad(serial: u64) -> Received {
    rejected(serial, 1)
}

fn rejected(serial: u64, size: usize) -> Received {
    let why = "is no JSON".to_owned();
    Received::Rejected(Rejected { serial, place: place(serial), key: None, payload: vec![b'?'; size], why })
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
    let (one, two) = (Arc::new(Mutex::new(Hand::default())), Arc::new(Mutex::new(Hand::default())));
    two.lock().holds = Some(0);
    let rig = rig(&[&one, &two], (1..=5).map(message).collect());
    until("both were given all", || one.lock().taken.len() == 5 && two.lock().taken.len() == 5);
    assert_eq!(rig.source.lock().acknowledged, 0);
    two.lock().holds = Some(3);
    until("as far as the slower has it", || rig.source.lock().acknowledged == 3);
    two.lock().holds = None;
    until("all", || rig.source.lock().acknowledged == 5);
}

#[test]
fn what_is_no_event_is_acknowledged_when_it_is_kept_aside() {
    let sink = Arc::new(Mutex::new(Hand::default()));
    let rig = rig(&[&sink], vec![message(1), bad(2), message(3), bad(4)]);
    until("what came before it", || rig.source.lock().acknowledged == 1);
    until("both wait", || rig.shared.rejected().len() == 2);
    assert_eq!(rig.source.lock().acknowledged, 1);
    rig.shared.keep(2);
    until("up to the next", || rig.source.lock().acknowledged == 3);
    rig.shared.keep(4);
    until("all", || rig.source.lock().acknowledged == 4);
    assert_eq!(sink.lock().serials(), [1, 3]);
}

#[test]
fn a_sink_that_has_given_up_keeps_messages_from_being_acknowledged() {
    let (well, failed) = (Arc::new(Mutex::new(Hand::default())), Arc::new(Mutex::new(Hand::default())));
    failed.lock().fails = fail(true);
    let rig = rig(&[&well, &failed], (1..=3).map(message).collect());
    until("the first was given to who is well", || well.lock().serials() == [1]);
    let begun = Instant::now();
    until("a while", || begun.elapsed() > Duration::from_millis(100));
    assert_eq!((rig.source.lock().acknowledged, rig.shared.outcome()), (0, None));
    assert_eq!(well.lock().serials(), [1]);
}

#[test]
fn what_is_kept_stays_within_the_buffer_whatever_it_is_kept_for() {
    let size = 2_000 + message(1).size();
    let large = |serial| match message(serial) {
        Received::Message(message) => Received::Message(Message { payload: vec![b'x'; 2_002], ..message }),
        other => other,
    };
    // A sink that takes nothing, one that confirms nothing, and what nobody keeps aside.
    let (full, holding) =
        (Hand { full: true, ..Hand::default() }, Hand { holds: Some(0), ..Hand::default() });
    for (sink, messages) in [
        (full, (1..=100).map(large).collect::<Vec<_>>()),
        (holding, (1..=100).map(large).collect()),
        (Hand::default(), (1..=100).map(|serial| rejected(serial, 2_002)).collect()),
    ] {
        let sink = Arc::new(Mutex::new(sink));
        let rig = rig_of(&[&sink], messages, 10 * size);
        until("it takes what there is room for", || rig.source.lock().taken >= 10);
        let begun = Instant::now();
        until("a while", || begun.elapsed() > Duration::from_millis(100));
        let taken = rig.source.lock().taken;
        // The last one may be larger than what was left, and one is about to be given.
        assert!((10..=12).contains(&taken), "{taken}");
        assert_eq!(rig.source.lock().acknowledged, 0);
    }
}

#[test]
fn rejected_messages_are_not_copied() {
    let sink = Arc::new(Mutex::new(Hand::default()));
    let rig = rig(&[&sink], (1..=300).map(bad).collect());
    until("all wait", || rig.shared.rejected_bytes.load(Relaxed) == 300 * bad(1).size());
    let (one, again) = (rig.shared.rejected(), rig.shared.rejected());
    assert_eq!(one.len(), REJECTED);
    assert!(one.iter().zip(&again).all(|(one, again)| Arc::ptr_eq(one, again)));
    for last in [100, 200, 300] {
        assert_eq!(rig.shared.rejected().last().map(|rejected| rejected.serial), Some(last));
        rig.shared.keep(last);
    }
    assert_eq!((rig.shared.rejected().len(), rig.shared.rejected_bytes.load(Relaxed)), (0, 0));
    until("all are acknowledged", || rig.source.lock().acknowledged == 300);
}

#[test]
fn what_has_been_taken_is_passed_on_when_no_more_is_to_be_taken() {
    let sink = Arc::new(Mutex::new(Hand { full: true, ..Hand::default() }));
    let rig = rig(&[&sink], vec![message(1), bad(2), message(3)]);
    until("all are taken", || rig.source.lock().taken == 3);
    rig.shared.take_no_more();
    // One look may have been under way.
    let polls = rig.source.lock().polls;
    until("it has looked again", || rig.source.lock().polls > polls + 1);
    rig.source.lock().messages.extend([bad(4), message(5)]);
    sink.lock().full = false;
    until("both are given", || sink.lock().serials() == [1, 3]);
    until("what was no event waits", || rig.shared.rejected().len() == 1);
    rig.shared.keep(2);
    until("all of it is acknowledged", || rig.source.lock().acknowledged == 3);
    let polls = rig.source.lock().polls;
    until("it goes on looking", || rig.source.lock().polls > polls + 1);
    assert_eq!(rig.source.lock().taken, 3);
}

#[test]
fn what_is_given_is_timed_counted_and_said_while_debugging_is_on() {
    let sink = Arc::new(Mutex::new(Hand::default()));
    let rig = rig(&[&sink], Vec::new());
    rig.header.debug.store(1, Relaxed);
    rig.source.lock().messages.extend([message(1), bad(2), message(3)]);
    until("both are given", || sink.lock().serials() == [1, 3]);
    until("and counted", || rig.words.timings.get().count == 2);
    assert_eq!(rig.shown[0].timings.get().count, 2);
    let said = rig.lines.take();
    assert_eq!(said, ["debug: stream \"\" was given an event of t, 2 bytes"; 2]);
}

#[test]
fn a_sink_that_fails_is_made_again_and_the_source_goes_on() {
    let (well, failed) = (Arc::new(Mutex::new(Hand::default())), Arc::new(Mutex::new(Hand::default())));
    failed.lock().holds = Some(1);
    let rig = rig(&[&well, &failed], (1..=3).map(message).collect());
    until("all were given", || well.lock().taken.len() == 3 && failed.lock().taken.len() == 3);
    until("as far as the slower has it", || rig.source.lock().acknowledged == 1);
    failed.lock().fails = fail(false);
    rig.source.lock().messages.extend((4..=6).map(message));
    until("it has failed again and again", || rig.shown[1].errors.load(Relaxed) > 2);
    assert_eq!((rig.source.lock().acknowledged, rig.shared.outcome()), (1, None));
    let mut taken = failed.lock();
    (taken.fails, taken.holds) = (None, None);
    drop(taken);
    until("all", || rig.source.lock().acknowledged == 6);
    // What it had not confirmed came again, in order.
    assert_eq!(
        (well.lock().serials(), failed.lock().serials()),
        (vec![1, 2, 3, 4, 5, 6], vec![1, 2, 3, 2, 3, 4, 5, 6])
    );
    assert_eq!(rig.shown[1].state(), StreamState::Running);
    let said = rig.lines.take();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("has failed, and its sink is made again in 10ms: no"), "{said:?}");
    assert!(said[1].contains("delivers again"), "{said:?}");
}

#[test]
fn a_stream_is_in_trouble_until_its_source_and_its_sink_are_well() {
    let sink = Arc::new(Mutex::new(Hand::default()));
    let rig = rig(&[&sink], vec![message(1)]);
    let is = |state| rig.shown[0].state() == state;
    until("all is well", || is(StreamState::Running) && rig.source.lock().acknowledged == 1);
    rig.source.lock().trouble = Some("no broker".to_owned());
    until("its source is in trouble", || is(StreamState::Trouble) && rig.shared.trouble().is_some());
    sink.lock().trouble = Some("no broker either".to_owned());
    until("its sink is, too", || rig.shown[0].error.get().is_some());
    rig.source.lock().trouble = None;
    until("its source is well", || rig.shared.trouble().is_none());
    // It says so to the streams in the same breath; one more round has come by after a message.
    rig.source.lock().messages.push_back(message(2));
    until("it goes on", || rig.source.lock().acknowledged == 2);
    assert!(is(StreamState::Trouble), "its sink is not");
    // A sink that fails and is made again is no end of its source's trouble.
    rig.source.lock().trouble = Some("no broker".to_owned());
    until("its source is in trouble again", || rig.shared.trouble().is_some());
    let mut hand = sink.lock();
    (hand.trouble, hand.fails) = (None, fail(false));
    drop(hand);
    rig.source.lock().messages.push_back(message(3));
    until("it has failed", || is(StreamState::Failed));
    sink.lock().fails = None;
    until("it goes on", || rig.source.lock().acknowledged == 3);
    assert!(is(StreamState::Trouble), "its source is not well");
    rig.source.lock().trouble = None;
    until("all is well", || is(StreamState::Running));
}
