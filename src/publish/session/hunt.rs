//! The search for the record that Kafka refuses, among those that were refused together.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::{Ended, Session, obstacle};
use crate::publish::{
    batch::{BatchError, Refusal, Sent, Size},
    faults::{Blocked, Fault, Obstacle, whose},
    transaction::Failure,
};

/// So many refusals in a row on one topic with one code are everyone's after all.
const REFUSALS_MAX: usize = 10;

impl Session<'_> {
    /// Searches by halves, narrowed by the reports, for the record that is refused alone.
    pub(super) fn hunt(&mut self, failure: &Failure, sent: &[Sent]) -> Result<(), Ended> {
        let mut suspects: Vec<_> = blamed(failure, sent).map(|(_, sent)| sent).collect();
        while !suspects.is_empty() {
            let half = suspects.len().div_ceil(2);
            let refused = self.probe(&suspects[..half])?;
            match (refused.first(), half) {
                (Some((sent, code)), 1) => return self.refuse(*sent, *code),
                (Some(_), _) => suspects = refused.into_iter().map(|(sent, _)| sent).collect(),
                (None, _) if suspects.len() == 1 => return Err(self.nobody_is_at_fault()),
                (None, _) => drop(suspects.drain(..half)),
            }
        }
        Ok(())
    }

    /// Alone they pass, together they were refused: a limit has changed. The next client learns
    /// it, or, where it may not ask, sends less at once.
    fn nobody_is_at_fault(&mut self) -> Ended {
        self.memory.batch_bytes = (self.memory.batch_bytes / 2).max(1);
        tracing::warn!(
            batch_bytes = self.memory.batch_bytes,
            "Kafka refuses records together that pass alone"
        );
        Ended::Lost(None)
    }

    /// Sends some records of the next transaction alone, and aborts. Returns who was refused.
    fn probe(&mut self, suspects: &[Sent]) -> Result<Vec<(Sent, Code)>, Ended> {
        let only: BTreeSet<_> = suspects.iter().map(|sent| sent.id).collect();
        let size = Size { records: only.len(), bytes: usize::MAX };
        let deadline = self.deadline(Instant::now());
        let (attempt, filled) = self.attempt(size, Some(&only));
        let settled = filled.and_then(|()| self.client.settle(deadline).map_err(BatchError::Kafka));
        self.forget_attempt();
        let failure = match settled {
            Ok(()) => return self.abort().map(|()| Vec::new()),
            Err(BatchError::Disk(error)) => return Err(self.disk_failed(&error)),
            Err(BatchError::Kafka(failure)) => self.client.explain(failure),
        };
        self.abort()?;
        match failure.fault() {
            Fault::Record | Fault::RecordIfTwice | Fault::Neighbour => {
                let codes: BTreeMap<_, _> = failure.reports.iter().copied().collect();
                let refused = blamed(&failure, &attempt.sent);
                Ok(refused.map(|(number, sent)| (sent, codes[&number])).collect())
            }
            // A batch with a record whose time is refused is called invalid as a whole.
            Fault::Clock if !self.memory.present_time => {
                self.memory.present_time = true;
                Err(self.lost(None))
            }
            Fault::Clock => Err(Ended::Lost(Some(obstacle(Blocked::Clock, &failure)))),
            Fault::Everyone(blocked) => Err(Ended::Lost(Some(obstacle(blocked, &failure)))),
            _ => Err(self.lost(None)),
        }
    }

    /// A record was refused alone: the next try carries it as a dead letter.
    fn refuse(&mut self, sent: Sent, code: Code) -> Result<(), Ended> {
        let Sent { id, topic } = sent;
        if whose(code) == Fault::RecordIfTwice && self.memory.damaged.insert(id) {
            return Ok(());
        }
        let row = self.memory.in_a_row.entry((topic, code as i32)).or_default();
        row.push(id);
        if row.len() >= REFUSALS_MAX {
            let row = self.memory.in_a_row.remove(&(topic, code as i32)).unwrap_or_default();
            self.memory.refused.retain(|id, _| !row.contains(id));
            let detail = format!("{} refuses every record: {code}", self.topics.name(topic));
            return Err(Ended::Lost(Some(Obstacle::new(Blocked::TopicRefuses, detail))));
        }
        tracing::error!(topic = self.topics.name(topic), %code, "Kafka refuses one record alone");
        let again = self.memory.refused.contains_key(&id);
        self.memory.refused.insert(id, Refusal { code, dead_letter_too: again });
        Ok(())
    }
}

/// The records that the reports blame, and their numbers: those that are named, else all that were
/// refused with them.
fn blamed<'s>(failure: &'s Failure, sent: &'s [Sent]) -> impl Iterator<Item = (usize, Sent)> + 's {
    let named = |code: Code| matches!(whose(code), Fault::Record | Fault::RecordIfTwice);
    let somebody = failure.reports.iter().any(|(_, code)| named(*code));
    let mut numbers: Vec<_> = failure
        .reports
        .iter()
        .filter(move |(_, code)| !somebody || named(*code))
        .map(|(number, _)| *number)
        .collect();
    numbers.sort_unstable();
    numbers.into_iter().filter_map(|number| Some((number, *sent.get(number)?)))
}
