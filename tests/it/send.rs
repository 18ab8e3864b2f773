//! What `weni-edge send` puts on the wire, and what it says about the answers.

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

const ACCEPTED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"receipt\":\"r\"}";

/// A server that knows no HTTP but where a chunked request ends.
struct Edge {
    address: SocketAddr,
    /// Connection and bytes of each request.
    requests: Arc<Mutex<Vec<(usize, String)>>>,
}

impl Edge {
    /// Answers the n-th request with `answer(n)`, and hangs up if that is no keep-alive.
    fn start(answer: impl Fn(usize) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || serve(stream.unwrap(), number, &seen, &*answer));
            }
        });
        Self { address, requests }
    }

    fn accepting() -> Self {
        Self::start(|_| ACCEPTED.into())
    }

    fn url(&self) -> String {
        format!("http://{}/hooks/loja", self.address)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(_, request)| request.clone()).collect()
    }

    /// The requests' bodies, of one chunk each.
    fn bodies(&self) -> Vec<String> {
        let body = |request: &String| {
            let (_, chunks) = request.split_once("\r\n\r\n").unwrap();
            let (len, rest) = chunks.split_once("\r\n").unwrap();
            rest[..usize::from_str_radix(len, 16).unwrap()].to_string()
        };
        self.requests().iter().map(body).collect()
    }

    fn connections(&self) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|(number, _)| *number).collect::<HashSet<_>>().len()
    }
}

fn serve(
    mut stream: TcpStream,
    number: usize,
    seen: &Mutex<Vec<(usize, String)>>,
    answer: &dyn Fn(usize) -> String,
) {
    let mut request = Vec::new();
    let mut chunk = [0; 65_536];
    while let Ok(len @ 1..) = stream.read(&mut chunk) {
        request.extend_from_slice(&chunk[..len]);
        if !request.ends_with(b"\r\n0\r\n\r\n") {
            continue;
        }
        let index = {
            let mut seen = seen.lock().unwrap();
            seen.push((number, String::from_utf8(std::mem::take(&mut request)).unwrap()));
            seen.len() - 1
        };
        let answer = answer(index);
        stream.write_all(answer.as_bytes()).unwrap();
        if !answer.contains("Content-Length") || answer.contains("Connection: close") {
            return;
        }
    }
}

fn send(url: &str, arguments: &[&str]) -> Output {
    send_with(url, arguments, "")
}

