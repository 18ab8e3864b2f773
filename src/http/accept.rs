//! One call: bounded, checked, made a [`Callback`], durable, answered.
//!
//! The callback borrows from the request and is written straight into the journal's buffer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use fail::fail_point;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Version, header, header::AsHeaderName,
    request,
};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    State,
    body::{self, Budget},
    connection::{Busy, Counted},
    error::Refusal,
    sources::{Registry, Source},
};
use crate::{
    callback::Callback,
    config,
    journal::{Journal, Position},
    metrics::Metrics,
};

/// What all requests share.
pub(super) struct Acceptor {
    pub(super) sources: Registry,
    pub(super) metrics: Arc<Metrics>,
    journal: Journal,
    budget: Budget,
    max_body_bytes: usize,
    body_timeout: Duration,
    draining: AtomicBool,
    wait_for_kafka: Duration,
    /// The last position that was waited for in vain. As long as it is not committed there is no
    /// sense in waiting: older callbacks than that wait would last are pending.
    waited_in_vain: AtomicU64,
}

impl Acceptor {
    pub(super) fn new(state: State, limits: &config::Http) -> Self {
        let State { config, journal, metrics } = state;
        Self {
            sources: Registry::new(config, Arc::clone(&metrics)),
            metrics,
            journal,
            budget: Budget::new(limits.max_memory_bytes),
            max_body_bytes: limits.max_body_bytes,
            body_timeout: limits.body_timeout,
            draining: AtomicBool::new(false),
            wait_for_kafka: limits.wait_for_kafka,
            waited_in_vain: AtomicU64::new(0),
        }
    }

    /// From now on answers say that the connection ends.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Handles one request; `busy` lasts until nothing more is read of it.
    pub(super) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        busy: Busy,
    ) -> Response<Full<Bytes>> {
        let since = Instant::now();
        let _in_flight = Counted::new(&self.metrics.http_in_flight);
        let (head, mut body) = request.into_parts();
        let sources = self.sources.load();
        let source = sources.find(head.uri.path());
        let result = self.accept(source, &head, &mut body, since).await;
        if let Some(source) = source {
            source.duration.observe(since.elapsed().as_secs_f64());
        }
        let mut closes = self.draining.load(Ordering::Relaxed);
        let mut response = result.unwrap_or_else(|refusal| {
            closes |= refusal.closes();
            self.refused(source, &head.method, refusal, body, busy)
        });
        if closes && head.version <= Version::HTTP_11 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Counts a refusal, answers it, and reads on meanwhile: a caller who is cut off while sending
    /// may not see the answer.
    fn refused(
        &self,
        source: Option<&Source>,
        method: &Method,
        refusal: Refusal,
        body: Incoming,
        busy: Busy,
    ) -> Response<Full<Bytes>> {
        let response = refusal.response();
        self.sources.count_refused(source, refusal);
        self.sources.count_answered(source, method, response.status().as_str());
        if !body.is_end_stream() {
            tokio::spawn(async move {
                body::drain(body).await;
                drop(busy);
            });
        }
        response
    }

    async fn accept(
        &self,
        source: Option<&Source>,
        head: &request::Parts,
        body: &mut Incoming,
        since: Instant,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        fail_point!(&format!("accept {}", head.method));
        let source = source.ok_or(Refusal::UnknownSource)?;
        if !source.check.passes(&head.headers) {
            return Err(Refusal::Auth);
        }
        let deadline = since + self.body_timeout;
        let mut held = body::read(body, &self.budget, self.max_body_bytes, deadline).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let callback = Callback {
            receipt: Uuid::now_v7(),
            received_at_ms: now.as_millis() as u64,
            source: &source.name,
            raw: source.raw,
            method: head.method.as_str(),
            content_type: text(&head.headers, header::CONTENT_TYPE),
            content_encoding: text(&head.headers, header::CONTENT_ENCODING),
            traceparent: text(&head.headers, "traceparent"),
            body: &[],
        };
        let body_bytes = held.len();
        let len = callback.encoded_len() + body_bytes;
        // The body is what a record ends with, so it need not be in one piece.
        let write = |record: &mut _| {
            callback.encode(record);
            held.move_to(record);
        };
        let position = self.journal.append(len, &source.accepted, write).await?;
        source.last_callback.set(now.as_secs_f64());
        self.metrics.http_request_body_bytes.observe(body_bytes as f64);
        source.count_answered(&head.method);
        Ok(accepted(callback.receipt, self.is_in_kafka(position).await))
    }

    /// Whether the callback was committed in time; none where nobody asked for it.
    async fn is_in_kafka(&self, position: Position) -> Option<bool> {
        if self.wait_for_kafka.is_zero() {
            return None;
        }
        let waits = self.waited_in_vain.load(Ordering::Relaxed) < self.journal.committed().as_u64();
        let in_kafka = waits && self.journal.wait_committed(position, self.wait_for_kafka).await;
        if waits && !in_kafka {
            self.waited_in_vain.fetch_max(position.as_u64(), Ordering::Relaxed);
        }
        let label = if in_kafka { "true" } else { "false" };
        self.metrics.callbacks_answered_total.with_label_values(&[label]).inc();
        Some(in_kafka)
    }
}

/// A header as text, where it is text.
fn text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
}

fn accepted(receipt: Uuid, in_kafka: Option<bool>) -> Response<Full<Bytes>> {
    let body = match in_kafka {
        None => format!("{{\"receipt\":\"{receipt}\"}}"),
        Some(in_kafka) => format!("{{\"receipt\":\"{receipt}\",\"in_kafka\":{in_kafka}}}"),
    };
    let mut response = Response::new(Full::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
