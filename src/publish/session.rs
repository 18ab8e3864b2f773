//! From one opening to the loss of its client: transaction after transaction. `hunt` finds the record
//! that made one fail.

mod hunt;

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use fail::fail_point;
use rdkafka::types::RDKafkaErrorCode as Code;
use uuid::Uuid;

use super::{
    Shared,
    batch::{Batch, BatchError, ItemId, Rules, Sent, Size, now_ms},
    faults::{Blocked, Fault, Obstacle, whose},
    memory::Memory,
    opening::{Opened, metadata},
    tally::Tally,
    topics::Topics,
    transaction::{Client, Failure, Step, label},
};
use crate::journal::{Checkpoint, Position, Reader};

/// The most that brokers allow by default (`transaction.max.timeout.ms`).
const TRANSACTION_TIMEOUT_MAX: Duration = Duration::from_secs(15 * 60);
/// How long the thread waits at most before it looks around.
const TICK: Duration = Duration::from_millis(100);
/// An idle edge commits its position so often that nothing about it expires.
const IDLE_COMMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How a session ended.
pub(super) enum Ended {
    /// The publisher was asked to stop, and nothing is left open.
    Stopped,
    /// Open again at once: a fork, or other topics.
    Again,
    /// The client is of no use any more; if something is everyone's fault, what.
    Lost(Option<Obstacle>),
}

/// A transaction that was begun and filled, but neither committed nor aborted.
#[derive(Default)]
struct Attempt {
    tally: Tally,
    sent: Vec<Sent>,
    bytes: usize,
    end: Option<(Position, Uuid)>,
    full: bool,
}

