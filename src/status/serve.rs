//! The status worker's network threads: those of the banner, and one for agent line and HTTP. Called by main
//! after it has blocked every signal.

use super::banner::Banner;
use super::facts::Facts;
use super::http::Checks;
use super::inquiry::Inquiry;
use super::shared::{AGENT, BANNER, HTTP, Shared};
use super::upstream::{Ask, Upstream};
use crate::bridge::Bridge;
use crate::net::keeper::{Family, keep};
use crate::net::threads::Threads;

const BANNERS: Family = Family {
    kind: BANNER,
    name: "status banner",
    setting: "postern.status_listen",
    addresses: |settings| &settings.banner,
};

const AGENTS: Family = Family {
    kind: AGENT,
    name: "status agent",
    setting: "postern.agent_listen",
    addresses: |settings| &settings.agent,
};

const HTTPS: Family = Family {
    kind: HTTP,
    name: "status http",
    setting: "postern.http_listen",
    addresses: |settings| &settings.http,
};

/// Starts the threads; dropping what is returned ends them within [`Threads::END`].
///
/// # Errors
/// When the system gives no thread or no epoll instance.
pub fn start(
    bridge: &Bridge<Facts>,
    shared: &'static Shared,
    asker: Box<dyn Ask>,
) -> std::io::Result<Threads> {
    let mut threads = Threads::new(bridge);
    let to_banner = bridge.clone();
    threads.spawn("postern banner", bridge, move || {
        let banner = Banner { bridge: to_banner.clone(), shared };
        keep(to_banner, BANNERS, &shared.listeners, move |listener, slot| {
            banner.clone().serve(listener, slot)
        })
    })?;
    let to_http = bridge.clone();
    threads.spawn("postern http", bridge, move || async move {
        let (upstream, asking) = Upstream::new(asker, to_http.stop());
        let inquiry = Inquiry::new(to_http.clone(), upstream);
        let checks = Checks { bridge: to_http.clone(), shared, inquiry };
        let (agent, http) = (checks.clone(), checks);
        let slots = &shared.listeners;
        tokio::join!(
            asking,
            keep(to_http.clone(), AGENTS, slots, move |listener, slot| agent
                .clone()
                .serve_agent(listener, slot)),
            keep(to_http, HTTPS, slots, move |listener, slot| http.clone().serve_http(listener, slot)),
        );
    })?;
    Ok(threads)
}
