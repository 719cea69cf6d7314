//! Serving HTTP/1 for `answer` and for the pages of other services, and the agent line: one task a connection, each bounded in time and
//! memory, on a network thread for HTTP and one for the agent line.

use super::answer::{Answer, Check, Pages, answer, lag_of_query, refusal};
use super::facts::Facts;
use super::health::Health;
use super::inquiry::Inquiry;
use super::metrics::MoreMetrics;
use super::shared::Shared;
use super::snapshot::Snapshot;
use super::{agent, sabotage};
use crate::bridge::{Bridge, Level};
use crate::net::linger;
use crate::net::listener::{Accepted, Listener, Peer, Stream};
use crate::net::places::Places;
use crate::net::slots::Slot;
use crate::settings::LagLimit;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// From the first byte that we wait for to the end of the request's head; also how long an idle connection is kept.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// The longest life of one connection, requests and slow reading included.
const LIFE: Duration = Duration::from_secs(60);

/// Bytes of a request's head, and of what is buffered of an answer. hyper's least is 8 kB.
const BUFFER: usize = 16 * 1024;

/// Lines of a request's head.
const HEADERS: usize = 64;

/// How long a closing connection may go on sending.
const LINGER: Duration = Duration::from_secs(1);

/// Pause after an accept that failed for lack of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers agent and HTTP checks; cloned for each listener and connection.
#[derive(Clone)]
pub struct Checks {
    pub bridge: Bridge<Facts>,
    pub shared: &'static Shared,
    pub inquiry: Inquiry,
    /// Those of this kind of check.
    pub places: Arc<Places>,
    /// The metrics of other services.
    pub more: MoreMetrics,
    /// What answers instead of the checks, on a port of another service.
    pub pages: Option<Pages>,
}

impl Checks {
    /// Serves an HTTP listener until it is dropped.
    pub async fn serve_http(self, listener: Listener, slot: &'static Slot) {
        let checks = self.clone();
        let name = if self.pages.is_some() { "stream" } else { "http" };
        self.serve(listener, slot, name, move |stream| checks.clone().http_connection(stream, slot)).await;
    }

    /// Serves an agent listener until it is dropped.
    pub async fn serve_agent(self, listener: Listener, slot: &'static Slot) {
        let checks = self.clone();
        self.serve(listener, slot, "agent", move |stream| checks.clone().agent_connection(stream, slot))
            .await;
    }

    async fn serve<W>(
        &self,
        listener: Listener,
        slot: &'static Slot,
        name: &'static str,
        connection: impl Fn(Stream) -> W,
    ) where
        W: Future<Output = ()> + Send + 'static,
    {
        let mut said = false;
        loop {
            match listener.accept().await.and_then(|client| self.admit(client, slot)) {
                Ok(Some(stream)) => {
                    if self.places.wait().await {
                        slot.failed.fetch_add(1, Relaxed);
                    }
                    let guard = PanicGuard { bridge: self.bridge.clone(), name };
                    let connection = connection(stream);
                    Places::spawn(&self.places, async move {
                        let _guard = guard;
                        connection.await;
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    slot.failed.fetch_add(1, Relaxed);
                    if !std::mem::replace(&mut said, true) {
                        self.bridge
                            .log(Level::Warning, format!("status {name} could not accept a check: {error}"));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
            // A check that was just accepted is answered before the next is.
            tokio::task::yield_now().await;
        }
    }

    fn admit(&self, client: Accepted, slot: &Slot) -> std::io::Result<Option<Stream>> {
        if let Peer::Tcp(address) = client.peer
            && !self.bridge.settings().allow.permits(address)
        {
            slot.refused.fetch_add(1, Relaxed);
            return Ok(None);
        }
        client.into_stream().map(Some)
    }

    async fn agent_connection(self, mut stream: Stream, slot: &'static Slot) {
        let line = self.agent_line().await;
        match timeout(LINGER, stream.write_all(line.as_bytes())).await {
            Ok(Ok(())) => slot.served.fetch_add(1, Relaxed),
            _ => slot.failed.fetch_add(1, Relaxed),
        };
        linger::close(&mut stream, LINGER).await;
    }

    async fn agent_line(&self) -> String {
        let limit = self.bridge.settings().max_lag;
        // Its judgement is that of /readiness, so it needs to know the same.
        let known = self.inquiry.known(Check::Readiness, limit).await;
        agent::line(&known.facts, &Health::of(&known.facts, limit, known.upstream.as_ref()), limit)
    }

    async fn http_connection(self, mut stream: Stream, slot: &'static Slot) {
        let answered = AtomicBool::new(false);
        let answer = service_fn(|request| {
            answered.store(true, Relaxed);
            self.respond(request, slot)
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(BUFFER)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(&mut stream), answer);
        let ended_well = matches!(timeout(LIFE, serving).await, Ok(Ok(())));
        // A connection that was kept open after an answer and then ran out of time has not failed.
        if !ended_well && !answered.load(Relaxed) {
            slot.failed.fetch_add(1, Relaxed);
        }
        linger::close(&mut stream, LINGER).await;
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        slot: &Slot,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (method, uri) = (request.method(), request.uri());
        if let Some(pages) = &self.pages {
            slot.served.fetch_add(1, Relaxed);
            return Ok(response(pages(method.as_str(), uri.path())));
        }
        if !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            let refused = refusal(405, "only GET, HEAD and OPTIONS are answered");
            return Ok(response(Answer { allow: Some("GET, HEAD, OPTIONS"), ..refused }));
        }
        sabotage::break_on_purpose(uri.path(), &self.bridge);
        let answer = match (Check::from_path(uri.path()), lag_of_query(uri.query())) {
            (Some(check), Ok(lag)) => self.check(check, lag).await,
            (Some(_), Err(error)) => refusal(400, &error),
            (None, _) => refusal(404, "no such check; see the README for the paths"),
        };
        slot.served.fetch_add(1, Relaxed);
        Ok(response(answer))
    }

    async fn check(&self, check: Check, lag: Option<LagLimit>) -> Answer {
        let settings = self.bridge.settings();
        let known = self.inquiry.known(check, lag.or(settings.max_lag)).await;
        answer(
            check,
            lag,
            &Snapshot { known: &known, settings: &settings, shared: self.shared, more: &*self.more },
        )
    }
}

/// A panic in a connection ends the worker, which is started again: it may have left anything behind.
struct PanicGuard {
    bridge: Bridge<Facts>,
    name: &'static str,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.bridge.fail(format!("a {} connection panicked", self.name));
        }
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(methods) = answer.allow {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    }
    response
}
