//! What debootstrap makes of a release of Debian, once, with this machine's mirrors. Runs in test programs, as root.

use crate::installation::{lock, run};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Nothing is started because it was installed, and nothing has to survive a power failure.
const FILES: [(&str, u32, &str); 4] = [
    ("usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\nexit 101\n"),
    ("etc/dpkg/dpkg.cfg.d/unsafe-io", 0o644, "force-unsafe-io\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "etc/apt/apt.conf.d/quiet",
        0o644,
        "APT::Install-Recommends \"false\";\nDpkg::Use-Pty \"0\";\nAPT::Sandbox::User \"root\";\n",
    ),
];

/// What debootstrap makes of a suite of Debian, made once and kept.
pub(super) fn bootstrapped(suite: &str, home: &Path, archives: &Path, systems: &Path) -> Result<PathBuf> {
    let (release, mut mirrors) = (release()?, mirrors()?);
    if suite != release {
        // Without its updates: what servers of its version are built from here is the release's own, too.
        mirrors.truncate(1);
        mirrors.iter_mut().for_each(|(_, of)| suite.clone_into(of));
    }
    let made = home.join(format!("clean-{suite}"));
    let _alone = lock(&made.with_extension("lock"))?;
    if made.exists() {
        return Ok(made);
    }
    let aside = systems.join(format!("{}-debootstrap", std::process::id()));
    let mirror = &mirrors.first().context("apt has no mirror of Debian")?.0;
    let mut debootstrap = Command::new("unshare");
    // What it mounts and a failure leaves mounted is nowhere else, and ends with it.
    debootstrap.args(["--mount", "--pid", "--fork", "--kill-child", "debootstrap", "--variant=minbase"]);
    debootstrap.arg("--keyring=/usr/share/keyrings/debian-archive-keyring.gpg");
    debootstrap.arg(format!("--cache-dir={}", archives.display()));
    if mirrors.iter().any(|(address, _)| address.starts_with("https:")) {
        debootstrap.arg("--include=ca-certificates");
    }
    run(debootstrap.arg(suite).arg(&aside).arg(mirror)).context("debootstrap")?;
    for (file, mode, content) in FILES {
        let path = aside.join(file);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    let sources: String =
        mirrors.iter().map(|(address, suite)| format!("deb {address} {suite} main\n")).collect();
    fs::write(aside.join("etc/apt/sources.list"), sources)?;
    fs::write(aside.join("etc/apt/apt.conf.d/machine"), ways_to_mirrors()?)?;
    fs::rename(&aside, &made)?;
    Ok(made)
}

/// What this machine's apt needs to be told for its mirrors: proxies, and which dates it does not believe.
fn ways_to_mirrors() -> Result<String> {
    let dump = run(Command::new("apt-config").arg("dump"))?;
    let about = ["Acquire::http", "Acquire::Check-"];
    let lines = dump.lines().filter(|line| about.iter().any(|begins| line.starts_with(begins)));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// The codename of this machine's Debian.
pub(super) fn release() -> Result<String> {
    let about = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value =
        |key: &str| about.lines().find_map(|line| line.strip_prefix(key)).map(|v| v.trim_matches('"'));
    match (value("ID="), value("VERSION_CODENAME=")) {
        (Some("debian"), Some(codename)) => Ok(codename.to_owned()),
        _ => bail!("this machine is no Debian"),
    }
}

/// Addresses and suites from which this machine's apt gets this release of Debian, the release itself before its updates.
fn mirrors() -> Result<Vec<(String, String)>> {
    let release = release()?;
    let mut indexes = Command::new("apt-get");
    indexes.args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
        "Origin: Debian",
    ]);
    let said = run(&mut indexes)?;
    let mut mirrors: Vec<_> = said.lines().filter_map(|line| line.split_once(' ')).collect();
    // By its codename or, as some have it, by the name of its state.
    let updates = format!("{release}-");
    mirrors.retain(|(_, suite)| *suite == release || suite.starts_with(&updates));
    mirrors.sort_by_key(|(_, suite)| suite.len());
    mirrors.dedup();
    if mirrors.is_empty() {
        let (main, security) = ("http://deb.debian.org/debian", "http://deb.debian.org/debian-security");
        let (updates, fixes) = (format!("{release}-updates"), format!("{release}-security"));
        let all = [(main, &release), (main, &updates), (security, &fixes)];
        return Ok(all.map(|(address, suite)| (address.to_owned(), suite.clone())).to_vec());
    }
    Ok(mirrors.into_iter().map(|(address, suite)| (address.to_owned(), suite.to_owned())).collect())
}
