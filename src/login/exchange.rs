//! The exchange itself: requests for encryption, the startup packet, and authentication by what pg_hba.conf says. Network threads.

use super::question::{Method, Origin, Question, Questions, Verdict};
use super::{Error, Rights};
use crate::auth::{
    Challenge, Claim, Credential, MAX_PASSWORD_BODY, MAX_SASL_BODY, Md5Server, ScramServer, Step,
};
use crate::wire::message::{self, Authentication, Report};
use crate::wire::startup::{self, Startup, StartupMessage};
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What the exchange needs to know of the place where it happens.
pub struct Door<'a> {
    pub questions: &'a Questions,
    pub origin: Origin,
    /// The client's certificate, checked, when it has shown one over TLS.
    pub certificate: Option<Certificate>,
    /// Over TLS: the hash of our certificate that SCRAM may bind to.
    pub tls: Option<Option<Vec<u8>>>,
    /// TLS can be had on this connection, and has not been asked for.
    pub offers_tls: bool,
    /// There is a CA to check client certificates with.
    pub has_authorities: bool,
    /// The newest minor version of protocol 3 that the server speaks.
    pub minor: u16,
    /// The system's name of the user at the other end of a Unix socket.
    pub system_user: Option<String>,
    /// Looks up the client's host name, for lines of pg_hba.conf that name hosts. Called once, when its startup packet is there.
    pub host_name: LookUp<'a>,
    /// Databases of these names are the console: the first always, the others where the server has none of that name.
    pub consoles: &'static [&'static str],
}

/// Something about the client that takes its time to be known.
pub type LookUp<'a> =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>> + Send + Sync + 'a>;

/// What the server would know of a client's certificate.
#[derive(Debug, Clone, Default)]
pub struct Certificate {
    pub common_name: Option<Vec<u8>>,
    pub distinguished_name: String,
}

/// How far a client has come.
pub enum Outcome {
    /// It wants TLS: it has been told S.
    Tls,
    /// It asks to cancel somebody's query.
    Cancel { pid: u32, key: Vec<u8> },
    /// It has shown who it is.
    In(Box<Login>),
}

/// An authenticated client.
pub struct Login {
    pub message: StartupMessage,
    /// The minor version that was agreed.
    pub minor: u16,
    /// What logs in as the same role at the server, when the client showed something that does.
    pub credential: Option<Credential>,
    /// How it was authenticated.
    pub method: Method,
    /// What tells it so, and has not been sent: the server, too, sends it only with what follows it.
    pub granted: Vec<u8>,
    /// Its rights, when it wants the console.
    pub console: Option<Rights>,
}

