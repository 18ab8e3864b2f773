//! Probes and metrics, on a listener of their own.
//!
//! `/livez` is 200 as long as the process can answer. `/readyz` is 200 while calls can be accepted:
//! the journal is open and has room, and the edge is not on its way to stop. `/metrics` is what
//! Prometheus scrapes.
//!
//! **Invariant:** Kafka's absence never makes the edge unready.

use std::sync::Arc;

use axum::{
    Json, Router, extract,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::{net::TcpListener, runtime::Handle, sync::watch};

use crate::{http::Phase, journal::Journal, metrics::Metrics};

/// What the probes look at.
#[derive(Clone)]
pub struct State {
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub phase: watch::Receiver<Phase>,
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, state: State) {
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the admin listener ended");
    }
}

async fn readyz(extract::State(state): extract::State<State>) -> Response {
    let [journal, room, serving] = state.check();
    let ready = journal && room && serving;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let checks = json!({ "journal": journal, "room": room, "serving": serving });
    (status, Json(json!({ "ready": ready, "checks": checks }))).into_response()
}

async fn metrics(extract::State(state): extract::State<State>) -> Response {
    state.check();
    state.journal.observe();
    state.metrics.observe_runtime(&Handle::current());
    match state.metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

impl State {
    /// Whether the journal is open, has room, and the edge serves; told to the metric `ready` too.
    fn check(&self) -> [bool; 3] {
        let checks = [
            ("journal", self.journal.is_open()),
            ("room", self.journal.has_room()),
            ("serving", *self.phase.borrow() == Phase::Serving),
        ];
        checks.map(|(name, holds)| {
            self.metrics.ready.with_label_values(&[name]).set(holds.into());
            holds
        })
    }
}
