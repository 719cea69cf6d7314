//! What pg_authid.rolpassword holds: an md5 hash or a SCRAM secret. Pure.

use super::keys::{Key, ScramKeys};
use super::md5::Md5Secret;
use super::packet::{from_base64, to_base64};
use sha2::{Digest, Sha256};

/// The iterations that a made-up secret has: SCRAM_SHA_256_DEFAULT_ITERATIONS (scram-common.h), whatever
/// `scram_iterations` says, as in the server.
const MOCK_ITERATIONS: u32 = 4096;

/// SCRAM_DEFAULT_SALT_LEN (scram-common.h).
const MOCK_SALT_LEN: usize = 16;

/// A stored password, by what can be done with it (crypt.c, get_password_type). None of it is shown by `Debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    Md5(Md5Secret),
    Scram(ScramSecret),
    /// Anything else, which the server would call plain text and let nobody in with.
    Unusable,
}

impl Secret {
    /// Reads the catalog's text.
    ///
    /// PostgreSQL 15 to 17 skip doubled separators (`SCRAM-SHA-256$$4096…`) and read an iteration count that is
    /// no positive number; neither can come from the server itself, and here they are unusable.
    pub fn parse(text: &str) -> Self {
        if let Some(hash) = Md5Secret::parse(text) {
            return Self::Md5(hash);
        }
        ScramSecret::parse(text).map_or(Self::Unusable, Self::Scram)
    }
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (RFC 5803 in PostgreSQL's form).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScramSecret {
    iterations: u32,
    /// In base64, as the client gets it: byte for byte what the catalog has.
    salt_text: String,
    salt: Vec<u8>,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
}

impl ScramSecret {
    fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt_text) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text: &str| Key::from_slice(&zeroize::Zeroizing::new(from_base64(text.as_bytes())?));
        Some(Self {
            iterations: iterations.parse().ok().filter(|i| (1..=i32::MAX as u32).contains(i))?,
            salt: from_base64(salt_text.as_bytes())?,
            salt_text: salt_text.to_owned(),
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    /// From a password, as the server would store it. `iterations` is at least 1.
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let keys = ScramKeys::derive(password, salt, iterations);
        Self {
            iterations,
            salt_text: to_base64(salt),
            salt: salt.to_vec(),
            stored_key: keys.client.hash(),
            server_key: keys.server,
        }
    }

    /// For a name without a usable secret: a salt that is always the same for that name and looks like any
    /// other, and keys that fit nothing (auth-scram.c, mock_scram_secret).
    pub(super) fn mock(role: &[u8], mock_nonce: &[u8; 32]) -> Self {
        let digest = Sha256::new().chain_update(role).chain_update(mock_nonce).finalize();
        let salt = digest[..MOCK_SALT_LEN].to_vec();
        Self {
            iterations: MOCK_ITERATIONS,
            salt_text: to_base64(&salt),
            salt,
            stored_key: Key::new([0; 32]),
            server_key: Key::new([0; 32]),
        }
    }

    /// The PBKDF2 iterations that a cleartext password costs to check. A role chooses them for itself when it
    /// stores a secret of its own making, and may choose 2147483647.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// The salt as the server-first message has it.
    pub(super) fn salt_text(&self) -> &str {
        &self.salt_text
    }

    /// The keys, if this is the password (auth-scram.c, scram_verify_plain_password).
    pub(super) fn keys_of(&self, password: &[u8]) -> Option<ScramKeys> {
        let keys = ScramKeys::derive(password, &self.salt, self.iterations);
        (keys.server == self.server_key).then_some(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MD5: &str = "md54a0a68b43b6cd5cf266fa02f196e2371";
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const STORED: &str = "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=";
    const SERVER: &str = "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn scram(text: &str) -> Option<ScramSecret> {
        match Secret::parse(text) {
            Secret::Scram(secret) => Some(secret),
            _ => None,
        }
    }

    #[test]
    fn both_kinds_are_read() {
        assert!(matches!(Secret::parse(MD5), Secret::Md5(_)));
        let secret = scram(&format!("SCRAM-SHA-256$4096:{SALT}${STORED}:{SERVER}")).unwrap();
        assert_eq!((secret.iterations(), secret.salt_text()), (4096, SALT));
        assert_eq!(secret, ScramSecret::derive(b"pencil", &from_base64(SALT.as_bytes()).unwrap(), 4096));
    }

    #[test]
    fn anything_else_lets_nobody_in() {
        let short = to_base64(&[0; 31]);
        let long = to_base64(&[0; 33]);
        for text in [
            String::new(),
            "secret".into(),
            "md5".into(),
            MD5[..34].into(),
            format!("{MD5}0"),
            MD5.to_uppercase(),
            MD5.replace('f', "F"),
            MD5.replace('f', "g"),
            format!("SCRAM-SHA-1$4096:{SALT}${STORED}:{SERVER}"),
            format!("scram-sha-256$4096:{SALT}${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$0:{SALT}${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$-1:{SALT}${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$:{SALT}${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$40x:{SALT}${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$2147483648:{SALT}${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$99999999999:{SALT}${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$4096:!{SALT}${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$4096${STORED}:{SERVER}"),
            format!("SCRAM-SHA-256$4096:{SALT}${STORED}"),
            format!("SCRAM-SHA-256$4096:{SALT}${STORED}:"),
            format!("SCRAM-SHA-256$4096:{SALT}${STORED}:{SERVER} "),
            format!("SCRAM-SHA-256$4096:{SALT}${STORED}:{short}"),
            format!("SCRAM-SHA-256$4096:{SALT}${long}:{SERVER}"),
        ] {
            assert_eq!(Secret::parse(&text), Secret::Unusable, "{text:?}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = scram(&format!("SCRAM-SHA-256$4096:{SALT}${STORED}:{SERVER}")).unwrap();
        let shown = format!("{secret:?} {:?}", Secret::parse(MD5));
        for part in [STORED, SERVER, &MD5[3..]] {
            assert!(!shown.contains(part), "{shown}");
        }
        assert!(shown.contains("Key(..)"), "{shown}");
    }

    #[test]
    fn a_made_up_salt_depends_on_the_name_and_the_cluster_only() {
        let salt = |role: &[u8], nonce| ScramSecret::mock(role, &[nonce; 32]).salt_text;
        assert_eq!(salt(b"nobody", 1), salt(b"nobody", 1));
        assert_ne!(salt(b"nobody", 1), salt(b"nobodi", 1));
        assert_ne!(salt(b"nobody", 1), salt(b"nobody", 2));
        // sha256("nobody" and 32 bytes of 1), the first 16 bytes.
        let digest = Sha256::digest([&b"nobody"[..], &[1; 32]].concat());
        assert_eq!(salt(b"nobody", 1), to_base64(&digest[..16]));
    }

    #[test]
    fn a_password_is_checked_against_the_secret() {
        let secret = ScramSecret::derive("I\u{ad}X".as_bytes(), b"0123456789abcdef", 2);
        let keys = secret.keys_of(b"IX").unwrap();
        assert_eq!(keys.client.hash(), secret.stored_key);
        assert_eq!(secret.keys_of(b"ix"), None);
    }
}
