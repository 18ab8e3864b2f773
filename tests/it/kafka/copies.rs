//! Journals that are copied, restored or moved, and positions that Kafka has lost.

use super::*;

/// The group by which Kafka knows this edge, which is down.
pub(super) fn group(edge: &Edge) -> String {
    let shown = edge.journal_command("show", &[]);
    let id = shown.lines().find_map(|line| line.strip_prefix("journal ")).unwrap().trim();
    format!("weni-edge.{id}")
}

/// Forks from the checkpoint, and restarts. Returns what the command says.
fn fork(edge: &mut Edge) -> String {
    let says = edge.journal_command("fork", &["--from", "checkpoint", "--yes"]);
    assert!(says.contains("restart the edge"), "{says}");
    edge.stop();
    edge.start_again();
    says
}

/// It accepts and is ready, and says why it does not publish.
fn assert_waits(edge: &Edge, reason: &str) {
    edge.await_blocked(reason);
    assert_eq!(edge.probe("/readyz").0, 200);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_copied_journal_accepts_but_publishes_only_as_a_fork() {
    let bootstrap = kafka();
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
    assert_waits(&copy, "journal_diverged");
    calls.extend(accept(&copy, 1, 20..40));
    assert_eq!(copy.metrics().total("journal_pending_callbacks", &[]), 40);
    // Whoever published rightfully was not disturbed.
    calls.extend(accept(&edge, 0, 40..60));
    edge.settle();
    let lost = edge.metrics().total("transactions_total", &["outcome=\"lost\""]);
    assert_eq!(lost, 0, "nobody fenced it");

    fork(&mut copy);
    copy.settle();
    assert_eq!(copy.metrics().total("publish_blocked", &[]), 0);
    calls.extend(accept(&edge, 0, 60..80));
    calls.extend(accept(&copy, 1, 40..60));
    edge.settle();
    copy.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn an_older_state_of_a_journal_publishes_only_as_a_fork_and_repeats_what_it_had_left() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::start(&settings("127.0.0.1:9", &topics));
    let mut calls = accept(&edge, 0, 0..10);
    edge.stop();
    let [mut newer, mut older] = [(); 2].map(|()| edge.copy(&settings(&bootstrap, &topics)));
    newer.start_again();
    calls.extend(accept(&newer, 0, 10..20));
    newer.settle();
    newer.stop();

    older.start_again();
    calls.extend(accept(&older, 1, 0..10));
    assert_waits(&older, "journal_diverged");
    assert_exactly_once(&topics, &calls_of(&calls, 0));
    let says = fork(&mut older);
    assert!(says.contains("20 callbacks will be published"), "{says}");
    older.settle();
    assert_eq!(assert_at_least_once(&topics.read(), &calls), 10);
}

/// Those of one caller.
fn calls_of(calls: &Calls, caller: usize) -> Calls {
    let its = calls.iter().filter(|((of, _), _)| *of == caller);
    its.map(|(call, receipt)| (*call, receipt.clone())).collect()
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn when_kafka_has_lost_the_position_publishing_goes_on_from_the_checkpoint() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::start(&settings(&bootstrap, &topics));
    let mut calls = accept(&edge, 0, 0..50);
    edge.settle();
    edge.stop();
    topics.delete_group(&group(&edge));

    edge.start_again();
    calls.extend(accept(&edge, 0, 50..100));
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn when_the_topic_of_positions_is_deleted_publishing_goes_on_from_what_the_edge_knows() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let mut calls = accept(&edge, 0, 0..50);
    edge.settle();
    topics.delete_one("position");
    calls.extend(accept(&edge, 0, 50..100));
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_position_lost_together_with_the_process_repeats_a_second_at_most_and_loses_nothing() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::start(&settings(&bootstrap, &topics));
    let load = Load::start(&edge);
    await_commit(&edge, 20);
    edge.kill();
    topics.delete_group(&group(&edge));
    edge.start_again();
    load.go_on_at(&edge);
    load.await_accepted(50);
    let calls = load.finish();
    edge.settle();
    let repeated = assert_at_least_once(&topics.read(), &calls);
    println!("{repeated} of {} callbacks were repeated", calls.len());
}

/// Every answered call is there, and what is there twice has the same id. Returns how many are.
fn assert_at_least_once(records: &[Record], calls: &Calls) -> usize {
    let mut ids: BTreeMap<(CallId, &str), Vec<&str>> = BTreeMap::new();
    for record in records {
        ids.entry((call_of(record), record.role)).or_default().push(&record.headers["ce_id"]);
    }
    for (call, _) in calls.iter().filter(|(_, receipt)| receipt.is_some()) {
        for role in ["message_status", "inbound_message"] {
            assert!(ids.contains_key(&(*call, role)), "{call:?} is not there as {role}");
        }
    }
    let repeated = ids.values().filter(|ids| ids.len() > 1);
    repeated.inspect(|ids| assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}")).count() / 2
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_group_that_somebody_reset_is_not_believed() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::start(&settings(&bootstrap, &topics));
    let mut calls = accept(&edge, 0, 0..20);
    edge.settle();
    edge.stop();
    topics.reset_group(&group(&edge), "position", 0);

    edge.start_again();
    calls.extend(accept(&edge, 0, 20..40));
    assert_waits(&edge, "position_reset");
    fork(&mut edge);
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_journal_taken_to_another_cluster_publishes_there_only_as_a_fork() {
    let bootstrap = kafka();
    let elsewhere = Cluster::start();
    let topics = Topics::create(&bootstrap);
    let topics_elsewhere = topics.at(&elsewhere.bootstrap());
    topics_elsewhere.create_all();
    let mut edge = Edge::start(&settings(&bootstrap, &topics));
    let mut calls = accept(&edge, 0, 0..20);
    edge.settle();
    edge.stop();

    edge.configure(&settings(&elsewhere.bootstrap(), &topics));
    edge.start_again();
    calls.extend(accept(&edge, 0, 20..40));
    assert_waits(&edge, "cluster_changed");
    edge.stop();
    edge.configure(&settings(&bootstrap, &topics));
    edge.start_again();
    edge.settle();
    assert_exactly_once(&topics, &calls);
    edge.stop();

    edge.configure(&settings(&elsewhere.bootstrap(), &topics));
    edge.start_again();
    assert_waits(&edge, "cluster_changed");
    let later = accept(&edge, 0, 40..60);
    fork(&mut edge);
    edge.settle();
    assert_exactly_once(&topics_elsewhere, &later);
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn another_cluster_at_the_same_address_is_noticed_while_the_edge_runs() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let mut edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    accept(&edge, 0, 0..20);
    edge.settle();
    cluster.kill();
    let calls = accept(&edge, 0, 20..40);
    cluster.format_again();
    cluster.start_again();
    topics.create_all();
    assert_waits(&edge, "cluster_changed");
    fork(&mut edge);
    edge.settle();
    assert_exactly_once(&topics, &calls);
}
