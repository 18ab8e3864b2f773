//! The public listener: takes calls of `/hooks/{source}`, and answers 200 once they are durable.
//!
//! `listener` accepts connections and bounds them, `connection` watches one, `accept` handles a
//! request with what `sources` has resolved, `auth` checks secrets, `body` bounds memory, `error`
//! is the only mapping of a refusal to a status.
//!
//! The handler is a service straight on hyper: there is one route, and a router with its boxed
//! bodies and futures costs more than the handling itself. The admin listener is axum's.
//!
//! **Invariant:** nothing that a caller sends (body, ids, secrets, paths) is logged or becomes a
//! label.
//! **Invariant:** 200 means durable; whatever Kafka does is not known here.

mod accept;
mod auth;
mod body;
mod connection;
mod descriptors;
mod error;
mod listener;
mod sources;
pub mod tls;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, sync::watch};

use crate::{config::Config, journal::Journal, metrics::Metrics};

/// How far the process is on its way to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Serving,
    /// Still accepting, and telling callers to go elsewhere: `Connection: close`, GOAWAY.
    Draining,
    /// No new connections; what is in flight is finished.
    Closing,
}

/// What the listener works with.
pub struct State {
    /// Sources are taken from it anew when it changes; the limits are those of the start.
    pub config: Arc<ArcSwap<Config>>,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
}

/// Serves until the phase is [`Phase::Closing`] (or its sender is gone) and every connection has
/// ended.
pub async fn serve(
    listener: TcpListener,
    certificates: Option<Arc<tls::Certificates>>,
    state: State,
    phase: watch::Receiver<Phase>,
) {
    listener::Listener::new(listener, certificates, state, phase).run().await;
}
