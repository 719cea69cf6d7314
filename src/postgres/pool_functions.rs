//! What SQL can call of the pooler: the views of schema `postern` that show it stand on these, and an administrator commands it by
//! them. Backends; they read and change words in shared memory, and tell the front over its control socket.

use super::shmem;
use crate::pooler::control::Word;
use crate::pooler::glance::{self, shown};
use crate::pooler::listening::NO_POOL;
use crate::pooler::orders::{self, Which};
use crate::pooler::shared::{ServerState, Shared};
use pgrx::prelude::*;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

/// One row: the pooler's worker. Times are seconds since 1970.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn pooler_status() -> TableIterator<
    'static,
    (
        name!(worker_pid, Option<i32>),
        name!(worker_starts, i64),
        name!(worker_started_at, Option<f64>),
        name!(problem, Option<String>),
        name!(clients, i64),
        name!(client_capacity, i64),
        name!(logins, i64),
        name!(logins_done, i64),
        name!(logins_failed, i64),
        name!(cancels, i64),
        name!(log_lines_dropped, i64),
    ),
> {
    let shared = loaded();
    let header = shared.header;
    let pid = header.worker.pid.load(Relaxed);
    TableIterator::once((
        Some(pid).filter(|pid| *pid != 0),
        header.worker.starts.load(Relaxed) as i64,
        header.worker.started_at().map(seconds),
        worker_problem(&shared, pid),
        glance::clients(&shared).len() as i64,
        i64::from(header.capacity.load(Relaxed)),
        i64::from(header.logins.load(Relaxed)),
        header.counters.clients.load(Relaxed) as i64,
        header.counters.logins_failed.load(Relaxed) as i64,
        header.counters.cancels.load(Relaxed) as i64,
        header.log_dropped.load(Relaxed) as i64,
    ))
}

/// One row a pool. Times are in seconds.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn pooler_pools() -> TableIterator<
    'static,
    (
        name!(database, String),
        name!(role, String),
        name!(pool_mode, Option<String>),
        name!(size, i32),
        name!(paused, bool),
        name!(clients, i32),
        name!(clients_active, i32),
        name!(clients_waiting, i32),
        name!(max_wait, Option<f64>),
        name!(servers, i32),
        name!(servers_active, i32),
        name!(servers_idle, i32),
        name!(servers_staying, i32),
        name!(servers_pinned, i32),
        name!(servers_opening, i32),
        name!(transactions, i64),
        name!(assignments, i64),
        name!(swaps, i64),
        name!(wait, f64),
    ),
> {
    let utf8 = speaks_utf8();
    let row = move |pool: glance::PoolGlance| {
        let servers = |state| pool.servers_in(state) as i32;
        (
            shown(&pool.database, utf8),
            shown(&pool.role, utf8),
            pool.mode.and_then(mode_name).map(str::to_owned),
            pool.size as i32,
            pool.paused,
            pool.clients as i32,
            pool.clients_active as i32,
            pool.clients_waiting as i32,
            pool.max_wait.map(|wait| wait.as_secs_f64()),
            pool.servers_open() as i32,
            servers(ServerState::Serving),
            servers(ServerState::Idle),
            servers(ServerState::Staying),
            servers(ServerState::Pinned),
            servers(ServerState::Opening),
            pool.transactions as i64,
            pool.assignments as i64,
            pool.swaps as i64,
            pool.wait.as_secs_f64(),
        )
    };
    TableIterator::new(glance::pools(&loaded()).into_iter().map(row))
}

/// One row a client that is logged in. Times are seconds since 1970.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn pooler_clients() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(database, Option<String>),
        name!(role, Option<String>),
        name!(application_name, String),
        name!(client_addr, Option<String>),
        name!(client_port, Option<i32>),
        name!(tls, bool),
        name!(state, String),
        name!(pinned_by, Vec<String>),
        name!(server_pid, Option<i32>),
        name!(connected_at, f64),
        name!(state_since, f64),
        name!(transactions, i64),
    ),
> {
    let (shared, utf8) = (loaded(), speaks_utf8());
    let mut names = names_of(shared);
    let row = move |client: glance::ClientGlance| {
        let server = client.server.and_then(|number| shared.servers.get(number as usize));
        let (database, role) = match client.pool {
            pool if pool == u32::from(NO_POOL) => names_by_oid(client.database, client.role),
            pool => names(pool),
        };
        (
            Shared::client_pid(client.slot) as i32,
            database,
            role,
            shown(&client.application_name, utf8),
            client.address.map(|(ip, _)| ip.to_string()),
            client.address.map(|(_, port)| i32::from(port)),
            client.tls,
            client.state.name().to_owned(),
            client.pinned_by.into_iter().map(str::to_owned).collect(),
            server.map(|server| server.pid.load(Relaxed)).filter(|pid| *pid != 0),
            seconds(client.connected_at),
            seconds(client.state_since),
            client.transactions as i64,
        )
    };
    TableIterator::new(glance::clients(&shared).into_iter().map(row))
}

/// One row a server connection. Times are seconds since 1970.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn pooler_servers() -> TableIterator<
    'static,
    (
        name!(pid, Option<i32>),
        name!(database, Option<String>),
        name!(role, Option<String>),
        name!(state, String),
        name!(client_pid, Option<i32>),
        name!(opened_at, f64),
        name!(state_since, f64),
        name!(transactions, i64),
        name!(swaps, i64),
        name!(retiring, bool),
    ),
