//! The pooler's worker: its main thread, and nothing but it. Main waits on its latch, and when woken looks at signals, reloads, answers
//! the logins' questions from the catalogs and writes the threads' log lines; it never waits for a thread while it runs.
//!
//! Exit code 1 makes the postmaster start it again after a second; 0, which means never again, is used only when the
//! server is stopping.

use super::agent::texts::Texts;
use super::answers::Answers;
use super::notifications::Notifications;
use super::worker::{Latch, cancels_nothing, log};
use super::{guc, sample, shim, shmem, signals};
use crate::bridge::{Level, LogLine, MainEnd, bridge};
use crate::login::question::questions;
use crate::login::{Question, Questions};
use crate::pooler::front::{Start, start};
use crate::pooler::limits::Received;
use crate::pooler::shared::{ServerState, Shared};
use crate::status::facts::ServerState as Server;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;
use std::ffi::{CStr, c_int};
use std::sync::atomic::Ordering::*;
use std::sync::mpsc::Receiver;
use std::time::Duration;

pub(super) const NAME: &str = "postern pooler";
pub(super) const FUNCTION: &str = "postern_pooler_main";

/// Questions that are answered before signals are looked at again.
const BATCH: usize = 64;

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_pooler_main(_arg: pg_sys::Datum) {
    let code = match shmem::pooler() {
        Some(shared) => run(shared),
        None => 1,
    };
    // SAFETY: the end of a process; every thread has ended, and no Rust value is alive in this frame.
    unsafe { super::versions::proc_exit(code) }
}

/// Returns the exit code. Whatever ends it, an error of PostgreSQL included, drops the threads first.
fn run(shared: Shared) -> i32 {
    // SAFETY: set for every process of the server.
    let (latch, pid) = unsafe { (pg_sys::MyLatch, pg_sys::MyProcPid) };
    signals::block_all();
    // SAFETY: in a new worker, before it has made anything: see shim/hba.c.
    unsafe {
        let (mut hba, mut ident) = (false, false);
        if !shim::postern_first_load(&raw mut hba, &raw mut ident) {
            warn("pg_hba.conf cannot be read in a worker of this server".to_owned());
            return 1;
        }
        if !hba {
            warn("could not load pg_hba.conf: the pooler lets nobody in".to_owned());
        }
    }
    let header = shared.header;
    header.worker.started(pid);
    header.listeners.close_all();
    let settings = match guc::settings() {
        Ok(settings) => settings,
        Err(error) => {
            warn(format!("could not read Postern's settings: {error}"));
            return 1;
        }
    };
    // SAFETY: in a new worker: shared catalogs only, as the bootstrap superuser.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        pg_sys::on_shmem_exit(Some(ended), pg_sys::Datum::from(0));
    }
    clear(shared);
    header.names_hosts.store(names_hosts(), Relaxed);
    let (texts, handle) = Texts::make();
    header.texts.store(handle, Release);
    header.epoch.fetch_add(1, AcqRel);

    let wake = Latch(latch);
    let (end, threads_end) = bridge((), settings, &header.log_dropped, move || wake.set());
    let (questions, asked) = questions(move || wake.set());
    let Some(relay) = shmem::relay().and_then(|relay| Notifications::new(relay, questions.clone())) else {
        warn("could not generate random numbers".to_owned());
        return 1;
    };
    let threads = match start(&threads_end, begin(shared, questions, relay)) {
        Ok(threads) => threads,
        Err(error) => {
            warn(format!("could not start the pooler's threads: {error}"));
            return 1;
        }
    };
    // Sets the handlers and gives main the server's own mask back; the threads keep all signals blocked.
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let mut main = Main { answers: Answers::new(shared, texts), asked };
    let code = main.serve(&end);
    end.stop();
    drop(threads);
    end.drain_log(log);
    texts.abandon();
    header.texts.store(0, Release);
    code
}

