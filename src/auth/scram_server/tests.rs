//! The exchange against our own client, and messages that no client of ours sends.

use super::super::{Challenge, Credential, Found, ScramClient, With};
use super::*;
use proptest::prelude::*;

const CLUSTER: &[u8; 32] = &[9; 32];
const HASH: &[u8] = &[0xc5; 32];
const OUR_NONCE: &str = "3rfcNHYJY1ZVvWVs7j";
const TLS: bool = true;

fn secret(text: &str) -> Option<Secret> {
    Some(Secret::parse(text))
}

/// RFC 7677 section 3: "pencil".
fn pencil() -> Option<Secret> {
    secret(
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
         wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    )
}

fn claim(secret: Option<Secret>) -> Claim {
    Claim::new(b"user", Some(Found { secret, valid_until: None }), 0)
}

fn server(tls: bool) -> ScramServer {
    let binding = tls.then(|| HASH.to_vec());
    ScramServer::with_nonce(claim(pencil()), CLUSTER, binding, OUR_NONCE.into())
}

fn initial(mechanism: &str, first: &[u8]) -> Vec<u8> {
    let length = (first.len() as u32).to_be_bytes();
    [mechanism.as_bytes(), b"\0", &length, first].concat()
}

fn challenge(server: &mut ScramServer, mechanism: &str, first: &[u8]) -> Result<Vec<u8>, Error> {
    server.receive(&initial(mechanism, first)).map(|step| match step {
        Step::Challenge(data) => data,
        Step::Proven { .. } => panic!("proven by the first message"),
    })
}

