//! What callers of the public listener get, and what is stored of their calls.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weni_edge::{
    callback::Callback,
    config::{Config, Secret, Source, Tls},
    http::{self as edge_http, Phase, tls::Certificates},
    journal::{Journal, Options, Position},
    metrics::Metrics,
};

use crate::harness::certificate_files;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
const BODY: &[u8] = b"{\"entry\":[]}";

/// The public listener over a journal of its own.
struct Edge {
    address: SocketAddr,
    journal: Journal,
    metrics: Arc<Metrics>,
    config: Arc<ArcSwap<Config>>,
    phase: watch::Sender<Phase>,
    serving: JoinHandle<()>,
    certificates: Option<Arc<Certificates>>,
    _directory: TempDir,
}

/// One record, as far as tests look at it.
#[derive(Debug, PartialEq)]
struct Stored {
    receipt: String,
    method: String,
    content_type: Option<String>,
    traceparent: Option<String>,
    body: Vec<u8>,
}

impl Edge {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(configure: impl FnOnce(&mut Config)) -> Self {
        Self::over(configure, |_| {}).await
    }

    async fn over(configure: impl FnOnce(&mut Config), journal: impl FnOnce(&mut Options)) -> Self {
        let mut config = Config::default();
        config.sources.insert("loja".into(), source(&["s3cret"]));
        // A connection that is left open does not end by itself within a test.
        config.http.idle_timeout = 2 * PATIENCE;
        configure(&mut config);
        let directory = TempDir::new().unwrap();
        let mut options = Options { allow_volatile: true, ..Options::new(directory.path()) };
        journal(&mut options);
        let metrics = Arc::new(Metrics::default());
        let journal = Journal::open(options, Arc::clone(&metrics)).unwrap();
        let certificates = config.http.tls.as_ref();
        let certificates =
            certificates.map(|tls| Certificates::load(tls, Arc::clone(&metrics)).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Arc::new(ArcSwap::from_pointee(config));
        let (phase, watched) = watch::channel(Phase::Serving);
        let state = edge_http::State {
            config: Arc::clone(&config),
            journal: journal.clone(),
            metrics: Arc::clone(&metrics),
            calls: Arc::default(),
            phase: watched,
            public: address,
        };
        let serving = tokio::spawn(edge_http::serve(listener, certificates.clone(), state));
        Self {
            address,
            journal,
            metrics,
            config,
            phase,
            serving,
            certificates,
            _directory: directory,
        }
    }

    async fn caller(&self) -> Caller {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Caller { stream, received: Vec::new() }
    }

    /// One call as Weni makes it, on a connection of its own.
    async fn call(&self, method: &str, path: &str, secret: &str, body: &[u8]) -> Answer {
        self.caller().await.call(method, path, secret, body).await
    }

    fn stored(&self) -> Vec<Stored> {
        let mut reader = self.journal.reader(Position::default());
        let mut stored = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            let callback = Callback::decode(record.payload).unwrap();
            assert_eq!(callback.source, "loja");
            stored.push(Stored {
                receipt: callback.receipt.to_string(),
                method: callback.method.into(),
                content_type: callback.content_type.map(String::from),
                traceparent: callback.traceparent.map(String::from),
                body: callback.body.into(),
            });
        }
        stored
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.stored().into_iter().map(|stored| stored.body).collect()
    }

    fn rejected(&self, source: &str, reason: &str) -> u64 {
        self.metrics.http_rejections_total.with_label_values(&[source, reason]).get()
    }
}

/// Accounts: what is counted as accepted is stored, and nothing else is.
impl Drop for Edge {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let accepted = self.metrics.callbacks_accepted_total.with_label_values(&["loja"]);
            assert_eq!(accepted.get(), self.stored().len() as u64);
        }
    }
}

fn source(secrets: &[&str]) -> Source {
    Source {
        header: "X-Token".into(),
        secrets: secrets.iter().map(|secret| Secret::new(*secret)).collect(),
        ..Source::default()
    }
}

/// Waits until something is so.
async fn until(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it never came to be");
        sleep(Duration::from_millis(2)).await;
    }
}

/// A connection as Weni's client keeps it.
struct Caller {
    stream: TcpStream,
    received: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// In lower case.
    head: String,
    body: Value,
}

impl Answer {
    fn closes(&self) -> bool {
        self.head.contains("connection: close")
    }

    /// Checks that it is a refusal as it is specified.
    fn is_refused(&self, status: u16, reason: &str) {
        assert_eq!((self.status, self.body["reason"].as_str()), (status, Some(reason)), "{self:?}");
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        assert!(self.head.contains("cache-control: no-store"), "{}", self.head);
        assert_eq!(self.body["type"], "about:blank");
        assert_eq!(self.body["status"], status);
        let title = StatusCode::from_u16(status).unwrap().canonical_reason();
        assert_eq!(self.body["title"].as_str(), title);
        assert!(self.body["detail"].is_string());
        assert_eq!(self.head.contains("retry-after: 1"), status == 503);
    }

    fn receipt(&self) -> &str {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        assert!(self.head.contains("cache-control: no-store"), "{}", self.head);
        self.body["receipt"].as_str().unwrap()
    }
}

