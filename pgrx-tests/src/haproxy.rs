//! A real haproxy, configured as the README says.

use crate::process::{self, Process};
use crate::{installation, machine, wait};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Time limits that every haproxy wants, and the socket that tells what it thinks of its servers.
const GLOBAL: &str = "\
global
\tstats socket {socket} mode 600 level admin
defaults
\ttimeout connect 5s
\ttimeout client 1h
\ttimeout server 1h

";

/// The README's configuration, so that what it tells is what is tested.
///
/// # Errors
/// When the README has none.
pub fn readme_configuration() -> Result<String> {
    let readme = fs::read_to_string(machine::checkout().join("README.md"))?;
    let start = readme.find("```haproxy\n").context("README.md has no haproxy block")? + "```haproxy\n".len();
    let length = readme[start..].find("```").context("README.md's haproxy block does not end")?;
    Ok(readme[start..start + length].to_owned())
}

/// A running haproxy; dropping it ends it.
pub struct Haproxy {
    process: std::sync::Mutex<Process>,
    directory: PathBuf,
}

impl Haproxy {
    /// Starts it with [`readme_configuration`] after `replace` has put other ports in.
    ///
    /// # Errors
    /// When haproxy is missing or does not take the configuration.
    pub fn start(name: &str, configuration: &str) -> Result<Self> {
        let program = "/usr/sbin/haproxy";
        if !std::path::Path::new(program).exists() {
            bail!("haproxy is not installed");
        }
        let directory = std::env::temp_dir().join(format!("postern-haproxy-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory)?;
        machine::give_to_server_user(&directory)?;
        let file = directory.join("haproxy.cfg");
        let socket = directory.join("stats");
        fs::write(&file, GLOBAL.replace("{socket}", &socket.to_string_lossy()) + configuration)?;
        installation::run(Command::new(program).arg("-c").arg("-q").arg("-f").arg(&file))?;
        let log = fs::File::create(directory.join("log"))?;
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = std::sync::Mutex::new(process::start(command, Signal::TERM)?);
        let haproxy = Self { process, directory };
        let mut ended = false;
        wait::until("haproxy answers", || {
            ended = haproxy.process.lock().is_ok_and(|mut process| !matches!(process.ended(), Ok(None)));
            ended || haproxy.servers().is_ok()
        })?;
        if ended {
            bail!("haproxy has ended:\n{}", fs::read_to_string(haproxy.directory.join("log"))?);
        }
        Ok(haproxy)
    }

    /// `show servers state`-like: one line a server, `name status weight`, from `show stat`.
    ///
    /// # Errors
    /// When haproxy does not answer.
    pub fn servers(&self) -> Result<Vec<(String, String, String)>> {
        use std::io::{Read, Write};
        let mut socket = std::os::unix::net::UnixStream::connect(self.directory.join("stats"))?;
        socket.write_all(b"show stat\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        let mut rows = text.lines();
        let header: Vec<&str> =
            rows.next().context("no header")?.trim_start_matches("# ").split(',').collect();
        let column = |name: &str| header.iter().position(|h| *h == name).context("no such column");
        let (server, status, weight) = (column("svname")?, column("status")?, column("weight")?);
        let cells = rows.map(|row| row.split(',').collect::<Vec<_>>());
        Ok(cells
            .filter(|row| row.len() > weight && !matches!(row[server], "FRONTEND" | "BACKEND"))
            .map(|row| (row[server].to_owned(), row[status].to_owned(), row[weight].to_owned()))
            .collect())
    }

    /// The status of one server, such as `UP`, `DOWN` or `DRAIN (agent)`.
    pub fn status(&self, server: &str) -> String {
        let servers = self.servers().unwrap_or_default();
        servers.into_iter().find(|(name, ..)| name == server).map_or(String::new(), |(_, status, _)| status)
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_has_what_the_readme_has_and_haproxy_takes_it() {
        let example = machine::checkout().join("examples/haproxy.cfg");
        let text = fs::read_to_string(&example).unwrap();
        assert!(text.contains(&readme_configuration().unwrap()));
        installation::run(Command::new("/usr/sbin/haproxy").arg("-c").arg("-q").arg("-f").arg(example))
            .unwrap();
    }
}
