//! Opening a connection to the server for a pool: the front logs in as the pool's role, by the way that pg_hba.conf leaves open,
//! and shows the token by which the backend knows that it is pooled. Network threads.

use crate::auth::{AwaitServerFinal, Credential, ScramClient, With};
use crate::login::{Method, Origin, Question, Questions, Unanswered};
use crate::settings::ServerDoor;
use crate::wire::message;
use crate::wire::startup::Replication;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

/// Bytes of the longest message that a server sends before it is ready: an error with all its fields.
const MESSAGE_MAX: usize = 1 << 20;

/// A connection at whose other end is a pooled backend.
pub type Line = Either<TcpStream, UnixStream>;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("could not connect to the server: {0}")]
    Connect(String),
    /// What the server says itself: SQLSTATE and message.
    #[error("{1}")]
    Server(String, String),
    /// No line of pg_hba.conf lets the front in with what the client has shown.
    #[error("the pooler cannot log in to the server as role \"{role}\": {why}")]
    NoWay { role: String, why: String, hint: String },
    /// Its backend has ended before it could say anything.
    #[error("the server closed the connection while the pooler logged in")]
    Closed,
    #[error("the server sent something unexpected while the pooler logged in")]
    Protocol,
    /// Its backend has not found the token that it showed.
    #[error("the server took the pooler's connection for a client's")]
    Unclaimed,
    #[error("the pooler's login at the server took longer than postern.server_connect_timeout")]
    TooSlow,
}

impl From<Unanswered> for Error {
    fn from(_: Unanswered) -> Self {
        Self::Connect("the pooler is overloaded".to_owned())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Connect(error.to_string()),
        }
    }
}

/// Whom and what to open.
pub struct Opening<'a> {
    pub role: &'a [u8],
    pub database: &'a [u8],
    pub credential: Option<&'a Credential>,
    /// Parameters of the startup packet beside role and database.
    pub parameters: &'a [(&'a [u8], &'a [u8])],
    pub replication: Replication,
    /// Return when the server has let us in, with everything that it says afterwards still to be read; else when it is ready.
    pub only_let_in: bool,
    pub door: &'a ServerDoor,
    /// The system's name of the user that we run as.
    pub system_user: &'a str,
    /// `postern.server_connect_timeout`.
    pub limit: Option<Duration>,
}

/// What pg_hba.conf says of one way in.
enum Way {
    Open,
    /// Why not, and the map of pg_ident.conf that could open it.
    Shut(String, Option<String>),
}

/// Opens it. Returns when the backend is ready.
///
/// # Errors
/// See [`Error`].
pub async fn open(opening: &Opening<'_>, questions: &Questions) -> Result<Line, Error> {
    let opened = connect(opening, questions);
    match opening.limit {
        Some(limit) => tokio::time::timeout(limit, opened).await.unwrap_or(Err(Error::TooSlow)),
        None => opened.await,
    }
}

async fn connect(opening: &Opening<'_>, questions: &Questions) -> Result<Line, Error> {
    let mut reasons = Vec::new();
    let mut by_map = None;
    if !opening.door.socket_directory.is_empty() {
        match way(opening, questions, Origin::Unix).await? {
            Way::Open => {
                match socket(opening.door).await {
                    // What tidies /tmp takes it from a server that runs, and whoever may write there puts another in its place.
                    Err(error) if opening.door.loopback.is_some() => {
                        reasons.push(match error.raw_os_error() {
                            Some(_) => format!("the socket in {}: {error}", opening.door.socket_directory),
                            None => error.to_string(),
                        });
                    }
                    stream => return log_in(Either::Right(stream?), opening).await,
                }
            }
            Way::Shut(why, map) => {
                reasons.push(why);
                by_map = map;
            }
        }
    }
    if let Some(ip) = opening.door.loopback {
        let address = SocketAddr::new(ip, opening.door.port);
        match way(opening, questions, Origin::Tcp(address)).await? {
            Way::Open => {
                let stream = tcp(address).await?;
                return log_in(Either::Left(stream), opening).await;
            }
            Way::Shut(why, _) => reasons.push(why),
        }
    }
    if reasons.is_empty() {
        return Err(Error::NoWay {
            role: String::from_utf8_lossy(opening.role).into_owned(),
            why: "it listens neither on a Unix socket nor on a loopback address".to_owned(),
            hint: "Give the server a directory in unix_socket_directories, or localhost in listen_addresses, and restart it."
                .to_owned(),
        });
    }
    Err(no_way(opening, reasons.join("; "), by_map.as_deref()))
}

