//! Panics and hangs. Only a build with `--features failpoints` can cause them.

use super::*;

/// An edge that fails there, and published something before.
fn failing(topics: &Topics, bootstrap: &str, failpoints: &'static str) -> Edge {
    let mut edge = Edge::start(&settings(bootstrap, topics));
    accept(&edge, 9, 0..1);
    edge.settle();
    edge.stop();
    edge.failpoints = failpoints;
    edge.start_again();
    edge
}

#[test]
#[ignore = "needs Kafka: .ci/run failpoints"]
fn a_callback_that_makes_normalizing_panic_each_time_becomes_a_dead_letter() {
    assert_becomes_a_dead_letter("normalize PUT=panic", "panic");
}

#[test]
#[ignore = "needs Kafka: .ci/run failpoints"]
fn a_callback_that_makes_normalizing_hang_each_time_becomes_a_dead_letter() {
    assert_becomes_a_dead_letter("normalize PUT=sleep(60000)", "wedged");
}

fn assert_becomes_a_dead_letter(failpoint: &'static str, rebuilt: &str) {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = failing(&topics, &bootstrap, failpoint);
    let mut calls = accept(&edge, 0, 0..10);
    let body = Load::body(1, 0);
    let receipt = edge.caller().call("PUT", body.as_bytes()).unwrap().receipt();
    calls.extend(accept(&edge, 0, 10..20));
    let samples = edge.settle();

    assert_eq!(samples.total("producer_rebuilds_total", &[rebuilt]), 2);
    let mut records = topics.read();
    let at = records.iter().position(|record| record.role == "dead_letter").unwrap();
    let dead = records.remove(at);
    assert_eq!((&dead.headers["reason"][..], dead.key), ("panic", receipt));
    assert_eq!(dead.value, body.as_bytes());
    records.retain(|record| call_of(record).0 != 9);
    assert_exactly_once_among(&records, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run failpoints"]
fn a_wedged_publisher_is_replaced_and_does_no_harm_when_it_wakes() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = failing(&topics, &bootstrap, "transaction=2*off->1*sleep(20000)");
    let load = Load::start(&edge);
    eventually("it is replaced", || {
        (edge.metrics().total("producer_rebuilds_total", &["wedged"]) == 1).then_some(())
    });
    load.await_accepted(100);
    await_commit(&edge, committed(&edge) + 2);
    // Until the one that was left behind has woken.
    thread::sleep(Duration::from_secs(16));
    await_commit(&edge, committed(&edge) + 2);
    let calls = load.finish();
    edge.settle();
    let mut records = topics.read();
    records.retain(|record| call_of(record).0 != 9);
    assert_exactly_once_among(&records, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run failpoints"]
fn publishers_that_are_lost_again_and_again_page_somebody_and_accepting_goes_on() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = failing(&topics, &bootstrap, "transaction=4*panic");
    let calls = accept(&edge, 0, 0..10);
    edge.await_blocked("publisher_wedged");
    assert_eq!(edge.probe("/readyz").0, 200);
    let samples = edge.settle();
    assert_eq!(samples.total("publish_blocked", &[]), 0);
    let mut records = topics.read();
    records.retain(|record| call_of(record).0 != 9);
    assert_exactly_once_among(&records, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run failpoints"]
fn a_panic_while_a_call_is_handled_costs_only_its_connection() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = failing(&topics, &bootstrap, "accept PUT=panic");
    let mut other = edge.caller();
    for serial in 0..5 {
        assert!(edge.caller().call("PUT", Load::body(1, serial).as_bytes()).is_err());
        other.call("POST", Load::body(0, serial).as_bytes()).unwrap().receipt();
    }
    let samples = edge.settle();
    assert_eq!(samples.total("http_in_flight", &[]), 0);
    assert_eq!(of_role(&topics.read(), "message_status").len(), 6);
}
