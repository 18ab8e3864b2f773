//! What a transaction holds, and what it counts once it is committed.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use prometheus::local::LocalIntCounterVec;
use uuid::Uuid;

use super::sizing::Size;
use crate::{
    callback::Callback,
    clock,
    event::{Event, EventKind, Item, Pricing, Reason, Topic},
    journal::Position,
    kafka::{Blocked, Draft, Topics},
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

/// Names an item for as long as its callback is in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ItemId {
    pub(super) position: Position,
    /// Its number within the callback.
    pub(super) number: u32,
}

/// A record that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) id: ItemId,
    pub(super) topic: Topic,
    /// When its callback was accepted.
    accepted_ms: u64,
}

/// What an uncommitted transaction would change: dropping it undoes it. The files that it put into
/// quarantine mean nothing until the position after them is committed.
pub(super) struct Attempt {
    /// Only these are sent, to find the one that is rejected; nothing is quarantined then.
    pub(super) only: Option<BTreeSet<ItemId>>,
    /// Nothing is sent after it.
    pub(super) deadline: Instant,
    pub(super) draft: Draft,
    /// By the number of the record.
    pub(super) sent: Vec<Sent>,
    /// Items and bytes, those in quarantine included.
    pub(super) size: Size,
    /// The first position after it, and the receipt of its last callback.
    pub(super) end: Option<(Position, Uuid)>,
    /// For each item that is only in quarantine, the position of its callback.
    pub(super) set_aside: Vec<Position>,
    /// It ended because of its size or time: more callbacks may wait.
    pub(super) full: bool,
    callbacks: u64,
    items: LocalIntCounterVec,
    statuses: LocalIntCounterVec,
    failures: LocalIntCounterVec,
    pricing: LocalIntCounterVec,
    remainders: u64,
    dead_letters: LocalIntCounterVec,
    /// Seconds from the callback's own timestamp to acceptance, by source.
    lags: HashMap<String, Vec<f64>>,
}

impl Attempt {
    pub(super) fn new(
        metrics: &Metrics,
        deadline: Instant,
        only: Option<BTreeSet<ItemId>>,
    ) -> Self {
        Self {
            only,
            deadline,
            draft: Draft::default(),
            sent: Vec::new(),
            size: Size::default(),
            end: None,
            set_aside: Vec::new(),
            full: false,
            callbacks: 0,
            items: metrics.items_total.local(),
            statuses: metrics.statuses_total.local(),
            failures: metrics.failed_statuses_total.local(),
            pricing: metrics.status_pricing_total.local(),
            remainders: 0,
            dead_letters: metrics.dead_letters_total.local(),
            lags: HashMap::new(),
        }
    }

    /// A callback is complete.
    pub(super) fn callback(&mut self, position: Position, receipt: Uuid) {
        self.callbacks += 1;
        self.end = Some((position.next(), receipt));
    }

    /// The callback held nothing.
    pub(super) fn empty(&mut self) {
        self.items.with_label_values(&["none", "empty"]).inc();
        self.size.add(0);
    }

    /// An item of the callback at this position is only in quarantine.
    pub(super) fn quarantined(&mut self, position: Position) {
        self.items.with_label_values(&["none", "quarantined"]).inc();
        self.set_aside.push(position);
    }

    /// An item of `callback`, as it is drafted.
    pub(super) fn record(&mut self, id: ItemId, item: &Item<'_>, callback: &Callback<'_>) {
        let accepted_ms = callback.received_at_ms;
        self.sent.push(Sent { id, topic: self.draft.topic, accepted_ms });
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
            self.status(event, callback.source);
        }
        if event.kind != EventKind::HistoryMessage
            && let Some(occurred_at) = event.occurred_at()
        {
            let seconds = (accepted_ms as f64 / 1000.0 - occurred_at.as_seconds()).max(0.0);
            match self.lags.get_mut(callback.source) {
                Some(lags) => lags.push(seconds),
                None => drop(self.lags.insert(callback.source.to_owned(), vec![seconds])),
            }
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

    /// Counts all of it, as committed now.
    pub(super) fn count(&self, metrics: &Metrics, topics: &Topics) {
        let quarantined = metrics.quarantined_total.with_label_values(&["publish"]);
        quarantined.inc_by(self.set_aside.len() as u64);
        let Self { items, statuses, failures, pricing, dead_letters, .. } = self;
        for counts in [items, statuses, failures, pricing, dead_letters] {
            counts.flush();
        }
        let now_ms = clock::wall_ms();
        for topic in Topic::ALL {
            let mut records = self.sent.iter().filter(|sent| sent.topic == topic).peekable();
            if records.peek().is_none() {
                continue;
            }
            let name = [topics.name(topic)];
            let published = metrics.publish_records_total.with_label_values(&name);
            let end_to_end = metrics.end_to_end_seconds.with_label_values(&name);
            for sent in records {
                published.inc();
                end_to_end.observe(now_ms.saturating_sub(sent.accepted_ms) as f64 / 1000.0);
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
        let text = metrics.encode();
        for line in [
            "weni_edge_publish_blocked{reason=\"no_broker\"} 0",
            "weni_edge_dead_letters_total{reason=\"invalid_json\",stage=\"normalize\"} 0",
            "weni_edge_dead_letters_total{reason=\"too_slow\",stage=\"publish\"} 0",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