pub(super) struct Session<'a> {
    shared: &'a Shared,
    memory: &'a mut Memory,
    client: Client,
    topics: Topics,
    cluster_id: String,
    reader: Reader,
    /// The first position that is not committed.
    position: Position,
    last_receipt: Uuid,
    last_commit: Instant,
    unfinished: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(shared: &'a Shared, memory: &'a mut Memory, opened: Opened) -> Self {
        let Opened { client, topics, cluster_id, position, unfinished } = opened;
        Self {
            shared,
            memory,
            client,
            topics,
            cluster_id,
            reader: shared.journal.reader(position),
            position,
            last_receipt: Uuid::nil(),
            last_commit: Instant::now(),
            unfinished,
        }
    }

    /// Publishes until asked to stop or until the client is lost.
    pub(super) fn run(mut self) -> Ended {
        self.shared.silent_at_most(self.client.longest_call());
        if let Err(error) = self.account() {
            return self.disk_failed(&error);
        }
        let mut next = Instant::now();
        loop {
            self.shared.beat();
            self.client.poll();
            if self.shared.stopping(self.position) {
                return Ended::Stopped;
            }
            if self.shared.journal.fork_requested() || self.topics_changed() {
                return Ended::Again;
            }
            // Behind the last record of an earlier run the next one is where this run begins.
            self.position = self.shared.journal.first_from(self.position);
            let something = self.shared.journal.wait_durable(self.position, TICK);
            if !something && self.last_commit.elapsed() < IDLE_COMMIT {
                self.reader.rest();
                continue;
            }
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let begun = Instant::now();
            match self.transaction() {
                Ok(true) => {}
                Ok(false) => next = begun + self.shared.config.load().kafka.commit_interval,
                Err(ended) => return ended,
            }
        }
    }

    fn topics_changed(&self) -> bool {
        self.shared.config.load().topics != *self.topics.names()
    }

    /// Counts what the position found at opening shows as committed and nobody has counted yet:
    /// a commit whose answer was lost, or one of an earlier process.
    fn account(&mut self) -> std::io::Result<()> {
        let journal = &self.shared.journal;
        let known = journal.committed();
        let mut tally = Tally::default();
        if self.shared.first_opening() {
            tally.already_committed(journal.count(known, self.position));
        } else if self.position < known {
            // Kafka does not have them: they would be taken for repetitions of themselves.
            self.memory.window.clear();
        } else if known < self.position {
            let mut reader = journal.reader(known);
            let nothing = BTreeSet::new();
            let rules = Rules {
                topics: &self.topics,
                refused: &self.memory.refused,
                panicked: &self.memory.panicked,
                present_time: false,
                quarantine: &self.shared.quarantine,
                only: Some(&nothing),
            };
            let deadline = Instant::now();
            let mut batch = Batch::new(rules, &mut self.client, &mut self.memory.window, deadline);
            let read = batch.fill(&mut reader, Size::ALL, self.position, self.shared);
            tally = batch.tally;
            if let Err(BatchError::Disk(error)) = read {
                return Err(error);
            }
        }
        self.memory.window.commit();
        tally.count(&self.shared.metrics, now_ms());
        journal.opened_by_publisher(self.position);
        Ok(())
    }

    /// One transaction, to its commit or to what follows from its failure. Returns whether the
    /// next one shall go at once: this one was full, or its failure is mended.
    fn transaction(&mut self) -> Result<bool, Ended> {
        fail_point!("transaction");
        let begun = Instant::now();
        let size = if self.unfinished { Size::TWICE } else { self.memory.sizing.size };
        let (attempt, filled) = self.attempt(size, None);
        let end = attempt.end.unwrap_or((self.position, self.last_receipt));
        let ready = filled.and_then(|()| Ok(self.ready(end, self.deadline(begun))?));
        if self.unfinished && ready.is_ok() {
            return Err(self.finish());
        }
        let committed = ready.and_then(|()| Ok(self.client.commit()?));
        match committed {
            Ok(()) => {
                let full = attempt.full;
                self.committed(attempt, end, begun);
                Ok(full)
            }
            Err(BatchError::Disk(error)) => Err(self.disk_failed(&error)),
            Err(BatchError::Kafka(failure)) => {
                let failure = self.client.explain(failure);
                self.recover(&failure, &attempt).map(|()| true)
            }
        }
    }

    /// When a transaction has to be filled and reported: the rest of its time is for the commit.
    fn deadline(&self, begun: Instant) -> Instant {
        begun + self.client.timeout() * 2 / 3
    }

    /// Begins a transaction and fills it, or only with some of its records.
    fn attempt(
        &mut self,
        size: Size,
        only: Option<&BTreeSet<ItemId>>,
    ) -> (Attempt, Result<(), BatchError>) {
        let deadline = self.deadline(Instant::now());
        if let Err(failure) = self.client.begin() {
            return (Attempt::default(), Err(failure.into()));
        }
        let rules = Rules {
            topics: &self.topics,
            refused: &self.memory.refused,
            panicked: &self.memory.panicked,
            present_time: self.memory.present_time,
            quarantine: &self.shared.quarantine,
            only,
        };
        let mut batch = Batch::new(rules, &mut self.client, &mut self.memory.window, deadline);
        let last = only.and_then(BTreeSet::last);
        let until = last.map_or(Position::MAX, |id| id.position.next());
        let filled = batch.fill(&mut self.reader, size, until, self.shared);
        let Batch { tally, sent, bytes, end, .. } = batch;
        let full = matches!(filled, Ok(true));
        (Attempt { tally, sent, bytes, end, full }, filled.map(drop))
    }

    /// Ends what Kafka has left open. Its records lie in their partitions, and a commit would make
    /// them visible beside their repetition; but this transaction has the same callbacks in it, so it
    /// is in all the same partitions, and its abort ends both.
    fn finish(&mut self) -> Ended {
        // Where Kafka keeps no position the checkpoint counts: it must not lie behind what is aborted.
        let Shared { journal, .. } = self.shared;
        journal.settle(self.checkpoint((self.position, Uuid::nil())));
        if let Err(error) = journal.write_checkpoint() {
            return self.disk_failed(&error);
        }
        self.forget_attempt();
        match self.abort() {
            Ok(()) => Ended::Again,
            Err(ended) => ended,
        }
    }

    fn checkpoint(&self, (position, receipt): (Position, Uuid)) -> Checkpoint {
        let (run_id, cluster_id) = (self.run_id(position), self.cluster_id.clone());
        Checkpoint { position, run_id, receipt, cluster_id }
    }

    /// The position travels while the records do; when all are reported, both can be committed.
    fn ready(&mut self, end: (Position, Uuid), deadline: Instant) -> Result<(), Failure> {
        let (position, receipt) = end;
        let metadata = metadata(self.run_id(position), receipt);
        self.shared.beat();
        let sent = self.client.send_position(position.as_u64() as i64, &metadata);
        // A record that was refused meanwhile puts the client into a state that takes no position;
        // the record's own report says more.
        if sent.as_ref().is_err_and(|failure| failure.code != Code::State) {
            return sent;
        }
        self.shared.beat();
        self.client.settle(deadline)?;
        self.shared.beat();
        sent
    }

    fn run_id(&self, position: Position) -> Uuid {
        // A run that is not on record any more can only be an idle edge's, of long ago.
        self.shared.journal.run_id(position.run()).unwrap_or_default()
    }

    fn committed(
        &mut self,
        attempt: Attempt,
        (position, receipt): (Position, Uuid),
        begun: Instant,
    ) {
        if self.shared.abandoned() {
            return;
        }
        let Shared { metrics, journal, .. } = self.shared;
        journal.settle(self.checkpoint((position, receipt)));
        metrics.transactions_total.with_label_values(&["committed"]).inc();
        metrics.transaction_seconds.observe(begun.elapsed().as_secs_f64());
        metrics.transaction_records.observe(attempt.sent.len() as f64);
        metrics.last_publish_timestamp_seconds.set(crate::metrics::Metrics::now_seconds());
        attempt.tally.count(metrics, now_ms());
        self.shared.unblock();

        // Twice as much would have its time, too.
        let well_within_time = Instant::now() < begun + self.client.timeout() / 3;
        let memory = &mut *self.memory;
        memory.window.commit();
        memory.sizing.grow(well_within_time);
        memory.present_time = false;
        memory.refused.retain(|id, _| id.position >= position);
        memory.damaged.retain(|id| id.position >= position);
        memory.panicked.retain(|panicked| *panicked >= position);
        for sent in &attempt.sent {
            if !memory.in_a_row.is_empty() {
                memory.in_a_row.retain(|(topic, _), _| *topic != sent.topic);
            }
        }
        self.last_commit = Instant::now();
        self.last_receipt = receipt;
        self.position = position;
    }

    /// The one way back from an error: abort and go on from the committed position, or, where that
    /// cannot be, leave the client behind: the next opening finds out what was committed.
    fn recover(&mut self, failure: &Failure, attempt: &Attempt) -> Result<(), Ended> {
        let Attempt { sent, bytes, .. } = attempt;
        let fault = failure.fault();
        self.shared.metrics.publish_errors_total.with_label_values(&[&label(failure.code)]).inc();
        tracing::warn!(step = ?failure.step, code = ?failure.code, ?fault, records = sent.len(),
            "a transaction failed");
        self.forget_attempt();
        if failure.step == Step::Commit || failure.step == Step::Begin {
            return Err(self.lost(everyones(failure)));
        }
        match fault {
            Fault::Record | Fault::RecordIfTwice | Fault::Neighbour => {
                self.abort()?;
                self.hunt(failure, sent)
            }
            Fault::Clock if !self.memory.present_time => {
                self.memory.present_time = true;
                self.abort()
            }
            Fault::Clock => Err(self.lost(Some(obstacle(Blocked::Clock, failure)))),
            Fault::Time => Err(self.shrink(failure, Size { records: sent.len(), bytes: *bytes })),
            Fault::Purged | Fault::Client => Err(self.lost(everyones(failure))),
            Fault::Everyone(blocked) => {
                self.memory.sizing.size = Size::SINGLE;
                let obstacle = obstacle(blocked, failure);
                // Before the abort, which takes its time where no broker answers.
                self.shared.block(&obstacle);
                // As long as it is open it holds readers, and the next client may be far.
                drop(self.abort());
                Err(Ended::Lost(Some(obstacle)))
            }
        }
    }

    /// What the failed try had taken is read again from the committed position.
    fn forget_attempt(&mut self) {
        self.memory.window.abort();
        self.reader = self.shared.journal.reader(self.position);
    }

    fn abort(&mut self) -> Result<(), Ended> {
        self.shared.beat();
        match self.client.abort() {
            Ok(()) => {
                self.shared.metrics.transactions_total.with_label_values(&["aborted"]).inc();
                Ok(())
            }
            Err(code) => {
                tracing::warn!(?code, "a transaction could not be aborted");
                Err(self.lost(None))
            }
        }
    }

    fn lost(&self, obstacle: Option<Obstacle>) -> Ended {
        self.shared.metrics.transactions_total.with_label_values(&["lost"]).inc();
        let trouble = self.client.context().take_trouble();
        let seen = trouble.map(|blocked| Obstacle::new(blocked, "the connection failed"));
        Ended::Lost(obstacle.or(seen))
    }

    fn disk_failed(&self, error: &std::io::Error) -> Ended {
        self.shared.metrics.journal_errors_total.with_label_values(&["read"]).inc();
        tracing::error!(%error, "the journal cannot be read, or the quarantine not be written");
        Ended::Lost(Some(Obstacle::new(Blocked::KafkaError, error.to_string())))
    }

    /// Time ran out: less at once. A callback that does not fit alone gets a client with more time.
    /// Requests are still on their way, so it is another client in any case.
    fn shrink(&mut self, failure: &Failure, attempted: Size) -> Ended {
        if let Some(blocked) = self.client.context().take_trouble() {
            return self.lost(Some(obstacle(blocked, failure)));
        }
        if self.memory.sizing.size == Size::SINGLE {
            let longer = self.memory.transaction_timeout * 2;
            self.memory.transaction_timeout = longer.min(TRANSACTION_TIMEOUT_MAX);
            return self.lost(Some(obstacle(Blocked::TooSlow, failure)));
        }
        self.memory.sizing.shrink(attempted);
        self.lost(None)
    }
}

fn obstacle(blocked: Blocked, failure: &Failure) -> Obstacle {
    Obstacle::new(blocked, label(failure.code))
}

/// What a failure that costs the client says beyond that.
fn everyones(failure: &Failure) -> Option<Obstacle> {
    match whose(failure.code) {
        Fault::Everyone(blocked) => Some(obstacle(blocked, failure)),
        _ => None,
    }
}
