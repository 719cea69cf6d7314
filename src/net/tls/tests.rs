//! Handshakes with certificates made on the spot; what openssl alone can make stands in `fixtures/`.

mod pump;
mod scene;

use self::scene::*;
use super::peer::PeerCertificate;
use super::pump::{Pumped, pump};
use super::{ALPN, Error, Identity, TlsStream, names_postgresql};
use crate::settings::TlsFiles;
use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore, version};

const PATIENCE: Duration = Duration::from_secs(5);
const LONG: usize = 3_000_000;

#[tokio::test]
async fn client_and_server_speak_without_tickets() {
    let scene = Scene::new();
    let identity = Identity::load(&scene.files).unwrap();
    let (mut server, mut client) = scene.client().meet(&identity).await.unwrap();
    server.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
    assert!(!names_postgresql(&server));
    assert_eq!(PeerCertificate::of(&server).unwrap(), None);
}

#[tokio::test]
async fn the_settings_bound_the_versions() {
    let mut scene = Scene::new();
    let met = async |files: &TlsFiles, offered| {
        let identity = Identity::load(files).unwrap();
        let mut client = scene.client();
        client.versions = offered;
        let (server, _client) = client.meet(&identity).await.ok()?;
        server.get_ref().1.protocol_version()
    };
    let (both, old, new) =
        (vec![&version::TLS12, &version::TLS13], vec![&version::TLS12], vec![&version::TLS13]);
    assert_eq!(met(&scene.files, both.clone()).await, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(met(&scene.files, old.clone()).await, Some(ProtocolVersion::TLSv1_2));
    let only_1_3 = TlsFiles { only_1_3: true, ..scene.files.clone() };
    assert_eq!(met(&only_1_3, old).await, None);
    assert_eq!(met(&only_1_3, both.clone()).await, Some(ProtocolVersion::TLSv1_3));
    let only_1_2 = TlsFiles { only_1_2: true, ..scene.files.clone() };
    assert_eq!(met(&only_1_2, new).await, None);
    assert_eq!(met(&only_1_2, both).await, Some(ProtocolVersion::TLSv1_2));
    (scene.files.only_1_2, scene.files.only_1_3) = (true, true);
    assert!(matches!(Identity::load(&scene.files), Err(Error::VersionRange)));
}

#[tokio::test]
async fn a_client_that_names_a_protocol_must_name_postgresql() {
    let scene = Scene::new();
    let identity = Identity::load(&scene.files).unwrap();
    let mut client = scene.client();
    client.alpn = vec![b"h2".to_vec(), ALPN.to_vec()];
    assert!(names_postgresql(&client.meet(&identity).await.unwrap().0));
    let mut client = scene.client();
    client.alpn = vec![b"h2".to_vec()];
    assert!(client.meet(&identity).await.is_err());
}

#[tokio::test]
async fn a_clients_certificate_may_be_absent_and_must_be_good() {
    let scene = Scene::with_clients();
    assert_eq!(verdict(&scene.files, scene.client()).await, Ok(None));

    let alice = Pair::issued("alice", 2, &scene.root);
    for offered in [&version::TLS12, &version::TLS13] {
        let mut client = scene.client().with(&alice, &[]);
        client.versions = vec![offered];
        let peer = verdict(&scene.files, client).await.unwrap().unwrap();
        assert_eq!(peer.common_name.as_deref(), Some(&b"alice"[..]));
        assert_eq!(peer.distinguished_name, "CN=alice");
    }

    let stranger = Pair::issued("alice", 2, &root("another"));
    let refusal = verdict(&scene.files, scene.client().with(&stranger, &[])).await.unwrap_err();
    assert!(refusal.contains("UnknownIssuer"), "{refusal}");
    let impostor = Pair::issued("alice", 2, &root("root"));
    let refusal = verdict(&scene.files, scene.client().with(&impostor, &[])).await.unwrap_err();
    assert!(refusal.starts_with("could not accept SSL connection: "), "{refusal}");

    let mut late = named("alice");
    late.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = late.signed_by(&key, &scene.root).unwrap().pem();
    let late = Pair { certificate, key: key.serialize_pem() };
    let refusal = verdict(&scene.files, scene.client().with(&late, &[])).await.unwrap_err();
    assert!(refusal.contains("xpired"), "{refusal}");
}

#[tokio::test]
async fn without_authorities_no_certificate_is_asked_for() {
    let scene = Scene::new();
    let alice = Pair::issued("alice", 2, &scene.root);
    assert_eq!(verdict(&scene.files, scene.client().with(&alice, &[])).await, Ok(None));
}

#[tokio::test]
async fn a_chain_ends_at_a_root_and_not_at_an_intermediate() {
    let mut scene = Scene::new();
    let middle = below("middle", &scene.root);
    let alice = Pair::issued("alice", 2, &middle);

    scene.files.authorities = scene.place.put("ca.crt", &scene.root.pem());
    assert!(verdict(&scene.files, scene.client().with(&alice, &[])).await.is_err());
    assert!(verdict(&scene.files, scene.client().with(&alice, &[&middle])).await.is_ok());
    scene.files.authorities = scene.place.put("ca.crt", &(scene.root.pem() + &middle.pem()));
    assert!(verdict(&scene.files, scene.client().with(&alice, &[])).await.is_ok());
    scene.files.authorities = scene.place.put("ca.crt", &middle.pem());
    let refusal = verdict(&scene.files, scene.client().with(&alice, &[])).await.unwrap_err();
    assert!(refusal.contains("UnknownIssuer"), "{refusal}");
    assert_eq!(verdict(&scene.files, scene.client()).await, Ok(None));
}

#[tokio::test]
async fn a_root_that_has_expired_vouches_for_nobody() {
    let mut scene = Scene::new();
    let mut params = authority_params("old");
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let old = Authority::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let (alice, bob) = (Pair::issued("alice", 2, &old), Pair::issued("bob", 2, &scene.root));
    scene.files.authorities = scene.place.put("ca.crt", &old.pem());
    let refusal = verdict(&scene.files, scene.client().with(&alice, &[])).await.unwrap_err();
    assert!(refusal.contains("xpired"), "{refusal}");
    scene.files.authorities = scene.place.put("ca.crt", &(old.pem() + &scene.root.pem()));
    assert!(verdict(&scene.files, scene.client().with(&alice, &[])).await.is_err());
    assert!(verdict(&scene.files, scene.client().with(&bob, &[])).await.is_ok());
}

#[test]
fn roots_come_and_go_with_time() {
    let mut params = authority_params("root");
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2030, 1, 1), rcgen::date_time_ymd(2031, 1, 1));
    let root = Authority::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let bytes = root.pem().into_bytes().into();
    let part = super::Part { setting: "ssl_ca_file", path: String::new(), bytes };
    let verifier = super::clients::Authorities::parse(&part).unwrap();
    let verifier = verifier.verifier(None, &Arc::new(ring::default_provider())).unwrap();
    let alice = Pair::issued("alice", 2, &root).der();
    let (begin, end) = (1_893_456_000, 1_924_992_000);
    for (second, is_good) in
        [(begin - 1, false), (begin, true), (end, true), (end + 1, false), (begin, true), (begin - 1, false)]
    {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(second));
        assert_eq!(verifier.verify_client_cert(&alice, &[], now).is_ok(), is_good, "{second}");
    }
}

