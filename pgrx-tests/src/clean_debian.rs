//! A clean Debian, of this machine's release or another, made with debootstrap and thrown away: a directory, and while it runs a few namespaces of the
//! kernel, so that its mounts, processes and network are its own and end with it. Runs in test programs, as root.

mod bootstrap;

use crate::installation::run;
use crate::{cluster, machine, process};
use anyhow::{Context, Result, bail};
use bootstrap::{bootstrapped, release};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What it takes.
pub const PACKAGES: [&str; 4] = ["debootstrap", "debian-archive-keyring", "iproute2", "util-linux"];

/// The namespaces of a system that runs. They end with the process that was started in them, and with them everything in them.
const NAMESPACES: [&str; 7] = ["--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child"];

/// Its first process, from outside: the packages that were fetched before, its own loopback interface, and then nothing but waiting for
/// the end of its input, which comes with the end of our program.
const INIT: &str = r#"
    mount --bind "$2" "$1/var/cache/apt/archives" && ip link set lo up &&
        exec chroot "$1" /bin/bash -c 'echo ready; read -r _'"#;

/// Where things change by themselves: caches, logs, what the kernel shows.
const PASSING: [&str; 8] = [
    "dev/pts",
    "proc",
    "sys",
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/lib/apt",
    "var/log",
    "var/lib/dpkg/lock",
];

/// Why there can be none here, in words for the user; `None` when there can.
pub fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it takes root".to_owned());
    }
    if let Err(error) = release() {
        return Some(format!("{error:#}"));
    }
    let tried = run(Command::new("unshare").args(NAMESPACES).arg("true"));
    tried.err().map(|error| format!("the kernel gives no namespaces of our own: {error:#}"))
}

/// The files of one.
pub struct Debian {
    root: PathBuf,
    /// Packages that were fetched, for all of them.
    archives: PathBuf,
}

impl Debian {
    /// A copy of a suite's system as debootstrap has made it, with this machine's mirrors as its sources.
    ///
    /// # Errors
    /// When debootstrap fails, such as where no mirror can be reached.
    pub fn clean(suite: &str, name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let home = machine::target().join("debian");
        let (archives, systems) = (home.join("archives"), home.join("systems"));
        fs::create_dir_all(&archives)?;
        fs::create_dir_all(&systems)?;
        let (home, archives, systems) =
            (home.canonicalize()?, archives.canonicalize()?, systems.canonicalize()?);
        cluster::sweep(&systems);
        let made = bootstrapped(suite, &home, &archives, &systems)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = systems.join(format!("{}-{number}-{name}", std::process::id()));
        let system = Self { root, archives };
        run(Command::new("cp").arg("-a").arg(&made).arg(&system.root))?;
        Ok(system)
    }

    /// # Errors
    /// When the kernel does not let us.
    pub fn start(&self) -> Result<Running> {
        let mut command = Command::new("unshare");
        command.args(NAMESPACES).arg(format!("--mount-proc={}", self.root.join("proc").display()));
        command.args(["sh", "-c", INIT, "sh"]).arg(&self.root).arg(&self.archives);
        let mut unshare = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("unshare")?;
        let mut said = String::new();
        BufReader::new(unshare.stdout.take().context("stdout")?).read_line(&mut said)?;
        let parent = i32::try_from(unshare.id())?;
        let mut running = Running { unshare, init: 0 };
        if said.trim() != "ready" {
            bail!("the clean system did not start");
        }
        (running.init, _) =
            process::children(parent).pop().context("the clean system has no first process")?;
        Ok(running)
    }

    /// Puts a file of ours into it, which it sees as `/root/<its name>`.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn put(&self, file: &Path) -> Result<String> {
        let name = file.file_name().context("no name")?.to_string_lossy();
        fs::copy(file, self.root.join("root").join(&*name))?;
        Ok(format!("/root/{name}"))
    }

    /// Every path, in it as from its own root, with its kind, owner, permissions and, of a file, size; except for what passes and what is
    /// below `leaving_out`.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn files(&self, leaving_out: &[&str]) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                let below = path.strip_prefix(&self.root)?.to_string_lossy().into_owned();
                if PASSING.iter().chain(leaving_out).any(|passing| Path::new(&below).starts_with(passing)) {
                    continue;
                }
                let meta = path.symlink_metadata()?;
                // What dpkg and others write about themselves has another size each time.
                let size = if meta.is_file() && below.starts_with("usr/") { meta.len() } else { 0 };
                let link = if meta.is_symlink() { fs::read_link(&path)? } else { PathBuf::new() };
                let facts =
                    format!("{:o} {}:{} {size} {}", meta.mode(), meta.uid(), meta.gid(), link.display());
                files.insert(below, facts);
                if meta.is_dir() {
                    directories.push(path);
                }
            }
        }
        Ok(files)
    }

    /// What is in a file, by its path in there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, file: &str) -> Result<Vec<u8>> {
        fs::read(self.root.join(file.trim_start_matches('/'))).with_context(|| file.to_owned())
    }

    /// What is in a file that gzip has compressed.
    ///
    /// # Errors
    /// As [`Debian::read`].
    pub fn unpacked(&self, file: &str) -> Result<Vec<u8>> {
        let path = self.root.join(file.trim_start_matches('/'));
        let output = Command::new("gzip").arg("-dc").arg(path).output()?;
        if !output.status.success() {
            bail!("{file}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.stdout)
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // Nothing is mounted in it that we could see.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// One that runs: as a machine of its own, with no network but its loopback interface. Dropping it ends everything in it.
pub struct Running {
    unshare: Child,
    /// The process id of its first process, as we see it.
    init: i32,
}

impl Running {
    /// Runs a script of bash in it, as root, and returns what it writes.
    ///
    /// # Errors
    /// With what it has written, when it fails.
    pub fn run(&self, script: &str) -> Result<String> {
        self.enter(script, &["--net"])
    }

    /// [`Running::run`] with this machine's network, for apt.
    ///
    /// # Errors
    /// As [`Running::run`].
    pub fn run_online(&self, script: &str) -> Result<String> {
        self.enter(script, &[])
    }

    fn enter(&self, script: &str, also: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init))
            .args(["--mount", "--pid", "--ipc", "--uts"])
            .args(also);
        command.args(["--root", "--wd=/", "bash", "-euo", "pipefail", "-c", script]).env_clear();
        for variable in ["http_proxy", "https_proxy", "no_proxy"] {
            command.envs(std::env::var_os(variable).map(|value| (variable, value)));
        }
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root").env("LANG", "C.UTF-8");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        run(&mut command)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.unshare.stdin.take());
        // It ends its child when it ends.
        let _ = self.unshare.wait();
    }
}
