//! The worker of one database's relay: it listens for all clients of the pooler and puts what it hears into the ring. One process a
//! database, without a thread: its main thread waits on its latch, and listens and hears when it is woken. Started by the pooler's main
//! thread, and never again by the postmaster; it ends when nobody listens any more or when the front has ended.
//!
//! - `relays`: how the pooler's main thread starts these workers
//! - `direct`: writing to clients from here

mod direct;
mod relays;

pub(super) use self::relays::Relays;
use super::worker::{heed_signals, log};
use super::{shim, shmem};
use crate::bridge::{Level, LogLine};
use crate::pooler::control::Word;
use crate::pooler::seats::raise_file_limit;
use crate::pooler::shared::Shared as Pooler;
use crate::relay::reader::{Batch, Reader};
use crate::relay::ring::Ring;
use crate::relay::shared::{ChannelState, Shared, Source, SourceState};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;
use rustix::net::SendFlags;
use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{Ordering::*, fence};
use std::time::{Duration, Instant};

/// Notifications that are heard before signals are looked at again are those of one wake-up; so often is looked whether the front lives.
const TICK: std::ffi::c_long = 5_000;

/// A channel of so many listeners is written to by the worker itself, where they are idle; beyond that by the front, which has another
/// processor.
const FEW: u32 = 4;

/// How often the sockets of clients that have gone are closed.
const SWEEP: Duration = Duration::from_secs(5);

/// Pooled backends whose clients are remembered. More are open at once only with a larger `max_connections`; what is forgotten shows as
/// the backend's own process id.
const CLIENTS: usize = 10_000;

fn source_of(number: u32) -> Option<&'static Source> {
    shmem::relay()?.header.sources.get(number as usize)
}

/// What the worker's functions share.
struct Worker {
    shared: Shared,
    pooler: Pooler,
    source: &'static Source,
    number: u32,
    turn: u32,
    marker: Vec<u8>,
    /// Numbers of the channels that are listened to.
    channels: HashMap<Vec<u8>, u32>,
    /// The client that a pooled backend notifies for, by the backend's process id: the pid that the client was told.
    clients: HashMap<i32, u32>,
    /// Server connections and up to which of their transactions everything has been heard.
    heard: Vec<(u32, u64)>,
    lock: *mut pg_sys::LWLock,
    /// Channels of few listeners that something has come for.
    heard_of: Vec<u32>,
    /// Clients' sockets, by slot, with the generation.
    sockets: HashMap<u32, (u32, OwnedFd)>,
    swept: Instant,
    reader: Reader,
    batch: Batch,
    /// The message that is being put together.
    message: Vec<u8>,
    control: OwnedFd,
}

/// The one worker of the process.
struct Place(UnsafeCell<Option<Worker>>);

// SAFETY: the process has one thread.
unsafe impl Sync for Place {}

static PLACE: Place = Place(UnsafeCell::new(None));

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_relay_main(argument: pg_sys::Datum) {
    let (number, turn) = super::dynamic::argument(argument);
    run(number, turn);
    if let Some(worker) = worker() {
        // From here on nobody's latch is meant.
        // SAFETY: a word of this process.
        let _ = worker.source.pid.compare_exchange(unsafe { pg_sys::MyProcPid }, 0, AcqRel, Relaxed);
    }
    // SAFETY: the end of a process. It is started again when somebody listens.
    unsafe { super::versions::proc_exit(0) }
}

