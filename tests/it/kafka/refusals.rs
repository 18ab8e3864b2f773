//! Records that are refused, and topics that are not there.

use rustix::process::Signal;

use super::*;

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_record_refused_even_as_a_dead_letter_is_kept_in_a_file() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    edge.accept(&envelope(&format!(r#""statuses":[{}]"#, status("wamid.before", 1, ""))));
    edge.settle();
    // The edge has compared sizes with the old limits by now.
    for role in ["message_status", "dead_letter"] {
        topics.alter(role, "max.message.bytes", "4000");
    }
    let large = large_status("wamid.large");
    let statuses = [status("wamid.1", 5, ""), large.clone(), status("wamid.2", 5, "")];
    let receipt = edge.accept(&envelope(&format!(r#""statuses":[{}]"#, statuses.join(","))));
    edge.accept(&envelope(&format!(r#""statuses":[{}]"#, status("wamid.after", 1, ""))));
    let samples = edge.settle();

    assert_eq!(samples.total("items_total", &["outcome=\"quarantined\""]), 1);
    assert_eq!(samples.total("quarantined_total", &["publish"]), 1);
    let mut keys: Vec<_> = topics.read().into_iter().map(|record| record.key).collect();
    keys.sort();
    assert_eq!(keys, ["wamid.1", "wamid.2", "wamid.after", "wamid.before"]);
    let quarantine = edge.journal().join("quarantine");
    let name = quarantined(&edge, &receipt);
    let value = std::fs::read_to_string(quarantine.join(format!("{name}.value")));
    assert_eq!(value.unwrap(), large);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_missing_topic_may_be_routed_to_the_dead_letters_while_the_edge_runs() {
    let bootstrap = kafka();
    let mut topics = Topics::named(&bootstrap);
    for role in ["inbound_message", "channel_event", "dead_letter"] {
        topics.create_one(role, &[]);
    }
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let calls = accept(&edge, 0, 0..3);
    edge.await_blocked("unknown_topic");

    let missing = topics.names["message_status"].clone();
    let gauge = format!("kafka_stable_lag_seconds{{topic=\"{missing}\"}}");
    let is_shown = || edge.probe("/metrics").1.contains(&gauge);
    eventually("how long its readers are held is shown", || is_shown().then_some(()));
    let mut routed = settings(&bootstrap, &topics);
    routed.topics.insert("message_status", topics.names["dead_letter"].clone());
    edge.configure(&routed);
    edge.signal(Signal::HUP);
    let samples = edge.settle();

    assert_eq!(samples.total("publish_blocked", &[]), 0);
    eventually("that of a topic which was routed away is not", || (!is_shown()).then_some(()));
    topics.names.insert("message_status", missing);
    topics.create_one("message_status", &[]);
    let records = topics.read();
    assert_eq!(of_role(&records, "inbound_message").len(), calls.len());
    let dead = of_role(&records, "dead_letter");
    assert_eq!(dead.len(), calls.len());
    for record in dead {
        assert_eq!(record.headers["reason"], "unroutable");
        assert!(calls.values().flatten().any(|receipt| *receipt == record.key));
    }
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_topic_that_refuses_everything_holds_publishing_and_fills_no_dead_letters() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let mut calls = accept(&edge, 0, 0..1);
    edge.settle();
    topics.alter("message_status", "max.message.bytes", "100");
    calls.extend(accept(&edge, 0, 1..30));
    edge.await_blocked("topic_refuses");
    topics.alter("message_status", "max.message.bytes", "1048588");
    edge.settle();

    let records = topics.read();
    let dead = of_role(&records, "dead_letter");
    assert!(dead.len() <= 10, "{} dead letters", dead.len());
    assert!(dead.iter().all(|record| record.headers["reason"] == "refused"));
    // Each status is there once, as what it is or as a dead letter; no message is missing.
    assert_eq!(of_role(&records, "message_status").len() + dead.len(), calls.len());
    assert_eq!(of_role(&records, "inbound_message").len(), calls.len());
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn an_edge_that_finds_a_topic_too_small_for_any_event_waits() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    topics.alter("message_status", "max.message.bytes", "100");
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let calls = accept(&edge, 0, 0..5);
    edge.await_blocked("topic_refuses");
    topics.alter("message_status", "max.message.bytes", "1048588");
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_record_older_than_the_retention_carries_the_present_time() {
    let bootstrap = kafka();
    let topics = Topics::named(&bootstrap);
    for role in ["inbound_message", "channel_event", "dead_letter"] {
        topics.create_one(role, &[]);
    }
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let accepted_ms = now_ms();
    edge.accept(&envelope(&format!(r#""statuses":[{}]"#, status("wamid.old", 1, ""))));
    edge.await_blocked("unknown_topic");
    std::thread::sleep(Duration::from_secs(3));
    topics.create_one("message_status", &[("retention.ms", "4000")]);
    edge.settle();
    let records = topics.read();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert!(record.timestamp_ms >= accepted_ms + 3000, "it would be deleted unread");
    let received_at = record.event()["received_at"].as_str().unwrap().parse::<jiff::Timestamp>();
    assert!(received_at.unwrap().as_millisecond() < accepted_ms + 3000, "this time stays");
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn times_that_kafka_refuses_are_replaced_by_the_present_one() {
    let bootstrap = kafka();
    let topics = Topics::named(&bootstrap);
    for role in ["inbound_message", "channel_event", "dead_letter"] {
        topics.create_one(role, &[]);
    }
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let calls = accept(&edge, 0, 0..6);
    edge.await_blocked("unknown_topic");
    thread::sleep(Duration::from_millis(1500));
    topics.create_one("message_status", &[("message.timestamp.before.max.ms", "1000")]);
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
