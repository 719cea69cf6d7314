//! Whether a client's certificate is good: its chain to one of `ssl_ca_file`, and that nothing in it is revoked.
//! Network threads.
//!
//! The rules are OpenSSL's as the server sets it up: a chain ends at a self-signed certificate of `ssl_ca_file`, whose other
//! certificates only help to build it; with a revocation list set, each certificate below the root needs a list of its
//! issuer that is still in force. rustls takes every given authority as an end of the chain, for ever, and does not check
//! revocation when it has no list, so that is seen to here.

use super::Error;
use super::files::Part;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

/// What `ssl_ca_file` holds.
pub(super) struct Authorities<'a> {
    part: &'a Part,
    roots: Vec<Root>,
    intermediates: Vec<Intermediate>,
    subjects: Vec<DistinguishedName>,
}

struct Root {
    certificate: CertificateDer<'static>,
    /// The first and the last second in which it is valid, since 1970.
    valid: RangeInclusive<i64>,
}

struct Intermediate {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    certificate: CertificateDer<'static>,
}

/// A revocation list and when it was issued, in seconds since 1970.
type Dated = (i64, CertificateRevocationListDer<'static>);

impl<'a> Authorities<'a> {
    /// # Errors
    /// [`Error::Content`] when the file holds no certificate, or one that is not understood.
    pub fn parse(part: &'a Part) -> Result<Self, Error> {
        let (mut roots, mut intermediates, mut subjects) = (Vec::new(), Vec::new(), Vec::new());
        for certificate in super::certificates(part)? {
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|e| part.refuse(e))?;
            let (subject, issuer) = (parsed.subject().as_raw().to_vec(), parsed.issuer().as_raw().to_vec());
            let valid = parsed.validity();
            let valid = valid.not_before.timestamp()..=valid.not_after.timestamp();
            subjects.push(DistinguishedName::from(subject.clone()));
            if subject == issuer {
                RootCertStore::empty().add(certificate.clone()).map_err(|e| part.refuse(e))?;
                roots.push(Root { certificate, valid });
            } else {
                intermediates.push(Intermediate { subject, issuer, certificate });
            }
        }
        Ok(Self { part, roots, intermediates, subjects })
    }

    /// The certificates between `leaf` and its root, as far as they are known here: at most `most`.
    pub fn chain_of(&self, leaf: &CertificateDer<'_>, most: usize) -> Vec<CertificateDer<'static>> {
        let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return Vec::new() };
        let mut wanted = parsed.issuer().as_raw();
        let mut chain = Vec::new();
        while chain.len() < most {
            let Some(next) = self.intermediates.iter().find(|one| one.subject == wanted) else { break };
            chain.push(next.certificate.clone());
            wanted = &next.issuer;
        }
        chain
    }

    /// # Errors
    /// [`Error::Content`] for a revocation list that is not understood.
    pub fn verifier(
        self,
        revocations: Option<&[Part]>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Verifier, Error> {
        let mut lists = Vec::new();
        for part in revocations.iter().copied().flatten().chain(revocations.map(|_| self.part)) {
            lists.extend(self.lists(part, provider)?);
        }
        // rustls asks the first list of an issuer; the latest is the one that counts.
        lists.sort_by_key(|(issued, _)| Reverse(*issued));
        Ok(Verifier {
            roots: self.roots,
            lists: revocations.map(|_| lists.into_iter().map(|(_, list)| list).collect()),
            current: Mutex::new(Current { seconds: 0..0, inner: Err(CertificateError::UnknownIssuer) }),
            intermediates: self.intermediates.into_iter().map(|one| one.certificate).collect(),
            subjects: self.subjects,
            provider: Arc::clone(provider),
        })
    }

    /// The lists of one file, which may hold certificates too.
    fn lists(&self, part: &Part, provider: &Arc<CryptoProvider>) -> Result<Vec<Dated>, Error> {
        let lists = CertificateRevocationListDer::pem_slice_iter(&part.bytes).collect::<Result<Vec<_>, _>>();
        let lists = lists.map_err(|e| part.refuse(e))?;
        if lists.is_empty() && part.setting != self.part.setting {
            return Err(part.refuse("it holds no revocation list"));
        }
        // Whether rustls will take them later, when there is nobody to tell.
        if !self.roots.is_empty() && !lists.is_empty() {
            build(self.roots.iter(), &lists, provider).map_err(|e| part.refuse(e))?;
        }
        let mut dated = Vec::new();
        for list in lists {
            let (_, parsed) = CertificateRevocationList::from_der(&list).map_err(|e| part.refuse(e))?;
            dated.push((parsed.last_update().timestamp(), list));
        }
        Ok(dated)
    }
}

fn build<'a>(
    roots: impl Iterator<Item = &'a Root>,
    lists: &[CertificateRevocationListDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.certificate.clone()).map_err(|e| e.to_string())?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
        .allow_unauthenticated()
        .with_crls(lists.iter().cloned())
        .enforce_revocation_expiration()
        .build()
        .map_err(|e| e.to_string())
}

/// Asks for a certificate, does without one, and refuses a bad one.
pub(super) struct Verifier {
    roots: Vec<Root>,
    /// `None` where revocation is not checked.
    lists: Option<Vec<CertificateRevocationListDer<'static>>>,
    current: Mutex<Current>,
    intermediates: Vec<CertificateDer<'static>>,
    /// Told to clients, so that they can choose a certificate.
    subjects: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

/// What verifies while the same roots are valid.
struct Current {
    /// Since 1970.
    seconds: Range<i64>,
    /// Or why no certificate can be good.
    inner: Result<Arc<dyn ClientCertVerifier>, CertificateError>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    fn at(&self, now: i64) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
        let mut current = self.current.lock();
        if !current.seconds.contains(&now) {
            let ends = self.roots.iter().flat_map(|root| [*root.valid.start(), root.valid.end() + 1]);
            let end = ends.filter(|end| *end > now).min().unwrap_or(i64::MAX);
            *current = Current { seconds: now..end, inner: self.build(now) };
        }
        current.inner.clone()
    }

    fn build(&self, now: i64) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
        let valid = || self.roots.iter().filter(|root| root.valid.contains(&now));
        let lists = self.lists.as_deref();
        if self.roots.is_empty() {
            Err(CertificateError::UnknownIssuer)
        } else if valid().next().is_none() {
            Err(CertificateError::Expired)
        } else if lists.is_some_and(<[_]>::is_empty) {
            Err(CertificateError::UnknownRevocationStatus)
        } else {
            build(valid(), lists.unwrap_or_default(), &self.provider)
                .map_err(|_| CertificateError::UnknownIssuer)
        }
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let inner = self.at(now.as_secs() as i64).map_err(TlsError::InvalidCertificate)?;
        let all = intermediates.iter().chain(&self.intermediates);
        let all: Vec<_> = all.map(|certificate| CertificateDer::from(certificate.as_ref())).collect();
        inner.verify_client_cert(end_entity, &all, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
