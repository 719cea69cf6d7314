//! The broker's listener that wants TLS and a login by SASL: PLAIN or SCRAM. Runs in test and benchmark programs.

use super::Broker;
use crate::certificate::Certificate;
use crate::ports;
use anyhow::Result;
use std::fs;
use std::path::PathBuf;

/// What a client of the secured listener (`SASL_SSL`) needs to know. The mechanisms are `PLAIN`, `SCRAM-SHA-256` and
/// `SCRAM-SHA-512`. Clients on librdkafka before 2.6.1, Debian 12's kcat among them, can do PLAIN only: in SCRAM they repeat the
/// nonce, which Kafka 4 refuses as wrong credentials.
#[derive(Debug, Clone)]
pub struct Secured {
    /// `localhost:port`; the certificate is for localhost and 127.0.0.1.
    pub address: String,
    /// The certificate of the authority that has signed the broker's, in PEM, for the server user to read.
    pub authority: PathBuf,
    pub user: String,
    pub password: String,
}

/// The user of every secured listener.
pub(super) const USER: &str = "postern";
pub(super) const PASSWORD: &str = "through-the-gate";

/// The mechanisms that [`USER`] has a secret for in a formatted directory.
pub(super) const SCRAM: [&str; 2] = ["SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Adds the listener to a broker that has not been started.
pub(super) fn prepare(broker: &Broker) -> Result<Secured> {
    let port = ports::free()?;
    let authority = Certificate::authority(broker.path(), "authority")?;
    let own = Certificate::issued(broker.path(), &authority)?;
    // Kafka wants key and certificate in one file.
    let store = fs::read_to_string(&own.key)? + &fs::read_to_string(&own.certificate)?;
    let store = broker.write("server.pem", &store)?;
    let login = "org.apache.kafka.common.security";
    let mut settings = format!(
        "ssl.keystore.type=PEM\nssl.keystore.location={}\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
         listener.name.secured.plain.sasl.jaas.config=\
         {login}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n",
        store.display()
    );
    for mechanism in SCRAM {
        settings += &format!(
            "listener.name.secured.{}.sasl.jaas.config={login}.scram.ScramLoginModule required;\n",
            mechanism.to_lowercase()
        );
    }
    let (also, told) = (format!(",SECURED://127.0.0.1:{port}"), format!(",SECURED://localhost:{port}"));
    // Of a setting that is there twice, the last one counts.
    settings += &broker.listeners(&also, &told);
    broker.write("server.properties", &settings)?;
    Ok(Secured {
        address: format!("localhost:{port}"),
        authority: authority.certificate,
        user: USER.to_owned(),
        password: PASSWORD.to_owned(),
    })
}
