//! A reader of the log may stop reading without harm, and callers cannot fill or forge the log.

use std::{
    io::{PipeWriter, Read, Write, pipe},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::Signal,
};

use crate::harness::{Edge, PROGRAM, Settings, await_exit, certificate_files, eventually};

/// An edge whose Kafka is away, and that logs every frame of HTTP/2.
fn talkative() -> Edge {
    let away = Settings { bootstrap: "127.0.0.1:9".to_owned(), ..Settings::default() };
    let mut edge = Edge::new(&away);
    edge.start_by(&["env", "WENI_EDGE__LOG__LEVEL=info,h2=trace"]);
    edge
}

/// Makes the edge log megabytes, by pings on four connections of HTTP/2.
fn make_talk(edge: &Edge) {
    (0..4).for_each(|_| ping(edge));
}

fn ping(edge: &Edge) {
    let mut stream = TcpStream::connect(edge.public()).unwrap();
    let mut answers = stream.try_clone().unwrap();
    thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut pings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for _ in 0..3000 {
        pings.extend(b"\0\0\x08\x06\0\0\0\0\0weniping");
    }
    // An edge that stands still reads no further, and the test goes on to ask how it is.
    drop(stream.write_all(&pings));
    drop(stream.shutdown(Shutdown::Write));
}

fn await_dropped(edge: &Edge) {
    eventually("lines are dropped", || {
        (edge.metrics().total("log_lines_dropped_total", &[]) > 0).then_some(())
    });
}

#[test]
fn a_reader_of_the_log_that_stands_still_stops_nothing_and_lines_are_counted_as_dropped() {
    let edge = talkative();
    edge.while_log_stands(|| {
        make_talk(&edge);
        assert_eq!(edge.probe("/livez").0, 200);
        edge.accept("{}");
        await_dropped(&edge);
        assert_eq!(edge.probe("/livez").0, 200);
    });
    eventually("the log goes on", || {
        // Its line may still be dropped: the queue is full until the reader has caught up.
        edge.signal(Signal::HUP);
        edge.has_logged("on SIGHUP").then_some(())
    });
}

#[test]
fn a_reader_of_the_log_that_stands_still_does_not_hold_the_end() {
    let mut edge = talkative();
    let ended = edge.while_log_stands(|| {
        make_talk(&edge);
        await_dropped(&edge);
        edge.signal(Signal::TERM);
        edge.ends_within(Duration::from_secs(60))
    });
    assert!(ended, "it waits for who reads its log");
    assert!(edge.await_end().status.success());
}

/// Fills a pipe: a process that writes to it waits until the pipe is read.
fn fill(mut writer: &PipeWriter) {
    let flags = fcntl_getfl(writer).unwrap();
    fcntl_setfl(writer, flags | OFlags::NONBLOCK).unwrap();
    for piece in [&[b' '; 4096][..], b" "] {
        while writer.write(piece).is_ok() {}
    }
    fcntl_setfl(writer, flags).unwrap();
}

#[test]
fn an_edge_that_cannot_start_ends_also_where_nobody_reads_why() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::TempDir::new().unwrap();
    let (_unread, stderr) = pipe().unwrap();
    fill(&stderr);
    let mut child = Command::new(PROGRAM)
        .arg("serve")
        .env("WENI_EDGE__HTTP__LISTEN", taken.local_addr().unwrap().to_string())
        .env("WENI_EDGE__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9")
        .env("WENI_EDGE__JOURNAL__DIRECTORY", directory.path())
        .env("WENI_EDGE__SOURCES__LOJA__ALLOW_UNAUTHENTICATED", "true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    assert_eq!(await_exit(&mut child).code(), Some(2));
}

#[test]
fn dev_ends_also_where_nobody_reads_what_it_prints() {
    let (_unread, stderr) = pipe().unwrap();
    fill(&stderr);
    let (mut reader, stdout) = pipe().unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["dev", "--output", "json"])
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let mut ready = Vec::new();
    while ready.last() != Some(&b'\n') {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        ready.push(byte[0]);
    }
    let ready: serde_json::Value = serde_json::from_slice(&ready).unwrap();
    fill(&stdout);
    let sent = Command::new(PROGRAM)
        .args(["send", ready["hooks"].as_str().unwrap(), "--sample", "read", "-H"])
        .arg(format!("X-Token: {}", ready["headers"]["X-Token"].as_str().unwrap()))
        .output()
        .unwrap();
    assert!(sent.status.success(), "{sent:?}");
    // It prints the record now, and waits.
    thread::sleep(Duration::from_secs(1));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    assert_eq!(await_exit(&mut child).code(), Some(0));
}

#[test]
fn what_libraries_say_of_callers_is_logged_only_where_it_is_asked_for() {
    let directory = tempfile::TempDir::new().unwrap();
    let tls = Some(certificate_files(directory.path()));
    let bootstrap = "127.0.0.1:9".to_owned();
    let mut edge = Edge::new(&Settings { bootstrap, tls, ..Settings::default() });
    for (level, is_asked) in [("info", false), ("info,rustls=warn", true)] {
        edge.start_by(&["env", &format!("WENI_EDGE__LOG__LEVEL={level}")]);
        let mut stream = TcpStream::connect(edge.public()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // An alert that is a warning, and then what is no TLS and ends the connection.
        stream.write_all(b"\x15\x03\x03\0\x02\x01\x64GET / HTTP/1.1\r\n\r\n").unwrap();
        drop(stream.read_to_end(&mut Vec::new()));
        edge.signal(Signal::TERM);
        let log = edge.await_end().log;
        let has_said = log.iter().any(|line| line.contains("TLS alert"));
        assert_eq!(has_said, is_asked, "{level}: {log:?}");
    }
}

#[test]
fn a_refused_call_is_logged_with_the_reason_in_words() {
    let edge =
        Edge::start(&Settings { bootstrap: "127.0.0.1:9".to_owned(), ..Settings::default() });
    let mut stream = TcpStream::connect(edge.public()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let call = b"GET /hooks/loja HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream.write_all(call).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let line = "calls refused: The header with the secret is missing or wrong.";
    edge.await_logged(line);
}
