//! What is written of the settings, compared with what the server says of them.

use anyhow::Result;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{machine, reference};
use std::fs;

#[test]
fn the_manual_page_and_the_readme_have_every_setting() -> Result<()> {
    let cluster = Cluster::new("reference")?.start()?;
    let kept = fs::read_to_string(machine::checkout().join(reference::FILE)).unwrap_or_default();
    let said = reference::text(&cluster)?;
    assert!(kept == said, "{} is not what the server says; run: cargo documents", reference::FILE);
    let readme = fs::read_to_string(machine::checkout().join("README.md"))?;
    let rows: Vec<_> =
        readme.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    for name in reference::names(&cluster)? {
        assert!(rows.contains(&name.as_str()), "README.md's table of settings lacks {name}");
    }
    Ok(())
}
