//! `cargo verify [--pg=MAJOR] [FILTER]`: every test, on a server of that major version. Sets up what the system lacks, then runs the pure
//! tests, the in-server tests, the check of the SQL script, the cluster tests, and the test of the package; with a filter only the tests
//! whose names contain it. `cargo verify --report` makes the README's table of what the last whole run on each version gave.
//! `cargo verify --packages-only` stops after the set-up: packages, the server, and Kafka.
//!
//! A few tests that fail are run again once, one at a time, which tells an accident of a busy machine from a defect that is always there.
//! They have failed all the same.

mod report;

use anyhow::{Context, Result, bail};
use pgrx_tests::installation::{self, MAJOR};
use pgrx_tests::{kafka, lacking, machine, server};
use report::Report;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Cluster tests at once: each has servers of its own, and mostly waits.
const AT_ONCE: &str = "4";

/// Of more failed tests in a group none is run again: that is no accident.
const MOST_AGAIN: usize = 3;

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
    let Arguments { major, packages_only, report, filter } = arguments(std::env::args().skip(1))?;
    if report {
        report::write()?;
        return Ok(true);
    }
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
        Group::new("packages", &["test", "--package", "postern-rig", "--test", "packages"]),
    ];
    let mut report = Report::default();
    let mut all_well = true;
    if filter.is_empty() {
        println!("=== the SQL script is what the library says");
        let schema =
            ["run", "--quiet", "--package", "postern-rig", "--features", "schema", "--bin", "schema"];
        all_well &= cargo(major)?.args(schema).args(["--", "--check"]).status()?.success();
    }
    for group in &mut groups {
        group.run(major, &filter, &lacks, &mut report)?;
        all_well &= group.succeeded;
    }
    // Said by the tests that ran, whichever these were.
    let said = std::fs::read_to_string(&lacks).unwrap_or_default();
    let _ = std::fs::remove_file(&lacks);
    let mut without = BTreeMap::<&str, u32>::new();
    let mut others = BTreeSet::new();
    for line in said.lines() {
        match line.strip_prefix(lacking::NOT_RUN).and_then(|rest| rest.split_once(": ")) {
            Some((name, why)) => {
                report.not_run(name);
                *without.entry(why).or_default() += 1;
            }
            None => {
                others.insert(line);
            }
        }
    }
    println!("\n=== PostgreSQL {major}");
    for group in &groups {
        let Group { name, passed, failed, seconds, .. } = group;
        println!("{name:<10} {passed:>4} passed {failed:>3} failed {seconds:>6.1} s");
    }
    let skipped: u32 = without.values().sum();
    let passed: u32 = groups.iter().map(|g| g.passed).sum::<u32>() - skipped;
    let failed: u32 = groups.iter().map(|g| g.failed).sum();
    let skipped_too = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    println!("{passed} passed, {failed} failed{skipped_too}");
    if filter.is_empty() {
        report.keep(major)?;
    }
    for name in groups.iter().flat_map(|g| &g.again) {
        println!("failed, and passed when it was run again by itself: {name}");
    }
    for (why, count) in without {
        let tests = if count == 1 { "test counts" } else { "tests count" };
        println!("{count} {tests} as passed above and did nothing: {why}");
    }
    others.into_iter().for_each(|line| println!("{line}"));
    Ok(all_well && failed == 0)
}

struct Group {
    name: &'static str,
    arguments: Vec<String>,
    /// A part of the name that every test of the group has.
    only: Option<&'static str>,
    passed: u32,
    failed: u32,
    /// The names of those that have failed.
    names: Vec<String>,
    /// Those of them that passed when they were run again.
    again: Vec<String>,
    seconds: f64,
    succeeded: bool,
}

impl Group {
    fn new(name: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Self {
            name,
            arguments,
            only: None,
            passed: 0,
            failed: 0,
            names: Vec::new(),
            again: Vec::new(),
            seconds: 0.0,
            succeeded: false,
        }
    }

    fn only(mut self, part: &'static str) -> Self {
        self.only = Some(part);
        self
    }