#[tokio::test]
async fn what_is_revoked_anywhere_in_the_chain_is_refused() {
    let mut scene = Scene::with_clients();
    let middle_params = {
        let mut params = authority_params("middle");
        params.serial_number = Some(70.into());
        params
    };
    let middle = Authority::signed_by(middle_params, KeyPair::generate().unwrap(), &scene.root).unwrap();
    let (alice, bob) = (Pair::issued("alice", 2, &scene.root), Pair::issued("bob", 3, &scene.root));
    let carol = Pair::issued("carol", 4, &middle);
    scene.files.authorities = scene.place.put("ca.crt", &(scene.root.pem() + &middle.pem()));

    scene.files.revocations = scene.place.put("some.crl", &list(&scene.root, &[3], 2020, 2090));
    assert!(verdict(&scene.files, scene.client().with(&alice, &[])).await.is_ok());
    let refusal = verdict(&scene.files, scene.client().with(&bob, &[])).await.unwrap_err();
    assert!(refusal.contains("Revoked"), "{refusal}");
    assert_eq!(verdict(&scene.files, scene.client()).await, Ok(None));

    let refusal = verdict(&scene.files, scene.client().with(&carol, &[])).await.unwrap_err();
    assert!(refusal.contains("UnknownRevocationStatus"), "no list of middle's: {refusal}");
    let both = list(&scene.root, &[], 2020, 2090) + &list(&middle, &[], 2020, 2090);
    scene.files.revocations = scene.place.put("some.crl", &both);
    assert!(verdict(&scene.files, scene.client().with(&carol, &[])).await.is_ok());
    let both = list(&scene.root, &[70], 2020, 2090) + &list(&middle, &[], 2020, 2090);
    scene.files.revocations = scene.place.put("some.crl", &both);
    let refusal = verdict(&scene.files, scene.client().with(&carol, &[])).await.unwrap_err();
    assert!(refusal.contains("Revoked"), "middle is: {refusal}");

    scene.files.revocations = scene.place.put("some.crl", &list(&scene.root, &[], 2019, 2020));
    let refusal = verdict(&scene.files, scene.client().with(&alice, &[])).await.unwrap_err();
    assert!(refusal.contains("xpired"), "{refusal}");
}

