//! The engine with clients that only note what becomes of them, and a relay that the test itself is.

use super::*;
use crate::notification::{Request, Taken};
use crate::relay::clients::Wait;
use crate::relay::reader::Reader;
use crate::relay::ring::tests::tables;
use crate::relay::shared::ChannelState;

/// What becomes of clients.
#[derive(Default)]
struct Noted {
    sent: Mutex<HashMap<u32, Vec<u8>>>,
    lost: Mutex<Vec<u32>>,
    slow: Mutex<Vec<u32>>,
    /// Whether everybody takes everything at once, without ever having it all.
    greedy: Option<Shared>,
    /// Whether nobody takes anything.
    deaf: bool,
}

impl Clients for Noted {
    fn take(&self, _: u32) -> Taken {
        Taken::Yes
    }

    fn send(&self, client: u32, bytes: &[u8]) -> std::io::Result<usize> {
        if self.deaf {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        self.sent.lock().entry(client).or_default().extend(bytes);
        if let Some(shared) = self.greedy {
            // As much comes meanwhile.
            fill(shared, bytes.len());
        }
        Ok(bytes.len())
    }

    fn writable(&self, _: u32) -> Wait<()> {
        Box::pin(std::future::pending())
    }

    fn is_doomed(&self, _: u32) -> bool {
        false
    }

    fn give_back(&self, _: u32) {}

    fn end(&self, _: u32) {}

    fn lose(&self, client: u32) {
        self.lost.lock().push(client);
    }

    fn start(&self, _: u32, _: u32) -> Wait<bool> {
        Box::pin(std::future::ready(true))
    }

    fn is_alive(&self, _: u32, _: u32) -> Wait<bool> {
        Box::pin(std::future::ready(true))
    }

    fn wake(&self, _: i32) {}

    fn note_slow(&self, client: u32) {
        self.slow.lock().push(client);
    }

    fn note_end(&self, _: &str, _: usize) {}

    fn spawn(&self, task: Wait<()>) {
        tokio::spawn(task);
    }
}

/// Channel 0 has so many bytes more.
fn fill(shared: Shared, bytes: usize) {
    for _ in 0..bytes / 1000 {
        Ring::new(shared).append(0, &shared.channels[0], &[b'x'; 1000]);
    }
}

type Answer = Arc<Mutex<Option<Result<(), Refusal>>>>;

fn listen(
    engine: &Arc<Engine>,
    clients: &Arc<dyn Clients>,
    client: u32,
    database: u32,
    channel: &str,
) -> Answer {
    let answer = Answer::default();
    let told = Arc::clone(&answer);
    let request =
        Request { client, database, database_name: b"db", channel: channel.as_bytes(), tentative: false };
    engine.listen(clients, &request, Box::new(move |result| *told.lock() = Some(result)));
    answer
}

/// What a relay's worker does: it listens to what it is to listen to, and has heard everything.
fn relay(shared: Shared) {
    for channel in shared.channels {
        channel.change(ChannelState::Wanted, ChannelState::Heard);
        channel.change(ChannelState::Unwanted, ChannelState::Left);
    }
    for source in &shared.header.sources {
        if source.state() == SourceState::Starting {
            source.state.store(SourceState::Running as u32, Release);
        }
        source.heard.store(source.asked.load(Relaxed), Relaxed);
    }
}

fn scene(words: usize) -> (Shared, Arc<Engine>, Arc<Noted>, Arc<dyn Clients>) {
    let shared = tables(words, 4, 8);
    let engine = Engine::new(shared, [1, 2]);
    let noted = Arc::new(Noted::default());
    (shared, engine, Arc::clone(&noted), noted)
}

fn pass(engine: &Arc<Engine>, clients: &Arc<dyn Clients>) -> Pass {
    Pass::new(Arc::clone(engine), Arc::clone(clients))
}

#[tokio::test]
async fn who_listens_already_hears_that_the_relay_has_ended_amid_its_next_listen() {
    let (shared, engine, noted, clients) = scene(64);
    let first = listen(&engine, &clients, 1, 5, "a");
    relay(shared);
    engine.confirm();
    assert_eq!(*first.lock(), Some(Ok(())));
    let second = listen(&engine, &clients, 1, 5, "b");
    let another = listen(&engine, &clients, 2, 5, "b");
    engine.ended(&*clients, 0, shared.header.sources[0].turn.load(Relaxed));
    assert_eq!(*second.lock(), Some(Err(Refusal::Ended)));
    assert_eq!(*another.lock(), Some(Err(Refusal::Ended)));
    assert_eq!(
        *noted.lost.lock(),
        [1],
        "what it listened to is heard by nobody, and the other had nothing yet"
    );
}

#[tokio::test]
async fn who_lacks_what_was_overwritten_before_it_was_looked_at_is_found() {
    let (shared, engine, _, clients) = scene(64);
    listen(&engine, &clients, 1, 5, "a");
    listen(&engine, &clients, 2, 5, "b");
    relay(shared);
    engine.confirm();
    let mut pass = pass(&engine, &clients);
    let ring = Ring::new(shared);
    ring.append(0, &shared.channels[0], b"one for the first");
    for _ in 0..100 {
        ring.append(1, &shared.channels[1], b"another's");
    }
    assert!(pass.due().contains(&1));
}

#[tokio::test]
async fn who_is_not_finished_with_in_one_pass_is_in_the_next_once_however_much_has_come() {
    let (shared, engine, ..) = scene(1 << 16);
    let clients: Arc<dyn Clients> = Arc::new(Noted { greedy: Some(shared), ..Noted::default() });
    for (client, channel) in [(1, "a"), (2, "a"), (1, "b")] {
        listen(&engine, &clients, client, 5, channel);
    }
    relay(shared);
    engine.confirm();
    let mut pass = pass(&engine, &clients);
    fill(shared, 1 << 16);
    for _ in 0..3 {
        Ring::new(shared).append(1, &shared.channels[1], b"another channel's");
        engine.behind(1);
        pass.run().await;
        let due = engine.inner.lock().due.clone();
        assert!((1..=2).contains(&due.len()), "{due:?} lack something");
    }
}

#[tokio::test]
async fn a_client_that_has_a_part_of_what_is_gone_is_counted_and_noted_as_too_slow() {
    let (shared, engine, noted, clients) = scene(1 << 10);
    listen(&engine, &clients, 1, 5, "a");
    relay(shared);
    engine.confirm();
    fill(shared, 1 << 16);
    engine.finish(&clients, 1, 100);
    assert_eq!((&noted.slow.lock()[..], shared.header.counters.too_slow.load(Relaxed)), (&[1][..], 1));
}

#[tokio::test]
async fn what_has_been_taken_out_of_the_ring_for_a_client_is_no_backlog_of_the_rings() {
    let (shared, engine, ..) = scene(1 << 10);
    let clients: Arc<dyn Clients> = Arc::new(Noted { deaf: true, ..Noted::default() });
    listen(&engine, &clients, 1, 5, "a");
    relay(shared);
    engine.confirm();
    fill(shared, 2000);
    engine.finish(&clients, 1, 100);
    let shown = || (shared.header.behind.load(Relaxed), shared.header.backlog.load(Relaxed));
    while shown().0 == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(shown(), (1, 0));
    fill(shared, 3000);
    let ring = Reader::new(shared).backlog(1).unwrap();
    while shown() != (1, ring) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_nobody_listens_to_any_more_is_looked_after_at_once_until_it_is_free() {
    let (shared, engine, _, clients) = scene(64);
    listen(&engine, &clients, 1, 5, "a");
    relay(shared);
    engine.confirm();
    assert_eq!(engine.pause(), LINGER, "nothing is to be done");
    let has_news = || tokio::time::timeout(Duration::ZERO, engine.news.notified());
    while has_news().await.is_ok() {}
    engine.unlisten_all(&*clients, 1);
    assert!(has_news().await.is_ok(), "the engine sleeps on");
    assert_eq!(engine.pause(), TICK);
    relay(shared);
    engine.tick(&clients);
    assert_eq!(shared.header.channels.load(Relaxed), 0);
    assert_eq!(engine.pause(), TICK, "the relay itself is to go");
}

#[tokio::test]
async fn what_a_client_listened_to_stays_its_own_until_it_has_gone_also_when_the_relay_has_ended() {
    let (shared, engine, _, clients) = scene(64);
    listen(&engine, &clients, 1, 5, "a");
    relay(shared);
    engine.confirm();
    engine.ended(&*clients, 0, shared.header.sources[0].turn.load(Relaxed));
    let listens = |client| shared.listens_of(client).map(|(number, _)| number).collect::<Vec<_>>();
    let its = listens(1);
    let refused = listen(&engine, &clients, 1, 5, "b");
    assert_eq!(
        *refused.lock(),
        Some(Err(Refusal::Ended)),
        "or it heard what comes now before it hears of the gap"
    );
    // The next one's listen is another, and by another worker.
    listen(&engine, &clients, 2, 5, "a");
    assert!(its.len() == 1 && listens(1) == its && !its.contains(&listens(2)[0]));
    let states = || [0, 1].map(|number: usize| shared.header.sources[number].state());
    assert_eq!(states(), [SourceState::Ended, SourceState::Starting]);
    engine.unlisten_all(&*clients, 1);
    assert_eq!(states(), [SourceState::Free, SourceState::Starting]);
    assert_eq!((shared.header.channels.load(Relaxed), shared.header.listens.load(Relaxed)), (1, 1));
}

#[tokio::test]
async fn what_was_committed_before_a_listen_and_is_heard_behind_it_is_not_the_clients() {
    let (shared, engine, _, clients) = scene(64);
    listen(&engine, &clients, 1, 5, "a");
    relay(shared);
    engine.confirm();
    let second = listen(&engine, &clients, 2, 5, "a");
    engine.confirm();
    assert_eq!(*second.lock(), None, "the relay may be behind");
    Ring::new(shared).append(0, &shared.channels[0], b"committed before");
    relay(shared);
    engine.confirm();
    let reader = Reader::new(shared);
    assert_eq!((*second.lock(), reader.is_behind(1), reader.is_behind(2)), (Some(Ok(())), true, false));
}
