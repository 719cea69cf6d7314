//! What logins ask, answered from the server's own rules and catalogs: pg_hba.conf, pg_ident.conf, pg_authid, pg_database. The
//! pooler's main thread.
//!
//! - `catalogs`: roles and databases
//! - `facts`: what a session begins with

mod catalogs;
mod facts;

use self::catalogs::{Database, database_with, databases, role_of, standing};
use self::facts::facts;
use super::agent::texts::Texts;
use super::relay::Relays;
use super::shim::{self, RawVerdict};
use super::{activity, sample};
use crate::auth::Challenge;
use crate::login::{Admission, Arrival, Method, Origin, Question, Rights, Verdict};
use crate::pooler::control::PARAMETER;
use crate::pooler::shared::Shared;
use crate::pooler::state::{self, Settings};
use crate::status::facts::ServerState as Server;
use crate::wire::message::Report;
use crate::wire::startup::Replication;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::*;

/// How often sessions are counted again when a pooled backend has begun or ended meanwhile.
const RECOUNTS: u32 = 100;

pub(super) struct Answers {
    shared: Shared,
    texts: Texts,
    /// OIDs of databases by the names that they had when they were last looked for.
    databases: HashMap<Vec<u8>, pg_sys::Oid>,
    relays: Relays,
}

impl Answers {
    pub fn new(shared: Shared, texts: Texts) -> Self {
        // A session does this when it has its database; without it, memberships that were once looked up would stand for ever.
        let watched = guarded(|| {
            // SAFETY: registers callbacks on the catalogs' caches, in a transaction; once in this process.
            unsafe { pg_sys::initialize_acl() };
            Ok(())
        });
        if watched.is_err() {
            warning!("postern: the pooler does not notice changed memberships of roles");
        }
        Self { shared, texts, databases: HashMap::new(), relays: Relays::default() }
    }

    /// Answers one question. An error of the server's is an answer too.
    pub fn answer(&mut self, question: Question) {
        match question {
            Question::Verdict { role, database, origin, tls, host_name, replication, reply } => {
                if let Ok(verdict) = guarded(|| {
                    Ok(self.verdict(&role, &database, origin, tls, host_name.as_deref(), replication))
                }) {
                    let _ = reply.send(verdict);
                }
            }
            Question::Map { map, role, outside, reply } => {
                let _ = reply.send(guarded(|| Ok(map_allows(&map, &role, &outside))).unwrap_or(false));
            }
            Question::Admit { arrival, reply } => {
                let _ = reply.send(guarded(|| self.admit(&arrival)));
            }
            Question::Console { role, unless, reply } => {
                let _ = reply.send(guarded(|| match unless {
                    Some(database) if databases().contains(&database) => Ok(None),
                    _ => console_rights(&role).map(Some),
                }));
            }
            Question::Databases { reply } => {
                if let Ok(names) = guarded(|| Ok(databases())) {
                    let _ = reply.send(names);
                }
            }
            Question::Facts { role, database, reply } => {
                let _ = reply.send(guarded(|| facts(role.into(), database.into())));
            }
            Question::Recovers { reply } => {
                // SAFETY: a word of shared memory.
                let _ = reply.send(unsafe { pg_sys::RecoveryInProgress() });
            }
            Question::Standing { role, database, reply } => {
                // Without an answer the pool goes on as it is.
                if let Ok(standing) = guarded(|| Ok(standing(role.into(), database.into()))) {
                    let _ = reply.send(standing);
                }
            }
            Question::Activity { servers, reply } => {
                let _ =
                    reply.send(servers.into_iter().map(|server| activity::of(self.shared, server)).collect());
            }
            Question::StartRelay { source, turn, reply } => {
                let _ = reply.send(self.relays.start(source, turn));
            }
            Question::RelayLives { source, turn, reply } => {
                let _ = reply.send(self.relays.lives(source, turn));
            }
            Question::Forget { slot, reply } => {
                if let Some(slot) = self.shared.slots.get(slot as usize) {
                    slot.texts().iter().for_each(|word| self.texts.free(word));
                }
                let _ = reply.send(());
            }
        }
    }

