//! Certificates made on the spot, their files, and a client that shows them.

use super::*;

/// A directory of the test's own, removed with it.
pub(super) struct Place(pub(super) PathBuf);

impl Place {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("postern-tls-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Writes a file; returns its path.
    pub(super) fn put(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        let _ = std::fs::remove_file(&path);
        let mut file =
            std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) type Authority = rcgen::CertifiedIssuer<'static, KeyPair>;

pub(super) fn authority_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(super) fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

pub(super) fn root(name: &str) -> Authority {
    Authority::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap()
}

pub(super) fn below(name: &str, root: &Authority) -> Authority {
    Authority::signed_by(authority_params(name), KeyPair::generate().unwrap(), root).unwrap()
}

/// A certificate and its key, in PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Pair {
    pub(super) fn issued(name: &str, serial: u64, issuer: &Issuer<'_, KeyPair>) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = named(name);
        params.serial_number = Some(serial.into());
        let certificate = params.signed_by(&key, issuer).unwrap().pem();
        Self { certificate, key: key.serialize_pem() }
    }

    pub(super) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    pub(super) fn files(&self, place: &Place) -> TlsFiles {
        TlsFiles {
            certificate: place.put("server.crt", &self.certificate),
            key: place.put("server.key", &self.key),
            ..Default::default()
        }
    }
}

/// A revocation list: what is revoked, and the year until which it is in force.
pub(super) fn list(issuer: &Authority, serials: &[u64], since: i32, until: i32) -> String {
    let revoked_certs = serials.iter().map(|serial| rcgen::RevokedCertParams {
        serial_number: (*serial).into(),
        revocation_time: rcgen::date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let params = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(since, 1, 1),
        next_update: rcgen::date_time_ymd(until, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().pem().unwrap()
}

/// A server with a certificate of `root`, which also stands for its clients unless there is another setting.
pub(super) struct Scene {
    pub(super) place: Place,
    pub(super) root: Authority,
    pub(super) server: Pair,
    pub(super) files: TlsFiles,
}

impl Scene {
    pub(super) fn new() -> Self {
        let (place, root) = (Place::new(), root("root"));
        let server = Pair::issued("server", 1, &root);
        let files = server.files(&place);
        Self { place, root, server, files }
    }

    pub(super) fn with_clients() -> Self {
        let mut scene = Self::new();
        scene.files.authorities = scene.place.put("root.crt", &scene.root.pem());
        scene
    }

    pub(super) fn client(&self) -> Client {
        Client::trusting(self.root.der())
    }
}

/// How a client connects.
pub(super) struct Client {
    pub(super) roots: RootCertStore,
    pub(super) versions: Vec<&'static tokio_rustls::rustls::SupportedProtocolVersion>,
    pub(super) alpn: Vec<Vec<u8>>,
    pub(super) with: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

pub(super) type ClientStream = tokio_rustls::client::TlsStream<DuplexStream>;

impl Client {
    pub(super) fn trusting(root: &CertificateDer<'static>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        Self { roots, versions: vec![&version::TLS13, &version::TLS12], alpn: Vec::new(), with: None }
    }

    pub(super) fn with(mut self, pair: &Pair, chain: &[&Authority]) -> Self {
        let mut certificates = vec![pair.der()];
        certificates.extend(chain.iter().map(|authority| authority.der().clone()));
        self.with = Some((certificates, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()));
        self
    }

    pub(super) fn config(self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(self.roots);
        let mut config = match self.with {
            Some((certificates, key)) => builder.with_client_auth_cert(certificates, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn;
        config
    }

    /// Both ends of a handshake; the client's error when the server is content.
    pub(super) async fn meet(
        self,
        identity: &Identity,
    ) -> Result<(TlsStream<DuplexStream>, ClientStream), String> {
        let (ours, theirs) = duplex(64 * 1024);
        let connector = TlsConnector::from(Arc::new(self.config()));
        let client = connector.connect(ServerName::try_from("localhost").unwrap(), theirs);
        let (server, client) = tokio::join!(identity.accept(ours), client);
        Ok((server.map_err(|e| e.to_string())?, client.map_err(|e| format!("client: {e}"))?))
    }
}

/// What the server makes of a client's certificate.
pub(super) async fn verdict(files: &TlsFiles, client: Client) -> Result<Option<PeerCertificate>, String> {
    let identity = Identity::load(files).map_err(|e| e.to_string())?;
    let (server, _client) = client.meet(&identity).await?;
    PeerCertificate::of(&server).map_err(|e| e.to_string())
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
