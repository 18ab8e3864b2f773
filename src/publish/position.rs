//! The committed position: how Kafka keeps it, and where an opening goes on.
//!
//! Kafka's position is the truth. It is read before the producer is initialised, because that would
//! fence the rightful publisher if this journal is a copy, and again afterwards, when no earlier
//! producer can move it.
//!
//! Then no transaction of this identity is open, unless Kafka has lost its end: a broker that is
//! killed while it ends one may afterwards call it ended without telling the partitions (seen with
//! 4.4: no marker in any partition, `CompleteCommit` in `__transaction_state`). Readers are held
//! and the position has no stable value until [`Start::unfinished`] is handled. If the producer
//! survives, the end of its next transaction is also the end of that one. So an opening looks
//! whether the last transaction that was acknowledged is there.
//!
//! Why Kafka does so: its coordinator takes a partition without a leader for a deleted one
//! (`TransactionMarkerChannelManager`, "these partitions are likely deleted already"). A single
//! broker that is killed and comes back at once has such partitions, until its old session is over.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use uuid::Uuid;

use super::{
    Shared, TICK,
    sizing::{Learnt, Repeat},
};
use crate::{
    clock,
    journal::Position,
    kafka::{
        Blocked, Cluster, Fetched, Found, GroupOffset, Obstacle, Reader as _, Topics, View, Written,
    },
    mutant,
};

const CALL: Duration = Duration::from_secs(10);
/// How long the position's stable value may take, beyond two first answers: no transaction is open.
/// Taking a slow answer for none costs one aborted transaction.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);
/// How long a position that went back is read again before it is believed: brokers before 4.0 show
/// a committed offset a moment later.
const DOUBT: Duration = Duration::from_secs(5);

/// The metadata of the position's offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionMetadata {
    /// The run that the position counts in.
    pub run_id: Uuid,
    /// Of the last callback before the position; nil without one.
    pub receipt: Uuid,
}

impl fmt::Display for PositionMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.run_id, self.receipt)
    }
}

impl FromStr for PositionMetadata {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (run_id, receipt) = text.split_once(' ').unwrap_or((text, ""));
        Ok(Self { run_id: run_id.parse()?, receipt: receipt.parse()? })
    }
}

/// A producer, and where it goes on.
pub(super) struct Opened<P> {
    pub(super) producer: P,
    pub(super) topics: Topics,
    pub(super) cluster_id: String,
    pub(super) start: Start,
}

/// Where publishing goes on.
pub(super) struct Start {
    pub(super) position: Position,
    /// Of the last callback before it, as far as it is known.
    pub(super) receipt: Uuid,
    /// The position did not go back, and Kafka left nothing open.
    pub(super) is_certain: bool,
    /// Kafka left an earlier transaction after this position open.
    pub(super) unfinished: bool,
}

/// Opens a producer and finds where to go on.
///
/// # Errors
/// What stands in the way. Nothing has been changed then.
pub(super) fn open<C: Cluster>(
    shared: &Shared,
    cluster: &C,
    learnt: &mut Learnt,
) -> Result<Opened<C::Producer>, Obstacle> {
    let since = clock::now();
    let Found { cluster_id, topics } = cluster.look(true)?;
    shared.heartbeat.beat_in_kafka();
    let reading =
        Reading { shared, cluster, cluster_id: &cluster_id, topic: &topics.names().position };
    let asked = clock::now();
    reading.judge(reading.read(View::Unstable, CALL)?.as_ref())?;
    let first_answer = clock::now() - asked;
    shared.heartbeat.beat_in_kafka();
    let producer = cluster.open(&topics, learnt.settings)?;
    shared.heartbeat.beat_in_kafka();
    let mut start = reading.start(SETTLES_WITHIN + 2 * first_answer)?;
    if let Some(last) = &learnt.last_commit
        && !mutant::is("acknowledged commit not looked for")
        && !reading.shows(&last.written)?
    {
        tracing::error!(
            repeated = shared.journal.count(last.start, shared.journal.committed()),
            "Kafka has lost a transaction that it had acknowledged: it is published again"
        );
        shared.metrics.position_went_back_total.inc();
        learnt.repeat = Some(Repeat { from: last.start, is_ended: false });
        learnt.last_commit = None;
    }
    if let Some(Repeat { from, is_ended }) = learnt.repeat {
        let (position, unfinished) = (start.position.min(from), start.unfinished || !is_ended);
        start = Start { position, receipt: Uuid::nil(), is_certain: false, unfinished };
    }
    let (run, index) = (start.position.run(), start.position.index());
    let seconds = (clock::now() - since).as_secs_f64();
    tracing::info!(
        run,
        index,
        seconds,
        "a producer is open: publishing goes on from this position"
    );
    Ok(Opened { producer, topics, cluster_id, start })
}

/// Reads and judges the position.
struct Reading<'a, C> {
    shared: &'a Shared,
    cluster: &'a C,
    cluster_id: &'a str,
    topic: &'a str,
}