    fn verdict(
        &self,
        role: &[u8],
        database: &[u8],
        origin: Origin,
        tls: bool,
        host_name: Option<&str>,
        replication: Replication,
    ) -> Verdict {
        let mut raw = RawVerdict::default();
        let (family, address, _) = origin.words();
        let (role_text, database_text) = (text(role), text(database));
        let host_name = host_name.map(|name| text(name.as_bytes()));
        // SAFETY: terminated strings, four words of address, a verdict to fill; the roles that lines name are looked up, in a
        // transaction.
        unsafe {
            shim::postern_hba(
                database_text.as_ptr(),
                role_text.as_ptr(),
                c_int::from(family),
                address.as_ptr(),
                tls,
                host_name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr()),
                replication as c_int,
                &raw mut raw,
            );
        }
        // SAFETY: filled with terminated texts.
        let (map, line) = unsafe { (owned(&raw.map), owned(&raw.text)) };
        let method = match raw.method {
            1 => Method::Reject,
            2 => Method::NoLine,
            3 => Method::Trust,
            4 => Method::Password,
            5 => Method::Challenge(Challenge::Md5),
            6 => Method::Challenge(Challenge::Scram),
            7 => Method::Cert,
            8 => Method::Peer,
            _ => Method::Other(line.clone()),
        };
        let implicit = method == Method::NoLine;
        Verdict {
            wants_certificate: raw.client_certificate != 0 || method == Method::Cert,
            certificate_names_role: raw.client_certificate == 2,
            certificate_by_dn: raw.certificate_by_dn,
            method,
            line: if implicit { (0, String::new()) } else { (u32::try_from(raw.line).unwrap_or(0), line) },
            map,
            found: role_of(role).map(|role| role.found),
            // SAFETY: an int setting, and the clock.
            password_encryption: match unsafe { pg_sys::Password_encryption } as u32 {
                1 => Challenge::Md5,
                _ => Challenge::Scram,
            },
            // SAFETY: the clock.
            now: unsafe { pg_sys::GetCurrentTimestamp() },
            mock_nonce: mock_nonce(),
        }
    }

    /// What a server checks between authentication and the session, in its order (InitPostgres() in postinit.c).
    fn admit(&mut self, arrival: &Arrival) -> Result<Admission, Report> {
        refuse_while_not_ready()?;
        let name = String::from_utf8_lossy(&arrival.role).into_owned();
        let Some(role) = role_of(&arrival.role) else {
            return Err(Report::fatal("28000", format!("role \"{name}\" does not exist")));
        };
        if !role.can_login {
            return Err(Report::fatal("28000", format!("role \"{name}\" is not permitted to log in")));
        }
        let limited = !role.superuser;
        if limited
            && role.connection_limit >= 0
            && self.sessions(Some(role.oid), None) >= role.connection_limit
        {
            return Err(Report::fatal("53300", format!("too many connections for role \"{name}\"")));
        }
        let database_name = String::from_utf8_lossy(&arrival.database).into_owned();
        let missing = || Report::fatal("3D000", format!("database \"{database_name}\" does not exist"));
        let Database { oid: database, allowed, limit } =
            self.database_of(&arrival.database).ok_or_else(missing)?;
        // SAFETY: in a transaction, by OIDs.
        let may_connect = unsafe { super::versions::may_connect(database, role.oid) };
        if !allowed {
            let words = format!("database \"{database_name}\" is not currently accepting connections");
            return Err(Report::fatal("55000", words));
        }
        if !role.superuser && !may_connect {
            return Err(Report::fatal(
                "42501",
                format!("permission denied for database \"{database_name}\""),
            )
            .with_detail("User does not have CONNECT privilege."));
        }
        if limited && limit >= 0 && self.sessions(None, Some(database)) >= limit {
            return Err(Report::fatal(
                "53300",
                format!("too many connections for database \"{database_name}\""),
            ));
        }
        let slot = self.shared.slots.get(arrival.slot as usize).ok_or_else(missing)?;
        let mut startup = arrival.startup.clone();
        // A client that says it is a pooled connection gets nothing by it, as at the server's own port.
        startup.settings.retain(|(name, _)| name != PARAMETER.as_bytes());
        let bytes = state::encode_settings(&Settings::Startup(startup));
        for word in [&slot.statements, &slot.unnamed, &slot.shown] {
            self.texts.free(word);
        }
        let kept = self.texts.store(&slot.settings, &bytes)
            && (arrival.shown.is_empty() || self.texts.store(&slot.shown, &arrival.shown));
        if !kept {
            return Err(Report::fatal("53200", "out of memory")
                .with_detail("There is no shared memory for the client."));
        }
        slot.admitted_role.store(role.oid.to_u32(), Relaxed);
        slot.admitted_database.store(database.to_u32(), Relaxed);
        Ok(Admission { role: role.oid.to_u32(), database: database.to_u32() })
    }

    /// A database by its name. In a transaction.
    ///
    /// Without a database of its own a process has no index to find one by its name with, but it has the cache of those that it has
    /// found before, by OID.
    fn database_of(&mut self, name: &[u8]) -> Option<Database> {
        if let Some(oid) = self.databases.get(name) {
            if let Some(found) = database_with(*oid, name) {
                return Some(found);
            }
            self.databases.remove(name);
        }
        let wanted = text(name);
        let mut found = Database { oid: pg_sys::InvalidOid, allowed: false, limit: -1 };
        // SAFETY: in a transaction; a catalog lookup by a terminated name, and words to fill.
        let is_there = unsafe {
            shim::postern_database(
                wanted.as_ptr(),
                &raw mut found.oid,
                &raw mut found.allowed,
                &raw mut found.limit,
            )
        };
        if is_there {
            self.databases.insert(name.to_vec(), found.oid);
        }
        is_there.then_some(found)
    }

    /// Sessions that count against a limit: clients of the pooler, and backends that are not the pooler's.
    fn sessions(&self, role: Option<pg_sys::Oid>, database: Option<pg_sys::Oid>) -> i32 {
        let counts = |its_role: pg_sys::Oid, its_database: pg_sys::Oid| {
            role.is_none_or(|oid| oid == its_role) && database.is_none_or(|oid| oid == its_database)
        };
        let clients = self.shared.slots_in_use().filter(|(_, slot)| {
            let role = pg_sys::Oid::from(slot.admitted_role.load(Relaxed));
            role != pg_sys::InvalidOid
                && counts(role, pg_sys::Oid::from(slot.admitted_database.load(Relaxed)))
        });
        let clients = clients.count() as i32;
        // A pooled backend that begins or ends between the counts would be in one of them.
        let mut pooled = self.pooled(counts);
        for _ in 0..RECOUNTS {
            // SAFETY: counts in the server's table of processes.
            let backends = unsafe {
                match (role, database) {
                    (Some(role), _) => pg_sys::CountUserBackends(role),
                    (_, Some(database)) => pg_sys::CountDBConnections(database),
                    _ => 0,
                }
            };
            let again = self.pooled(counts);
            if again == pooled {
                return backends + clients - pooled.len() as i32;
            }
            pooled = again;
        }
        clients
    }

    /// The process ids of the pooled backends that count.
    fn pooled(&self, counts: impl Fn(pg_sys::Oid, pg_sys::Oid) -> bool) -> Vec<i32> {
        let pids = self.shared.servers.iter().map(|server| server.pid.load(Acquire)).filter(|pid| *pid > 1);
        pids.filter(|pid| {
            // SAFETY: null, or an entry of the server's table of processes, which is never freed.
            unsafe {
                let entry = pg_sys::BackendPidGetProc(*pid);
                !entry.is_null() && counts((*entry).roleId, (*entry).databaseId)
            }
        })
        .collect()
    }
}

