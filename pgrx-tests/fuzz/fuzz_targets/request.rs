//! The path and query of an HTTP check; the HTTP around them is hyper's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::status::{Check, lag_of_query};

fuzz_target!(|text: &str| {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let _ = Check::from_path(path);
    let _ = lag_of_query(Some(query));
});
