//! `weni-edge check` on real Kafka.

use std::fs;

use serde_json::Value;

use super::{
    faults::{Disk, run},
    *,
};
use crate::check::Report;

fn check(edge: &Edge) -> Report {
    Report::of(&edge.config_file(), &[])
}

/// Severity and words about each topic, by its name.
fn about<'a>(report: &'a Report, topic: &str) -> Vec<(&'a str, &'a str)> {
    let found = report.about("kafka_topic").into_iter();
    found.filter(|(_, words)| words.starts_with(topic)).collect()
}

#[test]
#[ignore = "needs Kafka: just test-kafka"]
fn all_is_well_until_a_setting_loses_or_refuses_events() {
    let cluster = Cluster::start_nodes(3);
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    edge.accept(&Load::body(0, 0));
    edge.settle();
    let report = check(&edge);
    // The test's configuration is a file that every user may read.
    let warned = vec!["configuration", "public_url"];
    assert_eq!((report.code, report.judged("warning")), (0, warned), "{report:?}");
    report.assert("kafka_version", "ok", "Apache Kafka 4.4: proved");
    assert_eq!(report.about("kafka_topic").len(), 5);
    report.assert("kafka_transaction", "ok", "wrote to 4 topics, committed a position, aborted");

    for (setting, value, severity, words) in [
        ("min.insync.replicas", "1", "warning", "min.insync.replicas=1"),
        ("min.insync.replicas", "3", "warning", "as soon as one broker is away"),
        ("cleanup.policy", "compact", "problem", "is compacted"),
        ("max.message.bytes", "20000", "warning", "max.message.bytes=20000"),
        ("retention.ms", "60000", "warning", "for 1 minutes"),
    ] {
        topics.alter("message_status", setting, value);
        let name = &topics.names["message_status"];
        eventually("the setting is seen", || {
            let report = check(&edge);
            let found = about(&report, name);
            let is_seen = found.iter().any(|(is, said)| *is == severity && said.contains(words));
            is_seen.then_some(())
        });
    }
    topics.alter("inbound_message", "min.insync.replicas", "3");
    cluster.run(&["kill9", "3"]);
    eventually("a replica is missing", || {
        let report = check(&edge);
        let found = about(&report, &topics.names["inbound_message"]);
        let lacks =
            |said: &str| said.contains("has 2 replicas in sync and needs 3: it takes no event");
        found.iter().any(|(is, said)| *is == "problem" && lacks(said)).then_some(())
    });
    cluster.run(&["start", "3"]);
    cluster.run(&["wait", "3"]);
    edge.settle();
}

#[test]
#[ignore = "needs Kafka: just test-kafka"]
fn a_missing_topic_is_named_with_the_command_that_makes_it() {
    let bootstrap = kafka();
    let topics = Topics::named(&bootstrap);
    for role in ["message_status", "inbound_message", "dead_letter"] {
        topics.create_one(role, &[]);
    }
    let edge = Edge::new(&settings(&bootstrap, &topics));
    let report = check(&edge);
    assert_eq!((report.code, report.judged("problem")), (1, vec!["kafka_topic"]), "{report:?}");
    let name = &topics.names["channel_event"];
    let missing = report.findings.iter().find(|finding| finding["severity"] == "problem").unwrap();
    assert_eq!(missing["found"], format!("{name} does not exist"));
    let remedy = missing["remedy"].as_str().unwrap();
    assert!(remedy.contains(&format!("kafka-topics.sh --create --topic {name}")), "{remedy}");
    assert!(about(&report, &topics.names["position"])[0].1.contains("serve makes it"));
    report.assert("kafka_transaction", "warning", "committing a position was not tried");
    assert!(report.about("kafka_transaction")[0].1.contains("wrote to 3 topics"), "{report:?}");

    let file = edge.config_file();
    let text = fs::read_to_string(&file).unwrap();
    let creating = |replicas: usize| {
        let create = format!(
            "create_topics = {{ partitions = 3, replication_factor = {replicas} }}
[kafka.properties]"
        );
        fs::write(&file, text.replacen("[kafka.properties]", &create, 1)).unwrap();
        check(&edge)
    };
    assert_eq!(creating(1).judged("problem"), [""; 0]);
    assert!(about(&check(&edge), name)[0].1.contains("1 replica: if that one disk is lost"));
    let status = &topics.names["message_status"];
    let misspelled = status.replacen("message", "mesage", 1);
    fs::write(&file, text.replace(status, &misspelled)).unwrap();
    let report = check(&edge);
    let asked = report.findings.iter().find(|finding| {
        let found = finding["found"].as_str().unwrap();
        found == format!("{misspelled} does not exist")
    });
    let question = format!("{status} exists: is {misspelled} misspelled under [topics]?");
    assert!(asked.unwrap()["remedy"].as_str().unwrap().starts_with(&question), "{report:?}");
    let report = creating(3);
    assert!(about(&report, name)[0].1.contains("cannot be created"), "{report:?}");
    assert_eq!(report.code, 1);
}