/// The server refuses while it starts and stops; so do we, in its words.
fn refuse_while_not_ready() -> Result<(), Report> {
    match sample::server_state() {
        Server::Stopping => Err(Report::fatal("57P03", "the database system is shutting down")),
        Server::Starting => Err(Report::fatal("57P03", "the database system is starting up")),
        _ => Ok(()),
    }
}

fn console_rights(role: &[u8]) -> Result<Rights, Report> {
    let name = String::from_utf8_lossy(role).into_owned();
    let Some(role) = role_of(role).filter(|role| role.can_login) else {
        return Err(Report::fatal("28000", format!("role \"{name}\" is not permitted to log in")));
    };
    // SAFETY: in a transaction, by OID.
    let monitors = unsafe { pg_sys::has_privs_of_role(role.oid, pg_sys::Oid::from(pg_sys::ROLE_PG_MONITOR)) };
    match (role.superuser, monitors) {
        (true, _) => Ok(Rights::Run),
        (false, true) => Ok(Rights::Read),
        (false, false) => Err(Report::fatal("42501", "permission denied for the console of the pooler")
            .with_detail("Superusers may use it; members of pg_monitor may read in it.")),
    }
}

fn map_allows(map: &str, role: &[u8], outside: &[u8]) -> bool {
    let (map, role, outside) = (text(map.as_bytes()), text(role), text(outside));
    // SAFETY: terminated strings.
    unsafe { shim::postern_map_allows(map.as_ptr(), role.as_ptr(), outside.as_ptr()) }
}

fn mock_nonce() -> [u8; 32] {
    // SAFETY: pg_control's copy in shared memory, of 32 bytes (MOCK_AUTH_NONCE_LEN).
    unsafe {
        let nonce = pg_sys::GetMockAuthenticationNonce();
        if nonce.is_null() { [0; 32] } else { nonce.cast::<[u8; 32]>().read() }
    }
}

/// Runs it in a transaction; an error of the server's becomes the answer.
fn guarded<T>(what: impl FnOnce() -> Result<T, Report>) -> Result<T, Report> {
    let run = AssertUnwindSafe(|| {
        // SAFETY: at the top of main's loop, outside a transaction.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let result = what();
        // SAFETY: begun above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        result
    });
    PgTryBuilder::new(run)
        .catch_others(|_| {
            // SAFETY: whatever was begun is undone.
            unsafe { pg_sys::AbortCurrentTransaction() };
            Err(Report::fatal("XX000", "the pooler could not look up who may connect"))
        })
        .execute()
}

fn text(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

/// # Safety
/// The characters are terminated.
unsafe fn owned(characters: &[std::ffi::c_char]) -> String {
    // SAFETY: by the caller.
    unsafe { CStr::from_ptr(characters.as_ptr()).to_string_lossy().into_owned() }
}
