//! TLS at the pooler's port, with libpq's own client and openssl's: the server's certificate, channel binding, client certificates,
//! revocation, versions, TLS from the first byte, reload, the front's end.

use crate::raw::Raw;
use anyhow::{Context, Result, ensure};
use pgrx_tests::certificate::Certificate;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::Target;
use pgrx_tests::script::frontend::Message;
use pgrx_tests::{installation, lacking, machine, process, wait};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A cluster with a certificate of an authority of its own, which also signs clients'.
pub struct Secured {
    pub cluster: Cluster,
    pub directory: PathBuf,
}

impl Secured {
    pub fn start(name: &str) -> Result<Self> {
        Self::with(name, &[])
    }

    /// With settings of one's own.
    pub fn with(name: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let cluster = Cluster::new(name)?;
        for (setting, value) in settings {
            cluster.set(setting, value)?;
        }
        let directory = cluster.data().join("certificates");
        std::fs::create_dir(&directory)?;
        Certificate::authority(&directory, "ca")?;
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
    pub fn psql(&self, role: &str, options: &str, sql: &str) -> Result<(bool, String)> {
        self.psql_at(self.cluster.pooler_port, role, options, sql)
    }

    fn psql_at(&self, port: u16, role: &str, options: &str, sql: &str) -> Result<(bool, String)> {
        let connection = format!(
            "host=localhost hostaddr=127.0.0.1 port={port} dbname=postgres user={role} connect_timeout=10 {options}",
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

    /// psql's options with which a client shows a certificate; libpq refuses a key that others may read.
    fn showing(&self, name: &str) -> Result<String> {
        let [certificate, key] = ["crt", "key"].map(|kind| self.file(&format!("{name}.{kind}")));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
        Ok(format!("sslmode=require sslcert={certificate} sslkey={key}"))
    }

    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }
}

/// A certificate for a name, signed by an authority.
pub fn signed(directory: &Path, by: &str, name: &str, common_name: &str) -> Result<()> {
    signed_for(directory, by, name, common_name, "")
}

/// With more behind the common name in its subject.
fn signed_for(directory: &Path, by: &str, name: &str, common_name: &str, more: &str) -> Result<()> {
    let subject = format!("/CN={common_name}{more}");
    let extensions = format!("{name}.ext");
    std::fs::write(directory.join(&extensions), format!("subjectAltName=DNS:{common_name}\n"))?;
    let [key, request, certificate] = ["key", "csr", "crt"].map(|kind| format!("{name}.{kind}"));
    let (ca, ca_key) = (format!("{by}.crt"), format!("{by}.key"));
    openssl(
        directory,
        &[
            "req", "-utf8", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out",
            &request,
        ],
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
    if lacking::in_server("TLS") {
        return Ok(());
    }
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
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("tls-cert")?;
    signed(&secured.directory, "ca", "client", "certified")?;
    signed(&secured.directory, "ca", "other", "somebody")?;
    Certificate::authority(&secured.directory, "foreign")?;
    signed(&secured.directory, "foreign", "stranger", "certified")?;
    std::fs::write(secured.cluster.data().join("pg_ident.conf"), "people somebody certified\n")?;
    secured
        .cluster
        .set_hba("local all all trust\nhostssl postgres certified all cert\nhost all all all trust\n")?;
    secured.cluster.reload()?;
    let with = |name: &str| secured.psql("certified", &secured.showing(name)?, "SELECT current_user");
    wait::until("its own certificate lets the role in", || {
        with("client").is_ok_and(|(ok, text)| ok && text == "certified")
    })?;
    let (ok, text) = with("other")?;
    ensure!(!ok && text.contains("certificate authentication failed for user \"certified\""), "{text}");
    let (ok, text) = with("stranger")?;
    ensure!(!ok && text.contains("unknown ca"), "a foreign authority's certificate: {text}");
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
fn a_session_shows_the_tls_of_the_client_that_is_served() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("tls-shown")?;
    // One backend for all of a role's clients.
    secured.cluster.set("postern.pool_size", "1")?;
    let more = "/O=Müller \"\\+\", #1/OU= room /emailAddress=somebody@example.org";
    signed_for(&secured.directory, "ca", "client", "certified", more)?;
    secured.cluster.set_hba("local all all trust\nhost all all all trust\n")?;
    secured.cluster.reload()?;
    let with = secured.showing("client")?;
    let none = "sslcert=/nonexistent";
    let ways = [
        with.clone(),
        format!("{with} ssl_max_protocol_version=TLSv1.2"),
        "sslmode=disable".to_owned(),
        format!("sslmode=require {none}"),
        "sslmode=disable".to_owned(),
        with,
        format!("sslmode=require ssl_max_protocol_version=TLSv1.2 {none}"),
    ];
    let sql = "SELECT ssl, version, cipher, bits, client_dn, client_serial, issuer_dn, gss_authenticated, encrypted, usename \
               FROM pg_stat_ssl JOIN pg_stat_gssapi USING (pid) JOIN pg_stat_activity USING (pid) WHERE pid = pg_backend_pid()";
    let at = |port: u16, way: &str| {
        let (ok, text) = secured.psql_at(port, "certified", way, sql)?;
        ensure!(ok, "{way}: {text}");
        Ok(text)
    };
    for database in ["postgres", "latin"] {
        if database == "latin" {
            // What is not of the database's encoding is converted, as for a session of its own; from 18 on neither is.
            let sql = "CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'";
            secured.cluster.sql(sql)?;
        }
        for way in &ways {
            let way = format!("{way} dbname={database} client_encoding=UTF8");
            let direct = at(secured.cluster.port, &way)?;
            let pooled = at(secured.cluster.pooler_port, &way)?;
            ensure!(pooled == direct, "{way}: {pooled}, directly {direct}");
            let name =
                if database == "latin" && installation::major() >= 18 { "MÃ¼ller" } else { "Müller" };
            ensure!(way.contains("client.crt") == pooled.contains(name), "{way}: {pooled}");
            ensure!(pooled.starts_with('t') != way.contains("disable"), "{way}: {pooled}");
        }
    }
    Ok(())
}

#[test]
fn a_reload_swaps_the_certificate_and_keeps_clients() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("tls-reload")?;
    secured.cluster.set_hba("local all all trust\nhost all all all trust\n")?;
    secured.cluster.reload()?;
    Certificate::authority(&secured.directory, "next")?;
    let by = |ca: &str| {
        let root = secured.file(&format!("{ca}.crt"));
        secured
            .psql("app", &format!("sslmode=verify-full sslrootcert={root}"), "SELECT 1")
            .is_ok_and(|(ok, _)| ok)
    };
    ensure!(by("ca") && !by("next"), "before the reload");
    let mut kept = Raw::at(&Target::tls(secured.cluster.pooler_port, Path::new(&secured.file("ca.crt"))))?;
    kept.query("set application_name = 'kept'")?;
    signed(&secured.directory, "next", "server", "localhost")?;
    secured.cluster.reload()?;
    wait::until("the new certificate is shown", || by("next") && !by("ca"))?;
    let mut is_kept = || -> Result<bool> {
        let answer = kept.query("show application_name")?;
        Ok(answer.iter().any(|(tag, body)| *tag == b'D' && body.ends_with(b"kept")))
    };
    ensure!(is_kept()?, "the client of before has lost its session");
    std::fs::write(secured.directory.join("server.crt"), "no certificate")?;
    secured.cluster.reload()?;
    secured.cluster.wait_log("the pooler's TLS settings were not loaded")?;
    ensure!(by("next"), "a mistake leaves the one of before in force");
    ensure!(is_kept()?, "the client of before has lost its session");
    Ok(())
}

/// openssl's own client at a port, which sends what it is given and shows what it hears.
fn s_client(port: u16, options: &[&str]) -> Result<Child> {
    let mut client = Command::new("openssl");
    client.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{port}")]).args(options);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("openssl")
}

/// A startup packet and a query.
fn first_query(role: &str) -> Vec<u8> {
    let pairs = [("user", role), ("database", "postgres")];
    let pairs = pairs.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    let query = Message::query(b"select 'by ' || current_user || ' on ' || inet_client_addr()");
    [Message::startup((3, 0), &pairs).bytes, query.bytes].concat()
}

/// What such a client hears before the server closes, and what openssl says, for a query of `app` and a goodbye.
fn asks_once(port: u16, options: &[&str]) -> Result<(String, String)> {
    let mut client = s_client(port, options)?;
    // It ends at the end of its input, perhaps before it has heard all.
    let mut input = client.stdin.take().context("no input")?;
    let _ = input.write_all(&[first_query("app"), Message::terminate().bytes].concat());
    let output = client.wait_with_output()?;
    drop(input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', " ");
    Ok((text(&output.stdout), text(&output.stderr)))
}

#[test]
fn a_client_may_begin_with_tls_at_once_when_it_names_the_protocol() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("tls-direct")?;
    secured.cluster.set_hba("local all all trust\nhostssl all app all trust\nhost all all all reject\n")?;
    secured.cluster.reload()?;
    let port = secured.cluster.pooler_port;
    let root = secured.file("ca.crt");
    let verified = ["-CAfile", &root, "-verify_return_error", "-verify_hostname", "localhost"];
    let with = |more: &[&str]| asks_once(port, &[&verified, more].concat());
    wait::until("a direct client is served", || {
        with(&["-alpn", "postgresql"]).is_ok_and(|(heard, _)| heard.contains("by app on 127.0.0.1"))
    })?;
    // Several protocols, the server's among them; and after SSLRequest, where none has to be named.
    for how in [&["-alpn", "http/1.1,postgresql"][..], &["-starttls", "postgres"]] {
        let (heard, said) = with(how)?;
        ensure!(heard.contains("by app on 127.0.0.1"), "{how:?}: {heard} {said}");
    }
    // Without the name, or with another's, nobody gets in: the client could be one that was sent here by a trick (ALPACA).
    let (heard, _) = with(&[])?;
    ensure!(
        heard.contains("C08P01")
            && heard.contains("direct SSL connection request without ALPN protocol negotiation extension"),
        "{heard}"
    );
    let (heard, said) = with(&["-alpn", "http/1.1"])?;
    ensure!(heard.is_empty() && said.contains("no application protocol"), "{heard} {said}");
    // A server that has no TLS says nothing to it.
    secured.cluster.set("ssl", "off")?;
    secured.cluster.reload()?;
    wait::until("there is no TLS any more", || {
        with(&["-alpn", "postgresql"]).is_ok_and(|(heard, _)| !heard.contains("by app"))
    })?;
    let (heard, said) = with(&["-alpn", "postgresql"])?;
    // No alert of TLS's: the connection is closed, before or after all that openssl has to say was read.
    let closed = ["unexpected eof", "errno=104", "errno=0"].iter().any(|how| said.contains(how));
    ensure!(heard.is_empty() && closed, "{heard} {said}");
    // It was TLS that is gone, and nothing else.
    let (ok, said) = secured.psql("postgres", "sslmode=disable", "SELECT 'in'")?;
    ensure!(!ok && said.contains("pg_hba.conf rejects connection"), "{said}");
    Ok(())
}

#[test]
fn the_servers_settings_bound_the_versions_of_tls() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("tls-versions")?;
    secured.cluster.set_hba("local all all trust\nhostssl all app all trust\nhost all all all reject\n")?;
    secured.cluster.set("ssl_min_protocol_version", "TLSv1.3")?;
    secured.cluster.reload()?;
    let version = |at_most: &str, at_least: &str| {
        let options =
            format!("sslmode=require ssl_max_protocol_version={at_most} ssl_min_protocol_version={at_least}");
        secured.psql("app", &options, "SELECT 'in'")
    };
    wait::until("an older version is refused", || {
        version("TLSv1.2", "TLSv1.2").is_ok_and(|(ok, said)| !ok && said.contains("protocol version"))
    })?;
    let (ok, said) = version("TLSv1.3", "TLSv1.2")?;
    ensure!(ok && said == "in", "{said}");
    secured.cluster.set("ssl_min_protocol_version", "TLSv1.2")?;
    secured.cluster.set("ssl_max_protocol_version", "TLSv1.2")?;
    secured.cluster.reload()?;
    wait::until("the older version is taken", || {
        version("TLSv1.2", "TLSv1.2").is_ok_and(|(ok, said)| ok && said == "in")
    })?;
    let (ok, said) = version("TLSv1.3", "TLSv1.3")?;
    ensure!(!ok && said.contains("protocol version"), "{said}");
    Ok(())
}

#[test]
fn a_revoked_certificate_lets_nobody_in() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("tls-revoked")?;
    for name in ["good", "bad"] {
        signed(&secured.directory, "ca", name, "certified")?;
    }
    secured
        .cluster
        .set_hba("local all all trust\nhostssl all certified all cert\nhost all all all reject\n")?;
    secured.cluster.reload()?;
    let with = |name: &str| secured.psql("certified", &secured.showing(name)?, "SELECT 'in'");
    wait::until("both get in", || {
        ["good", "bad"].iter().all(|name| with(name).is_ok_and(|(ok, said)| ok && said == "in"))
    })?;
    let authority = "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\ncertificate = ca.crt\nprivate_key = ca.key\n\
                     default_md = sha256\ndefault_crl_days = 30\ncrlnumber = number.txt\n";
    std::fs::write(secured.directory.join("ca.conf"), authority)?;
    std::fs::write(secured.directory.join("index.txt"), "")?;
    // With a number, the list is of version 2, as RFC 5280 wants it.
    std::fs::write(secured.directory.join("number.txt"), "01\n")?;
    openssl(&secured.directory, &["ca", "-config", "ca.conf", "-revoke", "bad.crt"])?;
    openssl(&secured.directory, &["ca", "-config", "ca.conf", "-gencrl", "-out", "ca.crl"])?;
    machine::give_to_server_user(&secured.directory.join("ca.crl"))?;
    secured.cluster.set("ssl_crl_file", &secured.file("ca.crl"))?;
    secured.cluster.reload()?;
    wait::until("the revoked one is refused", || with("bad").is_ok_and(|(ok, _)| !ok))?;
    let (ok, said) = with("bad")?;
    ensure!(!ok && said.contains("revoked"), "{said}");
    let (ok, said) = with("good")?;
    ensure!(ok && said == "in", "{said}");
    Ok(())
}