impl<C: Cluster> Reading<'_, C> {
    fn read(&self, view: View, within: Duration) -> Result<Option<GroupOffset>, Obstacle> {
        let offsets = self.cluster.committed(view, &[(self.topic, 0)], within)?;
        self.shared.heartbeat.beat_in_kafka();
        Ok(offsets.into_iter().next())
    }

    /// The metadata of the position, if this journal may publish after it.
    fn judge(&self, kept: Option<&GroupOffset>) -> Result<Option<PositionMetadata>, Obstacle> {
        let journal = &self.shared.journal;
        if let Some(checkpoint) = journal.checkpoint()
            && !checkpoint.cluster_id.is_empty()
            && checkpoint.cluster_id != self.cluster_id
        {
            let (before, now) = (checkpoint.cluster_id, self.cluster_id);
            let detail = format!(
                "this journal published to cluster {before}, this is {now}: go back, or run `weni-edge \
                 journal fork`"
            );
            return Err(Obstacle::new(Blocked::ClusterChanged, detail));
        }
        let Some(kept) = kept else { return Ok(None) };
        if kept.metadata.is_empty() {
            let detail = "the group's offset was reset by hand: run `weni-edge journal fork`";
            return Err(Obstacle::new(Blocked::PositionReset, detail));
        }
        let metadata: Option<PositionMetadata> = kept.metadata.parse().ok();
        let is_ours = metadata.is_some_and(|metadata| journal.knows_run_id(metadata.run_id));
        if !is_ours && !mutant::is("run id not judged") {
            let detail = "another copy, or a later state, of this journal has published: stop the \
                          wrong one, or run `weni-edge journal fork`";
            return Err(Obstacle::new(Blocked::JournalDiverged, detail));
        }
        Ok(metadata)
    }

    /// Where to go on, now that no other producer can move the position.
    fn start(&self, within: Duration) -> Result<Start, Obstacle> {
        let journal = &self.shared.journal;
        let known = journal.committed();
        let doubted_until = clock::now() + DOUBT;
        loop {
            let (kept, unfinished) = self.stable_or_unfinished(within)?;
            let metadata = self.judge(kept.as_ref())?;
            let receipt = metadata.map_or(Uuid::nil(), |metadata| metadata.receipt);
            let position = kept.map(|kept| Position::from_u64(kept.offset as u64));
            if unfinished {
                tracing::error!("Kafka has not told all partitions the end of a transaction");
                // Without an earlier position that transaction was the first. The checkpoint may
                // lie after it, because Kafka has acknowledged its commit.
                let position = position.unwrap_or(journal.oldest());
                return Ok(Start { position, receipt, is_certain: false, unfinished });
            }
            if position.is_none() && known > journal.oldest() {
                tracing::warn!("Kafka keeps no position: going on from the journal's checkpoint");
            }
            let position = position.unwrap_or(known);
            if position >= known {
                return Ok(Start { position, receipt, is_certain: true, unfinished });
            }
            if clock::now() < doubted_until {
                self.shared.heartbeat.beat_in_kafka();
                clock::sleep(Duration::from_secs(1));
                continue;
            }
            if mutant::is("position that went back not believed") {
                return Ok(Start { position: known, receipt, is_certain: false, unfinished });
            }
            self.shared.metrics.position_went_back_total.inc();
            let repeated = journal.count(position, known);
            tracing::error!(repeated, "Kafka's position went back: callbacks are published again");
            if position < journal.oldest() {
                tracing::error!(
                    "Kafka's position lies before the oldest record: callbacks between them are gone"
                );
            }
            return Ok(Start { position, receipt, is_certain: false, unfinished });
        }
    }

    /// Whether readers see the last record of each partition. Those that were deleted count as seen.
    fn shows(&self, written: &[Written]) -> Result<bool, Obstacle> {
        let mut offsets: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
        for Written { topic, partition, offset } in written {
            let there = self.cluster.watermarks(View::Unstable, topic, *partition)?;
            self.shared.heartbeat.beat_in_kafka();
            if there.contains(offset) {
                offsets.entry(topic).or_default().insert(*partition, *offset);
            }
        }
        for (topic, mut unseen) in offsets {
            let from: Vec<_> =
                unseen.iter().map(|(&partition, &offset)| (partition, offset)).collect();
            let mut reader = self.cluster.read(topic, &from)?;
            let deadline = clock::now() + CALL;
            while let Some((&partition, _)) = unseen.first_key_value() {
                self.shared.heartbeat.beat_in_kafka();
                match reader.poll(partition, TICK)? {
                    Some((partition, fetched)) => {
                        let Some(last) = unseen.remove(&partition) else { continue };
                        if !matches!(fetched, Fetched::Record { offset, .. } if offset == last) {
                            return Ok(false);
                        }
                    }
                    None if clock::now() < deadline => {}
                    None => {
                        let detail = format!("partition {partition} of {topic} cannot be read");
                        return Err(Obstacle::new(Blocked::NoBroker, detail));
                    }
                }
            }
        }
        Ok(true)
    }

    /// The stable position. If brokers answer but give none, the position before the unfinished
    /// transaction.
    fn stable_or_unfinished(
        &self,
        within: Duration,
    ) -> Result<(Option<GroupOffset>, bool), Obstacle> {
        let is_unreadable = |obstacle: &Obstacle| obstacle.blocked == Blocked::PositionUnreadable;
        match self.read(View::Stable, within) {
            Err(obstacle) if is_unreadable(&obstacle) => {}
            stable => return Ok((stable?, false)),
        }
        let before = self.read(View::Unstable, CALL)?;
        if before.is_some() {
            return Ok((before, true));
        }
        // Without a position all that is on disk would be repeated. A broker that was only slow
        // answers now.
        match self.read(View::Stable, CALL) {
            Err(obstacle) if is_unreadable(&obstacle) => {
                Ok((self.read(View::Unstable, CALL)?, true))
            }
            stable => Ok((stable?, false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_as_it_was_written() {
        let metadata = PositionMetadata { run_id: Uuid::from_u128(7), receipt: Uuid::nil() };
        assert_eq!(metadata.to_string().parse(), Ok(metadata));
        for text in ["", "x", "00000000-0000-0000-0000-000000000007"] {
            assert!(text.parse::<PositionMetadata>().is_err(), "{text}");
        }
    }
}