fn begin(shared: Shared, questions: Questions, relay: Notifications) -> Start {
    // SAFETY: an int setting that does not change while the server runs.
    let own_files = u64::try_from(unsafe { pg_sys::max_files_per_process }).unwrap_or(1000);
    Start {
        shared,
        questions,
        system_user: user_name(rustix::process::geteuid().as_raw()).unwrap_or_default(),
        user_name,
        host_name,
        received,
        // SAFETY: set for every process of the server.
        postmaster: unsafe { pg_sys::PostmasterPid },
        own_files,
        relay: Box::new(relay),
    }
}

struct Main {
    answers: Answers,
    asked: Receiver<Question>,
}

impl Main {
    fn serve(&mut self, end: &MainEnd<()>) -> i32 {
        // A reload that came before the handlers were set is not lost.
        reload(end);
        loop {
            if wait() {
                return 1;
            }
            cancels_nothing();
            check_for_interrupts!();
            if BackgroundWorker::sighup_received() {
                reload(end);
            }
            end.drain_log(log);
            if let Some(reason) = end.failure() {
                warn(format!("pooler ends to be started again: {reason}"));
                return 1;
            }
            if BackgroundWorker::sigterm_received() {
                return i32::from(sample::server_state() != Server::Stopping);
            }
            self.answer();
        }
    }

    fn answer(&mut self) {
        for _ in 0..BATCH {
            let Ok(question) = self.asked.try_recv() else { return };
            self.answers.answer(question);
        }
        // There may be more, for which nobody wakes us again.
        // SAFETY: our own latch.
        unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
    }
}

/// Sleeps until something is to be done; whether the postmaster has died.
fn wait() -> bool {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_POSTMASTER_DEATH | pg_sys::WL_TIMEOUT;
    // SAFETY: our own latch, on the thread that owns it.
    let happened = unsafe {
        let happened = pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, 60_000, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
        happened
    };
    happened & pg_sys::WL_POSTMASTER_DEATH as i32 != 0
}

fn reload(end: &MainEnd<()>) {
    // SAFETY: on main, outside a transaction, as every worker does.
    unsafe {
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        // As the postmaster: a file with a mistake leaves the lines of before in force.
        if !shim::postern_load_hba() {
            warn("pg_hba.conf was not reloaded".to_owned());
        }
        if !shim::postern_load_ident() {
            warn("pg_ident.conf was not reloaded".to_owned());
        }
    }
    if let Some(shared) = shmem::pooler() {
        shared.header.names_hosts.store(names_hosts(), Relaxed);
    }
    match guc::settings() {
        Ok(settings) => end.reload(settings),
        Err(error) => warn(format!("the pooler keeps its old settings: {error}")),
    }
}

/// Ends what an earlier front left: its backends, which would end by themselves when they next look, and its clients' slots.
fn clear(shared: Shared) {
    tell_servers(shared);
    for server in shared.servers {
        server.set_state(ServerState::Free);
        server.pid.store(0, Relaxed);
        server.expect([0, 0]);
    }
    for (_, slot) in shared.slots_in_use() {
        if slot.word.seen().generation() != 0 {
            slot.word.reset();
            // The area that held them is gone.
            slot.texts().iter().for_each(|word| word.store(0, Relaxed));
            slot.admitted_role.store(0, Relaxed);
            slot.admitted_database.store(0, Relaxed);
        }
    }
    for pool in shared.pools.iter().filter(|pool| pool.used.load(Relaxed) != 0) {
        pool.clear(0);
        pool.used.store(0, Release);
    }
    shared.header.logins.store(0, Relaxed);
    shared.header.replications.store(0, Relaxed);
}

