//! The bodies of the `p` messages that carry authentication, and base64 as the server reads it. Pure.
//!
//! The texts of the errors are those of the server's pqformat.c and auth.c.

use super::Error;
use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

/// The most bytes of a body in a SASL exchange: PG_MAX_SASL_MESSAGE_LENGTH less the length word (auth-sasl.c).
pub const MAX_SASL_BODY: usize = 1024 - 4;

/// The most bytes of the body of a PasswordMessage: PG_MAX_AUTH_TOKEN_LENGTH less the length word (auth.c).
pub const MAX_PASSWORD_BODY: usize = 65535 - 4;

/// As pg_b64_decode reads it: padding is needed, the bits that it leaves over may be anything.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

pub(super) fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

pub(super) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// SASLInitialResponse: the name of a mechanism, and what follows it for [`first_response`].
pub(super) fn mechanism(body: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let end = body.iter().position(|&b| b == 0).ok_or(Error::Packet("invalid string in message"))?;
    Ok((&body[..end], &body[end + 1..]))
}

/// The first response of a SASLInitialResponse; `None` where its length is -1.
pub(super) fn first_response(after_name: &[u8]) -> Result<Option<&[u8]>, Error> {
    let (length, rest) = after_name.split_first_chunk().ok_or(SHORT)?;
    let length = i32::from_be_bytes(*length);
    let (response, rest) = if length == -1 {
        (None, rest)
    } else {
        let length = usize::try_from(length).map_err(|_| SHORT)?;
        let (response, rest) = rest.split_at_checked(length).ok_or(SHORT)?;
        (Some(response), rest)
    };
    if rest.is_empty() { Ok(response) } else { Err(Error::Packet("invalid message format")) }
}

const SHORT: Error = Error::Packet("insufficient data left in message");

/// PasswordMessage: one string with its terminating zero, which is not empty.
pub(super) fn password(body: &[u8]) -> Result<&[u8], Error> {
    match body.split_last() {
        Some((0, [])) => Err(Error::EmptyPassword),
        Some((0, text)) if !text.contains(&0) => Ok(text),
        _ => Err(Error::Packet("invalid password packet size")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_response_is_read() {
        assert_eq!(mechanism(b"X\0rest").unwrap(), (&b"X"[..], &b"rest"[..]));
        assert_eq!(first_response(b"\0\0\0\x02ab").unwrap(), Some(&b"ab"[..]));
        assert_eq!(first_response(b"\0\0\0\0").unwrap(), Some(&b""[..]));
        assert_eq!(first_response(b"\xff\xff\xff\xff").unwrap(), None);
    }

    #[test]
    fn a_body_that_is_no_first_response_is_named() {
        for body in [&b""[..], b"SCRAM"] {
            assert_eq!(mechanism(body), Err(Error::Packet("invalid string in message")));
        }
        for (rest, text) in [
            (&b""[..], "insufficient data left in message"),
            (b"\0\0\0", "insufficient data left in message"),
            (b"\0\0\0\x03ab", "insufficient data left in message"),
            (b"\xff\xff\xff\xfe", "insufficient data left in message"),
            (b"\x7f\xff\xff\xff", "insufficient data left in message"),
            (b"\0\0\0\x01ab", "invalid message format"),
            (b"\xff\xff\xff\xffa", "invalid message format"),
        ] {
            assert_eq!(first_response(rest), Err(Error::Packet(text)), "{rest:?}");
        }
    }

    #[test]
    fn a_password_is_one_string() {
        assert_eq!(password(b"pw\0").unwrap(), b"pw");
        assert_eq!(password(b"\0"), Err(Error::EmptyPassword));
        for body in [&b""[..], b"pw", b"p\0w", b"p\0w\0", b"\0\0"] {
            assert_eq!(password(body), Err(Error::Packet("invalid password packet size")), "{body:?}");
        }
    }

    #[test]
    fn base64_is_read_as_the_server_reads_it() {
        assert_eq!(from_base64(b"QQ==").unwrap(), b"A");
        assert_eq!(from_base64(b"QR==").unwrap(), b"A", "left-over bits do not matter");
        assert_eq!(from_base64(b"").unwrap(), b"");
        for text in [&b"QQ"[..], b"QQ=", b"Q===", b"QQ==\n", b"Q Q=", b"QQ\xff="] {
            assert_eq!(from_base64(text), None, "{text:?}");
        }
    }
}
