//! The committed position: how Kafka keeps it, and where an opening goes on.
//!
//! Kafka's position is the truth. It is read before the producer is initialised, because that would
//! fence the rightful publisher if this journal is a copy, and again afterwards, when no earlier
//! producer can move it.
//!
//! Then no transaction of this identity is open, unless Kafka has lost its end. A broker that is
//! killed while it ends one may afterwards call it ended without telling the partitions (seen with
//! 4.4: no marker in any partition, `CompleteCommit` in `__transaction_state`). The coordinator
//! takes partitions without a leader for deleted ones (`TransactionMarkerChannelManager`), and those
//! of a single broker have no leader when it comes back before its last session is over. Readers are
//! held and the position has no stable value until [`Start::unfinished`] is handled.
//!
//! Kafka may have acknowledged such a transaction, and the end of the next one is its end too. So an
//! opening that finds the position behind what was acknowledged, and held by a transaction,
//! publishes that transaction again.

use std::time::Duration;

use uuid::Uuid;

use super::{Shared, session::Session, sizing::Learnt};
use crate::{
    clock,
    journal::Position,
    kafka::{Blocked, Cluster, GroupOffset, Obstacle, Topics, View},
    mutant,
};

const CALL: Duration = Duration::from_secs(10);
/// How long the position's stable value may take, beyond two first answers: no transaction is open.
/// Taking a slow answer for none costs one aborted transaction.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);
/// A callback that is too slow may be in it, and then no try succeeds.
const TRIES_TO_END: u32 = 3;
/// How long a position that went back is read again before it is believed: brokers before 4.0 show
/// a committed offset a moment later.
const DOUBT: Duration = Duration::from_secs(5);

/// The metadata of the position's offset: the id of the run that the position counts in, and the receipt of
/// the last callback before it, nil without one.
pub(super) fn metadata(run_id: Uuid, receipt: Uuid) -> String {
    format!("{run_id} {receipt}")
}

fn read_metadata(text: &str) -> Option<(Uuid, Uuid)> {
    let (run_id, receipt) = text.split_once(' ')?;
    Some((run_id.parse().ok()?, receipt.parse().ok()?))
}

/// Where publishing goes on.
pub(super) struct Start {
    pub(super) position: Position,
    /// Of the last callback before it, as far as it is known.
    pub(super) last_receipt: Uuid,
    /// Kafka left an earlier transaction after this position open.
    pub(super) unfinished: bool,
}

/// Opens a producer and finds where to go on. If something stands in the way, nothing has been changed.
pub(super) fn open<'a, C: Cluster>(
    shared: &'a Shared,
    cluster: &C,
    learnt: &'a mut Learnt,
) -> Result<Session<'a, C::Producer>, Obstacle> {
    let since = clock::now();
    let topics = cluster.look(true)?;
    if let Some((name, limit)) = topics.too_small() {
        let detail = format!("topic {name} takes no event: its max.message.bytes is {limit}");
        return Err(Obstacle::new(Blocked::TopicRefuses, detail));
    }
    shared.heartbeat.beat_in_kafka();
    let reading = PositionReading { shared, cluster, topics: &topics };
    let asked = clock::now();
    let before = reading.read(View::Unstable, CALL)?;
    let first_answer = clock::now() - asked;
    reading.judge(before.as_ref())?;
    let is_known = learnt.tries_to_end > 0;
    let untold = !is_known && reading.is_behind(before.as_ref()) && reading.is_untold()?;
    if untold {
        learnt.tries_to_end = TRIES_TO_END;
        reading.go_back(before.as_ref())?;
    }
    let producer = cluster.open(&topics, learnt.settings);
    let producer = producer.map_err(|error| topics.explain(error))?;
    shared.heartbeat.beat_in_kafka();
    let start = reading.start(SETTLES_WITHIN + 2 * first_answer, learnt.tries_to_end > 0)?;
    learnt.tries_to_end = learnt.tries_to_end.saturating_sub(1);
    let Start { position, last_receipt, unfinished } = start;
    let (run, index) = (position.run(), position.index());
    let seconds = (clock::now() - since).as_secs_f64();
    tracing::info!(
        run,
        index,
        seconds,
        "a producer is open: publishing goes on from this position"
    );
    Ok(Session {
        shared,
        learnt,
        producer,
        topics,
        reader: None,
        position,
        last_receipt,
        last_commit: clock::now(),
        unfinished,
    })
}

/// Reads and judges the position.
struct PositionReading<'a, C> {
    shared: &'a Shared,
    cluster: &'a C,
    topics: &'a Topics,
}

