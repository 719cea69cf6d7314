//! The status worker's network threads: those of the banner, one for the agent line, one for both ports of HTTP. Called by main
//! after it has blocked every signal.

use super::answer::Pages;
use super::banner::Banner;
use super::facts::Facts;
use super::http::Checks;
use super::inquiry::Inquiry;
use super::metrics::MoreMetrics;
use super::shared::{AGENT, BANNER, HTTP, STREAM, Shared};
use super::upstream::{Ask, Upstream};
use crate::bridge::{Bridge, Level};
use crate::net::keeper::{Family, keep};
use crate::net::places::Places;
use crate::net::threads::Threads;
use std::sync::Arc;

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

const STREAMS: Family = Family {
    kind: STREAM,
    name: "status stream",
    setting: "postern.stream_listen",
    addresses: |settings| &settings.stream,
};

/// Starts the threads; dropping what is returned ends them within [`Threads::END`]. `more` gives the metrics of other services,
/// `pages` the answers of the change streams' port.
///
/// # Errors
/// When the system gives no thread or no epoll instance.
pub fn start(
    bridge: &Bridge<Facts>,
    shared: &'static Shared,
    asker: Box<dyn Ask>,
    more: MoreMetrics,
    pages: Pages,
) -> std::io::Result<Threads> {
    let mut threads = Threads::new(bridge);
    let to_banner = bridge.clone();
    threads.spawn("postern banner", bridge, move || {
        let banner = Banner { bridge: to_banner.clone(), shared };
        keep(to_banner, BANNERS, &shared.listeners, move |listener, slot| {
            banner.clone().serve(listener, slot)
        })
    })?;
    // The agent has a thread of its own, so that no HTTP client can delay it, and asks the primary through HTTP's.
    let (upstream, asking) = {
        let to_log = bridge.clone();
        Upstream::new(asker, bridge.stop(), move |words| to_log.log(Level::Warning, words))
    };
    let inquiry = Inquiry::new(bridge.clone(), upstream);
    let checks = || Checks {
        bridge: bridge.clone(),
        shared,
        inquiry: inquiry.clone(),
        places: Arc::default(),
        more: Arc::clone(&more),
        pages: None,
    };
    let (agent, to_agent) = (checks(), bridge.clone());
    threads.spawn("postern agent", bridge, move || {
        keep(to_agent, AGENTS, &shared.listeners, move |listener, slot| {
            agent.clone().serve_agent(listener, slot)
        })
    })?;
    let (http, to_http, to_stream) = (checks(), bridge.clone(), bridge.clone());
    let stream = Checks { places: Arc::new(Places::few()), pages: Some(pages), ..checks() };
    threads.spawn("postern http", bridge, move || async move {
        let serve = move |listener, slot| http.clone().serve_http(listener, slot);
        let serve_stream = move |listener, slot| stream.clone().serve_http(listener, slot);
        tokio::join!(
            asking,
            keep(to_http, HTTPS, &shared.listeners, serve),
            keep(to_stream, STREAMS, &shared.listeners, serve_stream),
        );
    })?;
    Ok(threads)
}
