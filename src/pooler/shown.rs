//! What a client has shown of itself when it logged in, beside its role, as the server shows it of a session: its certificate in
//! pg_stat_ssl, and SYSTEM_USER. Pure; written by network threads, kept in dynamic shared memory, read by session agents.
//!
//! Most clients have nothing of it: a method that asks for a password has shown the role itself, and trust nothing.

/// How a client was authenticated: what SYSTEM_USER begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Authenticated {
    /// By nothing that says who it is: SYSTEM_USER is null.
    #[default]
    Not = 0,
    Password = 1,
    Md5 = 2,
    Scram = 3,
    Cert = 4,
    Peer = 5,
}

/// The texts; empty is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shown<'a> {
    /// Who it is outside of the server, where that is not its role: the certificate's subject, or the system's user.
    pub identity: &'a [u8],
    /// The certificate.
    pub subject: &'a [u8],
    pub serial: &'a [u8],
    pub issuer: &'a [u8],
}

/// Bytes of which the 63 that pg_stat_ssl shows are made in any encoding of a database, and those of the longest SYSTEM_USER.
const LONGEST_NAME: usize = 4 * 63;
const LONGEST_IDENTITY: usize = 2048;

/// The text or its beginning, up to the end of a character.
fn cut(text: &[u8], most: usize) -> &[u8] {
    let is_inside = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let end = (0..=most).rev().find(|at| !is_inside(*at)).unwrap_or(0);
    text.get(..end).unwrap_or(text)
}

impl<'a> Shown<'a> {
    /// As bytes: each text, no longer than it can be seen, with its length in four bytes before it. Nothing when there are none.
    pub fn encode(&self) -> Vec<u8> {
        let names = [self.subject, self.serial, self.issuer].map(|name| cut(name, LONGEST_NAME));
        let [subject, serial, issuer] = names;
        let texts = [cut(self.identity, LONGEST_IDENTITY), subject, serial, issuer];
        if texts.iter().all(|text| text.is_empty()) {
            return Vec::new();
        }
        let mut out = Vec::new();
        for text in texts {
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text);
        }
        out
    }

    /// From bytes; what is not there is empty.
    pub fn decode(mut bytes: &'a [u8]) -> Self {
        let mut text = || {
            let (length, rest) = bytes.split_first_chunk()?;
            let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            bytes = rest;
            Some(text)
        };
        let mut next = || text().unwrap_or_default();
        Self { identity: next(), subject: next(), serial: next(), issuer: next() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let shown = Shown { identity: b"CN=a", subject: b"/CN=a", serial: b"17", issuer: b"/CN=\xc3\xa4" };
        assert_eq!(Shown::decode(&shown.encode()), shown);
        let peer = Shown { identity: b"nobody", ..Shown::default() };
        assert_eq!(Shown::decode(&peer.encode()), peer);
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let long = "ä".repeat(200);
        let subject = format!("/CN={long}");
        let encoded = Shown { subject: subject.as_bytes(), ..Shown::default() }.encode();
        let shown = Shown::decode(&encoded).subject;
        assert_eq!(shown, &subject.as_bytes()[..LONGEST_NAME]);
        assert_eq!(cut(long.as_bytes(), 3), "ä".as_bytes());
        assert_eq!(cut(b"short", 9), b"short");
        assert_eq!(cut(b"short", 5), b"short");
    }

    #[test]
    fn nothing_needs_no_memory() {
        assert!(Shown::default().encode().is_empty());
        assert_eq!(Shown::decode(&[]), Shown::default());
        assert_eq!(Shown::decode(&[9, 0, 0, 0, 1]), Shown::default(), "what is cut is nothing");
    }
}