impl<C: Cluster> PositionReading<'_, C> {
    fn read(&self, view: View, within: Duration) -> Result<Option<GroupOffset>, Obstacle> {
        let partition = (self.topics.names.position.as_str(), 0);
        let offsets = self.cluster.committed(view, &[partition], within)?;
        // A publisher that was replaced while it waited must not touch what its successor uses.
        if self.shared.heartbeat.abandoned() {
            return Err(Obstacle::new(Blocked::KafkaError, "this publisher was replaced"));
        }
        self.shared.heartbeat.beat_in_kafka();
        Ok(offsets.into_iter().next())
    }

    /// The position that no open transaction holds. None: brokers answer, and do not tell it.
    fn stable(&self, within: Duration) -> Result<Option<Option<GroupOffset>>, Obstacle> {
        match self.read(View::Stable, within) {
            Err(obstacle) if obstacle.blocked == Blocked::PositionUnreadable => Ok(None),
            stable => stable.map(Some),
        }
    }

    /// The receipt before the position, nil without one, if this journal may publish after it.
    fn judge(&self, kept: Option<&GroupOffset>) -> Result<Uuid, Obstacle> {
        let journal = &self.shared.journal;
        if let Some(checkpoint) = journal.checkpoint()
            && !checkpoint.cluster_id.is_empty()
            && checkpoint.cluster_id != self.topics.cluster_id
        {
            let (before, now) = (checkpoint.cluster_id, &self.topics.cluster_id);
            let detail = format!(
                "this journal published to cluster {before}, this is {now}: go back, or run `weni-edge \
                 journal fork`"
            );
            return Err(Obstacle::new(Blocked::ClusterChanged, detail));
        }
        let Some(kept) = kept else { return Ok(Uuid::nil()) };
        if kept.metadata.is_empty() {
            let detail = "the group's offset was reset by hand: run `weni-edge journal fork`";
            return Err(Obstacle::new(Blocked::PositionReset, detail));
        }
        let metadata = read_metadata(&kept.metadata);
        let is_ours = metadata.is_some_and(|(run_id, _)| journal.knows_run_id(run_id));
        if !is_ours && !mutant::is("run id not judged") {
            let detail = "another copy, or a later state, of this journal has published: stop the \
                          wrong one, or run `weni-edge journal fork`";
            return Err(Obstacle::new(Blocked::JournalDiverged, detail));
        }
        Ok(metadata.map_or(Uuid::nil(), |(_, receipt)| receipt))
    }

    fn position(&self, kept: Option<&GroupOffset>) -> Position {
        kept.map_or(self.shared.journal.oldest(), position_of)
    }

    /// Whether the position lies before what Kafka has acknowledged.
    fn is_behind(&self, kept: Option<&GroupOffset>) -> bool {
        self.position(kept) < self.shared.journal.committed()
    }

    /// Whether a transaction still holds the position behind what Kafka has acknowledged, although
    /// its end is long due.
    fn is_untold(&self) -> Result<bool, Obstacle> {
        if self.stable(DOUBT)?.is_some() {
            return Ok(false);
        }
        let still = self.read(View::Unstable, CALL)?;
        Ok(self.is_behind(still.as_ref()) && !mutant::is("acknowledged commit not looked for"))
    }

    /// The next producer's first act may delete the position, and then the checkpoint counts.
    fn go_back(&self, kept: Option<&GroupOffset>) -> Result<(), Obstacle> {
        let (journal, position) = (&self.shared.journal, self.position(kept));
        let repeated = journal.count(position, journal.committed());
        tracing::error!(
            repeated,
            "Kafka has lost callbacks that it had acknowledged: they are published again"
        );
        journal.reset_committed(position);
        self.shared.set_back(position, self.topics).map_err(|error| {
            let detail = format!("the checkpoint cannot be written: {error}");
            Obstacle::new(Blocked::Disk, detail)
        })
    }

    /// Where to go on, now that no other producer can move the position.
    fn start(&self, within: Duration, untold: bool) -> Result<Start, Obstacle> {
        let journal = &self.shared.journal;
        let known = journal.committed();
        let doubted_until = clock::now() + DOUBT;
        loop {
            let (kept, unfinished) = self.stable_or_unfinished(within)?;
            let last_receipt = self.judge(kept.as_ref())?;
            let position = kept.as_ref().map(position_of);
            let unfinished = unfinished || untold;
            if unfinished {
                tracing::error!("Kafka has not told all partitions the end of a transaction");
                // Without an earlier position that transaction was the first. The checkpoint may
                // lie after it, because Kafka has acknowledged its commit.
                let first = if untold { known } else { journal.oldest() };
                let position = position.unwrap_or(first);
                return Ok(Start { position, last_receipt, unfinished });
            }
            if position.is_none() && known > journal.oldest() {
                tracing::warn!("Kafka keeps no position: going on from the journal's checkpoint");
            }
            let position = position.unwrap_or(known);
            if position >= known {
                return Ok(Start { position, last_receipt, unfinished });
            }
            if clock::now() < doubted_until {
                self.shared.heartbeat.beat_in_kafka();
                clock::sleep(Duration::from_secs(1));
                continue;
            }
            if mutant::is("position that went back not believed") {
                return Ok(Start { position: known, last_receipt, unfinished });
            }
            self.shared.metrics.position_went_back_total.inc();
            let repeated = journal.count(position, known);
            tracing::error!(repeated, "Kafka's position went back: callbacks are published again");
            if position < journal.oldest() {
                tracing::error!(
                    "Kafka's position lies before the oldest record: callbacks between them are gone"
                );
            }
            return Ok(Start { position, last_receipt, unfinished });
        }
    }

    /// The stable position. If brokers answer but give none, the position before the unfinished
    /// transaction.
    fn stable_or_unfinished(
        &self,
        within: Duration,
    ) -> Result<(Option<GroupOffset>, bool), Obstacle> {
        // Without a position all that is on disk would be repeated. A broker that was only slow answers
        // the second time.
        for within in [within, CALL] {
            if let Some(stable) = self.stable(within)? {
                return Ok((stable, false));
            }
            let before = self.read(View::Unstable, CALL)?;
            if before.is_some() {
                return Ok((before, true));
            }
        }
        Ok((None, true))
    }
}

fn position_of(kept: &GroupOffset) -> Position {
    Position::from_u64(kept.offset as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_as_it_was_written() {
        let (run_id, receipt) = (Uuid::from_u128(7), Uuid::nil());
        assert_eq!(read_metadata(&metadata(run_id, receipt)), Some((run_id, receipt)));
        for text in ["", "x", "00000000-0000-0000-0000-000000000007"] {
            assert_eq!(read_metadata(text), None, "{text}");
        }
    }
}
