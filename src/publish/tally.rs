//! What one transaction will have done once it is committed. An aborted try counts nothing.

use std::collections::HashMap;

use crate::{
    event::{DeadLetter, Event, EventKind},
    metrics::Metrics,
};

/// Counts of one transaction, kept apart from the metrics until it is committed.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) callbacks: u64,
    /// By kind and outcome.
    items: HashMap<(&'static str, &'static str), u64>,
    /// Topic and time of acceptance of each record.
    records: HashMap<String, Vec<u64>>,
    statuses: HashMap<&'static str, u64>,
    codes: HashMap<&'static str, u64>,
    /// By reason and stage.
    dead_letters: HashMap<(&'static str, &'static str), u64>,
    /// Seconds from the callback's own timestamp to acceptance, by source.
    lags: HashMap<String, Vec<f64>>,
    quarantined: u64,
}

impl Tally {
    /// A callback that held nothing.
    pub(super) fn empty(&mut self) {
        self.item("none", "empty");
    }

    /// Callbacks that a fork does not publish: settled, by the word of whoever asked for it.
    pub(super) fn left_out(callbacks: u64, metrics: &Metrics) {
        metrics.callbacks_settled_total.inc_by(callbacks);
        metrics.items_total.with_label_values(&["none", "left_out"]).inc_by(callbacks);
    }

    /// Callbacks that an earlier process published.
    pub(super) fn already_committed(&mut self, callbacks: u64) {
        self.callbacks += callbacks;
        *self.items.entry(("none", "already_committed")).or_default() += callbacks;
    }

    pub(super) fn duplicate(&mut self, kind: EventKind) {
        self.item(kind.as_str(), "duplicate");
    }

    pub(super) fn quarantined(&mut self) {
        self.item("none", "quarantined");
        self.quarantined += 1;
    }

    pub(super) fn published(&mut self, event: &Event<'_>, source: &str, received_at_ms: u64) {
        self.item(event.kind().as_str(), "published");
        if let Some(status) = event.status() {
            *self.statuses.entry(status_label(&status)).or_default() += 1;
        }
        for code in event.failure_codes() {
            *self.codes.entry(code).or_default() += 1;
        }
        if let Some(occurred_at) = event.occurred_at_seconds() {
            let seconds = received_at_ms as f64 / 1000.0 - occurred_at as f64;
            push(&mut self.lags, source, seconds.max(0.0));
        }
    }

    pub(super) fn dead_lettered(&mut self, letter: &DeadLetter<'_>) {
        self.item("none", "dead_lettered");
        let reason = (letter.reason().as_str(), letter.stage().as_str());
        *self.dead_letters.entry(reason).or_default() += 1;
    }

    pub(super) fn record(&mut self, topic: &str, received_at_ms: u64) {
        push(&mut self.records, topic, received_at_ms);
    }

    /// The transaction is committed: all of it counts now.
    pub(super) fn count(self, metrics: &Metrics, now_ms: u64) {
        metrics.quarantined_total.with_label_values(&["publish"]).inc_by(self.quarantined);
        for ((kind, outcome), count) in self.items {
            metrics.items_total.with_label_values(&[kind, outcome]).inc_by(count);
        }
        for (topic, accepted) in &self.records {
            let published = metrics.publish_records_total.with_label_values(&[topic]);
            published.inc_by(accepted.len() as u64);
            let end_to_end = metrics.end_to_end_seconds.with_label_values(&[topic]);
            for at in accepted {
                end_to_end.observe(now_ms.saturating_sub(*at) as f64 / 1000.0);
            }
        }
        for (status, count) in self.statuses {
            metrics.statuses_total.with_label_values(&[status]).inc_by(count);
        }
        for (code, count) in self.codes {
            metrics.failed_statuses_total.with_label_values(&[code]).inc_by(count);
        }
        for ((reason, stage), count) in self.dead_letters {
            metrics.dead_letters_total.with_label_values(&[reason, stage]).inc_by(count);
        }
        for (source, lags) in &self.lags {
            let lag = metrics.source_lag_seconds.with_label_values(&[source]);
            lags.iter().for_each(|seconds| lag.observe(*seconds));
        }
        // The last: whoever sees a callback settled finds its items counted.
        metrics.callbacks_settled_total.inc_by(self.callbacks);
    }

    fn item(&mut self, kind: &'static str, outcome: &'static str) {
        *self.items.entry((kind, outcome)).or_default() += 1;
    }
}

/// Adds to the list of `name`, which is copied only when it is new.
fn push<T>(lists: &mut HashMap<String, Vec<T>>, name: &str, value: T) {
    match lists.get_mut(name) {
        Some(list) => list.push(value),
        None => drop(lists.insert(name.to_owned(), vec![value])),
    }
}

fn status_label(status: &str) -> &'static str {
    ["sent", "delivered", "read", "played", "failed"]
        .into_iter()
        .find(|known| *known == status)
        .unwrap_or("other")
}
