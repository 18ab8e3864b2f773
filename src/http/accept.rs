//! One request, from its head to its answer.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, EXPECT},
    request::Parts,
};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Phase, State,
    activity::Activity,
    body::{self, Body, Budget},
    error::{Refusal, RefusalLog},
    receipt::Receipts,
    sources::{MethodLabel, Source, Sources},
};
use crate::{
    callback::Callback,
    journal::Journal,
    metrics::{Metrics, UNKNOWN_SOURCE},
};

/// The code that is counted for a caller that went away before its answer.
const GONE: &str = "499";

/// What all requests share.
pub(super) struct Hooks {
    pub(super) metrics: Arc<Metrics>,
    sources: Sources,
    journal: Journal,
    receipts: Receipts,
    budget: Budget,
    body_bytes_max: usize,
    body_timeout: Duration,
    phase: watch::Receiver<Phase>,
    refusals: RefusalLog,
}

impl Hooks {
    pub(super) fn new(state: State, phase: watch::Receiver<Phase>) -> Self {
        let State { config, journal, metrics } = state;
        let http = &config.load().http;
        Self {
            metrics: Arc::clone(&metrics),
            sources: Sources::new(Arc::clone(&config), metrics),
            journal,
            receipts: Receipts::new(),
            budget: Budget::new(http.max_memory_bytes),
            body_bytes_max: http.max_body_bytes,
            body_timeout: http.body_timeout,
            phase,
            refusals: RefusalLog::default(),
        }
    }

    /// Counts and logs a call that was not accepted.
    pub(super) fn refuse(&self, source: &str, refusal: Refusal) {
        self.metrics.http_rejections_total.with_label_values(&[source, refusal.reason()]).inc();
        self.refusals.note(source, refusal);
    }
}

/// A request that is being handled. It is counted when it is dropped, however that comes.
pub(super) struct Call {
    hooks: Arc<Hooks>,
    activity: Arc<Activity>,
    since: Instant,
    method: MethodLabel,
    version: Version,
    source: Option<Arc<Source>>,
    is_body_there: bool,
    answered: Option<StatusCode>,
}

impl Call {
    pub(super) fn begin(
        hooks: Arc<Hooks>,
        activity: Arc<Activity>,
        request: &Request<Incoming>,
    ) -> Self {
        let version = request.version();
        activity.begin(version == Version::HTTP_2);
        hooks.metrics.http_in_flight.inc();
        Self {
            hooks,
            activity,
            since: Instant::now(),
            method: MethodLabel::of(request.method()),
            version,
            source: None,
            is_body_there: false,
            answered: None,
        }
    }

    /// Answers. What went wrong is an answer too.
    pub(super) async fn answer(
        mut self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, mut incoming) = request.into_parts();
        let accepted = self.accept(&head, &mut incoming).await;
        let mut response = match accepted {
            Ok(receipt) => accepted_response(receipt),
            Err(refusal) => refusal.response(),
        };
        self.answered = Some(response.status());
        if let Err(refusal) = accepted {
            self.hooks.refuse(self.source_label(), refusal);
            self.settle_body(&head, incoming, refusal).await;
        }
        // Over HTTP/2 the listener says that, with GOAWAY.
        let is_last = *self.hooks.phase.borrow() != Phase::Serving || !self.is_body_there;
        if is_last && self.version != Version::HTTP_2 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// Takes the callback in; returns when it is durable.
    async fn accept(&mut self, head: &Parts, incoming: &mut Incoming) -> Result<Uuid, Refusal> {
        let hooks = &*self.hooks;
        let source = source_name(head.uri.path()).and_then(|name| hooks.sources.get(name));
        let source = &**self.source.insert(source.ok_or(Refusal::UnknownSource)?);
        if !source.door.admits(&head.headers) {
            return Err(Refusal::Auth);
        }
        let (bytes_max, time) = (hooks.body_bytes_max, hooks.body_timeout);
        let body = Body::read(incoming, &hooks.budget, bytes_max, time).await?;
        self.is_body_there = true;
        let received_at_ms = now_ms();
        let header = |name: HeaderName| head.headers.get(name).and_then(|text| text.to_str().ok());
        let callback = Callback {
            receipt: hooks.receipts.next(received_at_ms),
            received_at_ms,
            source: &source.name,
            raw: source.raw,
            method: head.method.as_str(),
            content_type: header(CONTENT_TYPE),
            content_encoding: header(CONTENT_ENCODING),
            traceparent: header(HeaderName::from_static("traceparent")),
            body: &body,
        };
        let length = callback.encoded_len();
        hooks.journal.append(length, &source.accepted, |buffer| callback.encode(buffer)).await?;
        hooks.metrics.http_request_body_bytes.observe(body.len() as f64);
        source.last_callback.set(received_at_ms as f64 / 1000.0);
        Ok(callback.receipt)
    }

