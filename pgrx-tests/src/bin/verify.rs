//! `cargo verify [--pg=MAJOR] [FILTER]`: every test, on a server of that major version. Sets up what the system lacks, then runs the pure
//! tests, the in-server tests, the check of the SQL script, and the cluster tests; with a filter only the tests whose names contain it.
//! `cargo verify --packages-only` stops after the set-up: packages, the server, and Kafka.

use anyhow::{Context, Result, bail};
use pgrx_tests::installation::{self, MAJOR};
use pgrx_tests::{kafka, lacking, machine, server};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Cluster tests at once: each has servers of its own, and mostly waits.
const AT_ONCE: &str = "4";

fn main() -> ExitCode {
    match verify() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("verify: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn verify() -> Result<bool> {
    let Arguments { major, packages_only, filter } = arguments(std::env::args().skip(1))?;
    machine::install(&machine::test_packages(major), |what| println!("{what}"))?;
    server::obtain(major, |what| println!("{what}"))?;
    // Downloaded here, and not in the middle of the tests; a filter may be about something else.
    let no_kafka = if packages_only || filter.is_empty() { kafka::unavailable() } else { None };
    if packages_only {
        no_kafka.inspect(|why| println!("{why}"));
        return Ok(true);
    }
    if let Some(why) = no_kafka.filter(|_| lacking::nobody_looks()) {
        bail!("the tests that need Kafka would do nothing; {why}");
    }
    let lacks = machine::target().join(format!("lacks-{}", std::process::id()));
    let features = format!("pg{major},pg_test");
    let mut groups = vec![
        Group::new("pure", &["test", "--package", "postern", "--lib"]),
        Group::new("in-server", &["test", "--package", "postern", "--lib", "--features", &features])
            .only("in_server_tests"),
        Group::new("rig", &["test", "--package", "postern-rig", "--lib", "--bins"]),
        Group::new("cluster", &["test", "--package", "postern-rig", "--test", "cluster"]),
    ];
    let mut all_well = true;
    if filter.is_empty() {
        println!("=== the SQL script is what the library says");
        let schema =
            ["run", "--quiet", "--package", "postern-rig", "--features", "schema", "--bin", "schema"];
        all_well &= cargo(major)?.args(schema).args(["--", "--check"]).status()?.success();
    }
    for group in &mut groups {
        group.run(major, &filter, &lacks)?;
        all_well &= group.succeeded;
    }
    println!("\n=== PostgreSQL {major}");
    for group in &groups {
        let Group { name, passed, failed, seconds, .. } = group;
        println!("{name:<10} {passed:>4} passed {failed:>3} failed {seconds:>6.1} s");
    }
    let passed: u32 = groups.iter().map(|g| g.passed).sum();
    let failed: u32 = groups.iter().map(|g| g.failed).sum();
    println!("{passed} passed, {failed} failed");
    // Said by the tests that ran, whichever these were.
    let said = std::fs::read_to_string(&lacks).unwrap_or_default();
    let _ = std::fs::remove_file(&lacks);
    for line in said.lines().collect::<BTreeSet<_>>() {
        println!("{line}");
    }
    Ok(all_well && failed == 0)
}

struct Group {
    name: &'static str,
    arguments: Vec<String>,
    /// A part of the name that every test of the group has.
    only: Option<&'static str>,
    passed: u32,
    failed: u32,
    seconds: f64,
    succeeded: bool,
}

impl Group {
    fn new(name: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Self { name, arguments, only: None, passed: 0, failed: 0, seconds: 0.0, succeeded: false }
    }

    fn only(mut self, part: &'static str) -> Self {
        self.only = Some(part);
        self
    }

    /// Shows what cargo shows, and counts from its closing lines.
    fn run(&mut self, major: u32, filter: &[String], lacks: &Path) -> Result<()> {
        println!("=== {}", self.name);
        let started = Instant::now();
        let mut command = cargo(major)?;
        command.env(lacking::FILE, lacks).args(&self.arguments).args(["--", "--test-threads", AT_ONCE]);
        match self.only {
            // The harness takes several filters for "any of them", so a filter goes before the group's own.
            Some(_) if !filter.is_empty() => command.args(filter),
            Some(part) => command.arg(part),
            None => command.args(filter),
        };
        let mut child = command.stdout(Stdio::piped()).spawn().context("running cargo")?;
        for line in BufReader::new(child.stdout.take().context("stdout")?).lines() {
            let line = line?;
            println!("{line}");
            self.count(&line);
        }
        self.succeeded = child.wait()?.success();
        self.seconds = started.elapsed().as_secs_f64();
        Ok(())
    }

    /// `test result: ok. 48 passed; 0 failed; ...`
    fn count(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| -> u32 {
            let before = counts.split(&format!(" {word}")).next().unwrap_or_default();
            before.rsplit([' ', ';', '.']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
    }
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    major: u32,
    packages_only: bool,
    filter: Vec<String>,
}

fn arguments(given: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut read = Arguments { major: installation::major(), packages_only: false, filter: Vec::new() };
    let mut given = given.filter(|argument| argument != "--");
    while let Some(argument) = given.next() {
        if argument == "--packages-only" {
            read.packages_only = true;
        } else if let Some(rest) = argument.strip_prefix("--pg") {
            let text = match rest.strip_prefix('=') {
                Some(text) => text.to_owned(),
                None => given.next().unwrap_or_default(),
            };
            read.major = text.parse().with_context(|| format!("--pg={text}: not a major version"))?;
        } else if argument.starts_with("--") {
            bail!("{argument}: there are --pg=MAJOR and --packages-only, and a part of the names of tests");
        } else {
            read.filter.push(argument);
        }
    }
    Ok(read)
}

fn cargo(major: u32) -> Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(machine::checkout()).env("PGRX_PG_CONFIG_PATH", server::pg_config(major)?);
    cargo.env(MAJOR, major.to_string());
    Ok(cargo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let mut group = Group::new("x", &[]);
        group.count("test result: FAILED. 37 passed; 11 failed; 0 ignored; 0 measured; 0 filtered out; finished in 160s");
        group.count("test result: ok. 5 passed; 0 failed; 0 ignored");
        assert_eq!((group.passed, group.failed), (42, 11));
    }

    #[test]
    fn arguments_are_a_version_and_parts_of_names() {
        let read = |text: &str| arguments(text.split_whitespace().map(str::to_owned));
        let filter = vec!["login".to_owned()];
        let wanted = Arguments { major: 18, packages_only: false, filter };
        assert_eq!(read("-- --pg=18 login").unwrap(), wanted);
        assert_eq!(read("--pg 18 login").unwrap(), wanted);
        assert!(read("--packages-only").unwrap().packages_only);
        assert!(read("--pg=eighteen").is_err() && read("--pg").is_err() && read("--version").is_err());
    }
}
