//! The front's end of the control socket: what session agents ask for. Network threads.

use super::control::{ANSWER, RECORD, Word};
use super::front::Front;
use super::notifications::{IN_FORCE, Request};
use super::pools::{self, Pool};
use super::shared::{Server, ServerState, now};
use super::slot::State;
use crate::bridge::Level;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};

/// How long a client that has sent a part of a message is left alone: doubled each time up to the second figure.
const LATER: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Opens the control socket under the name that shared memory says.
///
/// # Errors
/// What the system says.
pub fn listen(name: &str) -> std::io::Result<std::os::unix::net::UnixListener> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves agents until the front ends.
pub async fn serve(front: Arc<Front>, listener: std::os::unix::net::UnixListener) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return front.bridge.fail(format!("control socket: {error}")),
    };
    let stop = front.bridge.stop();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // The name is in nobody's directory; only the server's own processes have a business here.
                let ours =
                    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw());
                if ours {
                    front.spawn(hear(Arc::clone(&front), stream));
                }
            }
            Err(error) => {
                front.bridge.log(Level::Warning, format!("control socket: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn hear(front: Arc<Front>, stream: UnixStream) {
    let mut speaker = Speaker::default();
    listen_to(&front, stream, &mut speaker).await;
    if let Some((source, turn)) = speaker.source {
        front.relay.ended(&front, source, turn);
    }
}

/// Whoever is at the other end.
#[derive(Default)]
struct Speaker {
    /// A pooled backend's pool and server connection.
    pool: Option<Arc<Pool>>,
    server: Option<&'static Server>,
    /// A relay's source, and its number there.
    source: Option<(u32, u32)>,
}

async fn listen_to(front: &Arc<Front>, stream: UnixStream, speaker: &mut Speaker) {
    let Speaker { pool, server: speaking, source } = speaker;
    let mut record = [0; RECORD];
    // A read that leaves room tells the runtime that nothing is left, and saves it another one.
    let mut words = BufReader::with_capacity(4 * RECORD, stream);
    while words.read_exact(&mut record).await.is_ok() {
        let stream = words.get_ref();
        let Some(word) = Word::from_bytes(&record) else { return };
        match word {
            Word::Hello { server, epoch } => {
                let words = front.shared.servers.get(server as usize);
                let known = words.filter(|words| {
                    epoch == front.shared.header.epoch.load(Relaxed)
                        && words.state() == ServerState::Opening
                        && stream.peer_cred().ok().and_then(|peer| peer.pid())
                            == Some(words.pid.load(Acquire))
                });
                *pool = known.and_then(|words| front.pools.by_number(words.pool.load(Acquire)));
                *speaking = known;
                let Some(pool) = &pool else { return };
                if give(stream, Some(pool.epoll.as_fd())).await.is_err() {
                    return;
                }
            }
            Word::Want { slot, generation } => {
                let answered = match front.seats.copy(slot, generation) {
                    Some(socket) => give(stream, Some(socket.as_fd())).await,
                    // A relay may ask for one that has just gone.
                    None if source.is_some() => give(stream, None).await,
                    // A backend owns the client; a slot that has moved on has no such generation. It waits for an answer: an end is
                    // one.
                    None => return,
                };
                if answered.is_err() {
                    return;
                }
            }
            Word::Gone { slot, generation } => front.end_client(slot, generation),
            Word::Nobody => {
                if let Some(pool) = &pool {
                    pool.news.notify_one();
                }
            }
            Word::Idle { slot, generation } => front.time_idle_session(slot, generation),
            Word::Kill { slot, generation } => {
                front.kill_client(slot, generation);
            }
            Word::Look => front.pools.all().iter().for_each(|pool| pool.news.notify_one()),
            Word::Later { slot, generation } => {
                let Some(words) = front.shared.slots.get(slot as usize) else { return };
                if words.word.seen().generation() != generation {
                    continue;
                }
                let times = words.parts.fetch_add(1, Relaxed).min(16);
                // From the first part on: a backend that looks at it does not make it younger.
                if words.part_since.load(Relaxed) == 0 {
                    words.part_since.store(now(), Relaxed);
                }
                if let Some(pool) = &pool {
                    pool.parts.lock().insert((slot, generation));
                }
                let pause = (LATER.0 * 2u32.pow(times)).min(LATER.1);
                let to_arm = Arc::clone(front);
                front.spawn(async move {
                    tokio::time::sleep(pause).await;
                    let word = &to_arm.shared.slots[slot as usize].word;
                    let mut seen = word.seen();
                    // Whoever writes to it arms it afterwards.
                    while seen.state() == State::Notifying && !word.call(generation) {
                        seen = word.seen();
                    }
                    if seen.state() == State::Idle && seen.generation() == generation {
                        to_arm.seats.arm(slot, generation);
                    }
                });
            }
            Word::Listen { slot, generation, request } => {
                let (Some(server), Some(pool)) = (*speaking, &pool) else { return };
                if !is_of(front, slot, generation) {
                    return;
                }
                let name = pool.words.database_name.bytes();
                let listen = Request {
                    client: slot,
                    database: pool.words.database.load(Relaxed),
                    database_name: &name,
                    channel: &server.channel.bytes(),
                    tentative: true,
                };
                let done = Box::new(move |result| answer(server, request, result));
                front.relay.listen(front, listen, done);
            }
            Word::Unlisten { slot, listen, request } => {
                let Some(server) = *speaking else { return };
                front.relay.unlisten(front, slot, listen);
                answer(server, request, IN_FORCE);
            }
            Word::TakeBack { slot, generation, request } => {
                let Some(server) = *speaking else { return };
                if is_of(front, slot, generation) {
                    front.relay.take_back(front, slot);
                }
                answer(server, request, IN_FORCE);
            }
            Word::Behind { slot, generation } => {
                if is_of(front, slot, generation) {
                    front.relay.behind(slot);
                }
            }
            Word::Relay { source: number, turn } => *source = Some((number, turn)),
            Word::News => front.relay.news(),
            Word::Arm { slot, generation } => front.seats.arm(slot, generation),
            Word::Finish { slot, generation, sent } => {
                if is_of(front, slot, generation) {
                    front.relay.finish(front, slot, sent as usize);
                }
            }
        }
    }
}

/// Whether a slot is still that client's.
fn is_of(front: &Front, slot: u32, generation: u32) -> bool {
    let slot = front.shared.slots.get(slot as usize);
    slot.is_some_and(|slot| slot.word.seen().generation() == generation)
}

/// Answers a backend that waits on its latch.
fn answer(server: &Server, request: u32, result: u32) {
    server.answer.store(u64::from(request) << 32 | u64::from(result), Release);
    pools::wake(server);
}

/// Answers with a descriptor, or that there is none.
async fn give(stream: &UnixStream, descriptor: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    loop {
        stream.ready(Interest::WRITABLE).await?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = descriptor.as_slice();
            if !descriptors.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let bytes = [std::io::IoSlice::new(&[0; ANSWER])];
            let flags = SendFlags::NOSIGNAL;
            Ok(rustix::net::sendmsg(stream.as_fd(), &bytes, &mut ancillary, flags)?)
        });
        match sent {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
