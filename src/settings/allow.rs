//! Which addresses may connect to the status ports. Pure; asked by the network threads at each accept.

use super::Error;
use ipnet::IpNet;
use std::net::IpAddr;
use std::str::FromStr;

/// `postern.status_allow`. Unix sockets are not asked: there, the file's permissions decide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Allow {
    #[default]
    All,
    /// Only these ranges; an empty list lets nobody in over TCP.
    Ranges(Vec<IpNet>),
}

impl Allow {
    pub fn permits(&self, peer: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(&peer)),
        }
    }
}

impl FromStr for Allow {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let written: Vec<&str> = text.split(',').map(str::trim).filter(|e| !e.is_empty()).collect();
        if written.iter().any(|entry| entry.eq_ignore_ascii_case("all")) {
            return match written.as_slice() {
                [_] => Ok(Self::All),
                _ => Err(Error::Range(text.trim().to_owned())),
            };
        }
        let range = |entry: &str| {
            entry
                .parse::<IpNet>()
                .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| Error::Range(entry.to_owned()))
        };
        Ok(Self::Ranges(written.into_iter().map(range).collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(list: &str, peer: &str) -> bool {
        list.parse::<Allow>().unwrap().permits(peer.parse().unwrap())
    }

    #[test]
    fn ranges_decide_who_may_connect() {
        assert!(permits("all", "203.0.113.7"));
        assert!(permits("10.0.0.0/8, ::1", "10.255.0.1"));
        assert!(permits("10.0.0.0/8, ::1", "::1"));
        assert!(!permits("10.0.0.0/8, ::1", "11.0.0.1"));
        assert!(!permits("10.0.0.0/8", "::ffff:11.0.0.1"));
        assert!(permits("127.0.0.1", "127.0.0.1"));
        assert!(!permits("127.0.0.1", "127.0.0.2"));
        assert!(!permits("", "127.0.0.1"), "an empty list lets nobody in");
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["10.0.0.0/33", "localhost", "all, 10.0.0.0/8", "10.0.0.0/8;::1"] {
            assert!(
                text.parse::<Allow>().unwrap_err().to_string().contains("is not an address range"),
                "{text}"
            );
        }
    }
}
