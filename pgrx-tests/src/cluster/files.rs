//! Where clusters are kept: the template that new ones are copied from, and what killed programs left behind.

use crate::installation::{Installation, lock, run};
use crate::{machine, process};
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// initdb takes a second: it is done once and copied.
pub(super) fn template(installation: &Installation) -> Result<PathBuf> {
    let template = machine::base()?.join(format!("template-{}", installation.major));
    if template.exists() {
        return Ok(template);
    }
    let _alone = lock(&template.with_extension("lock"))?;
    if template.exists() {
        return Ok(template);
    }
    let aside = template.with_extension(format!("new-{}", std::process::id()));
    fs::create_dir_all(&aside)?;
    machine::give_to_server_user(&aside)?;
    initdb(installation, &aside, &[])?;
    fs::rename(&aside, &template)?;
    Ok(template)
}

/// Makes the data of a server, with further arguments of initdb's.
pub(super) fn initdb(installation: &Installation, data: &Path, arguments: &[&str]) -> Result<()> {
    let mut initdb = Command::new(installation.bin.join("initdb"));
    initdb
        .current_dir("/")
        .args(["-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale=C"])
        .args(arguments)
        .arg("-D")
        .arg(data);
    machine::as_server_user(&mut initdb)?;
    run(&mut initdb).map(drop)
}

/// Removes what programs left behind that were killed.
pub(crate) fn sweep(clusters: &Path) {
    let Ok(entries) = fs::read_dir(clusters) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().and_then(|pid| pid.parse::<i32>().ok());
        if owner.is_some_and(|pid| !process::is_running(pid)) {
            let _ = fs::remove_dir_all(entry.path());
            let _ = fs::remove_dir_all(std::env::temp_dir().join(format!("postern-{name}")));
        }
    }
}
