//! What the console sees and does: the front's own state and the words in shared memory, as `console::Operator` wants them. Called on
//! network threads; nothing here waits.

use super::console::{
    ChannelReport, ClientReport, ClientState, ConsoleReport, DATABASE, DatabaseReport, Error, ListsReport,
    MemoryReport, Operator, PoolMode, PoolReport, Progress, Replication, ServerReport,
    ServerState as Reported, SettingReport, Shutdown, SocketReport, State as Whole, StatsReport, UserReport,
};
use super::console_client::Client;
use super::front::Front;
use super::glance;
use super::listening::NO_POOL;
use super::notifications::ChannelGlance;
use super::orders::{self, TooMany, Which};
use super::shared::{Order, POOLS, Pool, Server, ServerState, Slot, now};
use super::slot::State;
use crate::bridge::Level;
use crate::login::Origin;
use crate::net::tls::session::cipher;
use crate::settings::{ListenAddress, PoolerSettings};
use rustix::process::{Signal, getppid, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The front, for one client of its console.
pub struct Console<'a> {
    front: &'a Arc<Front>,
    role: &'a str,
    /// Databases of the server that take connections.
    known: BTreeSet<String>,
}

/// What KILL_CLIENT and the reports call a connection. 31 bits, because PgBouncer's column is an int4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id {
    /// The slot, and which of those that had it, of 4095.
    Client(u32, u32),
    Server(u32),
    Console(u32),
}

const SLOT_BITS: u32 = 18;

impl Id {
    fn client(slot: u32, generation: u32) -> Self {
        Self::Client(slot, generation % 4095 + 1)
    }

    fn number(self) -> u64 {
        u64::from(match self {
            Self::Client(slot, generation) => generation << SLOT_BITS | slot,
            Self::Server(number) => 0x4000_0000 | number,
            Self::Console(number) => 0x6000_0000 | number,
        })
    }

    fn of(number: u64) -> Option<Self> {
        let number = u32::try_from(number).ok()?;
        match number >> 29 {
            0 | 1 => Some(Self::Client(number & ((1 << SLOT_BITS) - 1), number >> SLOT_BITS)),
            2 => Some(Self::Server(number & 0x1fff_ffff)),
            3 => Some(Self::Console(number & 0x1fff_ffff)),
            _ => None,
        }
    }
}

/// A client in use, as it was at one moment.
struct Seen<'a> {
    number: u32,
    generation: u32,
    slot: &'a Slot,
    pool: u32,
    /// Of a server that works for it.
    server: Option<u32>,
    waits: bool,
}

impl<'a> Console<'a> {
    pub fn new(front: &'a Arc<Front>, role: &'a str) -> Self {
        Self { front, role, known: BTreeSet::new() }
    }

    /// What databases the server has.
    pub fn know(&mut self, databases: Vec<Vec<u8>>) {
        self.known = databases.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    }