/// A request's head as Weni writes it: chunked, and no Content-Type.
fn head(method: &str, path: &str, secret: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: edge.example.com\r\nUser-Agent: Courier/1.0\r\n\
         Transfer-Encoding: chunked\r\nX-Token: {secret}\r\nAccept-Encoding: gzip\r\n\r\n"
    )
    .into_bytes()
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A whole request; GET and DELETE send their first byte alone.
fn request(method: &str, path: &str, secret: &str, body: &[u8]) -> Vec<u8> {
    let mut request = head(method, path, secret);
    let alone = usize::from(matches!(method, "GET" | "DELETE")).min(body.len());
    for part in [&body[..alone], &body[alone..]] {
        if !part.is_empty() {
            request.extend(chunk(part));
        }
    }
    request.extend(b"0\r\n\r\n");
    request
}

fn call(body: &[u8]) -> Vec<u8> {
    request("POST", "/hooks/loja", "s3cret", body)
}

impl Caller {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn call(&mut self, method: &str, path: &str, secret: &str, body: &[u8]) -> Answer {
        self.send(&request(method, path, secret, body)).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Answer {
        loop {
            if let Some(answer) = self.take_answer() {
                return answer;
            }
            assert!(self.receive().await, "closed without an answer: {:?}", self.received);
        }
    }

    fn take_answer(&mut self) -> Option<Answer> {
        let end = self.received.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.received[..end].to_vec()).unwrap().to_lowercase();
        let (_, len) = head.split_once("content-length: ").unwrap_or(("", "0\r\n"));
        let len: usize = len.split("\r\n").next().unwrap().parse().unwrap();
        let body = self.received.get(end..end + len)?;
        let body = serde_json::from_slice(body).unwrap_or_default();
        self.received.drain(..end + len);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some(Answer { status, head, body })
    }

    /// Whether more came; false at the end.
    async fn receive(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await;
        read.expect("neither bytes nor an end").is_ok_and(|read| read > 0)
    }

    async fn is_closed(&mut self) {
        while self.receive().await {}
        assert_eq!(self.received, b"", "something came before the end");
    }
}

#[tokio::test]
async fn every_method_is_taken_as_weni_sends_it_and_the_receipt_names_the_record() {
    let edge = Edge::start().await;
    let mut receipts = Vec::new();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        for path in ["/hooks/loja", "/hooks/loja/", "/hooks/loja?a=b", "/hooks/loja/?"] {
            let answer = edge.call(method, path, "s3cret", BODY).await;
            receipts.push((answer.receipt().to_owned(), method.to_owned(), BODY.to_vec()));
        }
    }
    let stored = edge.stored().into_iter();
    let stored: Vec<_> = stored.map(|one| (one.receipt, one.method, one.body)).collect();
    assert_eq!(stored, receipts);
    let counted =
        |method| edge.metrics.http_requests_total.with_label_values(&["loja", method, "200"]).get();
    assert_eq!((counted("GET"), counted("other")), (4, 0));
    let last = edge.metrics.last_callback_timestamp_seconds.with_label_values(&["loja"]).get();
    assert!((Metrics::now_seconds() - last).abs() < 60.0);
}

#[tokio::test]
async fn whatever_the_body_is_it_is_kept_untouched() {
    let edge = Edge::start().await;
    let large = vec![b'x'; 1_000_000];
    let bodies: [&[u8]; 7] =
        [b"", b"  ", b"{\"entr", b"\x1f\x8b\x08\x00", b"[1]", b"{\"entry\":[]}", &large];
    for body in bodies {
        for method in ["POST", "DELETE"] {
            edge.call(method, "/hooks/loja", "s3cret", body).await.receipt();
        }
    }
    let expected: Vec<_> = bodies.iter().flat_map(|body| [body.to_vec(), body.to_vec()]).collect();
    assert_eq!(edge.bodies(), expected);
}

#[tokio::test]
async fn a_method_nobody_knows_is_counted_as_other_and_headers_that_matter_are_kept() {
    let edge = Edge::start().await;
    let mut caller = edge.caller().await;
    let head = "BREW /hooks/loja HTTP/1.1\r\nHost: e\r\nX-Token: s3cret\r\nContent-Length: 2\r\n\
                Content-Type: text/x; a=\"b\"\r\n\r\n{}";
    caller.send(head.as_bytes()).await;
    caller.answer().await.receipt();
    let stored = &edge.stored()[0];
    assert_eq!(stored.content_type.as_deref(), Some("text/x; a=\"b\""));
    assert_eq!((stored.method.as_str(), stored.body.as_slice()), ("BREW", &b"{}"[..]));
    let other = edge.metrics.http_requests_total.with_label_values(&["loja", "other", "200"]);
    assert_eq!(other.get(), 1);
}

