//! From what a list says to concrete addresses: `*` spelled out, names resolved. Network threads; a name server
//! that does not answer holds up only the listeners of one kind, never main.

use super::Error;
use super::listener::Endpoint;
use crate::settings::{ListenAddress, ListenList};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long after a failure a name is resolved again.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// How long one name may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Addresses of one name that are listened on.
const MAX_ADDRESSES: usize = 4;

/// What a list comes to now.
pub(super) struct Wanted {
    /// The value says whether the machine may lack the address: it is one of several that an entry stands for.
    pub endpoints: HashMap<Endpoint, bool>,
    pub unresolved: Vec<(ListenAddress, Error)>,
    /// A look-up failed, also where the last known addresses stand in.
    pub look_again: bool,
}

impl Wanted {
    /// Whether an open endpoint stays.
    pub fn keeps(&self, open: &Endpoint, optional: bool) -> bool {
        self.endpoints.get(open) == Some(&optional)
    }
}

/// Remembers look-ups that have not ended: a name server that is silent gets one question a name, however often it is
/// wanted, because a look-up cannot be cancelled.
#[derive(Default)]
pub(super) struct Resolver {
    under_way: HashMap<(String, u16), LookUp>,
    /// What names were last: a name server that fails for a moment closes nothing.
    known: HashMap<(String, u16), Vec<SocketAddr>>,
}

type LookUp = JoinHandle<io::Result<Vec<SocketAddr>>>;

impl Resolver {
    pub async fn resolve(&mut self, list: &ListenList) -> Wanted {
        self.start(list);
        let deadline = Instant::now() + PATIENCE;
        let mut wanted = Wanted { endpoints: HashMap::new(), unresolved: Vec::new(), look_again: false };
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
                ListenAddress::Unix(path) => {
                    wanted.endpoints.insert(Endpoint::Unix(path.clone()), false);
                }
                ListenAddress::Name(name, port) => match self.look_up(name, *port, deadline).await {
                    Ok((addresses, fresh)) => {
                        wanted.look_again |= !fresh;
                        let several = addresses.len() > 1;
                        addresses.into_iter().for_each(|a| want(a.ip(), *port, several));
                    }
                    Err(error) => {
                        wanted.look_again = true;
                        wanted.unresolved.push((entry.clone(), Error::Resolve(error)));
                    }
                },
            }
        }
        wanted
    }

    /// Starts all look-ups at once, so that they take no longer together than one.
    fn start(&mut self, list: &ListenList) {
        for entry in list.iter() {
            if let ListenAddress::Name(name, port) = entry {
                let key = (name.clone(), *port);
                self.under_way.entry(key.clone()).or_insert_with(|| {
                    tokio::task::spawn_blocking(move || {
                        let mut found: Vec<SocketAddr> = key.to_socket_addrs()?.collect();
                        found.dedup();
                        found.truncate(MAX_ADDRESSES);
                        Ok(found)
                    })
                });
            }
        }
    }

    /// The addresses of a name, and whether they are of this look-up and not of an earlier one.
    async fn look_up(
        &mut self,
        name: &str,
        port: u16,
        deadline: Instant,
    ) -> io::Result<(Vec<SocketAddr>, bool)> {
        let key = (name.to_owned(), port);
        let found = match self.under_way.get_mut(&key) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(look_up) => match tokio::time::timeout_at(deadline, look_up).await {
                Ok(ended) => {
                    self.under_way.remove(&key);
                    ended.map_err(io::Error::other).flatten()
                }
                Err(late) => Err(late.into()),
            },
        };
        match found {
            Ok(found) => {
                self.known.insert(key, found.clone());
                Ok((found, true))
            }
            Err(error) => self.known.get(&key).cloned().map(|known| (known, false)).ok_or(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolve(list: &ListenList) -> Wanted {
        Resolver::default().resolve(list).await
    }

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
        let list = "no-such-host.invalid:5400".parse().unwrap();
        let mut resolver = Resolver::default();
        assert_eq!(resolver.resolve(&list).await.unresolved.len(), 1);
        let address: SocketAddr = "192.0.2.1:5400".parse().unwrap();
        resolver.known.insert(("no-such-host.invalid".to_owned(), 5400), vec![address]);
        let wanted = resolver.resolve(&list).await;
        assert!(
            wanted.keeps(&Endpoint::Tcp(address), false) && wanted.unresolved.is_empty() && wanted.look_again
        );
    }
}