    /// Decides what becomes of the body of a refused request.
    ///
    /// A caller with a wrong secret or path is told once its body has come, if that does not take
    /// long, and keeps its connection. Otherwise the answer goes first, and the connection ends.
    async fn settle_body(&mut self, head: &Parts, mut incoming: Incoming, refusal: Refusal) {
        if self.version == Version::HTTP_2 || incoming.is_end_stream() {
            self.is_body_there = true;
            return;
        }
        let is_broken =
            matches!(refusal, Refusal::TooLarge | Refusal::Timeout | Refusal::Malformed);
        // Whoever asks before sending the body is not asked for it.
        let may_read_on = !is_broken && !head.headers.contains_key(EXPECT);
        if !self.is_body_there {
            self.is_body_there = may_read_on && body::drain(&mut incoming).await;
        }
        if !self.is_body_there {
            self.activity.leave_body_unread();
        }
    }

    fn source_label(&self) -> &str {
        self.source.as_ref().map_or(UNKNOWN_SOURCE, |source| &source.name)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let metrics = &*self.hooks.metrics;
        let seconds = self.since.elapsed().as_secs_f64();
        match (&self.source, self.answered) {
            (Some(source), Some(StatusCode::OK)) => {
                source.answered_200(self.method).inc();
                source.request_seconds.observe(seconds);
            }
            (_, answered) => {
                let label = self.source_label();
                let code = answered.as_ref().map_or(GONE, StatusCode::as_str);
                let labels = [label, self.method.as_str(), code];
                metrics.http_requests_total.with_label_values(&labels).inc();
                let histogram = &metrics.http_request_duration_seconds;
                histogram.with_label_values(&[label]).observe(seconds);
                if answered.is_none() && !self.is_body_there {
                    self.hooks.refuse(label, Refusal::Malformed);
                }
            }
        }
        metrics.http_in_flight.dec();
        self.activity.end();
    }
}

/// The source of `/hooks/{source}`, with or without a slash behind it.
fn source_name(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/hooks/")?;
    let name = rest.strip_suffix('/').unwrap_or(rest);
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

fn accepted_response(receipt: Uuid) -> Response<Full<Bytes>> {
    let mut text = *b"{\"receipt\":\"00000000-0000-0000-0000-000000000000\"}";
    receipt.hyphenated().encode_lower(&mut text[12..48]);
    let mut response = Response::new(Full::from(Bytes::copy_from_slice(&text)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn now_ms() -> u64 {
    // A clock before 1970 is taken as 1970; whoever reads the time then sees that it is wrong.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hooks_of_one_source_have_a_name() {
        for (path, name) in [
            ("/hooks/loja", Some("loja")),
            ("/hooks/loja/", Some("loja")),
            ("/hooks/", None),
            ("/hooks//", None),
            ("/hooks/loja//", None),
            ("/hooks/loja/more", None),
            ("/hook/loja", None),
            ("/metrics", None),
            ("/", None),
            ("", None),
            ("*", None),
        ] {
            assert_eq!(source_name(path), name, "{path}");
        }
    }
}
