//! What of others is linked into the library, with its licences: the text of `doc/THIRD-PARTY-NOTICES`, from what cargo resolves and what
//! the crates' own sources carry. Runs in `cargo documents` and in a test that says whether the file is fresh.
//!
//! It fails rather than leave something out: at a licence that is not on the list, a crate without a text, C or assembly that nobody has
//! looked at.

mod by_hand;

use crate::installation::{DEFAULT_MAJOR, run};
use crate::machine;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the text is kept, in the checkout.
pub const FILE: &str = "doc/THIRD-PARTY-NOTICES";

/// What a library under the PostgreSQL License can be made of: none of these asks for more than its text and its notices.
const ALLOWED: [&str; 8] =
    ["Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "PostgreSQL", "Unicode-3.0", "Zlib"];

/// Where the library runs. What is linked for others, such as Windows, is nothing to us.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// How the names of files with licences begin, in small letters.
const FILE_NAMES: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];

/// Of a line of ours.
const WIDTH: usize = 78;

const HEAD: &str = "\
What is linked into Postern's library, and its licences

Postern itself is under the PostgreSQL License: LICENSE in its source,
copyright in the Debian packages. This file lists what of others is compiled
into the shared library, and the texts under which it is. Libraries that the
server's machine has (OpenSSL, libpq, the C library) are not in it.
`cargo documents` writes this file; do not edit it.

";

/// A crate, or something that is compiled in beside the crates.
#[derive(Debug)]
struct Part {
    /// With its version, if it has one of its own.
    name: String,
    license: String,
    texts: Vec<String>,
}

/// The whole file.
///
/// # Errors
/// When cargo fails, a licence is none that we can link, or a text is missing.
pub fn text() -> Result<String> {
    let mut parts = Vec::new();
    let directories = directories()?;
    let linked = linked()?;
    for (name, version, license) in &linked {
        let directory = directories
            .get(&(name.clone(), version.clone()))
            .with_context(|| format!("cargo does not say where {name} {version} is"))?;
        parts.extend(parts_of(name, version, license, directory)?);
    }
    for &(name, ..) in &by_hand::BUNDLED {
        if !linked.iter().any(|(linked, ..)| linked == name) {
            bail!("{name} is not linked any more: take it out of the list of what has C in it");
        }
    }
    parts.extend(by_hand::beside_crates());
    parts.iter().try_for_each(allowed)?;
    Ok(laid_out(&parts))
}

/// Name, version and licence of each crate in the library, ours left out. A crate that only runs in the compiler is in no library.
fn linked() -> Result<BTreeSet<(String, String, String)>> {
    let mut tree = cargo();
    tree.args(["tree", "--locked", "--package", "postern", "--edges", "normal,no-proc-macro"]);
    tree.args(["--features", &format!("pg{DEFAULT_MAJOR}"), "--prefix", "none", "--no-dedupe"]);
    tree.args(["--format", "{p}|{l}"]).args(TARGETS.iter().flat_map(|target| ["--target", target]));
    let said = run(&mut tree)?;
    let mut crates = BTreeSet::new();
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        let (package, license) = line.split_once('|').with_context(|| format!("cargo tree: {line}"))?;
        let (name, version) = package.split_once(" v").with_context(|| format!("cargo tree: {line}"))?;
        let version = version.split(' ').next().unwrap_or(version);
        if name != "postern" {
            crates.insert((name.to_owned(), version.to_owned(), license.to_owned()));
        }
    }
    Ok(crates)
}

/// Where the source of each crate is, by name and version.
fn directories() -> Result<BTreeMap<(String, String), PathBuf>> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    metadata.args(["--filter-platform", TARGETS[0], "--features", &format!("pg{DEFAULT_MAJOR}")]);
    let said: serde_json::Value = serde_json::from_str(&run(&mut metadata)?)?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let packages = said["packages"].as_array().context("cargo metadata has no packages")?;
    Ok(packages
        .iter()
        .map(|package| {
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            let directory = manifest.parent().map_or_else(PathBuf::new, Path::to_owned);
            ((text(&package["name"]), text(&package["version"])), directory)
        })
        .collect())
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(machine::checkout());
    cargo
}

