//! `cargo debian [--pg=MAJOR]...`: builds the Debian packages `postgresql-<major>-postern`, of one major version or of several, and says
//! where they are. Installs what building them takes.

use anyhow::{Context, Result, bail};
use pgrx_tests::{debian_package, installation, machine, server};

fn main() -> Result<()> {
    for major in majors(std::env::args().skip(1))? {
        machine::install(&debian_package::packages(major), |what| println!("{what}"))?;
        server::obtain(major, |what| println!("{what}"))?;
        println!("building {}", debian_package::name(major));
        for package in debian_package::build(major)? {
            println!("{}", package.display());
        }
    }
    Ok(())
}

fn majors(given: impl Iterator<Item = String>) -> Result<Vec<u32>> {
    let mut majors = Vec::new();
    for argument in given.filter(|argument| argument != "--") {
        let Some(text) = argument.strip_prefix("--pg=") else { bail!("{argument}: there is --pg=MAJOR") };
        majors.push(text.parse().with_context(|| format!("{argument}: not a major version"))?);
    }
    if majors.is_empty() {
        majors.push(installation::major());
    }
    Ok(majors)
}