fn run(number: u32, turn: u32) {
    let (Some(shared), Some(pooler), Some(source)) = (shmem::relay(), shmem::pooler(), source_of(number))
    else {
        return;
    };
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    if source.turn.load(Acquire) != turn {
        return;
    }
    // SAFETY: in a new worker, by the OID of a database, as the bootstrap superuser.
    unsafe {
        let database = pg_sys::Oid::from(source.database.load(Acquire));
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    raise_file_limit();
    // From here on the front hears of our end.
    let Some(control) = connect(pooler) else { return };
    let marker = shared.marker().into_bytes();
    // SAFETY: the tranche was asked for in the postmaster; the process's only thread.
    unsafe {
        let lock = &raw mut (*pg_sys::GetNamedLWLockTranche(shmem::RELAY_LOCK.as_ptr())).lock;
        *PLACE.0.get() = Some(Worker {
            shared,
            pooler,
            source,
            number,
            turn,
            marker: marker.clone(),
            channels: HashMap::new(),
            clients: HashMap::new(),
            heard: Vec::new(),
            lock,
            heard_of: Vec::new(),
            sockets: HashMap::new(),
            swept: Instant::now(),
            reader: Reader::new(shared),
            batch: Batch::default(),
            message: Vec::new(),
            control,
        });
        shim::postern_relay_begin();
    }
    let Some(worker) = worker() else { return };
    worker.say(Word::Relay { source: number, turn });
    if change(&[marker], &[]).is_err() || !worker.is_ours() {
        return;
    }
    // SAFETY: words of this process.
    unsafe {
        source.pid.store(pg_sys::MyProcPid, Release);
        source.proc.store(shim::postern_proc_number(), Release);
    }
    let mut done = 0;
    loop {
        // Whoever asked before this has to wait no longer than for what is heard now.
        let asked = source.asked.load(Acquire);
        // SAFETY: outside a transaction.
        unsafe { shim::postern_relay_hear() };
        if let Some(worker) = self::worker() {
            if !worker.is_ours() || source.retire.load(Acquire) == 1 {
                return;
            }
            worker.publish();
            if source.heard.load(Relaxed) != asked {
                source.heard.store(asked, Release);
                worker.tell();
            }
            worker.give_directly();
            let wanted = source.wanted.load(Acquire);
            if wanted != done {
                if worker.listen().is_err() {
                    return;
                }
                done = wanted;
                source.done.store(done, Release);
                if source.state() == SourceState::Starting {
                    source.state.store(SourceState::Running as u32, SeqCst);
                }
                worker.tell();
                continue;
            }
        }
        if let Some(worker) = self::worker()
            && worker.swept.elapsed() >= SWEEP
        {
            worker.swept = Instant::now();
            worker.sweep();
        }
        if BackgroundWorker::sigterm_received() || wait() {
            return;
        }
        heed_signals();
    }
}

fn worker() -> Option<&'static mut Worker> {
    // SAFETY: the process has one thread; whoever has it calls nothing that comes here again, but for the server's hearing, before
    // which it is let go.
    unsafe { (*PLACE.0.get()).as_mut() }
}

/// Sleeps until something is to be done; whether the postmaster has died.
fn wait() -> bool {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_POSTMASTER_DEATH | pg_sys::WL_TIMEOUT;
    // SAFETY: our own latch, on the thread that owns it.
    let happened = unsafe {
        let happened = pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, TICK, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
        happened
    };
    happened & pg_sys::WL_POSTMASTER_DEATH as c_int != 0
}

fn connect(pooler: Pooler) -> Option<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let address = SocketAddrUnix::new_abstract_name(pooler.control_name().as_bytes()).ok()?;
    let control = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).ok()?;
    connect(&control, &address).ok()?;
    // The name is in nobody's directory: whoever holds it must be the server's own user.
    let peer = rustix::net::sockopt::socket_peercred(&control).ok()?;
    (peer.uid == rustix::process::geteuid()).then_some(control)
}

/// Listens to channels and leaves others, in a transaction.
fn change(listen: &[Vec<u8>], leave: &[Vec<u8>]) -> Result<(), ()> {
    let names = |names: &[Vec<u8>]| -> Vec<CString> {
        names.iter().filter_map(|name| CString::new(&name[..]).ok()).collect()
    };
    let (listen, leave) = (names(listen), names(leave));
    let change = AssertUnwindSafe(|| {
        // SAFETY: at the top of a worker, outside a transaction; terminated strings.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            for name in &leave {
                shim::Async_Unlisten(name.as_ptr());
            }
            for name in &listen {
                shim::Async_Listen(name.as_ptr());
            }
            pg_sys::CommitTransactionCommand();
        }
        Ok(())
    });
    PgTryBuilder::new(change)
        .catch_others(|error| {
            let report = shim::report(&error);
            let text = format!("the notification relay could not listen: {}", report.message());
            log(LogLine { level: Level::Warning, text });
            Err(())
        })
        .execute()
}

impl Worker {
    fn say(&self, word: Word) {
        let _ = rustix::net::send(&self.control, &word.to_bytes(), SendFlags::NOSIGNAL);
    }

    /// Whether this is still the source's worker: the front may have ended, and the next one have given channels' numbers to others.
    fn is_ours(&self) -> bool {
        self.source.turn.load(Acquire) == self.turn
    }

    /// The front looks, if it is not looking anyway.
    fn tell(&self) {
        fence(SeqCst);
        if self.source.wants_news.load(Relaxed) == 1 && self.source.wants_news.swap(0, AcqRel) == 1 {
            self.say(Word::News);
        }
    }

