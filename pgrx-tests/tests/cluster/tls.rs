//! TLS at the pooler's port, with libpq's own client: the server's certificate, channel binding, client certificates, reload.

use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::{machine, wait};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A cluster with a certificate of an authority of its own, which also signs clients'.
pub struct Secured {
    pub cluster: Cluster,
    directory: PathBuf,
}

impl Secured {
    pub fn start(name: &str) -> Result<Self> {
        let cluster = Cluster::new(name)?;
        let directory = cluster.data().join("certificates");
        std::fs::create_dir(&directory)?;
        authority(&directory, "ca")?;
        signed(&directory, "ca", "server", "localhost")?;
        for (setting, file) in
            [("ssl_ca_file", "ca.crt"), ("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key")]
        {
            cluster.set(setting, &directory.join(file).to_string_lossy())?;
        }
        cluster.set("ssl", "on")?;
        cluster.set("password_encryption", "scram-sha-256")?;
        let cluster = cluster.start()?;
        cluster.sql("CREATE ROLE app LOGIN PASSWORD 'app'; CREATE ROLE certified LOGIN")?;
        Ok(Self { cluster, directory })
    }

    /// What psql prints or says, through the pooler's port.
    fn psql(&self, role: &str, options: &str, sql: &str) -> Result<(bool, String)> {
        let connection = format!(
            "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user={role} connect_timeout=10 {options}",
            self.cluster.pooler_port
        );
        let mut psql = self.cluster.program("psql");
        psql.env("HOME", "/nonexistent").env("PGPASSWORD", "app").args([
            "-X",
            "-At",
            "-d",
            &connection,
            "-c",
            sql,
        ]);
        let output = psql.output().context("psql")?;
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).trim().to_owned()))
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }
}

/// A self-signed authority.
fn authority(directory: &Path, name: &str) -> Result<()> {
    let subject = format!("/CN={name}");
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    openssl(
        directory,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            &subject,
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
    )
}

/// A certificate for a name, signed by an authority.
fn signed(directory: &Path, by: &str, name: &str, common_name: &str) -> Result<()> {
    let subject = format!("/CN={common_name}");
    let extensions = format!("{name}.ext");
    std::fs::write(directory.join(&extensions), format!("subjectAltName=DNS:{common_name}\n"))?;
    let [key, request, certificate] = ["key", "csr", "crt"].map(|kind| format!("{name}.{kind}"));
    let (ca, ca_key) = (format!("{by}.crt"), format!("{by}.key"));
    openssl(
        directory,
        &["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out", &request],
    )?;
    openssl(
        directory,
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ],
    )?;
    for file in std::fs::read_dir(directory)? {
        machine::give_to_server_user(&file?.path())?;
    }
    Ok(())
}

fn openssl(directory: &Path, arguments: &[&str]) -> Result<()> {
    let output =
        Command::new("openssl").args(arguments).current_dir(directory).output().context("openssl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    machine::give_to_server_user(directory)?;
    Ok(())
}

#[test]
fn a_client_has_the_servers_certificate_and_binds_its_password_to_it() -> Result<()> {
    let secured = Secured::start("tls")?;
    secured.cluster.set_hba(
        "local all all trust\nhostssl all app all scram-sha-256\nhostnossl all app all reject\nhost all all all trust\n",
    )?;
    secured.cluster.reload()?;
    let root = secured.file("ca.crt");
    let full = format!("sslmode=verify-full sslrootcert={root} channel_binding=require");
    wait::until("the role gets in over TLS only", || {
        secured.psql("app", "sslmode=disable", "SELECT 1").is_ok_and(|(ok, _)| !ok)
    })?;
    let (ok, text) = secured.psql("app", &full, "SELECT current_user, inet_client_addr()")?;
    ensure!(ok && text == "app|127.0.0.1", "{text}");
    let (ok, text) = secured.psql("app", "sslmode=disable", "SELECT 1")?;
    ensure!(
        !ok && text.contains("pg_hba.conf rejects connection for host \"127.0.0.1\", user \"app\""),
        "{text}"
    );
    ensure!(text.contains("no encryption"), "{text}");
    // A row that is larger than any buffer on the way.
    let (ok, text) =
        secured.psql("app", &full, "SELECT length(repeat('x', 20000000)), repeat('y', 3000000)")?;
    ensure!(ok && text.len() > 3_000_000 && text.starts_with("20000000|yyy"), "{} bytes", text.len());
    Ok(())
}

#[test]
fn a_client_certificate_is_the_role_by_the_servers_maps() -> Result<()> {
    let secured = Secured::start("tls-cert")?;
    signed(&secured.directory, "ca", "client", "certified")?;
    signed(&secured.directory, "ca", "other", "somebody")?;
    authority(&secured.directory, "foreign")?;
    signed(&secured.directory, "foreign", "stranger", "certified")?;
    std::fs::write(secured.cluster.data().join("pg_ident.conf"), "people somebody certified\n")?;
    secured
        .cluster
        .set_hba("local all all trust\nhostssl postgres certified all cert\nhost all all all trust\n")?;
    secured.cluster.reload()?;
    let with = |name: &str| {
        let (certificate, key) = (secured.file(&format!("{name}.crt")), secured.file(&format!("{name}.key")));
        // Owned by whoever runs psql.
        secured.psql(
            "certified",
            &format!("sslmode=require sslcert={certificate} sslkey={key}"),
            "SELECT current_user",
        )
    };
    for key in ["client.key", "other.key", "stranger.key"] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(secured.directory.join(key), std::fs::Permissions::from_mode(0o600))?;
    }
    wait::until("its own certificate lets the role in", || {
        with("client").is_ok_and(|(ok, text)| ok && text == "certified")
    })?;
    let (ok, text) = with("other")?;
    ensure!(!ok && text.contains("certificate authentication failed for user \"certified\""), "{text}");
    let (ok, text) = with("stranger")?;
    ensure!(!ok, "a foreign authority's certificate: {text}");
    let (ok, text) = secured.psql("certified", "sslmode=require sslcert=/nonexistent", "SELECT 1")?;
    ensure!(!ok && text.contains("connection requires a valid client certificate"), "{text}");
    secured.cluster.set_hba(
        "local all all trust\nhostssl postgres certified all cert map=people\nhost all all all trust\n",
    )?;
    secured.cluster.reload()?;
    wait::until("the map lets somebody be the role", || {
        with("other").is_ok_and(|(ok, text)| ok && text == "certified")
    })
}

#[test]
fn a_reload_swaps_the_certificate_and_keeps_clients() -> Result<()> {
    let secured = Secured::start("tls-reload")?;
    secured.cluster.set_hba("local all all trust\nhost all all all trust\n")?;
    secured.cluster.reload()?;
    authority(&secured.directory, "next")?;
    let by = |ca: &str| {
        let root = secured.file(&format!("{ca}.crt"));
        secured
            .psql("app", &format!("sslmode=verify-full sslrootcert={root}"), "SELECT 1")
            .is_ok_and(|(ok, _)| ok)
    };
    ensure!(by("ca") && !by("next"), "before the reload");
    signed(&secured.directory, "next", "server", "localhost")?;
    secured.cluster.reload()?;
    wait::until("the new certificate is shown", || by("next") && !by("ca"))?;
    std::fs::write(secured.directory.join("server.crt"), "no certificate")?;
    secured.cluster.reload()?;
    secured.cluster.wait_log("the pooler's TLS settings were not loaded")?;
    ensure!(by("next"), "a mistake leaves the one of before in force");
    Ok(())
}
