//! A private copy of a server with Postern installed in it. Nothing is written to the system's own,
//! and a copy of its trees under another prefix finds its own files.

use crate::{machine, server};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The major version when nothing else is said: Debian 12's.
pub const DEFAULT_MAJOR: u32 = 15;

/// How the library is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// Fast to build, with the in-server tests and the switches that break it on purpose.
    Test,
    /// What users get, but fast to build.
    Plain,
    /// What users get.
    Release,
}

/// An installed server.
#[derive(Debug, Clone)]
pub struct Installation {
    pub major: u32,
    /// Where `postgres`, `initdb` and so on are.
    pub bin: PathBuf,
}

/// The environment variable that says which major version is used.
pub const MAJOR: &str = "POSTERN_PG";

/// The version that the tests run on: what [`MAJOR`] says, or [`DEFAULT_MAJOR`].
pub fn major() -> u32 {
    std::env::var(MAJOR).ok().and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_MAJOR)
}

/// Builds the library and installs it, once a program.
///
/// # Errors
/// When the server or its headers are missing, or the build fails.
pub fn install(build: Build) -> Result<&'static Installation> {
    static TEST: OnceLock<Result<Installation, String>> = OnceLock::new();
    static PLAIN: OnceLock<Result<Installation, String>> = OnceLock::new();
    static RELEASE: OnceLock<Result<Installation, String>> = OnceLock::new();
    let made = match build {
        Build::Test => &TEST,
        Build::Plain => &PLAIN,
        Build::Release => &RELEASE,
    };
    let made = made.get_or_init(|| make(major(), build).map_err(|error| format!("{error:#}")));
    made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// Builds the shared library and returns where it is.
///
/// # Errors
/// When the build fails; cargo has said why.
pub fn build_library(major: u32, build: Build) -> Result<PathBuf> {
    let mut cargo = library_build(major)?;
    let folder = match build {
        Build::Test => {
            cargo.args(["--features", "pg_test"]);
            "debug"
        }
        Build::Plain => "debug",
        Build::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    let status = cargo.status().context("running cargo")?;
    if !status.success() {
        bail!("building the library for PostgreSQL {major} failed");
    }
    Ok(machine::target().join(folder).join("libpostern.so"))
}

/// The command that builds the library of a major version, to which the kind of build is added.
pub(crate) fn library_build(major: u32) -> Result<Command> {
    let config = server::pg_config(major)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(machine::checkout()).env("PGRX_PG_CONFIG_PATH", config);
    cargo.args(["build", "--quiet", "--package", "postern", "--lib", "--features", &format!("pg{major}")]);
    // Test programs get these from cargo; a build must not see them.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST")) {
            cargo.env_remove(name);
        }
    }
    Ok(cargo)
}

/// The test build for another major version than that of the tests, kept for as long as the program runs.
///
/// # Errors
/// As [`install`].
pub fn install_another(major: u32) -> Result<&'static Installation> {
    Ok(Box::leak(Box::new(make(major, Build::Test)?)))
}

fn make(major: u32, build: Build) -> Result<Installation> {
    let from = server::obtain(major, |what| eprintln!("{what}"))?;
    let library = build_library(major, build)?;
    let name = match build {
        Build::Test => "test",
        Build::Plain => "plain",
        Build::Release => "release",
    };
    let root = machine::base()?.join(format!("server-{major}-{name}"));
    let installation = Installation { major, bin: root.join(format!("lib/postgresql/{major}/bin")) };
    let _alone = lock(&root.with_extension("lock"))?;
    copy_server(major, &from, &root)?;
    install_extension(&root, major, &library)?;
    Ok(installation)
}

/// One program at a time; the lock goes with the file.
pub(crate) fn lock(path: &Path) -> Result<fs::File> {
    let file = fs::File::create(path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Copies the server's two trees, unless the copy is of the version that is there now, with the same libraries beside it.
fn copy_server(major: u32, from: &Path, root: &Path) -> Result<()> {
    let theirs = from.join(format!("lib/postgresql/{major}/bin/postgres"));
    let version =
        Command::new(&theirs).arg("--version").output().with_context(|| theirs.display().to_string())?;
    let mut stamp = version.stdout;
    let mut libraries = Vec::new();
    for entry in fs::read_dir(from.join(format!("lib/postgresql/{major}/lib")))? {
        libraries.push(entry?.file_name());
    }
    libraries.sort();
    libraries.iter().for_each(|name| stamp.extend([name.as_encoded_bytes(), b"\n"].concat()));
    if fs::read(root.join("version")).is_ok_and(|copied| copied == stamp) {
        return Ok(());
    }
    // Made aside and renamed, so that a copy is whole or not there.
    let aside = root.with_extension(format!("new-{}", std::process::id()));
    for tree in ["lib", "share"] {
        let to = aside.join(tree).join("postgresql");
        fs::create_dir_all(&to)?;
        run(Command::new("cp")
            .arg("-a")
            .arg(from.join(tree).join("postgresql").join(major.to_string()))
            .arg(to))?;
    }
    fs::write(aside.join("version"), &stamp)?;
    if root.exists() {
        let old = root.with_extension(format!("old-{}", std::process::id()));
        fs::rename(root, &old)?;
        fs::remove_dir_all(&old)?;
    }
    fs::rename(&aside, root)?;
    Ok(())
}

fn install_extension(root: &Path, major: u32, library: &Path) -> Result<()> {
    extension_files(major, library)?.iter().try_for_each(|(path, content)| replace(&root.join(path), content))
}

/// What an installation is: paths below the server's prefix, which is Debian's `/usr`, and what is there.
pub(crate) fn extension_files(major: u32, library: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let checkout = machine::checkout();
    let extension = format!("share/postgresql/{major}/extension");
    let control = fs::read_to_string(checkout.join("postern.control"))?;
    let control = control.replace("@CARGO_VERSION@", env!("CARGO_PKG_VERSION"));
    let mut files = vec![
        (format!("lib/postgresql/{major}/lib/postern.so"), fs::read(library)?),
        (format!("{extension}/postern.control"), control.into_bytes()),
    ];
    for script in fs::read_dir(checkout.join("sql"))?.flatten() {
        let name = script.file_name().to_string_lossy().into_owned();
        if name.starts_with("postern--") {
            files.push((format!("{extension}/{name}"), fs::read(script.path())?));
        }
    }
    Ok(files)
}

/// A file that a running server has mapped must not be written to: a new one takes its name.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&aside, content).with_context(|| format!("writing {}", aside.display()))?;
    fs::rename(&aside, path)?;
    Ok(())
}

pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
