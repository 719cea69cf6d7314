//! Real drivers for tests: psycopg 3, asyncpg, node-postgres, Go's pgx and lib/pq, and an exporter for PgBouncer, in folders of their own under the rig's base
//! directory, installed on first use. The scripts that use them are in `pgrx-tests/drivers/`.

use crate::{installation, lacking, machine};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ASYNCPG: &str = "0.30.0";
const PSYCOPG: &str = "3.2.13";
const EXPORTER: &str = "2.1.2";
/// What the exporter needs: its own list names a psycopg2 that must be compiled.
const EXPORTER_NEEDS: [&str; 4] =
    ["psycopg2-binary==2.9.10", "prometheus_client==0.8.0", "python-json-logger==0.1.11", "PyYAML==6.0.2"];
const NODE_POSTGRES: &str = "8.16.3";

/// Seconds that a script may take before it is killed and has failed.
const LIMIT: &str = "180";

/// Runs a script of `pgrx-tests/drivers/` in a Python that has psycopg 3.
///
/// # Errors
/// When psycopg cannot be had, with what to install. A script that fails is no error: its status tells.
pub fn python(script: &str, arguments: &[&str]) -> Result<Output> {
    run(limited(&python_with_psycopg()?), script, arguments)
}

/// Runs a script of `pgrx-tests/drivers/` in a Python that has asyncpg.
///
/// # Errors
/// When asyncpg cannot be had. A script that fails is no error: its status tells.
pub fn python_with_asyncpg(script: &str, arguments: &[&str]) -> Result<Output> {
    let package = format!("asyncpg=={ASYNCPG}");
    let python = virtual_environment(&format!("asyncpg-{ASYNCPG}"), &[&package], "asyncpg")
        .context("no asyncpg: install python3-venv and let pip reach PyPI")?;
    run(limited(&python), script, arguments)
}

/// Runs the Go program in a folder of `pgrx-tests/drivers/`; `None` where there is no Go, which is not installed for it, and said.
///
/// # Errors
/// When its modules cannot be had. A program that fails is no error: its status tells.
pub fn go(folder: &str, arguments: &[&str]) -> Result<Option<Output>> {
    if Command::new("go").arg("version").output().is_err() {
        lacking::say(&format!("the clients of {folder} were not tried; there is no Go here"));
        return Ok(None);
    }
    let base = machine::base()?;
    let program = base.join(format!("{folder}-{}", std::process::id()));
    let mut build = Command::new("go");
    build.current_dir(machine::checkout().join("pgrx-tests/drivers").join(folder));
    build
        .env("GOPATH", base.join("go"))
        .env("GOMODCACHE", base.join("go-modules"))
        .env("GOCACHE", base.join("go-cache"));
    // Go makes what it has downloaded read-only, which nobody could clean up.
    build.env("GOFLAGS", "-modcacherw -buildvcs=false").env("CGO_ENABLED", "0");
    installation::run(build.args(["build", "-o"]).arg(&program).arg("."))?;
    let output = limited(&program).args(arguments).output();
    let _ = fs::remove_file(&program);
    Ok(Some(output.with_context(|| format!("running {}", program.display()))?))
}

/// Runs a script of `pgrx-tests/drivers/` in a Python that has prometheus-pgbouncer-exporter.
///
/// # Errors
/// When the exporter cannot be had. A script that fails is no error: its status tells.
pub fn python_with_exporter(script: &str, arguments: &[&str]) -> Result<Output> {
    let package = format!("prometheus-pgbouncer-exporter=={EXPORTER}");
    let packages: Vec<_> = ["--no-deps", &package].into_iter().chain(EXPORTER_NEEDS).collect();
    let module = "prometheus_pgbouncer_exporter.cli";
    let python = virtual_environment(&format!("pgbouncer-exporter-{EXPORTER}"), &packages, module)
        .context("no prometheus-pgbouncer-exporter: install python3-venv and let pip reach PyPI")?;
    run(limited(&python), script, arguments)
}

