//! The keys of SCRAM-SHA-256 and how they are derived (RFC 5802 section 3). Pure.

use super::saslprep::saslprep;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// The length of SHA-256's output, and so of every key, proof and signature.
pub(super) const KEY_LEN: usize = 32;

/// The block of SHA-256; HMAC pads its key with zeros to this.
const BLOCK_LEN: usize = 64;

/// A key of 32 bytes: compared in constant time, wiped when dropped, never shown.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; KEY_LEN]>);

impl Key {
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// `None` unless there are 32 bytes.
    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::new)
    }

    pub fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// HMAC-SHA-256 under this key of the parts, one after the other.
    pub(super) fn sign(&self, parts: &[&[u8]]) -> Self {
        let mut block = Zeroizing::new([0; BLOCK_LEN]);
        block[..KEY_LEN].copy_from_slice(self.bytes());
        let mut mac = <Hmac<Sha256> as KeyInit>::new((&*block).into());
        for part in parts {
            mac.update(part);
        }
        Self::new(mac.finalize().into_bytes().into())
    }

    /// SHA-256 of this key: a StoredKey, if this is a ClientKey.
    pub(super) fn hash(&self) -> Self {
        Self::new(Sha256::digest(self.bytes()).into())
    }

    /// Bit by bit: a proof from a key and a signature, or the key from a proof and the signature.
    pub(super) fn xor(&self, other: &Self) -> Self {
        let mut bytes = *self.bytes();
        for (byte, other) in bytes.iter_mut().zip(other.bytes()) {
            *byte ^= other;
        }
        let key = Self::new(bytes);
        bytes.zeroize();
        key
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What it takes to log in as a role by SCRAM with no password: as good as the password while the secret lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// Makes the proof. The server keeps only its hash; a client's proof reveals it to whoever has that.
    pub client: Key,
    /// Verifies that the server knows the role's secret.
    pub server: Key,
}

impl ScramKeys {
    /// From the password, as bytes without a terminating zero. Costs `iterations` HMACs, a millisecond or two
    /// for 4096.
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let mut salted = Zeroizing::new([0; KEY_LEN]);
        pbkdf2::pbkdf2_hmac::<Sha256>(&saslprep(password), salt, iterations, &mut *salted);
        let salted = Key(salted);
        Self { client: salted.sign(&[b"Client Key"]), server: salted.sign(&[b"Server Key"]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_rfc_4231s() {
        // Test case 3: 20 bytes of 0xaa and zeros after them are the same key.
        let mut key = [0; KEY_LEN];
        key[..20].fill(0xaa);
        let signature = Key::new(key).sign(&[&[0xdd; 20], &[], &[0xdd; 30]]);
        assert_eq!(signature.bytes()[..8], [0x77, 0x3e, 0xa9, 0x1e, 0x36, 0x80, 0x0e, 0x46]);
    }

    #[test]
    fn a_key_is_never_shown() {
        assert_eq!(format!("{:?}", Key::new([7; 32])), "Key(..)");
        let keys = ScramKeys::derive(b"secret", b"salt", 1);
        assert_eq!(format!("{keys:?}"), "ScramKeys { client: Key(..), server: Key(..) }");
    }

    #[test]
    fn xor_twice_is_the_key_again() {
        let (a, b) = (Key::new([0x5a; 32]), Key::new([0x33; 32]));
        assert_eq!(a.xor(&b).bytes(), &[0x69; 32]);
        assert_eq!(a.xor(&b).xor(&b), a);
        assert_ne!(a, b);
    }
}
