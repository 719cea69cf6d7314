//! Lists of addresses to listen on: `host:port[,host:port]`. Pure.

use super::Error;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// How many entries one list may have. A list longer than this is a mistake, and each entry is a socket.
pub const MAX_LIST_ENTRIES: usize = 8;

/// `sizeof(sockaddr_un.sun_path)` less its terminating zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// One entry of a list, as written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// `*:port`: every IPv4 and IPv6 interface.
    Any(u16),
    /// A literal address.
    Ip(IpAddr, u16),
    /// A name, resolved when the listener is opened; every address that it has is listened on.
    Name(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A list of entries, without doubles; empty is off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenList(Vec<ListenAddress>);

impl ListenList {
    pub fn iter(&self) -> impl Iterator<Item = &ListenAddress> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What `bgw_replstatus.bind` and `.port` mean: one IPv4 wildcard or one address, and a port.
    pub(super) fn old_style(bind: &str, port: u16) -> Result<Self, Error> {
        let entry = match bind.trim() {
            "" => "0.0.0.0".to_owned(),
            v6 if v6.parse::<Ipv6Addr>().is_ok() => format!("[{v6}]"),
            other => other.to_owned(),
        };
        format!("{entry}:{port}").parse()
    }

    /// The list with a Unix socket `.s.PGSQL.<port>` in each of the directories, for the list's first TCP port: where libpq
    /// looks when the host is such a directory. Paths that are too long, and abstract ones, are left out.
    #[must_use]
    pub fn with_sockets_in<'a>(self, directories: impl Iterator<Item = &'a str>) -> Self {
        let port = self.0.iter().find_map(|entry| match entry {
            ListenAddress::Any(port) | ListenAddress::Ip(_, port) | ListenAddress::Name(_, port) => {
                Some(*port)
            }
            ListenAddress::Unix(_) => None,
        });
        let Some(port) = port else { return self };
        directories.fold(self, |list, directory| {
            match format!("{}/.s.PGSQL.{port}", directory.trim_end_matches('/')).parse::<ListenAddress>() {
                Ok(socket @ ListenAddress::Unix(_)) => list.joined(Self(vec![socket])),
                _ => list,
            }
        })
    }

    pub(super) fn joined(mut self, other: Self) -> Self {
        for entry in other.0 {
            if !self.0.contains(&entry) {
                self.0.push(entry);
            }
        }
        self
    }
}

impl FromStr for ListenList {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let written: Vec<&str> = text.split(',').map(str::trim).filter(|e| !e.is_empty()).collect();
        if written.len() > MAX_LIST_ENTRIES {
            return Err(Error::TooManyEntries(written.len()));
        }
        let mut list = Self::default();
        for entry in written {
            list = list.joined(Self(vec![entry.parse()?]));
        }
        Ok(list)
    }
}

impl FromStr for ListenAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.starts_with('/') {
            if text.len() > MAX_SOCKET_PATH {
                return Err(Error::PathTooLong { path: text.to_owned(), limit: MAX_SOCKET_PATH });
            }
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| Error::Port(text.to_owned()))?;
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(Error::Port(text.to_owned())),
        };
        if host == "*" {
            return Ok(Self::Any(port));
        }
        if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            let ip = v6.parse::<Ipv6Addr>().map_err(|_| Error::Address(text.to_owned()))?;
            return Ok(Self::Ip(ip.into(), port));
        }
        if let Ok(ip) = host.parse::<IpAddr>() {
            // "::1:5400" would be read as the address ::1 with a port; only brackets make that plain.
            if ip.is_ipv6() {
                return Err(Error::Address(text.to_owned()));
            }
            return Ok(Self::Ip(ip, port));
        }
        if is_host_name(host) {
            Ok(Self::Name(host.to_owned(), port))
        } else {
            Err(Error::Address(text.to_owned()))
        }
    }
}

/// RFC 1123 labels, underscores as people use them; not all digits and dots, which is a mistyped IPv4 address.
fn is_host_name(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
        && host.bytes().any(|b| b.is_ascii_alphabetic())
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(port) => write!(f, "*:{port}"),
            Self::Ip(IpAddr::V6(ip), port) => write!(f, "[{ip}]:{port}"),
            Self::Ip(ip, port) => write!(f, "{ip}:{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for ListenList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, entry) in self.0.iter().enumerate() {
            write!(f, "{}{entry}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_stands_beside_the_servers() {
        let list: ListenList = "localhost:6432,*:6433".parse().unwrap();
        let list = list.with_sockets_in(["/run/pg", "@abstract", "/tmp/"].into_iter());
        assert_eq!(list.to_string(), "localhost:6432,*:6433,/run/pg/.s.PGSQL.6432,/tmp/.s.PGSQL.6432");
        assert!(ListenList::default().with_sockets_in(["/tmp"].into_iter()).is_empty());
    }
    use proptest::prelude::*;

    #[test]
    fn every_form_of_an_address_is_read() {
        let text = "*:5400, 127.0.0.1:5401,[::1]:5402, localhost:5403,/run/postern/status.sock";
        let list: ListenList = text.parse().unwrap();
        assert_eq!(
            list.to_string(),
            "*:5400,127.0.0.1:5401,[::1]:5402,localhost:5403,/run/postern/status.sock"
        );
        assert!("".parse::<ListenList>().unwrap().is_empty());
        assert!(" , ".parse::<ListenList>().unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("5400", "has no valid port"),
            ("*:0", "has no valid port"),
            ("*:65536", "has no valid port"),
            ("*:http", "has no valid port"),
            ("::1:5400", "is not an address"),
            ("[::g]:5400", "is not an address"),
            ("256.0.0.1:5400", "is not an address"),
            ("a b:5400", "is not an address"),
            (":5400", "is not an address"),
        ] {
            let error = text.parse::<ListenList>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn limits_hold_at_the_limit() {
        let entries = |n: u16| (1..=n).map(|p| format!("*:{p}")).collect::<Vec<_>>().join(",");
        assert!(entries(MAX_LIST_ENTRIES as u16).parse::<ListenList>().is_ok());
        assert_eq!(entries(MAX_LIST_ENTRIES as u16 + 1).parse::<ListenList>(), Err(Error::TooManyEntries(9)));
        assert!(format!("/{}", "x".repeat(106)).parse::<ListenList>().is_ok());
        assert!(format!("/{}", "x".repeat(107)).parse::<ListenList>().is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_back_the_same(text in "[*a-z0-9.:/\\[\\], -]{0,60}") {
            if let Ok(list) = text.parse::<ListenList>() {
                prop_assert_eq!(list.to_string().parse::<ListenList>().unwrap(), list);
            }
        }
    }
}
