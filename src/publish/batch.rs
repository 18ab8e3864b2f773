//! What goes into one transaction: the records of whole callbacks, in the journal's order.

use std::{collections::BTreeSet, io};

use fail::fail_point;
use uuid::Uuid;

use super::{
    account::{Attempt, ItemId},
    session::{Ended, Session},
    sizing::Size,
};
use crate::{
    callback::Callback,
    clock,
    event::{DeadLetter, Item, Reason},
    journal::{JournalRecord, Position, Reader},
    kafka::{Code, Failure, Producer, Step, label},
    mutant, quarantine,
};

/// Records between two looks at the delivery reports.
const CHECK_RECORDS: usize = 512;

/// Why a transaction could not be filled.
enum NotFilled {
    Kafka(Failure),
    /// The journal cannot be read, or the quarantine cannot be written.
    Disk(io::Error),
}

impl<P: Producer> Session<'_, P> {
    /// Begins a transaction and fills it: with `only` these items, or with all of the next callbacks.
    /// After a failure it has to be aborted. A disk that fails ends the session.
    pub(super) fn attempt(
        &mut self,
        only: Option<BTreeSet<ItemId>>,
    ) -> Result<(Attempt, Result<(), Failure>), Ended> {
        let deadline = self.deadline(clock::now());
        let mut attempt = Attempt::new(&self.shared.metrics, deadline, only);
        if let Err(failure) = self.producer.begin() {
            return Ok((attempt, Err(failure)));
        }
        let again = || self.shared.journal.reader(self.position);
        let mut reader = self.reader.take().unwrap_or_else(again);
        let filled = self.fill(&mut attempt, &mut reader);
        self.reader = Some(reader);
        match filled {
            Ok(()) => Ok((attempt, Ok(()))),
            Err(NotFilled::Kafka(failure)) => Ok((attempt, Err(failure))),
            Err(NotFilled::Disk(error)) => {
                if mutant::is("effects kept after a disk error") {
                    attempt.count(&self.shared.metrics, &self.topics);
                }
                let obstacle = self.disk_failed(&error);
                Err(self.give_up(obstacle))
            }
        }
    }

    /// Takes callbacks, at least one, until the transaction is full, the last item of
    /// [`only`](Attempt::only) is reached, or nothing durable is left.
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
            let Some(record) = reader.next().map_err(NotFilled::Disk)? else { return Ok(()) };
            if last.is_some_and(|last| record.position > last) {
                return Ok(());
            }
            let taken = self.callback(attempt, &record);
            // Reading the next record is not its fault, nor is what comes after the transaction.
            self.shared.heartbeat.normalizing(None);
            taken?;
        }
        attempt.full = true;
        Ok(())
    }

    fn callback(
        &mut self,
        attempt: &mut Attempt,
        record: &JournalRecord<'_>,
    ) -> Result<(), NotFilled> {
        let (shared, JournalRecord { position, payload }) = (self.shared, *record);
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
                self.items(attempt, position, &callback, [letter])?
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
    fn items<'i>(
        &mut self,
        attempt: &mut Attempt,
        position: Position,
        callback: &Callback<'_>,
        items: impl IntoIterator<Item = Item<'i>>,
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
        let heartbeat = &self.shared.heartbeat;
        heartbeat.beat();
        // Looked at for each item: one callback may have thousands.
        if clock::now() >= attempt.deadline || heartbeat.abandoned() {
            let failure = Failure::new(Step::Produce, Code::OperationTimedOut);
            return Err(NotFilled::Kafka(failure));
        }
        let topics = &self.topics;
        let rejected = self.learnt.suspects.rejected.get(&id);
        let item = attempt.draft.write(item, rejected.map(|record| label(record.code)), topics);
        let bytes = attempt.draft.wire_bytes();
        attempt.size.add(bytes);
        if let Item::DeadLetter(letter) = &item
            && (rejected.is_some_and(|record| record.dead_letter_too)
                || !topics.fits(attempt.draft.topic, bytes))
        {
            if attempt.only.is_none() {
                attempt.quarantined(id.position);
                let name = quarantine::letter_name(id.position, callback.receipt, id.number);
                // A disk that hangs is not the callback's fault.
                heartbeat.normalizing(None);
                self.shared.quarantine().keep_letter(&name, letter).map_err(NotFilled::Disk)?;
                heartbeat.normalizing(Some(id.position));
            }
            return Ok(());
        }
        let number = attempt.sent.len();
        attempt.record(id, &item, callback);
        let (accepted_ms, now_ms) = (callback.received_at_ms, clock::wall_ms());
        let timestamps = self.learnt.timestamps;
        let record = attempt.draft.record(topics, accepted_ms, timestamps, now_ms, number);
        heartbeat.beat_in_kafka();
        self.producer.send(&record, attempt.deadline).map_err(NotFilled::Kafka)?;
        if attempt.sent.len().is_multiple_of(CHECK_RECORDS) {
            self.producer.check().map_err(NotFilled::Kafka)?;
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
