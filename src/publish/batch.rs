//! What goes into one transaction: the records of whole callbacks, in the journal's order.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use fail::fail_point;
use rdkafka::{
    message::{Header, OwnedHeaders},
    types::RDKafkaErrorCode as Code,
};
use uuid::Uuid;

use super::{
    Shared, quarantine,
    tally::Tally,
    topics::Topics,
    transaction::{Client, Failure, Record, label},
    window::Window,
};
use crate::{
    callback::Callback,
    event::{DeadLetter, Event, Item, Reason, Stage, Topic},
    journal::{Position, Reader},
    normalize::normalize,
};

/// Records between two looks at the delivery reports.
const CHECK_RECORDS: usize = 512;
/// What Kafka's record format adds to key, value and headers, generously: lengths, offsets, batch.
const RECORD_OVERHEAD_BYTES: usize = 512;
/// The same for each header.
const HEADER_OVERHEAD_BYTES: usize = 10;

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

/// How much a transaction takes; always at least one callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Size {
    /// Keeps transactions short for readers and the client's memory small.
    pub(super) const FULL: Self = Self { records: 10_000, bytes: 8 << 20 };
    /// Surely all that was in an earlier transaction, whatever of it was taken for repetitions then.
    pub(super) const TWICE: Self =
        Self { records: 2 * Self::FULL.records, bytes: 2 * Self::FULL.bytes };
    /// No limit.
    pub(super) const ALL: Self = Self { records: usize::MAX, bytes: usize::MAX };
    /// One callback.
    pub(super) const SINGLE: Self = Self { records: 1, bytes: 1 };

    pub(super) fn half(self) -> Self {
        Self { records: (self.records / 2).max(1), bytes: (self.bytes / 2).max(1) }
    }

    pub(super) fn double(self) -> Self {
        self.and(self)
    }

    /// An eighth more.
    pub(super) fn a_little_more(self) -> Self {
        self.and(Self { records: self.records / 8 + 1, bytes: self.bytes / 8 + 1 })
    }

    pub(super) fn min(self, other: Self) -> Self {
        Self { records: self.records.min(other.records), bytes: self.bytes.min(other.bytes) }
    }

    /// Whether it takes less than `other` in every respect.
    pub(super) fn is_below(self, other: Self) -> bool {
        self.records < other.records && self.bytes < other.bytes
    }

    fn and(self, more: Self) -> Self {
        let sum = Self { records: self.records + more.records, bytes: self.bytes + more.bytes };
        sum.min(Self::FULL)
    }
}

/// Why an item is not published as what it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) code: Code,
    /// Its dead letter was refused as well.
    pub(super) dead_letter_too: bool,
}

/// What decides how items are published, beside their content.
pub(super) struct Rules<'a> {
    pub(super) topics: &'a Topics,
    pub(super) refused: &'a HashMap<ItemId, Refusal>,
    /// Callbacks that made normalizing panic twice.
    pub(super) panicked: &'a BTreeSet<Position>,
    /// Records carry the present time: the broker refused the time of acceptance.
    pub(super) present_time: bool,
    pub(super) quarantine: &'a Path,
    /// Only these are sent, to find the one that is refused; nothing else of the batch is.
    pub(super) only: Option<&'a BTreeSet<ItemId>>,
}

