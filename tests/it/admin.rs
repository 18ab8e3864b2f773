//! What probes and Prometheus get.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use weni_edge::{
    admin,
    http::Phase,
    journal::{Journal, Options},
    metrics::Metrics,
};

#[tokio::test]
async fn ready_means_open_with_room_and_serving_and_says_what_fails() {
    let directory = TempDir::new().unwrap();
    let metrics = Arc::new(Metrics::default());
    let options = Options { max_bytes: 40_000, ..Options::new(directory.path()) };
    let journal = Journal::open(options, Arc::clone(&metrics)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (phase, watched) = watch::channel(Phase::Serving);
    let state =
        admin::State { journal: journal.clone(), metrics: Arc::clone(&metrics), phase: watched };
    tokio::spawn(admin::serve(listener, state));
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
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
    phase.send_replace(Phase::Draining);
    let draining = get("/readyz").await;
    assert!(draining.starts_with("HTTP/1.1 503 ") && draining.contains("not ready: serving"));
    assert!(get("/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(get("/metrics").await.contains("weni_edge_ready{check=\"serving\"} 0"));
    phase.send_replace(Phase::Serving);
    let accepted = metrics.callbacks_accepted_total.with_label_values(&["loja"]);
    while journal.has_room() {
        let appended = journal.append(5000, &accepted, |record| record.extend([0; 5000])).await;
        if appended.is_err() {
            break;
        }
    }
    let pending = format!("weni_edge_journal_pending_callbacks {}", accepted.get());
    assert!(get("/metrics").await.contains(&pending));
}
