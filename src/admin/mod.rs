//! Probes, metrics, the contract with consumers for programs, and the inspector for people, on
//! their own listener.
//!
//! Live means that the process answers. Ready means that a callback would be accepted: the journal
//! is open, has room for the largest one, and the edge is not stopping.
//!
//! **Invariant:** the edge stays ready while Kafka is away.

mod inspector;

use std::{io, net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde_json::Value as Json;
use tokio::{net::TcpListener, runtime::Handle, sync::watch};

use self::inspector::Inspector;
use crate::{
    calls::RecentCalls,
    config::Config,
    event::{Topic, schema},
    http::{Handler, Phase, RequestGuard, serve_admin},
    journal::Journal,
    metrics::Metrics,
};

/// What probes and people look at.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types say what each is")]
pub struct State {
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub phase: watch::Receiver<Phase>,
    pub config: Arc<ArcSwap<Config>>,
    pub calls: Arc<RecentCalls>,
    /// Address of the public listener.
    pub public: SocketAddr,
}

/// What the admin listener answers.
struct Answers {
    state: State,
    inspector: Arc<Inspector>,
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, state: State) {
    // Probes are answered until the process ends, so this listener does not follow the edge's
    // phase.
    let (_serving, phase) = watch::channel(Phase::Serving);
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let inspector = Inspector::new(state.clone(), is_local);
    serve_admin(listener, Answers { state, inspector }, phase).await;
}

impl Handler for Answers {
    type Body = inspector::Body;

    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        guard: RequestGuard,
    ) -> io::Result<Response<inspector::Body>> {
        let mut response = match Inspector::has(request.uri().path()) {
            true => Arc::clone(&self.inspector).answer(request, guard).await,
            false => self.state.answer(&request)?.map(Either::Left),
        };
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(header::CACHE_CONTROL, no_store);
        Ok(response)
    }
}

impl State {
    fn answer(&self, request: &Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let (mut status, mut content_type) = (StatusCode::OK, prometheus::TEXT_FORMAT);
        let body = match request.uri().path() {
            _ if ![Method::GET, Method::HEAD].contains(request.method()) => {
                status = StatusCode::METHOD_NOT_ALLOWED;
                Bytes::new()
            }
            "/livez" => Bytes::from_static(b"ok\n"),
            "/readyz" => {
                let body;
                (status, body) = self.readiness();
                body
            }
            "/metrics" => self.metrics().inspect_err(|error| {
                tracing::error!(%error, "the metrics cannot be written");
            })?,
            path => match self.document(path) {
                Some(document) => {
                    content_type = "application/json";
                    format!("{document:#}\n").into()
                }
                None => {
                    status = StatusCode::NOT_FOUND;
                    Bytes::new()
                }
            },
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let content_type = HeaderValue::from_static(content_type);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        Ok(response)
    }

    /// The contract with consumers, for programs: `schemas/` as in `docs`, and the AsyncAPI document
    /// with the names of the running topics.
    fn document(&self, path: &str) -> Option<Json> {
        if path == "/asyncapi.json" {
            let topics = &self.config.load().topics;
            return Some(schema::asyncapi(|topic| topics.name(topic), topics.key_by_conversation));
        }
        let name = path.strip_prefix("/schemas/")?.strip_suffix(".json")?;
        Some(schema::schema(Topic::ALL.into_iter().find(|topic| topic.as_str() == name)?))
    }

    /// Names of the checks that fail. Updates the metric of each.
    fn failing_checks(&self) -> Vec<&'static str> {
        let checks = [
            ("journal", self.journal.failure().is_none()),
            ("room", self.journal.has_room(self.config.load().http.largest_record_bytes())),
            ("serving", *self.phase.borrow() == Phase::Serving),
        ];
        for (check, holds) in checks {
            self.metrics.ready.with_label_values(&[check]).set(holds.into());
        }
        checks.into_iter().filter(|(_, holds)| !holds).map(|(check, _)| check).collect()
    }

    fn readiness(&self) -> (StatusCode, Bytes) {
        let failing = self.failing_checks();
        if failing.is_empty() {
            return (StatusCode::OK, Bytes::from_static(b"ready\n"));
        }
        let why = format!("not ready: {}\n", failing.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, why.into())
    }

    fn metrics(&self) -> io::Result<Bytes> {
        self.journal.refresh_metrics();
        self.failing_checks();
        self.metrics.observe_runtime(&Handle::current().metrics());
        Ok(self.metrics.encode().map_err(io::Error::other)?.into())
    }
}
