//! One try of a transaction: the records of whole callbacks in the journal's order, and what counts once
//! they are committed.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    time::Instant,
};

use fail::fail_point;
use prometheus::local::LocalIntCounterVec;
use uuid::Uuid;

use super::{
    session::{Ended, Session},
    sizing::Size,
};
use crate::{
    callback::Callback,
    clock,
    event::{DeadLetter, Event, EventKind, Item, Pricing, Reason, Topic},
    journal::{JournalRecord, Position, Reader},
    kafka::{Blocked, Code, Draft, Failure, Producer, Step, Topics, label},
    metrics::Metrics,
    mutant, quarantine,
};

/// Records between two looks at the delivery reports.
const CHECK_RECORDS: usize = 512;
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
    accepted_ms: u64,
}

/// What an uncommitted transaction would change: dropping it undoes it. The files that it put into
/// quarantine mean nothing until the position after them is committed.
pub(super) struct Attempt {
    /// Only these are sent, to find the one that is rejected; nothing is quarantined then.
    only: Option<BTreeSet<ItemId>>,
    /// Nothing is sent after it.
    pub(super) deadline: Instant,
    draft: Draft,
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
    dead_letters: LocalIntCounterVec,
    remainders: u64,
    /// Seconds from the callback's own timestamp to acceptance, by source.
    lags: HashMap<String, Vec<f64>>,
}