/// What a client that knows the password sends last, for any header, binding and nonce.
fn last(first_bare: &str, server_first: &[u8], without_proof: &str) -> Vec<u8> {
    let salt = from_base64(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let keys = ScramKeys::derive(b"pencil", &salt, 4096);
    let transcript = [first_bare.as_bytes(), b",", server_first, b",", without_proof.as_bytes()];
    let proof = keys.client.xor(&keys.client.hash().sign(&transcript));
    format!("{without_proof},p={}", to_base64(proof.bytes())).into_bytes()
}

fn refused(log: Option<&str>) -> Error {
    Error::Refused { role: "user".into(), log: log.map(str::to_owned) }
}

#[test]
fn the_exchange_of_rfc_7677_is_proven() {
    let mut server =
        ScramServer::with_nonce(claim(pencil()), CLUSTER, None, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into());
    assert_eq!(server.mechanisms(), ["SCRAM-SHA-256"]);
    let server_first = challenge(&mut server, SCRAM_SHA_256, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
    assert_eq!(
        str::from_utf8(&server_first).unwrap(),
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    );
    let proven = server
        .receive(
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
              p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        )
        .unwrap();
    let Step::Proven { server_final, keys } = proven else { panic!("{proven:?}") };
    assert_eq!(server_final, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    let client_key = [
        0xa6, 0x0f, 0xc9, 0x23, 0xd6, 0x7e, 0x86, 0x44, 0xa9, 0x2d, 0x16, 0xb9, 0x6e, 0xda, 0x5e, 0xf4, 0x65,
        0x6b, 0x0c, 0x72, 0x5c, 0x48, 0x43, 0x74, 0xbe, 0x25, 0x53, 0x55, 0x76, 0x99, 0x6e, 0x8b,
    ];
    assert_eq!(keys.client.bytes(), &client_key);
    assert_eq!(server.receive(b"c=biws"), Err(Error::State));
}

fn log_in(server: &mut ScramServer, with: With) -> Result<ScramKeys, Error> {
    let client = ScramClient::new(with)?;
    let Step::Challenge(server_first) = server.receive(&client.initial_response())? else {
        panic!("proven by the first message")
    };
    let (client, last) = client.answer(&server_first)?;
    let Step::Proven { server_final, keys } = server.receive(&last)? else { panic!("a second challenge") };
    client.verify(&server_final)?;
    Ok(keys)
}

fn password(text: &[u8]) -> With {
    With::Password(text.to_vec().into())
}

#[test]
fn proven_keys_log_in_again_without_the_password() {
    let fresh = || ScramServer::new(claim(pencil()), CLUSTER, None).unwrap();
    let keys = log_in(&mut fresh(), password(b"pencil")).unwrap();
    assert_eq!(log_in(&mut fresh(), With::Keys(keys.clone())).unwrap(), keys);
    assert_eq!(claim(pencil()).password(b"pencil\0").unwrap(), Credential::Scram(keys));
}

#[test]
fn a_wrong_proof_is_refused() {
    assert_eq!(log_in(&mut server(false), password(b"pencils")), Err(refused(None)));
    let stale = ScramKeys::derive(b"pencil", b"another salt", 4096);
    assert_eq!(log_in(&mut server(false), With::Keys(stale)), Err(refused(None)));
}

#[test]
fn whoever_cannot_log_in_is_refused_like_a_wrong_password() {
    let found = |secret, valid_until| Some(Found { secret, valid_until });
    let md5 = secret("md54a0a68b43b6cd5cf266fa02f196e2371");
    for (found, log) in [
        (None, "Role \"user\" does not exist."),
        (found(None, None), "User \"user\" has no password assigned."),
        (found(pencil(), Some(9)), "User \"user\" has an expired password."),
        (found(pencil(), Some(i64::MIN)), "User \"user\" has an expired password."),
        (found(md5, None), "User \"user\" does not have a valid SCRAM secret."),
        (found(secret("x"), None), "User \"user\" does not have a valid SCRAM secret."),
    ] {
        let mut server = ScramServer::new(Claim::new(b"user", found, 10), CLUSTER, None).unwrap();
        let server_first = challenge(&mut server, SCRAM_SHA_256, b"n,,n=,r=abc").unwrap();
        let server_first = String::from_utf8(server_first).unwrap();
        let salt = ScramSecret::mock(b"user", CLUSTER);
        assert!(server_first.ends_with(&format!(",s={},i=4096", salt.salt_text())), "{server_first}");
        let nonce = server_first.split(',').next().unwrap();
        let last = format!("c=biws,{nonce},p={}", to_base64(&[0; 32]));
        let error = server.receive(last.as_bytes()).unwrap_err();
        assert_eq!(error, refused(Some(log)));
        assert_eq!(error.to_string(), "password authentication failed for user \"user\"");
        assert_eq!((error.sqlstate(), error.detail(), error.log_detail()), ("28P01", None, Some(log)));
    }
}

#[test]
fn not_even_the_right_password_helps_an_expired_one() {
    for (until, is_in) in [(9, false), (10, true), (i64::MAX, true)] {
        let found = Found { secret: pencil(), valid_until: Some(until) };
        let mut server = ScramServer::new(Claim::new(b"user", Some(found), 10), CLUSTER, None).unwrap();
        assert_eq!(log_in(&mut server, password(b"pencil")).is_ok(), is_in, "{until}");
    }
}

#[test]
fn a_missing_first_response_is_asked_for() {
    let mut server = server(false);
    let step = server.receive(b"SCRAM-SHA-256\0\xff\xff\xff\xff").unwrap();
    assert_eq!(step, Step::Challenge(Vec::new()));
    assert!(matches!(server.receive(b"n,,n=,r=abc").unwrap(), Step::Challenge(data) if data.len() > 9));
}

#[test]
fn plus_is_offered_first_and_only_with_a_binding() {
    assert_eq!(server(TLS).mechanisms(), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    let hashless = ScramServer::new(claim(pencil()), CLUSTER, Some(Vec::new())).unwrap();
    assert_eq!(hashless.mechanisms(), ["SCRAM-SHA-256"]);
    for (tls, mechanism) in
        [(false, SCRAM_SHA_256_PLUS), (TLS, "SCRAM-SHA-1"), (TLS, ""), (TLS, "SCRAM-SHA-256 ")]
    {
        let error = challenge(&mut server(tls), mechanism, b"n,,n=,r=abc").unwrap_err();
        assert_eq!((error.clone(), error.sqlstate()), (Error::Mechanism, "08P01"), "{mechanism}");
    }
    assert_eq!(server(TLS).receive(b"X\0"), Err(Error::Mechanism), "before the rest is looked at");
}

fn plus(hash: &[u8]) -> Result<Step, Error> {
    let mut server = server(TLS);
    let first = b"p=tls-server-end-point,,n=,r=abc";
    let server_first = challenge(&mut server, SCRAM_SHA_256_PLUS, first)?;
    let binding = to_base64(&[b"p=tls-server-end-point,,", hash].concat());
    server.receive(&last("n=,r=abc", &server_first, &format!("c={binding},r=abc{OUR_NONCE}")))
}

#[test]
fn plus_binds_to_our_certificate() {
    assert!(matches!(plus(HASH), Ok(Step::Proven { .. })));
}

#[test]
fn another_certificate_is_refused() {
    for hash in [&[0xc4; 32][..], &[], &HASH[..31], &[0xc5; 33]] {
        let error = plus(hash).unwrap_err();
        assert_eq!((error.clone(), error.sqlstate()), (Error::BindingCheck, "28000"));
    }
}

#[test]
fn without_plus_the_header_is_repeated() {
    for (tls, flag, header, is_in) in [
        (false, "n", "biws", true),
        (false, "y", "eSws", true),
        (TLS, "n", "biws", true),
        (false, "n", "eSws", false),
        (false, "y", "biws", false),
        (false, "n", "", false),
    ] {
        let mut server = server(tls);
        let first = format!("{flag},,n=,r=abc");
        let server_first = challenge(&mut server, SCRAM_SHA_256, first.as_bytes()).unwrap();
        let without_proof = format!("c={header},r=abc{OUR_NONCE}");
        let answer = server.receive(&last("n=,r=abc", &server_first, &without_proof));
        if is_in {
            assert!(matches!(answer, Ok(Step::Proven { .. })), "{flag} {header}");
        } else {
            assert_eq!(answer, Err(Error::BindingAttribute), "{flag} {header}");
        }
    }
}

#[test]
fn a_downgrade_is_noticed() {
    let error = challenge(&mut server(TLS), SCRAM_SHA_256, b"y,,n=,r=abc").unwrap_err();
    assert_eq!(error.to_string(), "SCRAM channel binding negotiation error");
    assert_eq!(error.sqlstate(), "28000");
    assert_eq!(
        error.detail().unwrap(),
        "The client supports SCRAM channel binding but thinks the server does not.  \
         However, this server does support channel binding."
    );
}

#[test]
fn each_mistake_in_the_first_message_has_the_servers_words() {
    let no_binding = "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include \
                      channel binding data.";
    for (plus, first, detail) in [
        (false, &b""[..], "The message is empty."),
        (false, b"n,,n=,r=a\0c", "Message length does not match input length."),
        (false, b"x,,n=,r=abc", "Unexpected channel-binding flag \"'x'\"."),
        (false, b"\xff,,n=,r=abc", "Unexpected channel-binding flag \"0xff\"."),
        (false, b"n", "Comma expected, but found character \"0x00\"."),
        (false, b"nn,,n=,r=abc", "Comma expected, but found character \"'n'\"."),
        (false, b"n,n=,r=abc", "Unexpected attribute \"'n'\" in client-first-message."),
        (false, b"n,", "Unexpected attribute \"0x00\" in client-first-message."),
        (false, b"n,,", "Expected attribute \"n\" but found \"0x00\"."),
        (false, b"n,,r=abc", "Expected attribute \"n\" but found \"'r'\"."),
        (false, b"n,,n,r=abc", "Expected character \"=\" for attribute \"n\"."),
        (false, b"n,,n=", "Expected attribute \"r\" but found \"0x00\"."),
        (false, b"n,,n=, r=abc", "Expected attribute \"r\" but found \"0x20\"."),
        (false, b"n,,n=,r", "Expected character \"=\" for attribute \"r\"."),
        (false, b"n,,n=,r=abc,1=x", "Attribute expected, but found invalid character \"'1'\"."),
        (false, b"n,,n=,r=abc,xx", "Expected character \"=\" for attribute \"x\"."),
        (
            false,
            b"p=tls-server-end-point,,n=,r=abc",
            "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes \
             channel binding data.",
        ),
        (true, b"n,,n=,r=abc", no_binding),
        (true, b"y,,n=,r=abc", no_binding),
        (true, b"p,,n=,r=abc", "Expected character \"=\" for attribute \"p\"."),
        (true, b"p=tls-server-end-point", "Unexpected attribute \"0x00\" in client-first-message."),
    ] {
        let mechanism = if plus { SCRAM_SHA_256_PLUS } else { SCRAM_SHA_256 };
        let error = challenge(&mut server(plus), mechanism, first).unwrap_err();
        assert_eq!(error.detail(), Some(detail), "{first:?}");
        assert_eq!((error.sqlstate(), error.to_string().as_str()), ("08P01", "malformed SCRAM message"));
    }
}

#[test]
fn what_the_server_does_not_support_is_refused() {
    let long = [&b"p="[..], &[b'x'; 40], b",,n=,r=abc"].concat();
    let x30 = "x".repeat(30);
    for (mechanism, first, error, sqlstate) in [
        (SCRAM_SHA_256, &b"n,a=alice,n=,r=abc"[..], Error::AuthorizationIdentity, "0A000"),
        (SCRAM_SHA_256, b"n,,m=x,n=,r=abc", Error::Extension, "0A000"),
        (SCRAM_SHA_256, b"n,,n=,r=a c", Error::NonceNotPrintable, "08P01"),
        (SCRAM_SHA_256, b"n,,n=,r=a\xc3\xa9", Error::NonceNotPrintable, "08P01"),
        (SCRAM_SHA_256_PLUS, b"p=tls-\xffnique,,n=,r=abc", Error::BindingType("tls-?nique".into()), "08P01"),
        (SCRAM_SHA_256_PLUS, &long, Error::BindingType(x30), "08P01"),
    ] {
        let got = challenge(&mut server(TLS), mechanism, first).unwrap_err();
        assert_eq!((got.sqlstate(), got), (sqlstate, error), "{first:?}");
    }
}

#[test]
fn the_name_and_extensions_are_ignored() {
    let mut server = server(false);
    let first = "n=mallory,r=abc,x=1,Y=";
    let server_first = challenge(&mut server, SCRAM_SHA_256, format!("n,,{first}").as_bytes()).unwrap();
    let without_proof = format!("c=biws,r=abc{OUR_NONCE},e=,Z=9");
    let step = server.receive(&last(first, &server_first, &without_proof)).unwrap();
    assert!(matches!(step, Step::Proven { .. }));
}

#[test]
fn each_mistake_in_the_last_message_has_the_servers_words() {
    let proof = to_base64(&[0; 32]);
    let malformed = |detail: &str| Error::Malformed(detail.into());
    for (last, error) in [
        (String::new(), malformed("The message is empty.")),
        ("\0".into(), malformed("Message length does not match input length.")),
        (format!("r=abc{OUR_NONCE}"), malformed("Expected attribute \"c\" but found \"'r'\".")),
        ("c=biwsx,r=".into(), Error::BindingAttribute),
        ("c=biws".into(), malformed("Expected attribute \"r\" but found \"0x00\".")),
        (format!("c=biws,r=abc{OUR_NONCE}"), malformed("Attribute expected, but found end of string.")),
        (format!("c=biws,r=abc{OUR_NONCE},x=1"), malformed("Attribute expected, but found end of string.")),
        (
            format!("c=biws,r=abc{OUR_NONCE},p={}", &proof[1..]),
            malformed("Malformed proof in client-final-message."),
        ),
        (format!("c=biws,r=abc{OUR_NONCE},p=AAAA"), malformed("Malformed proof in client-final-message.")),
        (
            format!("c=biws,r=abc{OUR_NONCE},p={proof},x=1"),
            malformed("Garbage found at the end of client-final-message."),
        ),
        (format!("c=biws,r=abc{OUR_NONCE}x,p={proof}"), Error::NonceMismatch),
        (format!("c=biws,r=abd{OUR_NONCE},p={proof}"), Error::NonceMismatch),
        (format!("c=biws,r=,p={proof}"), Error::NonceMismatch),
        (format!("c=biws,r=abc{OUR_NONCE},p={proof}"), refused(None)),
        (format!("c=biws,r=abc{OUR_NONCE},p={proof},"), refused(None)),
    ] {
        let mut server = server(false);
        challenge(&mut server, SCRAM_SHA_256, b"n,,n=,r=abc").unwrap();
        assert_eq!(server.receive(last.as_bytes()), Err(error), "{last}");
        assert_eq!(server.receive(last.as_bytes()), Err(Error::State));
    }
    assert_eq!(Error::NonceMismatch.detail(), Some("Nonce does not match."));
    assert_eq!(Error::NonceMismatch.sqlstate(), "08P01");
}

#[test]
fn a_message_that_is_too_long_is_refused_unread() {
    let first = |length: usize| [&b"n,,n=,r="[..], &vec![b'a'; length]].concat();
    let overhead = initial(SCRAM_SHA_256, &first(0)).len();
    assert!(challenge(&mut server(false), SCRAM_SHA_256, &first(MAX_SASL_BODY - overhead)).is_ok());
    let error = challenge(&mut server(false), SCRAM_SHA_256, &first(MAX_SASL_BODY - overhead + 1));
    assert_eq!(error, Err(refused(Some("invalid message length"))));
}

#[test]
fn nonces_are_not_repeated() {
    let nonce = || ScramServer::new(claim(pencil()), CLUSTER, None).unwrap().nonce;
    let (a, b) = (nonce(), nonce());
    assert_eq!(a.len(), 24);
    assert_ne!(a, b);
}

#[test]
fn md5_in_the_hba_file_means_what_fits_the_secret() {
    use Challenge::{Md5, Scram};
    let md5 = || secret("md54a0a68b43b6cd5cf266fa02f196e2371");
    for (claim, encryption, run) in [
        (claim(md5()), Scram, Md5),
        (claim(pencil()), Md5, Scram),
        (claim(secret("plain")), Md5, Scram),
        (claim(None), Scram, Scram),
        (claim(None), Md5, Md5),
        (Claim::new(b"user", None, 0), Scram, Scram),
        (Claim::new(b"user", None, 0), Md5, Md5),
    ] {
        assert_eq!(claim.challenge(Md5, encryption), run, "{claim:?}");
        assert_eq!(claim.challenge(Scram, encryption), Scram, "{claim:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        tls: bool,
        raw in proptest::collection::vec(any::<u8>(), 0..80),
        first in proptest::collection::vec(any::<u8>(), 0..80),
        text in "[nyp]?=?(tls-server-end-point)?,?[acmnr]?=?,?[n=,r\\PC]{0,20}",
        plus: bool,
        last in proptest::collection::vec(any::<u8>(), 0..80),
        last_text in "c=(biws|eSws)?,?r=(abc3rfcNHYJY1ZVvWVs7j)?,?(p=[A-Za-z0-9+/=,]{0,50})?",
    ) {
        let mechanism = if plus { SCRAM_SHA_256_PLUS } else { SCRAM_SHA_256 };
        let _ = server(tls).receive(&raw);
        let _ = challenge(&mut server(tls), mechanism, &first);
        let _ = challenge(&mut server(tls), mechanism, text.as_bytes());
        for last in [&last, last_text.as_bytes()] {
            let mut server = server(false);
            challenge(&mut server, SCRAM_SHA_256, b"n,,n=,r=abc").unwrap();
            prop_assert!(server.receive(last).is_err());
        }
    }

    #[test]
    fn our_client_and_our_server_agree_on_any_password(
        password in proptest::collection::vec(1..=255u8, 0..20),
        salt in proptest::collection::vec(any::<u8>(), 0..20),
        iterations in 1..5u32,
    ) {
        let secret = Secret::Scram(ScramSecret::derive(&password, &salt, iterations));
        let fresh = || ScramServer::new(claim(Some(secret.clone())), CLUSTER, None).unwrap();
        let keys = log_in(&mut fresh(), With::Password(password.into())).unwrap();
        prop_assert!(log_in(&mut fresh(), With::Keys(keys)).is_ok());
    }
}