fn send_with(url: &str, arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weni-edge"))
        .args(["send", url, "--output", "json"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The summary of calls that were all accepted.
fn accepted(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    summary(output)
}

fn summary(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn file(directory: &TempDir, name: &str, text: &str) -> String {
    let path = directory.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn a_call_arrives_to_the_byte_as_weni_makes_it() {
    let edge = Edge::accepting();
    let output = send_with(
        &format!("{}?a=b", edge.url()),
        &["-H", "x-token: s3cr3t-s3cr3t-s3cr3t", "-"],
        "{\"a\": 1}\n",
    );
    accepted(&output);
    let expected = format!(
        "POST /hooks/loja?a=b HTTP/1.1\r\n\
         Host: {}\r\n\
         User-Agent: Courier/0.0.0 (weni-edge send {})\r\n\
         Transfer-Encoding: chunked\r\n\
         X-Token: s3cr3t-s3cr3t-s3cr3t\r\n\
         Accept-Encoding: gzip\r\n\
         \r\n\
         9\r\n{{\"a\": 1}}\n\r\n0\r\n\r\n",
        edge.address,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(edge.requests(), [expected]);
}

#[test]
fn the_first_chunk_of_a_get_and_a_delete_is_one_byte() {
    for (method, chunks) in [
        ("GET", "1\r\n{\r\n4\r\n\"a\"}\r\n0\r\n\r\n"),
        ("DELETE", "1\r\n{\r\n4\r\n\"a\"}\r\n0\r\n\r\n"),
        ("PUT", "5\r\n{\"a\"}\r\n0\r\n\r\n"),
        ("PATCH", "5\r\n{\"a\"}\r\n0\r\n\r\n"),
    ] {
        let edge = Edge::accepting();
        accepted(&send_with(&edge.url(), &["--method", method, "-"], "{\"a\"}"));
        let [request] = &edge.requests()[..] else { panic!("one request") };
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("{method} /hooks/loja HTTP/1.1\r\n")), "{head}");
        assert!(head.contains("\r\nTransfer-Encoding: chunked"), "{head}");
        assert!(!head.contains("Content-"), "{head}");
        assert_eq!(body, chunks, "{method}");
    }
    let edge = Edge::accepting();
    accepted(&send(&edge.url(), &["-X", "post", "--count", "1"]));
    assert!(edge.requests()[0].starts_with("POST /hooks/loja HTTP/1.1\r\n"), "in small letters");
    let refused = send(&edge.url(), &["-X", "FOO"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && said.contains("PATCH"), "{said}");
    assert_eq!(edge.requests().len(), 1, "nothing was sent");
}

#[test]
fn headers_are_sent_as_given_and_those_of_http_itself_are_refused() {
    let edge = Edge::accepting();
    let arguments = ["-H", "Content-Type: application/json", "-H", "User-Agent:me", "--count", "1"];
    accepted(&send(&edge.url(), &arguments));
    let request = &edge.requests()[0];
    assert!(request.contains("\r\nContent-Type: application/json\r\n"), "{request}");
    assert!(request.contains("\r\nUser-Agent: me\r\n"), "{request}");

    for slip in ["X-Token s3cr3t-w0rd", "X-Token : s3cr3t-w0rd", "X-Token: s3cr3t-w0rd\u{7f}"] {
        let refused = send(&edge.url(), &["-H", slip]);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(2) && !said.contains("s3cr3t"), "{slip}: {said}");
    }
    let refused = send(&edge.url(), &["-H", "Content-Length: 5"]);
    assert_eq!(refused.status.code(), Some(2));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("content-length is set by HTTP itself"), "{error}");
}

#[test]
fn without_files_each_sample_is_sent_once_and_every_message_is_new() {
    let edge = Edge::accepting();
    let summary = accepted(&send(&edge.url(), &[]));
    let kinds = edge.bodies().len();
    assert_eq!(summary["accepted"], kinds);
    accepted(&send(&edge.url(), &[]));
    let bodies: HashSet<_> = edge.bodies().into_iter().collect();
    assert_eq!(bodies.len(), 2 * kinds);
    for body in bodies {
        serde_json::from_str::<Value>(&body).unwrap();
    }
}

#[test]
fn identical_samples_repeat_one_body_of_the_size_asked_for() {
    let edge = Edge::accepting();
    let arguments = ["--sample", "delivered", "--size", "1024", "--count", "5"];
    accepted(&send(&edge.url(), &arguments));
    assert_eq!(edge.bodies().into_iter().collect::<HashSet<_>>().len(), 5);
    accepted(&send(&edge.url(), &[&arguments[..], &["--identical"]].concat()));
    assert_eq!(edge.bodies().into_iter().collect::<HashSet<_>>().len(), 6);
    assert!(edge.bodies().iter().all(|body| body.len() == 1024));
}

#[test]
fn as_many_calls_are_made_as_were_asked_for_on_connections_that_are_kept() {
    let edge = Edge::accepting();
    let summary = accepted(&send(&edge.url(), &["--count", "40", "--connections", "3"]));
    assert_eq!(summary["calls"], 40);
    assert_eq!(edge.requests().len(), 40);
    assert!((1..=3).contains(&edge.connections()), "{}", edge.connections());
}

#[test]
fn calls_are_not_made_faster_than_the_rate() {
    let edge = Edge::accepting();
    let start = Instant::now();
    accepted(&send(&edge.url(), &["--count", "11", "--rate", "50"]));
    // The eleventh is due 200 ms after the first.
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(edge.requests().len(), 11);
}

#[test]
fn sending_ends_with_its_duration() {
    let edge = Edge::accepting();
    let start = Instant::now();
    let summary = accepted(&send(&edge.url(), &["--duration", "300ms", "--rate", "10"]));
    assert!(start.elapsed() >= Duration::from_millis(200));
    // Due at 0, 100 and 200 ms; the one at 300 ms is not.
    assert_eq!(summary["calls"], 3);
}

#[test]
fn refused_calls_are_counted_by_status_make_the_exit_code_1_and_are_not_repeated() {
    let edge = Edge::start(|index| match index {
        0 => ACCEPTED.into(),
        1 => "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".into(),
        2 => "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".into(),
        _ => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".into(),
    });
    let output = send(&edge.url(), &["--count", "5", "--connections", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let summary = summary(&output);
    assert_eq!(summary["accepted"], 1);
    assert_eq!(summary["refused"], json!({"302": 1, "401": 1, "503": 2}));
    assert_eq!(edge.requests().len(), 5);
}

#[test]
fn failed_calls_are_counted_by_what_went_wrong_and_are_not_repeated() {
    let edge = Edge::start(|index| match index {
        0 => String::new(),
        1 => "hello\r\n\r\n".into(),
        _ => ACCEPTED.into(),
    });
    let output = send(&edge.url(), &["--count", "3", "--connections", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let counts = summary(&output);
    assert_eq!(counts["failed"], json!({"closed": 1, "malformed": 1}));
    assert_eq!(counts["accepted"], 1);
    assert_eq!(edge.requests().len(), 3);

    let output = send("http://127.0.0.1:1/hooks/loja", &["--count", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(summary(&output)["failed"], json!({"connect": 2}));
    assert_eq!(
        summary(&output)["causes"],
        json!({"connect": "Connection refused (os error 111)"}),
        "of the first"
    );
}

#[test]
fn a_connection_that_the_edge_closes_is_replaced_without_losing_a_call() {
    let close = ACCEPTED.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let edge = Edge::start(move |_| close.clone());
    accepted(&send(&edge.url(), &["--count", "5", "--connections", "1"]));
    assert_eq!(edge.connections(), 5);
}

#[test]
fn files_directories_and_standard_input_are_sent_in_order_and_unchanged() {
    let directory = TempDir::new().unwrap();
    let single = file(&directory, "single.json", "not JSON \u{feff}");
    file(&directory, "many/b.json", "second");
    file(&directory, "many/a.json", "first");
    file(&directory, "many/deeper/c.json", "not sent");
    let many = directory.path().join("many");
    let edge = Edge::accepting();
    let arguments = [&single, many.to_str().unwrap(), "-", "--connections", "1", "--count", "5"];
    accepted(&send_with(&edge.url(), &arguments, "from stdin"));
    assert_eq!(
        edge.bodies(),
        ["not JSON \u{feff}", "first", "second", "from stdin", "not JSON \u{feff}"]
    );
    let missing = send(&edge.url(), &["no-such-file.json"]);
    assert_eq!(missing.status.code(), Some(2));
    assert_eq!(edge.requests().len(), 5);
}

#[test]
fn receipts_are_listed_with_the_message_that_each_was_given_for() {
    let directory = TempDir::new().unwrap();
    let receipts = directory.path().join("receipts");
    let edge = Edge::start(|index| match index {
        1 => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".into(),
        _ => ACCEPTED.replace("\"r\"", &format!("\"{index}\"")),
    });
    let path = receipts.to_str().unwrap();
    let arguments = ["--sample", "text", "--count", "3", "--connections", "1", "--receipts", path];
    assert_eq!(send(&edge.url(), &arguments).status.code(), Some(1));
    let message_id = |body: &String| {
        let body: Value = serde_json::from_str(body).unwrap();
        let id = &body["entry"][0]["changes"][0]["value"]["messages"][0]["id"];
        id.as_str().unwrap().to_string()
    };
    let ids: Vec<_> = edge.bodies().iter().map(message_id).collect();
    let expected = format!("0\t{}\n2\t{}\n", ids[0], ids[2]);
    assert_eq!(fs::read_to_string(&receipts).unwrap(), expected);

    let sent = file(&directory, "one.json", "{}");
    accepted(&send(&edge.url(), &[&sent, "--receipts", path]));
    assert_eq!(fs::read_to_string(&receipts).unwrap(), format!("3\t{sent}\n"));
}

#[test]
fn https_speaks_http_2_where_it_is_offered_and_trusts_only_the_authority_given() {
    let directory = TempDir::new().unwrap();
    let edge = tls::start(directory.path());
    let url = format!("https://localhost:{}/hooks/loja", edge.port);
    let authority = directory.path().join("ca.pem");
    let arguments = ["--ca-file", authority.to_str().unwrap(), "-X", "GET", "--count", "3"];
    accepted(&send(&url, &[&arguments[..], &["--connections", "1"]].concat()));
    let seen = edge.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 3);
    for (version, method, headers, body) in seen {
        assert_eq!((version, method.as_str()), (http::Version::HTTP_2, "GET"));
        assert!(!headers.contains_key("transfer-encoding") && !headers.contains_key("host"));
        assert!(!headers.contains_key("content-length"));
        assert_eq!(headers["accept-encoding"], "gzip");
        serde_json::from_slice::<Value>(&body).unwrap();
    }

    let output = send(&url, &["--count", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(summary(&output)["failed"], json!({"tls": 1}));
    let cause = &summary(&output)["causes"]["tls"];
    assert!(cause.as_str().unwrap().contains("UnknownIssuer"), "{cause}");
}

/// A server with a certificate of its own authority.
mod tls {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::{Request, Response, body::Incoming, service::service_fn};
    use hyper_util::{
        rt::{TokioExecutor, TokioIo},
        server::conn::auto,
    };
    use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
    use tokio::{net::TcpListener, runtime::Runtime};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    type Seen = Arc<Mutex<Vec<(http::Version, http::Method, http::HeaderMap, Bytes)>>>;

    pub(super) struct Edge {
        pub(super) port: u16,
        pub(super) seen: Seen,
        _runtime: Runtime,
    }

    pub(super) fn start(directory: &Path) -> Edge {
        let key = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        fs::write(directory.join("ca.pem"), key.cert.pem()).unwrap();
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("localhost:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Seen::default();
        runtime.spawn(accept(listener, acceptor, seen.clone()));
        Edge { port, seen, _runtime: runtime }
    }

    async fn accept(listener: TcpListener, acceptor: TlsAcceptor, seen: Seen) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A caller that does not trust the certificate hangs up here.
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let seen = seen.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    seen.lock().unwrap().push((head.version, head.method, head.headers, body));
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from("{}"))))
                }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move {
                builder.serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    }
}
