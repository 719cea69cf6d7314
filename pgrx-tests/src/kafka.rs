//! A throw-away Apache Kafka: one node that is broker and controller (KRaft), on free ports of 127.0.0.1. Dropping it, also
//! in a panic, ends it and removes its files; the kernel ends it when the whole program dies. Runs in test and benchmark
//! programs.

mod client;
mod create_topics;
mod distribution;
mod secured;

pub use client::{Record, kcat};
pub use distribution::{VERSION, program};
pub use secured::Secured;

use crate::process::{self, Process};
use crate::{cluster, installation, lacking, machine, ports, wait};
use anyhow::{Context, Result, bail};
use distribution::Distribution;
use rustix::process::Signal;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Why no broker can be started on this machine, in words for its user; `None` when one can. The first call of a machine
/// downloads Kafka.
pub fn unavailable() -> Option<String> {
    distribution::ready().err().map(|error| format!("{error:#}"))
}

/// Whether there is no broker to test with; says why. A test that needs one does nothing where there is none:
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use pgrx_tests::kafka;
/// if kafka::no_broker() {
///     return Ok(());
/// }
/// let broker = kafka::Broker::start("changes")?;
/// broker.create_topic("orders", 3)?;
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// Where there is none and nobody looks at what is said ([`lacking::nobody_looks`]).
pub fn no_broker() -> bool {
    let Some(why) = unavailable() else { return false };
    assert!(!lacking::nobody_looks(), "{why}");
    lacking::not_run(&why);
    true
}

/// Settings that differ between uses.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `message.max.bytes`, of a batch of records; Kafka's own is 1,048,588.
    pub message_max_bytes: Option<u32>,
    /// A free one if none is given.
    pub port: Option<u16>,
    /// Any other settings of the broker; the last word wins.
    pub more: Vec<(String, String)>,
}

/// A broker: its files and, while it runs, its process.
pub struct Broker {
    pub name: String,
    /// Of the listener without TLS and login.
    pub port: u16,
    controller_port: u16,
    distribution: &'static Distribution,
    directory: Directory,
    process: Mutex<Option<Process>>,
}

/// `data`, `log`, `server.properties`, and what the secured listener needs. Removed on drop.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Settings of every throw-away broker. Topics exist because somebody has made them; a group has its members at once.
///
/// After a SIGKILL the controller holds the broker's place for as long as its session lasts, 9 s if we did not say less.
const SETTINGS: &str = "\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
";

/// What the broker says when it serves.
const STARTED: &str = "Kafka Server started";

/// A start takes two seconds on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(90);

impl Broker {
    /// Starts a broker that anybody on this machine may use, and waits until it serves. `name` is part of its path.
    ///
    /// # Errors
    /// As [`unavailable`] says, or with the end of the log when it does not start.
    pub fn start(name: &str) -> Result<Self> {
        Self::with(name, &Options::default())
    }

    /// [`Broker::start`] with settings of one's own.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn with(name: &str, options: &Options) -> Result<Self> {
        Self::new(name, options)?.started()
    }

    /// [`Broker::with`], with a second listener that wants TLS and a login.
    ///
    /// # Errors
    /// As [`Broker::start`], and when openssl refuses.
    pub fn secured(name: &str, options: &Options) -> Result<(Self, Secured)> {
        let broker = Self::new(name, options)?;
        let secured = secured::prepare(&broker)?;
        Ok((broker.started()?, secured))
    }

    /// The files of a new broker.
    fn new(name: &str, options: &Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let distribution = distribution::ready()?;
        let label = format!("{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let brokers = machine::base()?.join("brokers");
        cluster::sweep(&brokers);
        let directory = Directory(brokers.join(label));
        fs::create_dir_all(&directory.0)?;
        // Whoever gets at the key of the secured listener could take its place.
        fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o700))?;
        machine::give_to_server_user(&directory.0)?;
        let data = directory.0.join("data");
        installation::run(Command::new("cp").arg("-a").arg(&distribution.formatted).arg(&data))?;
        let broker = Self {
            name: name.to_owned(),
            port: options.port.map_or_else(ports::free, Ok)?,
            controller_port: ports::free()?,
            distribution,
            directory,
            process: Mutex::new(None),
        };
        let mut settings = format!(
            "{SETTINGS}log.dirs={}\ncontroller.quorum.voters=1@127.0.0.1:{}\n{}",
            data.display(),
            broker.controller_port,
            broker.listeners("", "")
        );
        if let Some(bytes) = options.message_max_bytes {
            writeln!(settings, "message.max.bytes={bytes}")?;
        }
        for (name, value) in &options.more {
            writeln!(settings, "{name}={value}")?;
        }
        broker.write("server.properties", &settings)?;
        Ok(broker)
    }

    /// The settings of where it listens and where it tells clients to go, with more of both at their ends.
    fn listeners(&self, also: &str, also_told: &str) -> String {
        let plain = format!("PLAINTEXT://127.0.0.1:{}", self.port);
        let controller = self.controller_port;
        format!(
            "listeners={plain},CONTROLLER://127.0.0.1:{controller}{also}\nadvertised.listeners={plain}{also_told}\n"
        )
    }

    fn started(self) -> Result<Self> {
        self.start_again()?;
        Ok(self)
    }

    /// Starts a broker that was stopped or killed, on the same data and ports, and waits until it serves.
    ///
    /// # Errors
    /// With the end of the log, when it does not start, and when it runs.
    pub fn start_again(&self) -> Result<()> {
        if self.process().is_some() {
            bail!("broker \"{}\" runs", self.name);
        }
        let starts = self.log().matches(STARTED).count();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path().join("log"))?;
        let mut command = self.distribution.java();
        command.arg(format!("-Djava.io.tmpdir={}", self.path().display()));
        command.arg("kafka.Kafka").arg(self.path().join("server.properties"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A broker that is thrown away has nothing to tidy up.
        *self.process() = Some(process::start(command, Signal::KILL)?);
        let mut ended = false;
        let serves = wait::until_within(START_LIMIT, "the broker serves", || {
            ended = self.process().as_mut().is_none_or(|process| !matches!(process.ended(), Ok(None)));
            ended || self.log().matches(STARTED).count() > starts
        });
        if ended || serves.is_err() {
            self.process().take();
            bail!("broker \"{}\" did not start:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Where clients without TLS and login find it: `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Stops the broker in good order and waits for its end.
    ///
    /// # Errors
    /// When it is not running, or does not end in time.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Kills the broker with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::KILL)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        let mut process = self.process().take().context("the broker is not running")?;
        process.signal(signal)?;
        process.wait(Duration::from_secs(60)).with_context(|| self.log_tail())?;
        Ok(())
    }

    /// # Errors
    /// When it is not running.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.process().as_ref().context("the broker is not running")?.pid())
    }

    /// Everything that it has logged: warnings, its start, and clients whose login failed.
    pub fn log(&self) -> String {
        fs::read(self.path().join("log"))
            .map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The directory that has its files.
    pub fn path(&self) -> &Path {
        &self.directory.0
    }

    /// Adds to a file of the broker that nobody else may read.
    fn write(&self, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.path().join(file);
        let mut all = fs::read_to_string(&path).unwrap_or_default();
        all.push_str(text);
        fs::write(&path, all)?;
        machine::give_to_server_user(&path)?;
        Ok(path)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of broker \"{}\" ends with:\n{}", self.name, self.log_tail());
        }
        // The broker before its files.
        self.process().take();
    }
}
