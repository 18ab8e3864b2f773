//! One transaction of a replay: what letters become, and the progress after them.

use std::collections::BTreeSet;

use anyhow::anyhow;

use super::{Ready, Replay, TRANSACTION_TIMEOUT};
use crate::{
    clock,
    kafka::{Cluster, Code, ErrorClass, Failure, GroupOffset, Producer, Step, Timestamps, label},
    mutant,
};

const TRIES: u32 = 5;

impl<C: Cluster> Replay<'_, C> {
    /// Commits these letters: together if Kafka takes them, else by halves, in order, up to the one
    /// that it refuses.
    pub(super) fn publish(&mut self, letters: &[Ready]) -> anyhow::Result<()> {
        if self.producer.is_none() || letters.is_empty() {
            return Ok(());
        }
        let next = self.kept.with(letters);
        let offsets = next.offsets(&self.config.topics)?;
        let Err(failure) = self.try_some_times(letters, &offsets) else {
            self.kept = next;
            self.committed += letters.len();
            return Ok(());
        };
        match failure.class() {
            ErrorClass::Record | ErrorClass::RecordIfTwice | ErrorClass::Neighbour
                if failure.step != Step::Commit =>
            {
                if let [letter] = letters {
                    return Err(self.refused(letter, &failure));
                }
                let (first, second) = letters.split_at(letters.len() / 2);
                self.publish(first)?;
                self.publish(second)
            }
            _ => Err(self.failed(&failure)),
        }
    }

    /// Commits the progress once more: Kafka deletes offsets that were not committed for some time.
    pub(super) fn renew(&mut self) -> anyhow::Result<()> {
        let offsets = self.kept.offsets(&self.config.topics)?;
        self.try_some_times(&[], &offsets).map_err(|failure| self.failed(&failure))
    }

    /// Tries again after failures that may pass.
    fn try_some_times(
        &mut self,
        letters: &[Ready],
        offsets: &[GroupOffset],
    ) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            let Err(failure) = self.transact(letters, offsets) else { return Ok(()) };
            tries += 1;
            match failure.class() {
                // It may be committed.
                _ if failure.step == Step::Commit => return Err(failure),
                ErrorClass::Clock if self.timestamps == Timestamps::Accepted => {
                    self.timestamps = Timestamps::Present;
                }
                // The purge before an abort may also take the next transaction's first records.
                ErrorClass::Purged | ErrorClass::RecordIfTwice if tries < TRIES => {}
                _ => return Err(failure),
            }
        }
    }

    /// Commits, or aborts where it is certain that nothing was committed.
    fn transact(&mut self, letters: &[Ready], offsets: &[GroupOffset]) -> Result<(), Failure> {
        let Some(producer) = &mut self.producer else { return Ok(()) };
        let deadline = clock::now() + TRANSACTION_TIMEOUT / 2;
        producer.begin()?;
        let now_ms = clock::wall_ms();
        let records = letters
            .iter()
            .flat_map(|letter| letter.records.iter().map(|draft| (draft, letter.accepted_ms)));
        let sent = records.enumerate().try_for_each(|(number, (draft, accepted_ms))| {
            let record = draft.record(&self.topics, accepted_ms, self.timestamps, now_ms, number);
            producer.send(&record, deadline)
        });
        // The offsets last: after a refused record they fail with an error that does not name it.
        let sent = sent.and_then(|()| producer.await_reports(deadline)).and_then(|()| {
            match mutant::is("replay's offsets not committed") {
                true => Ok(()),
                false => producer.send_offsets(offsets),
            }
        });
        let Err(failure) = sent else { return producer.commit() };
        if !failure.fatal
            && let Err(code) = producer.abort()
        {
            tracing::warn!(?code, "a transaction could not be aborted: the next replay ends it");
            return Err(Failure::new(Step::Commit, code));
        }
        Err(failure)
    }

    /// What to do about a letter that Kafka refuses.
    fn refused(&self, letter: &Ready, failure: &Failure) -> anyhow::Error {
        let topics: BTreeSet<_> =
            letter.records.iter().map(|draft| self.topics.name(draft.topic)).collect();
        let code = failure.reports.first().map_or(failure.code, |(_, code)| *code);
        anyhow!(
            "Kafka refuses what the letter {} becomes ({}): {code}; mend the topic (such as its \
             max.message.bytes) and run this again, or leave the letter out by --reason, --source, \
             --since or --until",
            letter.origin.name(self.dead_letter()),
            topics.into_iter().collect::<Vec<_>>().join(", "),
        )
    }

    /// What to do about any other failure.
    fn failed(&self, failure: &Failure) -> anyhow::Error {
        let (step, code) = (failure.step, label(failure.code));
        match (failure.class(), failure.code) {
            (
                ErrorClass::Client,
                Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch,
            ) => {
                anyhow!(
                    "another `weni-edge replay` of {} has begun and fenced this one off: let it end",
                    self.dead_letter()
                )
            }
            (ErrorClass::Shared(blocked), _) => anyhow!("{}: {code}", blocked.as_str()),
            _ => anyhow!(
                "a transaction failed ({step:?}: {code}): run this again, it goes on from what is \
                 committed"
            ),
        }
    }
}
