//! `cargo documents`: writes what of the documentation is made from other things: the manual page of the settings, from a running server,
//! and the notices of what is linked in, from the crates. The tests say when one of them is not fresh.

use anyhow::Result;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{machine, notices, reference};
use std::fs;

fn main() -> Result<()> {
    write(notices::FILE, &notices::text()?)?;
    let cluster = Cluster::new("documents")?.start()?;
    write(reference::FILE, &reference::text(&cluster)?)
}

fn write(file: &str, text: &str) -> Result<()> {
    let path = machine::checkout().join(file);
    if fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
        println!("{file} is fresh");
        return Ok(());
    }
    fs::write(path, text)?;
    println!("wrote {file}");
    Ok(())
}
