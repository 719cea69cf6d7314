//! Conversations of clients with a server, written down: a script is replayed message by message on a raw connection, and
//! every byte that the server answers is kept, so that what a client sees at one address can be held against what it
//! sees at another. Runs in test programs.
//!
//! The scripts are `pgrx-tests/corpus/*.script`; [`language`] says how one is written.
//!
//! - [`language`]: the text of a script, and the steps that it becomes
//! - [`frontend`]: the messages that a client sends, as bytes
//! - [`connection`]: a raw connection to an address
//! - [`replay`]: a script's steps on such connections
//! - [`transcript`]: what the clients saw, without what differs on every run, and the difference of two of them
//! - [`noise`]: other clients that work at the same address meanwhile

pub mod connection;
pub mod frontend;
pub mod language;
pub mod noise;
pub mod replay;
mod token;
pub mod transcript;

pub use connection::Target;
pub use language::Script;
pub use noise::Noise;
pub use replay::{replay, staged};
pub use transcript::Transcript;

use crate::machine;
use anyhow::{Context, Result};

/// Every script of the corpus, by name.
///
/// # Errors
/// When one cannot be read or has a mistake in it.
pub fn corpus() -> Result<Vec<Script>> {
    let directory = machine::checkout().join("pgrx-tests/corpus");
    let mut paths: Vec<_> = std::fs::read_dir(&directory)
        .with_context(|| directory.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "script"));
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Script::parse(&name, &std::fs::read_to_string(path)?).with_context(|| path.display().to_string())
    };
    paths.iter().map(read).collect()
}