/// The crate, and what it brings along.
fn parts_of(name: &str, version: &str, license: &str, directory: &Path) -> Result<Vec<Part>> {
    let mut texts = own_texts(directory)?;
    if texts.is_empty() {
        texts.extend(by_hand::text_of(name));
    }
    if texts.is_empty() {
        bail!(
            "{name} {version} comes without the text of its licence ({license}); write down what it is under"
        );
    }
    let mut parts = vec![Part { name: format!("{name} {version}"), license: license.to_owned(), texts }];
    match by_hand::BUNDLED.iter().find(|(theirs, _)| *theirs == name) {
        Some((_, bundled)) => {
            for &(what, license, files) in *bundled {
                let read = |file: &&str| {
                    let text = fs::read_to_string(directory.join(file));
                    let text = text.with_context(|| format!("{name} {version}: {file}"))?;
                    let code = [".c", ".h"].iter().any(|ending| file.ends_with(ending));
                    Ok::<_, anyhow::Error>(if code { first_comment(&text) } else { text })
                };
                let texts = files.iter().map(read).collect::<Result<_>>()?;
                let name = format!("{what} (in {name})");
                parts.push(Part { name, license: license.to_owned(), texts });
            }
        }
        None if has_c(directory)? => {
            bail!("{name} {version} has C or assembly in it: look under which licences, and write it down")
        }
        None => {}
    }
    Ok(parts)
}

/// The texts at the top of a crate's source, or in a directory of such a name there, in the order of their names.
fn own_texts(directory: &Path) -> Result<Vec<String>> {
    let paths = |directory: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        Ok(paths)
    };
    let mut texts = Vec::new();
    for path in paths(directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if FILE_NAMES.iter().any(|begins| name.starts_with(begins)) {
            for file in if path.is_dir() { paths(&path)? } else { vec![path] } {
                texts.push(fs::read_to_string(&file).with_context(|| file.display().to_string())?);
            }
        }
    }
    Ok(texts)
}

