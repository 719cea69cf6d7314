//! TLS as the server offers it, from the server's own settings: certificate, key, authorities, revocation lists and
//! protocol versions. Network threads; files are read when a worker starts and on reload only.
//!
//! - `files`: what the settings name, read whole
//! - `clients`: whether a client's certificate is good
//! - [`peer`]: whom a client's certificate names
//! - [`session`]: the cipher that was agreed on
//! - [`pump`]: bytes between a TLS client and a plain socket
//!
//! What differs from the server, whose TLS is OpenSSL's: `ssl_ciphers`, `ssl_prefer_server_ciphers`, `ssl_ecdh_curve` and
//! `ssl_dh_params_file` have no say (TLS 1.3's ciphers, and 1.2's with ECDHE and AEAD); keys are RSA of 2048 bits or more,
//! P-256, P-384 or Ed25519; a client's certificate must be of version 3 and no authority's own, and a revocation list of
//! version 2. What is not understood is refused.

mod clients;
mod files;
pub mod peer;
pub mod pump;
pub mod session;
#[cfg(test)]
mod tests;

use crate::settings::TlsFiles;
use files::{Files, Part};
use sha2::Digest;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ServerConfig, SupportedProtocolVersion, server, version};
pub use tokio_rustls::server::TlsStream;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::oid_registry as oid;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// The protocol's name in ALPN. A client that begins with TLS at once must have named it.
pub const ALPN: &[u8] = b"postgresql";

/// Certificates that a chain may have between the server's own and a root.
const MOST_INTERMEDIATES: usize = 10;

/// What goes wrong with TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {setting} \"{file}\": {source}")]
    Read { setting: &'static str, file: String, source: std::io::Error },
    #[error("could not load {setting} \"{file}\": {reason}")]
    Content { setting: &'static str, file: String, reason: String },
    #[error(
        "ssl_key_file \"{file}\" is encrypted, and the pooler does not run ssl_passphrase_command: it needs a key without a passphrase"
    )]
    EncryptedKey { file: String },
    #[error("ssl_key_file \"{key}\" does not belong to the certificate in ssl_cert_file \"{certificate}\"")]
    KeyMismatch { key: String, certificate: String },
    #[error("\"ssl_min_protocol_version\" cannot be higher than \"ssl_max_protocol_version\"")]
    VersionRange,
    #[error("could not set up TLS: {0}")]
    SetUp(#[source] tokio_rustls::rustls::Error),
    #[error("could not accept SSL connection: {0}")]
    Handshake(#[source] std::io::Error),
    #[error("SSL certificate's common name contains embedded null")]
    NullInCommonName,
    #[error("could not read the subject of the client's certificate")]
    PeerSubject,
}

/// Who the server is, to TLS clients. A connection keeps the one that it began with.
pub struct Identity {
    config: Arc<ServerConfig>,
    binding: Option<Vec<u8>>,
    files: TlsFiles,
    digest: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files and makes of them what the server's be_tls_init() makes
    /// (src/backend/libpq/be-secure-openssl.c). Blocks for as long as reading takes.
    ///
    /// # Errors
    /// A file that cannot be read or used, by its setting and path; settings that contradict each other.
    pub fn load(files: &TlsFiles) -> Result<Self, Error> {
        let read = Files::read(files)?;
        let provider = Arc::new(ring::default_provider());

        let authorities = match &read.authorities {
            Some(part) => Some(clients::Authorities::parse(part)?),
            None => None,
        };
        let mut chain = certificates(&read.certificate)?;
        if let [only] = &chain[..] {
            // OpenSSL completes a chain from the authorities when the file holds the certificate alone.
            let ours = authorities.as_ref().map_or(Vec::new(), |all| all.chain_of(only, MOST_INTERMEDIATES));
            chain.extend(ours);
        }
        let binding = binding(&read.certificate, &chain[0])?;
        let certified = certified(&read, chain, &provider)?;

        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions(files)?)
            .map_err(Error::SetUp)?;
        let builder = match authorities {
            Some(authorities) => builder.with_client_cert_verifier(Arc::new(
                authorities.verifier(read.revocations.as_deref(), &provider)?,
            )),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // The server allows neither tickets nor cached sessions.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(server::NoServerSessionStorage {});

        Ok(Self { config: Arc::new(config), binding, files: files.clone(), digest: read.digest() })
    }

    /// Whether [`Identity::load`] would make something else of these settings and of what the files now hold. True also
    /// when a file cannot be read: loading then says why.
    pub fn changed(&self, files: &TlsFiles) -> bool {
        self.files != *files || Files::read(files).map_or(true, |read| read.digest() != self.digest)
    }

    /// The hash of the certificate that clients bind SCRAM to (`tls-server-end-point`, RFC 5929 section 4.1);
    /// `None` where the certificate's signature has no hash of its own, as with Ed25519: then PLUS cannot be offered.
    pub fn binding(&self) -> Option<&[u8]> {
        self.binding.as_deref()
    }

    /// Whether client certificates can be checked: there is a file of authorities.
    pub fn has_authorities(&self) -> bool {
        !self.files.authorities.is_empty()
    }

    /// The server's side of a handshake. Takes as long as the client does: the caller bounds it.
    ///
    /// # Errors
    /// [`Error::Handshake`]; the client has been told by an alert where that was possible.
    pub async fn accept<S>(&self, stream: S) -> Result<TlsStream<S>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).await.map_err(Error::Handshake)
    }
}