#[tokio::test]
async fn a_directory_of_lists_is_read_and_the_latest_list_counts() {
    let mut scene = Scene::with_clients();
    let directory = scene.place.0.join("lists");
    std::fs::create_dir(&directory).unwrap();
    scene.files.revocation_directory = directory.to_str().unwrap().to_owned();
    let alice = Pair::issued("alice", 2, &scene.root);
    let verdict = async || verdict(&scene.files, scene.client().with(&alice, &[])).await;

    let refusal = verdict().await.unwrap_err();
    assert!(refusal.contains("UnknownRevocationStatus"), "{refusal}");
    scene.place.put("lists/root.crl", &list(&scene.root, &[], 2020, 2090));
    assert!(verdict().await.is_err(), "not a name that is looked for");
    scene.place.put("lists/0a1b2c3d.r0", &list(&scene.root, &[], 2020, 2090));
    assert!(verdict().await.is_ok());
    let identity = Identity::load(&scene.files).unwrap();
    scene.place.put("lists/0a1b2c3d.r1", &list(&scene.root, &[2], 2021, 2090));
    assert!(identity.changed(&scene.files));
    let refusal = verdict().await.unwrap_err();
    assert!(refusal.contains("Revoked"), "{refusal}");
}

#[tokio::test]
async fn a_lone_certificate_is_completed_from_the_authorities() {
    let (place, root) = (Place::new(), root("root"));
    let middle = below("middle", &root);
    let server = Pair::issued("server", 1, &middle);
    let mut files = server.files(&place);
    let identity = Identity::load(&files).unwrap();
    assert!(Client::trusting(root.der()).meet(&identity).await.is_err());
    files.authorities = place.put("ca.crt", &(middle.pem() + &root.pem()));
    let identity = Identity::load(&files).unwrap();
    let (_, client) = Client::trusting(root.der()).meet(&identity).await.unwrap();
    assert_eq!(client.get_ref().1.peer_certificates().unwrap(), [server.der(), middle.der().clone()]);

    files.authorities.clear();
    files.certificate = place.put("chain.crt", &(server.certificate.clone() + &middle.pem()));
    let identity = Identity::load(&files).unwrap();
    assert!(Client::trusting(root.der()).meet(&identity).await.is_ok());
}

#[test]
fn the_binding_is_the_hash_of_the_certificates_signature() {
    let place = Place::new();
    let hash_of = |algorithm| {
        let root = Authority::self_signed(authority_params("r"), KeyPair::generate_for(algorithm).unwrap());
        let server = Pair::issued("server", 1, &root.unwrap());
        let identity = Identity::load(&server.files(&place)).unwrap();
        (identity.binding().map(<[u8]>::to_vec), server.der())
    };
    let (hash, der) = hash_of(&rcgen::PKCS_ECDSA_P256_SHA256);
    assert_eq!(hash, Some(Sha256::digest(&der).to_vec()));
    let (hash, der) = hash_of(&rcgen::PKCS_ECDSA_P384_SHA384);
    assert_eq!(hash, Some(Sha384::digest(&der).to_vec()));
    assert_eq!(hash_of(&rcgen::PKCS_ED25519).0, None);

    for (text, hash_of) in [
        (include_str!("fixtures/ec_sha1.crt"), (|der| Sha256::digest(der).to_vec()) as fn(&[u8]) -> Vec<u8>),
        (include_str!("fixtures/rsa_sha1_v1.crt"), |der| Sha256::digest(der).to_vec()),
        (include_str!("fixtures/rsa_pss_sha512.crt"), |der| Sha512::digest(der).to_vec()),
    ] {
        let der = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        let part = super::Part { setting: "", path: String::new(), bytes: Default::default() };
        assert_eq!(super::binding(&part, &der).unwrap(), Some(hash_of(&der)));
    }
}

