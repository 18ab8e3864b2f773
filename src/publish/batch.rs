//! What goes into one transaction: the records of whole callbacks, in the journal's order.

use std::{collections::BTreeSet, io, time::Instant};

use fail::fail_point;
use uuid::Uuid;

use super::{
    Shared,
    account::Account,
    sizing::{Size, Suspects},
};
use crate::{
    callback::Callback,
    clock,
    event::{DeadLetter, Item, Reason, Topic},
    journal::{JournalRecord, Position, Reader},
    kafka::{Code, Draft, Failure, Producer, Step, Timestamps, Topics, label},
    metrics::Metrics,
    mutant, normalize, quarantine,
};

/// Records between two looks at the delivery reports.
const CHECK_RECORDS: usize = 512;

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
}

/// What an uncommitted transaction would change: dropping it undoes it. The files that it put into
/// quarantine mean nothing until the position after them is committed.
pub(super) struct Attempt {
    pub(super) account: Account,
    /// By the number of the record.
    pub(super) sent: Vec<Sent>,
    /// Items and bytes, those in quarantine included.
    pub(super) size: Size,
    /// The first position after it, and the receipt of its last callback.
    pub(super) end: Option<(Position, Uuid)>,
    /// Callbacks of which something is only in quarantine.
    pub(super) set_aside: Vec<Position>,
    /// It ended because of its size or time: more callbacks may wait.
    pub(super) full: bool,
}

impl Attempt {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let account = Account::new(metrics);
        let (sent, set_aside, size) = Default::default();
        Self { account, sent, size, end: None, set_aside, full: false }
    }
}

/// Why a batch could not be filled.
#[derive(Debug)]
pub(super) enum BatchError {
    Kafka(Failure),
    /// The journal cannot be read, or the quarantine cannot be written.
    Disk(io::Error),
}

impl From<Failure> for BatchError {
    fn from(failure: Failure) -> Self {
        Self::Kafka(failure)
    }
}

impl From<io::Error> for BatchError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// A transaction being filled.
pub(super) struct TransactionBatch<'a, P> {
    pub(super) producer: &'a mut P,
    pub(super) shared: &'a Shared,
    pub(super) topics: &'a Topics,
    pub(super) suspects: &'a Suspects,
    pub(super) timestamps: Timestamps,
    /// Only these are sent, to find the one that is rejected; nothing is quarantined then.
    pub(super) only: Option<&'a BTreeSet<ItemId>>,
    /// Nothing is sent after it.
    pub(super) deadline: Instant,
    pub(super) attempt: Attempt,
    pub(super) draft: Draft,
}

