//! The client's side of SCRAM-SHA-256 without channel binding, for our own logins at the server, as libpq does
//! it (fe-auth-scram.c; RFC 5802, 7677). Pure.

use super::Error;
use super::attributes::Attributes;
use super::keys::{Key, ScramKeys};
use super::packet::{from_base64, to_base64};
use super::scram_server::{SCRAM_SHA_256, random_nonce};
use zeroize::Zeroizing;

/// The gs2 header for no channel binding, and its base64, which the last message repeats.
const GS2_HEADER: &str = "n,,";
const GS2_HEADER_BASE64: &str = "biws";

/// What the client knows.
#[derive(Clone)]
pub enum With {
    /// The password, as bytes without a terminating zero. The server chooses how many iterations it costs.
    Password(Zeroizing<Vec<u8>>),
    /// What a client of ours has proven; it fits as long as the role's secret stays the same.
    Keys(ScramKeys),
}

impl std::fmt::Debug for With {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password(..)",
            Self::Keys(_) => "Keys(..)",
        })
    }
}

/// An exchange that has begun: what it sends first is known, and the server's first message is awaited.
#[derive(Debug)]
pub struct ScramClient {
    with: With,
    nonce: String,
    first_bare: String,
}

/// Our proof is sent; only the server's signature is missing.
#[derive(Debug)]
pub struct AwaitServerFinal {
    signature: Key,
}

impl ScramClient {
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn new(with: With) -> Result<Self, Error> {
        Ok(Self::with_nonce(with, random_nonce()?))
    }

    /// With a nonce that is not random; for tests. It is printable and has no comma.
    pub fn with_nonce(with: With, nonce: String) -> Self {
        // No name: the server takes the startup packet's.
        Self { with, first_bare: format!("n=,r={nonce}"), nonce }
    }

    /// Whether the body of AuthenticationSASL, after its code, offers what this client speaks.
    pub fn is_offered(mechanisms: &[u8]) -> bool {
        mechanisms.split(|&b| b == 0).any(|name| name == SCRAM_SHA_256.as_bytes())
    }

    /// The body of SASLInitialResponse.
    pub fn initial_response(&self) -> Vec<u8> {
        let first = [GS2_HEADER, &self.first_bare].concat();
        // A message of a few dozen bytes.
        let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
        [SCRAM_SHA_256.as_bytes(), b"\0", &length, first.as_bytes()].concat()
    }

    /// From the data of AuthenticationSASLContinue to the body of SASLResponse.
    ///
    /// # Errors
    /// [`Error::FromServer`] when the message is not an answer to ours.
    pub fn answer(self, server_first: &[u8]) -> Result<(AwaitServerFinal, Vec<u8>), Error> {
        let mut read = Attributes::of(server_first).map_err(from_server)?;
        let nonce = read.value_of(b'r').map_err(from_server)?;
        if !nonce.starts_with(self.nonce.as_bytes()) {
            return Err(from_server_text("nonce mismatch"));
        }
        let salt = read.value_of(b's').map_err(from_server)?;
        let salt = from_base64(salt).ok_or_else(|| from_server_text("invalid salt"))?;
        let iterations = str::from_utf8(read.value_of(b'i').map_err(from_server)?)
            .ok()
            .and_then(|text| text.parse::<u32>().ok())
            .filter(|i| (1..=i32::MAX as u32).contains(i))
            .ok_or_else(|| from_server_text("invalid iteration count"))?;
        if !read.is_at_end() {
            return Err(from_server_text("garbage at end of server-first-message"));
        }

        let keys = match self.with {
            With::Password(password) => ScramKeys::derive(&password, &salt, iterations),
            With::Keys(keys) => keys,
        };
        let without_proof = [b"c=", GS2_HEADER_BASE64.as_bytes(), b",r=", nonce].concat();
        let transcript = [self.first_bare.as_bytes(), b",", server_first, b",", &without_proof];
        let proof = keys.client.xor(&keys.client.hash().sign(&transcript));
        let last = [&without_proof, &b",p="[..], to_base64(proof.bytes()).as_bytes()].concat();
        Ok((AwaitServerFinal { signature: keys.server.sign(&transcript) }, last))
    }
}

