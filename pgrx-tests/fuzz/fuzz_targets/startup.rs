//! The first packet of a connection: its length word, and its body as the server would read it.
//!
//! An input is one byte (the server's latest minor version) and the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::wire::startup::{
    MAX_STARTUP, NAME_MAX, Replication, Startup, StartupMessage, body_length, parse,
};

fuzz_target!(|input: &[u8]| {
    let [latest, body @ ..] = input else { return };
    if let Some(word) = body.first_chunk::<4>()
        && let Ok(length) = body_length(*word)
    {
        assert!((4..=MAX_STARTUP).contains(&length));
        assert_eq!(length + 4, u32::from_be_bytes(*word) as usize);
    }
    match parse(body, u16::from(*latest)) {
        Ok(Startup::Ssl | Startup::Gss) => {}
        Ok(Startup::Cancel { key, .. }) => assert!((4..=256).contains(&key.len())),
        Ok(Startup::Session(message)) => {
            for name in [&message.user, &message.database] {
                assert!((1..=NAME_MAX).contains(&name.len()) && !name.contains(&0));
            }
            assert_eq!(parse(&written(&message), 0), Ok(Startup::Session(message)), "read back");
        }
        Err(error) => {
            assert_eq!(error.sqlstate().len(), 5);
            assert!(!error.to_string().is_empty());
        }
    }
});

/// The body that says the same.
fn written(message: &StartupMessage) -> Vec<u8> {
    let mut body = (3 << 16 | u32::from(message.minor)).to_be_bytes().to_vec();
    let mut put = |name: &[u8], value: &[u8]| body.extend([name, b"\0", value, b"\0"].concat());
    put(b"user", &message.user);
    put(b"database", &message.database);
    message.options.iter().for_each(|options| put(b"options", options));
    match message.replication {
        Replication::No => {}
        Replication::Physical => put(b"replication", b"on"),
        Replication::Database => put(b"replication", b"database"),
    }
    message.settings.iter().for_each(|(name, value)| put(name, value));
    message.unrecognized.iter().for_each(|name| put(name, b""));
    body.push(0);
    body
}
