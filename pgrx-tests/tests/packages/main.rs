//! The Debian package, installed by apt into a clean Debian: what its user does, from the first command to the last.

use anyhow::Result;
use pgrx_tests::clean_debian::{self, Debian, Running};
use pgrx_tests::{debian_package, installation, lacking, machine, notices, reference, server, wait};
use std::collections::BTreeMap;
use std::fs;

/// Of the server that the test itself starts; the log is its, too.
const DATA: &str = "var/lib/postgresql";

#[test]
fn the_package_serves_in_a_clean_debian_and_goes_without_a_trace() -> Result<()> {
    let major = installation::major();
    let why = clean_debian::unavailable();
    let suite = server::suite(major);
    let why = why.or_else(|| match suite {
        None => Some(format!("no release of Debian has PostgreSQL {major}")),
        // Whether it can be installed at all is another question each day.
        Some(server::UNRELEASED) if lacking::nobody_looks() => {
            Some(format!("PostgreSQL {major} is in no released Debian yet"))
        }
        Some(_) => None,
    });
    if let Some(why) = why {
        lacking::not_run(&format!("no Debian to install the package in; {why}"));
        return Ok(());
    }
    let suite = suite.unwrap_or_default();
    // The one computes, the other mostly waits for the network.
    let (package, before) = std::thread::scope(|scope| {
        let package = scope.spawn(|| debian_package::build(major));
        let before = with_the_server_alone(suite, major);
        (package.join(), before)
    });
    let [package, _] = package.map_err(|_| anyhow::anyhow!("building the package has panicked"))??;
    let before = before?;
    let system = Debian::clean(suite, "postern")?;
    let file = system.put(&package)?;
    let running = installed(&system, &file)?;
    it_carries_what_it_should(&system, major)?;
    it_serves(&running, major)?;
    it_goes(&running, major)?;
    running.run(&format!("rm {file}"))?;
    drop(running);
    assert_eq!(differences(&before, &system.files(&[DATA])?), Vec::<String>::new(), "traces of the package");
    Ok(())
}

/// The files of a system that never had the package.
fn with_the_server_alone(suite: &str, major: u32) -> Result<BTreeMap<String, String>> {
    let system = Debian::clean(suite, "server")?;
    drop(installed(&system, &format!("postgresql-{major}"))?);
    system.files(&[DATA])
}

/// Installs it with apt and nothing beside what it needs.
fn installed(system: &Debian, package: &str) -> Result<Running> {
    let running = system.start()?;
    running.run_online("apt-get -qq update")?;
    running.run_online(&format!("apt-get -qq install {package}"))?;
    Ok(running)
}

fn it_carries_what_it_should(system: &Debian, major: u32) -> Result<()> {
    let name = debian_package::name(major);
    let listed = String::from_utf8(system.read(&format!("/var/lib/dpkg/info/{name}.list"))?)?;
    let documents = format!("/usr/share/doc/{name}");
    for file in [
        format!("/usr/lib/postgresql/{major}/lib/postern.so"),
        format!("/usr/share/postgresql/{major}/extension/postern.control"),
        format!("/usr/share/postgresql/{major}/extension/postern--{}.sql", env!("CARGO_PKG_VERSION")),
        format!("{documents}/README.md.gz"),
        format!("{documents}/changelog.gz"),
        format!("{documents}/copyright"),
        format!("{documents}/examples/haproxy.cfg"),
    ] {
        assert!(listed.lines().any(|line| line == file), "{file} is not in the package:\n{listed}");
    }
    for (packed, kept) in [
        (format!("/usr/share/man/man7/{name}.7.gz"), reference::FILE),
        (format!("{documents}/THIRD-PARTY-NOTICES.gz"), notices::FILE),
    ] {
        let unpacked = system.unpacked(&packed)?;
        assert!(unpacked == fs::read(machine::checkout().join(kept))?, "{packed} is not {kept}");
    }
    let library = system.read(&format!("/usr/lib/postgresql/{major}/lib/postern.so"))?;
    let checkout = machine::checkout().to_string_lossy().into_owned().into_bytes();
    assert!(
        !library.windows(checkout.len()).any(|part| part == checkout),
        "the library knows where it was built"
    );
    Ok(())
}

fn it_serves(running: &Running, major: u32) -> Result<()> {
    running.run(&format!(
        "echo \"shared_preload_libraries = 'postern'\" > /etc/postgresql/{major}/main/conf.d/postern.conf
         pg_ctlcluster {major} main start"
    ))?;
    sql(running, "CREATE EXTENSION postern")?;
    let banner = "exec 3<>/dev/tcp/127.0.0.1/5400; cat <&3";
    assert_eq!(wait::for_value("the banner answers", || running.run(banner))?, "MASTER");
    let http = "exec 3<>/dev/tcp/127.0.0.1/5480; printf 'GET /primary HTTP/1.0\\r\\n\\r\\n' >&3; head -1 <&3";
    let first_line = wait::for_value("HTTP answers", || running.run(http))?;
    assert!(first_line.starts_with("HTTP/1.0 200"), "{first_line}");
    let default = sql(running, "SELECT setting FROM postern.settings WHERE name = 'postern.pooler_listen'")?;
    assert_eq!(default, "localhost:6432\n");
    // Debian's own pg_hba.conf, and a password.
    sql(running, "CREATE ROLE app LOGIN PASSWORD 'app'")?;
    let pooled = "PGPASSWORD=app psql -XAt -h localhost -p 6432 -U app -d postgres -c \
                  \"SELECT current_user, (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')\"";
    let row = wait::for_value("the pooler serves", || running.run(pooled))?;
    assert!(row.starts_with("app|"), "{row}");
    assert_eq!(sql(running, "SELECT role, clients >= 0 FROM postern.pools")?, "app|t\n");
    Ok(())
}

/// As its description says: its name goes from the configuration first.
fn it_goes(running: &Running, major: u32) -> Result<()> {
    sql(running, "DROP EXTENSION postern")?;
    running.run(&format!(
        "rm /etc/postgresql/{major}/main/conf.d/postern.conf
         pg_ctlcluster {major} main restart"
    ))?;
    assert_eq!(sql(running, "SELECT count(*) FROM pg_settings WHERE name LIKE 'postern.%'")?, "0\n");
    running.run_online(&format!("apt-get -qq purge {}", debian_package::name(major)))?;
    running.run_online("apt-get -qq autoremove --purge")?;
    // The server is none the worse for it.
    running.run(&format!("pg_ctlcluster {major} main restart"))?;
    assert_eq!(sql(running, "SELECT rolname FROM pg_roles WHERE rolname = 'app'")?, "app\n");
    running.run(&format!("pg_ctlcluster {major} main stop"))?;
    assert_eq!(running.run(&format!("find /{DATA} -iname '*postern*'"))?, "");
    Ok(())
}

fn sql(running: &Running, text: &str) -> Result<String> {
    running.run(&format!("runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -c \"{text}\""))
}

fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let mut differences = Vec::new();
    for path in before.keys().chain(after.keys().filter(|path| !before.contains_key(*path))) {
        let (was, is) = (before.get(path), after.get(path));
        if was != is {
            differences.push(format!("{path}: {was:?}, then {is:?}"));
        }
    }
    differences
}

#[test]
fn what_differs_between_two_lists_of_files_is_said() {
    let list = |text: &str| {
        text.split(' ').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let said = differences(&list("a=1 b=2 c=3"), &list("b=2 c=4 d=5"));
    assert_eq!(said.iter().map(|line| &line[..1]).collect::<String>(), "acd");
}
