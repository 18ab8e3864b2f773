//! The public listener: takes calls of `/hooks/{source}` and answers 200 once they are durable.
//!
//! `listener` accepts connections and speaks HTTP on them, `places` bounds their number, and
//! `activity` bounds what each may wait for. `accept` handles one call: `sources` finds its source,
//! `auth` checks the secret, `body` reads, `budget` bounds the memory of all calls, and `error`
//! turns a refusal into an answer.
//!
//! The handler is a plain hyper service: a router with boxed bodies and futures costs more than the
//! handling of the one route. The admin listener uses the same connections with other limits.
//!
//! **Invariant:** nothing that a caller sends (body, ids, secrets, paths) is logged or becomes a
//! label.
//! **Invariant:** 200 means durable. This room knows nothing of Kafka.

mod accept;
mod activity;
mod auth;
mod body;
mod budget;
mod error;
mod listener;
mod places;
mod sources;
pub mod tls;

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::sync::watch;

pub use self::listener::serve;
pub(crate) use self::{
    activity::RequestGuard,
    auth::{Digest256, digest, is_among},
    listener::{Handler, serve_admin},
    places::KEPT_DESCRIPTORS,
    sources::add_source,
};
use crate::{calls::RecentCalls, config::Config, journal::Journal, metrics::Metrics};

/// How far the process is on its way to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Accepting.
    Serving,
    /// Still accepting, and telling callers to go elsewhere: `Connection: close`, GOAWAY.
    Draining,
    /// No new connections. Requests in progress are finished.
    Closing,
}

/// What both listeners of an edge work with.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types say what each is")]
pub struct State {
    /// Changes of its sources are taken up. The limits are those of the start.
    pub config: Arc<ArcSwap<Config>>,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub calls: Arc<RecentCalls>,
    pub phase: watch::Receiver<Phase>,
    /// Address of the public listener.
    pub public: SocketAddr,
}

/// A header, if it is UTF-8.
pub(crate) fn header_text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| str::from_utf8(value.as_bytes()).ok())
}

/// An answer with this body.
pub(crate) fn answer<B>(status: StatusCode, content_type: &'static str, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