    fn run(&mut self, major: u32, filter: &[String], lacks: &Path, report: &mut Report) -> Result<()> {
        println!("=== {}", self.name);
        let started = Instant::now();
        let mut arguments = vec!["--test-threads", AT_ONCE];
        match self.only {
            // The harness takes several filters for "any of them", so a filter goes before the group's own.
            Some(part) if filter.is_empty() => arguments.push(part),
            _ => arguments.extend(filter.iter().map(String::as_str)),
        }
        self.succeeded = self.cargo_test(major, &arguments, lacks, report)?;
        // A program that has died has no closing line.
        let all_told = self.names.len() == self.failed as usize;
        if !self.succeeded && all_told && (1..=MOST_AGAIN).contains(&self.names.len()) {
            self.run_again(major, lacks)?;
        }
        self.seconds = started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Whatever comes of it, they have failed.
    fn run_again(&mut self, major: u32, lacks: &Path) -> Result<()> {
        println!("=== {}, again what has failed, one at a time", self.name);
        let mut arguments = vec!["--test-threads", "1", "--exact"];
        arguments.extend(self.names.iter().map(String::as_str));
        let mut alone = Self { arguments: self.arguments.clone(), ..Self::new(self.name, &[]) };
        alone.cargo_test(major, &arguments, lacks, &mut Report::default())?;
        self.again = self.names.iter().filter(|name| !alone.names.contains(name)).cloned().collect();
        Ok(())
    }

    /// Shows what cargo shows, and counts from its closing lines. Whether all of them passed.
    fn cargo_test(
        &mut self,
        major: u32,
        arguments: &[&str],
        lacks: &Path,
        report: &mut Report,
    ) -> Result<bool> {
        let mut command = cargo(major)?;
        command
            .env(lacking::FILE, lacks)
            .args(&self.arguments)
            .args(["--no-fail-fast", "--"])
            .args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().context("running cargo")?;
        for line in BufReader::new(child.stdout.take().context("stdout")?).lines() {
            let line = line?;
            println!("{line}");
            self.count(&line);
            report.count(self.name, &line);
        }
        Ok(child.wait()?.success())
    }

    /// `test result: ok. 48 passed; 0 failed; ...`, and `test stream::x ... FAILED`
    fn count(&mut self, line: &str) {
        let named = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
        self.names.extend(named.map(str::to_owned));
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
    report: bool,
    filter: Vec<String>,
}

fn arguments(given: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut read =
        Arguments { major: installation::major(), packages_only: false, report: false, filter: Vec::new() };
    let mut given = given.filter(|argument| argument != "--");
    while let Some(argument) = given.next() {
        if argument == "--packages-only" {
            read.packages_only = true;
        } else if argument == "--report" {
            read.report = true;
        } else if let Some(rest) = argument.strip_prefix("--pg") {
            let text = match rest.strip_prefix('=') {
                Some(text) => text.to_owned(),
                None => given.next().unwrap_or_default(),
            };
            read.major = text.parse().with_context(|| format!("--pg={text}: not a major version"))?;
        } else if argument.starts_with("--") {
            bail!(
                "{argument}: there are --pg=MAJOR, --packages-only and --report, and a part of the names of tests"
            );
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
        group.count("test pooling::x ... ok");
        group.count("test pooling::y ... FAILED");
        assert_eq!((group.passed, group.failed), (42, 11));
        assert_eq!(group.names, ["pooling::y"]);
    }

    #[test]
    fn arguments_are_a_version_and_parts_of_names() {
        let read = |text: &str| arguments(text.split_whitespace().map(str::to_owned));
        let filter = vec!["login".to_owned()];
        let wanted = Arguments { major: 18, packages_only: false, report: false, filter };
        assert_eq!(read("-- --pg=18 login").unwrap(), wanted);
        assert_eq!(read("--pg 18 login").unwrap(), wanted);
        assert!(read("--packages-only").unwrap().packages_only && read("--report").unwrap().report);
        assert!(read("--pg=eighteen").is_err() && read("--pg").is_err() && read("--version").is_err());
    }
}
