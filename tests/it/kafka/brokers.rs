//! Faults of the brokers, and what they may refuse.

use uuid::Uuid;

use super::*;

/// Longer than every time limit of a transaction and of a request to the brokers.
const LONGER_THAN_ALL: Duration = Duration::from_secs(20);

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn three_brokers_may_be_killed_in_turn_and_all_at_once() {
    let cluster = Cluster::start_nodes(3);
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start(&edge);
    for node in ["1", "2", "3"] {
        await_commit(&edge, committed(&edge));
        cluster.run(&["kill9", node]);
        load.await_accepted(100);
        // Two are enough.
        await_commit(&edge, committed(&edge) + 2);
        cluster.run(&["start", node]);
        cluster.run(&["wait", "3"]);
    }
    cluster.kill();
    load.await_accepted(100);
    cluster.start_again();
    await_commit(&edge, committed(&edge) + 2);
    assert_callers_noticed_nothing(&edge, load, &topics);
}

/// A broker that is down is in the log too, and it is not what publishing waits for.
#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn too_few_replicas_in_sync_are_told_from_brokers_that_cannot_be_reached() {
    let cluster = Cluster::start_nodes(3);
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let mut calls = accept(&edge, 0, 0..20);
    edge.settle();
    // Else the brokers could not complete the transaction, and would say nothing else.
    cluster.logs_at_rest();
    topics.alter("message_status", "min.insync.replicas", "3");
    cluster.run(&["kill9", "3"]);
    calls.extend(accept(&edge, 0, 20..40));
    edge.await_blocked("too_few_replicas");
    cluster.run(&["start", "3"]);
    cluster.run(&["wait", "3"]);
    calls.extend(accept(&edge, 0, 40..60));
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn leaders_and_coordinators_may_move_while_all_brokers_live() {
    let cluster = Cluster::start_nodes(3);
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start(&edge);
    for node in 1..=3 {
        await_commit(&edge, committed(&edge));
        cluster.run(&["lead", &node.to_string()]);
        topics.await_leader(node);
        load.await_accepted(100);
        await_commit(&edge, committed(&edge) + 2);
    }
    assert_callers_noticed_nothing(&edge, load, &topics);
}

/// Brokers that were killed have done this: the transaction is ended, and no partition knows.
#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_transaction_that_kafka_never_ended_is_there_once_and_holds_nobody() {
    let cluster = Cluster::start();
    // It may be the first of all, so that there is no position before it.
    for earlier in [0, 20] {
        let topics = Topics::create(&cluster.bootstrap());
        let mut edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
        let mut calls = accept(&edge, 0, 0..earlier);
        edge.settle();
        let before = cluster.logs_at_rest();
        calls.extend(accept(&edge, 0, earlier..earlier + 1));
        edge.settle();
        cluster.logs_at_rest();
        // What it knows as committed is on disk then.
        edge.stop();
        cluster.kill();
        assert!(cluster.forget_end(&before) >= 3, "the position, a status and a message");
        cluster.start_again();
        edge.start_again();
        calls.extend(accept(&edge, 0, earlier + 1..40));
        edge.settle();
        edge.await_logged("has not told all partitions");
        assert_exactly_once(&topics, &calls);
    }
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn brokers_may_be_paused_for_longer_than_every_time_limit() {
    let cluster = Cluster::start_nodes(3);
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start(&edge);
    for nodes in [&["2"][..], &["1", "2", "3"]] {
        await_commit(&edge, committed(&edge));
        nodes.iter().for_each(|node| cluster.run(&["pause", node]));
        thread::sleep(LONGER_THAN_ALL);
        nodes.iter().for_each(|node| cluster.run(&["cont", node]));
        await_commit(&edge, committed(&edge) + 2);
    }
    assert_callers_noticed_nothing(&edge, load, &topics);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_broker_may_come_back_with_an_empty_disk() {
    let cluster = Cluster::start_nodes(3);
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start(&edge);
    for node in ["2", "3"] {
        await_commit(&edge, committed(&edge));
        cluster.run(&["wipe", node]);
        cluster.run(&["start", node]);
        cluster.run(&["wait", "3"]);
        await_commit(&edge, committed(&edge) + 2);
        // Only who is in sync again may replace another.
        topics.await_in_sync(3);
    }
    let calls = load.finish();
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_was_not_committed_when_a_topic_was_deleted_is_in_the_new_one() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let load = Load::start(&edge);
    await_commit(&edge, 5);
    topics.delete_one("message_status");
    edge.await_blocked("unknown_topic");
    load.await_accepted(100);
    topics.create_one("message_status", &[]);
    await_commit(&edge, committed(&edge) + 2);
    let calls = load.finish();
    edge.settle();

    let records = topics.read();
    let statuses: BTreeSet<_> =
        of_role(&records, "message_status").into_iter().map(call_of).collect();
    assert_eq!(statuses.len(), of_role(&records, "message_status").len(), "none twice");
    // The deleted topic took the first calls of each caller with it, and no later one.
    for caller in 0..Load::CALLERS {
        let first = statuses.iter().find(|call| call.0 == caller).expect("later calls");
        let later = calls.keys().filter(|call| call.0 == caller && *call >= first);
        assert!(later.clone().all(|call| statuses.contains(call)), "{first:?}");
    }
    let messages = of_role(&records, "inbound_message").len();
    assert_eq!(messages, calls.len(), "another topic has lost nothing");
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_is_not_allowed_waits_until_it_is() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let scram = |password: &str| Settings {
        properties: vec![
            ("security.protocol", "SASL_PLAINTEXT".to_owned()),
            ("sasl.mechanism", "SCRAM-SHA-512".to_owned()),
            ("sasl.username", "edge".to_owned()),
            ("sasl.password", password.to_owned()),
        ],
        ..settings(&cluster.sasl_plaintext(), &topics)
    };
    let mut edge = Edge::start(&scram("not the password"));
    let mut calls = accept(&edge, 0, 0..10);
    edge.await_blocked("not_authorized");
    edge.stop();
    edge.configure(&scram("edge-secret"));
    edge.start_again();
    edge.settle();

    edge.stop();
    let identity = copies::group(&edge);
    edge.start_again();
    let mut serial = 10;
    for (kind, name, reason) in [
        ("topic", topics.names["message_status"].as_str(), "not_authorized"),
        ("topic", topics.names["position"].as_str(), "not_authorized"),
        ("transactional_id", &identity, "not_authorized"),
        ("group", &identity, "group_not_authorized"),
    ] {
        cluster.run(&["deny", kind, name]);
        calls.extend(accept(&edge, 0, serial..serial + 10));
        serial += 10;
        edge.await_blocked(reason);
        cluster.run(&["allow", kind, name]);
        edge.settle();
    }
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_throttled_edge_still_drains() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    cluster.run(&["quota", "200000"]);
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    // Ten seconds' worth and more, which does not compress.
    let mut connection = edge.caller();
    for number in 0..200 {
        let noise: Vec<u8> = (0..750).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
        let data = base64::engine::general_purpose::STANDARD.encode(noise);
        let more = format!(r#","biz_opaque_callback_data":"{data}""#);
        let statuses = status(&format!("wamid.{number}"), number, &more);
        let body = envelope(&format!(r#""statuses":[{statuses}]"#));
        connection.call("POST", body.as_bytes()).unwrap().receipt();
    }
    let samples = edge.settle();
    assert_eq!(samples.total("publish_records_total", &[]), 200);
    assert_eq!(topics.read().len(), 200);
}
