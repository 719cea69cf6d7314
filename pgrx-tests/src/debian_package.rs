//! The Debian package of one major version: a release build, laid out under `target/debian/` with the files of `debian/`, and packed by
//! debhelper. Runs in `cargo debian` and in the test that installs the package.

use crate::installation::{extension_files, library_build, run};
use crate::{machine, notices, reference, server};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Of the package, for one version of Postern.
const REVISION: u32 = 1;

/// What of the Rust toolchain says who wrote its library.
const LIBRARY_NOTICES: &str = "share/doc/rust/COPYRIGHT-library.html";

/// What packing takes, beside what building takes.
pub fn packages(major: u32) -> Vec<String> {
    let mut packages = machine::demo_packages(major);
    packages.extend(["debhelper", "dpkg-dev"].map(str::to_owned));
    packages
}

/// The files of `debian/`; in those that end so, the versions are filled in.
const PACKING: [&str; 9] = [
    "control.in",
    "copyright",
    "docs",
    "examples",
    "install",
    "lintian-overrides.in",
    "manpages.in",
    "rules",
    "source/format",
];

/// The package's name.
pub fn name(major: u32) -> String {
    format!("postgresql-{major}-postern")
}

/// Builds the package and the one with its debug symbols; returns where the two are.
///
/// # Errors
/// When the library does not build, or debhelper fails.
pub fn build(major: u32) -> Result<[PathBuf; 2]> {
    if server::is_bare(major) {
        bail!(
            "the headers of PostgreSQL {major} here are of a server without TLS, and what is built with them does not fit one that has it: \
             build on a machine whose distribution has postgresql-server-dev-{major}"
        );
    }
    let library = library(major)?;
    let outcome = machine::target().join(format!("debian/{major}"));
    if outcome.exists() {
        fs::remove_dir_all(&outcome)?;
    }
    let source = outcome.join(format!("postern-{}", env!("CARGO_PKG_VERSION")));
    lay_out(major, &library, &source)?;
    let mut pack = Command::new("dpkg-buildpackage");
    pack.current_dir(&source).args(["--build=binary", "--no-sign"]);
    // What the surrounding cargo and make have set for themselves.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("DEB_") || name.contains("MAKE")) {
            pack.env_remove(name);
        }
    }
    run(&mut pack).context("dpkg-buildpackage")?;
    let version = format!("{}-{REVISION}", env!("CARGO_PKG_VERSION"));
    let architecture = run(Command::new("dpkg").arg("--print-architecture"))?;
    let packages = ["", "-dbgsym"]
        .map(|kind| outcome.join(format!("{}{kind}_{version}_{}.deb", name(major), architecture.trim())));
    if let Some(missing) = packages.iter().find(|package| !package.exists()) {
        bail!("dpkg-buildpackage has not made {}", missing.display());
    }
    Ok(packages)
}

/// The release build, which knows nothing of where it was made: neither its messages nor its debug symbols have paths of this machine.
fn library(major: u32) -> Result<PathBuf> {
    let checkout = machine::checkout();
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set")?;
    let names = [(&home.join("registry/src"), "/cargo"), (&checkout, "/postern")];
    let option = |flag: &str| names.map(|(from, to)| format!("{flag}={}={to}", from.display())).join(" ");
    let with = |variable: &str, more: &str| {
        let given = std::env::var(variable).unwrap_or_default();
        format!("{given} {more}").trim_start().to_owned()
    };
    let mut cargo = library_build(major)?;
    cargo.args(["--release", "--locked", "--target-dir"]).arg(machine::target().join("debian/cargo"));
    cargo.env("RUSTFLAGS", with("RUSTFLAGS", &option("--remap-path-prefix")));
    cargo.env("CFLAGS", with("CFLAGS", &option("-ffile-prefix-map")));
    if !cargo.status().context("running cargo")?.success() {
        bail!("building the library for PostgreSQL {major} failed");
    }
    Ok(machine::target().join("debian/cargo/release/libpostern.so"))
}

/// Everything that goes into the package, and `debian/` beside it.
fn lay_out(major: u32, library: &Path, source: &Path) -> Result<()> {
    let checkout = machine::checkout();
    let put = |path: &str, content: &[u8]| -> Result<()> {
        let path = source.join(path);
        fs::create_dir_all(path.parent().context("no directory")?)?;
        fs::write(&path, content).with_context(|| path.display().to_string())
    };
    for (path, content) in extension_files(major, library)? {
        put(&format!("usr/{path}"), &content)?;
    }
    let toolchain = PathBuf::from(run(Command::new("rustc").args(["--print", "sysroot"]))?.trim());
    let library_notices = toolchain.join(LIBRARY_NOTICES);
    for (from, to) in [
        (checkout.join("README.md"), "README.md".to_owned()),
        (checkout.join("CHANGELOG.md"), "CHANGELOG.md".to_owned()),
        (checkout.join("examples/haproxy.cfg"), "haproxy.cfg".to_owned()),
        (checkout.join(notices::FILE), "THIRD-PARTY-NOTICES".to_owned()),
        // Packages of two major versions are installed beside each other: each has names of its own.
        (checkout.join(reference::FILE), format!("{}.7", name(major))),
        (library_notices, "COPYRIGHT-library.html".to_owned()),
    ] {
        put(&to, &fs::read(&from).with_context(|| from.display().to_string())?)?;
    }
    let minor = minor(major)?;
    let fill = |text: &str| text.replace("@MAJOR@", &major.to_string()).replace("@MINOR@", &minor);
    for file in PACKING {
        let text = fs::read_to_string(checkout.join("debian").join(file))
            .with_context(|| format!("debian/{file}"))?;
        put(&format!("debian/{}", file.trim_end_matches(".in")), fill(&text).as_bytes())?;
    }
    put("debian/changelog", changelog()?.as_bytes())?;
    run(Command::new("chmod").arg("755").arg(source.join("debian/rules")))?;
    Ok(())
}

/// The minor version that the library is built against, such as 15.20: an older server may lack what this one has.
fn minor(major: u32) -> Result<String> {
    let said = run(Command::new(server::pg_config(major)?).arg("--version"))?;
    // PostgreSQL 15.20 (Debian 15.20-0+deb12u1)
    said.split_whitespace().nth(1).map(str::to_owned).with_context(|| format!("pg_config --version: {said}"))
}

/// Debian's changelog, which debhelper takes the version and the date of all files from. What has changed is in CHANGELOG.md.
fn changelog() -> Result<String> {
    let date = run(Command::new("date")
        .env("LC_ALL", "C")
        .args(["--utc", "--rfc-email", "--date"])
        .arg(format!("@{}", time())))?;
    let control = fs::read_to_string(machine::checkout().join("debian/control.in"))?;
    let maintainer =
        control.lines().find_map(|line| line.strip_prefix("Maintainer: ")).context("no maintainer")?;
    Ok(format!(
        "postern ({}-{REVISION}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- {maintainer}  {}\n",
        env!("CARGO_PKG_VERSION"),
        date.trim()
    ))
}

/// Seconds since 1970: what was asked for, else of the last commit, else of now.
fn time() -> u64 {
    let asked = std::env::var("SOURCE_DATE_EPOCH").ok();
    let commit =
        || run(Command::new("git").current_dir(machine::checkout()).args(["log", "-1", "--format=%ct"])).ok();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    asked.or_else(commit).and_then(|text| text.trim().parse().ok()).unwrap_or_else(now)
}
