//! Child processes that never outlive this program, whatever ends it.

use crate::machine;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// A running child. Dropping it sends `end` and, if that does not help in time, SIGKILL.
pub struct Process {
    child: Child,
    end: Signal,
}

/// Starts a program as the unprivileged user, in a session of its own. It gets the signal `end` when this
/// program dies.
///
/// # Errors
/// When it cannot be started.
pub fn start(mut command: Command, end: Signal) -> Result<Process> {
    machine::as_server_user(&mut command)?;
    // The user may not be allowed into our own directory, and some programs want to be able to go back to it.
    command.current_dir("/");
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(move || {
            // As every process of PostgreSQL has: Ctrl-C does not reach it, and the scheduler counts it for itself.
            rustix::process::setsid()?;
            rustix::process::set_parent_process_death_signal(Some(end)).map_err(Into::into)
        });
    }
    let (reply, started) = channel();
    spawner().lock().map_err(|_| anyhow::anyhow!("the spawner has panicked"))?.send((command, reply))?;
    let child = started.recv()??;
    Ok(Process { child, end })
}

type Order = (Command, Sender<std::io::Result<Child>>);

/// The death signal comes when the starting *thread* ends, so children are started by one that never does.
fn spawner() -> &'static Mutex<Sender<Order>> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (orders, todo) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in todo {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    })
}

impl Process {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal_pid(self.pid(), signal)
    }

    /// The exit status, if it has ended.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not come within the limit.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut status = None;
        crate::wait::until_within(limit, "the process ends", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.context("the process has ended without a status")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal(self.end);
            if self.wait(Duration::from_secs(5)).is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

/// # Errors
/// When there is no such process.
pub fn signal_pid(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("not a process id")?;
    rustix::process::kill_process(pid, signal).with_context(|| format!("signalling process {pid:?}"))
}

/// Whether a process is there (and not a zombie).
pub fn is_running(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

/// Whether a process has been stopped by a signal.
pub fn is_stopped(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}

/// Process ids of the direct children of `parent`, with their command lines.
pub fn children(parent: i32) -> Vec<(i32, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let its_parent: i32 = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (its_parent == parent).then(|| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
    .collect()
}

/// Resident memory of a process in kB.
///
/// # Errors
/// When there is no such process.
pub fn resident(pid: i32) -> Result<u64> {
    memory(pid, "VmRSS")
}

/// What of it is the process's own, in kB: of no file, and shared with nobody.
///
/// # Errors
/// As [`resident`].
pub fn anonymous(pid: i32) -> Result<u64> {
    memory(pid, "RssAnon")
}

/// The most resident memory that it has ever had, in kB.
///
/// # Errors
/// As [`resident`].
pub fn most_resident(pid: i32) -> Result<u64> {
    memory(pid, "VmHWM")
}

/// A line of proc(5), /proc/pid/status.
fn memory(pid: i32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
    let value = status.lines().find_map(value).with_context(|| format!("no {name}"))?;
    Ok(value.trim_end_matches(" kB").parse()?)
}

/// How often any thread of a process has gone to sleep by itself (voluntary context switches, proc(5)): the difference of two
/// looks is the wake-ups between them.
///
/// # Errors
/// When there is no such process.
pub fn sleeps(pid: i32) -> Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        let line =
            status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).context("no such line")?;
        sum += line.split_whitespace().nth(1).context("no number")?.parse::<u64>()?;
    }
    Ok(sum)
}
