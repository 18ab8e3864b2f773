//! One call: bounded, checked, made a [`Callback`], durable, answered.
//!
//! The callback borrows from the request and is encoded straight into the journal's buffer.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fail::fail_point;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, request,
};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{
    Phase, State,
    activity::{AnswerGuard, RequestGuard},
    answer,
    body::{self, chunk_deadline, in_time},
    budget::{Budget, Hold, Share},
    error::Refusal,
    header_text,
    listener::Handler,
    sources::{Registry, Source, method_index, method_label},
};
use crate::{
    callback::{Callback, is_traceparent},
    calls::{AcceptedCall, CallerHost},
    clock, config,
    journal::{Journal, Position},
    metrics::{Metrics, UNKNOWN_SOURCE},
};

/// Memory of a call beside its body, path and header fields, including what HTTP/2 keeps.
const CALL_BYTES: usize = 4 << 10;
/// Memory of a header field beside its text: an entry of `http::HeaderMap` and its index.
const FIELD_BYTES: usize = 112;

/// How long an answer waits for the disk. The record may still become durable afterwards, and then
/// counts as accepted.
pub(super) const APPEND_TIMEOUT: Duration = Duration::from_secs(10);

/// In the `User-Agent` of all calls that this program makes (`caller`).
const OWN_AGENT: &str = "(weni-edge ";
/// Says whether a proxy in front of the edge got the call by TLS.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// How much of a method is kept. Weni's users choose among five, but any method is accepted.
const METHOD_CHARS: usize = 16;

pub(super) struct Acceptor {
    sources: Registry,
    metrics: Arc<Metrics>,
    journal: Journal,
    /// What calls without a right secret hold.
    strangers: Arc<Share>,
    limits: config::Http,
    phase: watch::Receiver<Phase>,
    /// The last position whose wait for Kafka timed out. Until it is committed no call waits: more
    /// callbacks are pending than Kafka takes within that time.
    timed_out: AtomicU64,
}

/// An answer in memory. hyper drops it after the socket has taken the last byte; over HTTP/2 the
/// caller decides when that is.
struct HeldAnswer {
    bytes: Bytes,
    _hold: Hold,
    _guard: AnswerGuard,
}

impl AsRef<[u8]> for HeldAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Acceptor {
    pub(super) fn new(state: State, limits: config::Http) -> Self {
        let State { config, journal, metrics, calls, phase, .. } = state;
        let budget = Budget::new(limits.max_memory_bytes, limits.max_body_bytes);
        Self {
            strangers: Share::new(&budget),
            sources: Registry::new(config, Arc::clone(&metrics), calls, budget),
            metrics,
            journal,
            limits,
            phase,
            timed_out: AtomicU64::new(0),
        }
    }

    /// The answer to a refused call. Reads on meanwhile, because a caller whose connection ends
    /// while it is sending may not see the answer.
    fn refused(
        &self,
        source: Option<&Source>,
        head: &request::Parts,
        refusal: Refusal,
        body: Incoming,
        request: RequestGuard,
    ) -> Response<Bytes> {
        self.sources.record_refused(source, Some(head), refusal);
        let name = source.map_or(UNKNOWN_SOURCE, |source| &source.name);
        let status = refusal.status();
        let labels = [name, method_label(&head.method), status.as_str()];
        self.metrics.http_requests_total.with_label_values(&labels).inc();
        if !body.is_end_stream() {
            tokio::spawn(async move {
                body::drain(body).await;
                drop(request);
            });
        }
        refusal.response()
    }

    /// Keeps an accepted call for people who look at it.
    fn keep_accepted(
        &self,
        source: &Source,
        head: &request::Parts,
        callback: &Callback<'_>,
        position: Position,
        body_bytes: usize,
    ) {
        let header = |name| header_text(&head.headers, name);
        let is_own = header(header::USER_AGENT).is_some_and(|agent| agent.contains(OWN_AGENT));
        // Anyone may call a source without a secret, by any name.
        let is_known = !is_own && !source.check.is_open();
        let host = || {
            let is_https = self.limits.tls.is_some() || header(FORWARDED_PROTO) == Some("https");
            let authority = head.uri.authority().map(http::uri::Authority::as_str);
            let host = authority.or_else(|| header(header::HOST)).filter(|_| is_known)?;
            Some(CallerHost { authority: host.to_owned(), scheme: is_https.then_some("https") })
        };
        let (receipt, body_bytes) = (callback.receipt, body_bytes as u32);
        let accepted = AcceptedCall { receipt, position, body_bytes, is_own };
        source.calls.accept(callback.received_at_ms, method_label(&head.method), accepted, host);
    }

