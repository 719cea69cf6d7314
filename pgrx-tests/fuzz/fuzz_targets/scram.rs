//! A SCRAM login: the bodies of two messages, for a role with a secret and for none, with TLS and without.
//! The nonce is fixed, so that the seeds' proofs fit and what follows a right proof is reached.
//!
//! An input is one byte (1: TLS, 2: no such role), the length of the first body in two bytes, and the two bodies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::auth::{Claim, Found, ScramSecret, ScramServer, Secret, Step};
use std::sync::OnceLock;

/// For the secret, whose PBKDF2 is the same every time.
static SECRET: OnceLock<ScramSecret> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let [flags, high, low, bodies @ ..] = input else { return };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let Some((first, last)) = bodies.split_at_checked(length) else { return };

    let (is_tls, is_nobody) = (flags & 1 != 0, flags & 2 != 0);
    let secret = Secret::Scram(SECRET.get_or_init(|| ScramSecret::derive(b"pencil", b"salt", 1)).clone());
    let found = (!is_nobody).then_some(Found { secret: Some(secret), valid_until: None });
    let claim = Claim::new(b"alice", found, 0);
    let binding = is_tls.then(|| vec![0xc5; 32]);
    let mut server = ScramServer::with_nonce(claim, &[9; 32], binding, "OURS".into());

    assert!(!matches!(server.receive(first), Ok(Step::Proven { .. })), "proven by one message");
    let answer = server.receive(last);
    assert!(!(is_nobody && matches!(answer, Ok(Step::Proven { .. }))), "nobody has logged in");
    if let Err(error) = answer {
        assert_eq!(error.sqlstate().len(), 5);
        assert!(server.receive(last).is_err(), "goes on after {error}");
    }
});