#[tokio::test]
async fn a_long_method_is_cut_and_only_a_w3c_traceparent_is_kept() {
    const W3C: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let edge = Edge::start().await;
    let method = "BREW".repeat(1000);
    let too_long = format!("{W3C}{}", "0".repeat(10_000));
    let traces = [W3C, &W3C.to_uppercase(), &too_long, "1", &W3C.replace("00-0", "ff-0"), ""];
    for traceparent in traces {
        let head = format!(
            "{method} /hooks/loja HTTP/1.1\r\nHost: e\r\nX-Token: s3cret\r\n\
             traceparent: {traceparent}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        let mut caller = edge.caller().await;
        caller.send(head.as_bytes()).await;
        caller.answer().await.receipt();
    }
    let stored = edge.stored();
    assert!(stored.iter().all(|one| one.method == method[..16]), "{stored:?}");
    let kept: Vec<_> = stored.iter().filter_map(|one| one.traceparent.as_deref()).collect();
    assert_eq!((kept, stored.len()), (vec![W3C], traces.len()));
}

#[tokio::test]
async fn connect_is_refused_whatever_it_names() {
    let edge = Edge::start().await;
    for target in ["/hooks/loja", "e:443"] {
        let mut caller = edge.caller().await;
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: e\r\nX-Token: s3cret\r\n\r\n");
        caller.send(head.as_bytes()).await;
        let answer = caller.answer().await;
        answer.is_refused(405, "malformed");
        assert!(answer.closes() && answer.head.contains("allow: get, post"), "{answer:?}");
    }
    assert_eq!(edge.stored(), []);
}

#[tokio::test]
async fn a_wrong_or_missing_secret_stores_nothing_and_keeps_the_connection() {
    let edge = Edge::start().await;
    let mut caller = edge.caller().await;
    for secret in ["", "S3cret", "s3cret2"] {
        let answer = caller.call("POST", "/hooks/loja", secret, BODY).await;
        answer.is_refused(401, "auth");
        assert!(!answer.closes());
    }
    let without = request("GET", "/hooks/loja", "s3cret", BODY);
    let without = String::from_utf8(without).unwrap().replace("X-Token", "X-Other");
    caller.send(without.as_bytes()).await;
    caller.answer().await.is_refused(401, "auth");
    assert_eq!((edge.rejected("loja", "auth"), edge.stored().len()), (4, 0));
    caller.call("POST", "/hooks/loja", "s3cret", BODY).await.receipt();
}

#[tokio::test]
async fn what_is_no_source_is_not_found_whatever_the_path_says() {
    let edge = Edge::start().await;
    let paths = ["/", "/hooks", "/hooks/", "/hooks/outra", "/hooks//", "/hooks/loja/x", "/x"];
    for path in paths {
        edge.call("POST", path, "s3cret", BODY).await.is_refused(404, "unknown_source");
    }
    assert_eq!(edge.rejected("unknown", "unknown_source"), paths.len() as u64);
    assert_eq!(edge.stored(), []);
}

#[tokio::test]
async fn two_secrets_are_live_at_once_and_a_new_configuration_is_taken_up() {
    let edge = Edge::with(|config| {
        config.sources.insert("loja".into(), source(&["old", "new"]));
    })
    .await;
    for secret in ["old", "new"] {
        edge.call("POST", "/hooks/loja", secret, BODY).await.receipt();
    }
    let mut config = Config::clone(&edge.config.load());
    config.sources.insert("loja".into(), source(&["new"]));
    config.sources.insert("open".into(), Source { allow_unauthenticated: true, ..source(&[]) });
    edge.config.store(Arc::new(config));
    edge.call("POST", "/hooks/loja", "old", BODY).await.is_refused(401, "auth");
    edge.call("POST", "/hooks/loja", "new", BODY).await.receipt();
    edge.config.rcu(|config| {
        let mut config = Config::clone(config);
        config.sources.remove("loja");
        config
    });
    edge.call("POST", "/hooks/loja", "new", BODY).await.is_refused(404, "unknown_source");
}

#[tokio::test]
async fn a_body_over_the_limit_is_answered_while_it_is_sent_and_the_connection_ends() {
    let edge = Edge::with(|config| config.http.max_body_bytes = 1000).await;
    edge.call("POST", "/hooks/loja", "s3cret", &[b'x'; 1000]).await.receipt();
    let mut caller = edge.caller().await;
    let answer = caller.call("POST", "/hooks/loja", "s3cret", &[b'x'; 1_000_000]).await;
    answer.is_refused(413, "too_large");
    assert!(answer.closes());
    caller.is_closed().await;
    let mut announced = edge.caller().await;
    let head =
        "POST /hooks/loja HTTP/1.1\r\nHost: e\r\nX-Token: s3cret\r\nContent-Length: 1001\r\n\r\n";
    announced.send(head.as_bytes()).await;
    announced.answer().await.is_refused(413, "too_large");
    announced.is_closed().await;
    assert_eq!((edge.rejected("loja", "too_large"), edge.stored().len()), (2, 1));
}

#[tokio::test]
async fn a_sender_that_never_ends_is_cut_off_all_the_same() {
    let edge = Edge::with(|config| config.http.max_body_bytes = 1000).await;
    let mut caller = edge.caller().await;
    caller.send(&head("POST", "/hooks/loja", "s3cret")).await;
    let sending = async {
        let chunk = chunk(&[b'x'; 60_000]);
        while caller.stream.write_all(&chunk).await.is_ok() {}
    };
    timeout(PATIENCE, sending).await.unwrap();
    until(|| edge.metrics.http_connections.get() == 0).await;
    assert_eq!(edge.rejected("loja", "too_large"), 1);
}

#[tokio::test]
async fn a_connection_survives_a_silence_longer_than_the_time_for_a_head() {
    let edge = Edge::with(|config| config.http.header_timeout = Duration::from_millis(100)).await;
    let mut caller = edge.caller().await;
    for _ in 0..3 {
        sleep(Duration::from_millis(400)).await;
        caller.call("POST", "/hooks/loja", "s3cret", BODY).await.receipt();
    }
}

#[tokio::test]
async fn a_head_that_comes_too_slowly_ends_the_connection_the_first_and_any_other() {
    let edge = Edge::with(|config| config.http.header_timeout = Duration::from_millis(300)).await;
    let mut first = edge.caller().await;
    first.send(b"P").await;
    first.is_closed().await;
    let mut second = edge.caller().await;
    second.call("POST", "/hooks/loja", "s3cret", BODY).await.receipt();
    second.send(&call(BODY)[..30]).await;
    second.is_closed().await;
    assert_eq!(edge.rejected("unknown", "timeout"), 2);
}

#[tokio::test]
async fn a_head_in_pieces_is_taken_while_it_comes_in_time() {
    let edge = Edge::start().await;
    let mut caller = edge.caller().await;
    for byte in call(BODY) {
        caller.send(&[byte]).await;
    }
    caller.answer().await.receipt();
    assert_eq!(edge.bodies(), [BODY]);
}

#[tokio::test]
async fn a_connection_that_is_idle_for_too_long_is_closed_without_a_word() {
    let edge = Edge::with(|config| config.http.idle_timeout = Duration::from_secs(2)).await;
    let mut unused = edge.caller().await;
    let mut used = edge.caller().await;
    used.call("POST", "/hooks/loja", "s3cret", BODY).await.receipt();
    unused.is_closed().await;
    used.is_closed().await;
    assert_eq!(edge.rejected("unknown", "timeout"), 0);
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_answered_408_and_nothing_is_stored() {
    let edge = Edge::with(|config| {
        config.http.body_timeout = Duration::from_millis(200);
        config.http.header_timeout = Duration::from_millis(50);
    })
    .await;
    let mut caller = edge.caller().await;
    caller.send(&head("POST", "/hooks/loja", "s3cret")).await;
    caller.send(&chunk(b"{\"entry\":")).await;
    let answer = caller.answer().await;
    answer.is_refused(408, "timeout");
    assert!(answer.closes());
    caller.is_closed().await;
    assert_eq!((edge.rejected("loja", "timeout"), edge.stored().len()), (1, 0));
}

#[tokio::test]
async fn a_caller_who_goes_away_in_mid_body_leaves_nothing() {
    let edge = Edge::start().await;
    for attempt in 1..=2 {
        let mut caller = edge.caller().await;
        caller.send(&head("POST", "/hooks/loja", "s3cret")).await;
        caller.send(&chunk(b"{\"entry\":")).await;
        until(|| edge.metrics.http_in_flight.get() == 1).await;
        drop(caller);
        until(|| edge.rejected("loja", "malformed") == attempt).await;
    }
    until(|| edge.metrics.http_in_flight.get() == 0 && edge.metrics.http_connections.get() == 0)
        .await;
    assert_eq!(edge.rejected("unknown", "malformed"), 0);
    assert_eq!(edge.stored(), []);
}

#[tokio::test]
async fn a_caller_who_has_sent_all_and_closed_its_side_has_called() {
    let edge = Edge::start().await;
    for number in 1..=20 {
        let mut caller = edge.caller().await;
        caller.send(&call(BODY)).await;
        caller.stream.shutdown().await.unwrap();
        if number % 2 == 0 {
            caller.answer().await.receipt();
            caller.is_closed().await;
        }
        drop(caller);
        until(|| edge.stored().len() == number).await;
    }
    until(|| edge.metrics.http_connections.get() == 0).await;
}

#[tokio::test]
async fn what_is_not_http_is_refused_and_counted() {
    let edge = Edge::start().await;
    for garbage in ["GARBAGE\r\n\r\n", "POST /hooks/loja HTTP/1.1\r\nbad header\r\n\r\n"] {
        let mut caller = edge.caller().await;
        caller.send(garbage.as_bytes()).await;
        assert_eq!(caller.answer().await.status, 400);
        caller.is_closed().await;
    }
    let mut caller = edge.caller().await;
    let long = format!("POST /hooks/loja HTTP/1.1\r\nX-Long: {}\r\n\r\n", "x".repeat(70_000));
    caller.send(long.as_bytes()).await;
    assert_eq!(caller.answer().await.status, 431);
    until(|| edge.rejected("unknown", "malformed") == 3).await;
    let mut caller = edge.caller().await;
    caller.send(&head("POST", "/hooks/loja", "s3cret")).await;
    caller.send(b"no chunk\r\n").await;
    caller.answer().await.is_refused(400, "malformed");
    assert_eq!(edge.stored(), []);
}

#[tokio::test]
async fn a_source_takes_half_of_the_budget_at_most_and_leaves_the_rest_to_others() {
    let edge = Edge::with(|config| {
        config.http.max_memory_bytes = 500_000;
        config.http.max_body_bytes = 200_000;
        config.sources.insert("outra".into(), source(&["0ther"]));
    })
    .await;
    // 375,000 are for large bodies: the first leaves no room for a second one of its source.
    let mut slow = edge.caller().await;
    slow.send(&head("POST", "/hooks/loja", "s3cret")).await;
    slow.send(&chunk(&vec![b'a'; 200_000])).await;
    let large = vec![b'b'; 200_000];
    let refusing = async {
        loop {
            let answer = edge.call("POST", "/hooks/loja", "s3cret", &large).await;
            if answer.status != 200 {
                return answer;
            }
        }
    };
    let refused = timeout(PATIENCE, refusing).await.expect("it is refused");
    refused.is_refused(503, "overloaded");
    let small = vec![b'c'; 10_000];
    edge.call("POST", "/hooks/loja", "s3cret", &small).await.receipt();
    let mut other = edge.caller().await;
    other.send(&head("POST", "/hooks/outra", "0ther")).await;
    other.send(&chunk(&vec![b'd'; 50_000])).await;
    slow.send(b"0\r\n\r\n").await;
    slow.answer().await.receipt();
    edge.call("POST", "/hooks/loja", "s3cret", &large).await.receipt();
    assert!(edge.rejected("loja", "overloaded") >= 1);
    drop(other);
    until(|| edge.rejected("outra", "malformed") == 1).await;
    assert_eq!(edge.rejected("outra", "overloaded"), 0);
}

#[tokio::test]
async fn a_body_that_only_trickles_is_given_up_after_five_seconds() {
    let edge = Edge::with(|config| config.http.body_timeout = PATIENCE).await;
    let mut caller = edge.caller().await;
    let since = Instant::now();
    caller.send(&head("POST", "/hooks/loja", "s3cret")).await;
    let (mut read, mut write) = caller.stream.into_split();
    let trickling = tokio::spawn(async move {
        while write.write_all(&chunk(b"{")).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    let mut answer = [0; 12];
    timeout(Duration::from_secs(15), read.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    assert!(since.elapsed() >= Duration::from_secs(5));
    assert_eq!((edge.rejected("loja", "timeout"), edge.stored().len()), (1, 0));
    trickling.abort();
}

#[tokio::test]
async fn a_full_journal_and_a_closed_one_are_answered_503() {
    let edge = Edge::over(|_| {}, |journal| journal.max_bytes = 200_000).await;
    let mut caller = edge.caller().await;
    let refused = loop {
        let answer = caller.call("POST", "/hooks/loja", "s3cret", &[b'x'; 50_000]).await;
        if answer.status != 200 {
            break answer;
        }
    };
    refused.is_refused(503, "journal_full");
    edge.journal.close();
    caller.call("POST", "/hooks/loja", "s3cret", b"{}").await.is_refused(503, "journal_slow");
}

#[tokio::test]
async fn calls_in_one_packet_are_answered_in_their_order() {
    let edge = Edge::start().await;
    let mut caller = edge.caller().await;
    let packet: Vec<u8> = (0..5).flat_map(|number| call(format!("{number}").as_bytes())).collect();
    caller.send(&packet).await;
    let mut receipts = Vec::new();
    for _ in 0..5 {
        receipts.push(caller.answer().await.receipt().to_owned());
    }
    let stored = edge.stored();
    assert_eq!(stored.iter().map(|one| one.receipt.clone()).collect::<Vec<_>>(), receipts);
    assert_eq!(edge.bodies(), [b"0", b"1", b"2", b"3", b"4"]);
}

#[tokio::test]
async fn at_the_limit_the_connection_idle_longest_ends_for_a_new_one_those_never_used_first() {
    let edge = Edge::with(|config| config.http.max_connections = 3).await;
    let mut used = edge.caller().await;
    used.call("POST", "/hooks/loja", "s3cret", b"1").await.receipt();
    let mut unused = Vec::new();
    for open in 2..=3 {
        unused.push(edge.caller().await);
        until(|| edge.metrics.http_connections.get() == open).await;
    }
    let mut kept = Vec::new();
    for mut leaving in unused.into_iter().chain([used]) {
        let mut new = edge.caller().await;
        new.call("POST", "/hooks/loja", "s3cret", b"2").await.receipt();
        leaving.is_closed().await;
        kept.push(new);
    }
    assert_eq!(edge.metrics.http_connections_max.get(), 3);
    assert_eq!(edge.metrics.http_connections_evicted_total.get(), 3);
}

#[tokio::test]
async fn a_connection_of_http2_takes_several_places_and_idle_ones_end_for_it() {
    let edge = Edge::with(|config| config.http.max_connections = 40).await;
    let mut first = edge.caller().await;
    first.call("POST", "/hooks/loja", "s3cret", b"1").await.receipt();
    let mut silent = Vec::new();
    for _ in 0..39 {
        silent.push(edge.caller().await);
    }
    until(|| edge.metrics.http_connections.get() == 40).await;
    // An eighth of the places, and its first one.
    for evicted in [6, 12] {
        let mut http2 = edge.caller().await;
        http2.send(HTTP2_BEGIN).await;
        assert!(http2.receive().await, "its settings are answered");
        until(|| edge.metrics.http_connections_evicted_total.get() == evicted).await;
        silent.push(http2);
    }
    until(|| edge.metrics.http_connections.get() == 40).await;
    // Those never used went, and no more of them.
    assert_eq!(edge.metrics.http_connections_evicted_total.get(), 12);
    first.call("POST", "/hooks/loja", "s3cret", b"2").await.receipt();
}

#[tokio::test]
async fn a_busy_caller_of_a_source_without_a_secret_gives_way_to_one_who_shows_a_secret() {
    let edge = Edge::with(|config| {
        config.http.max_connections = 1;
        let open = Source { allow_unauthenticated: true, ..source(&[]) };
        config.sources.insert("open".into(), open);
    })
    .await;
    let mut stranger = edge.caller().await;
    stranger.send(&head("POST", "/hooks/open", "")).await;
    until(|| edge.metrics.http_in_flight.get() == 1).await;
    edge.call("POST", "/hooks/loja", "s3cret", b"2").await.receipt();
    stranger.is_closed().await;
    assert_eq!(edge.metrics.http_connections_evicted_total.get(), 1);
    assert_eq!(edge.rejected("open", "timeout"), 0, "it did not wait for the body's time");
}

#[tokio::test]
async fn where_all_connections_are_busy_a_new_one_waits() {
    let open = Source { allow_unauthenticated: true, ..source(&[]) };
    for only in [source(&["s3cret"]), open] {
        let edge = Edge::with(|config| {
            config.http.max_connections = 1;
            config.sources.insert("loja".into(), only);
        })
        .await;
        let mut first = edge.caller().await;
        first.send(&head("POST", "/hooks/loja", "s3cret")).await;
        until(|| edge.metrics.http_in_flight.get() == 1).await;
        let mut second = edge.caller().await;
        second.send(&call(b"2")).await;
        // A connection that has to end is asked again every 50 ms.
        sleep(Duration::from_millis(500)).await;
        first.send(&[chunk(b"1"), b"0\r\n\r\n".to_vec()].concat()).await;
        first.answer().await.receipt();
        second.answer().await.receipt();
        assert_eq!(edge.bodies(), [b"1", b"2"]);
    }
}

#[tokio::test]
async fn a_draining_edge_still_stores_and_says_that_the_connection_ends() {
    let edge = Edge::start().await;
    let mut kept = edge.caller().await;
    assert!(!kept.call("POST", "/hooks/loja", "s3cret", BODY).await.closes());
    edge.phase.send_replace(Phase::Draining);
    // The answer before the one that says so may have been under way.
    while !edge.call("POST", "/hooks/loja", "s3cret", BODY).await.closes() {}
    let answer = kept.call("POST", "/hooks/loja", "s3cret", b"last").await;
    answer.receipt();
    assert!(answer.closes());
    kept.is_closed().await;
    assert_eq!(edge.bodies().last().unwrap(), b"last");
}

#[tokio::test]
async fn a_closing_edge_finishes_what_is_in_flight_and_returns() {
    let mut edge = Edge::start().await;
    let mut idle = edge.caller().await;
    idle.call("POST", "/hooks/loja", "s3cret", b"1").await.receipt();
    let mut unused = edge.caller().await;
    let mut busy = edge.caller().await;
    busy.send(&head("POST", "/hooks/loja", "s3cret")).await;
    until(|| edge.metrics.http_in_flight.get() == 1).await;
    edge.phase.send_replace(Phase::Closing);
    idle.is_closed().await;
    unused.is_closed().await;
    assert!(!edge.serving.is_finished());
    busy.send(&[chunk(b"2"), b"0\r\n\r\n".to_vec()].concat()).await;
    let answer = busy.answer().await;
    answer.receipt();
    assert!(answer.closes());
    // Less than a closing edge allows.
    timeout(Duration::from_secs(30), &mut edge.serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(edge.address).await.is_err());
    assert_eq!(edge.bodies(), [b"1", b"2"]);
}

#[tokio::test]
async fn an_http2_connection_that_ignores_goaway_does_not_hold_a_closing_edge() {
    let mut edge = Edge::start().await;
    let mut silent = edge.caller().await;
    silent.send(HTTP2_BEGIN).await;
    assert!(silent.receive().await, "its settings are answered");
    edge.phase.send_replace(Phase::Closing);
    // A second after GOAWAY; without that limit twenty, as any connection that is never used.
    timeout(Duration::from_secs(15), &mut edge.serving).await.unwrap().unwrap();
}

/// A certificate for localhost in files, and what a client has to trust.
fn certificate(directory: &Path) -> (Tls, CertificateDer<'static>) {
    let (certificate_file, key_file) = certificate_files(directory);
    let trusted = CertificateDer::from_pem_file(&certificate_file).unwrap();
    (Tls { certificate_file, key_file }, trusted)
}

async fn connect_tls(
    edge: &Edge,
    trusted: &CertificateDer<'static>,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(edge.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

type Http2 = hyper::client::conn::http2::SendRequest<Full<bytes::Bytes>>;

/// A client of HTTP/2, and its connection.
async fn http2(stream: TlsStream<TcpStream>) -> (Http2, JoinHandle<hyper::Result<()>>) {
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let stream = TokioIo::new(stream);
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    (client, tokio::spawn(connection))
}

async fn call_http2(client: &mut Http2, secret: &str, body: &'static [u8]) -> (StatusCode, Value) {
    let request = Request::post("https://localhost/hooks/loja")
        .header("x-token", secret)
        .body(Full::from(body))
        .unwrap();
    let answer = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!(answer.headers().get(header::CONNECTION), None);
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn over_tls_http2_is_spoken_when_it_is_offered_and_http1_otherwise() {
    let directory = TempDir::new().unwrap();
    let (tls, trusted) = certificate(directory.path());
    let edge = Edge::with(|config| config.http.tls = Some(tls)).await;
    let stream = connect_tls(&edge, &trusted, &["h2", "http/1.1"]).await.unwrap();
    let (mut client, _connection) = http2(stream).await;
    let (status, answer) = call_http2(&mut client, "s3cret", b"1").await;
    assert_eq!(
        (status, answer["receipt"].as_str()),
        (StatusCode::OK, Some(&*edge.stored()[0].receipt))
    );
    // HTTP/2 carries a value as it was pasted; HTTP/1.1 strips the blanks around it.
    let (status, _) = call_http2(&mut client, " s3cret\t", b"2").await;
    assert_eq!(status, StatusCode::OK);
    let (status, answer) = call_http2(&mut client, "wrong", b"none").await;
    assert_eq!((status, &answer["reason"]), (StatusCode::UNAUTHORIZED, &json!("auth")));
    let mut stranger = edge.caller().await;
    stranger.send(&call(b"no TLS")).await;
    while stranger.receive().await {}
    until(|| edge.rejected("unknown", "malformed") == 1).await;
    let mut stream = connect_tls(&edge, &trusted, &[]).await.unwrap();
    stream.write_all(&call(b"3")).await.unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    assert_eq!(edge.bodies(), [b"1", b"2", b"3"]);
}

#[tokio::test]
async fn idle_http2_outlives_the_time_for_a_head_but_not_the_idle_time() {
    let directory = TempDir::new().unwrap();
    let (tls, trusted) = certificate(directory.path());
    let edge = Edge::with(|config| {
        config.http.tls = Some(tls);
        // The handshake has this time, too.
        config.http.header_timeout = Duration::from_secs(1);
        config.http.idle_timeout = Duration::from_secs(6);
    })
    .await;
    let stream = connect_tls(&edge, &trusted, &["h2"]).await.unwrap();
    let (mut client, connection) = http2(stream).await;
    for _ in 0..2 {
        sleep(Duration::from_millis(1500)).await;
        assert_eq!(call_http2(&mut client, "s3cret", BODY).await.0, StatusCode::OK);
    }
    // However it ends.
    timeout(PATIENCE, connection).await.unwrap().unwrap().ok();
}

#[tokio::test]
async fn a_draining_edge_answers_http2_and_says_goaway_on_old_and_new_connections() {
    let directory = TempDir::new().unwrap();
    let (tls, trusted) = certificate(directory.path());
    let edge = Edge::with(|config| config.http.tls = Some(tls)).await;
    let (mut old, old_connection) =
        http2(connect_tls(&edge, &trusted, &["h2"]).await.unwrap()).await;
    assert_eq!(call_http2(&mut old, "s3cret", b"1").await.0, StatusCode::OK);
    edge.phase.send_replace(Phase::Draining);
    timeout(PATIENCE, old_connection).await.unwrap().unwrap().unwrap();
    let (mut new, new_connection) =
        http2(connect_tls(&edge, &trusted, &["h2"]).await.unwrap()).await;
    assert_eq!(call_http2(&mut new, "s3cret", b"2").await.0, StatusCode::OK);
    timeout(PATIENCE, new_connection).await.unwrap().unwrap().unwrap();
    assert_eq!(edge.bodies(), [b"1", b"2"]);
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let edge = Edge::start().await;
    let mut caller = edge.caller().await;
    let mut flood = HTTP2_BEGIN.to_vec();
    for stream in (1_u32..4000).step_by(2) {
        // POST http / with no host, and then a reset: CANCEL.
        flood.extend([0, 0, 3, 1, 4]);
        flood.extend(stream.to_be_bytes());
        flood.extend([0x83, 0x86, 0x84]);
        flood.extend([0, 0, 4, 3, 0]);
        flood.extend(stream.to_be_bytes());
        flood.extend([0, 0, 0, 8]);
    }
    // It may be cut off while it sends.
    caller.stream.write_all(&flood).await.ok();
    while caller.receive().await {}
    until(|| edge.rejected("unknown", "malformed") == 1).await;
}

/// What a connection of HTTP/2 begins with: the preface, and settings that say nothing.
const HTTP2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn answers_that_a_caller_does_not_take_hold_the_budget_and_give_it_back() {
    let edge = Edge::with(|config| config.http.max_memory_bytes = 100_000).await;
    let mut caller = edge.caller().await;
    // SETTINGS_INITIAL_WINDOW_SIZE 0: no byte of an answer may be sent.
    let mut calls = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    calls.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for stream in (1..200).step_by(2) {
        calls.extend(frame(1, 5, stream, b"\x82\x86\x04\x05/nope\x01\x01h"));
    }
    caller.send(&calls).await;
    let held = || edge.rejected("unknown", "unknown_source");
    until(|| held() + edge.rejected("unknown", "overloaded") == 100).await;
    let first = held();
    assert!((5..20).contains(&first), "{first} hold half of the reserve");
    // Who knows a secret is served meanwhile.
    edge.call("POST", "/hooks/loja", "s3cret", BODY).await.receipt();
    drop(caller);
    until(|| edge.metrics.http_connections.get() == 0).await;
    let mut again = edge.caller().await;
    again.send(&calls).await;
    until(|| held() == 2 * first).await;
}

#[tokio::test]
async fn answers_that_a_caller_does_not_take_hold_no_bodies() {
    const LIMIT: usize = 30_000;
    let edge = Edge::with(|config| {
        config.http.max_memory_bytes = 400_000;
        config.http.max_body_bytes = LIMIT;
    })
    .await;
    let mut caller = edge.caller().await;
    let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    begin.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    caller.send(&begin).await;
    let (accepted, too_large) = (|| edge.stored().len(), || edge.rejected("loja", "too_large"));
    // The reserve has room for the heads of 16, and for three bodies.
    for call in 0..10 {
        let (stream, body) = (2 * call + 1, vec![b' '; LIMIT + call as usize % 2]);
        let head = b"\x83\x86\x04\x0b/hooks/loja\x01\x01h\x00\x07x-token\x06s3cret";
        let mut frames = frame(1, 4, stream, head);
        let (first, rest) = body.split_at(16_384);
        frames.extend(frame(0, 0, stream, first));
        frames.extend(frame(0, 1, stream, rest));
        caller.send(&frames).await;
        let done = u64::from(call) + 1;
        until(|| accepted() as u64 + too_large() == done).await;
    }
    assert_eq!((accepted(), too_large()), (5, 5));
}

#[tokio::test]
async fn headers_without_end_over_http2_end_the_connection_and_no_other() {
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    let edge = Edge::start().await;
    let mut other = edge.caller().await;
    let mut caller = edge.caller().await;
    // `x: 1` as a literal, never indexed.
    let fields = b"\x10\x01x\x011".repeat(3_000);
    let mut flood = HTTP2_BEGIN.to_vec();
    flood.extend(frame(HEADERS, 0, 1, &[0x83, 0x86, 0x84]));
    for _ in 0..1_000 {
        flood.extend(frame(CONTINUATION, 0, 1, &fields));
    }
    // It may be cut off while it sends.
    caller.stream.write_all(&flood).await.ok();
    while caller.receive().await {}
    until(|| edge.rejected("unknown", "malformed") == 1).await;
    other.call("POST", "/hooks/loja", "s3cret", BODY).await.receipt();
}

#[tokio::test]
async fn a_header_list_over_the_limit_over_http2_costs_its_connection_at_most() {
    let directory = TempDir::new().unwrap();
    let (tls, trusted) = certificate(directory.path());
    let edge = Edge::with(|config| config.http.tls = Some(tls)).await;
    let stream = connect_tls(&edge, &trusted, &["h2"]).await.unwrap();
    let (mut client, _connection) = http2(stream).await;
    let request = Request::post("https://localhost/hooks/loja")
        .header("x-token", "s3cret")
        .header("x-long", "a".repeat(100_000))
        .body(Full::from(BODY))
        .unwrap();
    let answer = timeout(PATIENCE, client.send_request(request)).await.unwrap();
    assert_ne!(answer.ok().map(|answer| answer.status()), Some(StatusCode::OK));
    assert_eq!(edge.stored(), []);
    let stream = connect_tls(&edge, &trusted, &["h2"]).await.unwrap();
    let (mut client, _connection) = http2(stream).await;
    assert_eq!(call_http2(&mut client, "s3cret", BODY).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_handshake_of_many_kilobytes_is_not_collected() {
    let directory = TempDir::new().unwrap();
    let (tls, trusted) = certificate(directory.path());
    let edge = Edge::with(|config| {
        config.http.tls = Some(tls);
        // It ends by its size, not by its time.
        config.http.header_timeout = 2 * PATIENCE;
    })
    .await;
    let mut caller = TcpStream::connect(edge.address).await.unwrap();
    // A client's first message of 65,000 bytes, in records of 8,192.
    let mut first = vec![1, 0, 0xfd, 0xe8];
    first.resize(8192, b'x');
    let record = |payload: &[u8]| [&[0x16, 3, 1, 0x20, 0], payload].concat();
    caller.write_all(&record(&first)).await.unwrap();
    let rest = async {
        while caller.write_all(&record(&[b'x'; 8192])).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, rest).await.expect("the connection ends");
    assert!(connect_tls(&edge, &trusted, &[]).await.is_ok());
}

#[tokio::test]
async fn a_changed_certificate_is_served_and_a_broken_one_is_not() {
    let directory = TempDir::new().unwrap();
    let (tls, first) = certificate(directory.path());
    let edge = Edge::with(|config| config.http.tls = Some(tls.clone())).await;
    let certificates = edge.certificates.as_ref().unwrap();
    let not_after =
        || edge.metrics.tls_certificate_not_after_seconds.with_label_values::<&str>(&[]).get();
    assert!(not_after() > Metrics::now_seconds());
    assert!(connect_tls(&edge, &first, &[]).await.is_ok());
    let (_, second) = certificate(directory.path());
    // The first time they may be half written.
    assert_eq!(certificates.reload(false), None);
    assert!(connect_tls(&edge, &first, &[]).await.is_ok());
    assert_eq!(certificates.reload(false), None);
    assert!(connect_tls(&edge, &second, &[]).await.is_ok());
    assert!(connect_tls(&edge, &first, &[]).await.is_err());
    let whole = fs::read(&tls.certificate_file).unwrap();
    for broken in [&b""[..], b"-----BEGIN CERTIFICATE-----\n", &whole[..whole.len() / 2]] {
        fs::write(&tls.certificate_file, broken).unwrap();
        assert!(certificates.reload(true).is_some());
        assert!(connect_tls(&edge, &second, &[]).await.is_ok());
    }
    // A key that is another certificate's: the files are changed one after the other.
    fs::write(&tls.certificate_file, whole).unwrap();
    let elsewhere = TempDir::new().unwrap();
    let (other, third) = certificate(elsewhere.path());
    fs::copy(other.key_file, &tls.key_file).unwrap();
    assert!(certificates.reload(true).is_some());
    assert!(connect_tls(&edge, &second, &[]).await.is_ok());
    fs::copy(other.certificate_file, &tls.certificate_file).unwrap();
    assert_eq!(certificates.reload(true), None);
    assert!(connect_tls(&edge, &third, &[]).await.is_ok());
}