#[test]
#[ignore = "needs Kafka: just test-kafka"]
fn a_login_or_right_that_is_missing_is_named() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let trusting = over_tls(&cluster, &topics, &cluster.ca_file());
    let mut edge = Edge::start(&trusting);
    edge.accept(&Load::body(0, 0));
    edge.settle();
    edge.stop();
    assert_eq!(check(&edge).judged("problem"), [""; 0]);
    let prefix = "weni-edge.*";
    let status = topics.names["message_status"].as_str();
    for (kind, name, words, remedy) in [
        ("topic", status, "TopicAuthorizationFailed", "Write and Describe on the four topics"),
        (
            "transactional_id",
            prefix,
            "Transactional Id authorization failed",
            "on transactional ids with the prefix kafka.identity_prefix",
        ),
        ("group", prefix, "lacks the right Read on the group", "Read on groups with the prefix"),
    ] {
        cluster.run(&["deny", kind, name]);
        let report = check(&edge);
        let problems = report.findings.iter().filter(|finding| finding["severity"] == "problem");
        let problems: Vec<_> = problems.map(Value::to_string).collect();
        let is_named = |said: &String| said.contains(words) && said.contains(remedy);
        assert!(problems.iter().any(is_named), "{kind}: {problems:?}");
        cluster.run(&["allow", kind, name]);
    }
    let directory = tempfile::TempDir::new().unwrap();
    let (another, _) = certificate_files(directory.path());
    edge.configure(&over_tls(&cluster, &topics, &another));
    check(&edge).assert("kafka", "problem", "certificate verify failed");
    let mut wrong = trusting;
    wrong.properties.retain(|(name, _)| *name != "sasl.password");
    wrong.properties.push(("sasl.password", "not-the-password".into()));
    edge.configure(&wrong);
    let report = check(&edge);
    report.assert("kafka", "problem", "cannot be used");
    assert!(format!("{report:?}").contains("compare sasl.username"), "{report:?}");
    assert!(!format!("{report:?}").contains("not-the-password"), "{report:?}");
}

#[test]
#[ignore = "needs Kafka: just test-kafka"]
fn a_running_edge_is_not_fenced_and_its_consumers_see_nothing_of_it() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let load = Load::start(&edge);
    for _ in 0..3 {
        await_commit(&edge, committed(&edge));
        let report = check(&edge);
        report.assert("kafka_transaction", "ok", "aborted");
        report.assert("journal", "ok", "has it open");
    }
    await_commit(&edge, committed(&edge));
    assert_callers_noticed_nothing(&edge, load, &topics);
    let metrics = edge.metrics();
    assert_eq!(metrics.total("producer_rebuilds_total", &[]), 1, "its client was lost");
    assert_eq!(metrics.total("transactions_total", &["outcome=\"aborted\""]), 0);
}

#[test]
#[ignore = "needs Kafka: just test-kafka"]
fn calls_over_both_protocols_are_found_in_kafka_by_their_receipts() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let directory = tempfile::TempDir::new().unwrap();
    let (certificate, key) = certificate_files(directory.path());
    let tls = Some((certificate.clone(), key));
    let edge = Edge::start(&Settings { tls, ..settings(&bootstrap, &topics) });
    let url = edge.url();
    let arguments = ["--url", &url, "--ca-file", certificate.to_str().unwrap()];
    let report = Report::of(&edge.config_file(), &arguments);
    assert_eq!(report.code, 0, "{report:?}");
    let (_, last) = report.about("call").pop().unwrap();
    assert!(last.starts_with("all 6 accepted calls are in Kafka"), "{report:?}");
    let records = topics.read();
    assert_eq!(records.len(), of_role(&records, "channel_event").len(), "{records:?}");
    assert_eq!(records.len(), 6);
    assert!(records.iter().all(|record| record.event()["field"] == "edge_test"), "{records:?}");
    let at = records.iter().find(|record| last.contains(&record.headers["receipt"])).unwrap();
    assert!(last.ends_with(&format!("[{}]@{}", at.at.0, at.at.1)), "{last}");

    // An edge that publishes elsewhere is not taken for one whose events arrive.
    let other = Edge::new(&settings(&bootstrap, &Topics::create(&bootstrap)));
    let report = Report::of(&other.config_file(), &arguments);
    assert_eq!(report.code, 1);
    let (severity, last) = report.about("call").pop().unwrap();
    assert!(severity == "problem" && last.contains("are not in Kafka after 10 s"), "{report:?}");
}

#[test]
#[ignore = "needs root: just test-kafka"]
fn a_volume_that_is_read_only_or_full_is_a_problem() {
    let disk = Disk::make(64);
    let settings = Settings {
        bootstrap: "127.0.0.1:1".to_owned(),
        journal: disk.journal(),
        ..Settings::default()
    };
    let edge = Edge::new(&settings);
    fs::create_dir(edge.journal()).unwrap();
    let report = check(&edge);
    report.assert("journal", "ok", "is there");
    report.assert("journal_space", "problem", "calls are answered 503");
    let mounted = disk.path();
    run("mount", &["-o", "remount,ro", mounted.to_str().unwrap()]).unwrap();
    check(&edge).assert("journal", "problem", "Read-only file system");
}