/// Backends without a front serve nobody: SIGTERM, which those that serve a client pass on to it as 57P01.
fn tell_servers(shared: Shared) {
    for server in shared.servers {
        let pid = server.pid.load(Acquire);
        if pid <= 1 || server.state() == ServerState::Free {
            continue;
        }
        // SAFETY: a look into the server's table of processes; a pid is not used again within a moment.
        let alive = !unsafe { pg_sys::BackendPidGetProc(pid) }.is_null();
        if alive {
            // SAFETY: numbers only.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }
}

/// However the front ends, its backends end too.
#[pg_guard]
unsafe extern "C-unwind" fn ended(_code: c_int, _arg: pg_sys::Datum) {
    if let Some(shared) = shmem::pooler() {
        // From here on no backend of ours writes a word that the next front may have given away.
        shared.header.epoch.fetch_add(1, AcqRel);
        shared.header.worker.ended();
        tell_servers(shared);
    }
}

fn warn(text: String) {
    log(LogLine { level: Level::Warning, text });
}

/// Whether some line of pg_hba.conf may name a host: a fourth field that is neither an address nor one of the words.
fn names_hosts() -> bool {
    // SAFETY: a setting of the server; null or terminated.
    let path = unsafe {
        if pg_sys::HbaFileName.is_null() {
            return false;
        }
        CStr::from_ptr(pg_sys::HbaFileName).to_string_lossy().into_owned()
    };
    // What cannot be read, or brings in other files, may.
    let Ok(text) = std::fs::read_to_string(path) else { return true };
    text.lines().map(|line| line.split('#').next().unwrap_or_default()).any(|line| {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some(kind) if kind.starts_with("include") || kind.starts_with('@') => true,
            Some(kind) if kind.starts_with("host") => fields.skip(2).any(|field| {
                let field = field.trim_matches('"');
                let address = field.split('/').next().unwrap_or_default();
                let word = ["all", "samehost", "samenet"].contains(&field)
                    || METHODS.contains(&field)
                    || field.contains('=');
                !word && address.parse::<std::net::IpAddr>().is_err()
            }),
            _ => false,
        }
    })
}

/// Words that end a line's address (src/backend/libpq/hba.c, UserAuthName).
const METHODS: [&str; 15] = [
    "reject",
    "trust",
    "ident",
    "password",
    "gss",
    "sspi",
    "scram-sha-256",
    "md5",
    "pam",
    "bsd",
    "ldap",
    "cert",
    "radius",
    "peer",
    "oauth",
];

/// The name of a host that leads back to its address, as check_hostname() of hba.c wants it. May ask a name server, so not on main.
fn host_name(ip: std::net::IpAddr) -> Option<String> {
    let address = socket2::SockAddr::from(std::net::SocketAddr::new(ip, 0));
    let mut buffer = [0; libc::NI_MAXHOST as usize];
    // SAFETY: a socket address and its length; the name is written into our own memory, terminated.
    let name = unsafe {
        let code = libc::getnameinfo(
            address.as_ptr().cast(),
            address.len(),
            buffer.as_mut_ptr(),
            buffer.len() as libc::socklen_t,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        );
        if code != 0 {
            return None;
        }
        CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned()
    };
    let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(&(&name[..], 0)).ok()?;
    addresses.any(|found| found.ip().to_canonical() == ip).then_some(name)
}

/// What has come over a TCP connection; `None` when the number is not one's, or the system does not say. A network thread's.
fn received(descriptor: std::os::fd::RawFd) -> Option<Received> {
    /// Where tcpi_bytes_received is in struct tcp_info (linux/tcp.h); the C library's struct ends before it.
    const BYTES: usize = 128;
    const QUIET: usize = std::mem::offset_of!(libc::tcp_info, tcpi_last_data_recv);
    let mut info = [0u8; BYTES + 8];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: our own memory and its length, which the system fills as far as it goes.
    let code = unsafe {
        libc::getsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if code != 0 || (length as usize) < info.len() {
        return None;
    }
    Some(Received {
        bytes: u64::from_ne_bytes(*info[BYTES..].first_chunk()?),
        quiet: Duration::from_millis(u32::from_ne_bytes(*info[QUIET..].first_chunk()?).into()),
    })
}

/// The system's name of a user; `None` when it has none. May ask a name service, so not on main.
fn user_name(uid: u32) -> Option<String> {
    let mut buffer = vec![0; 4096];
    // SAFETY: the entry and its texts are written into our own memory.
    unsafe {
        let mut entry = std::mem::zeroed::<libc::passwd>();
        let mut found = std::ptr::null_mut();
        let code = libc::getpwuid_r(uid, &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found);
        if code != 0 || found.is_null() {
            return None;
        }
        Some(CStr::from_ptr(entry.pw_name).to_string_lossy().into_owned())
    }
}
