//! The public door: `/hooks/{source}`, answered 200 once the callback is durable.
//!
//! ```text
//! listener   connections: accepting, limits, TLS, draining      tls       certificates from files
//! activity   what one connection is doing, and for how long     sources   the configured sources, ready to use
//! accept     one request, from its head to its answer           auth      whether a secret is right
//! body       reading within size, time and memory               error     the only mapping to a status
//! receipt    names of accepted callbacks
//! ```
//!
//! There is one route and it takes every method, so there is no router: requests go from hyper to
//! [`accept`] directly. The limits are kept per connection, by one timer that is hardly ever
//! touched; `axum::serve` has no place for them.
//!
//! What ends a request early is counted once, in `http_rejections_total`, by its source where that
//! is known: the refusals of [`error`]; `timeout` for a head that does not come to its end;
//! `malformed` for what hyper answers by itself (400, 414, 431), for a caller that goes away within
//! a request, and for a failed TLS handshake.
//!
//! **Invariant:** 200 is answered after the append returned, and only then.
//! **Invariant:** bodies, secrets and what callers send as path are never logged.

mod accept;
mod activity;
mod auth;
mod body;
mod error;
mod listener;
mod receipt;
mod sources;
pub mod tls;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, sync::watch};

use crate::{config::Config, journal::Journal, metrics::Metrics};

/// Where the edge is on its way from start to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Serving,
    /// Still accepting; every answer asks to close the connection.
    Draining,
    /// No new connections; what is in flight is finished.
    Closing,
}

/// What requests are answered with.
#[derive(Clone)]
pub struct State {
    /// Sources are looked up at every request; the section `http` counts as it is at the start.
    pub config: Arc<ArcSwap<Config>>,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
}

/// Serves until `phase` says [`Closing`](Phase::Closing) (or nobody can say it any more) and every
/// connection has ended. Each of them ends within its own limits.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<tls::Certificates>>,
    state: State,
    phase: watch::Receiver<Phase>,
) {
    listener::run(listener, tls, state, phase).await;
}
