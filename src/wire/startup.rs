//! The first packet of a connection, as the server's ProcessStartupPacket() reads it
//! (src/backend/postmaster/postmaster.c). Pure.

use super::Error;

/// Bytes of the longest startup packet that the server takes (MAX_STARTUP_PACKET_LENGTH in libpq/pqcomm.h).
pub const MAX_STARTUP: usize = 10_000;

/// Bytes of a role or database name that count (NAMEDATALEN - 1); longer names are cut, as the server does.
pub const NAME_MAX: usize = 63;

const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;
const SSL_REQUEST: u32 = (1234 << 16) | 5679;
const GSSENC_REQUEST: u32 = (1234 << 16) | 5680;

/// What a client asks for first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// SSLRequest: answered with one byte, S or N.
    Ssl,
    /// GSSENCRequest: answered with N.
    Gss,
    /// CancelRequest: never answered. The key has 4 bytes, with protocol 3.2 up to 256.
    Cancel {
        pid: u32,
        key: Vec<u8>,
    },
    Session(StartupMessage),
}

/// A StartupMessage.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct StartupMessage {
    /// The minor version of protocol 3 that the client asks for.
    pub minor: u16,
    /// The role's name, cut to [`NAME_MAX`] bytes. Not necessarily UTF-8.
    pub user: Vec<u8>,
    /// The database's name, cut likewise; the role's when none was given.
    pub database: Vec<u8>,
    pub replication: Replication,
    /// The value of `options`, command-line arguments for the session.
    pub options: Option<Vec<u8>>,
    /// Every other parameter in the order given: settings.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names that begin with `_pq_.`, none of which any server knows.
    pub unrecognized: Vec<Vec<u8>>,
}

/// What the parameter `replication` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Replication {
    #[default]
    No = 0,
    Physical = 1,
    Database = 2,
}

impl std::fmt::Debug for StartupMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartupMessage")
            .field("user", &String::from_utf8_lossy(&self.user))
            .field("database", &String::from_utf8_lossy(&self.database))
            .finish_non_exhaustive()
    }
}

/// The length of a startup packet's body from its first four bytes.
///
/// # Errors
/// [`Error::StartupLength`] when the body is less than a version number or beyond [`MAX_STARTUP`].
pub fn body_length(word: [u8; 4]) -> Result<usize, Error> {
    let length = u32::from_be_bytes(word) as usize;
    if (8..=MAX_STARTUP + 4).contains(&length) { Ok(length - 4) } else { Err(Error::StartupLength) }
}

/// Reads the body of a startup packet: what follows its length word. `latest` is the highest minor version that the
/// server speaks.
///
/// # Errors
/// As the server words them; see [`Error`].
pub fn parse(body: &[u8], latest: u16) -> Result<Startup, Error> {
    let (code, rest) = body.split_first_chunk::<4>().ok_or(Error::StartupLength)?;
    match u32::from_be_bytes(*code) {
        SSL_REQUEST => Ok(Startup::Ssl),
        GSSENC_REQUEST => Ok(Startup::Gss),
        CANCEL_REQUEST => {
            let (pid, key) = rest.split_first_chunk::<4>().ok_or(Error::StartupLength)?;
            if !(4..=256).contains(&key.len()) {
                return Err(Error::StartupLength);
            }
            Ok(Startup::Cancel { pid: u32::from_be_bytes(*pid), key: key.to_vec() })
        }
        version => {
            let (major, minor) = ((version >> 16) as u16, version as u16);
            if major != 3 {
                return Err(Error::Version(major, minor, latest));
            }
            session(rest, minor).map(Startup::Session)
        }
    }
}

fn session(rest: &[u8], minor: u16) -> Result<StartupMessage, Error> {
    let mut message = StartupMessage { minor, ..Default::default() };
    let (mut at, mut user, mut database) = (0, None, None);
    // As the server walks it, which reads one terminator behind the packet: a name without a value ends the walk.
    while at < rest.len() {
        let name = string(rest, at);
        let value_at = at + name.len() + 1;
        if name.is_empty() || value_at >= rest.len() {
            break;
        }
        let value = string(rest, value_at);
        match name {
            b"user" => user = Some(value),
            b"database" => database = Some(value),
            b"options" => message.options = Some(value.to_vec()),
            b"replication" => message.replication = replication(value)?,
            _ if name.starts_with(b"_pq_.") => message.unrecognized.push(name.to_vec()),
            _ => message.settings.push((name.to_vec(), value.to_vec())),
        }
        at = value_at + value.len() + 1;
    }
    if at + 1 != rest.len() {
        return Err(Error::StartupLayout);
    }
    let user = user.filter(|user| !user.is_empty()).ok_or(Error::NoUser)?;
    let database = database.filter(|database| !database.is_empty()).unwrap_or(user);
    message.user = cut(user).to_vec();
    message.database = cut(database).to_vec();
    Ok(message)
}

