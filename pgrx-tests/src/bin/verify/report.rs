//! What ran on which server, and how: each whole run leaves it below `target/`, and `--report` makes the README's table of all that is
//! there. Part of `cargo verify`.

use anyhow::{Context, Result, bail};
use pgrx_tests::{machine, server};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where the table stands in the README.
const BEGIN: &str = "<!-- made by cargo verify --report -->\n";
const END: &str = "<!-- so far -->\n";

const MAJORS: [u32; 4] = [15, 16, 17, 18];

/// What the files of cluster tests are about, by how their names begin; the first that fits. The rest is about the pooler.
const SUBJECTS: [(&str, &[&str]); 6] = [
    // In a program of its own.
    ("packages", &["the_package"]),
    ("change streams", &["stream", "kafka"]),
    ("relay", &["relay", "woven"]),
    ("status", &["agent", "banner", "failover", "honest", "http", "view"]),
    ("lifecycle", &["lifecycle", "rig", "threads"]),
    ("upgrades, neighbours, odd servers", &["upgrade", "neighbours", "odd_servers"]),
];

/// How many passed, failed, and were not run: what those lack is not in this server.
type Counts = [u32; 3];

/// Of one version, by subject.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report(BTreeMap<String, Counts>);

impl Report {
    /// Counts a line of a test program's, `test pooler::a_client_… ... ok`.
    pub fn count(&mut self, group: &str, line: &str) {
        let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return;
        };
        let [passed, failed, _] = self.of(group, name);
        match outcome {
            "ok" => *passed += 1,
            "FAILED" => *failed += 1,
            _ => {}
        }
    }

    /// A test that has said so has passed, as the harness sees it.
    pub fn not_run(&mut self, name: &str) {
        let [passed, _, not_run] = self.of("cluster", name);
        *passed = passed.saturating_sub(1);
        *not_run += 1;
    }

    fn of(&mut self, group: &str, name: &str) -> &mut Counts {
        let subject = if group == "cluster" { subject(name) } else { group };
        self.0.entry(subject.to_owned()).or_default()
    }

    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, major: u32) -> Result<()> {
        let mut text = format!("{} ({})\n", version(major)?, commit());
        for (subject, [passed, failed, not_run]) in &self.0 {
            writeln!(text, "{passed} {failed} {not_run} {subject}")?;
        }
        Ok(fs::write(path(major), text)?)
    }
}

fn subject(name: &str) -> &'static str {
    let is = |(_, starts): &&(&str, &[&str])| starts.iter().any(|start| name.starts_with(start));
    SUBJECTS.iter().find(is).map_or("pooler", |(subject, _)| subject)
}

fn path(major: u32) -> PathBuf {
    machine::target().join(format!("verified-{major}.txt"))
}

/// `18.6`
fn version(major: u32) -> Result<String> {
    let output = Command::new(server::pg_config(major)?).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

/// `1a2b3c4`, with `+` where the files are not those of the commit; `?` outside of git.
fn commit() -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]);
    let output = git.current_dir(machine::checkout()).output().ok().filter(|output| output.status.success());
    output.map_or_else(|| "?".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Puts the table into the README.
///
/// # Errors
/// When there was no whole run, or the README has no place for it.
pub fn write() -> Result<()> {
    let kept: Vec<(u32, Option<String>)> =
        MAJORS.iter().map(|major| (*major, fs::read_to_string(path(*major)).ok())).collect();
    if kept.iter().all(|(_, text)| text.is_none()) {
        bail!("no whole run of cargo verify has left its results below target/");
    }
    let readme = machine::checkout().join("README.md");
    let text = fs::read_to_string(&readme)?;
    let (before, rest) = text.split_once(BEGIN).context("the README has no place for the table")?;
    let (_, after) = rest.split_once(END).context("the README has no end of the table")?;
    fs::write(&readme, format!("{before}{BEGIN}{}{END}{after}", table(&kept)))?;
    Ok(())
}

fn table(kept: &[(u32, Option<String>)]) -> String {
    let mut head = "| tests |".to_owned();
    let mut rows = BTreeMap::<&str, BTreeMap<u32, String>>::new();
    for (major, text) in kept {
        let mut lines = text.as_deref().unwrap_or_default().lines();
        let _ = write!(head, " {} |", lines.next().map_or(format!("{major}: not run"), str::to_owned));
        for line in lines {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            let [passed, failed, not_run, subject] = words[..] else { continue };
            let mut result = format!("{passed} passed");
            if failed != "0" {
                let _ = write!(result, ", **{failed} failed**");
            }
            if not_run != "0" {
                let _ = write!(result, ", {not_run} not run");
            }
            rows.entry(subject).or_default().insert(*major, result);
        }
    }
    let mut table = format!("{head}\n|---|{}\n", "---|".repeat(kept.len()));
    for (subject, results) in rows {
        let _ = write!(table, "| {subject} |");
        for (major, _) in kept {
            let _ = write!(table, " {} |", results.get(major).map_or("", String::as_str));
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_for_what_its_test_is_about() {
        let mut report = Report::default();
        for line in
            ["test stream_large::a ... ok", "test tls::b ... FAILED", "test tls::c ... ok", "running 3 tests"]
        {
            report.count("cluster", line);
        }
        report.count("pure", "test net::tls::tests::x ... ok");
        report.count("pure", "test net::y has been running for over 60 seconds");
        report.count("cluster", "test tls::d ... ok");
        report.not_run("tls::d");
        let wanted = [("change streams", [1, 0, 0]), ("pooler", [1, 1, 1]), ("pure", [1, 0, 0])];
        assert_eq!(report, Report(wanted.map(|(name, counts)| (name.to_owned(), counts)).into()));
    }

    #[test]
    fn the_table_has_a_column_a_version_and_a_row_a_subject() {
        let kept = [(15, Some("15.9\n3 0 2 pooler\n2 1 0 relay\n".to_owned())), (16, None)];
        let wanted = "| tests | 15.9 | 16: not run |\n|---|---|---|\n| pooler | 3 passed, 2 not run |  |\n| relay | 2 passed, **1 failed** |  |\n";
        assert_eq!(table(&kept), wanted);
    }
}
