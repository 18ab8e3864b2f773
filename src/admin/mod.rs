//! Probes and metrics, on a listener of their own.
//!
//! Live means that the process answers. Ready means that a callback would be accepted: journal
//! open, room left, not stopping.
//!
//! **Invariant:** Kafka's absence never makes the edge unready.

use std::sync::Arc;

use axum::{
    Router, extract,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, runtime::Handle, sync::watch};

use crate::{http::Phase, journal::Journal, metrics::Metrics};

/// What probes look at.
#[derive(Clone)]
pub struct State {
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub phase: watch::Receiver<Phase>,
}

/// Serves until the process ends, or the listener fails.
pub async fn serve(listener: TcpListener, state: State) {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the admin listener ended");
    }
}

impl State {
    /// The parts of readiness, brought up to date in the metric.
    async fn checks(&self) -> [(&'static str, bool); 3] {
        let open = tokio::select! {
            biased;
            _ = self.journal.failed() => false,
            () = std::future::ready(()) => true,
        };
        let checks = [
            ("journal", open),
            ("room", self.journal.has_room()),
            ("serving", *self.phase.borrow() == Phase::Serving),
        ];
        for (check, holds) in checks {
            self.metrics.ready.with_label_values(&[check]).set(i64::from(holds));
        }
        checks
    }
}

async fn readyz(extract::State(state): extract::State<State>) -> Response {
    let checks = state.checks().await;
    let failing: Vec<_> =
        checks.iter().filter(|(_, holds)| !holds).map(|(check, _)| *check).collect();
    if failing.is_empty() {
        return "ready\n".into_response();
    }
    let why = format!("not ready: {}\n", failing.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn metrics(extract::State(state): extract::State<State>) -> Response {
    state.journal.refresh_metrics();
    state.checks().await;
    state.metrics.runtime.observe(&Handle::current().metrics());
    match state.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
