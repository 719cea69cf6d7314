//! A client's messages as the session agent walks them: bytes that it has only peeked at, cut anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::wire::frame::{HEADER, all, first, names_unnamed_statement};

fuzz_target!(|bytes: &[u8]| {
    let mut at = 0;
    for frame in all(bytes) {
        assert_eq!(first(&bytes[at..]), Ok(Some(frame)), "the walk and a look from there agree");
        assert!(frame.length >= HEADER && frame.body.len() <= frame.length - HEADER);
        assert_eq!(frame.tag, bytes[at]);
        let _ = names_unnamed_statement(&frame);
        if !frame.is_complete() {
            assert_eq!(at + HEADER + frame.body.len(), bytes.len(), "only the last is cut");
            return;
        }
        // What follows a message, or that only its header has come yet, changes nothing in it.
        assert_eq!(first(&bytes[at..at + frame.length]), Ok(Some(frame)));
        let header = first(&bytes[at..at + HEADER]).ok().flatten();
        assert_eq!(header.map(|header| (header.tag, header.length)), Some((frame.tag, frame.length)));
        at += frame.length;
    }
    // The walk ends where nothing is left, a header is cut, or the server would refuse.
    assert!(!matches!(first(&bytes[at..]), Ok(Some(_))));
    assert!(bytes.len() - at < HEADER || first(&bytes[at..]).is_err());
});