/// Runs the exchange up to an outcome.
///
/// # Errors
/// See [`Error`]. What the client is to hear has not been sent yet.
pub async fn log_in<S>(stream: &mut S, door: &Door<'_>) -> Result<Outcome, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Each may be asked for once, and encryption only once at all.
    let (mut ssl_asked, mut gss_asked) = (door.tls.is_some(), door.tls.is_some());
    let message = loop {
        let mut word = [0; 4];
        stream.read_exact(&mut word).await?;
        let mut body = vec![0; startup::body_length(word)?];
        stream.read_exact(&mut body).await?;
        match startup::parse(&body, door.minor)? {
            Startup::Ssl if ssl_asked => {
                return Err(crate::wire::Error::Version(1234, 5679, door.minor).into());
            }
            Startup::Gss if gss_asked => {
                return Err(crate::wire::Error::Version(1234, 5680, door.minor).into());
            }
            Startup::Ssl if door.offers_tls => {
                stream.write_all(b"S").await?;
                return Ok(Outcome::Tls);
            }
            Startup::Ssl => {
                ssl_asked = true;
                // From PostgreSQL 14.1 on, whoever does not wait for the answer is turned away. Looked at before the answer goes out:
                // what comes after it is in order.
                let early = has_more(stream).await;
                stream.write_all(b"N").await?;
                if early {
                    let report = Report::fatal("08P01", "received unencrypted data after SSL request").with_detail(
                        "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
                    );
                    return Err(report.into());
                }
            }
            Startup::Gss => {
                gss_asked = true;
                stream.write_all(b"N").await?;
            }
            Startup::Cancel { pid, key } => return Ok(Outcome::Cancel { pid, key }),
            Startup::Session(message) => break message,
        }
    };
    let minor = message.minor.min(door.minor);
    let mut out = Vec::new();
    if message.minor > door.minor || !message.unrecognized.is_empty() {
        message::negotiate_protocol_version(&mut out, minor, &message.unrecognized);
        stream.write_all(&out).await?;
        out.clear();
    }
    let host_name = (door.host_name)().await;
    let ask = |reply| Question::Verdict {
        role: message.user.clone(),
        database: message.database.clone(),
        origin: door.origin,
        tls: door.tls.is_some(),
        host_name,
        replication: message.replication,
        reply,
    };
    let verdict = door.questions.ask(ask).await?;
    // Boxed: a client that says nothing is not to cost what authenticating it would.
    let credential = Box::pin(authenticate(stream, door, &message, &verdict, &mut out)).await.map_err(
        |error| match error {
            // The log says which line it was, as the server does.
            Error::Told(report, detail) if verdict.line.0 > 0 => {
                let line =
                    format!("Connection matched pg_hba.conf line {}: \"{}\"", verdict.line.0, verdict.line.1);
                Error::Told(report, Some(detail.map_or(line.clone(), |detail| format!("{detail} {line}"))))
            }
            other => other,
        },
    )?;
    let mut console = None;
    if let Some(place) = door.consoles.iter().position(|name| message.database == name.as_bytes()) {
        let role = message.user.clone();
        let unless = (place > 0).then(|| message.database.clone());
        console = door.questions.ask(|reply| Question::Console { role, unless, reply }).await??;
    }
    message::authentication(&mut out, &Authentication::Ok);
    let (method, granted) = (verdict.method, out);
    Ok(Outcome::In(Box::new(Login { message, minor, credential, method, granted, console })))
}

/// Into `granted` goes what is to be sent once the client is in.
async fn authenticate<S>(
    stream: &mut S,
    door: &Door<'_>,
    message: &StartupMessage,
    verdict: &Verdict,
    granted: &mut Vec<u8>,
) -> Result<Option<Credential>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let user = String::from_utf8_lossy(&message.user);
    if verdict.wants_certificate {
        if !door.has_authorities {
            let words = "client certificates can only be checked if a root certificate store is available";
            return Err(Report::fatal("F0000", words).into());
        }
        if door.certificate.is_none() {
            return Err(Report::fatal("28000", "connection requires a valid client certificate").into());
        }
    }
    let claim = Claim::new(&message.user, verdict.found.clone(), verdict.now);
    let credential = match &verdict.method {
        Method::Reject | Method::NoLine => return Err(rejection(door, message, verdict).into()),
        Method::Trust => None,
        Method::Password => {
            request(stream, &Authentication::CleartextPassword).await?;
            let body = response(stream, MAX_PASSWORD_BODY, crate::auth::Error::ExpectedPassword)
                .await?
                .ok_or(Error::Closed)?;
            // As many rounds of hashing as the role's secret asks for: not on this thread.
            let judged = tokio::task::spawn_blocking(move || claim.password(&body)).await;
            Some(judged.map_err(|_| Error::Closed)??)
        }
        Method::Challenge(method) => match claim.challenge(*method, verdict.password_encryption) {
            Challenge::Md5 => {
                let server = Md5Server::new(claim)?;
                request(stream, &Authentication::Md5Password(server.salt())).await?;
                let body = response(stream, MAX_PASSWORD_BODY, crate::auth::Error::ExpectedPassword)
                    .await?
                    .ok_or(Error::Closed)?;
                Some(server.receive(&body)?)
            }
            Challenge::Scram => {
                let binding = door.tls.clone().flatten();
                let mut server = ScramServer::new(claim, &verdict.mock_nonce, binding)?;
                request(stream, &Authentication::Sasl(server.mechanisms())).await?;
                loop {
                    let body = response(stream, MAX_SASL_BODY, crate::auth::Error::ExpectedSasl).await?;
                    let body = body.ok_or_else(|| crate::auth::Error::Refused {
                        role: user.clone().into_owned(),
                        log: None,
                    })?;
                    match server.receive(&body)? {
                        Step::Challenge(data) => {
                            request(stream, &Authentication::SaslContinue(&data)).await?;
                        }
                        Step::Proven { server_final, keys } => {
                            message::authentication(granted, &Authentication::SaslFinal(&server_final));
                            break Some(Credential::Scram(keys));
                        }
                    }
                }
            }
        },
        Method::Cert => None,
        Method::Peer => {
            let failed = || Report::fatal("28000", format!("Peer authentication failed for user \"{user}\""));
            let outside = door.system_user.as_ref().ok_or_else(failed)?;
            if !map(door, verdict, message, outside.as_bytes()).await? {
                return Err(failed().into());
            }
            None
        }
        Method::Other(name) => {
            let words = format!("authentication method \"{name}\" is not supported by the pooler");
            let hint = "Connect to the server's own port, or use trust, reject, password, md5, scram-sha-256, cert or peer.";
            return Err(Report::fatal("0A000", words).with_hint(hint).into());
        }
    };
    if verdict.method == Method::Cert || verdict.certificate_names_role {
        let failed =
            || Report::fatal("28000", format!("certificate authentication failed for user \"{user}\""));
        let certificate = door.certificate.as_ref().ok_or_else(failed)?;
        let name = if verdict.certificate_by_dn {
            Some(certificate.distinguished_name.as_bytes())
        } else {
            certificate.common_name.as_deref()
        };
        let name = name.filter(|name| !name.is_empty()).ok_or_else(failed)?;
        if !map(door, verdict, message, name).await? {
            return Err(failed().into());
        }
    }
    Ok(credential)
}