/// Whether the client has named PostgreSQL's protocol in ALPN, as it must where TLS begins without an SSLRequest.
pub fn names_postgresql<S>(stream: &TlsStream<S>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ALPN)
}

fn versions(files: &TlsFiles) -> Result<&'static [&'static SupportedProtocolVersion], Error> {
    const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
    match (files.only_1_3, files.only_1_2) {
        (true, true) => Err(Error::VersionRange),
        (true, false) => Ok(&BOTH[..1]),
        (false, true) => Ok(&BOTH[1..]),
        (false, false) => Ok(BOTH),
    }
}

/// The certificates of a file in its order, at least one.
fn certificates(part: &Part) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_slice_iter(&part.bytes).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|e| part.refuse(e))?;
    if all.is_empty() { Err(part.refuse("it holds no certificate")) } else { Ok(all) }
}

/// The key, and that it is the certificate's. rustls's own comparison refuses certificates of version 1, which
/// `openssl x509 -req` makes by default; clients of OpenSSL take them.
fn certified(
    read: &Files,
    chain: Vec<CertificateDer<'static>>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let file = &read.key;
    let der = PrivateKeyDer::from_pem_slice(&file.bytes).map_err(|e| {
        let has = |text: &[u8]| file.bytes.windows(text.len()).any(|window| window == text);
        if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
            Error::EncryptedKey { file: file.path.clone() }
        } else {
            file.refuse(e)
        }
    })?;
    let key = provider.key_provider.load_private_key(der).map_err(|e| file.refuse(e))?;
    if let (Some(of_key), Some(leaf)) = (key.public_key(), chain.first()) {
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| read.certificate.refuse(e))?;
        if leaf.public_key().raw != of_key.as_ref() {
            let (key, certificate) = (file.path.clone(), read.certificate.path.clone());
            return Err(Error::KeyMismatch { key, certificate });
        }
    }
    Ok(CertifiedKey::new(chain, key))
}

/// `tls-server-end-point` of a certificate, as be_tls_get_certificate_hash() computes it: the hash of its signature,
/// but SHA-256 in the place of MD5 and SHA-1.
fn binding(part: &Part, leaf: &CertificateDer<'_>) -> Result<Option<Vec<u8>>, Error> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| part.refuse(e))?;
    let signature = &parsed.signature_algorithm;
    let kind = SignatureAlgorithm::try_from(signature);
    let hash = match &kind {
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => parameters.hash_algorithm_oid(),
        _ => &signature.algorithm,
    };
    let among = |all: &[Oid<'static>]| all.contains(hash);
    Ok(if among(&SHA_256) {
        Some(sha2::Sha256::digest(leaf).to_vec())
    } else if among(&SHA_384) {
        Some(sha2::Sha384::digest(leaf).to_vec())
    } else if among(&SHA_512) {
        Some(sha2::Sha512::digest(leaf).to_vec())
    } else if among(&SHA_224) {
        Some(sha2::Sha224::digest(leaf).to_vec())
    } else {
        None
    })
}

/// Signature algorithms, and hashes as RSASSA-PSS names them, by the hash that a client computes.
const SHA_256: [Oid<'static>; 8] = [
    oid::OID_PKCS1_SHA256WITHRSA,
    oid::OID_SIG_ECDSA_WITH_SHA256,
    oid::OID_NIST_HASH_SHA256,
    oid::OID_PKCS1_MD5WITHRSAENC,
    oid::OID_PKCS1_SHA1WITHRSA,
    ECDSA_WITH_SHA1,
    oid::OID_HASH_SHA1,
    oid!(1.2.840.113549.2.5),
];
const SHA_384: [Oid<'static>; 3] =
    [oid::OID_PKCS1_SHA384WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA384, oid::OID_NIST_HASH_SHA384];
const SHA_512: [Oid<'static>; 3] =
    [oid::OID_PKCS1_SHA512WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA512, oid::OID_NIST_HASH_SHA512];
const SHA_224: [Oid<'static>; 3] =
    [oid::OID_PKCS1_SHA224WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA224, oid!(2.16.840.1.101.3.4.2.4)];
const ECDSA_WITH_SHA1: Oid<'static> = oid!(1.2.840.10045.4.1);
