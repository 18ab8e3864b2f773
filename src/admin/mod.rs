//! Probes, metrics, the contract with consumers for programs, and the inspector for people, on
//! their own listener.
//!
//! Live means that the process answers. Ready means that a callback would be accepted: the journal
//! is open, has room for the largest one, and the edge is not stopping.
//!
//! **Invariant:** Kafka's absence alone never makes the edge unready. A full journal does.

mod inspector;

use std::{io, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde_json::Value as Json;
use tokio::{net::TcpListener, runtime::Handle};

use self::inspector::Inspector;
use crate::{
    event::{Topic, schema},
    http::{Handler, Phase, RequestGuard, State, answer, serve_admin},
};

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, state: State) {
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    serve_admin(listener, Inspector::new(state, is_local)).await;
}

impl Handler for Inspector {
    type Body = inspector::Body;

    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        guard: RequestGuard,
    ) -> io::Result<Response<inspector::Body>> {
        // Who may reach this listener may use it.
        guard.trust();
        let mut response = match Self::has(request.uri().path()) {
            true => self.answer(request, guard).await,
            false => probe(&self.state, &request).map(Either::Left),
        };
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(header::CACHE_CONTROL, no_store);
        Ok(response)
    }
}

fn probe(state: &State, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const TEXT: &str = prometheus::TEXT_FORMAT;
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, Full::default());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let (status, content_type, body) = match request.uri().path() {
        "/livez" => (StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => match failing_checks(state).join(", ") {
            failing if failing.is_empty() => (StatusCode::OK, TEXT, "ready\n".into()),
            failing => {
                let why = format!("not ready: {failing}\n");
                (StatusCode::SERVICE_UNAVAILABLE, TEXT, why.into())
            }
        },
        "/metrics" => (StatusCode::OK, TEXT, metrics(state).into()),
        path => match document(state, path) {
            Some(document) => {
                (StatusCode::OK, "application/json", format!("{document:#}\n").into())
            }
            None => (StatusCode::NOT_FOUND, TEXT, Bytes::new()),
        },
    };
    answer(status, content_type, Full::new(body))
}

/// The contract with consumers, for programs: `schemas/` as in `docs`, and the AsyncAPI document
/// with the names of the running topics.
fn document(state: &State, path: &str) -> Option<Json> {
    if path == "/asyncapi.json" {
        let topics = &state.config.load().topics;
        return Some(schema::asyncapi(|topic| topics.name(topic), topics.key_by_conversation));
    }
    let name = path.strip_prefix("/schemas/")?.strip_suffix(".json")?;
    Some(schema::schema(Topic::ALL.into_iter().find(|topic| topic.as_str() == name)?))
}

/// Names of the checks that fail. Updates the metric of each.
fn failing_checks(state: &State) -> Vec<&'static str> {
    let checks = [
        ("journal", state.journal.failure().is_none()),
        ("room", state.journal.has_room(state.config.load().http.largest_record_bytes())),
        ("serving", *state.phase.borrow() == Phase::Serving),
    ];
    for (check, holds) in checks {
        state.metrics.ready.with_label_values(&[check]).set(holds.into());
    }
    checks.into_iter().filter(|(_, holds)| !holds).map(|(check, _)| check).collect()
}

fn metrics(state: &State) -> String {
    state.journal.refresh_metrics();
    failing_checks(state);
    state.metrics.observe_runtime(&Handle::current().metrics());
    state.metrics.encode()
}
