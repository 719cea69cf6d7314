//! What a session remembers, when clients of other states use the same backends in between: the same as directly.
//!
//! - `values`, `defaults`, `own`: scripts of what a session has
//! - `turns`: many clients in turns
//! - `reload`, `pins`, `shown`: what a reload does, what cannot move, who is there

mod defaults;
mod own;
mod pins;
mod reload;
mod shown;
mod turns;
mod values;

use crate::pooling::with_pool;
use crate::woven::same_as_directly;
use anyhow::Result;

fn scripts() -> Vec<(&'static str, &'static str)> {
    [&values::SCRIPTS[..], &defaults::SCRIPTS, &own::SCRIPTS].concat()
}

#[test]
fn settings_are_exact_with_others_on_the_only_backends() -> Result<()> {
    let cluster = with_pool("state-two", 2, &[("session_preload_libraries", "plpgsql")])?;
    same_as_directly(&cluster, &scripts())
}

#[test]
fn settings_are_exact_with_others_on_the_only_backend() -> Result<()> {
    let cluster = with_pool("state-one", 1, &[("session_preload_libraries", "plpgsql")])?;
    // Whoever is pinned leaves no backend to the others here.
    let pinned = [
        "own cursors and statements",
        "temporary tables",
        "advisory locks",
        "a failed transaction and what stays of it",
    ];
    let scripts: Vec<_> = scripts().into_iter().filter(|(name, _)| !pinned.contains(name)).collect();
    same_as_directly(&cluster, &scripts)
}
