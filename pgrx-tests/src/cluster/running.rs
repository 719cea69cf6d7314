//! A server that starts, stops, or is killed, and when each is over. Runs in test programs.

use super::{Cluster, Stop};
use crate::{ports, probe, process, wait};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

impl Cluster {
    /// Starts the server and waits until it takes connections.
    ///
    /// # Errors
    /// With the end of the log, when it does not.
    pub fn start(self) -> Result<Self> {
        self.launch()?;
        self.wait_ready()?;
        Ok(self)
    }

    /// [`Cluster::start`] with a file of another's for what the server writes to its log: [`Cluster::log`] is empty.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with_log(self, file: &Path) -> Result<Self> {
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data());
        self.launch_by(command, file)?;
        self.wait_ready()?;
        Ok(self)
    }

    /// Starts the server of a cluster that was stopped or killed, and waits until it takes connections.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_again(&self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts the server without waiting for anything.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn launch(&self) -> Result<()> {
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data());
        self.launch_by(command, &self.log_file())
    }

    /// [`Cluster::launch`] with at most so many open files a process.
    ///
    /// # Errors
    /// As [`Cluster::launch`].
    pub fn launch_with_files(&self, most: u32) -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {most} && exec \"$@\""), "sh"]);
        command.arg(self.installation.bin.join("postgres")).arg("-D").arg(self.data());
        self.launch_by(command, &self.log_file())
    }

    fn launch_by(&self, mut command: Command, log: &Path) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        self.logged_before.store(self.log().len(), Relaxed);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *self.server() = Some(process::start(command, Signal::QUIT)?);
        Ok(())
    }

    /// Until it takes connections, and the workers have had time to listen where they can.
    fn wait_ready(&self) -> Result<()> {
        let mut ended = false;
        let ready = wait::until("the server takes connections", || {
            ended = self.server().as_mut().is_none_or(|server| !matches!(server.ended(), Ok(None)));
            ended || self.state() == "ready"
        });
        if ended || ready.is_err() {
            bail!("server \"{}\" did not start:\n{}", self.name, self.log_tail());
        }
        let heads = || {
            let log = self.log();
            let log = log.get(self.logged_before.load(Relaxed)..).unwrap_or_default();
            if ["no status answers", "no pooler"].iter().any(|line| log.contains(line)) {
                return true;
            }
            let settings = self.own_settings();
            let ports = [self.banner_port, self.http_port, self.agent_port, self.pooler_port];
            ["status", "http", "agent", "pooler"]
                .into_iter()
                .zip(ports)
                .filter(|(name, port)| is_to_listen(&settings, name, *port))
                .all(|(_, port)| {
                    ports::is_listened_on(port)
                        || log.contains(&format!("could not listen on 127.0.0.1:{port} "))
                })
        };
        let _ = wait::until_within(Duration::from_secs(20), "the workers listen", heads);
        // Until main has looked at the server once more, it starts for the one who asks.
        if !self.own_settings().contains("postern.status_allow") && ports::is_listened_on(self.http_port) {
            let _ = wait::until_within(Duration::from_secs(20), "the status worker has seen it", || {
                probe::code(self.http_port, "/health") == 200
            });
        }
        Ok(())
    }

    fn own_settings(&self) -> String {
        fs::read_to_string(self.data().join("postgresql.conf")).unwrap_or_default()
    }

    /// The postmaster's word in postmaster.pid: starting, ready, standby or stopping; empty when there is none, or it is of a server that
    /// was killed.
    pub fn state(&self) -> String {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        let ours = self.pid().is_ok_and(|pid| lines.next() == Some(&pid.to_string()));
        if ours { lines.nth(6).unwrap_or_default().trim().to_owned() } else { String::new() }
    }

    /// Stops the server and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&self, mode: Stop) -> Result<()> {
        self.request_stop(mode)?;
        self.wait_end()
    }

    /// Asks for a stop and does not wait.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn request_stop(&self, mode: Stop) -> Result<()> {
        self.server().as_ref().context("the server is not running")?.signal(mode.signal())
    }

    /// Waits for the end of a server that was told to stop.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait_end(&self) -> Result<()> {
        if let Some(mut server) = self.server().take() {
            let pid = server.pid();
            server
                .wait(Duration::from_secs(60))
                .with_context(|| format!("{:?} are left\n{}", process::children(pid), self.log_tail()))?;
        }
        Ok(())
    }

    /// Kills the postmaster with SIGKILL, and waits until its children have noticed and ended by themselves: before that
    /// no other server starts on the same data.
    ///
    /// # Errors
    /// When the server is not running, or a child stays.
    pub fn kill(&self) -> Result<()> {
        let mut server = self.server().take().context("the server is not running")?;
        // A stopped one starts no more of them: one that nobody waits for would keep the next server from starting.
        server.signal(Signal::STOP)?;
        wait::until("the postmaster stands still", || process::is_stopped(server.pid()))?;
        let children = process::children(server.pid());
        server.signal(Signal::KILL)?;
        server.wait(wait::LIMIT)?;
        wait::until("every process of the server has ended", || {
            children.iter().all(|(pid, _)| !process::is_running(*pid)) && !self.memory_is_in_use()
        })
    }

    /// Whether somebody has the shared memory that postmaster.pid names, as the next server looks (PGSharedMemoryIsInUse()): a process whose
    /// main thread has ended may have others for a moment.
    fn memory_is_in_use(&self) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let Some(id) = file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) else {
            return false;
        };
        let all = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        all.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .any(|words| words.get(1) == Some(&id) && words.get(6).is_some_and(|attached| *attached != "0"))
    }

    /// Stops and starts.
    ///
    /// # Errors
    /// When either does not work in time.
    pub fn restart(&self, mode: Stop) -> Result<()> {
        self.stop(mode)?;
        self.start_again()
    }
}

/// Whether the last word of a setting `postern.…_listen` has our own port.
fn is_to_listen(settings: &str, name: &str, port: u16) -> bool {
    let setting = format!("postern.{name}_listen");
    let last = settings.lines().rev().find(|line| line.starts_with(&setting));
    last.is_some_and(|line| line.contains(&port.to_string()))
}
