//! A throw-away PostgreSQL server with Postern loaded, on free ports. Dropping it, also in a panic, ends the server and
//! removes its files; the kernel ends it when the whole program dies.

mod files;
mod replication;
mod running;

use crate::installation::{Build, Installation, install, run};
use crate::process::{self, Process};
use crate::{machine, ports, wait};
use anyhow::{Context, Result};
pub(crate) use files::sweep;
use files::template;
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// How a server is asked to stop (pg_ctl's modes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Smart,
    Fast,
    Immediate,
}

impl Stop {
    fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::TERM,
            Self::Fast => Signal::INT,
            Self::Immediate => Signal::QUIT,
        }
    }
}

/// A cluster and, when started, its server.
pub struct Cluster {
    pub name: String,
    /// The server's port; clients of the rig use its Unix socket.
    pub port: u16,
    pub banner_port: u16,
    pub http_port: u16,
    pub agent_port: u16,
    pub pooler_port: u16,
    installation: &'static Installation,
    directory: Directory,
    server: Mutex<Option<Process>>,
    /// Bytes that the log had before the server was last started.
    logged_before: AtomicUsize,
}

/// The ports of one cluster.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub server: u16,
    pub banner: u16,
    pub http: u16,
    pub agent: u16,
    pub pooler: u16,
}

impl Ports {
    /// # Errors
    /// When there are none.
    pub fn free() -> Result<Self> {
        let free = ports::free;
        Ok(Self { server: free()?, banner: free()?, http: free()?, agent: free()?, pooler: free()? })
    }
}

/// Files of one cluster: `data`, `log`, and a socket directory whose path is short enough. Removed on drop.
struct Directory {
    path: PathBuf,
    sockets: PathBuf,
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        let _ = fs::remove_dir_all(&self.sockets);
    }
}

/// Names the sessions of [`Cluster::sql`].
pub const PASSING: &str = "passing";

/// Settings of every throw-away server: fast, small, and with a standby in mind.
const SETTINGS: &str = "\
fsync = off
shared_buffers = 16MB
max_connections = 40
max_wal_senders = 5
wal_level = replica
wal_keep_size = 64MB
hot_standby = on
wal_retrieve_retry_interval = 500ms
log_min_messages = warning
log_line_prefix = '%m [%p] %b '
shared_preload_libraries = 'postern'
";

