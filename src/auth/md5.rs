//! The md5 method: a salt of four bytes, and the hash of the stored hash with it (crypt.c, md5_crypt_verify). Pure.

use super::claim::{Claim, Credential};
use super::{Error, Secret, packet};
use ::md5::{Digest, Md5};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The hexadecimal digits of an MD5.
const DIGITS: usize = 32;

/// `md5` and 32 lower-case digits: the hash of password and role name. As good as the password for md5 logins.
#[derive(Clone)]
pub struct Md5Secret(Zeroizing<[u8; DIGITS]>);

impl Md5Secret {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits: [u8; DIGITS] = text.strip_prefix("md5")?.as_bytes().try_into().ok()?;
        let is_digit = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        digits.iter().all(is_digit).then(|| Self(Zeroizing::new(digits)))
    }

    /// From a password, as the server stores it.
    pub fn derive(password: &[u8], role: &[u8]) -> Self {
        Self(hex_digest(password, role))
    }

    /// What a client that knows this answers to a challenge: the string of a PasswordMessage, without its zero.
    pub fn answer(&self, salt: [u8; 4]) -> Zeroizing<Vec<u8>> {
        let mut answer = Zeroizing::new(Vec::with_capacity(3 + DIGITS));
        answer.extend_from_slice(b"md5");
        answer.extend_from_slice(&*hex_digest(&*self.0, &salt));
        answer
    }
}

fn hex_digest(text: &[u8], salt: &[u8]) -> Zeroizing<[u8; DIGITS]> {
    let digest = Md5::new().chain_update(text).chain_update(salt).finalize();
    let mut digits = Zeroizing::new([0; DIGITS]);
    for (pair, byte) in digits.chunks_exact_mut(2).zip(digest) {
        for (digit, half) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
            *digit = if half < 10 { b'0' + half } else { b'a' + half - 10 };
        }
    }
    digits
}

impl PartialEq for Md5Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Eq for Md5Secret {}

impl fmt::Debug for Md5Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Secret(..)")
    }
}

/// The server's side of one md5 challenge.
#[derive(Debug)]
pub struct Md5Server {
    claim: Claim,
    salt: [u8; 4],
}

impl Md5Server {
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn new(claim: Claim) -> Result<Self, Error> {
        let mut salt = [0; 4];
        getrandom::fill(&mut salt).map_err(|_| Error::RandomSalt)?;
        Ok(Self::with_salt(claim, salt))
    }

    /// With a salt that is not random; for tests.
    pub fn with_salt(claim: Claim, salt: [u8; 4]) -> Self {
        Self { claim, salt }
    }

    /// For AuthenticationMD5Password.
    pub fn salt(&self) -> [u8; 4] {
        self.salt
    }

