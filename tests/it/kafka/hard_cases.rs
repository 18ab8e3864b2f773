//! Stops and freezes, and answers that wait for Kafka.

use std::time::Instant;

use rustix::process::Signal;

use super::*;

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn stopping_under_load_loses_nothing_and_leaves_no_transaction_open() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::start(&settings(&bootstrap, &topics));
    let load = Load::start(&edge);
    for round in 0..5 {
        await_commit(&edge, round);
        load.await_accepted(100);
        edge.terminate();
        assert!(!topics.holds_readers(), "a transaction was left open");
        edge.start_again();
        load.go_on_at(&edge);
    }
    load.await_accepted(50);
    let calls = load.finish();
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn an_edge_frozen_in_a_transaction_until_kafka_has_given_it_up_goes_on() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let load = Load::start_refusable(&edge);
    await_commit(&edge, 0);
    eventually("it is frozen in mid-transaction", || {
        edge.signal(Signal::STOP);
        let inside = topics.holds_readers();
        if !inside {
            edge.signal(Signal::CONT);
        }
        inside.then_some(())
    });
    eventually("Kafka has aborted the transaction", || (!topics.holds_readers()).then_some(()));
    edge.signal(Signal::CONT);

    load.await_accepted(200);
    await_commit(&edge, committed(&edge) + 2);
    let calls = load.finish();
    let samples = edge.settle();
    let lost = samples.total("transactions_total", &["outcome=\"lost\""]);
    let aborted = samples.total("transactions_total", &["outcome=\"aborted\""]);
    assert!(lost + aborted > 0, "the transaction that it was frozen in was not committed");
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn what_was_answered_as_in_kafka_needs_no_journal_any_more() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let wait = Duration::from_secs(5);
    // Answers that wait do not wait for it as well.
    let commit_interval = Some(wait);
    let settings = settings(&cluster.bootstrap(), &topics);
    let settings = Settings { wait_for_kafka: wait, commit_interval, ..settings };
    let mut edge = Edge::start(&settings);
    let call = |connection: &mut Caller, serial| {
        connection.call("POST", Load::body(0, serial).as_bytes()).unwrap()
    };
    let mut connection = edge.caller();
    // Opening may take longer than the wait.
    eventually("answers come out of Kafka", || {
        let answer = call(&mut connection, 0);
        (answer.is_in_kafka() == Some(true)).then_some(())
    });
    let mut calls = Calls::new();
    let since = Instant::now();
    for serial in 1..=20 {
        let answer = call(&mut connection, serial);
        if answer.is_in_kafka() == Some(true) {
            calls.insert((0, serial), Some(answer.receipt()));
        }
    }
    assert!(since.elapsed() < 10 * wait, "20 calls waited for 20 intervals");
    assert!(calls.len() > 10, "only {} answers came out of Kafka", calls.len());
    edge.kill();
    std::fs::remove_dir_all(edge.journal()).unwrap();
    let mut records = topics.read();
    records.retain(|record| calls.contains_key(&call_of(record)));
    assert_exactly_once_among(&records, &calls);

    edge.start_again();
    let mut connection = edge.caller();
    cluster.kill();
    assert_eq!(call(&mut connection, 21).is_in_kafka(), Some(false));
    for serial in 22..=60 {
        let since = Instant::now();
        assert_eq!(call(&mut connection, serial).is_in_kafka(), Some(false));
        assert!(since.elapsed() < wait, "only the first waits while Kafka is away");
    }
    let samples = edge.metrics();
    assert_eq!(samples.total("callbacks_answered_total", &["in_kafka=\"false\""]), 40);
    cluster.start_again();
    edge.settle();
    assert_eq!(call(&mut connection, 61).is_in_kafka(), Some(true));
}