fn has_c(directory: &Path) -> Result<bool> {
    for entry in fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        if if path.is_dir() { has_c(&path)? } else { is_c(&path) } {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_c(file: &Path) -> bool {
    let ending = file.extension().and_then(OsStr::to_str).unwrap_or_default();
    matches!(ending, "c" | "cc" | "cpp" | "cxx" | "S" | "s" | "asm")
}

/// Without the marks of a comment.
fn first_comment(source: &str) -> String {
    let comment = source.split("*/").next().unwrap_or_default().trim_start().trim_start_matches("/*");
    let line =
        |line: &str| format!("{}\n", line.trim_start().trim_start_matches('*').trim_start_matches(' '));
    comment.trim().lines().map(line).collect()
}

/// # Errors
/// When there is no way to use the part under licences of the list alone.
fn allowed(part: &Part) -> Result<()> {
    let Part { name, license, .. } = part;
    // Older crates write a slash for OR.
    let expression = spdx::Expression::parse_mode(license, spdx::ParseMode::LAX).map_err(|error| {
        anyhow::anyhow!("{name} is under \"{license}\", which is no licence expression: {error}")
    })?;
    let is_allowed = |asked: &spdx::LicenseReq| {
        asked.addition.is_none() && asked.license.id().is_some_and(|id| ALLOWED.contains(&id.name))
    };
    if !expression.evaluate(is_allowed) {
        bail!(
            "{name} is under \"{license}\", which is not among the licences of what may be linked: {ALLOWED:?}"
        );
    }
    Ok(())
}

/// The list of parts, and each different text once, with the names of whom it is for.
fn laid_out(parts: &[Part]) -> String {
    let mut texts: Vec<(String, Vec<&str>)> = Vec::new();
    let mut list = String::new();
    for part in parts {
        let mut numbers = Vec::new();
        for text in &part.texts {
            let bare = words(text);
            let place = texts.iter().position(|(known, _)| words(known) == bare);
            let place = place.unwrap_or_else(|| {
                texts.push((text.clone(), Vec::new()));
                texts.len() - 1
            });
            texts[place].1.push(&part.name);
            numbers.push((place + 1).to_string());
        }
        let _ = writeln!(list, "    {}: {}; {}", part.name, part.license, numbers.join(", "));
    }
    let mut all = format!("{HEAD}Each with its licence, and the numbers of the texts below:\n\n{list}");
    for (number, (text, names)) in texts.iter().enumerate() {
        let line = "-".repeat(WIDTH);
        let _ = write!(
            all,
            "\n{line}\n{}\n{line}\n\n",
            wrapped(&format!("{}. {}", number + 1, names.join(", ")))
        );
        for line in text.trim_matches(['\n', '\r', '\u{feff}']).lines() {
            let _ = writeln!(all, "{}", line.replace('\u{c}', "").trim_end());
        }
    }
    all
}

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// Texts that differ in how their lines are broken are one.
fn words(text: &str) -> Vec<&str> {
    text.trim_start_matches('\u{feff}').split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(license: &str) -> Part {
        Part { name: "it".to_owned(), license: license.to_owned(), texts: Vec::new() }
    }

    #[test]
    fn the_notices_are_those_of_what_is_linked() {
        let kept = fs::read_to_string(machine::checkout().join(FILE)).unwrap_or_default();
        assert!(kept == text().unwrap(), "{FILE} is not what is linked in; run: cargo documents");
    }

    #[test]
    fn a_licence_that_asks_for_more_is_refused() {
        for fits in
            ["MIT", "MIT/Apache-2.0", "GPL-2.0-only OR BSD-3-Clause", "(MIT OR Apache-2.0) AND Unicode-3.0"]
        {
            assert!(allowed(&part(fits)).is_ok(), "{fits}");
        }
        for does_not in
            ["AGPL-3.0-only", "GPL-2.0-or-later", "MIT AND LGPL-2.1-only", "MPL-2.0", "", "nonsense"]
        {
            assert!(allowed(&part(does_not)).is_err(), "{does_not}");
        }
    }

    #[test]
    fn a_crate_without_a_text_or_with_unknown_c_is_refused() {
        let directory = std::env::temp_dir().join(format!("postern-notices-{}", std::process::id()));
        fs::create_dir_all(directory.join("src")).unwrap();
        let of = || parts_of("strange", "1.0.0", "MIT", &directory).map(|parts| parts.len());
        let without = of();
        fs::write(directory.join("LICENSE-MIT"), "You may.").unwrap();
        let with = of();
        fs::write(directory.join("src/fast.S"), "nop").unwrap();
        let assembly = of();
        fs::remove_dir_all(&directory).unwrap();
        assert!(without.unwrap_err().to_string().contains("without the text of its licence"));
        assert_eq!(with.unwrap(), 1);
        assert!(assembly.unwrap_err().to_string().contains("C or assembly"));
    }

    #[test]
    fn a_text_in_a_comment_is_bare() {
        assert_eq!(first_comment("/*\n * One.\n *\n *  Two.\n */\nint x; /* Three */"), "One.\n\nTwo.\n");
    }

    #[test]
    fn a_text_that_two_share_is_there_once() {
        let mut parts = [part("MIT"), part("MIT")];
        parts[0].texts = vec!["Do what\nyou like.".to_owned()];
        parts[1].texts = vec!["\u{feff}Do  what you like.\r\n".to_owned(), "But ask.".to_owned()];
        let text = laid_out(&parts);
        assert_eq!((text.matches("you like").count(), text.matches("MIT; 1, 2\n").count()), (1, 1));
    }
}