    fn used<'b>(&self, database: Option<&'b str>) -> impl Iterator<Item = (u32, &'static Pool)> + use<'b> {
        of(database).pools(self.front.shared.pools)
    }

    /// Server connections to a database, or all, with their numbers.
    fn servers_of<'b>(
        &self,
        database: Option<&'b str>,
    ) -> impl Iterator<Item = (u32, &'static Server)> + use<'b> {
        of(database).connections(self.front.shared)
    }

    /// Clients of all pools.
    fn seen(&self) -> Vec<Seen<'static>> {
        let shared = self.front.shared;
        let queues: BTreeSet<_> = self
            .front
            .pools
            .all()
            .iter()
            .filter(|pool| pool.words.waiters.load(SeqCst) <= 0 && pool.has_ready_clients())
            .map(|pool| pool.number)
            .collect();
        let look = |(number, slot): (u32, &'static Slot)| {
            let seen = slot.word.seen();
            let pool = u32::from(slot.pool.load(Acquire));
            let (server, waits) = match seen.state() {
                State::Free | State::Login | State::Closing => return None,
                State::Listening => (None, false),
                State::Idle | State::Notifying | State::Called => {
                    let ready = || slot.is_fresh() || self.front.seats.is_ready(number, seen.generation());
                    (None, queues.contains(&pool) && ready())
                }
                State::Attached | State::Cancelling => {
                    let number = seen.server();
                    let staying = |server: &Server| server.state() == ServerState::Staying;
                    // One that may be called back is free.
                    (
                        Some(number).filter(|_| !shared.servers.get(number as usize).is_some_and(staying)),
                        false,
                    )
                }
            };
            Some(Seen { number, generation: seen.generation(), slot, pool, server, waits })
        };
        shared.slots_in_use().filter_map(look).collect()
    }

    fn names(&self, pool: u32) -> (Option<String>, Option<String>) {
        let pool = self.front.shared.pools.get(pool as usize);
        (pool.map(|pool| pool.role_name.text()), pool.map(|pool| pool.database_name.text()))
    }

    /// Of a client's role and database.
    fn names_of(&self, client: &Seen<'_>) -> (Option<String>, Option<String>) {
        if client.pool == u32::from(NO_POOL) {
            self.front.listeners.names(client.number).unzip()
        } else {
            self.names(client.pool)
        }
    }

    /// Databases of the server, and those that have pools still.
    fn database_names(&self) -> BTreeSet<String> {
        let pools = self.used(None).map(|(_, pool)| pool.database_name.text());
        pools.chain(self.known.iter().cloned()).collect()
    }

    fn port(&self) -> u16 {
        let settings = self.front.bridge.settings();
        let port = |entry: &ListenAddress| match entry {
            ListenAddress::Any(port) | ListenAddress::Ip(_, port) | ListenAddress::Name(_, port) => {
                Some(*port)
            }
            ListenAddress::Unix(_) => None,
        };
        settings.pooler.listen.iter().find_map(port).unwrap_or(0)
    }

    /// # Errors
    /// [`Error::NoSuchDatabase`].
    fn check(&self, database: Option<&str>) -> Result<(), Error> {
        match database {
            Some(name)
                if !self.known.contains(name)
                    && self.used(None).all(|(_, pool)| pool.database_name.text() != name) =>
            {
                Err(Error::NoSuchDatabase(name.to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn note(&self, what: &str, database: Option<&str>) {
        let of = database.map_or(String::new(), |name| format!(" {name}"));
        self.front.bridge.log(Level::Log, format!("pooler console: {what}{of} by role \"{}\"", self.role));
    }

    fn order_pause(&self, database: Option<&str>) -> Result<(), Error> {
        if self.front.shared.is_paused(None) {
            return Err(Error::AlreadyPaused);
        }
        orders::pause(&self.front.shared, of(database)).map_err(failed)?;
        Ok(())
    }
}

/// The pools of a database, or all.
fn of(database: Option<&str>) -> Which<'_> {
    Which { database: database.map(str::as_bytes), role: None }
}

fn failed(error: TooMany) -> Error {
    Error::Failed(error.to_string())
}

/// By the numbers that [`PoolerSettings::pool_mode`] has.
fn mode(number: u32) -> PoolMode {
    match number {
        1 => PoolMode::Session,
        2 => PoolMode::Statement,
        _ => PoolMode::Transaction,
    }
}

fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// How long ago that was; 0 is never.
fn ago(micros: i64) -> Duration {
    if micros == 0 {
        Duration::ZERO
    } else {
        Duration::from_micros(u64::try_from(now() - micros).unwrap_or(0))
    }
}

fn console_report(client: &Client, port: u16) -> ClientReport {
    let (addr, remote_port) = match client.origin {
        Origin::Tcp(address) => (address.ip().to_string(), address.port()),
        Origin::Unix => ("unix".to_owned(), port),
    };
    let socket = SocketReport {
        id: Id::Console(client.number).number(),
        link: None,
        user: Some(client.role.clone()),
        database: Some(DATABASE.to_owned()),
        replication: Replication::None,
        local_addr: if matches!(client.origin, Origin::Unix) { "unix".to_owned() } else { String::new() },
        addr,
        port: remote_port,
        local_port: port,
        connect_time: time(client.connected_at),
        request_time: time(client.asked_at.load(Relaxed)),
        wait: Duration::ZERO,
        close_needed: false,
        remote_pid: 0,
        tls: String::new(),
        application_name: String::new(),
        prepared_statements: 0,
        unread: 0,
        unsent: 0,
    };
    ClientReport { state: ClientState::Active, socket }
}

impl Operator for Console<'_> {
    fn itself(&self) -> ConsoleReport {
        ConsoleReport { clients: self.front.consoles.all().len() as u64, port: self.port() }
    }

    fn state(&self) -> Whole {
        if self.front.shared.is_paused(None) { Whole::Paused } else { Whole::Active }
    }

    fn databases(&self) -> Vec<DatabaseReport> {
        let settings = self.front.bridge.settings();
        let orders = &self.front.shared.header.orders;
        let report = |name: String| {
            let sum = |count: fn(&Pool) -> u32| -> u64 {
                self.used(Some(&name)).map(|(_, pool)| u64::from(count(pool))).sum()
            };
            DatabaseReport {
                host: None,
                port: settings.pooler.door.port,
                database: name.clone(),
                force_user: None,
                pool_size: settings.pooler.pool_size,
                min_pool_size: settings.pooler.min_pool_size,
                reserve_pool_size: settings.pooler.reserve_pool_size,
                server_lifetime: settings.pooler.server_lifetime.unwrap_or_default(),
                pool_mode: None,
                max_connections: 0,
                current_connections: sum(|pool| pool.servers.load(Relaxed)),
                max_client_connections: 0,
                current_client_connections: sum(|pool| pool.clients.load(Relaxed)),
                // As PgBouncer, which shows by itself what is paused as a whole.
                paused: orders.has(name.as_bytes(), Order::Pause)
                    || !orders.pause.load(Relaxed)
                        && self.used(Some(&name)).any(|(_, pool)| pool.paused.load(Relaxed)),
                disabled: orders.has(name.as_bytes(), Order::Disable),
                name,
            }
        };
        self.database_names().into_iter().map(report).collect()
    }

    fn users(&self) -> Vec<UserReport> {
        let mut users = BTreeMap::<String, (u64, u64)>::new();
        for (_, pool) in self.used(None) {
            let (servers, clients) = users.entry(pool.role_name.text()).or_default();
            *servers += u64::from(pool.servers.load(Relaxed));
            *clients += u64::from(pool.clients.load(Relaxed));
        }
        let report = |(name, (servers, clients))| UserReport {
            name,
            pool_size: None,
            reserve_pool_size: None,
            pool_mode: None,
            max_user_connections: 0,
            current_connections: servers,
            max_user_client_connections: 0,
            current_client_connections: clients,
        };
        users.into_iter().map(report).collect()
    }

    fn pools(&self) -> Vec<PoolReport> {
        let usual = self.front.bridge.settings().pooler.pool_mode;
        let seen = self.seen();
        let report = |(number, pool): (u32, &'static Pool)| {
            let clients = || seen.iter().filter(|client| client.pool == number);
            let waiting = || clients().filter(|client| client.waits);
            let servers = |wanted: &[ServerState]| {
                let open =
                    self.front.shared.servers.iter().filter(|server| {
                        wanted.contains(&server.state()) && server.pool.load(Acquire) == number
                    });
                open.count() as u64
            };
            let longest = waiting().map(|client| ago(client.slot.waiting_since.get())).max();
            PoolReport {
                database: pool.database_name.text(),
                user: pool.role_name.text(),
                cl_active: clients().filter(|client| !client.waits).count() as u64,
                cl_waiting: waiting().count() as u64,
                cl_active_cancel_req: 0,
                cl_waiting_cancel_req: 0,
                sv_active: servers(&[ServerState::Serving, ServerState::Pinned]),
                sv_active_cancel: 0,
                sv_being_canceled: 0,
                sv_idle: servers(&[ServerState::Idle, ServerState::Staying]),
                sv_used: 0,
                sv_tested: 0,
                sv_login: servers(&[ServerState::Opening]),
                maxwait: longest.unwrap_or_default(),
                // Before its first backend has said it, the setting's.
                pool_mode: mode(pool.mode.load(Relaxed).checked_sub(1).unwrap_or(usual)),
            }
        };
        self.used(None).map(report).collect()
    }

    fn clients(&self) -> Vec<ClientReport> {
        let port = self.port();
        let report = |client: Seen<'_>| {
            let slot = client.slot;
            let (user, database) = self.names_of(&client);
            let end = |address: Option<(IpAddr, u16)>| {
                address.map_or(("unix".to_owned(), port), |(ip, port)| (ip.to_string(), port))
            };
            // As the slot has them: over TLS, what the client's seat holds is one end of a socket pair.
            let ((addr, remote_port), (local_addr, local_port)) =
                (end(glance::remote(slot)), end(glance::local(slot)));
            let socket = SocketReport {
                id: Id::client(client.number, client.generation).number(),
                link: client.server.map(|server| Id::Server(server).number()),
                user,
                database,
                replication: Replication::None,
                addr,
                port: remote_port,
                local_addr,
                local_port,
                connect_time: time(slot.connected_at.load(Relaxed)),
                request_time: time(slot.since.load(Relaxed)),
                wait: if client.waits { ago(slot.waiting_since.get()) } else { Duration::ZERO },
                close_needed: false,
                remote_pid: 0,
                tls: cipher(slot.tls.load(Relaxed))
                    .map_or(String::new(), |cipher| format!("{}/{}", cipher.version, cipher.name)),
                application_name: slot.application_name.text(),
                prepared_statements: 0,
                unread: 0,
                unsent: 0,
            };
            let state = if client.waits { ClientState::Waiting } else { ClientState::Active };
            ClientReport { state, socket }
        };
        let own = self.front.consoles.all();
        let own = own.iter().map(|client| console_report(client, port));
        self.seen().into_iter().map(report).chain(own).collect()
    }

    fn servers(&self) -> Vec<ServerReport> {
        let shared = self.front.shared;
        let door = self.front.bridge.settings().pooler.door.port;
        let report = |(number, server): (u32, &'static Server)| {
            let (user, database) = self.names(server.pool.load(Acquire));
            let state = match server.state() {
                ServerState::Free | ServerState::Opening => Reported::New,
                ServerState::Idle | ServerState::Staying => Reported::Idle,
                ServerState::Serving | ServerState::Pinned => Reported::Active,
            };
            let client = server.slot.load(Acquire).checked_sub(1).filter(|_| state == Reported::Active);
            let slot = client.and_then(|client| Some((client, shared.slots.get(client as usize)?)));
            let socket = SocketReport {
                id: Id::Server(number).number(),
                link: slot.map(|(client, slot)| Id::client(client, slot.word.seen().generation()).number()),
                user,
                database,
                replication: Replication::None,
                addr: "unix".to_owned(),
                port: door,
                local_addr: "unix".to_owned(),
                local_port: door,
                connect_time: time(server.opened_at.load(Relaxed)),
                request_time: time(server.since.load(Relaxed)),
                wait: Duration::ZERO,
                close_needed: server.retire.load(Relaxed),
                remote_pid: u32::try_from(server.pid.load(Acquire)).unwrap_or(0),
                tls: String::new(),
                application_name: slot.map(|(_, slot)| slot.application_name.text()).unwrap_or_default(),
                prepared_statements: 0,
                unread: 0,
                unsent: 0,
            };
            ServerReport { state, socket }
        };
        self.servers_of(None).map(report).collect()
    }

    fn stats(&self) -> Vec<StatsReport> {
        self.front.history.report(self.front.shared.pools)
    }

    fn lists(&self) -> ListsReport {
        let shared = self.front.shared;
        let capacity = u64::from(self.front.room.capacity);
        let used = |(_, slot): &(u32, &Slot)| slot.word.seen().state() != State::Free;
        let slots = shared.slots_in_use().filter(used).count() as u64;
        let servers = shared.servers.iter().filter(|server| server.state() != ServerState::Free).count();
        let users: BTreeSet<_> = self.used(None).map(|(_, pool)| pool.role_name.bytes()).collect();
        ListsReport {
            databases: self.database_names().len() as u64,
            users: users.len() as u64,
            pools: self.used(None).count() as u64,
            free_clients: capacity.saturating_sub(slots),
            used_clients: slots + self.front.consoles.all().len() as u64,
            login_clients: u64::from(shared.header.logins.load(Relaxed)),
            free_servers: (shared.servers.len() - servers) as u64,
            used_servers: servers as u64,
        }
    }

    fn settings(&self) -> Vec<SettingReport> {
        settings(&self.front.bridge.settings().pooler)
    }

    fn channels(&self) -> Vec<ChannelReport> {
        let report = |channel: ChannelGlance| ChannelReport {
            database: glance::shown(&channel.database, true),
            channel: glance::shown(&channel.channel, true),
            listeners: channel.listeners.into(),
            delivered: channel.delivered,
            since: UNIX_EPOCH + Duration::from_micros(u64::try_from(channel.since).unwrap_or(0)),
        };
        self.front.relay.channels().into_iter().map(report).collect()
    }

    fn memory(&self) -> Vec<MemoryReport> {
        let lists = self.lists();
        let pools = self.used(None).count() as u64;
        let report = |name: &str, size: usize, used, free| MemoryReport {
            name: name.to_owned(),
            size: size as u64,
            used,
            free,
        };
        let capacity = u64::from(self.front.room.capacity);
        vec![
            report(
                "client_cache",
                size_of::<Slot>(),
                capacity - lists.free_clients.min(capacity),
                lists.free_clients,
            ),
            report("server_cache", size_of::<Server>(), lists.used_servers, lists.free_servers),
            report("pool_cache", size_of::<Pool>(), pools, (POOLS as u64).saturating_sub(pools)),
        ]
    }

    fn pause(&self, database: Option<&str>) -> Result<(), Error> {
        self.check(database)?;
        self.order_pause(database)?;
        self.note("PAUSE", database);
        Ok(())
    }

    fn paused(&self, database: Option<&str>) -> Progress {
        if !self.front.shared.is_paused(database.map(str::as_bytes)) {
            return Progress::Undone;
        }
        // One whose opening had begun before.
        orders::retire_all(&self.front.shared, of(database));
        if self.servers_of(database).next().is_none() { Progress::Done } else { Progress::Pending }
    }

    fn resume(&self, database: Option<&str>) -> Result<(), Error> {
        self.check(database)?;
        if !orders::take_back_pause(&self.front.shared, database.map(str::as_bytes)) {
            return Err(match database {
                Some(name) => Error::DatabaseNotPaused(name.to_owned()),
                None => Error::NotPaused,
            });
        }
        self.note("RESUME", database);
        for pool in self.front.pools.all() {
            pool.news.notify_one();
        }
        Ok(())
    }

    fn reconnect(&self, database: Option<&str>) -> Result<(), Error> {
        self.check(database)?;
        self.note("RECONNECT", database);
        orders::retire_all(&self.front.shared, of(database));
        Ok(())
    }

    fn wait_close(&self, database: Option<&str>) -> Result<(), Error> {
        self.check(database)
    }

    fn closed(&self, database: Option<&str>) -> Progress {
        let doomed = |(_, server): (u32, &'static Server)| server.retire.load(Acquire);
        if self.servers_of(database).any(doomed) { Progress::Pending } else { Progress::Done }
    }

    fn kill(&self, database: &str) -> Result<(), Error> {
        self.check(Some(database))?;
        self.order_pause(Some(database))?;
        self.note("KILL", Some(database));
        let its = |client: &Seen<'_>| self.names_of(client).1.as_deref() == Some(database);
        let clients = self.seen().into_iter().filter(its);
        let clients: Vec<_> = clients.map(|client| (client.number, client.generation)).collect();
        for (number, generation) in clients {
            self.front.kill_client(number, generation);
        }
        Ok(())
    }

    fn enable(&self, database: &str) -> Result<(), Error> {
        self.check(Some(database))?;
        self.note("ENABLE", Some(database));
        self.front.shared.header.orders.take_back(database.as_bytes(), Order::Disable);
        Ok(())
    }

    fn disable(&self, database: &str) -> Result<(), Error> {
        self.check(Some(database))?;
        self.note("DISABLE", Some(database));
        let given = self.front.shared.header.orders.give(database.as_bytes(), Order::Disable);
        if given { Ok(()) } else { Err(failed(TooMany)) }
    }

    fn kill_client(&self, id: u64) -> Result<(), Error> {
        let done = match Id::of(id) {
            Some(Id::Console(number)) => self.front.consoles.kill(number),
            Some(Id::Client(slot, _)) => self.front.shared.slots.get(slot as usize).is_some_and(|words| {
                let generation = words.word.seen().generation();
                Id::client(slot, generation).number() == id && self.front.kill_client(slot, generation)
            }),
            _ => false,
        };
        if !done {
            return Err(Error::NoSuchClient);
        }
        self.note(&format!("KILL_CLIENT {id}"), None);
        Ok(())
    }

    fn reload(&self) -> Result<(), Error> {
        // As pg_reload_conf() does. A parent of another number is whoever took us over when the postmaster died.
        let postmaster = getppid().filter(|parent| parent.as_raw_nonzero().get() == self.front.postmaster);
        let told = postmaster.is_some_and(|postmaster| kill_process(postmaster, Signal::HUP).is_ok());
        if !told {
            return Err(Error::Failed("failed to send signal to postmaster".to_owned()));
        }
        self.note("RELOAD", None);
        Ok(())
    }

    fn set(&self, setting: &str, _: Option<&str>) -> Result<(), Error> {
        if !self.settings().iter().any(|known| known.key == setting) {
            return Err(Error::UnknownSetting(setting.to_owned()));
        }
        let hint = match own_name(setting) {
            Some(own) => format!("It is the server's {own}: use ALTER SYSTEM SET {own}, and RELOAD."),
            None => "The pooler has no such limit.".to_owned(),
        };
        Err(Error::SettingFixed(setting.to_owned(), hint))
    }

    fn shutdown(&self, _: Shutdown) -> Result<(), Error> {
        Err(Error::Unsupported("SHUTDOWN", "The pooler ends with its server: use pg_ctl stop."))
    }
}

/// Our name of a setting of PgBouncer's.
fn own_name(setting: &str) -> Option<&'static str> {
    Some(match setting {
        "client_idle_timeout" => "postern.client_idle_timeout",
        "client_login_timeout" => "postern.client_login_timeout",
        "default_pool_size" => "postern.pool_size",
        "listen_addr" | "listen_port" => "postern.pooler_listen",
        "max_client_conn" => "postern.max_client_connections",
        "idle_transaction_timeout" => "postern.idle_transaction_timeout",
        "min_pool_size" => "postern.min_pool_size",
        "pool_mode" => "postern.pool_mode",
        "query_timeout" => "postern.query_timeout",
        "query_wait_timeout" => "postern.query_wait_timeout",
        "reserve_pool_size" => "postern.reserve_pool_size",
        "reserve_pool_timeout" => "postern.reserve_pool_timeout",
        "server_connect_timeout" => "postern.server_connect_timeout",
        "server_idle_timeout" => "postern.server_idle_timeout",
        "server_lifetime" => "postern.server_lifetime",
        "server_login_retry" => "postern.server_login_retry",
        "transaction_timeout" => "postern.transaction_timeout",
        "unix_socket_dir" => "unix_socket_directories",
        _ => return None,
    })
}

/// In the order of their names, as PgBouncer's are. Times are in seconds.
fn settings(pooler: &PoolerSettings) -> Vec<SettingReport> {
    let time = |time: Option<Duration>| time.unwrap_or_default().as_secs().to_string();
    let (mut addresses, mut port) = (Vec::new(), None);
    for entry in pooler.listen.iter() {
        let (address, its) = match entry {
            ListenAddress::Any(port) => ("*".to_owned(), *port),
            ListenAddress::Ip(ip, port) => (ip.to_string(), *port),
            ListenAddress::Name(name, port) => (name.clone(), *port),
            ListenAddress::Unix(_) => continue,
        };
        addresses.push(address);
        port.get_or_insert(its);
    }
    let rows = [
        ("client_idle_timeout", time(pooler.client_idle_timeout), "0", true),
        ("client_login_timeout", time(pooler.client_login_timeout), "60", true),
        ("default_pool_size", pooler.pool_size.to_string(), "20", true),
        ("idle_transaction_timeout", time(pooler.idle_transaction_timeout), "0", true),
        ("listen_addr", addresses.join(","), "", true),
        ("listen_port", port.unwrap_or(0).to_string(), "6432", true),
        ("max_client_conn", pooler.max_clients.to_string(), "10000", false),
        ("max_db_connections", "0".to_owned(), "0", false),
        ("max_user_connections", "0".to_owned(), "0", false),
        ("min_pool_size", pooler.min_pool_size.to_string(), "0", true),
        ("pool_mode", mode(pooler.pool_mode).name().to_owned(), "transaction", true),
        ("query_timeout", time(pooler.query_timeout), "0", true),
        ("query_wait_timeout", time(pooler.query_wait_timeout), "120", true),
        ("reserve_pool_size", pooler.reserve_pool_size.to_string(), "0", true),
        ("reserve_pool_timeout", time(pooler.reserve_pool_timeout), "5", true),
        ("server_connect_timeout", time(pooler.server_connect_timeout), "15", true),
        ("server_idle_timeout", time(pooler.server_idle_timeout), "600", true),
        ("server_lifetime", time(pooler.server_lifetime), "3600", true),
        ("server_login_retry", pooler.server_login_retry.as_secs().to_string(), "15", true),
        ("stats_period", super::history::PERIOD.as_secs().to_string(), "60", false),
        ("transaction_timeout", time(pooler.transaction_timeout), "0", true),
        ("unix_socket_dir", pooler.door.socket_directory.clone(), "", false),
    ];
    let report = |(key, value, default, changeable): (&str, String, &str, bool)| SettingReport {
        key: key.to_owned(),
        value: Some(value),
        default: Some(default.to_owned()),
        changeable,
    };
    rows.into_iter().map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_one_connection_and_fit_their_column() {
        let all = [
            Id::client(0, 1),
            Id::client(0, 2),
            Id::client(99_999, u32::MAX),
            Id::client(5, 4095),
            Id::Server(0),
            Id::Server(65_000),
            Id::Console(0),
            Id::Console(0x0fff_ffff),
        ];
        let mut numbers: Vec<_> = all.iter().map(|id| id.number()).collect();
        for (id, number) in all.iter().zip(&numbers) {
            assert_eq!(Id::of(*number), Some(*id));
            assert!((1..=i32::MAX as u64).contains(number), "{id:?} is {number}");
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all.len());
        assert_eq!(Id::of(1 << 31), None);
    }

    #[test]
    fn settings_are_in_order_and_each_says_what_to_do_about_it() {
        let rows = settings(&PoolerSettings::default());
        assert!(rows.is_sorted_by_key(|row| row.key.clone()));
        assert!(rows.iter().filter(|row| row.changeable).all(|row| own_name(&row.key).is_some()));
    }
}
