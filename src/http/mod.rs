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

use std::sync::Arc;

use arc_swap::ArcSwap;

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

/// What the public listener works with.
pub struct State {
    /// Changes of its sources are taken up. The limits are those of the start.
    pub config: Arc<ArcSwap<Config>>,
    /// Where accepted callbacks go.
    pub journal: Journal,
    /// Where calls are counted.
    pub metrics: Arc<Metrics>,
    /// Where calls are kept for people who look at them.
    pub calls: Arc<RecentCalls>,
}
