//! `cargo schema`: writes `sql/postern--<version>.sql`, what CREATE EXTENSION runs, from what pgrx put into the built
//! library; the text is the one that `cargo pgrx schema` makes. `cargo schema --check` says whether the committed
//! file is that, and changes nothing.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};
use pgrx_sql_entity_graph::{ControlFile, PgrxSql, SqlGraphEntity, section};
use pgrx_tests::installation::{Build, build_library, major};
use pgrx_tests::machine::checkout;
use std::fs;

fn main() -> Result<()> {
    let check = std::env::args().any(|argument| argument == "--check");
    let version = env!("CARGO_PKG_VERSION");
    let library = fs::read(build_library(major(), Build::Plain)?)?;
    let sql = generate(&library, version)?;
    let file = checkout().join(format!("sql/postern--{version}.sql"));
    if fs::read_to_string(&file).is_ok_and(|committed| same(&committed, &sql)) {
        println!("{} is what the library says", file.display());
    } else if check {
        bail!("{} is not what the library says; run: cargo schema", file.display());
    } else {
        fs::write(&file, sql)?;
        println!("wrote {}", file.display());
    }
    Ok(())
}

fn generate(library: &[u8], version: &str) -> Result<String> {
    let parsed = object::File::parse(library)?;
    let entries =
        parsed.section_by_name(section::ELF_SECTION_NAME).context("the library has no schema section")?;
    let control = ControlFile::from_path_with_cargo_version(checkout().join("postern.control"), version)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut entities = vec![SqlGraphEntity::ExtensionRoot(control)];
    entities.extend(section::decode_entities(entries.data()?).map_err(|error| anyhow::anyhow!("{error}"))?);
    let graph = PgrxSql::build(entities.into_iter(), "postern".to_owned(), false)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut text = Vec::new();
    graph.write(&mut text).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(without_line_numbers(&String::from_utf8(text)?))
}

/// The order of what does not depend on each other is not fixed, so blocks are compared as a set.
fn same(committed: &str, generated: &str) -> bool {
    let blocks = |text: &str| {
        let mut blocks: Vec<String> =
            text.split("/* <begin connected objects> */").map(str::to_owned).collect();
        blocks.sort();
        blocks
    };
    blocks(committed) == blocks(generated)
}

/// `-- src/postgres/functions.rs:13` changes with every edit above it; what it names does not.
fn without_line_numbers(sql: &str) -> String {
    let line = |line: &str| match line.strip_prefix("-- src/").and_then(|rest| rest.rsplit_once(':')) {
        Some((file, _)) => format!("-- src/{file}\n"),
        None => format!("{line}\n"),
    };
    sql.lines().map(line).collect()
}
