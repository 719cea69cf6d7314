//! From what a list says to concrete addresses: `*` spelled out, names resolved. Network threads; a name server
//! that does not answer holds up only the listeners of one kind, never main.

use super::Error;
use super::listener::Endpoint;
use crate::settings::{ListenAddress, ListenList};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// How long after a failure a name is resolved again.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// How long one name may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Addresses of one name that are listened on.
const MAX_ADDRESSES: usize = 4;

/// What a list comes to now.
pub(super) struct Wanted {
    /// The value says whether the machine may lack the address (it was not written literally).
    pub endpoints: HashMap<Endpoint, bool>,
    pub unresolved: Vec<(ListenAddress, Error)>,
}

impl Wanted {
    /// Whether an open endpoint stays: it is wanted, or it may belong to a name that cannot be resolved now.
    pub fn keeps(&self, open: &Endpoint) -> bool {
        let perhaps = |(entry, _): &(ListenAddress, Error)| match (entry, open) {
            (ListenAddress::Name(_, port), Endpoint::Tcp(address)) => *port == address.port(),
            _ => false,
        };
        self.endpoints.contains_key(open) || self.unresolved.iter().any(perhaps)
    }
}

pub(super) async fn resolve(list: &ListenList) -> Wanted {
    let mut wanted = Wanted { endpoints: HashMap::new(), unresolved: Vec::new() };
    for entry in list.iter() {
        let mut want = |ip: IpAddr, port: u16, optional: bool| {
            let literal =
                wanted.endpoints.entry(Endpoint::Tcp(SocketAddr::new(ip, port))).or_insert(optional);
            *literal &= optional;
        };
        match entry {
            ListenAddress::Any(port) => {
                want(Ipv4Addr::UNSPECIFIED.into(), *port, true);
                want(Ipv6Addr::UNSPECIFIED.into(), *port, true);
            }
            ListenAddress::Ip(ip, port) => want(*ip, *port, false),
            ListenAddress::Unix(path) => drop(wanted.endpoints.insert(Endpoint::Unix(path.clone()), false)),
            ListenAddress::Name(name, port) => match look_up(name, *port).await {
                Ok(addresses) => addresses.into_iter().for_each(|a| want(a.ip(), *port, true)),
                Err(error) => wanted.unresolved.push((entry.clone(), Error::Resolve(error))),
            },
        }
    }
    wanted
}

async fn look_up(name: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let look = tokio::net::lookup_host((name, port));
    let found = tokio::time::timeout(PATIENCE, look).await.map_err(std::io::Error::from)??;
    Ok(found.take(MAX_ADDRESSES).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_star_is_both_families_and_a_name_all_its_addresses() {
        let wanted = resolve(&"*:5400,127.0.0.1:5401,/tmp/s".parse().unwrap()).await;
        let mut shown: Vec<String> = wanted.endpoints.keys().map(Endpoint::to_string).collect();
        shown.sort();
        assert_eq!(shown, ["/tmp/s", "0.0.0.0:5400", "127.0.0.1:5401", "[::]:5400"]);
        let named = resolve(&"localhost:5400".parse().unwrap()).await;
        assert!(named.endpoints.contains_key(&Endpoint::Tcp("127.0.0.1:5400".parse().unwrap())));
    }

    #[tokio::test]
    async fn a_name_that_fails_now_closes_nothing() {
        let wanted = resolve(&"no-such-host.invalid:5400".parse().unwrap()).await;
        assert_eq!(wanted.unresolved.len(), 1);
        assert!(wanted.keeps(&Endpoint::Tcp("192.0.2.1:5400".parse().unwrap())));
        assert!(!wanted.keeps(&Endpoint::Tcp("192.0.2.1:5401".parse().unwrap())));
    }
}