    async fn accept(
        &self,
        source: &Source,
        head: &request::Parts,
        body: &mut Incoming,
        hold: &mut Hold,
        since: Instant,
    ) -> Result<Response<Bytes>, Refusal> {
        fail_point!(&format!("accept {}", head.method));
        let held = hold.bytes();
        let (max_bytes, time) = (self.limits.max_body_bytes, self.limits.body_timeout);
        let mut timer = pin!(sleep_until(chunk_deadline(since, since + time, 0)));
        let mut body = body::read(body, hold, max_bytes, since, time, timer.as_mut()).await?;
        let method = head.method.as_str();
        let received_at_ms = clock::wall_ms();
        let callback = Callback {
            receipt: Uuid::now_v7(),
            received_at_ms,
            source: &source.name,
            raw: source.raw,
            method: &method[..method.floor_char_boundary(METHOD_CHARS)],
            content_type: header_text(&head.headers, header::CONTENT_TYPE),
            content_encoding: header_text(&head.headers, header::CONTENT_ENCODING),
            traceparent: header_text(&head.headers, "traceparent")
                .filter(|text| is_traceparent(text)),
            body: &[],
        };
        let body_bytes = body.len();
        let len = callback.encoded_len() + body_bytes;
        // A record ends with the body, so it can be appended after the encoded head.
        let write = |record: &mut _| {
            callback.encode(record);
            body.move_to(record);
        };
        let append = self.journal.append(len, &source.accepted, write);
        timer.as_mut().reset(Instant::now() + APPEND_TIMEOUT);
        let position = in_time(timer, append).await.ok_or(Refusal::JournalSlow)??;
        // The wait for Kafka must not hold memory that other calls need.
        hold.shrink(held);
        source.last_callback.set(received_at_ms as f64 / 1000.0);
        self.keep_accepted(source, head, &callback, position, body_bytes);
        self.metrics.http_request_body_bytes.observe(body_bytes as f64);
        source.answered[method_index(&head.method)].inc();
        let receipt = callback.receipt;
        let answered = match self.is_in_kafka(position).await {
            None => format!("{{\"receipt\":\"{receipt}\"}}"),
            Some(in_kafka) => format!("{{\"receipt\":\"{receipt}\",\"in_kafka\":{in_kafka}}}"),
        };
        Ok(answer(StatusCode::OK, "application/json", answered.into()))
    }

    /// Whether the callback was committed within `http.wait_for_kafka`; none if that is 0.
    async fn is_in_kafka(&self, position: Position) -> Option<bool> {
        let wait = self.limits.wait_for_kafka;
        if wait.is_zero() {
            return None;
        }
        let waits = self.timed_out.load(Ordering::Relaxed) < self.journal.committed().as_u64();
        let committed = self.journal.wait_committed(position);
        let in_kafka = waits && tokio::time::timeout(wait, committed).await.is_ok();
        if waits && !in_kafka {
            self.timed_out.fetch_max(position.as_u64(), Ordering::Relaxed);
        }
        let label = if in_kafka { "true" } else { "false" };
        self.metrics.callbacks_answered_total.with_label_values(&[label]).inc();
        Some(in_kafka)
    }
}

impl Handler for Acceptor {
    type Body = Full<Bytes>;

    /// Fails if there is no memory for an answer.
    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        guard: RequestGuard,
    ) -> io::Result<Response<Full<Bytes>>> {
        let since = Instant::now();
        self.metrics.http_in_flight.inc();
        let _in_flight = scopeguard::guard((), |()| self.metrics.http_in_flight.dec());
        let (head, mut body) = request.into_parts();
        let source = self.sources.find(head.uri.path());
        let source = source.as_deref();
        let caller = caller(source, &head);
        if caller.is_ok_and(|source| source.keeps_places) {
            guard.trust();
        }
        let share = caller.map_or(&self.strangers, |source| &source.share);
        let mut hold = Hold::new(share);
        let has_room = hold.take(call_bytes(&head));
        if !has_room && head.version > Version::HTTP_11 {
            self.sources.record_refused(source, Some(&head), Refusal::Overloaded);
            return Err(io::Error::other("there is no memory for an answer"));
        }
        let held = hold.bytes();
        let result = match caller {
            Ok(source) if has_room => self.accept(source, &head, &mut body, &mut hold, since).await,
            // HTTP/1 has one call at a time, and its connection has memory for the answer.
            Ok(_) => Err(Refusal::Overloaded),
            Err(refusal) => Err(refusal),
        };
        // The body of a refused call is gone.
        hold.shrink(held);
        if let Some(source) = source {
            source.duration.observe(since.elapsed().as_secs_f64());
        }
        // Before the request's guard is dropped, because an idle connection may be evicted.
        let answering = guard.answer();
        let mut closes = *self.phase.borrow() != Phase::Serving;
        let mut response = result.unwrap_or_else(|refusal| {
            closes |= refusal.closes();
            self.refused(source, &head, refusal, body, guard)
        });
        // Users may choose GET, and an answer from a cache would lose the call.
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(header::CACHE_CONTROL, no_store);
        if closes && head.version <= Version::HTTP_11 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|bytes| {
            let answer = HeldAnswer { bytes, _hold: hold, _guard: answering };
            Full::new(Bytes::from_owner(answer))
        }))
    }

    fn refuse(&self, refusal: Refusal) {
        self.sources.record_refused(None, None, refusal);
    }
}

/// The source that is called, if this caller may call it.
fn caller<'s>(source: Option<&'s Source>, head: &request::Parts) -> Result<&'s Source, Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    let source = source.ok_or(Refusal::UnknownSource)?;
    if source.check.passes(&head.headers) { Ok(source) } else { Err(Refusal::Auth) }
}

fn call_bytes(head: &request::Parts) -> usize {
    let fields = head.headers.iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES);
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let authority = head.uri.authority().map_or(0, |authority| authority.as_str().len());
    CALL_BYTES + target + authority + head.method.as_str().len() + fields.sum::<usize>()
}