impl<P: Producer> TransactionBatch<'_, P> {
    /// Takes callbacks, at least one, until `limit`, `full_at` or the last item of
    /// [`only`](Self::only) is reached, or nothing durable is left. After an error the transaction has
    /// to be aborted.
    pub(super) fn fill(
        &mut self,
        reader: &mut Reader,
        limit: Size,
        full_at: Option<Instant>,
    ) -> Result<(), BatchError> {
        let is_late = || full_at.is_some_and(|full_at| clock::now() >= full_at);
        let last = self.only.and_then(BTreeSet::last).map(|last| last.position);
        while self.attempt.size.is_below(limit) && (self.attempt.end.is_none() || !is_late()) {
            let Some(record) = reader.next()? else { return Ok(()) };
            if last.is_some_and(|last| record.position > last) {
                return Ok(());
            }
            let taken = self.callback(&record);
            // Reading the next record is not its fault, nor is what comes after the batch.
            self.shared.heartbeat.normalizing(None);
            taken?;
        }
        self.attempt.full = true;
        Ok(())
    }

    fn callback(&mut self, record: &JournalRecord<'_>) -> Result<(), BatchError> {
        let JournalRecord { position, payload } = *record;
        self.shared.heartbeat.normalizing(Some(position));
        let callback = match Callback::decode(payload) {
            Ok(callback) => callback,
            Err(_) if self.only.is_some() => return Ok(()),
            Err(error) => {
                // Its checksum is right: most likely a newer program wrote it.
                let name = quarantine::record_name(position);
                tracing::error!(%error, file = name,
                    "a journal record cannot be read: its bytes go into quarantine");
                self.shared.quarantine().keep(&name, &[], payload)?;
                self.attempt.size.add(payload.len());
                self.attempt.account.quarantined();
                self.attempt.set_aside.push(position);
                self.attempt.account.callbacks += 1;
                self.attempt.end = Some((position.next(), Uuid::nil()));
                return Ok(());
            }
        };
        let number = match self.suspects.dead.get(&position) {
            Some(reason) => self.items(position, &callback, [dead(&callback, *reason)])?,
            None => {
                fail_point!(&format!("normalize {}", callback.method));
                let body = self.shared.decode(&callback);
                let document = normalize::parse(&body);
                let config = self.shared.config.load();
                let settings = config.event_settings(callback.source);
                let mut items = normalize::items(&callback, settings, &document);
                if mutant::is("order within a callback changed") {
                    items.reverse();
                }
                self.items(position, &callback, items)?
            }
        };
        if number == 0 {
            self.attempt.account.empty();
            self.attempt.size.add(0);
        }
        self.attempt.account.callbacks += 1;
        self.attempt.end = Some((position.next(), callback.receipt));
        Ok(())
    }

    /// Returns the number of items.
    fn items<'c>(
        &mut self,
        position: Position,
        callback: &Callback<'c>,
        items: impl IntoIterator<Item = Item<'c>>,
    ) -> Result<u32, BatchError> {
        let mut number = 0;
        for item in items {
            let id = ItemId { position, number };
            number += 1;
            if self.only.is_none_or(|only| only.contains(&id)) {
                self.add(id, callback, item)?;
            }
        }
        Ok(number)
    }

    /// Sends one item, or puts it into quarantine.
    fn add(
        &mut self,
        id: ItemId,
        callback: &Callback<'_>,
        item: Item<'_>,
    ) -> Result<(), BatchError> {
        self.shared.heartbeat.beat();
        // Looked at for each item: one callback may have thousands.
        if clock::now() >= self.deadline || self.shared.heartbeat.abandoned() {
            return Err(Failure::new(Step::Produce, Code::OperationTimedOut).into());
        }
        let (topics, timestamps) = (self.topics, self.timestamps);
        let rejected = self.suspects.rejected.get(&id);
        let item = self.draft.write(item, rejected.map(|record| label(record.code)), topics);
        let bytes = self.draft.wire_bytes();
        self.attempt.size.add(bytes);
        if let Item::DeadLetter(letter) = &item
            && (rejected.is_some_and(|record| record.dead_letter_too)
                || !topics.fits(self.draft.topic, bytes))
        {
            if self.only.is_none() {
                self.attempt.account.quarantined();
                self.attempt.set_aside.push(id.position);
                let name = quarantine::letter_name(id.position, callback.receipt, id.number);
                // A disk that hangs is not the callback's fault.
                self.shared.heartbeat.normalizing(None);
                self.shared.quarantine().keep_letter(&name, letter)?;
                self.shared.heartbeat.normalizing(Some(id.position));
            }
            return Ok(());
        }
        let topic = topics.name(self.draft.topic);
        let accepted_ms = callback.received_at_ms;
        self.attempt.account.record(&item, topic, callback.source, accepted_ms);
        let number = self.attempt.sent.len();
        self.attempt.sent.push(Sent { id, topic: self.draft.topic });
        let now_ms = clock::wall_ms();
        let record = self.draft.record(topics, accepted_ms, timestamps, now_ms, number);
        self.shared.heartbeat.beat_in_kafka();
        self.producer.send(&record, self.deadline)?;
        if self.attempt.sent.len().is_multiple_of(CHECK_RECORDS) {
            self.producer.check()?;
        }
        Ok(())
    }
}

fn dead<'c>(callback: &'c Callback<'c>, reason: Reason) -> Item<'c> {
    let detail = match reason {
        Reason::TooSlow => {
            "Kafka accepted small records with the same keys in time, and never this callback's"
        }
        _ => "normalizing panicked or hung twice",
    };
    Item::DeadLetter(DeadLetter::new(callback, reason, detail, callback.body.into(), None))
}