async fn map(
    door: &Door<'_>,
    verdict: &Verdict,
    message: &StartupMessage,
    outside: &[u8],
) -> Result<bool, Error> {
    let (map, role, outside) = (verdict.map.clone(), message.user.clone(), outside.to_vec());
    Ok(door.questions.ask(|reply| Question::Map { map, role, outside, reply }).await?)
}

/// As ClientAuthentication() words it (src/backend/libpq/auth.c).
fn rejection(door: &Door<'_>, message: &StartupMessage, verdict: &Verdict) -> Report {
    let encryption = if door.tls.is_some() { "SSL encryption" } else { "no encryption" };
    let (user, database) =
        (String::from_utf8_lossy(&message.user), String::from_utf8_lossy(&message.database));
    let what = match verdict.method {
        Method::Reject => "pg_hba.conf rejects connection",
        _ => "no pg_hba.conf entry",
    };
    let host = door.origin.host();
    let text = format!("{what} for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}");
    Report::fatal("28000", text)
}

/// Whether something has come that nobody waited for; it is lost then.
async fn has_more<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    std::future::poll_fn(|context| {
        let mut byte = [0];
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        let read = std::pin::Pin::new(&mut *stream).poll_read(context, &mut buffer);
        std::task::Poll::Ready(read.is_ready() && !buffer.filled().is_empty())
    })
    .await
}

async fn request<S: AsyncWrite + Unpin>(stream: &mut S, request: &Authentication<'_>) -> Result<(), Error> {
    let mut out = Vec::new();
    message::authentication(&mut out, request);
    stream.write_all(&out).await?;
    Ok(stream.flush().await?)
}

/// The body of the client's answer, a message of type p; `None` when it is not whole or is of no length: where a password was asked
/// for, the server then says nothing, and where SASL was, that the login has failed (CheckPasswordAuth() and CheckSASLAuth()).
async fn response<S: AsyncRead + Unpin>(
    stream: &mut S,
    most: usize,
    wrong_type: fn(u8) -> crate::auth::Error,
) -> Result<Option<Vec<u8>>, Error> {
    let mut header = [0; 5];
    stream.read_exact(&mut header[..1]).await?;
    if header[0] != b'p' {
        return Err(wrong_type(header[0]).into());
    }
    if stream.read_exact(&mut header[1..]).await.is_err() {
        return Ok(None);
    }
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length < 4 || length - 4 > most {
        // "invalid message length" is the log's.
        return Ok(None);
    }
    let mut body = vec![0; length - 4];
    Ok(stream.read_exact(&mut body).await.ok().map(|_| body))
}
