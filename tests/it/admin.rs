//! What probes and Prometheus get.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use weni_edge::{
    admin,
    config::Config,
    http::{Phase, State},
    journal::{Journal, Options},
    metrics::Metrics,
};

/// What an admin listener serves that has no public one beside it.
pub(crate) fn state(
    journal: Journal,
    metrics: Arc<Metrics>,
    phase: watch::Receiver<Phase>,
) -> State {
    let public = ([127, 0, 0, 1], 0).into();
    let (config, calls) = (small_bodies(), Arc::default());
    State { journal, metrics, phase, config, calls, public }
}

/// The largest call takes 18,432 bytes in the journal.
fn small_bodies() -> Arc<ArcSwap<Config>> {
    let mut config = Config::load(None).unwrap();
    config.http.max_body_bytes = 1024;
    config.topics.message_status = "loja.status".to_owned();
    Arc::new(ArcSwap::from_pointee(config))
}

#[tokio::test]
async fn silent_connections_leave_room_for_probes_and_take_no_more_than_their_places() {
    let directory = TempDir::new().unwrap();
    let metrics = Arc::new(Metrics::default());
    let options = Options { allow_volatile: true, ..Options::new(directory.path()) };
    let journal = Journal::open(options, Arc::clone(&metrics)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_phase, phase) = watch::channel(Phase::Serving);
    let state = state(journal, metrics, phase);
    tokio::spawn(admin::serve(listener, state));
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut probe = TcpStream::connect(address).await.unwrap();
    probe.write_all(b"GET /livez HTTP/1.1\r\nHost: e\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    probe.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // All but the last 64 were closed for those after them.
    let mut nothing = [0; 1];
    for stream in &mut silent[..430] {
        assert_eq!(stream.read(&mut nothing).await.unwrap(), 0);
    }
}

/// A running admin listener.
struct Served {
    address: SocketAddr,
    journal: Journal,
    metrics: Arc<Metrics>,
    phase: watch::Sender<Phase>,
    _directory: TempDir,
}

impl Served {
    async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let metrics = Arc::new(Metrics::default());
        let options =
            Options { max_bytes: 50_000, allow_volatile: true, ..Options::new(directory.path()) };
        let journal = Journal::open(options, Arc::clone(&metrics)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (phase, watched) = watch::channel(Phase::Serving);
        let state = state(journal.clone(), Arc::clone(&metrics), watched);
        tokio::spawn(admin::serve(listener, state));
        Self { address, journal, metrics, phase, _directory: directory }
    }

    async fn call(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        // A cache would tell of another time.
        assert!(answer.contains("\r\ncache-control: no-store\r\n"), "{path}: {answer}");
        answer
    }
}

#[tokio::test]
async fn ready_means_open_with_room_and_serving_and_says_what_fails() {
    let served = Served::start().await;
    let get = async |path: &str| served.call("GET", path).await;
    let Served { journal, metrics, phase, .. } = &served;
    assert!(get("/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200 "));
    let text = get("/metrics").await;
    for line in [
        "weni_edge_ready{check=\"journal\"} 1",
        "weni_edge_ready{check=\"room\"} 1",
        "weni_edge_journal_pending_callbacks 0",
        "process_open_fds ",
        "tokio_workers 1",
        "tokio_alive_tasks ",
        "tokio_global_queue_depth ",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line}");
    }
    assert!(get("/no/such/path").await.starts_with("HTTP/1.1 404 "));
    phase.send_replace(Phase::Draining);
    let draining = get("/readyz").await;
    assert!(draining.starts_with("HTTP/1.1 503 ") && draining.contains("not ready: serving"));
    assert!(get("/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(get("/metrics").await.contains("weni_edge_ready{check=\"serving\"} 0"));
    phase.send_replace(Phase::Serving);
    let accepted = metrics.callbacks_accepted_total.with_label_values(&["loja"]);
    // Seven times 5,012 bytes leave less than the largest call takes.
    while get("/readyz").await.starts_with("HTTP/1.1 200 ") {
        journal.append(5000, &accepted, |record| record.extend([0; 5000])).await.unwrap();
    }
    assert!(get("/readyz").await.ends_with("not ready: room\n"));
    assert!(get("/metrics").await.contains("weni_edge_ready{check=\"room\"} 0"));
    assert!(accepted.get() >= 6, "{}", accepted.get());
    // A small one still fits: whoever calls is served until the balancer has noticed.
    journal.append(500, &accepted, |record| record.extend([0; 500])).await.unwrap();
    let pending = format!("weni_edge_journal_pending_callbacks {}", accepted.get());
    assert!(get("/metrics").await.contains(&pending));
}

#[tokio::test]
async fn programs_get_the_contract_and_may_only_ask() {
    let served = Served::start().await;
    let get = async |path: &str| served.call("GET", path).await;
    let json = async |path: &str| -> Json {
        let answer = get(path).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{path}: {head}");
        serde_json::from_str(body).unwrap()
    };
    let document = json("/asyncapi.json").await;
    assert_eq!(document["channels"]["message-status.v1"]["address"], "loja.status");
    let messages = document["components"]["messages"].as_object().unwrap();
    for (contract, message) in messages {
        let path = message.get("payload").unwrap_or(&message["headers"])["$ref"].as_str().unwrap();
        let schema = json(&format!("/{path}")).await;
        assert_eq!(schema["$id"], format!("urn:weni-edge:{contract}"));
    }
    assert_eq!(messages.len(), 4);
    assert!(get("/schemas/no.json").await.starts_with("HTTP/1.1 404 "));
    let posted = served.call("POST", "/livez").await;
    assert!(posted.starts_with("HTTP/1.1 405 ") && posted.contains("\r\nallow: GET, HEAD\r\n"));
}
