//! `weni-edge tail` on real Kafka.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Output},
};

use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::*;
use crate::harness::await_exit;

fn begin(edge: &Edge, arguments: &[&str]) -> Child {
    edge.begin_tail(arguments)
}

fn tail(edge: &Edge, arguments: &[&str]) -> Output {
    let arguments = [&["--no-follow"], arguments].concat();
    begin(edge, &arguments).wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What it shows as JSON.
fn shown(edge: &Edge, arguments: &[&str]) -> Vec<Value> {
    let output = tail(edge, &[&["--output", "json"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn statuses_of(shown: &[Value]) -> Vec<&str> {
    shown.iter().map(|line| line["event"]["status"].as_str().unwrap()).collect()
}

fn update(id: &str, status: &str, timestamp: u64, more: &str) -> String {
    format!(
        r#"{{"id":"{id}","status":"{status}","timestamp":"{timestamp}","recipient_id":"5582999990000"{more}}}"#
    )
}

fn accept(edge: &Edge, updates: &[String]) {
    for update in updates {
        edge.accept(&envelope(&format!(r#""statuses":[{update}]"#)));
    }
    edge.settle();
}

const FAILED: &str = r#","errors":[{"code":131026,"title":"Message undeliverable"}]"#;

/// An edge that has published some of everything.
fn published(topics: &Topics, bootstrap: &str) -> Edge {
    let edge = Edge::start(&settings(bootstrap, topics));
    accept(
        &edge,
        &[
            update("wamid.one", "delivered", 1_763_842_385, ""),
            update("wamid.one", "sent", 1_763_842_380, ""),
            update("wamid.two", "failed", 1_763_842_390, FAILED),
        ],
    );
    edge.accept(&envelope(
        r#""messages":[{"from":"5582999990000","id":"wamid.in","timestamp":"1763842399","type":"text","text":{"body":"Chegou!"}}]"#,
    ));
    edge.accept("5582999990000 says \u{1b}[2J, which is no JSON");
    edge.settle();
    edge
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_it_shows_is_what_is_in_kafka() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = published(&topics, &bootstrap);
    let mut records: BTreeMap<_, _> = topics
        .read()
        .into_iter()
        .map(|record| ((topics.names[record.role].clone(), record.at), record))
        .collect();
    let lines = shown(&edge, &["--topic", "all", "--show-personal"]);
    assert!(lines.is_sorted_by_key(|line| line["timestamp"].as_i64()), "{lines:?}");
    for line in lines {
        let at = (line["partition"].as_i64().unwrap() as i32, line["offset"].as_i64().unwrap());
        let record = records.remove(&(line["topic"].as_str().unwrap().to_owned(), at)).unwrap();
        assert_eq!(line["key"], record.key.as_str());
        assert_eq!(line["timestamp"], record.timestamp_ms);
        assert_eq!(line["headers"], json!(record.headers));
        assert_eq!(line["contract"], format!("{}.v1", record.role.replace('_', "-")));
        match record.role {
            "dead_letter" => {
                let value = base64::engine::general_purpose::STANDARD.encode(&record.value);
                assert_eq!(line["value_base64"], value);
            }
            _ => assert_eq!(line["event"], record.event()),
        }
    }
    assert!(records.is_empty(), "not shown: {records:?}");

    for output in ["json", "human"] {
        let output = tail(&edge, &["--topic", "all", "--output", output]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 5, "{text}");
        for hidden in ["5582999990000", "Chegou", "\u{1b}"] {
            assert!(!text.contains(hidden), "{hidden}: {text}");
        }
    }
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn filters_select_and_time_is_that_of_kafka() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = published(&topics, &bootstrap);
    topics.read();
    for (arguments, count) in [
        (&[][..], 3),
        (&["--message", "wamid.one"], 2),
        (&["--recipient", "+55 82 99999-0000"], 3),
        (&["--recipient", "5582999990001"], 0),
        (&["--status", "failed", "--status", "sent"], 2),
        (&["--code", "131026"], 1),
        (&["--fault", "recipient", "--source", "loja"], 1),
        (&["--source", "outra"], 0),
        (&["--topic", "inbound"], 1),
        (&["--topic", "dead-letter", "--topic", "inbound"], 2),
        (&["--since", "1h"], 3),
        (&["--since", "2100-01-01T00:00:00Z"], 0),
    ] {
        assert_eq!(shown(&edge, arguments).len(), count, "{arguments:?}");
    }
    let empty = tail(&edge, &["--topic", "channel"]);
    assert_eq!(said(&empty), format!("note: topic {} is empty\n", topics.names["channel_event"]));
    thread::sleep(Duration::from_millis(1100));
    let later = jiff::Timestamp::now().to_string();
    thread::sleep(Duration::from_millis(100));
    accept(&edge, &[update("wamid.three", "read", 1_763_842_385, "")]);
    topics.read();
    assert_eq!(statuses_of(&shown(&edge, &["--since", &later])), ["read"]);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn the_state_of_a_message_is_right_in_any_order_and_shown_as_it_changes() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let mut following = begin(&edge, &["--since", "1h", "--state", "--output", "json"]);
    let second = |second: u64| 1_763_842_300 + second;
    accept(
        &edge,
        &[
            update("wamid.one", "delivered", second(2), ""),
            update("wamid.one", "sent", second(1), ""),
            update("wamid.one", "delivered", second(2), ""),
            update("wamid.one", "snoozed", second(9), ""),
            update("wamid.one", "read", second(3), ""),
            update("wamid.one", "delivered", second(5), ""),
            update("wamid.two", "failed", second(7), FAILED),
            update("wamid.two", "sent", second(8), ""),
        ],
    );
    topics.read();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut seen: Vec<String> = (0..3)
        .map(|_| {
            let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            line["event"]["status"].as_str().unwrap().to_owned()
        })
        .collect();
    seen.sort();
    assert_eq!(seen, ["delivered", "failed", "read"]);
    kill_process(Pid::from_child(&following), Signal::INT).unwrap();
    assert!(await_exit(&mut following).success());
    assert!(lines.next().is_none(), "a line without a change");

    let states = shown(&edge, &["--state"]);
    let mut states = statuses_of(&states);
    states.sort_unstable();
    assert_eq!(states, ["failed", "read"]);
    assert_eq!(statuses_of(&shown(&edge, &["--state", "--status", "sent"])), [""; 0]);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn an_open_transaction_is_named_with_its_partition() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &bootstrap)
        .set("transactional.id", &topics.names["position"])
        .create()
        .unwrap();
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    producer.begin_transaction().unwrap();
    let name = &topics.names["message_status"];
    producer.send(BaseRecord::to(name).key("k").payload("{}").partition(2)).unwrap();
    producer.flush(Duration::from_secs(20)).unwrap();

    let held = format!("holds all readers of topic {name} at 2@0 (partition@offset)");
    let output = tail(&edge, &[]);
    assert!(said(&output).contains(&held), "{output:?}");
    let mut following = begin(&edge, &[]);
    let mut notes = BufReader::new(following.stderr.take().unwrap()).lines();
    assert!(notes.any(|line| line.unwrap().contains(&held)));
    producer.abort_transaction(Duration::from_secs(20)).unwrap();
    kill_process(Pid::from_child(&following), Signal::TERM).unwrap();
    assert!(await_exit(&mut following).success());
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_missing_topic_is_named_and_what_is_not_as_it_should_be_is_shown() {
    let bootstrap = kafka();
    let topics = Topics::named(&bootstrap);
    let edge = Edge::new(&settings(&bootstrap, &topics));
    let output = tail(&edge, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        said(&output).contains(&format!("topic {} does not exist", topics.names["message_status"]))
    );
    topics.create_one("message_status", &[]);
    topics.write(
        "message_status",
        &[(&[("ce_id", "0")], b"no JSON"), (&[("ce_id", "0")], br#"{"schema_version":2}"#)],
    );
    let output = tail(&edge, &["--topic", "all"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        said(&output).contains(&format!("topic {} does not exist", topics.names["dead_letter"]))
    );
    assert!(said(&output).contains("has events of schema_version 2"), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() == 2 && text.contains("it is no JSON object"), "{text}");
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn it_goes_on_when_the_broker_is_back_and_needs_only_rights_to_topics() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let mut following = begin(&edge, &["--since", "1h", "--output", "json"]);
    let mut notes = BufReader::new(following.stderr.take().unwrap()).lines();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    accept(&edge, &[update("wamid.one", "sent", 1_763_842_385, "")]);
    assert!(lines.next().unwrap().unwrap().contains("sent"));
    cluster.kill();
    assert!(notes.any(|line| line.unwrap().contains("tail goes on when the broker is back")));
    cluster.start_again();
    accept(&edge, &[update("wamid.one", "read", 1_763_842_386, "")]);
    assert!(lines.next().unwrap().unwrap().contains("read"));
    kill_process(Pid::from_child(&following), Signal::TERM).unwrap();
    assert!(await_exit(&mut following).success());

    let ca_file = cluster.ca_file().display().to_string();
    let login = |password: &str| Settings {
        properties: vec![
            ("security.protocol", "SASL_SSL".into()),
            ("ssl.ca.location", ca_file.clone()),
            ("sasl.mechanism", "SCRAM-SHA-512".into()),
            ("sasl.username", "edge".into()),
            ("sasl.password", password.to_owned()),
        ],
        ..settings(&cluster.sasl_ssl(), &topics)
    };
    let over_tls = Edge::new(&login("edge-secret"));
    topics.read();
    assert_eq!(shown(&over_tls, &[]).len(), 2);
    cluster.run(&["deny", "group", "weni-edge-tail"]);
    let without_group = tail(&over_tls, &["--status", "read"]);
    assert!(without_group.status.success() && without_group.stderr.is_empty());
    assert!(!without_group.stdout.is_empty(), "no group is needed");
    cluster.run(&["deny", "topic", &topics.names["message_status"]]);
    let refused = tail(&over_tls, &[]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(said(&refused).contains("TopicAuthorizationFailed"), "{refused:?}");
    let refused = tail(&Edge::new(&login("another secret")), &[]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(said(&refused).contains("Kafka refuses: "), "{refused:?}");
}
