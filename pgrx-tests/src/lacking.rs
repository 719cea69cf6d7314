//! What this machine lacks, so that a test does nothing or less: said on standard error, which is not shown of a test that passes, and
//! to `cargo verify`, which says it at its end. Runs in test programs.

use std::io::Write;

/// Names a file to which [`say`] adds.
pub const FILE: &str = "POSTERN_TEST_LACKS";

/// Says what was not tested, and why.
pub fn say(text: &str) {
    eprintln!("{text}");
    let Some(path) = std::env::var_os(FILE) else { return };
    let line = text.lines().map(str::trim).collect::<Vec<_>>().join("; ") + "\n";
    // In one piece: other tests add to it too.
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}

/// Whether nobody looks at what is said: everything has to be there then. `CI` is what such a place sets.
pub fn nobody_looks() -> bool {
    std::env::var_os("CI").is_some_and(|ci| !ci.is_empty())
}
