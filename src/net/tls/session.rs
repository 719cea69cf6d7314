//! What a TLS connection has agreed on, as the server names it in pg_stat_ssl: OpenSSL's names. Pure.

use super::TlsStream;
use tokio_rustls::rustls::CipherSuite;

/// A cipher of a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cipher {
    /// Of the protocol. A cipher belongs to one version.
    pub version: &'static str,
    pub name: &'static str,
    /// Of its key.
    pub bits: u16,
}

const V1_2: &str = "TLSv1.2";
const V1_3: &str = "TLSv1.3";

/// Every cipher that the pooler agrees to.
const CIPHERS: [(CipherSuite, &str, &str, u16); 9] = [
    (CipherSuite::TLS13_AES_256_GCM_SHA384, V1_3, "TLS_AES_256_GCM_SHA384", 256),
    (CipherSuite::TLS13_AES_128_GCM_SHA256, V1_3, "TLS_AES_128_GCM_SHA256", 128),
    (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, V1_3, "TLS_CHACHA20_POLY1305_SHA256", 256),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, V1_2, "ECDHE-ECDSA-AES256-GCM-SHA384", 256),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, V1_2, "ECDHE-ECDSA-AES128-GCM-SHA256", 128),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, V1_2, "ECDHE-ECDSA-CHACHA20-POLY1305", 256),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, V1_2, "ECDHE-RSA-AES256-GCM-SHA384", 256),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, V1_2, "ECDHE-RSA-AES128-GCM-SHA256", 128),
    (CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, V1_2, "ECDHE-RSA-CHACHA20-POLY1305", 256),
];

/// The number of a cipher that is not known here.
const UNKNOWN: u8 = u8::MAX;

/// The number of a connection's cipher, for [`cipher`]; never 0, which stands for no TLS.
pub fn number_of<S>(stream: &TlsStream<S>) -> u8 {
    let suite = stream.get_ref().1.negotiated_cipher_suite().map(|suite| suite.suite());
    let place = CIPHERS.iter().position(|(known, ..)| Some(*known) == suite);
    place.map_or(UNKNOWN, |place| place as u8 + 1)
}

/// The cipher of a number; `None` for 0, no TLS.
pub fn cipher(number: u8) -> Option<Cipher> {
    let known = CIPHERS.get(usize::from(number.checked_sub(1)?));
    let unknown = Cipher { version: "unknown", name: "unknown", bits: 0 };
    Some(known.map_or(unknown, |(_, version, name, bits)| Cipher { version, name, bits: *bits }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_of_the_library_has_a_name() {
        for suite in tokio_rustls::rustls::crypto::ring::ALL_CIPHER_SUITES {
            let known = CIPHERS.iter().find(|(known, ..)| *known == suite.suite());
            let (_, version, ..) = known.unwrap_or_else(|| panic!("{:?}", suite.suite()));
            assert_eq!(*version == V1_3, suite.tls13().is_some(), "{:?}", suite.suite());
        }
    }

    #[test]
    fn no_tls_is_no_cipher() {
        assert_eq!(cipher(0), None);
        assert_eq!(cipher(1).map(|cipher| cipher.name), Some("TLS_AES_256_GCM_SHA384"));
        assert_eq!(cipher(UNKNOWN).map(|cipher| cipher.bits), Some(0));
    }
}