> {
    let shared = loaded();
    let mut names = names_of(shared);
    let row = move |server: glance::ServerGlance| {
        let (database, role) = names(server.pool);
        (
            Some(server.pid).filter(|pid| *pid != 0),
            database,
            role,
            state_name(server.state).to_owned(),
            server.client.map(|slot| Shared::client_pid(slot) as i32),
            seconds(server.opened_at),
            seconds(server.state_since),
            server.transactions as i64,
            server.swaps as i64,
            server.retiring,
        )
    };
    TableIterator::new(glance::servers(&shared).into_iter().map(row))
}

/// Clients of the pools get no server connection until `resume`; open ones are closed as they become free. Returns at once; how many
/// pools.
#[pg_extern(volatile, parallel_unsafe)]
fn pause(database: default!(Option<&str>, "NULL"), role: default!(Option<&str>, "NULL")) -> i32 {
    orders::pause(&loaded(), which(database, role)).unwrap_or_else(|error| {
        ereport!(ERROR, PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, error.to_string());
    }) as i32
}

/// Ends what `pause` began. How many pools were paused.
#[pg_extern(volatile, parallel_unsafe)]
fn resume(database: default!(Option<&str>, "NULL"), role: default!(Option<&str>, "NULL")) -> i32 {
    let shared = loaded();
    let resumed = orders::resume(&shared, which(database, role));
    // Without it the front looks within a second.
    let _ = tell_front(&shared, Word::Look);
    resumed as i32
}

/// Closes every server connection of now once it is free. How many.
#[pg_extern(volatile, parallel_unsafe)]
fn reconnect(database: default!(Option<&str>, "NULL"), role: default!(Option<&str>, "NULL")) -> i32 {
    orders::reconnect(&loaded(), which(database, role)) as i32
}

/// Closes the server connections that no client has. How many.
#[pg_extern(volatile, parallel_unsafe)]
fn disconnect_idle(database: default!(Option<&str>, "NULL"), role: default!(Option<&str>, "NULL")) -> i32 {
    orders::disconnect_idle(&loaded(), which(database, role)) as i32
}

/// Ends a client by its pid in `postern.clients`, as pg_terminate_backend() ends a session. Whether there was one.
#[pg_extern(volatile, parallel_unsafe)]
fn kill(pid: i32) -> bool {
    let shared = loaded();
    let Some(slot) = u32::try_from(pid).ok().and_then(Shared::slot_of_pid) else {
        ereport!(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("{pid} is not the pid of a client of the pooler"),
            "See postern.clients for the pids of clients; pg_terminate_backend() ends other sessions."
        );
        unreachable!()
    };
    let Some(words) = shared.slots.get(slot as usize) else { return false };
    let generation = words.word.seen().generation();
    if !glance::is_logged_in(words) {
        return false;
    }
    if let Err(error) = tell_front(&shared, Word::Kill { slot, generation }) {
        ereport!(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("the pooler does not answer: {error}")
        );
    }
    true
}

/// Gives the names of a pool's database and role, by its number; none where it has gone meanwhile.
fn names_of(shared: Shared) -> impl FnMut(u32) -> (Option<String>, Option<String>) {
    let utf8 = speaks_utf8();
    let mut known = HashMap::new();
    move |number| {
        let look = || {
            let words = shared.pools.get(number as usize)?;
            let pool = glance::pool((number as usize, words))?;
            Some((shown(&pool.database, utf8), shown(&pool.role, utf8)))
        };
        known.entry(number).or_insert_with(look).clone().unzip()
    }
}

/// The names that a database and a role have now; none for one that has gone.
fn names_by_oid(database: u32, role: u32) -> (Option<String>, Option<String>) {
    // SAFETY: in a transaction; a name is null or a terminated text in the server's memory, and valid in this database's encoding as
    // far as names are.
    let text = |name: *const std::ffi::c_char| unsafe {
        (!name.is_null()).then(|| std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned())
    };
    // SAFETY: catalog lookups by OID, without an error for one that is missing.
    unsafe {
        let database = text(pg_sys::get_database_name(database.into()));
        (database, text(pg_sys::GetUserNameFromId(role.into(), true)))
    }
}

fn which<'a>(database: Option<&'a str>, role: Option<&'a str>) -> Which<'a> {
    Which { database: database.map(str::as_bytes), role: role.map(str::as_bytes) }
}

/// Says a word on the control socket; there is no answer.
fn tell_front(shared: &Shared, word: Word) -> rustix::io::Result<()> {
    use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
    let address = SocketAddrUnix::new_abstract_name(shared.control_name().as_bytes())?;
    // A session must not hang here: a full queue is an error.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    rustix::net::send(&socket, &word.to_bytes(), SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The pooler's tables, or the error that tells how to load the library.
fn loaded() -> Shared {
    shmem::pooler().unwrap_or_else(|| super::functions::not_loaded())
}

fn worker_problem(shared: &Shared, pid: i32) -> Option<String> {
    if shared.header.no_worker_slot.load(Relaxed) != 0 {
        return Some("the pooler has no place: raise max_worker_processes and restart the server".to_owned());
    }
    (pid == 0).then(|| "the pooler is not running; it is started again within a second".to_owned())
}

fn mode_name(mode: u32) -> Option<&'static str> {
    super::guc::PoolMode::NAMES.get(mode as usize).copied()
}

fn state_name(state: ServerState) -> &'static str {
    match state {
        ServerState::Free => "free",
        ServerState::Opening => "opening",
        ServerState::Idle => "idle",
        ServerState::Serving => "active",
        ServerState::Staying => "staying",
        ServerState::Pinned => "pinned",
    }
}

pub(super) fn speaks_utf8() -> bool {
    // SAFETY: a number that is set for every backend.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
