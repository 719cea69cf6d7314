//! The front: what its threads share, and their beginning. Network threads, started by main after it has blocked every signal. How a
//! client comes in is `reception`.
//!
//! - [`ends`]: the ends of clients, and of all of them

mod ends;

use super::agents;
use super::console_client::Consoles;
use super::hands::Hands;
use super::history::{self, History};
use super::limits::Received;
use super::listening::{Listeners, watch_standing};
use super::notifications::Relay;
use super::pools::Pools;
use super::reception::{LOOK_UPS, Port};
use super::seats::{Room, Seats, raise_file_limit};
use super::shared::Shared;
use crate::bridge::{Bridge, Level};
use crate::login::Questions;
use crate::net::keeper::{Family, keep};
use crate::net::threads::Threads;
use crate::net::tls::Identity;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// The kind of the pooler's listeners.
pub const POOLER: crate::net::slots::Kind = 4;

/// The kind of the listen-only port's listeners.
pub const LISTEN_ONLY: crate::net::slots::Kind = 5;

const LISTENERS: Family = Family {
    kind: POOLER,
    name: "pooler",
    setting: "postern.pooler_listen",
    addresses: |settings| &settings.pooler.listen,
};

const LISTEN_ONLY_LISTENERS: Family = Family {
    kind: LISTEN_ONLY,
    name: "listen-only port",
    setting: "postern.relay_listen",
    addresses: |settings| &settings.pooler.relay_listen,
};

/// Everything that the front's threads share.
pub struct Front {
    pub shared: Shared,
    pub bridge: Bridge<()>,
    pub questions: Questions,
    pub pools: Pools,
    pub seats: Seats,
    pub room: Room,
    /// The system's name of the user that we run as.
    pub system_user: String,
    /// The system's name of any user. May take its time.
    pub user_name: fn(u32) -> Option<String>,
    /// The name of a host whose address is confirmed by it. May take its time.
    pub host_name: fn(std::net::IpAddr) -> Option<String>,
    /// What has come over a TCP connection, by its descriptor's number, where the system says.
    pub received: fn(std::os::fd::RawFd) -> Option<Received>,
    /// The server is stopping and waits for its sessions' end.
    pub stopping: AtomicBool,
    pub(super) identity: Mutex<Option<Arc<Identity>>>,
    /// The postmaster's process id.
    pub postmaster: i32,
    pub consoles: Consoles,
    pub listeners: Listeners,
    pub hands: Arc<Hands>,
    pub history: History,
    pub(super) free: Mutex<Vec<u32>>,
    /// Logins under way, in the order in which they came.
    pub(super) logins: Mutex<BTreeMap<u64, Option<AbortHandle>>>,
    pub(super) login_number: AtomicU64,
    /// Places for those who look up a name.
    pub(super) look_ups: Arc<Semaphore>,
    pub relay: Box<dyn Relay>,
}

/// What main knows when it starts the front.
pub struct Start {
    pub shared: Shared,
    pub questions: Questions,
    pub system_user: String,
    pub user_name: fn(u32) -> Option<String>,
    pub host_name: fn(std::net::IpAddr) -> Option<String>,
    pub received: fn(std::os::fd::RawFd) -> Option<Received>,
    pub postmaster: i32,
    /// Files that a server process may open for itself.
    pub own_files: u64,
    pub relay: Box<dyn Relay>,
}

