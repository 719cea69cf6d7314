//! What the processes of a target use: processor time, wake-ups and memory, from /proc; system calls, from perf.

use crate::{Bench, Target};
use anyhow::{Context, Result};
use pgrx_tests::process;
use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// A look at every process of a target.
pub struct Snapshot {
    pub taken: Instant,
    /// By process id: nanoseconds of processor time, and voluntary context switches.
    used: HashMap<i32, (u64, u64)>,
}

/// What was used between two looks, in all processes that were there at both.
pub struct Used {
    pub seconds: f64,
    pub nanoseconds: f64,
    pub sleeps: f64,
}

impl Snapshot {
    pub fn take(bench: &Bench, target: &Target) -> Result<Self> {
        let pids = pids(bench, target)?;
        let taken = Instant::now();
        let used = pids.into_iter().filter_map(|pid| {
            // One that ends now is not in the sum.
            Some((pid, (nanoseconds(pid).ok()?, process::sleeps(pid).ok()?)))
        });
        Ok(Self { taken, used: used.collect() })
    }

    pub fn until(&self, later: &Self) -> Used {
        let (mut nanoseconds, mut sleeps) = (0, 0);
        for (pid, before) in &self.used {
            if let Some(after) = later.used.get(pid) {
                nanoseconds += after.0.saturating_sub(before.0);
                sleeps += after.1.saturating_sub(before.1);
            }
        }
        let seconds = (later.taken - self.taken).as_secs_f64();
        Used { seconds, nanoseconds: nanoseconds as f64, sleeps: sleeps as f64 }
    }
}

/// The postmaster, its children, and what works beside them.
fn pids(bench: &Bench, target: &Target) -> Result<Vec<i32>> {
    let postmaster = bench.server.pid()?;
    let children = process::children(postmaster).into_iter().map(|(pid, _)| pid);
    Ok(children.chain([postmaster]).chain(target.beside).collect())
}

/// Time on a processor of all threads of a process (/proc/pid/task/tid/schedstat, first field). Finer than the
/// hundredths of a second in `stat`, of which 200 processes would lose a second together.
fn nanoseconds(pid: i32) -> Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(sum)
}

/// Resident bytes of all processes of a target. Proportional (Pss), so that what they share is counted once.
pub fn memory(bench: &Bench, target: &Target) -> Result<u64> {
    let mut sum = 0;
    for pid in pids(bench, target)? {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let line = text.lines().find(|line| line.starts_with("Pss:")).context("no Pss in smaps_rollup")?;
        sum += line.split_whitespace().nth(1).context("no number")?.parse::<u64>()? * 1024;
    }
    Ok(sum)
}

/// A perf that counts the system calls of a target for one second.
pub struct Syscalls(Child);

impl Syscalls {
    /// # Errors
    /// When there is no perf.
    pub fn count(bench: &Bench, target: &Target) -> Result<Self> {
        let pids: Vec<String> = pids(bench, target)?.iter().map(i32::to_string).collect();
        let mut perf = Command::new("perf");
        perf.args([
            "stat",
            "-x",
            ",",
            "-e",
            "raw_syscalls:sys_enter",
            "-p",
            &pids.join(","),
            "--",
            "sleep",
            "1",
        ]);
        let child = perf.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Ok(Self(child.context("perf")?))
    }

    /// How many there were in that second; `None` where perf may not count.
    pub fn counted(self) -> Option<f64> {
        let output = self.0.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().find(|line| line.contains("raw_syscalls"))?.split(',').next()?.parse().ok()
    }
}