    /// Judges the body of the PasswordMessage that the client answers with.
    ///
    /// # Errors
    /// [`Error::Packet`], [`Error::EmptyPassword`] or [`Error::Refused`].
    pub fn receive(self, body: &[u8]) -> Result<Credential, Error> {
        let answer = packet::password(body)?;
        match self.claim.secret() {
            Ok(Secret::Md5(secret)) => {
                if bool::from(secret.answer(self.salt).ct_eq(answer)) {
                    Ok(Credential::Md5(secret.clone()))
                } else {
                    Err(self.claim.refused(Some(self.claim.mismatch())))
                }
            }
            Ok(_) => {
                let log = format!(
                    "User \"{}\" has a password that cannot be used with MD5 authentication.",
                    self.claim.role()
                );
                Err(self.claim.refused(Some(log)))
            }
            Err(log) => Err(self.claim.refused(Some(log.to_owned()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Found;
    use super::*;
    use proptest::prelude::*;

    /// `SELECT 'md5' || md5('secret' || 'alice')`, and the answer to the salt 01020304.
    const STORED: &str = "md54a0a68b43b6cd5cf266fa02f196e2371";
    const ANSWER: &[u8] = b"md598a0412b9c31436fc53776e863350083\0";

    fn claim(secret: &str) -> Claim {
        Claim::new(b"alice", Some(Found { secret: Some(Secret::parse(secret)), valid_until: None }), 0)
    }

    fn server(claim: Claim) -> Md5Server {
        Md5Server::with_salt(claim, [1, 2, 3, 4])
    }

    fn stored() -> Md5Secret {
        Md5Secret::parse(STORED).unwrap()
    }

    fn log_of(result: Result<Credential, Error>) -> Option<String> {
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "password authentication failed for user \"alice\"");
        assert_eq!(error.sqlstate(), "28P01");
        error.log_detail().map(str::to_owned)
    }

    #[test]
    fn hashes_are_rfc_1321s() {
        assert_eq!(&*hex_digest(b"", b""), b"d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(&*hex_digest(b"message", b" digest"), b"f96b697d7cb7938d525a2f31aaf161d0");
    }

    #[test]
    fn the_right_answer_is_let_in() {
        assert_eq!(Md5Secret::derive(b"secret", b"alice"), stored());
        assert_eq!(server(claim(STORED)).salt(), [1, 2, 3, 4]);
        assert_eq!(server(claim(STORED)).receive(ANSWER), Ok(Credential::Md5(stored())));
        assert_eq!([&stored().answer([1, 2, 3, 4])[..], b"\0"].concat(), ANSWER);
    }

    #[test]
    fn any_other_answer_is_refused() {
        let mismatch = Some("Password does not match for user \"alice\".".to_owned());
        for answer in [
            &b"secret\0"[..],
            &[STORED.as_bytes(), b"\0"].concat(),
            &ANSWER.to_ascii_uppercase(),
            &ANSWER[1..],
            &[ANSWER[..35].as_ref(), b"0\0"].concat(),
        ] {
            assert_eq!(log_of(server(claim(STORED)).receive(answer)), mismatch);
        }
        assert_eq!(
            Md5Server::with_salt(claim(STORED), [1, 2, 3, 5]).receive(ANSWER).unwrap_err().log_detail(),
            mismatch.as_deref()
        );
        assert_eq!(server(claim(STORED)).receive(b"\0"), Err(Error::EmptyPassword));
        assert_eq!(Error::EmptyPassword.sqlstate(), "28P01");
    }

    #[test]
    fn nothing_answers_for_a_role_without_an_md5_secret() {
        let nobody = Claim::new(b"alice", None, 0);
        assert_eq!(log_of(server(nobody).receive(ANSWER)).unwrap(), "Role \"alice\" does not exist.");
        let expired = Found { secret: Some(Secret::parse(STORED)), valid_until: Some(-1) };
        assert_eq!(
            log_of(server(Claim::new(b"alice", Some(expired), 0)).receive(ANSWER)).unwrap(),
            "User \"alice\" has an expired password."
        );
        assert_eq!(
            log_of(server(claim("plain")).receive(ANSWER)).unwrap(),
            "User \"alice\" has a password that cannot be used with MD5 authentication."
        );
    }

    #[test]
    fn a_cleartext_password_is_checked_against_the_hash() {
        let claim = claim(STORED);
        assert_eq!(claim.iterations(), 0);
        assert_eq!(claim.password(b"secret\0"), Ok(Credential::Md5(stored())));
        assert_eq!(
            log_of(claim.password(b"Secret\0")).unwrap(),
            "Password does not match for user \"alice\"."
        );
    }

    #[test]
    fn salts_are_not_repeated() {
        let salt = || Md5Server::new(claim(STORED)).unwrap().salt();
        assert!((0..4).any(|_| salt() != salt()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..50)) {
            prop_assert!(server(claim(STORED)).receive(&body).is_err());
            prop_assert!(claim(STORED).password(&body).is_err());
        }

        #[test]
        fn whoever_knows_the_hash_knows_the_answer(password in "[^\0]{1,12}", role in "\\PC{1,9}", salt: [u8; 4]) {
            let secret = Md5Secret::derive(password.as_bytes(), role.as_bytes());
            let found = Found { secret: Some(Secret::Md5(secret.clone())), valid_until: None };
            let claim = Claim::new(role.as_bytes(), Some(found), 0);
            let server = Md5Server::with_salt(claim, salt);
            let answer = [&secret.answer(salt)[..], b"\0"].concat();
            prop_assert_eq!(server.receive(&answer), Ok(Credential::Md5(secret)));
        }
    }
}
