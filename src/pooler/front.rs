//! The front: what its threads share, and the ends of clients. Network threads, started by main after it has blocked every
//! signal. How a client comes in is `reception`.

use super::agents;
use super::console_client::Consoles;
use super::hands::Hands;
use super::history::{self, History};
use super::limits::Received;
use super::listening::{Listeners, NO_POOL, watch_standing};
use super::notifications::Relay;
use super::pools::{self, Pools};
use super::reception::{LOOK_UPS, Port};
use super::seats::{Room, Seats, raise_file_limit};
use super::shared::{Doom, ServerState, Shared, Slot};
use super::slot::State;
use crate::bridge::{Bridge, Level};
use crate::login::{Question, Questions};
use crate::net::keeper::{Family, keep};
use crate::net::threads::Threads;
use crate::net::tls::Identity;
use crate::wire::message::Report;
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

/// When the front ends: how often clients are looked at that may become idle yet, and after which pause.
const LAST_LOOKS: u32 = 20;
const LAST_LOOK: Duration = Duration::from_millis(5);

/// How long a client that is to be ended may finish what it has running.
const PROMPT: Duration = Duration::from_millis(50);

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
    let name = random_words().ok_or(std::io::ErrorKind::Unsupported)?;
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

    /// For the log: a client that nobody serves is ended.
    pub fn log_end(&self, number: u32, report: &Report) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let pool = slot.pool.load(Acquire);
        let names = if pool == NO_POOL {
            self.listeners.names(number)
        } else {
            let pool = self.shared.pools.get(usize::from(pool));
            pool.map(|pool| (pool.role_name.text(), pool.database_name.text()))
        };
        let Some((role, database)) = names else { return };
        let pid = Shared::client_pid(number);
        let text = format!("client {pid} of {role}@{database} ended: {}", report.message);
        self.bridge.log(Level::Log, text);
    }

    /// Ends a client whose slot is Closing: its socket, its texts, its slot.
    pub fn end_client(self: &Arc<Self>, number: u32, generation: u32) {
        let Some(slot) = self.shared.slots.get(number as usize) else { return };
        let seen = slot.word.seen();
        if seen.state() != State::Closing || seen.generation() != generation {
            return;
        }
        self.seats.close(number, generation);
        self.relay.unlisten_all(self, number);
        if let Some(pool) = self.shared.pools.get(slot.pool.load(Acquire) as usize) {
            pool.clients.fetch_sub(1, Relaxed);
        }
        if slot.has_texts() {
            let front = Arc::clone(self);
            self.spawn(async move { front.forget(number, generation).await });
        } else {
            // Its last backend has freed them.
            self.free_slot(number, generation);
        }
    }

    /// Main frees the client's texts before anybody else gets the slot.
    pub(super) async fn forget(&self, number: u32, generation: u32) {
        while self.questions.ask(|reply| Question::Forget { slot: number, reply }).await.is_err() {
            if self.bridge.stop().is_cancelled() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.free_slot(number, generation);
    }

    /// A slot without texts is for the next client.
    pub(super) fn free_slot(&self, number: u32, generation: u32) {
        let slot = &self.shared.slots[number as usize];
        slot.admitted_role.store(0, Relaxed);
        slot.admitted_database.store(0, Relaxed);
        if slot.word.free(generation) {
            self.free.lock().push(number);
        }
    }

    /// Ends a client that nobody serves, with its last words; false when somebody does, or it is gone.
    pub fn end_idle(self: &Arc<Self>, number: u32, generation: u32, report: &Report) -> bool {
        let closed =
            self.shared.slots.get(number as usize).is_some_and(|slot| slot.word.close_idle(generation));
        if closed {
            self.seats.say(number, generation, &report.to_bytes());
            self.end_client(number, generation);
        }
        closed
    }

    /// Has a client ended, whoever has it: one that is served hears it from its backend, which ends with it. False when that client
    /// is gone already.
    pub fn kill_client(self: &Arc<Self>, number: u32, generation: u32) -> bool {
        let Some(slot) = self.shared.slots.get(number as usize) else { return false };
        let seen = slot.word.seen();
        let there = seen.generation() == generation
            && !matches!(seen.state(), State::Free | State::Login | State::Closing);
        if there {
            let front = Arc::clone(self);
            let doom = Doom::Administrator;
            self.spawn(async move { front.end_wherever_it_is(number, generation, doom).await });
        }
        there
    }

    /// A backend that is told may let go of the client before it hears it: then the next look finds the client elsewhere.
    pub(super) async fn end_wherever_it_is(self: Arc<Self>, number: u32, generation: u32, doom: Doom) {
        let slot = &self.shared.slots[number as usize];
        let report = doom.report();
        let mut pause = Duration::from_millis(5);
        loop {
            let seen = slot.word.seen();
            if seen.generation() != generation {
                return;
            }
            // Said again each time: one that comes too late to end the client before may have said over it.
            slot.doom.store(doom as u32, Relaxed);
            slot.doomed.store(generation, SeqCst);
            match seen.state() {
                State::Free | State::Login | State::Closing => return,
                State::Idle if self.end_idle(number, generation, &report) => return,
                State::Attached => {
                    let insist = doom == Doom::Administrator && pause > PROMPT;
                    self.tell_backend_of(slot, generation, insist);
                }
                State::Listening => self.listeners.doom(number, generation),
                // Whoever writes to it looks, too.
                State::Idle | State::Cancelling | State::Notifying | State::Called => {}
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(Duration::from_secs(1));
        }
    }

    /// As with a cancel: meanwhile the backend keeps the client.
    fn tell_backend_of(&self, slot: &Slot, generation: u32, insist: bool) {
        let Some(number) = slot.word.start_cancel(generation) else { return };
        if let Some(server) = self.shared.servers.get(number as usize) {
            if insist && server.state() == ServerState::Serving {
                // Busy for longer than a moment: it is ended with its query.
                pools::signal(server, rustix::process::Signal::TERM);
            } else {
                // At its next idle moment, which may be now, it ends the client itself.
                pools::wake(server);
            }
        }
        slot.word.cancelled(generation, number);
    }

    /// The front ends: idle clients hear why. Those that are served are their backends' affair; over TLS they hear them only while
    /// we are there.
    async fn say_goodbye(self: &Arc<Self>) {
        self.end_idle_clients_for_good(false);
        self.retire_servers();
        for _ in 0..LAST_LOOKS {
            // Backends give back the clients that they have waited for, and whoever writes to one is soon done.
            tokio::time::sleep(LAST_LOOK).await;
            if !self.end_idle_clients_for_good(false) {
                break;
            }
        }
        // Who becomes idle from here on is ended by the backend that has served it.
        let header = self.shared.header;
        header.ending.store(header.epoch.load(Acquire), SeqCst);
        self.end_idle_clients_for_good(true);
    }

    /// Whether some may be idle in a moment. At last, those that are still being written to are ended without a word.
    fn end_idle_clients_for_good(self: &Arc<Self>, at_last: bool) -> bool {
        let bytes = Doom::Administrator.report().to_bytes();
        let mut soon = false;
        for (number, slot) in self.shared.slots_in_use() {
            let seen = slot.word.seen();
            match seen.state() {
                State::Idle if slot.word.close_idle(seen.generation()) => {
                    self.seats.say(number, seen.generation(), &bytes);
                    self.seats.close(number, seen.generation());
                }
                State::Notifying | State::Called if at_last => {
                    if slot.word.close_notifying(seen.generation()) {
                        self.seats.close(number, seen.generation());
                    }
                }
                State::Idle | State::Notifying | State::Called => soon = true,
                State::Attached => {
                    let server = self.shared.servers.get(seen.server() as usize);
                    soon |= server.is_some_and(|server| server.state() == ServerState::Staying);
                }
                State::Free | State::Login | State::Closing | State::Cancelling | State::Listening => {}
            }
        }
        soon
    }

    fn retire_servers(&self) {
        for server in self.shared.servers {
            if server.state() != ServerState::Free {
                pools::retire(server);
                let slot = server.slot.load(Acquire).checked_sub(1);
                let slot = slot.and_then(|number| self.shared.slots.get(number as usize));
                if slot.is_some_and(|slot| slot.tls.load(Relaxed) != 0) {
                    pools::signal(server, rustix::process::Signal::TERM);
                }
            }
        }
    }
}

/// Sixteen random bytes.
pub fn random_words() -> Option<[u64; 2]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).ok()?;
    let (high, low) = bytes.split_at(8);
    Some([u64::from_ne_bytes(*high.first_chunk()?), u64::from_ne_bytes(*low.first_chunk()?)])
}
