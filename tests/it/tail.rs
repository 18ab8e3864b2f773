//! `weni-edge tail` without a server, and beside `dev`.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Output},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    dev::Dev,
    harness::{self, await_exit, said},
};

fn begin(arguments: &[&str]) -> Child {
    harness::begin(["tail"].iter().chain(arguments))
}

fn tail(arguments: &[&str]) -> Output {
    harness::run(["tail"].iter().chain(arguments))
}

#[test]
fn its_help_says_what_is_masked_and_how_to_begin() {
    let help = String::from_utf8(tail(&["--help"]).stdout).unwrap();
    for text in ["weni-edge tail --bootstrap kafka:9092", "base64", "no consumer group", "NO_COLOR"]
    {
        assert!(help.contains(text), "{text}: {help}");
    }
}

#[test]
fn what_cannot_work_is_refused_with_the_remedy() {
    let without_brokers = tail(&[]);
    assert_eq!(without_brokers.status.code(), Some(2));
    assert!(said(&without_brokers).contains("--bootstrap HOST:PORT"), "{without_brokers:?}");
    for wrong in [&["--since", "yesterday"][..], &["--fault", "mine"], &["--state", "--stats"]] {
        let refused = tail(&[&["-b", "127.0.0.1:1"], wrong].concat());
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
}

#[test]
fn a_broker_that_cannot_be_reached_is_named_within_seconds() {
    let start = Instant::now();
    let output = tail(&["--bootstrap", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = said(&output);
    assert!(said.starts_with("error: Kafka at 127.0.0.1:1 cannot be reached: "), "{said}");
    assert!(said.contains("Connection refused"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

/// `dev` after its demo, and the address of its Kafka.
fn demo() -> (Dev, String) {
    let mut dev = Dev::start(&["--demo"]);
    while dev.next()["headers"]["reason"] != "invalid_json" {}
    let kafka = dev.text("/kafka").to_owned();
    (dev, kafka)
}

#[test]
fn it_shows_what_the_demo_did_and_ends_as_it_is_told() {
    let (_dev, kafka) = demo();
    let output = tail(&["-b", &kafka, "--topic", "all", "--no-follow"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{text}");
    assert_eq!(text.lines().count(), 8, "{text}");
    assert!(text.contains("131026 fault=recipient retry=never"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains("5582999990000"), "{text}");

    let states = tail(&["-b", &kafka, "--state", "--no-follow", "--output", "json"]);
    let states = String::from_utf8(states.stdout).unwrap();
    let states = states.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut states: Vec<_> = states.map(|state| state["event"]["status"].clone()).collect();
    states.sort_by_key(ToString::to_string);
    assert_eq!(states, ["failed", "read"]);

    let stats = tail(&["-b", &kafka, "--topic", "all", "--stats", "--no-follow"]);
    let stats = String::from_utf8(stats.stdout).unwrap();
    let events = |what: &str| {
        let rows = stats.lines().filter_map(|row| row.strip_prefix(&format!("{what:<32} ")));
        let counts = rows.map(|row| row.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap());
        counts.sum::<u64>()
    };
    assert_eq!(["sent", "failed", "- fault recipient"].map(events), [2, 1, 1], "{stats}");

    let none = tail(&["-b", &kafka, "--status", "deleted", "--no-follow"]);
    assert!(none.status.success() && none.stdout.is_empty());
    assert_eq!(said(&none), "note: 5 events came, and none of them fits\n");

    // Followed from the end, which says why it is silent, and ends on a signal.
    let mut following = begin(&["-b", &kafka]);
    let mut notes = BufReader::new(following.stderr.take().unwrap());
    let mut note = String::new();
    notes.read_line(&mut note).unwrap();
    assert!(
        note.contains("no event has reached topic weni.message-status.v1 since tail began"),
        "{note}"
    );
    kill_process(Pid::from_child(&following), Signal::TERM).unwrap();
    assert!(await_exit(&mut following).success());

    // A reader that goes, without another event.
    let mut following = begin(&["-b", &kafka]);
    drop(following.stdout.take());
    assert!(await_exit(&mut following).success());
}
