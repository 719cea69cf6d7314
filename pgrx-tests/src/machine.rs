//! What the rig needs of the machine: the distribution's packages, a user that may run a server, and a place to write.

use crate::{clean_debian, debian_package, server};
use anyhow::{Context, Result, bail};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the demo needs on Debian, for one major version of the server.
pub fn demo_packages(major: u32) -> Vec<String> {
    let mut packages = server::packages(major);
    packages.extend(
        [
            "libpq-dev",
            "libclang-dev",
            "libkrb5-dev",
            // What librdkafka is built with, for the Kafka sink and source.
            "gcc",
            "make",
            "pkg-config",
            "libssl-dev",
            "haproxy",
        ]
        .map(str::to_owned),
    );
    packages.sort();
    packages.dedup();
    packages
}

/// What the tests need beside that: promtool, what the peers are built with, what a Kafka broker takes, extensions to live with, and what
/// the package is packed and tried with.
pub fn test_packages(major: u32) -> Vec<String> {
    let mut packages = demo_packages(major);
    packages.push("prometheus".to_owned());
    packages.extend(server::neighbours(major));
    packages.extend(peer_packages());
    packages.extend(broker_packages());
    packages.extend(debian_package::packages(major));
    packages.extend(clean_debian::PACKAGES.map(str::to_owned));
    packages.sort();
    packages.dedup();
    packages
}

/// What building PgBouncer takes.
pub fn peer_packages() -> Vec<String> {
    ["libevent-dev", "libssl-dev", "openssl", "pkg-config", "gcc", "make", "dpkg-dev"]
        .map(str::to_owned)
        .to_vec()
}

/// What a Kafka broker takes and this machine lacks: Java, Maven to fetch it, and kcat. Programs are looked for and not
/// packages, because Java and Maven come in many ways.
pub fn broker_packages() -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let of = [("java", "default-jre-headless"), ("mvn", "maven"), ("kcat", "kcat")];
    let missing = of.into_iter().filter(|(program, _)| !is_there(program));
    missing.map(|(_, package)| package.to_owned()).collect()
}

/// Installs what is missing of `packages` where apt and the rights are at hand; elsewhere says what to install.
///
/// # Errors
/// With the exact list, when something is missing and cannot be installed here.
pub fn install(packages: &[String], say: impl Fn(&str)) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let by_hand = format!("install these packages, or what your system calls them, and try again:\n  {list}");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("some packages are missing and this system has no apt; {by_hand}");
    }
    let sudo = !rustix::process::geteuid().is_root();
    if sudo && !Path::new("/usr/bin/sudo").exists() {
        bail!("some packages are missing, and installing them takes root or sudo; {by_hand}");
    }
    say(&format!("installing {list}"));
    let apt = |arguments: &[&str]| -> Result<()> {
        let mut command = if sudo { Command::new("sudo") } else { Command::new("env") };
        command.args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", QUIETLY, "sh"]);
        let output = command.args(arguments).output().context("apt-get")?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("apt-get {} failed; {by_hand}\n{error}", arguments.join(" "));
        }
        Ok(())
    };
    apt(&["update"])?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(missing.iter().map(String::as_str));
    apt(&arguments)
}

/// apt-get that starts no service: an installed haproxy or server is for the private copies only.
const QUIETLY: &str = r#"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' > $policy && chmod 755 $policy
        trap 'rm -f $policy' EXIT
    fi
    apt-get -qq -o=Dpkg::Use-Pty=0 "$@""#;

/// The packages that are not installed; all of the server's when its two are not of one version.
fn missing(packages: &[String]) -> Vec<String> {
    let version = |package: &str| -> Option<String> {
        let query = Command::new("dpkg-query")
            .args(["-W", "-f=${db:Status-Abbrev}${Version}", package])
            .output()
            .ok()?;
        let text = String::from_utf8(query.stdout).ok()?;
        text.strip_prefix("ii ").map(str::to_owned)
    };
    let of_server = |package: &String| {
        let (_, last) = package.rsplit_once('-').unwrap_or_default();
        package.starts_with("postgresql-") && last.parse::<u32>().is_ok()
    };
    let versions: Vec<_> = packages.iter().filter(|p| of_server(p)).map(|p| version(p)).collect();
    let differ = versions.windows(2).any(|pair| pair[0] != pair[1]);
    packages.iter().filter(|p| version(p).is_none() || (of_server(p) && differ)).cloned().collect()
}

/// The root of this checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// cargo's target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from)
}

/// Where servers and clusters are kept: under `target/`, unless the user that runs the servers cannot get there.
///
/// # Errors
/// When the directory cannot be made.
pub fn base() -> Result<PathBuf> {
    let target = target();
    std::fs::create_dir_all(&target)?;
    let target = target.canonicalize()?;
    let base = match server_user()? {
        Some(user) if !user.can_enter(&target) => {
            // A checkout in root's own home: nobody else can get in there.
            let name: String = target.to_string_lossy().replace('/', "-");
            PathBuf::from("/var/tmp").join(format!("postern{name}-{}", user.name))
        }
        Some(user) => target.join(format!("rig-{}", user.name)),
        None => target.join("rig"),
    };
    std::fs::create_dir_all(&base)?;
    Ok(base)
}

/// Makes the program run as somebody whom the server accepts: PostgreSQL refuses root.
///
/// # Errors
/// When we are root and there is no user to become.
pub fn as_server_user(command: &mut Command) -> Result<()> {
    if let Some(user) = server_user()? {
        command.uid(user.uid).gid(user.gid);
    }
    Ok(())
}

/// Gives a file or directory to the user that runs the servers.
///
/// # Errors
/// When the system refuses.
pub fn give_to_server_user(path: &Path) -> Result<()> {
    if let Some(user) = server_user()? {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

/// The name of the user that runs the servers.
///
/// # Errors
/// When there is none.
pub fn server_user_name() -> Result<String> {
    match server_user()? {
        Some(user) => Ok(user.name),
        None => {
            let output = Command::new("id").arg("-un").output()?;
            Ok(String::from_utf8(output.stdout)?.trim().to_owned())
        }
    }
}

struct User {
    name: String,
    uid: u32,
    gid: u32,
}

/// `None` when we are not root, and run servers as ourselves.
fn server_user() -> Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let find = |wanted: &str| {
        users.lines().find_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
            (fields[0] == wanted).then(|| User { name: wanted.to_owned(), uid, gid })
        })
    };
    // Not "postgres": who gets into a throw-away server as superuser acts as its user, who must own nothing here.
    let user = find("nobody").context("there is no user nobody to run servers as")?;
    Ok(Some(user))
}

impl User {
    fn can_enter(&self, directory: &Path) -> bool {
        directory.ancestors().all(|ancestor| {
            std::fs::metadata(ancestor).is_ok_and(|meta| {
                let bit = match () {
                    () if meta.uid() == self.uid => 0o100,
                    () if meta.gid() == self.gid => 0o010,
                    () => 0o001,
                };
                meta.mode() & bit != 0
            })
        })
    }
}
