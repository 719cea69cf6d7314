//! A client's settings and prepared statements, as they lie in shared memory between two backends.
//! Whatever can be read is written and read again as the same.
//!
//! An input is one byte (even: settings, odd: statements) and their bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::pooler::state::{decode_settings, decode_statements, encode_settings, encode_statements, hash};

fuzz_target!(|input: &[u8]| {
    let [kind, bytes @ ..] = input else { return };
    assert_ne!(hash(bytes), 0);
    if kind % 2 == 0 {
        let Some(settings) = decode_settings(bytes) else { return };
        let again = encode_settings(&settings);
        assert!(again.len() <= bytes.len());
        assert_eq!(decode_settings(&again), Some(settings));
    } else {
        let Some(statements) = decode_statements(bytes) else { return };
        let again = encode_statements(&statements);
        assert!(again.len() <= bytes.len());
        assert_eq!(decode_statements(&again), Some(statements));
    }
});
