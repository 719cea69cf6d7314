//! A position as a primary answers it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::status::Lsn;

fuzz_target!(|text: &str| {
    if let Ok(position) = text.parse::<Lsn>() {
        assert_eq!(position.to_string().parse(), Ok(position));
    }
});
