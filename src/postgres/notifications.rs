//! Where the pooler and the relay meet, which do not know each other: the front asks the relay's engine, and the engine writes to the
//! front's clients. Network threads: nothing of PostgreSQL here.

use crate::login::{Question, Questions};
use crate::notification::{Request, Taken};
use crate::pooler::front::Front;
use crate::pooler::notifications::{self as pooler, Done, Given, IN_FORCE, Relay};
use crate::relay::clients::{Clients, Wait};
use crate::relay::engine::Engine;
use crate::relay::reader::{Batch, Collected, Reader};
use crate::relay::refusal::{Refusal, too_slow};
use crate::relay::shared::{Channel, Shared, Source};
use crate::wire::message::Report;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;

/// The relay as the front sees it.
pub(super) struct Notifications {
    shared: Shared,
    engine: Arc<Engine>,
    questions: Questions,
    reader: Reader,
    /// What the last client of the front's own was given: the next one mostly lacks the same.
    batch: Mutex<Batch>,
}

impl Notifications {
    pub fn new(shared: Shared, questions: Questions) -> Option<Self> {
        let secret = crate::pooler::front::random_words()?;
        let engine = Engine::new(shared, secret);
        for source in &shared.header.sources {
            // One of an earlier front's looks whose it is, and ends.
            crate::pooler::pools::wake_process(source.pid.swap(0, AcqRel));
        }
        Some(Self { shared, engine, questions, reader: Reader::new(shared), batch: Mutex::default() })
    }

    fn doors(&self, front: &Arc<Front>) -> Doors {
        Doors { front: Arc::clone(front), questions: self.questions.clone() }
    }
}

impl Relay for Notifications {
    fn listen(&self, front: &Arc<Front>, request: Request<'_>, done: Done) {
        let clients: Arc<dyn Clients> = Arc::new(self.doors(front));
        let done =
            Box::new(move |result: Result<(), _>| done(result.map_or_else(|why| why as u32, |()| IN_FORCE)));
        self.engine.listen(&clients, &request, done);
    }

    fn unlisten(&self, front: &Arc<Front>, client: u32, listen: u32) {
        self.engine.unlisten(&self.doors(front), client, listen);
    }

    fn unlisten_channel(&self, front: &Arc<Front>, client: u32, channel: &[u8]) {
        if let Some(listen) = self.engine.find(client, channel) {
            self.unlisten(front, client, listen);
        }
    }

    fn collect(&self, client: u32, most: usize, out: &mut Vec<u8>) -> Given {
        let mut batch = self.batch.lock();
        let collected = self.reader.collect(client, most, &mut batch);
        out.extend(&batch.bytes);
        match collected {
            Collected::All => Given::All,
            Collected::Part => Given::More,
            Collected::TooLate => Given::TooLate,
        }
    }

    fn backlog(&self, client: u32) -> Option<u64> {
        self.reader.backlog(client).ok()
    }

    fn too_slow(&self, front: &Arc<Front>, client: u32) -> Vec<u8> {
        self.engine.too_slow(&self.doors(front), client)
    }

    fn refusal(&self, number: u32) -> Report {
        Refusal::of(number).unwrap_or(Refusal::Ended).report()
    }

    fn take_back(&self, front: &Arc<Front>, client: u32) {
        self.engine.take_back(&self.doors(front), client);
    }

    fn unlisten_all(&self, front: &Arc<Front>, client: u32) {
        self.engine.unlisten_all(&self.doors(front), client);
    }

    fn behind(&self, client: u32) {
        self.engine.behind(client);
    }

    fn finish(&self, front: &Arc<Front>, client: u32, sent: usize) {
        let clients: Arc<dyn Clients> = Arc::new(self.doors(front));
        self.engine.finish(&clients, client, sent);
    }

    fn news(&self) {
        self.engine.news();
    }

    fn ended(&self, front: &Arc<Front>, source: u32, turn: u32) {
        self.engine.ended(&self.doors(front), source, turn);
    }

    fn channels(&self) -> Vec<pooler::ChannelGlance> {
        let glance = |(channel, source): (&Channel, &Source)| pooler::ChannelGlance {
            database: source.database_name.bytes(),
            channel: channel.name.bytes(),
            listeners: channel.listeners.load(Relaxed),
            delivered: channel.delivered.load(Relaxed),
            since: channel.since.load(Relaxed),
        };
        self.shared.channels_in_use().map(|(channel, source)| glance((channel, source))).collect()
    }

    fn run(&self, front: Arc<Front>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (engine, clients) = (Arc::clone(&self.engine), Arc::new(self.doors(&front)));
        let mut settings = front.bridge.settings_watch();
        let stop = front.bridge.stop();
        Box::pin(async move {
            let follow = async {
                loop {
                    engine.set_most_behind(settings.borrow_and_update().pooler.relay_max_backlog);
                    if settings.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            tokio::select! {
                () = Arc::clone(&engine).run(clients, stop) => {}
                () = follow => {}
            }
        })
    }
}

/// The front's clients as the relay sees them.
struct Doors {
    front: Arc<Front>,
    questions: Questions,
}

impl Clients for Doors {
    fn take(&self, client: u32) -> Taken {
        self.front.take_to_notify(client)
    }

    fn send(&self, client: u32, bytes: &[u8]) -> std::io::Result<usize> {
        self.front.notify(client, bytes)
    }

    fn writable(&self, client: u32) -> Wait<()> {
        Box::pin(self.front.notifiable(client))
    }

    fn is_doomed(&self, client: u32) -> bool {
        self.front.is_doomed(client)
    }

    fn give_back(&self, client: u32) {
        self.front.notified(client);
    }

    fn end(&self, client: u32) {
        self.front.end_notified(client);
    }

    fn lose(&self, client: u32) {
        self.front.end_listener(client);
    }

    fn note_slow(&self, client: u32) {
        self.front.log_end(client, &too_slow());
    }

    fn note_end(&self, database: &str, clients: usize) {
        self.front.log_relay_end(database, clients);
    }

    fn start(&self, source: u32, turn: u32) -> Wait<bool> {
        let questions = self.questions.clone();
        Box::pin(async move {
            questions.ask(|reply| Question::StartRelay { source, turn, reply }).await.unwrap_or(false)
        })
    }

    fn is_alive(&self, source: u32, turn: u32) -> Wait<bool> {
        let questions = self.questions.clone();
        Box::pin(async move {
            // Without an answer nothing is known.
            questions.ask(|reply| Question::RelayLives { source, turn, reply }).await.unwrap_or(true)
        })
    }

    fn wake(&self, pid: i32) {
        crate::pooler::pools::wake_process(pid);
    }

    fn spawn(&self, task: Wait<()>) {
        drop(self.front.spawn_on_first(task));
    }
}
