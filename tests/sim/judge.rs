//! What must hold at the end of a run.

use std::collections::BTreeMap;

use weni_edge::{journal::Journal, metrics::Metrics};

use crate::{
    kafka::{PARTITIONS, State},
    run::{Answer, Seen, Stage},
    world::fail,
};

/// The accounts balance, at the end of a process that tried to begin so many transactions.
pub fn accounts(journal: &Journal, metrics: &Metrics, begun: u64) {
    let accepted = metrics.callbacks_accepted_total.with_label_values(&["loja"]).get();
    let recovered = metrics.callbacks_recovered_total.get();
    let settled = metrics.callbacks_settled_total.get();
    let pending = journal.pending();
    if accepted + recovered != pending + settled {
        fail(format!(
            "{accepted} accepted and {recovered} recovered are not {pending} pending and {settled} settled"
        ));
    }
    let ended = |how| metrics.transactions_total.with_label_values(&[how]).get();
    let [committed, aborted, lost] = ["committed", "aborted", "lost"].map(ended);
    if committed + aborted + lost != begun {
        fail(format!(
            "{begun} transactions begun are not {committed} committed, {aborted} aborted and {lost} lost"
        ));
    }
}

/// A `read_committed` consumer sees each accepted callback exactly once, in the order of its key, and
/// nothing else.
pub fn consumers(stage: &mut Stage, replayed: bool) {
    let broker = stage.broker.borrow();
    let mut seen = Seen::new();
    let mut orders: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
    for ((topic, partition), entries) in &broker.partitions {
        if !(0..PARTITIONS).contains(partition) {
            fail("a partition that is not there");
        }
        for entry in entries {
            match entry.state {
                State::Committed => {}
                State::Aborted => continue,
                State::Untold if broker.forgot_untold => continue,
                State::Open | State::Untold => {
                    fail(format!("readers of {topic} are held for ever"))
                }
            }
            let text = String::from_utf8_lossy(&entry.value);
            for mark in marks(&text) {
                seen.entry(mark).or_default().push(topic.clone());
                let by_replay = entry.headers.iter().any(|(name, _)| name == "replayed-from");
                if topic == "status" && !by_replay {
                    orders.entry(entry.key.clone()).or_default().push(mark);
                }
            }
        }
    }
    let may_repeat = broker.lost_something || stage.forked;
    for (number, call) in stage.calls.iter().enumerate() {
        for at in 0..call.statuses {
            let topics = seen.remove(&(number, at)).unwrap_or_default();
            let events = topics.iter().filter(|topic| *topic == "status").count();
            let letters = topics.len() - events;
            let quarantined = call.deadly && !replayed;
            match call.answer {
                Answer::Accepted if topics.is_empty() && !quarantined => {
                    // A damaged record is lost, and reported. What came after a backup is lost with its
                    // disk.
                    let reported = number < stage.damaged && stage.reported_damage > 0;
                    let excused = stage.excused.contains(&number);
                    if !reported && !excused && !stage.exempt.contains(&number) {
                        fail(format!("call {number}.{at} was answered 200 and is not there"));
                    }
                }
                Answer::Refused if !topics.is_empty() => {
                    fail(format!("call {number}.{at} was refused and is there"));
                }
                _ => {}
            }
            let once = events <= 1 && letters <= 1 && (stage.replayed || topics.len() <= 1);
            if !once && !may_repeat {
                fail(format!("call {number}.{at} is there more than once: {topics:?}"));
            }
        }
    }
    if let Some((mark, topics)) = seen.pop_first() {
        fail(format!("nobody called {mark:?}, and it is in {topics:?}"));
    }
    // A restored backup may give positions again.
    if may_repeat || !stage.exempt.is_empty() {
        return;
    }
    for (key, marks) in orders {
        let position = |(number, _): &(usize, usize)| stage.calls[*number].position;
        let known = marks.iter().filter(|mark| position(mark).is_some());
        let known: Vec<_> = known.map(|mark| (position(mark), mark.1)).collect();
        if !known.is_sorted() {
            fail(format!("key {key} is out of order: {marks:?}"));
        }
    }
}

/// The marks `<number.at>` in a text, each once.
fn marks(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for part in text.split('<').skip(1) {
        let mark = part.split_once('>').and_then(|(mark, _)| {
            let (number, at) = mark.split_once('.')?;
            Some((number.parse().ok()?, at.parse().ok()?))
        });
        found.extend(mark.filter(|mark| !found.contains(mark)));
        if text.starts_with('<') {
            // A body that is no callback: what follows its mark is forged.
            break;
        }
    }
    found
}