/// The string at a place, up to its terminator or the end.
fn string(rest: &[u8], at: usize) -> &[u8] {
    let text = &rest[at..];
    &text[..text.iter().position(|byte| *byte == 0).unwrap_or(text.len())]
}

/// The server cuts names in the middle of a character too (StartupMessage has no encoding yet).
fn cut(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_MAX)]
}

fn replication(value: &[u8]) -> Result<Replication, Error> {
    if value == b"database" {
        return Ok(Replication::Database);
    }
    let text = String::from_utf8_lossy(value).to_ascii_lowercase();
    // parse_bool(): a unique prefix of true, false, yes, no, on, off, or 1 and 0.
    let is = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    if is("true", 1) || is("yes", 1) || text == "on" || text == "1" {
        Ok(Replication::Physical)
    } else if is("false", 1) || is("no", 1) || is("off", 2) || text == "0" {
        Ok(Replication::No)
    } else {
        Err(Error::Replication(String::from_utf8_lossy(value).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(version: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut body = version.to_be_bytes().to_vec();
        for (name, value) in pairs {
            body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        body.push(0);
        body
    }

    fn message(pairs: &[(&str, &str)]) -> Result<StartupMessage, Error> {
        match parse(&body(3 << 16, pairs), 0)? {
            Startup::Session(message) => Ok(message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_database_is_the_users_when_none_is_given() {
        let message = message(&[("user", "app"), ("application_name", "x"), ("_pq_.y", "1")]).unwrap();
        assert_eq!((&message.user[..], &message.database[..]), (&b"app"[..], &b"app"[..]));
        assert_eq!(message.settings, [(b"application_name".to_vec(), b"x".to_vec())]);
        assert_eq!(message.unrecognized, [b"_pq_.y".to_vec()]);
    }

    #[test]
    fn mistakes_are_told_in_the_servers_words() {
        assert_eq!(message(&[("database", "x")]), Err(Error::NoUser));
        assert_eq!(message(&[("user", "")]), Err(Error::NoUser));
        assert_eq!(message(&[("user", "a"), ("replication", "maybe")]).unwrap_err().sqlstate(), "22023");
        assert_eq!(parse(&body(2 << 16, &[]), 2), Err(Error::Version(2, 0, 2)));
        let mut unterminated = body(3 << 16, &[("user", "a")]);
        unterminated.pop();
        assert_eq!(parse(&unterminated, 0), Err(Error::StartupLayout));
        let mut trailing = body(3 << 16, &[("user", "a")]);
        trailing.push(7);
        assert_eq!(parse(&trailing, 0), Err(Error::StartupLayout));
        for length in [0u32, 3, 4, 7, 10_005, u32::MAX] {
            assert_eq!(body_length(length.to_be_bytes()), Err(Error::StartupLength), "{length}");
        }
        assert_eq!(body_length(8u32.to_be_bytes()), Ok(4));
    }

    #[test]
    fn replication_is_read_as_the_server_reads_booleans() {
        for (value, meaning) in [
            ("true", Replication::Physical),
            ("t", Replication::Physical),
            ("ON", Replication::Physical),
            ("of", Replication::No),
            ("0", Replication::No),
            ("database", Replication::Database),
        ] {
            assert_eq!(
                message(&[("user", "a"), ("replication", value)]).unwrap().replication,
                meaning,
                "{value}"
            );
        }
    }

    #[test]
    fn requests_that_are_no_session_are_told_apart() {
        assert_eq!(parse(&SSL_REQUEST.to_be_bytes(), 0), Ok(Startup::Ssl));
        assert_eq!(parse(&GSSENC_REQUEST.to_be_bytes(), 0), Ok(Startup::Gss));
        let mut cancel = CANCEL_REQUEST.to_be_bytes().to_vec();
        cancel.extend([0, 0, 0, 9, 1, 2, 3, 4]);
        assert_eq!(parse(&cancel, 0), Ok(Startup::Cancel { pid: 9, key: vec![1, 2, 3, 4] }));
        cancel.truncate(10);
        assert_eq!(parse(&cancel, 0), Err(Error::StartupLength));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, 2);
            let mut version3 = 196_608u32.to_be_bytes().to_vec();
            version3.extend(bytes);
            let _ = parse(&version3, 2);
        }
    }
}
