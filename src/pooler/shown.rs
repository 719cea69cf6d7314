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

impl<'a> Shown<'a> {
    /// As bytes: each text with its length in four bytes before it. Nothing when there are none.
    pub fn encode(&self) -> Vec<u8> {
        let texts = [self.identity, self.subject, self.serial, self.issuer];
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
    fn nothing_needs_no_memory() {
        assert!(Shown::default().encode().is_empty());
        assert_eq!(Shown::decode(&[]), Shown::default());
        assert_eq!(Shown::decode(&[9, 0, 0, 0, 1]), Shown::default(), "what is cut is nothing");
    }
}
