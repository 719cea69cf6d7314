//! PgBouncer as a peer to compare with: 1.24, which knows prepared statements in transaction mode and which Debian 12
//! does not have, built from Debian 13's source package. The system is not touched beyond what the build needs.

use crate::certificate::Certificate;
use crate::cluster::Cluster;
use crate::process::{self, Process};
use crate::{debian_source, installation, machine, ports, wait};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// What is built: the version that Debian 13 has.
pub const VERSION: &str = "1.24.1";

/// Settings that differ between uses. The default is what the benchmarks compare with.
#[derive(Debug, Clone)]
pub struct Options {
    pub pool_mode: String,
    /// Server connections a (database, role) pair.
    pub pool_size: u32,
    pub max_clients: u32,
    /// `trust`, `scram-sha-256`, `md5`, `cert` …
    pub auth_type: String,
    /// Names and secrets for its list of users. Who is not there is looked up in the server's `pg_authid`.
    pub users: Vec<(String, String)>,
    /// TLS on the client's side: the certificate, and `client_tls_sslmode`.
    pub tls: Option<(Certificate, String)>,
    /// Any other settings of section `[pgbouncer]`; the last word wins.
    pub more: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pool_mode: "transaction".to_owned(),
            pool_size: 20,
            max_clients: 5000,
            auth_type: "trust".to_owned(),
            users: vec![("postgres".to_owned(), String::new())],
            tls: None,
            more: Vec::new(),
        }
    }
}

/// A running PgBouncer; dropping it ends it.
pub struct Pgbouncer {
    /// On 127.0.0.1, and of its Unix socket.
    pub port: u16,
    process: Mutex<Process>,
    directory: PathBuf,
}

impl Pgbouncer {
    /// Starts one in front of every database of a running server, over the server's Unix socket, and waits until it
    /// listens. The first one builds it.
    ///
    /// # Errors
    /// When it cannot be built, or with its log when it does not start.
    pub fn start(server: &Cluster, options: &Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let program = build()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let label = format!("postern-pgbouncer-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(label);
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let port = ports::free()?;
        fs::write(directory.join("pgbouncer.ini"), configuration(server, options, port, &directory)?)?;
        fs::write(directory.join("users"), users(options)?)?;
        for path in [directory.clone(), directory.join("pgbouncer.ini"), directory.join("users")] {
            machine::give_to_server_user(&path)?;
        }
        let log = fs::File::create(directory.join("log"))?;
        let mut command = Command::new(program);
        command.arg(directory.join("pgbouncer.ini"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SIGTERM waits for the clients since 1.23: SIGQUIT does not.
        let process = Mutex::new(process::start(command, Signal::QUIT)?);
        let bouncer = Self { port, process, directory };
        let mut ended = false;
        let listens = wait::until("PgBouncer listens", || {
            ended = bouncer.process.lock().is_ok_and(|mut process| !matches!(process.ended(), Ok(None)));
            ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        if ended || listens.is_err() {
            bail!("PgBouncer did not start:\n{}", bouncer.log());
        }
        Ok(bouncer)
    }

    /// # Errors
    /// When a thread has panicked while it held the process.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.process.lock().map_err(|_| anyhow::anyhow!("a panic elsewhere"))?.pid())
    }

    /// Where its Unix socket is.
    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Pgbouncer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- PgBouncer's log:\n{}", self.log());
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn configuration(server: &Cluster, options: &Options, port: u16, directory: &Path) -> Result<String> {
    let mut text = format!(
        "[databases]\n* = host={} port={} auth_user=postgres\n\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {directory}\nlisten_backlog = 1024\n\
         auth_type = {}\nauth_file = {directory}/users\n\
         auth_query = SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin\n\
         admin_users = postgres\nignore_startup_parameters = extra_float_digits\n\
         pool_mode = {}\ndefault_pool_size = {}\nmax_client_conn = {}\nmax_prepared_statements = 200\n\
         log_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n",
        server.socket_directory().display(),
        server.port,
        options.auth_type,
        options.pool_mode,
        options.pool_size,
        options.max_clients,
        directory = directory.display(),
    );
    if let Some((certificate, mode)) = &options.tls {
        writeln!(text, "client_tls_sslmode = {mode}")?;
        writeln!(text, "client_tls_cert_file = {}", certificate.certificate.display())?;
        writeln!(text, "client_tls_key_file = {}", certificate.key.display())?;
    }
    for (name, value) in &options.more {
        writeln!(text, "{name} = {value}")?;
    }
    Ok(text)
}

fn users(options: &Options) -> Result<String> {
    let mut text = String::new();
    for (name, secret) in &options.users {
        writeln!(text, "\"{}\" \"{}\"", name.replace('"', "\"\""), secret.replace('"', "\"\""))?;
    }
    Ok(text)
}

/// Builds PgBouncer under the rig's base directory, unless it is there, and returns the program.
///
/// # Errors
/// When packages are missing that cannot be installed here, the source cannot be had, or the build fails.
pub fn build() -> Result<PathBuf> {
    let home = machine::base()?.join(format!("pgbouncer-{VERSION}"));
    let program = home.join("pgbouncer");
    if program.exists() {
        return Ok(program);
    }
    let _alone = installation::lock(&home.with_extension("lock"))?;
    if program.exists() {
        return Ok(program);
    }
    machine::install(&machine::peer_packages(), |what| eprintln!("{what}"))?;
    let work = machine::target().join(format!("pgbouncer-build-{}", std::process::id()));
    let built = make(&work, &home, &program);
    let _ = fs::remove_dir_all(&work);
    built.with_context(|| format!("building PgBouncer {VERSION}"))?;
    Ok(program)
}

fn make(work: &Path, home: &Path, program: &Path) -> Result<()> {
    let source = debian_source::fetch("trixie", "pgbouncer", work)?;
    if !source.ends_with(format!("pgbouncer-{VERSION}")) {
        bail!("Debian 13's source package is no longer version {VERSION}");
    }
    installation::run(Command::new("./configure").arg("--without-cares").current_dir(&source))?;
    installation::run(Command::new("make").args(["-j2", "pgbouncer"]).current_dir(&source))?;
    fs::create_dir_all(home)?;
    // Made aside and renamed, so that the program is whole or not there.
    let aside = program.with_extension("new");
    fs::copy(source.join("pgbouncer"), &aside)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(&aside, program)?)
}