/// A transaction being filled.
pub(super) struct Batch<'a> {
    rules: Rules<'a>,
    client: &'a mut Client,
    window: &'a mut Window,
    deadline: Instant,
    pub(super) tally: Tally,
    /// What was sent: the index is the number of the record.
    pub(super) sent: Vec<Sent>,
    /// The first position behind the batch, and the receipt of its last callback.
    pub(super) end: Option<(Position, Uuid)>,
    pub(super) bytes: usize,
    value: Vec<u8>,
    failure: Option<BatchError>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        rules: Rules<'a>,
        client: &'a mut Client,
        window: &'a mut Window,
        deadline: Instant,
    ) -> Self {
        Self {
            rules,
            client,
            window,
            deadline,
            tally: Tally::default(),
            sent: Vec::new(),
            end: None,
            bytes: 0,
            value: Vec::new(),
            failure: None,
        }
    }

    /// Takes callbacks before `until` until `size` is reached or nothing durable is left; `shared`
    /// is told the position of each before it is read. Returns whether it is full.
    ///
    /// # Errors
    /// When the client or the journal fails; the transaction has to be aborted.
    pub(super) fn fill(
        &mut self,
        reader: &mut Reader,
        size: Size,
        until: Position,
        shared: &Shared,
    ) -> Result<bool, BatchError> {
        let mut next_check = CHECK_RECORDS;
        while self.sent.len() < size.records && self.bytes < size.bytes {
            let Some(record) = reader.next().map_err(BatchError::Disk)? else {
                shared.normalized();
                return Ok(false);
            };
            if record.position >= until {
                break;
            }
            shared.normalizing(record.position);
            self.callback(record.position, record.payload)?;
            if self.sent.len() >= next_check {
                next_check = self.sent.len() + CHECK_RECORDS;
                self.client.check()?;
            }
        }
        shared.normalized();
        Ok(true)
    }

    fn callback(&mut self, position: Position, payload: &[u8]) -> Result<(), BatchError> {
        let callback = match Callback::decode(payload) {
            Ok(callback) => callback,
            Err(error) => {
                // Intact, but not ours to read: most likely a newer program wrote it.
                let name = format!("record-{:016x}", position.as_u64());
                quarantine::keep(self.rules.quarantine, &name, &[], payload)
                    .map_err(BatchError::Disk)?;
                tracing::error!(%error, file = name, "a journal record cannot be read: set aside");
                self.tally.callbacks += 1;
                self.tally.quarantined();
                self.end = Some((position.next(), Uuid::nil()));
                return Ok(());
            }
        };
        let panicked = self.rules.panicked.contains(&position);
        if !panicked {
            fail_point!(&format!("normalize {}", callback.method));
        }
        let mut number = 0;
        let mut each = |item: Item<'_>| {
            if self.failure.is_none() {
                self.item(ItemId { position, number }, &callback, item);
            }
            number += 1;
        };
        if panicked {
            each(Item::DeadLetter(DeadLetter::of_callback(
                &callback,
                Reason::Panic,
                Stage::Publish,
                "normalizing panicked twice",
            )));
        } else {
            normalize(&callback, &mut each);
        }
        if number == 0 {
            self.tally.empty();
        }
        self.tally.callbacks += 1;
        self.end = Some((position.next(), callback.receipt));
        self.failure.take().map_or(Ok(()), Err)
    }

    fn item(&mut self, id: ItemId, callback: &Callback<'_>, item: Item<'_>) {
        match item {
            Item::Event(event) => self.event(id, callback, event),
            Item::DeadLetter(letter) => self.dead_letter(id, callback, &letter),
        }
    }

    fn event(&mut self, id: ItemId, callback: &Callback<'_>, event: Event<'_>) {
        let Callback { source, received_at_ms, .. } = *callback;
        let hash = event.content_hash();
        if self.window.repeats(source, event.event_id(), hash, received_at_ms) {
            return self.tally.duplicate(event.kind());
        }
        let topic = self.rules.topics.name(event.topic());
        if let Some(refusal) = self.rules.refused.get(&id) {
            let letter =
                event.into_dead_letter(Reason::Refused, Stage::Publish, label(refusal.code));
            return self.dead_letter(id, callback, &letter);
        }
        if topic == self.rules.topics.dead_letter() {
            let detail = "this kind of event is routed to the dead letters".to_owned();
            let letter = event.into_dead_letter(Reason::Unroutable, Stage::Publish, detail);
            return self.dead_letter(id, callback, &letter);
        }
        self.value.clear();
        event.write_json(&mut self.value);
        let headers = Headers::collect(|each| event.headers(each));
        let bytes = headers.bytes + event.key().len() + self.value.len();
        if !self.rules.topics.fits(topic, bytes) {
            let detail = format!("{bytes} bytes are more than the topic takes");
            let letter = event.into_dead_letter(Reason::TooLarge, Stage::Publish, detail);
            return self.dead_letter(id, callback, &letter);
        }
        self.tally.published(&event, source, received_at_ms);
        let value = std::mem::take(&mut self.value);
        self.send(id, received_at_ms, event.topic(), event.key(), &value, headers);
        self.value = value;
    }

    fn dead_letter(&mut self, id: ItemId, callback: &Callback<'_>, letter: &DeadLetter<'_>) {
        let topic = self.rules.topics.dead_letter();
        let headers = Headers::collect(|each| letter.headers(each));
        let bytes = headers.bytes + letter.key().len() + letter.value().len();
        let refused = self.rules.refused.get(&id).is_some_and(|refusal| refusal.dead_letter_too);
        if refused || !self.rules.topics.fits(topic, bytes) {
            return self.quarantine(id, callback, letter);
        }
        self.tally.dead_lettered(letter);
        self.send(
            id,
            callback.received_at_ms,
            Topic::DeadLetter,
            letter.key(),
            letter.value(),
            headers,
        );
    }

    /// The last resort: a file, synced before the position moves on.
    fn quarantine(&mut self, id: ItemId, callback: &Callback<'_>, letter: &DeadLetter<'_>) {
        if self.rules.only.is_some() {
            return self.tally.quarantined();
        }
        let name = format!("dead-letter-{}-{}", callback.receipt, id.number);
        let mut headers = Vec::new();
        letter.headers(&mut |key, value| headers.push((key.to_owned(), value.to_vec())));
        match quarantine::keep(self.rules.quarantine, &name, &headers, letter.value()) {
            Ok(()) => self.tally.quarantined(),
            Err(error) => self.failure = Some(BatchError::Disk(error)),
        }
    }

    fn send(
        &mut self,
        id: ItemId,
        received_at_ms: u64,
        topic: Topic,
        key: &str,
        value: &[u8],
        headers: Headers,
    ) {
        let name = self.rules.topics.name(topic);
        self.tally.record(name, received_at_ms);
        if self.rules.only.is_some_and(|only| !only.contains(&id)) {
            return;
        }
        self.bytes += headers.bytes + key.len() + value.len();
        let number = self.sent.len();
        self.sent.push(Sent { id, topic });
        let now_ms = now_ms();
        let stale = self.rules.topics.would_expire(name, now_ms.saturating_sub(received_at_ms));
        let present = self.rules.present_time || stale;
        let timestamp_ms = if present { now_ms } else { received_at_ms } as i64;
        let record =
            Record { topic: name, key, value, headers: headers.headers, timestamp_ms, number };
        self.failure = self.client.produce(record, self.deadline).err().map(BatchError::Kafka);
    }
}

/// Why a batch could not be filled.
#[derive(Debug)]
pub(super) enum BatchError {
    Kafka(Failure),
    /// The journal cannot be read, or the quarantine not be written.
    Disk(std::io::Error),
}

impl From<Failure> for BatchError {
    fn from(failure: Failure) -> Self {
        Self::Kafka(failure)
    }
}

/// A record's headers and their size on the wire.
pub(super) struct Headers {
    pub(super) headers: OwnedHeaders,
    pub(super) bytes: usize,
}

impl Headers {
    pub(super) fn collect(give: impl FnOnce(&mut dyn FnMut(&str, &[u8]))) -> Self {
        let mut headers = Some(OwnedHeaders::new_with_capacity(12));
        let mut bytes = RECORD_OVERHEAD_BYTES;
        give(&mut |key, value| {
            bytes += key.len() + value.len() + HEADER_OVERHEAD_BYTES;
            let header = Header { key, value: Some(value) };
            headers = headers.take().map(|headers| headers.insert(header));
        });
        Self { headers: headers.unwrap_or_default(), bytes }
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