#[test]
fn a_client_over_tls_hears_why_the_front_ends() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = Secured::start("tls-end")?;
    secured.cluster.set_hba("local all all trust\nhostssl all app all trust\nhost all all all reject\n")?;
    secured.cluster.reload()?;
    wait::until("a client gets in", || {
        secured.psql("app", "sslmode=require", "SELECT 1").is_ok_and(|(ok, _)| ok)
    })?;
    let mut idle = s_client(secured.cluster.pooler_port, &["-alpn", "postgresql"])?;
    idle.stdin.as_mut().context("no input")?.write_all(&first_query("app"))?;
    let mut heard = Vec::new();
    let mut output = idle.stdout.take().context("no output")?;
    while !heard.ends_with(b"Z\0\0\0\x05I") || !heard.windows(6).any(|text| text == b"by app") {
        let mut byte = [0];
        output.read_exact(&mut byte)?;
        heard.extend(byte);
    }
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| secured.psql("app", "sslmode=require", "SELECT pg_sleep(60)"));
        let count =
            "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND usename = 'app'";
        wait::until("it is being served", || secured.cluster.sql(count).is_ok_and(|count| count == "1"))?;
        process::signal_pid(secured.cluster.front_pid()?, rustix::process::Signal::TERM)?;
        let (ok, said) = busy.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(!ok && said.contains("terminating connection due to administrator command"), "{said}");
        anyhow::Ok(())
    })?;
    let mut last = Vec::new();
    output.read_to_end(&mut last)?;
    let last = String::from_utf8_lossy(&last).replace('\0', " ");
    ensure!(last.starts_with('E') && last.contains("C57P01"), "{last}");
    idle.wait()?;
    Ok(())
}

#[test]
fn a_libpq_that_begins_with_tls_at_once_is_let_in() -> Result<()> {
    if lacking::before(17, "TLS without asking first") {
        return Ok(());
    }
    let secured = Secured::start("tls-at-once")?;
    let root = secured.file("ca.crt");
    let way = format!("sslmode=verify-full sslnegotiation=direct sslrootcert={root}");
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let direct = secured.psql_at(secured.cluster.port, "app", &way, sql)?;
    ensure!(direct == (true, "t".to_owned()), "the server itself: {direct:?}");
    let pooled = secured.psql("app", &way, sql)?;
    ensure!(pooled == direct, "{pooled:?}");
    Ok(())
}
