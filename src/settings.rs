//! The operator's settings as plain structs: defaults, parsing, limits. Pure; runs on whatever thread asks.
//!
//! Data flows one way: a setting in postgresql.conf is checked here when it is given (so a mistake is refused
//! at once and named), and read here again into [`Settings`] when a worker starts or reloads.

#![forbid(unsafe_code)]

mod allow;
mod lag;
mod listen;
mod pooler;

pub use allow::Allow;
pub use lag::LagLimit;
pub(crate) use lag::{ByteSize, Span};
pub use listen::{ListenAddress, ListenList, MAX_LIST_ENTRIES};
pub use pooler::{PoolerSettings, ServerDoor, TlsFiles};

/// The port of the banner when nothing else is said: bgw_replstatus's.
pub const DEFAULT_BANNER_PORT: u16 = 5400;

/// Everything that a worker's threads are told. Replaced as a whole on reload.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// `postern.status_listen`, or what `bgw_replstatus.port` and `.bind` say.
    pub banner: ListenList,
    /// `postern.agent_listen`.
    pub agent: ListenList,
    /// `postern.http_listen`.
    pub http: ListenList,
    /// `postern.stream_listen`.
    pub stream: ListenList,
    /// `postern.status_allow`: who may connect to the four kinds of ports above.
    pub allow: Allow,
    /// `postern.status_max_lag`; `None` is off.
    pub max_lag: Option<LagLimit>,
    pub pooler: PoolerSettings,
    /// Settings of the server itself that the status answers depend on.
    pub server: ServerSettings,
}

impl Settings {
    /// Whether every address is switched off.
    pub fn listens_nowhere(&self) -> bool {
        [&self.banner, &self.agent, &self.http, &self.stream].into_iter().all(ListenList::is_empty)
    }
}

/// Settings that belong to PostgreSQL and not to Postern.
#[derive(Clone, Default, PartialEq)]
pub struct ServerSettings {
    /// `primary_conninfo`; it may hold a password, so it is not printed.
    pub primary_conninfo: String,
    /// `cluster_name`.
    pub cluster_name: String,
    /// `unix_socket_permissions`, the mode of Unix sockets that we make.
    pub socket_mode: u32,
}

impl std::fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSettings").field("cluster_name", &self.cluster_name).finish_non_exhaustive()
    }
}

/// Why a setting's value is refused. The text goes into the DETAIL of the server's own message, which names
/// the setting.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("\"{0}\" is not an address: write host:port, *:port, [ipv6]:port or the path of a Unix socket")]
    Address(String),
    #[error("\"{0}\" has no valid port: write host:port with a port from 1 to 65535")]
    Port(String),
    #[error("the socket path \"{path}\" is longer than {limit} bytes")]
    PathTooLong { path: String, limit: usize },
    #[error("a list may have at most {MAX_LIST_ENTRIES} entries, this one has {0}")]
    TooManyEntries(usize),
    #[error("\"{0}\" is not an address range: write \"all\" or a list like 10.0.0.0/8, ::1/128")]
    Range(String),
    #[error(
        "\"{0}\" is not a lag limit: write bytes (\"16MB\"), a time (\"10s\") or 0 for none; \
         units are B, kB, MB, GB, TB and us, ms, s, min, h, d"
    )]
    Lag(String),
}

/// Where the banner listens, from the new setting and the two old ones.
///
/// A user of bgw_replstatus changes one word, so its settings win over our default; where both are given,
/// both are served. `old_port` is `None` when `bgw_replstatus.port` is not set; an empty `old_bind` likewise.
///
/// # Errors
/// When `status_listen` or `old_bind` is not an address; see [`Error`].
pub fn banner_addresses(
    status_listen: &str,
    status_listen_is_default: bool,
    old_port: Option<u16>,
    old_bind: &str,
) -> Result<ListenList, Error> {
    if old_port.is_none() && old_bind.is_empty() {
        return status_listen.parse();
    }
    let old = ListenList::old_style(old_bind, old_port.unwrap_or(DEFAULT_BANNER_PORT))?;
    if status_listen_is_default {
        return Ok(old);
    }
    Ok(old.joined(status_listen.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(list: Result<ListenList, Error>) -> String {
        list.unwrap().to_string()
    }

    #[test]
    fn old_settings_replace_the_default_and_join_an_explicit_list() {
        assert_eq!(shown(banner_addresses("*:5400", true, None, "")), "*:5400");
        assert_eq!(shown(banner_addresses("*:5400", true, Some(5402), "")), "0.0.0.0:5402");
        assert_eq!(shown(banner_addresses("*:5400", true, None, "127.0.0.1")), "127.0.0.1:5400");
        assert_eq!(
            shown(banner_addresses("[::1]:7000", false, Some(5402), "127.0.0.1")),
            "127.0.0.1:5402,[::1]:7000"
        );
        assert_eq!(
            shown(banner_addresses("0.0.0.0:5402", false, Some(5402), "")),
            "0.0.0.0:5402",
            "the same address twice is one listener"
        );
        assert_eq!(shown(banner_addresses("*:5400", true, Some(5402), "::1")), "[::1]:5402");
    }

    #[test]
    fn a_password_in_primary_conninfo_is_never_printed() {
        let settings = Settings {
            server: ServerSettings { primary_conninfo: "password=hunter2".into(), ..Default::default() },
            ..Default::default()
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