#[test]
fn keys_are_read_in_each_of_their_forms() {
    let mut scene = Scene::new();
    // PKCS#8 wraps the older form in an OCTET STRING, at the end of what ring writes.
    let pkcs8 = PrivateKeyDer::from_pem_slice(scene.server.key.as_bytes()).unwrap();
    let (_, info) = x509_parser::der_parser::parse_der(pkcs8.secret_der()).unwrap();
    let sec1 = info.as_sequence().unwrap()[2].as_slice().unwrap();
    let parameters = pem("EC PARAMETERS", b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07");
    scene.files.key = scene.place.put("sec1.key", &(parameters + &pem("EC PRIVATE KEY", sec1)));
    Identity::load(&scene.files).unwrap();

    scene.files.certificate = scene.place.put("rsa.crt", include_str!("fixtures/rsa_sha1_v1.crt"));
    scene.files.key = scene.place.put("rsa.key", include_str!("fixtures/rsa_pkcs1.key"));
    Identity::load(&scene.files).unwrap();
}

#[test]
fn errors_name_the_setting_and_the_file() {
    let scene = Scene::with_clients();
    let refusal = |change: &dyn Fn(&mut TlsFiles)| {
        let mut files = scene.files.clone();
        change(&mut files);
        Identity::load(&files).unwrap_err().to_string()
    };
    let put = |text: &str| scene.place.put("wrong", text);
    let wrong = scene.place.0.join("wrong").to_str().unwrap().to_owned();
    let missing = || "/nowhere/x".to_owned();

    let text = refusal(&|files| files.certificate = missing());
    assert!(text.starts_with("could not read ssl_cert_file \"/nowhere/x\": No such file"), "{text}");
    let text = refusal(&|files| files.key = missing());
    assert!(text.starts_with("could not read ssl_key_file \"/nowhere/x\": No such file"), "{text}");
    let text = refusal(&|files| files.authorities = missing());
    assert!(text.starts_with("could not read ssl_ca_file \"/nowhere/x\": No such file"), "{text}");
    let text = refusal(&|files| files.revocations = missing());
    assert!(text.starts_with("could not read ssl_crl_file \"/nowhere/x\": No such file"), "{text}");
    let text = refusal(&|files| files.revocation_directory = missing());
    assert!(text.starts_with("could not read ssl_crl_dir \"/nowhere/x\": No such file"), "{text}");
    let text = refusal(&|files| files.certificate = "/dev/null".into());
    assert_eq!(text, "could not read ssl_cert_file \"/dev/null\": it is not a regular file");

    let text = refusal(&|files| files.certificate = put("nothing"));
    assert_eq!(text, format!("could not load ssl_cert_file \"{wrong}\": it holds no certificate"));
    let text = refusal(&|files| files.certificate = put(&pem("CERTIFICATE", b"nothing")));
    assert!(text.starts_with(&format!("could not load ssl_cert_file \"{wrong}\": ")), "{text}");
    let text = refusal(&|files| files.authorities = put(&pem("CERTIFICATE", b"nothing")));
    assert!(text.starts_with(&format!("could not load ssl_ca_file \"{wrong}\": ")), "{text}");
    let text = refusal(&|files| files.revocations = put(&pem("X509 CRL", b"nothing")));
    assert!(text.starts_with(&format!("could not load ssl_crl_file \"{wrong}\": ")), "{text}");
    let text = refusal(&|files| files.revocations = put(""));
    assert_eq!(text, format!("could not load ssl_crl_file \"{wrong}\": it holds no revocation list"));
    let text = refusal(&|files| files.key = put("nothing"));
    assert!(text.starts_with(&format!("could not load ssl_key_file \"{wrong}\": ")), "{text}");
    let text = refusal(&|files| files.key = put(&KeyPair::generate().unwrap().serialize_pem()));
    assert!(text.contains("ssl_key_file") && text.contains("does not belong"), "{text}");

    let pkcs8 = pem("ENCRYPTED PRIVATE KEY", b"secret");
    let pkcs1 = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n\
                 -----END RSA PRIVATE KEY-----\n";
    for key in [&pkcs8[..], pkcs1] {
        let text = refusal(&|files| files.key = put(key));
        assert!(text.contains(&wrong), "{text}");
        assert!(text.contains("ssl_key_file") && text.contains("ssl_passphrase_command"), "{text}");
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let scene = Scene::new();
    let permit = |mode| {
        std::fs::set_permissions(&scene.files.key, std::fs::Permissions::from_mode(mode)).unwrap();
        Identity::load(&scene.files).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(permit(0o600), Ok(()));
    let text = permit(0o644).unwrap_err();
    assert!(text.contains("ssl_key_file") && text.contains("group or world access"), "{text}");
    // Root's key may be read by a group that the server is in.
    assert_eq!(permit(0o640).is_ok(), rustix::process::geteuid().is_root());
}

#[test]
fn a_reload_changes_something_only_when_something_has_changed() {
    let mut scene = Scene::with_clients();
    let identity = Identity::load(&scene.files).unwrap();
    assert!(!identity.changed(&scene.files));
    let again = std::fs::read_to_string(&scene.files.certificate).unwrap();
    scene.place.put("server.crt", &again);
    assert!(!identity.changed(&scene.files), "written anew with the same content");
    assert!(identity.changed(&TlsFiles { only_1_3: true, ..scene.files.clone() }));

    let renewed = Pair::issued("server", 9, &scene.root);
    renewed.files(&scene.place);
    assert!(identity.changed(&scene.files));
    let renewed = Identity::load(&scene.files).unwrap();
    assert!(!renewed.changed(&scene.files));
    assert_ne!(identity.binding(), renewed.binding());
    scene.place.put("root.crt", &root("another").pem());
    assert!(renewed.changed(&scene.files));
    scene.files.key = "/nowhere".into();
    assert!(renewed.changed(&scene.files), "so that loading says why");
}

#[test]
fn subjects_are_spelled_as_openssl_spells_them() {
    // The expected texts are what `openssl x509 -subject -nameopt RFC2253` (3.0) prints.
    let peer = |text: &str| {
        PeerCertificate::from_der(&CertificateDer::from_pem_slice(text.as_bytes()).unwrap()).unwrap()
    };
    let utf8 = peer(include_str!("fixtures/names.crt"));
    assert_eq!(
        utf8.distinguished_name,
        r#"CN=second,CN=\ first\ ,1.3.6.1.4.1.55555.1=#1308616E797468696E67,emailAddress=a@example.org,street=#,L=\ ,UID=u1+OU=\#first,O=M\C3\BCller\, S\C3\B6hne \+ \"Co\" \<\\\>\; #x=y,DC=example,C=DE"#
    );
    assert_eq!(utf8.common_name.as_deref(), Some(&b" first "[..]));
    let t61 = peer(include_str!("fixtures/names_t61.crt"));
    assert_eq!(
        t61.distinguished_name,
        r#"CN=second,CN=\ first\ ,1.3.6.1.4.1.55555.1=#1408616E797468696E67,street=#,L=\ ,UID=u1+OU=\#first,O=M\C3\BCller\, S\C3\B6hne \+ \"Co\" \<\\\>\; #x=y,postalCode=1"#
    );
    let bmp = peer(include_str!("fixtures/names_bmp.crt"));
    assert_eq!(
        bmp.distinguished_name,
        r#"1.3.6.1.4.1.55555.1=#1E100061006E0079007400680069006E0067,street=#,L=\ ,OU=\#first+UID=u1,O=M\C3\BCller\, S\C3\B6hne \+ \"Co\" \<\\\>\; #x=y,postalCode=1"#
    );
    assert_eq!(bmp.common_name, None);
}

#[tokio::test]
async fn a_common_name_with_a_null_in_it_is_refused() {
    let scene = Scene::with_clients();
    let admin = Pair::issued("admin\0.example.org", 2, &scene.root);
    let refusal = verdict(&scene.files, scene.client().with(&admin, &[])).await.unwrap_err();
    assert_eq!(refusal, "SSL certificate's common name contains embedded null");
}