impl AwaitServerFinal {
    /// From the data of AuthenticationSASLFinal. Only after this is the server known to be the right one.
    ///
    /// # Errors
    /// [`Error::ServerSignature`], [`Error::ServerSays`] or [`Error::FromServer`].
    pub fn verify(self, server_final: &[u8]) -> Result<(), Error> {
        let mut read = Attributes::of(server_final).map_err(from_server)?;
        if read.peek() == b'e' {
            let reason = read.value_of(b'e').map_err(from_server)?;
            return Err(Error::ServerSays(super::attributes::shown_text(reason)));
        }
        let signature = read.value_of(b'v').map_err(from_server)?;
        if !read.is_at_end() {
            return Err(from_server_text("garbage at end of server-final-message"));
        }
        let signature = from_base64(signature)
            .and_then(|signature| Key::from_slice(&signature))
            .ok_or_else(|| from_server_text("invalid server signature"))?;
        if signature == self.signature { Ok(()) } else { Err(Error::ServerSignature) }
    }
}

/// The reader's errors are worded for a client of ours; here it is the server that is at fault.
fn from_server(error: Error) -> Error {
    Error::FromServer(error.detail().map_or_else(|| error.to_string(), str::to_owned))
}

fn from_server_text(text: &str) -> Error {
    Error::FromServer(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: &str = "r=abcXYZ,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn client() -> ScramClient {
        ScramClient::with_nonce(With::Keys(ScramKeys::derive(b"pencil", b"salt", 1)), "abc".into())
    }

    #[test]
    fn the_client_of_rfc_7677_is_us() {
        let mut client =
            ScramClient::with_nonce(With::Password(b"pencil".to_vec().into()), "rOprNGfwEbeRWgbNEkqO".into());
        // The RFC's client names the user, which we leave out.
        client.first_bare.insert_str(2, "user");
        assert_eq!(client.initial_response(), b"SCRAM-SHA-256\0\0\0\0\x20n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (client, last) = client
            .answer(b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
            .unwrap();
        assert_eq!(
            str::from_utf8(&last).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(client.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
    }

    #[test]
    fn our_own_first_message_has_no_name() {
        assert_eq!(client().initial_response(), b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc");
    }

    #[test]
    fn what_is_offered_is_read_from_the_list() {
        assert!(ScramClient::is_offered(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"));
        assert!(!ScramClient::is_offered(b"SCRAM-SHA-256-PLUS\0\0"));
        assert!(!ScramClient::is_offered(b""));
    }

    #[test]
    fn a_first_message_that_does_not_answer_ours_is_refused() {
        for (message, reason) in [
            ("", "The message is empty."),
            ("x=1", "Expected attribute \"r\" but found \"'x'\"."),
            ("r=abXYZ,s=,i=1", "nonce mismatch"),
            ("r=abc,i=1", "Expected attribute \"s\" but found \"'i'\"."),
            ("r=abcX,s=?,i=1", "invalid salt"),
            ("r=abcX,s=,i=0", "invalid iteration count"),
            ("r=abcX,s=,i=-1", "invalid iteration count"),
            ("r=abcX,s=,i=2147483648", "invalid iteration count"),
            ("r=abcX,s=,i=1,x=1", "garbage at end of server-first-message"),
        ] {
            let error = client().answer(message.as_bytes()).map(|_| ()).unwrap_err();
            assert_eq!(error, Error::FromServer(reason.into()), "{message}");
            assert_eq!(error.sqlstate(), "08P01");
        }
    }

    #[test]
    fn a_server_that_does_not_know_the_secret_is_noticed() {
        for (message, error) in [
            (format!("v={}", to_base64(&[0; 32])), Error::ServerSignature),
            (format!("v={}", to_base64(&[0; 31])), from_server_text("invalid server signature")),
            (
                format!("v={},x=1", to_base64(&[0; 32])),
                from_server_text("garbage at end of server-final-message"),
            ),
            ("e=invalid-\u{7}proof".into(), Error::ServerSays("invalid-?proof".into())),
            (String::new(), Error::FromServer("The message is empty.".into())),
        ] {
            let (client, _) = client().answer(FIRST.as_bytes()).unwrap();
            assert_eq!(client.verify(message.as_bytes()), Err(error), "{message}");
        }
    }

    #[test]
    fn what_the_client_knows_is_never_shown() {
        let client = ScramClient::with_nonce(With::Password(b"hunter2".to_vec().into()), "abc".into());
        assert!(!format!("{client:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_bytes_from_a_server_make_it_panic(
            first in proptest::collection::vec(any::<u8>(), 0..80),
            text in "r=abc[a-z,=]{0,9},s=[A-Za-z=]{0,8},i=[0-9-]{0,11}",
            last in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let _ = client().answer(&first);
            let _ = client().answer(text.as_bytes());
            let (client, _) = client().answer(FIRST.as_bytes()).unwrap();
            prop_assert!(client.verify(&last).is_err());
        }
    }
}
