//! What this machine lacks, so that a test does nothing or less: said on standard error, which is not shown of a test that passes, and
//! to `cargo verify`, which says it at its end. Runs in test programs.

use crate::{installation, server};
use std::io::Write;

/// Names a file to which [`say`] adds.
pub const FILE: &str = "POSTERN_TEST_LACKS";

/// What a line begins with that names a test which was not run, in front of its name, a colon and the reason.
pub const NOT_RUN: &str = "not run: ";

/// Says what was not tested, and why.
pub fn say(text: &str) {
    eprintln!("{text}");
    let Some(path) = std::env::var_os(FILE) else { return };
    let line = text.lines().map(str::trim).collect::<Vec<_>>().join("; ") + "\n";
    // In one piece: other tests add to it too.
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}

/// Whether this server was built without something, so that the test that asks is not run; said.
pub fn in_server(part: &str) -> bool {
    let bare = server::is_bare(installation::major());
    if bare {
        not_run(&format!("PostgreSQL {} without {part}", installation::major()));
    }
    bare
}

/// Whether this server is older than what the test is about, so that the test is not run; said.
pub fn before(major: u32, what: &str) -> bool {
    let older = installation::major() < major;
    if older {
        not_run(&format!("{what} is new in PostgreSQL {major}"));
    }
    older
}

/// Says that this test is not run, and why.
pub fn not_run(why: &str) {
    let thread = std::thread::current();
    // The harness gives a test's thread the test's name.
    say(&format!("{NOT_RUN}{}: {why}", thread.name().unwrap_or_default()));
}

/// Whether nobody looks at what is said: everything has to be there then. `CI` is what such a place sets.
pub fn nobody_looks() -> bool {
    std::env::var_os("CI").is_some_and(|ci| !ci.is_empty())
}