/// Connects to the server by whichever way there is, for what needs no login.
///
/// # Errors
/// The system's; [`ErrorKind::NotFound`] when there is none.
pub(super) async fn connect_only(door: &ServerDoor) -> std::io::Result<Line> {
    let by_socket = match door.socket_directory.is_empty() {
        true => Err(ErrorKind::NotFound.into()),
        false => socket(door).await,
    };
    match (by_socket, door.loopback) {
        (Err(_), Some(ip)) => tcp(SocketAddr::new(ip, door.port)).await.map(Either::Left),
        (stream, _) => stream.map(Either::Right),
    }
}

async fn tcp(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Connects to the server's Unix socket; a directory that begins with `@` is a name and no file.
///
/// # Errors
/// The system's; also [`ErrorKind::PermissionDenied`] when another user listens there: what is said to the server is for nobody else.
async fn socket(door: &ServerDoor) -> std::io::Result<UnixStream> {
    let path = format!("{}/.s.PGSQL.{}", door.socket_directory, door.port);
    let stream = match path.strip_prefix('@') {
        Some(name) => abstract_socket(name)?,
        None => UnixStream::connect(&path).await?,
    };
    // Of the process that listens, when it began to.
    let (peer, ours) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if peer != ours {
        let why = format!(
            "the socket {path} is not the server's, but of the user with ID {peer} (unix_socket_directories should name only \
             directories that nobody else may write to)"
        );
        return Err(std::io::Error::new(ErrorKind::PermissionDenied, why));
    }
    Ok(stream)
}

fn abstract_socket(name: &str) -> std::io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream as Blocking};
    let stream = Blocking::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn no_way(opening: &Opening<'_>, why: String, map: Option<&str>) -> Error {
    let role = String::from_utf8_lossy(opening.role).into_owned();
    // In pg_hba.conf and pg_ident.conf a quote in quotes is doubled.
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    let method = match opening.credential {
        Some(Credential::Scram(_)) => Some("scram-sha-256"),
        Some(Credential::Md5(_)) => Some("md5"),
        None => None,
    };
    let hint = match (map, method, opening.door.loopback) {
        (Some(map), ..) => {
            format!(
                "Put this line into the server's pg_ident.conf and reload: {map} {} {quoted}",
                opening.system_user
            )
        }
        (None, Some(method), Some(ip)) => {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            format!(
                "Put this line before the others into the server's pg_hba.conf and reload: host all {quoted} {ip}/{bits} {method}"
            )
        }
        _ => format!(
            "Put this line before the others into the server's pg_hba.conf: local all {quoted} peer map=postern, and this one into \
             pg_ident.conf: postern {} {quoted}, and reload.",
            opening.system_user
        ),
    };
    Error::NoWay { role, why, hint }
}