/// Runs a script of `pgrx-tests/drivers/` in a Node.js that finds node-postgres.
///
/// # Errors
/// When Node.js or node-postgres cannot be had, with what to install. A script that fails is no error: its status tells.
pub fn node(script: &str, arguments: &[&str]) -> Result<Output> {
    let modules = node_modules()?;
    let mut command = limited(Path::new("node"));
    command.env("NODE_PATH", modules);
    run(command, script, arguments)
}

/// Fails unless the script succeeded, with all that it said.
///
/// # Errors
/// When it did not.
pub fn succeeded(script: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!(
            "{script}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn limited(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT]).arg(program).env("PYTHONDONTWRITEBYTECODE", "1");
    for variable in
        ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGPASSWORD", "PGSSLMODE", "PGAPPNAME"]
    {
        command.env_remove(variable);
    }
    command
}

fn run(mut command: Command, script: &str, arguments: &[&str]) -> Result<Output> {
    let script = machine::checkout().join("pgrx-tests/drivers").join(script);
    command.arg(&script).args(arguments);
    command.output().with_context(|| format!("running {}", script.display()))
}

/// A Python with psycopg: a virtual environment of our own, or Debian's where there is no way to PyPI.
fn python_with_psycopg() -> Result<PathBuf> {
    let package = format!("psycopg[binary]=={PSYCOPG}");
    let no_pypi = match virtual_environment(&format!("psycopg-{PSYCOPG}"), &[&package], "psycopg") {
        Ok(python) => return Ok(python),
        Err(error) => error,
    };
    let debian = PathBuf::from("/usr/bin/python3");
    let from_debian = || -> Result<()> {
        machine::install(&["python3".to_owned(), "python3-psycopg".to_owned()], |what| eprintln!("{what}"))?;
        installation::run(Command::new(&debian).args(["-c", "import psycopg"])).map(drop)
    };
    match from_debian() {
        Ok(()) => Ok(debian),
        Err(no_debian) => bail!(
            "no psycopg 3: install python3-venv and let pip reach PyPI, or install python3-psycopg\n\
             from PyPI: {no_pypi:#}\nfrom Debian: {no_debian:#}"
        ),
    }
}

/// The Python of a virtual environment of that name, in which pip has been given these arguments and the module can be imported.
fn virtual_environment(name: &str, arguments: &[&str], module: &str) -> Result<PathBuf> {
    let home = machine::base()?.join(name);
    let python = home.join("bin/python");
    let mark = home.join("complete");
    if mark.exists() {
        return Ok(python);
    }
    let _alone = installation::lock(&home.with_extension("lock"))?;
    if mark.exists() {
        return Ok(python);
    }
    // A virtual environment knows its own path, so it cannot be made aside and renamed: the mark says that it is whole.
    let _ = fs::remove_dir_all(&home);
    installation::run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    installation::run(pip.args(arguments))?;
    installation::run(Command::new(&python).args(["-c", &format!("import {module}")]))?;
    fs::write(&mark, "")?;
    Ok(python)
}

/// The folder that has node-postgres.
fn node_modules() -> Result<PathBuf> {
    let home = machine::base()?.join(format!("node-postgres-{NODE_POSTGRES}"));
    let modules = home.join("node_modules");
    if home.exists() {
        return Ok(modules);
    }
    let _alone = installation::lock(&home.with_extension("lock"))?;
    if home.exists() {
        return Ok(modules);
    }
    let missing = |program: &str| Command::new(program).arg("--version").output().is_err();
    if missing("node") || missing("npm") {
        machine::install(&["nodejs".to_owned(), "npm".to_owned()], |what| eprintln!("{what}"))?;
    }
    let aside = home.with_extension(format!("new-{}", std::process::id()));
    fs::create_dir_all(&aside)?;
    let mut npm = Command::new("npm");
    npm.current_dir(&aside).args(["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]);
    npm.args(["--no-save", "--ignore-scripts", "--prefix", "."]);
    let installed = installation::run(npm.arg(format!("pg@{NODE_POSTGRES}")))
        .with_context(|| format!("no node-postgres {NODE_POSTGRES}: npm must be able to download it"));
    if let Err(error) = installed {
        let _ = fs::remove_dir_all(&aside);
        return Err(error);
    }
    fs::rename(&aside, &home)?;
    Ok(modules)
}
