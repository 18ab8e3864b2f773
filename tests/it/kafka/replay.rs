//! `weni-edge replay` publishes each dead letter again, once.

use std::{fs, path::Path, process::Output};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;
use weni_edge::config::{self, Config};

use super::*;
use crate::cluster::{STRANGER, Written};

/// What the command says as JSON.
fn summary(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn replay(edge: &Edge, more: &[&str]) -> Value {
    let arguments = [&["--yes", "--output", "json"], more].concat();
    summary(&edge.replay(&arguments))
}

/// Letters, of which replayed, still dead, left out by the filter, and done before.
fn figures(summary: &Value) -> [u64; 5] {
    ["letters", "replayed", "still_dead", "left_out", "done_before"]
        .map(|name| summary[name].as_u64().unwrap())
}

/// Topics of which that of the statuses takes none.
fn topics_in_trouble(bootstrap: &str) -> Topics {
    let topics = Topics::named(bootstrap);
    topics.create_one("message_status", &[("max.message.bytes", "1000")]);
    for role in ["inbound_message", "channel_event", "dead_letter"] {
        topics.create_one(role, &[]);
    }
    topics
}

fn statuses(all: &[String]) -> String {
    envelope(&format!(r#""statuses":[{}]"#, all.join(",")))
}

/// So many callbacks with so many statuses of a few messages, each a second later than the other.
fn accept_statuses(edge: &Edge, callbacks: u64, each: u64) {
    for callback in 0..callbacks {
        let seconds = callback * each..(callback + 1) * each;
        let all: Vec<_> = seconds.map(|at| status(&format!("wamid.{}", at % 7), at, "")).collect();
        edge.accept(&statuses(&all));
    }
    edge.settle();
}

/// Each of them is there once, from a letter of its own, and in order of their timestamps.
fn assert_each_once(records: &[Record], seconds: std::ops::Range<u64>) {
    let of = |record: &&Record, header: &str| record.headers[header].clone();
    let records = of_role(records, "message_status");
    let found: Vec<u64> = records
        .iter()
        .map(|record| record.event()["raw"]["timestamp"].as_str().unwrap().parse().unwrap())
        .collect();
    let mut last = BTreeMap::new();
    for (record, second) in records.iter().zip(&found) {
        let before = last.insert(record.key.clone(), *second);
        assert!(before.is_none_or(|before| before < *second), "{} is out of order", record.key);
    }
    let origins: BTreeSet<_> = records.iter().map(|record| of(record, "replayed-from")).collect();
    assert_eq!(origins.len(), records.len());
    assert!(
        records.len() == found.len() && found.len() == seconds.clone().count(),
        "{}",
        found.len()
    );
    assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), seconds.collect());
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_a_topic_refused_is_there_once_and_in_order_when_it_is_mended() {
    let bootstrap = kafka();
    let topics = topics_in_trouble(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    // One message: its updates lie on all partitions as dead letters.
    for second in 0..60 {
        edge.accept(&statuses(&[status("wamid.one", 1000 + second, "")]));
    }
    edge.settle();
    let dead = topics.read();
    assert_eq!(of_role(&dead, "dead_letter").len(), 60);
    let dry = summary(&edge.replay(&["--dry-run", "--output", "json"]));
    assert_eq!(figures(&dry), [60, 0, 60, 0, 0]);
    let nobody = edge.replay(&[]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("--yes"), "{nobody:?}");

    topics.alter("message_status", "max.message.bytes", "1000000");
    // Such old times are refused: the present one is not.
    topics.alter("message_status", "message.timestamp.before.max.ms", "1000");
    thread::sleep(Duration::from_millis(1100));
    let dry = summary(&edge.replay(&["--dry-run", "--output", "json"]));
    assert_eq!(figures(&dry), [60, 60, 0, 0, 0]);
    assert!(of_role(&topics.read(), "message_status").is_empty(), "a dry run changes nothing");

    let replayed = replay(&edge, &[]);
    assert_eq!(figures(&replayed), [60, 60, 0, 0, 0]);
    assert_eq!(replayed["kinds"][0]["records"][&topics.names["message_status"]], 60);
    let records = topics.read();
    assert_each_once(&records, 1000..1060);
    // Each is what the edge would have written, with where it comes from.
    let letters: BTreeMap<_, _> = of_role(&dead, "dead_letter")
        .into_iter()
        .map(|letter| (letter.key.clone(), letter))
        .collect();
    for record in of_role(&records, "message_status") {
        let letter = letters[&record.headers["receipt"]];
        assert_eq!(record.event()["received_at"], letter.headers["received_at"].as_str());
        assert_eq!(record.event()["channel"]["phone_number_id"], "1184");
        assert_eq!(record.event()["element"], letter.headers["element"].as_str());
        let from = &record.headers["replayed-from"];
        assert!(from.starts_with(&format!("{}/", topics.names["dead_letter"])), "{from}");
    }

    assert_eq!(figures(&replay(&edge, &[])), [0; 5]);
    assert_eq!(topics.read().len(), records.len());
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_a_killed_replay_has_done_is_not_done_again() {
    const CALLBACKS: u64 = 60;
    const STATUSES: u64 = 200;
    let bootstrap = kafka();
    let topics = topics_in_trouble(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    for callback in 0..CALLBACKS {
        let seconds = callback * STATUSES..(callback + 1) * STATUSES;
        let all: Vec<_> = seconds.map(|at| status(&format!("wamid.{}", at % 7), at, "")).collect();
        edge.accept(&statuses(&all));
    }
    edge.settle();
    topics.alter("message_status", "max.message.bytes", "1000000");

    let (mut killed, mut partly) = (0, 0);
    for round in 1.. {
        let mut process = edge.begin_replay(&["--yes"]);
        // The steps are shorter than twelve transactions take, so one ends in their middle.
        thread::sleep(Duration::from_millis(200 + 25 * round));
        if let Some(status) = process.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            break;
        }
        process.kill().unwrap();
        process.wait().unwrap();
        killed += 1;
        let there = of_role(&topics.read(), "message_status").len() as u64;
        partly += u64::from((1..CALLBACKS * STATUSES).contains(&there));
    }
    println!("killed {killed} times, {partly} of them in the middle");
    assert!(partly > 0, "it was never killed in the middle");
    assert_each_once(&topics.read(), 0..CALLBACKS * STATUSES);
    assert_eq!(figures(&replay(&edge, &[])), [0; 5]);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn who_replays_second_fences_the_first_off() {
    const CALLBACKS: u64 = 60;
    const STATUSES: u64 = 200;
    let bootstrap = kafka();
    let topics = topics_in_trouble(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    accept_statuses(&edge, CALLBACKS, STATUSES);
    topics.alter("message_status", "max.message.bytes", "1000000");

    let first = edge.begin_replay(&["--yes"]);
    let pid = rustix::process::Pid::from_child(&first);
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    eventually("the first has begun", || {
        (!of_role(&topics.read(), "message_status").is_empty()).then_some(())
    });
    signal(rustix::process::Signal::STOP);
    let second = replay(&edge, &[]);
    signal(rustix::process::Signal::CONT);
    let first = first.wait_with_output().unwrap();
    println!("first: {first:?}, second: {:?}", figures(&second));
    // It may have been through before it was stopped.
    if figures(&second)[0] > 0 {
        assert_eq!(first.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&first.stderr).contains("fenced this one off"));
    }
    assert_each_once(&topics.read(), 0..CALLBACKS * STATUSES);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn filters_may_follow_each_other_and_garbage_stays_until_it_is_dismissed() {
    let bootstrap = kafka();
    let topics = topics_in_trouble(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let both = |from: u64| {
        for second in from..from + 20 {
            edge.accept(&statuses(&[status("wamid.one", second, "")]));
            edge.accept("no JSON");
        }
    };
    both(0);
    edge.settle();
    thread::sleep(Duration::from_millis(5));
    let between = jiff::Timestamp::now().to_string();
    thread::sleep(Duration::from_millis(5));
    both(20);
    edge.settle();
    topics.alter("message_status", "max.message.bytes", "1000000");

    assert_eq!(figures(&replay(&edge, &["--source", "other"])), [0, 0, 0, 80, 0]);
    let old = replay(&edge, &["--reason", "too_large", "--until", &between]);
    assert_eq!(figures(&old)[..4], [20, 20, 0, 60]);
    assert_eq!(figures(&replay(&edge, &["--until", &between]))[..3], [20, 0, 20]);
    let all = replay(&edge, &[]);
    assert_eq!(figures(&all)[..4], [60, 20, 40, 0]);
    assert_eq!(all["kinds"][0]["still_dead"]["invalid_json"], 40);
    assert_each_once(&topics.read(), 0..40);
    assert_eq!(figures(&replay(&edge, &["--reason", "invalid_json"]))[..3], [40, 0, 40]);

    let dead = of_role(&topics.read(), "dead_letter").len();
    assert_eq!(figures(&replay(&edge, &["--dismiss-dead"]))[..3], [40, 0, 40]);
    assert_eq!(figures(&replay(&edge, &[])), [0; 5]);
    assert_eq!(of_role(&topics.read(), "dead_letter").len(), dead, "they stay in the topic");
}

/// The headers of a letter of a whole callback.
const LETTER: [(&str, &str); 7] = [
    ("reason", "unrecognized"),
    ("stage", "normalize"),
    ("detail", ""),
    ("source", SOURCE),
    ("receipt", "01a2071c-c17a-7718-a073-f555e25a6040"),
    ("received_at", "2026-11-22T20:13:05.482Z"),
    ("method", "POST"),
];

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_callback_that_is_read_today_leaves_what_is_not_as_a_letter_of_its_own() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let good = status("wamid.good", 5, "");
    let body = statuses(&[good.clone(), r#"{"status":"read"}"#.to_owned(), "7".to_owned()]);
    let strange: &[_] = &[("reason", "mine"), STRANGER];
    let letters: [Written<'_>; 3] =
        [(&LETTER, body.as_bytes()), (&LETTER, b"{}"), (strange, b"somebody else's")];
    topics.write("dead_letter", &letters);
    let replayed = replay(&edge, &[]);
    assert_eq!(figures(&replayed), [3, 2, 1, 0, 0]);

    let records = topics.read();
    let [event] = &of_role(&records, "message_status")[..] else { panic!("{records:?}") };
    assert_eq!(event.headers["receipt"], LETTER[4].1);
    assert_eq!(event.event()["received_at"], LETTER[5].1);
    let mut dead: Vec<_> = of_role(&records, "dead_letter")
        .into_iter()
        .filter(|record| record.headers.contains_key("replayed-from"))
        .map(|record| (record.headers["reason"].as_str(), record.value.clone()))
        .collect();
    dead.sort();
    let expected =
        [("missing_id", br#"{"status":"read"}"#.to_vec()), ("not_an_object", b"7".to_vec())];
    assert_eq!(dead, expected);
    // Those two and the stranger stay.
    assert_eq!(figures(&replay(&edge, &[]))[..3], [3, 0, 3]);
    assert_eq!(topics.read().len(), records.len());
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn progress_beyond_the_end_of_one_partition_counts_for_none_and_is_said() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let bodies = [1, 2].map(|at| statuses(&[status(&format!("wamid.{at}"), at, "")]));
    let letters: Vec<Written<'_>> =
        bodies.iter().map(|body| (&LETTER[..], body.as_bytes())).collect();
    topics.write("dead_letter", &letters);
    let replayed = replay(&edge, &[]);
    assert_eq!((figures(&replayed), &replayed["started_over"]), ([2, 2, 0, 0, 0], &false.into()));
    assert_eq!(figures(&replay(&edge, &[])), [0; 5]);

    // As if the topic had been made anew: the letters may lie in another partition than this one.
    let group = format!("weni-edge-replay.{}", topics.names["dead_letter"]);
    topics.reset_group(&group, "dead_letter", 1000);
    let again = replay(&edge, &[]);
    assert_eq!((figures(&again), &again["started_over"]), ([2, 2, 0, 0, 0], &true.into()));
    assert_eq!(figures(&replay(&edge, &[])), [0; 5], "its progress is kept from now on");
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_quarantined_file_is_replayed_once() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    edge.accept(&statuses(&[status("wamid.before", 1, "")]));
    edge.settle();
    for role in ["message_status", "dead_letter"] {
        topics.alter(role, "max.message.bytes", "4000");
    }
    let large = large_status("wamid.large");
    let receipt = edge.accept(&statuses(&[status("wamid.1", 5, ""), large]));
    edge.settle();
    let quarantine = edge.journal().join("quarantine");
    let name = quarantined(&edge, &receipt);
    let value = quarantine.join(format!("{name}.value"));
    assert!(value.exists());
    topics.alter("message_status", "max.message.bytes", "1000000");

    eventually("the position after its callback is in the checkpoint", || {
        let dry = summary(&edge.replay(&["--dry-run", "--output", "json"]));
        (figures(&dry) == [1, 1, 0, 0, 0]).then_some(())
    });
    assert_eq!(figures(&replay(&edge, &[])), [1, 1, 0, 0, 0]);
    let assert_there = || {
        let records = topics.read();
        let large: Vec<_> = records.iter().filter(|record| record.key == "wamid.large").collect();
        let [large] = &large[..] else { panic!("{large:?}") };
        assert_eq!((large.role, &large.headers["replayed-from"]), ("message_status", &name));
        assert_eq!(large.headers["receipt"], receipt);
    };
    assert_there();
    let names: BTreeSet<_> =
        fs::read_dir(&quarantine).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let expected = ["headers.json", "value"].map(|part| format!("{name}.{part}.replayed").into());
    assert_eq!(names, BTreeSet::from(expected));

    // As if it had died before the second file got its new name.
    fs::rename(quarantine.join(format!("{name}.value.replayed")), &value).unwrap();
    assert_eq!(figures(&replay(&edge, &[])), [0; 5]);
    assert_there();
    assert!(!value.exists());
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_is_done_too_scattered_to_be_kept_ends_a_replay_that_says_what_to_do() {
    const PAIRS: u64 = 1100;
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let bodies: Vec<_> =
        (0..PAIRS).map(|second| statuses(&[status("wamid.one", second, "")])).collect();
    let letters: Vec<Written<'_>> = bodies
        .iter()
        .flat_map(|body| [(&LETTER[..], &b"no JSON"[..]), (&LETTER[..], body.as_bytes())])
        .collect();
    topics.write("dead_letter", &letters);

    let stopped = edge.replay(&["--yes"]);
    assert_eq!(stopped.status.code(), Some(2));
    let error = String::from_utf8_lossy(&stopped.stderr);
    assert!(error.contains("--dismiss-dead"), "{error}");
    let done = error.split("stopped after ").nth(1).and_then(|rest| rest.split(' ').next());
    let done: u64 = done.expect("a number").parse().unwrap();
    assert!((500..PAIRS).contains(&done), "{error}");
    assert_each_once(&topics.read(), 0..done);
    let figures_of_all = [2 * PAIRS - done, PAIRS - done, PAIRS, 0, done];
    assert_eq!(figures(&replay(&edge, &["--dismiss-dead"])), figures_of_all);
    assert_each_once(&topics.read(), 0..PAIRS);
    assert_eq!(figures(&replay(&edge, &[])), [0; 5]);
}

/// Puts quarantined files into a journal's directory, as version 0.1.0 named them.
fn quarantine(journal: &Path, ids: std::ops::Range<u32>) {
    let directory = journal.join("quarantine");
    fs::create_dir_all(&directory).unwrap();
    for id in ids {
        let receipt = Uuid::from_u128(id.into()).to_string();
        let fields = [
            ("reason", "rejected"),
            ("stage", "publish"),
            ("source", "loja"),
            ("receipt", &receipt),
            ("received_at", "2026-11-22T20:13:05.482Z"),
            ("method", "POST"),
        ];
        let headers = fields.map(|(name, value)| (name, STANDARD.encode(value)));
        let body = format!(r#"{{"statuses":[{{"id":"wamid.{id}","status":"read"}}]}}"#);
        let file = |part: &str| directory.join(format!("dead-letter-{receipt}-0{part}"));
        fs::write(file(".headers.json"), serde_json::to_vec(&headers).unwrap()).unwrap();
        fs::write(file(".value"), body).unwrap();
    }
}

/// Replays what is in a journal's directory, into topics that all such journals share.
fn replay_by_edges() -> impl Fn(&TempDir) -> anyhow::Result<weni_edge::replay::ReplaySummary> {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let mut config = Config::default();
    config.kafka.bootstrap_servers = bootstrap;
    let name = |role: &str| topics.names[role].clone();
    config.topics = config::Topics {
        message_status: name("message_status"),
        inbound_message: name("inbound_message"),
        channel_event: name("channel_event"),
        dead_letter: name("dead_letter"),
        position: name("position"),
        ..config.topics
    };
    move |journal| {
        let mut config = config.clone();
        config.journal.directory = journal.path().into();
        weni_edge::replay::run(&config, &Default::default(), &mut |_, _| {})
    }
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn an_edge_that_died_before_it_forgot_its_files_makes_room_for_others() {
    let replayed = replay_by_edges();
    let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    quarantine(first.path(), 0..33);
    quarantine(second.path(), 33..34);
    let file = |id: u128, part: &str| {
        first.path().join(format!("quarantine/dead-letter-{}-0{part}", Uuid::from_u128(id)))
    };
    // Its last file cannot be read, so the progress has the names of all others.
    fs::remove_file(file(32, ".value")).unwrap();
    fs::create_dir(file(32, ".value")).unwrap();
    assert!(format!("{:#}", replayed(&first).unwrap_err()).contains("stopped after 32 letters"));
    for (id, part) in (0..32).flat_map(|id| [(id, ".headers.json"), (id, ".value")]) {
        fs::rename(file(id, part), file(id, &format!("{part}.replayed"))).unwrap();
    }
    fs::remove_dir(file(32, ".value")).unwrap();
    let error = format!("{:#}", replayed(&second).unwrap_err());
    assert!(error.contains("a replay on another edge was broken off and has 32 files"), "{error}");
    assert_eq!(replayed(&first).unwrap().total(), 0);
    assert_eq!(replayed(&second).unwrap().replayed(), 1);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn replays_of_two_edges_publish_each_quarantined_file_once_although_one_is_broken_off() {
    let replayed = replay_by_edges();
    let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    quarantine(first.path(), 0..3);
    quarantine(second.path(), 3..40);
    // Its last file cannot be read.
    let last = format!("quarantine/dead-letter-{}-0.value", Uuid::from_u128(2));
    let (last, away) = (first.path().join(last), first.path().join("away"));
    fs::rename(&last, &away).unwrap();
    fs::create_dir(&last).unwrap();
    assert!(format!("{:#}", replayed(&first).unwrap_err()).contains("stopped after 2 letters"));
    // More than the progress has names for.
    let summary = replayed(&second).unwrap();
    assert_eq!((summary.total(), summary.replayed()), (37, 37));
    fs::remove_dir(&last).unwrap();
    fs::rename(&away, &last).unwrap();
    let summary = replayed(&first).unwrap();
    assert_eq!((summary.total(), summary.replayed()), (1, 1));
    for journal in [first, second] {
        assert_eq!(replayed(&journal).unwrap().total(), 0);
        let mut left = fs::read_dir(journal.path().join("quarantine")).unwrap();
        assert!(left.all(|file| file.unwrap().path().extension().unwrap() == "replayed"));
    }
}
