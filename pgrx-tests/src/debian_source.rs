//! Debian's source packages, for what this machine's distribution has not, or not new enough: fetched by apt, which checks Debian's
//! signature, in a configuration of its own that touches nothing of the system.

use crate::installation::run;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What apt and unpacking take.
pub const PACKAGES: [&str; 2] = ["dpkg-dev", "debian-archive-keyring"];

/// Fetches the source package of that name from a suite of Debian (`trixie`, `sid` …), and unpacks it below `work`, which is made. Returns
/// the directory of the source, with Debian's patches in it.
///
/// # Errors
/// When there is no apt, the archive cannot be reached, or has no such package in that suite.
pub fn fetch(suite: &str, package: &str, work: &Path) -> Result<PathBuf> {
    let (lists, cache, source) = (work.join("lists"), work.join("cache"), work.join("source"));
    for directory in [&lists.join("partial"), &cache, &source] {
        fs::create_dir_all(directory)?;
    }
    let work = work.canonicalize()?;
    let line = format!(
        "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n"
    );
    fs::write(work.join("sources.list"), line)?;
    let configuration = format!(
        "Dir::Etc::SourceList \"{work}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\n\
         Dir::State::Lists \"{work}/lists\";\nDir::Cache \"{work}/cache\";\nAPT::Sandbox::User \"root\";\n",
        work = work.display()
    );
    fs::write(work.join("apt.conf"), configuration)?;
    let apt = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", work.join("apt.conf")).current_dir(&source);
        run(command.arg("-qq").args(arguments))
    };
    apt(&["update"])?;
    apt(&["source", package])?;
    let unpacked = fs::read_dir(&source)?.flatten().map(|entry| entry.path()).find(|path| path.is_dir());
    unpacked.with_context(|| format!("source package {package} of {suite} unpacked to no directory"))
}
