//! Searches for the record that Kafka rejects, and proves that a callback alone is too slow.

use std::{collections::BTreeSet, iter};

use uuid::Uuid;

use super::{
    account::{ItemId, Sent},
    session::{Ended, Session},
    sizing::RejectedRecord,
};
use crate::{
    callback::Callback,
    clock,
    event::Topic,
    journal::Position,
    kafka::{
        Blocked, Code, Draft, ErrorClass, Failure, Headers, Obstacle, Producer, Record, Timestamps,
        classify,
    },
};

/// After so many rejected callbacks in a row, with one code on one topic, other records are tried.
const REJECTIONS_MAX: usize = 10;
/// How often a record is tried that librdkafka purges.
const PROBES_MAX: u32 = 5;
/// A topic that refuses so small a value refuses every event.
const PROBE_BYTES: usize = 1024;

/// Topics and keys of records.
type Keys = BTreeSet<(Topic, String)>;

impl<P: Producer> Session<'_, P> {
    /// Searches by halves, narrowed by reports, for the record that is rejected alone.
    pub(super) fn isolate(&mut self, failure: &Failure, sent: &[Sent]) -> Result<(), Ended> {
        let mut suspects = suspects_of(failure, sent);
        while !suspects.is_empty() {
            let half = suspects.len().div_ceil(2);
            let rejected = self.try_subset(suspects[..half].iter().map(|(sent, _)| sent.id))?;
            match (rejected.first(), half) {
                (Some((alone, code)), 1) => return self.reject(*alone, *code, sent),
                (Some(_), _) => suspects = rejected,
                (None, _) if suspects.len() == 1 => {
                    // Each passes alone: a limit of the cluster has changed. The next producer reads it.
                    // Without the right to read it, the next producer sends less in one request.
                    let batch_bytes = &mut self.learnt.settings.batch_bytes;
                    *batch_bytes = (*batch_bytes / 2).max(1);
                    tracing::warn!(
                        batch_bytes,
                        "Kafka rejects records together that pass alone: requests get smaller"
                    );
                    return Err(Ended::Lost(None));
                }
                (None, _) => drop(suspects.drain(..half)),
            }
        }
        Ok(())
    }

    /// Sends some records of the next transaction and aborts. Returns those that were rejected.
    fn try_subset(
        &mut self,
        suspects: impl IntoIterator<Item = ItemId>,
    ) -> Result<Vec<(Sent, Code)>, Ended> {
        let (attempt, sent) = self.attempt(Some(suspects.into_iter().collect()))?;
        let reported = sent.and_then(|()| self.producer.await_reports(attempt.deadline));
        self.reader = None;
        self.abort()?;
        let Err(failure) = reported else { return Ok(Vec::new()) };
        match failure.class() {
            ErrorClass::Record | ErrorClass::RecordIfTwice | ErrorClass::Neighbour => {
                Ok(suspects_of(&failure, &attempt.sent))
            }
            // One record with a refused timestamp makes its whole batch invalid.
            ErrorClass::Clock if self.learnt.timestamps == Timestamps::Accepted => {
                self.learnt.timestamps = Timestamps::Present;
                Err(self.ended(None))
            }
            ErrorClass::Clock => Err(Ended::Lost(Some(Obstacle::of(Blocked::Clock, &failure)))),
            ErrorClass::Shared(blocked) => Err(Ended::Lost(Some(Obstacle::of(blocked, &failure)))),
            _ => Err(self.ended(None)),
        }
    }

    /// A record was rejected alone: the next attempt carries it as a dead letter.
    fn reject(&mut self, rejected: Sent, code: Code, sent: &[Sent]) -> Result<(), Ended> {
        let Sent { id, topic, .. } = rejected;
        let suspects = &mut self.learnt.suspects;
        if classify(code) == ErrorClass::RecordIfTwice && suspects.corrupted_once.insert(id) {
            return Ok(());
        }
        let key = (topic, code as i32);
        let row = suspects.consecutive_rejections.entry(key).or_default();
        row.insert(id);
        let callbacks: BTreeSet<_> = row.iter().map(|id| id.position).collect();
        // What ends an unfinished transaction is aborted: it must hold all records, and settles
        // none.
        if callbacks.len() >= REJECTIONS_MAX && !self.unfinished {
            let row = row.clone();
            if !self.takes_any_other(topic, &row, sent)? {
                // The row is kept: with it the next rejection is tried in the same way.
                self.learnt.suspects.rejected.retain(|id, _| !row.contains(id));
                let detail = format!("{} refuses every record: {code}", self.topics.name(topic));
                return Err(Ended::Lost(Some(Obstacle::new(Blocked::TopicRefuses, detail))));
            }
            self.learnt.suspects.consecutive_rejections.remove(&key);
        }
        let suspects = &mut self.learnt.suspects;
        tracing::error!(topic = self.topics.name(topic), %code,
            "Kafka rejects one record alone: it becomes a dead letter, or a file in quarantine");
        let dead_letter_too = suspects.rejected.contains_key(&id);
        suspects.rejected.insert(id, RejectedRecord { code, dead_letter_too });
        Ok(())
    }

    /// Whether the topic takes one of some other records of the transaction, chosen at equal
    /// distances. Where there are few, a record that is as small as an event decides.
    fn takes_any_other(
        &mut self,
        topic: Topic,
        rejected: &BTreeSet<ItemId>,
        sent: &[Sent],
    ) -> Result<bool, Ended> {
        let is_other = |sent: &&Sent| sent.topic == topic && !rejected.contains(&sent.id);
        let others: Vec<_> = sent.iter().filter(is_other).copied().collect();
        for other in others.chunks(others.len().div_ceil(REJECTIONS_MAX).max(1)) {
            if self.try_subset([other[0].id])?.is_empty() {
                return Ok(true);
            }
        }
        if others.len() >= REJECTIONS_MAX {
            return Ok(false);
        }
        // Random: a broker compares the compressed size with its limit.
        let value: Vec<_> = iter::repeat_with(|| Uuid::new_v4().into_bytes())
            .take(PROBE_BYTES / 16)
            .flatten()
            .collect();
        let keys = Keys::from([(topic, "weni-edge".to_owned())]);
        for _ in 0..PROBES_MAX {
            let Err(failure) = self.try_keys(&keys, &value)? else { return Ok(true) };
            match failure.class() {
                ErrorClass::Record | ErrorClass::RecordIfTwice | ErrorClass::Neighbour => {
                    return Ok(false);
                }
                // The purge before an abort may also take the next transaction's first records.
                ErrorClass::Purged => {}
                _ => return Err(self.ended(failure.shared())),
            }
        }
        Err(self.ended(None))
    }

    /// Sends a record of this value with each of the keys, and aborts. Returns why one was not taken.
    fn try_keys(&mut self, keys: &Keys, value: &[u8]) -> Result<Result<(), Failure>, Ended> {
        let deadline = self.deadline(clock::now());
        let (headers, timestamp_ms) = (Headers::default(), clock::wall_ms() as i64);
        let sent = self.producer.begin().and_then(|()| {
            for (number, (topic, key)) in keys.iter().enumerate() {
                let topic = self.topics.name(*topic);
                let record = Record { topic, key, value, headers: &headers, timestamp_ms, number };
                self.producer.send(&record, deadline)?;
            }
            self.producer.await_reports(deadline)
        });
        self.abort().map(|()| sent)
    }

    /// The position of the first callback, if Kafka takes a small record with each of its keys in
    /// time and commits the position. Then the callback itself is too slow, not a broker or a
    /// partition.
    pub(super) fn takes_small_records(&mut self) -> Result<Option<Position>, Ended> {
        let Some((first, keys)) = self.first_and_its_keys()? else { return Ok(None) };
        if let Err(failure) = self.try_keys(&keys, b"")? {
            // What timed out may still be on its way, so another producer goes on.
            let too_slow = || Obstacle::of(Blocked::TooSlow, &failure);
            return Err(self.ended(Some(failure.shared().unwrap_or_else(too_slow))));
        }
        let deadline = self.deadline(clock::now());
        let end = self.shared.checkpoint(self.position, self.last_receipt, &self.topics);
        let committed = self
            .producer
            .begin()
            .and_then(|()| self.send_position(&end, deadline))
            .and_then(|()| self.producer.commit());
        committed.map_err(|failure| self.lost(failure.shared()))?;
        self.count_transaction("committed");
        Ok(Some(first))
    }

    /// The first callback that is not committed, with the topics and keys of its records. None also if it
    /// becomes a dead letter as a whole.
    fn first_and_its_keys(&self) -> Result<Option<(Position, Keys)>, Ended> {
        let mut reader = self.shared.journal.reader(self.position);
        let first = reader.next().map_err(|error| Ended::Lost(Some(self.disk_failed(&error))))?;
        let Some(record) = first else { return Ok(None) };
        if self.learnt.suspects.dead.contains_key(&record.position) {
            return Ok(None);
        }
        self.shared.heartbeat.normalizing(Some(record.position));
        let mut keys = Keys::new();
        if let Ok(callback) = Callback::decode(record.payload) {
            let mut draft = Draft::default();
            self.shared.items(&callback, |items| {
                for item in items {
                    draft.write(item, None, &self.topics);
                    keys.insert((draft.topic, draft.key.clone()));
                }
            });
        }
        self.shared.heartbeat.normalizing(None);
        Ok(Some((record.position, keys)))
    }
}

/// The records under suspicion, in the order of sending: those that a report blames, else all that were
/// rejected.
fn suspects_of(failure: &Failure, sent: &[Sent]) -> Vec<(Sent, Code)> {
    let blames =
        |code: Code| matches!(classify(code), ErrorClass::Record | ErrorClass::RecordIfTwice);
    let any_blamed = failure.reports.iter().any(|(_, code)| blames(*code));
    let mut reports = failure.reports.clone();
    reports.retain(|(_, code)| !any_blamed || blames(*code));
    reports.sort_unstable_by_key(|(number, _)| *number);
    reports.into_iter().filter_map(|(number, code)| Some((*sent.get(number)?, code))).collect()
}
