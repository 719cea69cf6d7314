//! A client's settings and prepared statements, as they lie in shared memory between two backends.
//! Whatever can be read is written and read again as the same.
//!
//! An input is one byte (even: settings, odd: statements) and their bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::pooler::state::{
    StatementList, decode_settings, decode_statements, encode_settings, encode_statements, hash, name_of, places,
    statement_of,
};

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
        assert_eq!(decode_statements(&again).as_ref(), Some(&statements));
        let mut list = StatementList::default();
        for (place, statement) in places(&again).unwrap_or_default().into_iter().zip(&statements) {
            let bytes = place.of(&again).unwrap_or_default();
            assert_eq!((name_of(bytes), statement_of(bytes).as_ref()), (statement.name, Some(statement)));
            if statement.eager { list.push(statement) } else { list.push_bytes(bytes) }
        }
        assert_eq!(list.finish(), again);
    }
});
