//! Faults of the disk under load: nothing that was answered 200 is lost, doubled or out of order.

use super::{
    faults::{Disk, Injection, can_use},
    *,
};

/// The oracle, once all that was called is settled.
fn assert_nothing_lost(edge: &Edge, load: Load, topics: &Topics) {
    load.await_accepted(100);
    let calls = load.finish();
    edge.settle();
    assert!(calls.values().any(Option::is_none), "nothing was in flight when the fault came");
    assert_exactly_once(&topics.read(), &calls);
}

#[test]
fn what_was_answered_200_survives_power_cuts() {
    let Some(bootstrap) = kafka() else { return };
    let Some(disk) = Disk::make(512) else { return };
    let topics = Topics::create(&bootstrap);
    let mut edge =
        Edge::start(&Settings { journal: disk.journal(), ..settings(&bootstrap, &topics) });
    let load = Load::begin(&edge, true);
    for round in 0..6 {
        load.await_accepted(50 + 70 * round);
        // The cut takes a moment, in which ext4 calls syncs successful that are not (seen on 6.18,
        // without an edge). Where the power is cut nobody hears of them.
        load.hear_nothing();
        disk.cut();
        // What is not killed ends by itself: no sync succeeds any more.
        if round % 2 == 0 {
            edge.kill();
        } else {
            edge.await_end().assert_says("the journal failed");
        }
        disk.mount_again();
        edge.start_again();
        load.go_on_at(&edge);
    }
    assert_nothing_lost(&edge, load, &topics);
}