impl Attempt {
    fn new(metrics: &Metrics, deadline: Instant, only: Option<BTreeSet<ItemId>>) -> Self {
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
            dead_letters: metrics.dead_letters_total.local(),
            remainders: 0,
            lags: HashMap::new(),
        }
    }

    /// A callback is complete.
    fn callback(&mut self, position: Position, receipt: Uuid) {
        self.callbacks += 1;
        self.end = Some((position.next(), receipt));
    }

    /// The callback held nothing.
    fn empty(&mut self) {
        self.items.with_label_values(&["none", "empty"]).inc();
        self.size.add(0);
    }

    /// An item of the callback at this position is only in quarantine.
    fn quarantined(&mut self, position: Position) {
        self.items.with_label_values(&["none", "quarantined"]).inc();
        self.set_aside.push(position);
    }

    /// An item of `callback`, as it is published.
    fn record(&mut self, id: ItemId, topic: Topic, item: &Item<'_>, callback: &Callback<'_>) {
        let accepted_ms = callback.received_at_ms;
        self.sent.push(Sent { id, topic, accepted_ms });
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
        if let Some(occurred_at) = event.occurred_at() {
            let seconds = (accepted_ms as f64 / 1000.0 - occurred_at.as_seconds()).max(0.0);
            match self.lags.get_mut(callback.source) {
                Some(lags) => lags.push(seconds),
                None => drop(self.lags.insert(callback.source.to_owned(), vec![seconds])),
            }
        }
    }

    fn status(&mut self, event: &Event<'_>, source: &str) {
        let status = event.status.as_deref().unwrap_or_default();
        self.statuses.with_label_values(&[known(&STATUSES, status)]).inc();
        if status == "failed" {
            for error in &event.errors {
                let code = error.code.map_or_else(|| OTHER.to_owned(), |code| code.to_string());
                self.failures.with_label_values(&[&*code, error.fault.as_str()]).inc();
            }
        }
        if let Some(Pricing { kind, category }) = &event.pricing {
            let (kind, category) = (known(&PRICING_TYPES, kind), known(&CATEGORIES, category));
            self.pricing.with_label_values(&[source, kind, category]).inc();
        }
    }

    /// Counts what was committed.
    pub(super) fn count(&self, metrics: &Metrics, topics: &Topics, now_ms: u64) {
        let quarantined = metrics.quarantined_total.with_label_values(&["publish"]);
        quarantined.inc_by(self.set_aside.len() as u64);
        let Self { items, statuses, failures, pricing, dead_letters, .. } = self;
        for counts in [items, statuses, failures, pricing, dead_letters] {
            counts.flush();
        }
        for row in self.sent.chunk_by(|one, next| one.topic == next.topic) {
            let topic = [topics.name(row[0].topic)];
            metrics.publish_records_total.with_label_values(&topic).inc_by(row.len() as u64);
            let end_to_end = metrics.end_to_end_seconds.with_label_values(&topic);
            for sent in row {
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
fn known(set: &[&'static str], text: &str) -> &'static str {
    set.iter().find(|known| **known == text).copied().unwrap_or(OTHER)
}

/// Why a transaction could not be filled.
enum NotFilled {
    Kafka(Failure),
    /// The journal cannot be read, or the quarantine cannot be written.
    Disk(io::Error),
}

impl<P: Producer> Session<'_, P> {
    /// Begins a transaction and fills it: with `only` these items, to find the one that is rejected, or
    /// with all of the next callbacks. After a failure it has to be aborted. Gives up if the disk fails.
    pub(super) fn attempt(
        &mut self,
        only: Option<BTreeSet<ItemId>>,
    ) -> Result<(Attempt, Result<(), Failure>), Ended> {
        let deadline = self.deadline(clock::now());
        let mut attempt = Attempt::new(&self.shared.metrics, deadline, only);
        let again = || self.shared.journal.reader(self.position);
        let mut reader = self.reader.take().unwrap_or_else(again);
        let begun = self.producer.begin().map_err(NotFilled::Kafka);
        let filled = begun.and_then(|()| self.fill(&mut attempt, &mut reader));
        self.reader = Some(reader);
        self.shared.heartbeat.normalizing(None);
        match filled {
            Ok(()) => Ok((attempt, Ok(()))),
            Err(NotFilled::Kafka(failure)) => Ok((attempt, Err(failure))),
            Err(NotFilled::Disk(error)) => {
                if mutant::is("effects kept after a disk error") {
                    self.count(&attempt);
                }
                let obstacle = self.disk_failed(&error);
                Err(self.give_up(obstacle))
            }
        }
    }

    /// Takes callbacks, at least one, until the transaction is full or nothing durable is left.
    fn fill(&mut self, attempt: &mut Attempt, reader: &mut Reader) -> Result<(), NotFilled> {
        let (limit, full_at) = match &attempt.only {
            Some(_) => (Size::ALL, None),
            // What ends an unfinished transaction must hold all that it held.
            None if self.unfinished => (Size::TWICE, None),
            None => (self.learnt.size, Some(clock::now() + self.producer.timeout() / 3)),
        };
        let is_late = || full_at.is_some_and(|full_at| clock::now() >= full_at);
        let last = attempt.only.as_ref().and_then(BTreeSet::last).map(|last| last.position);
        while attempt.size.is_below(limit) && (attempt.end.is_none() || !is_late()) {
            let record = reader.next().map_err(NotFilled::Disk)?;
            let is_wanted =
                |record: &JournalRecord<'_>| last.is_none_or(|last| record.position <= last);
            let Some(record) = record.filter(is_wanted) else { return Ok(()) };
            self.callback(attempt, record)?;
        }
        attempt.full = true;
        Ok(())
    }

    fn callback(
        &mut self,
        attempt: &mut Attempt,
        record: JournalRecord<'_>,
    ) -> Result<(), NotFilled> {
        let (shared, JournalRecord { position, payload }) = (self.shared, record);
        shared.heartbeat.normalizing(Some(position));
        let callback = match Callback::decode(payload) {
            Ok(callback) => callback,
            Err(_) if attempt.only.is_some() => return Ok(()),
            Err(error) => {
                // Its checksum is right: most likely a newer program wrote it.
                let name = quarantine::record_name(position);
                tracing::error!(%error, file = name,
                    "a journal record cannot be read: its bytes go into quarantine");
                shared.quarantine().keep(&name, &[], payload).map_err(NotFilled::Disk)?;
                attempt.size.add(payload.len());
                attempt.quarantined(position);
                attempt.callback(position, Uuid::nil());
                return Ok(());
            }
        };
        let number = match self.learnt.suspects.dead.get(&position) {
            Some(reason) => {
                let letter = dead(&callback, *reason);
                self.items(attempt, position, &callback, vec![letter])?
            }
            None => {
                fail_point!(&format!("normalize {}", callback.method));
                shared.items(&callback, |mut items| {
                    if mutant::is("order within a callback changed") {
                        items.reverse();
                    }
                    self.items(attempt, position, &callback, items)
                })?
            }
        };
        if number == 0 {
            attempt.empty();
        }
        attempt.callback(position, callback.receipt);
        Ok(())
    }

    /// Returns the number of items.
    fn items(
        &mut self,
        attempt: &mut Attempt,
        position: Position,
        callback: &Callback<'_>,
        items: Vec<Item<'_>>,
    ) -> Result<u32, NotFilled> {
        let mut number = 0;
        for item in items {
            let id = ItemId { position, number };
            number += 1;
            if attempt.only.as_ref().is_none_or(|only| only.contains(&id)) {
                self.item(attempt, id, callback, item)?;
            }
        }
        Ok(number)
    }

    /// Sends one item, or puts it into quarantine.
    fn item(
        &mut self,
        attempt: &mut Attempt,
        id: ItemId,
        callback: &Callback<'_>,
        item: Item<'_>,
    ) -> Result<(), NotFilled> {
        self.shared.heartbeat.beat();
        // Looked at for each item: one callback may have thousands.
        if clock::now() >= attempt.deadline || self.shared.heartbeat.abandoned() {
            let failure = Failure::new(Step::Produce, Code::OperationTimedOut);
            return Err(NotFilled::Kafka(failure));
        }
        let topics = &self.topics;
        let rejected = self.learnt.suspects.rejected.get(&id);
        let item = attempt.draft.write(item, rejected.map(|record| label(record.code)), topics);
        let (topic, bytes) = (attempt.draft.topic, attempt.draft.wire_bytes());
        attempt.size.add(bytes);
        if let Item::DeadLetter(letter) = &item
            && (rejected.is_some_and(|record| record.dead_letter_too) || !topics.fits(topic, bytes))
        {
            if attempt.only.is_none() {
                attempt.quarantined(id.position);
                let name = quarantine::letter_name(id.position, callback.receipt, id.number);
                let kept = self.shared.quarantine().keep_letter(&name, letter);
                kept.map_err(NotFilled::Disk)?;
            }
            return Ok(());
        }
        let number = attempt.sent.len();
        attempt.record(id, topic, &item, callback);
        let (accepted_ms, now_ms) = (callback.received_at_ms, clock::wall_ms());
        let timestamps = self.learnt.timestamps;
        let record = attempt.draft.record(topics, accepted_ms, timestamps, now_ms, number);
        let sent = self.producer.send(&record, attempt.deadline);
        let checked = sent.and_then(|()| match attempt.sent.len().is_multiple_of(CHECK_RECORDS) {
            true => self.producer.check(),
            false => Ok(()),
        });
        checked.map_err(NotFilled::Kafka)
    }
}

fn dead<'c>(callback: &'c Callback<'c>, reason: Reason) -> Item<'c> {
    let detail = match reason {
        Reason::TooSlow => {
            "Kafka accepted small records with the same keys in time, and never this callback's"
        }
        _ => "normalizing panicked twice",
    };
    Item::DeadLetter(DeadLetter::new(callback, reason, detail, callback.body.into(), None))
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
