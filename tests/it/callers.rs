//! Callers who do harm, deliberately or not. Whatever they do, other callers are served, and nothing is
//! stored that was not answered 200.

use std::{
    convert::Infallible,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, pem::PemObject},
};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::harness::{Edge, Settings, certificate_files, eventually};

/// An edge whose Kafka is away: what it accepts stays in its journal.
fn edge() -> Edge {
    Edge::start(&Settings { bootstrap: "127.0.0.1:9".to_owned(), ..Settings::default() })
}

fn accepted(edge: &Edge) -> i64 {
    edge.metrics().total("callbacks_accepted_total", &[])
}

/// Sends bytes, and reads all that is answered until the connection is closed.
fn raw(edge: &Edge, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(edge.public()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Who is refused early may find the connection closed already.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

fn count(answer: &str, status: u16) -> usize {
    answer.matches(&format!("HTTP/1.1 {status} ")).count()
}

#[test]
fn what_could_be_read_in_two_ways_is_read_in_one_or_refused() {
    let mut edge = edge();
    let secret = "X-Token: only for the tests";
    let hidden =
        format!("POST /hooks/loja HTTP/1.1\r\nHost: h\r\n{secret}\r\nContent-Length: 1\r\n\r\n7");
    let chunked = "Transfer-Encoding: chunked";
    let framings = [
        ("Content-Length: 5\r\nContent-Length: 6\r\n".to_string(), format!("0\r\n\r\n{hidden}")),
        ("Content-Length: 5, 6\r\n".to_string(), format!("0\r\n\r\n{hidden}")),
        ("Content-Length: +5\r\n".to_string(), format!("0\r\n\r\n{hidden}")),
        ("Content-Length: -1\r\n".to_string(), hidden.clone()),
        ("Content-Length: 99999999999999999999\r\n".to_string(), hidden.clone()),
        ("Transfer-Encoding: chunked, identity\r\n".to_string(), format!("0\r\n\r\n{hidden}")),
        ("Transfer-Encoding: xchunked\r\n".to_string(), format!("0\r\n\r\n{hidden}")),
        ("Transfer-Encoding : chunked\r\n".to_string(), format!("0\r\n\r\n{hidden}")),
        (format!("X: y\r\n {chunked}\r\n"), format!("0\r\n\r\n{hidden}")),
        (format!("{chunked}\r\n"), format!("g\r\n\r\n{hidden}")),
        (format!("{chunked}\r\n"), format!("-1\r\n\r\n{hidden}")),
        (format!("{chunked}\r\n"), format!("10000000000000001\r\nx\r\n0\r\n\r\n{hidden}")),
        (format!("{chunked}\r\n"), format!("1\r\nxx\r\n0\r\n\r\n{hidden}")),
        (format!("{chunked}\r\n"), format!("5\r\n0\r\n\r\n{hidden}")),
    ];
    for (headers, body) in framings {
        let before = accepted(&edge);
        let head = format!("POST /hooks/loja HTTP/1.1\r\nHost: h\r\n{secret}\r\n{headers}\r\n");
        let answer = raw(&edge, format!("{head}{body}").as_bytes());
        assert_eq!(count(&answer, 200), 0, "{headers:?} {body:?}: {answer}");
        assert_eq!(accepted(&edge), before, "{headers:?} {body:?}");
    }
    // With both, chunks count, and the connection ends (RFC 9112, 6.3): what follows is not read.
    let both = format!(
        "POST /hooks/loja HTTP/1.1\r\nHost: h\r\n{secret}\r\nContent-Length: 3\r\n{chunked}\r\n\r\n"
    );
    let answer = raw(&edge, format!("{both}1\r\n7\r\n0\r\n\r\n{hidden}").as_bytes());
    assert_eq!((count(&answer, 200), accepted(&edge)), (1, 1), "{answer}");
    edge.accept("{}");
    edge.kill();
}

#[test]
fn a_path_that_was_typed_carelessly_is_understood_and_no_other_becomes_reachable() {
    let mut edge = edge();
    let call = |path: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nX-Token: only for the tests\r\n");
        raw(&edge, format!("{head}Content-Length: 1\r\n\r\n7").as_bytes())
    };
    let understood = [
        "/hooks/%6coja",
        "/hooks/loja%20",
        "/hooks/%20loja%09/",
        "/hooks/loja%C2%A0",
        "//hooks/loja",
        "/hooks//loja//",
        "/HOOKS/loja",
        "/hooks/LOJA",
        "/hooks/%4CoJa?a=b",
    ];
    for path in understood {
        let answer = call(path);
        assert_eq!(count(&answer, 200), 1, "{path:?}: {answer}");
    }
    for path in [
        "/hooks/../hooks/loja",
        "/hooks/./loja",
        "/hooks/x/../loja",
        "/hooks/%2e%2e/hooks/loja",
        "/hooks/%256coja",
        "/hooks/loja%2f",
        "/hooks%2floja",
        "/hooks/loja%00",
        "/hooks/loja%ff",
        "/hooks/lo%20ja",
        "/hooks/loja\0",
        "/hooks/loja\u{e9}",
        "/loja",
        "/hooks/hooks/loja",
        "hooks/loja",
        "*",
    ] {
        let answer = call(path);
        assert_eq!(count(&answer, 404) + count(&answer, 400), 1, "{path:?}: {answer}");
    }
    assert_eq!(accepted(&edge), understood.len() as i64);
    edge.kill();
}

/// As many open files as the system grants this process, and those it starts.
fn raise_open_files(needed: u64) {
    let limit = getrlimit(Resource::Nofile);
    let granted = limit.maximum.unwrap_or(u64::MAX);
    assert!(granted >= needed, "{granted} open files are granted, {needed} needed (ulimit -Hn)");
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

#[test]
fn ten_thousand_silent_connections_and_more_leave_room_for_calls() {
    raise_open_files(12_000);
    let mut edge = edge();
    let silent: Vec<_> = (0..10_500).map(|_| TcpStream::connect(edge.public()).unwrap()).collect();
    edge.accept("{}");
    let mut caller = edge.caller();
    caller.call("POST", b"{}").unwrap().receipt();
    let samples = edge.metrics();
    // Some of the first have had their time by now, on a slow machine.
    assert!(samples.total("http_connections", &[]) <= 10_000);
    assert_eq!(samples.total("http_connections_max", &[]), 10_000);
    let more: Vec<_> = (0..200).map(|_| TcpStream::connect(edge.public()).unwrap()).collect();
    caller.call("POST", b"{}").unwrap().receipt();
    assert_within_memory(&edge, 10_000);
    drop((silent, more));
    edge.kill();
}

#[test]
fn answers_that_callers_do_not_take_stay_within_the_budget() {
    const CONNECTIONS: usize = 1_200;
    raise_open_files(12_000);
    let mut edge = edge();
    // No byte of an answer may be sent: SETTINGS_INITIAL_WINDOW_SIZE is 0. Then 100 times GET /nope.
    let mut calls = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    calls.extend(b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0");
    for stream in (1_u32..200).step_by(2) {
        let fields = b"\x82\x86\x04\x05/nope\x01\x01h";
        calls.extend([0, 0, fields.len() as u8, 1, 5]);
        calls.extend(stream.to_be_bytes());
        calls.extend(fields);
    }
    let open = |_| {
        let mut stream = TcpStream::connect(edge.public()).unwrap();
        // It may be closed already for one that came later.
        drop(stream.write_all(&calls));
        stream
    };
    let held: Vec<_> = (0..CONNECTIONS).map(open).collect();
    eventually("those beyond the budget are refused", || {
        (edge.metrics().total("http_rejections_total", &["overloaded"]) > 0).then_some(())
    });
    edge.accept("{}");
    assert_within_memory(&edge, 10_000);
    drop(held);
    eventually("there is room again", || {
        (edge.caller().call("POST", b"{}").ok()?.status == 200).then_some(())
    });
    edge.kill();
}

#[test]
fn a_stop_with_nothing_pending_does_not_wait_for_kafka() {
    let mut edge = edge();
    edge.await_blocked("no_broker");
    let since = Instant::now();
    edge.terminate();
    // 2 s, and what a loaded machine takes to end a process; waiting for Kafka took 12 to 15.
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[test]
fn wrong_secrets_at_full_speed_leave_right_ones_alone() {
    let mut edge = edge();
    let (ended, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wrong =
        b"POST /hooks/loja HTTP/1.1\r\nHost: h\r\nX-Token: wrong\r\nContent-Length: 1\r\n\r\n7";
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let answer = raw(&edge, wrong);
                    assert_eq!(count(&answer, 401), 1, "{answer}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut caller = edge.caller();
        let mut right = 0;
        while right < 500 || refused.load(Ordering::Relaxed) < 2_000 {
            caller.call("POST", b"{}").unwrap().receipt();
            right += 1;
        }
        ended.store(true, Ordering::Relaxed);
    });
    let samples = edge.metrics();
    assert!(samples.total("http_rejections_total", &["reason=\"auth\"", "loja"]) >= 2_000);
    edge.kill();
}

/// Handshakes, most of a head, and most of one more record, which is kept until it is whole.
#[test]
fn a_connection_over_tls_takes_at_most_64_kib() {
    const CONNECTIONS: u64 = 1_000;
    raise_open_files(2_000);
    let directory = TempDir::new().unwrap();
    let (certificate, key) = certificate_files(directory.path());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (config, tls) = (Arc::new(config), Some((certificate, key)));
    let bootstrap = "127.0.0.1:9".to_owned();
    let mut edge = Edge::start(&Settings { bootstrap, tls, ..Settings::default() });
    let head = format!("POST /hooks/loja HTTP/1.1\r\nHost: h\r\nX-A: {}", "a".repeat(15_000));
    let record = [&[23, 3, 3, 0x40, 0x10], &[0; 16_390][..]].concat();
    let before = peak_kib(&edge);
    let open = |_| {
        let connection =
            ClientConnection::new(Arc::clone(&config), "localhost".try_into().unwrap());
        let stream = TcpStream::connect(edge.public()).unwrap();
        let mut stream = StreamOwned::new(connection.unwrap(), stream);
        stream.write_all(head.as_bytes()).unwrap();
        stream.sock.write_all(&record).unwrap();
        stream
    };
    let streams: Vec<_> = (0..CONNECTIONS).map(open).collect();
    let taken = || (peak_kib(&edge) - before) / CONNECTIONS;
    // Without TLS it is less, so this shows that the edge has read what they sent.
    eventually("all is read", || (taken() > 32).then_some(()));
    assert!(taken() <= 64, "{} KiB each", taken());
    drop(streams);
    edge.kill();
}

/// The most that was resident so far.
fn peak_kib(edge: &Edge) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", edge.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// What deploy/RUNBOOK.md says: 64 MiB, twice http.max_memory_bytes, and 32 KiB for each connection, of
/// which one of HTTP/2 counts as 16; at no moment more.
fn assert_within_memory(edge: &Edge, connections: u64) {
    let peak_kib = peak_kib(edge);
    println!("{} MiB at most with {connections} connections", peak_kib >> 10);
    assert!(peak_kib < ((64 + 2 * 64) << 10) + connections * 32, "{peak_kib} KiB resident");
}

#[test]
fn bodies_at_the_limit_on_all_connections_stay_within_the_budget() {
    const CALLERS: usize = 200;
    let away = Settings { bootstrap: "127.0.0.1:9".to_owned(), ..Settings::default() };
    let mut edge = Edge::new(&away);
    // A body whose time is over makes room for another one. This is the most that may be configured.
    edge.start_by(&["env", "WENI_EDGE__HTTP__BODY_TIMEOUT=60s"]);
    let piece = vec![b' '; 65_536];
    let head = "POST /hooks/loja HTTP/1.1\r\nHost: h\r\nX-Token: only for the tests\r\nTransfer-Encoding: chunked\r\n\r\n";
    let open = |_| {
        let mut stream = TcpStream::connect(edge.public()).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        for _ in 0..15 {
            // Refused ones are closed in the middle.
            let size = format!("{:x}\r\n", piece.len());
            if [size.as_bytes(), &piece, b"\r\n"].iter().any(|part| stream.write_all(part).is_err())
            {
                break;
            }
        }
        stream
    };
    let streams: Vec<_> = (0..CALLERS).map(open).collect();
    eventually("some are refused", || {
        (edge.metrics().total("http_rejections_total", &["overloaded"]) > 0).then_some(())
    });
    let answers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            drop(stream.write_all(b"0\r\n\r\n"));
            drop(stream.shutdown(Shutdown::Write));
            let mut answer = Vec::new();
            drop(stream.read_to_end(&mut answer));
            String::from_utf8_lossy(&answer).into_owned()
        })
        .collect();
    let taken = answers.iter().filter(|answer| count(answer, 200) == 1).count();
    assert!(taken >= 40, "{taken} of {CALLERS}: as many as fit are taken");
    assert_eq!(taken as i64, accepted(&edge));
    assert_within_memory(&edge, CALLERS as u64);
    edge.accept("{}");
    edge.kill();
}

/// 960 KiB, and the end when it is told.
struct Unfinished {
    pieces: usize,
    told: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Unfinished {
    fn until(mut told: watch::Receiver<bool>) -> Self {
        let told = Box::pin(async move { told.wait_for(|told| *told).await.map(drop).unwrap() });
        Self { pieces: 15, told }
    }
}

impl Body for Unfinished {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.pieces == 0 {
            ready!(self.told.as_mut().poll(context));
            return Poll::Ready(None);
        }
        self.pieces -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; 65_536])))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_at_the_limit_on_all_streams_of_http2_stay_within_the_budget() {
    const CONNECTIONS: usize = 100;
    const STREAMS: usize = 20;
    let mut edge = edge();
    let (tell, told) = watch::channel(false);
    let mut calls = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = tokio::net::TcpStream::connect(edge.public()).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        for _ in 0..STREAMS {
            let request = edge.request(String::new()).map(|_| Unfinished::until(told.clone()));
            calls.push(tokio::spawn(client.clone().send_request(request)));
        }
    }
    eventually("some are refused", || {
        (edge.metrics().total("http_rejections_total", &["overloaded"]) > 0).then_some(())
    });
    tell.send_replace(true);
    let mut taken = 0;
    for call in calls {
        taken += i64::from(call.await.unwrap().is_ok_and(|answer| answer.status() == 200));
    }
    // How many depends on how long the machine takes: a body has 10 s.
    assert!(taken > 0, "some fit");
    assert_eq!(taken, accepted(&edge));
    assert_within_memory(&edge, 16 * CONNECTIONS as u64);
    edge.accept("{}");
    edge.kill();
}
