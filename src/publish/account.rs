//! What a transaction counts once it is committed.

use std::collections::HashMap;

use prometheus::local::LocalIntCounterVec;

use crate::{
    event::{Event, EventKind, Item, Pricing, Reason},
    kafka::Blocked,
    metrics::Metrics,
};

/// What is in no closed set of labels.
const OTHER: &str = "other";
const STATUSES: [&str; 5] = ["sent", "delivered", "read", "played", "failed"];
const PRICING_TYPES: [&str; 3] = ["regular", "free_customer_service", "free_entry_point"];
const CATEGORIES: [&str; 9] = [
    "marketing",
    "marketing_lite",
    "utility",
    "authentication",
    "authentication-international",
    "service",
    "referral_conversion",
    "general_purpose_ai",
    "none",
];

/// Creates the series of publishing at 0, so that a rate over the first event is right.
pub(super) fn start_at_zero(metrics: &Metrics) {
    for kind in EventKind::ALL.iter() {
        metrics.items_total.with_label_values(&[kind.as_str(), "published"]);
    }
    for outcome in ["dead_lettered", "empty", "quarantined", "already_committed", "left_out"] {
        metrics.items_total.with_label_values(&["none", outcome]);
    }
    for status in STATUSES.into_iter().chain([OTHER]) {
        metrics.statuses_total.with_label_values(&[status]);
    }
    for blocked in Blocked::ALL {
        metrics.publish_blocked.with_label_values(&[blocked.as_str()]);
    }
    for reason in Reason::ALL.iter() {
        let why = [reason.as_str(), reason.stage().as_str()];
        metrics.dead_letters_total.with_label_values(&why);
    }
}

/// Counts of one transaction; dropping it counts nothing.
pub(super) struct Account {
    pub(super) callbacks: u64,
    quarantined: u64,
    items: LocalIntCounterVec,
    statuses: LocalIntCounterVec,
    failures: LocalIntCounterVec,
    pricing: LocalIntCounterVec,
    remainders: u64,
    dead_letters: LocalIntCounterVec,
    /// When the callback of each record was accepted, by topic.
    records: HashMap<String, Vec<u64>>,
    /// Seconds from the callback's own timestamp to acceptance, by source.
    lags: HashMap<String, Vec<f64>>,
}

impl Account {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            callbacks: 0,
            quarantined: 0,
            items: metrics.items_total.local(),
            statuses: metrics.statuses_total.local(),
            failures: metrics.failed_statuses_total.local(),
            pricing: metrics.status_pricing_total.local(),
            remainders: 0,
            dead_letters: metrics.dead_letters_total.local(),
            records: HashMap::new(),
            lags: HashMap::new(),
        }
    }

    /// A callback that held nothing.
    pub(super) fn empty(&mut self) {
        self.items.with_label_values(&["none", "empty"]).inc();
    }

    /// Callbacks that Kafka has already: an earlier process committed them, or the answer to a
    /// commit was lost.
    pub(super) fn already_committed(&mut self, callbacks: u64) {
        self.callbacks += callbacks;
        self.items.with_label_values(&["none", "already_committed"]).inc_by(callbacks);
    }

    pub(super) fn quarantined(&mut self) {
        self.items.with_label_values(&["none", "quarantined"]).inc();
        self.quarantined += 1;
    }

    /// An item as it is published: to which topic, and when its callback was accepted.
    pub(super) fn record(&mut self, item: &Item<'_>, topic: &str, source: &str, accepted_ms: u64) {
        push(&mut self.records, topic, accepted_ms);
        let event = match item {
            Item::Event(event) => event,
            Item::DeadLetter(letter) => {
                self.items.with_label_values(&["none", "dead_lettered"]).inc();
                let why = [letter.reason.as_str(), letter.reason.stage().as_str()];
                self.dead_letters.with_label_values(&why).inc();
                return;
            }
        };
        self.items.with_label_values(&[event.kind.as_str(), "published"]).inc();
        self.remainders += u64::from(event.kind == EventKind::Remainder);
        if event.kind == EventKind::MessageStatus {
            self.status(event, source);
        }
        if let Some(occurred_at) = event.occurred_at() {
            let seconds = accepted_ms as f64 / 1000.0 - occurred_at.as_seconds();
            push(&mut self.lags, source, seconds.max(0.0));
        }
    }

    fn status(&mut self, event: &Event<'_>, source: &str) {
        let status = event.status.as_deref().unwrap_or_default();
        self.statuses.with_label_values(&[label(&STATUSES, status)]).inc();
        if status == "failed" {
            for error in &event.errors {
                let code = error.code.map_or_else(|| OTHER.to_owned(), |code| code.to_string());
                self.failures.with_label_values(&[&*code, error.fault.as_str()]).inc();
            }
        }
        if let Some(Pricing { kind, category }) = &event.pricing {
            let (kind, category) = (label(&PRICING_TYPES, kind), label(&CATEGORIES, category));
            self.pricing.with_label_values(&[source, kind, category]).inc();
        }
    }

    /// Counts all of it.
    pub(super) fn count(self, metrics: &Metrics, now_ms: u64) {
        metrics.quarantined_total.with_label_values(&["publish"]).inc_by(self.quarantined);
        let Self { items, statuses, failures, pricing, dead_letters, .. } = &self;
        for counts in [items, statuses, failures, pricing, dead_letters] {
            counts.flush();
        }
        for (topic, accepted) in &self.records {
            let published = metrics.publish_records_total.with_label_values(&[topic]);
            published.inc_by(accepted.len() as u64);
            let end_to_end = metrics.end_to_end_seconds.with_label_values(&[topic]);
            for at in accepted {
                end_to_end.observe(now_ms.saturating_sub(*at) as f64 / 1000.0);
            }
        }
        for (source, lags) in &self.lags {
            let lag = metrics.source_lag_seconds.with_label_values(&[source]);
            lags.iter().for_each(|seconds| lag.observe(*seconds));
        }
        metrics.callback_remainders_total.inc_by(self.remainders);
        // Last: an observer that sees a callback settled finds its items counted.
        metrics.callbacks_settled_total.inc_by(self.callbacks);
    }
}

/// Adds to the list of `name`, and copies the name only if it is new.
fn push<T>(lists: &mut HashMap<String, Vec<T>>, name: &str, value: T) {
    match lists.get_mut(name) {
        Some(list) => list.push(value),
        None => drop(lists.insert(name.to_owned(), vec![value])),
    }
}

/// A label of a closed set.
fn label(known: &[&'static str], text: &str) -> &'static str {
    known.iter().find(|known| **known == text).copied().unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_sets_are_there_from_the_start() {
        let metrics = Metrics::default();
        start_at_zero(&metrics);
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        for line in [
            "weni_edge_publish_blocked{reason=\"no_broker\"} 0",
            "weni_edge_dead_letters_total{reason=\"invalid_json\",stage=\"normalize\"} 0",
            "weni_edge_dead_letters_total{reason=\"too_slow\",stage=\"publish\"} 0",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