async fn way(opening: &Opening<'_>, questions: &Questions, origin: Origin) -> Result<Way, Error> {
    let (role, database) = (opening.role.to_vec(), opening.database.to_vec());
    let verdict = questions
        .ask(|reply| Question::Verdict {
            role,
            database,
            origin,
            tls: false,
            host_name: None,
            replication: opening.replication,
            reply,
        })
        .await?;
    let line = match origin {
        Origin::Unix => "its Unix socket".to_owned(),
        Origin::Tcp(address) => format!("{}", address.ip()),
    };
    let shut = |what: &str| Ok(Way::Shut(format!("over {line}, {what}"), None));
    let at = match verdict.line.0 {
        0 => "no line of pg_hba.conf matches".to_owned(),
        number => format!("line {number} of pg_hba.conf"),
    };
    match &verdict.method {
        Method::Trust => Ok(Way::Open),
        Method::Peer => {
            let (map, role, outside) =
                (verdict.map.clone(), opening.role.to_vec(), opening.system_user.as_bytes().to_vec());
            match questions.ask(|reply| Question::Map { map, role, outside, reply }).await? {
                true => Ok(Way::Open),
                false => {
                    let why = format!(
                        "over {line}, {at} wants the system user \"{}\" to be the role (a map in pg_ident.conf can say so)",
                        opening.system_user
                    );
                    Ok(Way::Shut(why, Some(verdict.map).filter(|map| !map.is_empty())))
                }
            }
        }
        Method::Password | Method::Challenge(_) => match opening.credential {
            Some(_) if verdict.method != Method::Password => Ok(Way::Open),
            _ => shut(&format!(
                "{at} wants a password, and the client's own login showed none that can be passed on"
            )),
        },
        Method::Reject => shut(&format!("{at} rejects it")),
        Method::NoLine => shut(&at),
        Method::Cert => shut(&format!("{at} wants a certificate")),
        Method::Other(name) => shut(&format!("{at} wants {name}")),
    }
}

async fn log_in(mut line: Line, opening: &Opening<'_>) -> Result<Line, Error> {
    let mut out = Vec::new();
    let mut parameters = vec![(&b"user"[..], opening.role), (&b"database"[..], opening.database)];
    parameters.extend(opening.parameters);
    message::startup(&mut out, &parameters);
    line.write_all(&out).await?;
    let mut scram: Option<AwaitServerFinal> = None;
    let mut first: Option<ScramClient> = None;
    loop {
        let (tag, body) = read_message(&mut line).await?;
        out.clear();
        match tag {
            b'R' => {
                let (code, data) = body.split_first_chunk::<4>().ok_or(Error::Protocol)?;
                match (u32::from_be_bytes(*code), opening.credential) {
                    (0, _) if opening.only_let_in => return Ok(line),
                    (0, _) => continue,
                    (5, Some(Credential::Md5(secret))) => {
                        let salt = data.first_chunk::<4>().ok_or(Error::Protocol)?;
                        let mut answer = secret.answer(*salt).to_vec();
                        answer.push(0);
                        message::password(&mut out, &answer);
                    }
                    (10, Some(Credential::Scram(keys))) if ScramClient::is_offered(data) => {
                        let client =
                            ScramClient::new(With::Keys(keys.clone())).map_err(|_| Error::Protocol)?;
                        message::password(&mut out, &client.initial_response());
                        first = Some(client);
                    }
                    (11, _) => {
                        let client = first.take().ok_or(Error::Protocol)?;
                        let (next, answer) = client.answer(data).map_err(|_| Error::Protocol)?;
                        message::password(&mut out, &answer);
                        scram = Some(next);
                    }
                    (12, _) => {
                        let client = scram.take().ok_or(Error::Protocol)?;
                        // Whoever answers there is not the server when this fails.
                        client.verify(data).map_err(|_| Error::Protocol)?;
                        continue;
                    }
                    _ => {
                        let why =
                            "the server wants a password of another kind than the client's login showed";
                        return Err(no_way(opening, why.to_owned(), None));
                    }
                }
                line.write_all(&out).await?;
            }
            b'E' => {
                let (code, text) = message::read_error(&body);
                return Err(Error::Server(code, text));
            }
            b'Z' => return Ok(line),
            _ => {}
        }
    }
}

async fn read_message(line: &mut Line) -> Result<(u8, Vec<u8>), Error> {
    let mut header = [0; 5];
    line.read_exact(&mut header).await?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if !(4..=MESSAGE_MAX).contains(&length) {
        return Err(Error::Protocol);
    }
    let mut body = vec![0; length - 4];
    line.read_exact(&mut body).await?;
    Ok((header[0], body))
}