/// Starts the front's threads; dropping what is returned ends them within [`Threads::END`].
///
/// # Errors
/// When the system gives no thread, or not the control socket's name.
pub fn start(bridge: &Bridge<()>, start: Start) -> std::io::Result<Threads> {
    let Start {
        shared,
        questions,
        system_user,
        user_name,
        host_name,
        received,
        postmaster,
        own_files,
        relay,
    } = start;
    let wanted = u32::try_from(shared.slots.len()).unwrap_or(u32::MAX);
    let limit = raise_file_limit();
    let room = Room::of(limit, own_files, wanted);
    if room.capacity < wanted {
        bridge.log(
            Level::Warning,
            format!(
                "the pooler takes at most {} clients and not {wanted} (postern.max_client_connections), because the limit of open \
                 files is {limit}",
                room.capacity
            ),
        );
    }
    let header = shared.header;
    header.base.store(room.base, Release);
    header.capacity.store(room.capacity, Release);
    let name: [u64; 2] = random_words().ok_or(std::io::ErrorKind::Unsupported)?;
    for (word, value) in header.control.iter().zip(name) {
        word.store(value, Release);
    }
    let control = agents::listen(&shared.control_name())?;
    let front = Arc::new(Front {
        shared,
        bridge: bridge.clone(),
        questions,
        pools: Pools::default(),
        stopping: AtomicBool::new(false),
        seats: Seats::new(room),
        room,
        system_user,
        user_name,
        host_name,
        received,
        identity: Mutex::default(),
        postmaster,
        consoles: Consoles::default(),
        listeners: Listeners::default(),
        hands: Arc::default(),
        history: History::default(),
        free: Mutex::new((0..room.capacity).rev().collect()),
        logins: Mutex::default(),
        login_number: AtomicU64::new(0),
        look_ups: Arc::new(Semaphore::new(LOOK_UPS)),
        relay,
    });
    front.load_identity();
    let mut threads = Threads::new(bridge);
    let to_keep = bridge.clone();
    let hands = Arc::clone(&front.hands);
    let mut all = Vec::new();
    for number in 2..=bridge.settings().pooler.threads {
        let (hands, stop) = (Arc::clone(&hands), bridge.stop());
        all.push(threads.spawn(format!("postern front{number}"), bridge, move || hands.help(stop))?);
    }
    let first = threads.spawn("postern front", bridge, move || async move {
        front.hands.is_first();
        let listeners = &front.shared.header.listeners;
        let to_serve = Arc::clone(&front);
        let serve = move |listener, counts| Arc::clone(&to_serve).accept(listener, counts, Port::Pooler);
        let to_listen = Arc::clone(&front);
        let listen =
            move |listener, counts| Arc::clone(&to_listen).accept(listener, counts, Port::ListenOnly);
        tokio::join!(
            Arc::clone(&front).watch_server(),
            Arc::clone(&front).keep_identity(),
            Arc::clone(&front).watch_idle_clients(),
            agents::serve(Arc::clone(&front), control),
            keep(to_keep.clone(), LISTENERS, listeners, serve),
            keep(to_keep, LISTEN_ONLY_LISTENERS, listeners, listen),
            history::turn(&front),
            watch_standing(&front),
            front.relay.run(Arc::clone(&front))
        );
        front.say_goodbye().await;
        let others = async {
            tokio::join!(front.consoles.ended(), front.listeners.ended());
        };
        front.hands.farewell(others).await;
    })?;
    all.insert(0, first);
    hands.set(all);
    Ok(threads)
}

impl Front {
    /// The server's certificate as the settings name it now. A mistake leaves the one of before in force, as with a server.
    fn load_identity(&self) {
        let settings = self.bridge.settings();
        let Some(files) = &settings.pooler.tls else {
            *self.identity.lock() = None;
            return;
        };
        if self.identity.lock().as_ref().is_some_and(|identity| !identity.changed(files)) {
            return;
        }
        match Identity::load(files) {
            Ok(identity) => *self.identity.lock() = Some(Arc::new(identity)),
            Err(error) => {
                self.bridge.log(Level::Warning, format!("the pooler's TLS settings were not loaded: {error}"))
            }
        }
    }

    async fn keep_identity(self: Arc<Self>) {
        let stop = self.bridge.stop();
        let mut settings = self.bridge.settings_watch();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = settings.changed() => if changed.is_err() { return },
            }
            self.load_identity();
        }
    }

    /// A smart shutdown tells nobody: the postmaster only writes it into its file, and waits for the end of every session.
    async fn watch_server(self: Arc<Self>) {
        let stop = self.bridge.stop();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            // A server's process runs in its data directory. The eighth line (LOCK_FILE_LINE_PM_STATUS in miscadmin.h).
            let file = std::fs::read_to_string("postmaster.pid").unwrap_or_default();
            let stopping = file.lines().nth(7).is_some_and(|state| state.trim() == "stopping");
            self.stopping.store(stopping, Relaxed);
        }
    }
}

/// Random words of 8 bytes each.
pub fn random_words<const N: usize>() -> Option<[u64; N]> {
    let mut bytes = [[0; 8]; N];
    getrandom::fill(bytes.as_flattened_mut()).ok()?;
    Some(bytes.map(u64::from_ne_bytes))
}
