//! Clients of the console: the front itself speaks to them. Each has a task of its own. Network threads.

use super::console::{Access, MESSAGE_MAX, Session, Step, greeting};
use super::front::{Front, random_words};
use super::hands::none_left;
use super::operator::Console;
use super::shared::now;
use crate::login::{Error, Login, Origin, Question, Rights};
use crate::net::linger;
use crate::wire::message::Report;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::*};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Clients of the console at once.
const MOST: usize = 100;

/// How often an answer that waits for the pooler looks again.
const LOOK: Duration = Duration::from_millis(20);

/// How long a client may take to read what it has asked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Their pids: of no process, as systems number those below 2^22, and of no client of a pool.
const PIDS: u32 = 0x2000_0000;

/// A client of the console.
#[derive(Debug)]
pub struct Client {
    /// Below 2^28; of no two clients at once.
    pub number: u32,
    pub role: String,
    pub database: String,
    pub origin: Origin,
    pub access: Access,
    /// Microseconds since 1970.
    pub connected_at: i64,
    /// When it last asked for something.
    pub asked_at: AtomicI64,
    key: [u8; 4],
    canceled: AtomicBool,
    cancel: Notify,
    killed: CancellationToken,
}

/// Those of now, by number.
#[derive(Debug, Default)]
pub struct Consoles {
    list: Mutex<BTreeMap<u32, Arc<Client>>>,
    next: AtomicU32,
    left: Notify,
}

impl Consoles {
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.list.lock().values().cloned().collect()
    }

    /// A CancelRequest; false when it is no client's of the console.
    pub fn cancel(&self, pid: u32, key: &[u8]) -> bool {
        let number = pid ^ PIDS;
        let client = self.list.lock().get(&number).filter(|client| client.key == key).cloned();
        if let Some(client) = &client {
            client.canceled.store(true, Relaxed);
            client.cancel.notify_one();
        }
        client.is_some()
    }

    /// Ends a client; false when there is none of that number.
    pub fn kill(&self, number: u32) -> bool {
        let client = self.list.lock().get(&number).cloned();
        client.is_some_and(|client| {
            client.killed.cancel();
            true
        })
    }

    /// Waits until every client has heard that the front ends, for a moment.
    pub async fn ended(&self) {
        none_left(&self.left, || self.list.lock().is_empty()).await;
    }
}

/// The client's place in the list.
pub struct Place {
    front: Arc<Front>,
    client: Arc<Client>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.front.consoles.list.lock().remove(&self.client.number);
        self.front.consoles.left.notify_waiters();
    }
}

/// A place in the console for a client that has shown who it is and may use it.
///
/// # Errors
/// What it is to hear when there is none.
pub fn admit(front: &Arc<Front>, origin: Origin, login: &Login) -> Result<Place, Error> {
    let [random] =
        random_words().ok_or_else(|| Report::fatal("XX000", "could not generate random cancel key"))?;
    let mut list = front.consoles.list.lock();
    if list.len() >= MOST {
        return Err(Report::fatal("53300", "sorry, too many clients already")
            .with_detail(format!("The pooler's console has {MOST} clients."))
            .into());
    }
    let number = loop {
        let number = front.consoles.next.fetch_add(1, Relaxed) & 0x0fff_ffff;
        if !list.contains_key(&number) {
            break number;
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let client = Arc::new(Client {
        number,
        role: text(&login.message.user),
        database: text(&login.message.database),
        origin,
        access: match login.console {
            Some(Rights::Run) => Access::Admin,
            _ => Access::Monitor,
        },
        connected_at: now(),
        asked_at: AtomicI64::new(now()),
        key: (random as u32).to_be_bytes(),
        canceled: AtomicBool::new(false),
        cancel: Notify::new(),
        killed: CancellationToken::new(),
    });
    list.insert(number, Arc::clone(&client));
    Ok(Place { front: Arc::clone(front), client })
}

/// Speaks to a client until it goes, is dropped, or the front ends.
pub async fn serve<S>(front: Arc<Front>, mut stream: S, place: Place)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let client = &place.client;
    let stop = front.bridge.stop();
    // Between two messages to the client.
    let mut between = true;
    let ended = tokio::select! {
        () = stop.cancelled() => true,
        () = client.killed.cancelled() => true,
        () = converse(&front, &mut stream, client, &mut between) => false,
    };
    if ended && between {
        let report = Report::fatal("57P01", "terminating connection due to administrator command");
        let _ = tokio::time::timeout(GOODBYE, stream.write_all(&report.to_bytes())).await;
    }
    // An idle client does not notice the end before it wants something: the front does not wait for that.
    let patience = if stop.is_cancelled() { GOODBYE / 10 } else { GOODBYE };
    linger::close(&mut stream, patience).await;
}

async fn converse<S>(front: &Arc<Front>, stream: &mut S, client: &Client, between: &mut bool)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = Session::new(client.access);
    if !say(stream, &greeting(client.access, PIDS | client.number, &client.key), between).await {
        return;
    }
    let mut console = Console::new(front, &client.role);
    // What came while an answer waited.
    let mut ahead = Vec::new();
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        match session.step(&console) {
            Step::Reply(bytes) => {
                if !say(stream, &bytes, between).await {
                    return;
                }
            }
            Step::Wait => {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = client.cancel.notified() => {}
                    read = stream.read(&mut buffer), if ahead.is_empty() => match read {
                        Ok(count @ 1..) => ahead.extend(&buffer[..count]),
                        // Nobody is there to hear the answer.
                        _ => return,
                    },
                }
                if client.canceled.swap(false, Relaxed) {
                    session.cancel();
                }
            }
            Step::More => {
                if ahead.is_empty() {
                    match stream.read(&mut buffer).await {
                        Ok(count @ 1..) => ahead.extend(&buffer[..count]),
                        _ => return,
                    }
                }
                // A cancel of what was answered before does not reach what comes now.
                client.canceled.store(false, Relaxed);
                client.asked_at.store(now(), Relaxed);
                if let Ok(databases) = front.questions.ask(|reply| Question::Databases { reply }).await {
                    console.know(databases);
                }
                session.receive(&ahead);
                ahead.clear();
            }
            Step::Close(bytes) => {
                say(stream, &bytes, between).await;
                return;
            }
        }
    }
}

/// Sends whole messages. False when the client has gone or does not read.
async fn say<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8], between: &mut bool) -> bool {
    *between = false;
    let sent = tokio::time::timeout(PATIENCE, async {
        stream.write_all(bytes).await?;
        stream.flush().await
    });
    *between = matches!(sent.await, Ok(Ok(())));
    *between
}
