//! Lists of addresses and of sources, as written by an operator.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::settings::{Allow, ListenList, banner_addresses};

fuzz_target!(|text: &str| {
    let _ = text.parse::<Allow>();
    let _ = banner_addresses(text, false, Some(5400), text);
    if let Ok(list) = text.parse::<ListenList>() {
        assert_eq!(list.to_string().parse(), Ok(list));
    }
});
