//! What happens to a publisher beside crashes: copies, lost positions, refusals, other routes,
//! stops and freezes.

use std::time::Instant;

use rustix::process::Signal;

use super::*;

/// Accepts these calls of one caller, and remembers them.
fn accept(edge: &Edge, caller: usize, serials: std::ops::Range<u64>) -> Calls {
    let mut connection = edge.caller();
    let call = |serial| {
        let answer = connection.call("POST", Load::body(caller, serial).as_bytes()).unwrap();
        ((caller, serial), Some(answer.receipt()))
    };
    serials.map(call).collect()
}

type Calls = BTreeMap<CallId, Option<String>>;

#[test]
fn a_copied_journal_accepts_but_publishes_only_as_a_fork() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::create(&bootstrap);
    let settings = settings(&bootstrap, &topics);
    let mut edge = Edge::start(&settings);
    let mut calls = accept(&edge, 0, 0..20);
    edge.settle();
    edge.stop();
    let mut copy = edge.copy(&settings);
    edge.start_again();
    calls.extend(accept(&edge, 0, 20..40));
    edge.settle();

    copy.start_again();
    calls.extend(accept(&copy, 1, 0..20));
    copy.await_blocked("journal_diverged");
    assert_eq!(copy.probe("/readyz").0, 200);
    calls.extend(accept(&copy, 1, 20..40));
    assert_eq!(copy.metrics().total("journal_pending_callbacks", &[]), 40);
    // Whoever published rightfully was not disturbed.
    calls.extend(accept(&edge, 0, 40..60));
    edge.settle();
    let lost = edge.metrics().total("transactions_total", &["outcome=\"lost\""]);
    assert_eq!(lost, 0, "nobody fenced it");

    copy.journal_command("fork", &["--from", "checkpoint", "--yes"]);
    copy.settle();
    assert_eq!(copy.metrics().total("publish_blocked", &[]), 0);
    calls.extend(accept(&edge, 0, 60..80));
    calls.extend(accept(&copy, 1, 40..60));
    edge.settle();
    copy.settle();
    assert_exactly_once(&topics.read(), &calls);
}

#[test]
fn when_kafka_has_lost_the_position_publishing_goes_on_from_the_checkpoint() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::start(&settings(&bootstrap, &topics));
    let mut calls = accept(&edge, 0, 0..50);
    edge.settle();
    edge.stop();
    let shown = edge.journal_command("show", &[]);
    let id = shown.lines().find_map(|line| line.strip_prefix("journal ")).unwrap().trim();
    topics.delete_group(&format!("weni-edge.{id}"));

    edge.start_again();
    calls.extend(accept(&edge, 0, 50..100));
    edge.settle();
    assert_exactly_once(&topics.read(), &calls);
}

#[test]
fn a_record_refused_even_as_a_dead_letter_is_kept_in_a_file() {
    let Some(bootstrap) = kafka() else { return };
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
    let file = edge.journal().join(format!("quarantine/dead-letter-{receipt}-1.value"));
    assert_eq!(std::fs::read_to_string(file).unwrap(), large);
}

#[test]
fn a_missing_topic_may_be_routed_to_the_dead_letters_while_the_edge_runs() {
    let Some(bootstrap) = kafka() else { return };
    let mut topics = Topics::named(&bootstrap);
    for role in ["inbound_message", "channel_event", "dead_letter"] {
        topics.create_one(role, &[]);
    }
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let calls = accept(&edge, 0, 0..3);
    edge.await_blocked("unknown_topic");

    let missing = topics.names["message_status"].clone();
    let mut routed = settings(&bootstrap, &topics);
    routed.topics.insert("message_status", topics.names["dead_letter"].clone());
    edge.configure(&routed);
    edge.signal(Signal::HUP);
    let samples = edge.settle();

    assert_eq!(samples.total("publish_blocked", &[]), 0);
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
fn stopping_under_load_loses_nothing_and_leaves_no_transaction_open() {
    let Some(bootstrap) = kafka() else { return };
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
    assert_exactly_once(&topics.read(), &calls);
}

#[test]
fn an_edge_frozen_in_a_transaction_until_kafka_has_given_it_up_goes_on() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let load = Load::begin(&edge, true);
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
    assert_exactly_once(&topics.read(), &calls);
}

#[test]
fn what_was_answered_as_in_kafka_needs_no_journal_any_more() {
    let Some(_) = kafka() else { return };
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let wait = Duration::from_secs(5);
    let settings = Settings { wait_for_kafka: wait, ..settings(&cluster.bootstrap(), &topics) };
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
    for serial in 1..=20 {
        let answer = call(&mut connection, serial);
        if answer.is_in_kafka() == Some(true) {
            calls.insert((0, serial), Some(answer.receipt()));
        }
    }
    assert!(calls.len() > 10, "only {} answers came out of Kafka", calls.len());
    edge.kill();
    std::fs::remove_dir_all(edge.journal()).unwrap();
    let mut records = topics.read();
    records.retain(|record| calls.contains_key(&call_of(record)));
    assert_exactly_once(&records, &calls);

    edge.start_again();
    let mut connection = edge.caller();
    cluster.kill();
    assert_eq!(call(&mut connection, 21).is_in_kafka(), Some(false));
    let since = Instant::now();
    for serial in 22..=60 {
        assert_eq!(call(&mut connection, serial).is_in_kafka(), Some(false));
    }
    assert!(since.elapsed() < wait, "only the first waits while Kafka is away");
    let samples = edge.metrics();
    assert_eq!(samples.total("callbacks_answered_total", &["in_kafka=\"false\""]), 40);
    cluster.start_again();
    edge.settle();
    assert_eq!(call(&mut connection, 61).is_in_kafka(), Some(true));
}
