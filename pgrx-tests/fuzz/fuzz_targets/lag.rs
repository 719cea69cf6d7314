//! The `lag=` of an HTTP check: any text, and what is read is read again from how it is shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::settings::LagLimit;

fuzz_target!(|text: &str| {
    if let Ok(limit) = text.parse::<LagLimit>() {
        let shown = limit.to_string();
        assert!(shown.parse::<LagLimit>().is_ok(), "{text:?} is shown as {shown:?}");
    }
});