    /// What was heard is told to those who wait for it.
    fn publish(&mut self) {
        for (server, sequence) in std::mem::take(&mut self.heard) {
            if let Some(words) = self.pooler.servers.get(server as usize) {
                words.notified.store(sequence, SeqCst);
                // SAFETY: the number of a process that was listed; a latch that is set once too often harms nobody.
                unsafe { shim::postern_wake(words.proc.load(Acquire)) };
            }
        }
    }

    /// Listens to what the front wants to be listened to, and to nothing else.
    fn listen(&mut self) -> Result<(), ()> {
        let (mut listen, mut leave) = (Vec::new(), Vec::new());
        for (number, channel) in self.shared.channels.iter().enumerate() {
            if channel.source.load(Relaxed) != self.number {
                continue;
            }
            match channel.state() {
                ChannelState::Wanted => listen.push((number as u32, channel.name.bytes())),
                ChannelState::Unwanted => leave.push((number as u32, channel.name.bytes())),
                ChannelState::Free | ChannelState::Heard | ChannelState::Left => {}
            }
        }
        let names = |channels: &[(u32, Vec<u8>)]| -> Vec<Vec<u8>> {
            channels.iter().map(|(_, name)| name.clone()).collect()
        };
        // What is heard from its own commit on must find its number.
        for (number, name) in &listen {
            self.channels.insert(name.clone(), *number);
        }
        change(&names(&listen), &names(&leave))?;
        if !self.is_ours() {
            return Err(());
        }
        for (number, name) in leave {
            self.channels.remove(&name);
            self.shared.channels[number as usize].change(ChannelState::Unwanted, ChannelState::Left);
        }
        for (number, _) in listen {
            self.shared.channels[number as usize].change(ChannelState::Wanted, ChannelState::Heard);
        }
        Ok(())
    }

    /// A notification: the process id of who notified, the channel and the payload, both terminated.
    fn hear(&mut self, body: &[u8]) {
        if !self.is_ours() {
            return;
        }
        let Some((pid, rest)) = body.split_first_chunk() else { return };
        let pid = i32::from_be_bytes(*pid);
        let Some(end) = rest.iter().position(|byte| *byte == 0) else { return };
        let (channel, payload) = rest.split_at(end);
        if channel == self.marker {
            self.mark(pid, &payload[1..]);
            return;
        }
        let Some(number) = self.channels.get(channel) else { return };
        let shown = self.clients.get(&pid).copied().unwrap_or(pid.cast_unsigned());
        self.message.clear();
        self.message.push(b'A');
        self.message.extend((body.len() as u32 + 4).to_be_bytes());
        self.message.extend(shown.to_be_bytes());
        self.message.extend(rest);
        let Some(channel) = self.shared.channels.get(*number as usize) else { return };
        // SAFETY: the lock of the relays; what is done under it cannot fail.
        unsafe {
            pg_sys::LWLockAcquire(self.lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
            Ring::new(self.shared).append(*number, channel, &self.message);
            pg_sys::LWLockRelease(self.lock);
        }
        self.shared.header.counters.received.fetch_add(1, Relaxed);
        if channel.listeners.load(Relaxed) > FEW {
            self.tell();
        } else if !self.heard_of.contains(number) {
            self.heard_of.push(*number);
        }
    }

    /// A pooled backend says for which client it notifies from here on, and with which number.
    fn mark(&mut self, pid: i32, payload: &[u8]) {
        let text = std::str::from_utf8(payload).unwrap_or_default().trim_end_matches('\0');
        let mut words = text.split(' ').map(|word| word.parse::<u64>().ok());
        let (Some(Some(client)), Some(Some(server)), Some(Some(sequence))) =
            (words.next(), words.next(), words.next())
        else {
            return;
        };
        if self.clients.len() >= CLIENTS {
            self.clients.clear();
        }
        self.clients.insert(pid, client as u32);
        self.heard.retain(|(other, _)| u64::from(*other) != server);
        self.heard.push((server as u32, sequence));
    }
}

/// See shim/relay.c.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_relay_hears(body: *const c_char, length: usize) {
    // SAFETY: the body of a message of the server's, for the time of the call.
    let body = unsafe { std::slice::from_raw_parts(body.cast::<u8>(), length) };
    if let Some(worker) = worker() {
        worker.hear(body);
    }
}