impl Cluster {
    /// A new cluster on the test build, not started. `name` is its `cluster_name` and part of its path.
    ///
    /// # Errors
    /// When the library cannot be built, or initdb fails.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(install(Build::Test)?, name)
    }

    /// [`Cluster::new`] on an installation of one's own.
    ///
    /// # Errors
    /// As [`Cluster::new`].
    pub fn with(installation: &'static Installation, name: &str) -> Result<Self> {
        Self::on_ports(installation, name, Ports::free()?)
    }

    /// [`Cluster::with`] on given ports.
    ///
    /// # Errors
    /// As [`Cluster::new`].
    pub fn on_ports(installation: &'static Installation, name: &str, ports: Ports) -> Result<Self> {
        let cluster = Self::empty(installation, name, ports)?;
        let template = template(installation)?;
        run(Command::new("cp").arg("-a").arg(template).arg(cluster.data()))?;
        cluster.write_settings()?;
        Ok(cluster)
    }

    /// A new cluster whose data has been made by initdb with further arguments, where the template does not do. Not started.
    ///
    /// # Errors
    /// As [`Cluster::new`].
    pub fn made_by_initdb(
        installation: &'static Installation,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let cluster = Self::empty(installation, name, Ports::free()?)?;
        files::initdb(installation, &cluster.data(), arguments)?;
        cluster.write_settings()?;
        Ok(cluster)
    }

    fn empty(installation: &'static Installation, name: &str, ports: Ports) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let label = format!("{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let clusters = machine::base()?.join("clusters");
        sweep(&clusters);
        let path = clusters.join(&label);
        let sockets = std::env::temp_dir().join(format!("postern-{label}"));
        for directory in [&path, &sockets] {
            fs::create_dir_all(directory)?;
            // Logins are not asked for a password here: nobody else may get at the socket.
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
            machine::give_to_server_user(directory)?;
        }
        Ok(Self {
            name: name.to_owned(),
            port: ports.server,
            banner_port: ports.banner,
            http_port: ports.http,
            agent_port: ports.agent,
            pooler_port: ports.pooler,
            installation,
            directory: Directory { path, sockets },
            server: Mutex::new(None),
            logged_before: AtomicUsize::new(0),
        })
    }

    fn write_settings(&self) -> Result<()> {
        let own = format!(
            "{SETTINGS}port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n\
             cluster_name = '{}'\npostern.status_listen = '127.0.0.1:{}'\npostern.http_listen = '127.0.0.1:{}'\n\
             postern.agent_listen = '127.0.0.1:{}'\npostern.pooler_listen = '127.0.0.1:{}'\n",
            self.port,
            self.socket_directory().display(),
            self.name,
            self.banner_port,
            self.http_port,
            self.agent_port,
            self.pooler_port
        );
        fs::write(self.data().join("postgresql.auto.conf"), "")?;
        fs::write(self.data().join("postgresql.conf"), own)?;
        for file in ["postgresql.auto.conf", "postgresql.conf"] {
            machine::give_to_server_user(&self.data().join(file))?;
        }
        Ok(())
    }

    /// Sets something in postgresql.conf; the last word wins. Takes effect at start or [`Cluster::reload`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, name: &str, value: &str) -> Result<&Self> {
        let mut file = fs::OpenOptions::new().append(true).open(self.data().join("postgresql.conf"))?;
        writeln!(file, "{name} = '{}'", value.replace('\'', "''"))?;
        Ok(self)
    }

    /// Replaces pg_hba.conf.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_hba(&self, lines: &str) -> Result<()> {
        Ok(fs::write(self.data().join("pg_hba.conf"), lines)?)
    }

    /// Makes the server read its configuration again. What follows from it takes a moment.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn reload(&self) -> Result<()> {
        self.server().as_ref().context("the server is not running")?.signal(Signal::HUP)
    }

    /// A connection as superuser to database `postgres`, over the Unix socket.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn connect(&self) -> Result<postgres::Client> {
        Ok(self.config().connect(postgres::NoTls)?)
    }

    /// What [`Cluster::connect`] uses, to be changed.
    pub fn config(&self) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host_path(self.socket_directory()).port(self.port).user("postgres").dbname("postgres");
        config.connect_timeout(Duration::from_secs(5));
        config
    }

    /// The same through the pooler, over TCP.
    pub fn through(&self, user: &str, database: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.pooler_port).user(user).dbname(database);
        config.connect_timeout(Duration::from_secs(10));
        config
    }

    /// Runs statements on a new connection; the last row's values, joined by `|`, as psql -At shows them.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.sql_in("postgres", sql)
    }

    /// [`Cluster::sql`] in another database.
    ///
    /// # Errors
    /// As [`Cluster::sql`].
    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String> {
        let mut last = String::new();
        // Its backend ends a moment after it: whoever counts sessions must know it.
        let mut client = self.config().dbname(database).application_name(PASSING).connect(postgres::NoTls)?;
        for message in client.simple_query(sql)? {
            if let postgres::SimpleQueryMessage::Row(row) = message {
                let values: Vec<_> = (0..row.len()).map(|i| row.get(i).unwrap_or_default()).collect();
                last = values.join("|");
            }
        }
        Ok(last)
    }

    /// `CREATE EXTENSION postern`.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn create_extension(&self) -> Result<()> {
        self.sql("CREATE EXTENSION postern").map(drop)
    }

    /// Everything that the server has logged.
    pub fn log(&self) -> String {
        fs::read(self.log_file()).map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until the log has a text.
    ///
    /// # Errors
    /// With the end of the log, when it does not in time.
    pub fn wait_log(&self, text: &str) -> Result<()> {
        wait::until(&format!("the log says {text:?}"), || self.log().contains(text))
            .with_context(|| self.log_tail())
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Process id of the postmaster.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.server().as_ref().context("the server is not running")?.pid())
    }

    /// Process id of the status worker.
    ///
    /// # Errors
    /// When there is none.
    pub fn worker_pid(&self) -> Result<i32> {
        self.child("postern status")
    }

    /// Process id of the pooler's worker, the front.
    ///
    /// # Errors
    /// When there is none.
    pub fn front_pid(&self) -> Result<i32> {
        self.child("postern pooler")
    }

    fn child(&self, name: &str) -> Result<i32> {
        let children = process::children(self.pid()?);
        let child = children.into_iter().find(|(_, line)| line.contains(name));
        child.map(|(pid, _)| pid).with_context(|| format!("there is no \"{name}\""))
    }

    /// Where the server's programs are.
    pub fn bin(&self) -> &Path {
        &self.installation.bin
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path.join("data")
    }

    /// Where Unix sockets are; its path is short.
    pub fn socket_directory(&self) -> &Path {
        &self.directory.sockets
    }

    /// A program of the server, to run as the user that owns it.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.installation.bin.join(name));
        // The user may not be allowed into our own directory.
        command.current_dir("/").env_remove("PGDATA").env_remove("PGPORT").env_remove("PGHOST");
        let _ = machine::as_server_user(&mut command);
        command
    }

    /// Where the server logs.
    pub fn log_file(&self) -> PathBuf {
        self.directory.path.join("log")
    }

    fn server(&self) -> MutexGuard<'_, Option<Process>> {
        self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of \"{}\" ends with:\n{}", self.name, self.log_tail());
        }
        // The server before its files.
        self.server().take();
    }
}
