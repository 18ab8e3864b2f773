//! What bounds the inspector's work: for lists, for details, and for the last arrivals on disk.

use std::{io::Write, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::served::{BODY, SECRET, Served};
use crate::harness::{Edge, Settings, eventually};

#[tokio::test]
async fn a_list_reads_few_bytes_also_of_bodies_that_are_small_until_they_are_unpacked() {
    let served = Served::start().await;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&[b' '; 400_000]).unwrap();
    gzip.write_all(BODY.as_bytes()).unwrap();
    let body = gzip.finish().unwrap();
    for _ in 0..10 {
        let mut caller = TcpStream::connect(served.public).await.unwrap();
        let head = format!(
            "POST /hooks/loja HTTP/1.1\r\nHost: e\r\nX-Token: {SECRET}\r\nContent-Encoding: gzip\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        caller.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let mut events = served.follow(&[]).await;
    let shown = events.event("calls", |calls| calls["source"] == "loja").await;
    let calls = shown["calls"].as_array().unwrap();
    let read = calls.iter().filter(|call| call["accepted"]["what"]["total"] == 1).count();
    let busy = calls.iter().filter(|call| call["accepted"]["what"]["unread"] == "busy").count();
    assert_eq!((read, busy), (2, 8), "{shown}");
}

#[test]
fn two_calls_are_read_in_detail_at_once_and_a_third_has_to_wait() {
    // Details are read on the one thread for what blocks, which waits for the third answer.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let served = Arc::new(Served::start().await);
        served.deliver().await;
        let shown = served.follow(&[]).await.event("calls", |_| true).await;
        let path = format!("/inspector/calls/loja/{}", shown["calls"][0]["number"]);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let blocked = tokio::task::spawn_blocking(move || released.recv().ok());
        let mut asked = JoinSet::new();
        for _ in 0..3 {
            let (served, path) = (Arc::clone(&served), path.clone());
            asked.spawn(async move { served.get(&path, &[]).await.status });
        }
        assert_eq!(asked.join_next().await.unwrap().unwrap(), 429);
        drop(release);
        blocked.await.unwrap();
        assert_eq!(asked.join_all().await, [200, 200]);
        assert_eq!(served.get(&path, &[]).await.status, 200);
    });
}

#[test]
fn last_arrivals_that_cannot_be_written_are_said_once_and_written_when_they_can_be() {
    let settings = Settings { bootstrap: "127.0.0.1:1".to_owned(), ..Settings::default() };
    let mut edge = Edge::start(&settings);
    let (new, file) = (edge.journal().join("arrivals.new"), edge.journal().join("arrivals"));
    let failed = "when each source called last cannot be written";
    // It cannot be opened.
    std::fs::create_dir(&new).unwrap();
    edge.accept(BODY);
    eventually("it is said", || (edge.times_logged(failed) == 1).then_some(()));
    edge.accept(BODY);
    // The last try, at the end, fails, too.
    edge.terminate();
    assert_eq!(edge.times_logged(failed), 1);
    std::fs::remove_dir(&new).unwrap();
    // It can be opened, and writing fails, as on a full disk.
    let status = std::process::Command::new("mkfifo").arg(&new).status().unwrap();
    assert!(status.success());
    edge.start_again();
    edge.accept(BODY);
    eventually("it is said again", || (edge.times_logged(failed) == 2).then_some(()));
    edge.accept(BODY);
    assert!(!file.exists());
    std::fs::remove_file(&new).unwrap();
    eventually("it is written", || file.exists().then_some(()));
    eventually("it is said", || {
        (edge.times_logged("the last arrivals are written again") == 1).then_some(())
    });
    assert_eq!(edge.times_logged(failed), 2);
}
