//! From one opening to the loss of its producer: transaction after transaction. `isolate` finds the
//! record that made one fail.

use std::{
    io,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use fail::fail_point;
use uuid::Uuid;

use super::{
    Shared, TICK,
    account::Attempt,
    position, settled_unpublished,
    sizing::{Learnt, Size},
};
use crate::{
    callback::Callback,
    clock,
    journal::{Checkpoint, Position, Reader},
    kafka::{
        Blocked, Code, ErrorClass, Failure, GroupOffset, Obstacle, Producer, Step, Timestamps,
        Topics, label,
    },
    mutant, quarantine,
};

/// How often an idle edge commits its position, so that the group's offsets do not expire.
const IDLE_COMMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How long brokers may take to complete a transaction after its commit. librdkafka (2.12.1,
/// `rd_kafka_txn_handle_AddPartitionsToTxn`) tries 20 ms later again if the next one begins before that.
const COMPLETION: Duration = Duration::from_millis(5);

/// How a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The publisher was asked to stop, and nothing is left open.
    Stopped,
    /// Open again: the topics have changed, or the unfinished transaction is ended.
    Reopen,
    /// The producer is unusable; what the cause is, if it concerns all records.
    Lost(Option<Obstacle>),
}

pub(super) struct Session<'a, P> {
    pub(super) shared: &'a Shared,
    pub(super) learnt: &'a mut Learnt,
    pub(super) producer: P,
    pub(super) topics: Topics,
    /// None: read again from the position.
    pub(super) reader: Option<Reader>,
    /// The first position that is not committed.
    pub(super) position: Position,
    pub(super) last_receipt: Uuid,
    pub(super) last_commit: Instant,
    pub(super) unfinished: bool,
}

impl<P: Producer> Session<'_, P> {
    /// Publishes until asked to stop or until the producer is lost.
    pub(super) fn run(mut self) -> Ended {
        self.shared.heartbeat.silent_at_most(self.producer.longest_call());
        match self.begin() {
            Ok(()) => self.publish(),
            Err(ended) => ended,
        }
    }

    /// Brings files, account and checkpoint to where Kafka's position says that publishing is.
    fn begin(&mut self) -> Result<(), Ended> {
        let Shared { journal, metrics, .. } = self.shared;
        let removed = match self.unfinished {
            true => Ok(()),
            false => self.remove_uncommitted_files(),
        };
        // Removing them may have waited long for the disk.
        if self.shared.heartbeat.abandoned() {
            return Err(Ended::Stopped);
        }
        // No account has these: the answer to their commit was lost, or an earlier process committed
        // them.
        let found_committed = journal.reset_committed(self.position);
        settled_unpublished(metrics, "already_committed", found_committed);
        let done = if self.unfinished {
            // Without a position in Kafka the checkpoint counts. An abort may delete the position
            // before it, so the checkpoint goes back on disk before anything is sent.
            self.shared.set_back(self.position, &self.topics)
        } else {
            if found_committed > 0 {
                // On disk too: a replay takes only quarantined files before the checkpoint.
                let (position, receipt) = (self.position, self.last_receipt);
                journal.advance_committed(self.shared.checkpoint(position, receipt, &self.topics));
            }
            removed
        };
        done.map_err(|error| Ended::Lost(Some(self.disk_failed(&error))))?;
        if std::mem::take(&mut self.learnt.suspects.first_is_slow)
            && !self.unfinished
            && let Some(first) = self.takes_small_records()?
        {
            self.learnt.suspects.was_too_slow(first);
        }
        Ok(())
    }

    /// Removes the quarantined files of an attempt that was not committed. Its callbacks are still
    /// in the journal and are published again, perhaps without a file.
    fn remove_uncommitted_files(&self) -> io::Result<()> {
        let (journal, files) = (&self.shared.journal, self.shared.quarantine());
        let uncommitted = self.position.max(journal.committed());
        for (position, name) in files.letters()? {
            self.shared.heartbeat.beat();
            // A letter that another journal in this directory left at the same position stays. So does a
            // record that could not be read: it has no receipt to tell whose it is.
            let is_intact = || -> io::Result<bool> {
                let mut reader = journal.reader(position);
                let record = reader.next()?.filter(|record| record.position == position);
                let callback = record.and_then(|record| Callback::decode(record.payload).ok());
                Ok(callback.is_some_and(|callback| quarantine::is_of(&name, callback.receipt)))
            };
            // A publisher that replaced this one may have written it again, and committed it.
            if position >= uncommitted && is_intact()? && !self.shared.heartbeat.abandoned() {
                files.remove(&name)?;
            }
        }
        Ok(())
    }

    fn publish(&mut self) -> Ended {
        let mut next = clock::now();
        loop {
            self.shared.heartbeat.beat();
            // Serves the client's events. No transaction is open, so no record can be refused.
            self.producer.check().ok();
            if self.shared.stopping() {
                return Ended::Stopped;
            }
            if self.shared.config.load().topics != self.topics.names {
                return Ended::Reopen;
            }
            // After the last record of an earlier run, the next record is the first one of this
            // run.
            self.position = self.shared.journal.first_from(self.position);
            let something = self.shared.journal.wait_durable(self.position, TICK);
            if !something && clock::now() < self.last_commit + IDLE_COMMIT {
                self.shared.unblock();
                self.reader.iter_mut().for_each(Reader::rest);
                continue;
            }
            clock::sleep(next.saturating_duration_since(clock::now()));
            let begun = clock::now();
            match self.transaction(begun) {
                Ok(true) => {}
                Ok(false) => next = self.next(begun),
                Err(ended) => return ended,
            }
        }
    }

    /// When the transaction after one that was `begun` then and is committed now begins: soon if callers
    /// wait for Kafka, and never before brokers are likely done with this one.
    fn next(&self, begun: Instant) -> Instant {
        let config = self.shared.config.load();
        let interval = match config.http.wait_for_kafka.is_zero() {
            true => config.kafka.commit_interval,
            false => Duration::ZERO,
        };
        (begun + interval).max(clock::now() + COMPLETION)
    }

    /// One transaction up to its commit or its recovery. Returns whether the next one begins at
    /// once: this one was full, or has failed.
    fn transaction(&mut self, begun: Instant) -> Result<bool, Ended> {
        fail_point!("transaction");
        let (attempt, filled) = self.attempt(None)?;
        let (position, receipt) = attempt.end.unwrap_or((self.position, self.last_receipt));
        let end = self.shared.checkpoint(position, receipt, &self.topics);
        let ready = filled.and_then(|()| {
            if self.unfinished {
                // The position last: it shows the unfinished transaction until all partitions of
                // that one are in this transaction.
                self.producer.await_reports(attempt.deadline)?;
            }
            self.send_position(&end, attempt.deadline)
        });
        if self.unfinished && ready.is_ok() {
            return Err(self.end_unfinished());
        }
        let committed = ready.and_then(|()| {
            // Before the commit: its answer may be lost.
            self.shared.journal.set_aside(&attempt.set_aside);
            self.producer.commit()
        });
        match committed {
            Ok(()) => {
                self.committed(&attempt, end, begun);
                Ok(attempt.full)
            }
            Err(failure)
                if failure.step == Step::Commit && mutant::is("lost answer taken for a commit") =>
            {
                self.committed(&attempt, end, begun);
                Ok(true)
            }
            Err(failure) => self.recover(&failure, &attempt).map(|()| true),
        }
    }

    /// Until when a transaction must be filled and reported. The rest of its time is for the
    /// commit.
    pub(super) fn deadline(&self, begun: Instant) -> Instant {
        begun + self.producer.timeout() * 2 / 3
    }

    /// Ends the transaction that Kafka left open. Its records are still in their partitions, and a
    /// commit would show them beside their repetition. This transaction holds the same callbacks,
    /// so it is in the same partitions, and its abort ends both.
    fn end_unfinished(&mut self) -> Ended {
        self.reader = None;
        // It settles nothing: rejections are found again.
        self.learnt.suspects.rejected.clear();
        self.learnt.suspects.consecutive_rejections.clear();
        if let Err(ended) = self.abort() {
            return ended;
        }
        self.learnt.tries_to_end = 0;
        Ended::Reopen
    }

    /// Sends the position while the records are on their way, and waits until all are reported.
    pub(super) fn send_position(
        &mut self,
        end: &Checkpoint,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let Checkpoint { position, run_id, receipt, .. } = *end;
        let offset = GroupOffset {
            topic: self.topics.names.position.clone(),
            partition: 0,
            offset: position.as_u64() as i64 + i64::from(mutant::is("position off by one")),
            metadata: position::metadata(run_id, receipt),
        };
        self.shared.heartbeat.beat_in_kafka();
        let sent = self.producer.send_offsets(&[offset]);
        // If a record has been rejected in the meantime, librdkafka refuses the offsets with
        // `ERR__STATE`. The record's own report follows.
        if sent.as_ref().is_err_and(|failure| failure.code != Code::State) {
            return sent;
        }
        self.shared.heartbeat.beat_in_kafka();
        self.producer.await_reports(deadline)?;
        // The commit comes next, or the abort.
        self.shared.heartbeat.beat_in_kafka();
        sent
    }

    fn committed(&mut self, attempt: &Attempt, end: Checkpoint, begun: Instant) {
        if self.shared.heartbeat.abandoned() {
            return;
        }
        let Shared { metrics, journal, .. } = self.shared;
        (self.position, self.last_receipt) = (end.position, end.receipt);
        journal.advance_committed(end);
        self.count_transaction("committed");
        metrics.transaction_seconds.observe((clock::now() - begun).as_secs_f64());
        metrics.transaction_records.observe(attempt.sent.len() as f64);
        metrics.last_publish_timestamp_seconds.set(clock::wall_ms() as f64 / 1000.0);
        attempt.count(metrics, &self.topics);
        self.shared.heartbeat.commits.fetch_add(1, Ordering::Relaxed);
        self.shared.unblock();
        self.learnt.committed(self.position, &attempt.sent);
        self.last_commit = clock::now();
    }

    /// After an error: abort and go on from the committed position. Where that is impossible, drop
    /// the producer: the next opening finds out what was committed.
    fn recover(&mut self, failure: &Failure, attempt: &Attempt) -> Result<(), Ended> {
        let class = failure.class();
        self.shared.metrics.publish_errors_total.with_label_values(&[&label(failure.code)]).inc();
        tracing::warn!(step = ?failure.step, code = ?failure.code, fault = ?class,
            records = attempt.sent.len(), "a transaction failed");
        self.reader = None;
        if failure.step == Step::Commit && mutant::is("lost answer taken for an abort") {
            return Ok(());
        }
        if failure.step == Step::Commit || failure.step == Step::Begin {
            return Err(self.lost(failure.shared()));
        }
        match class {
            ErrorClass::Record | ErrorClass::RecordIfTwice | ErrorClass::Neighbour => {
                self.abort()?;
                self.isolate(failure, &attempt.sent)
            }
            ErrorClass::Clock if self.learnt.timestamps == Timestamps::Accepted => {
                self.learnt.timestamps = Timestamps::Present;
                self.abort()
            }
            ErrorClass::Clock => Err(self.lost(Some(Obstacle::of(Blocked::Clock, failure)))),
            ErrorClass::Time => Err(self.too_slow(failure, attempt.size)),
            ErrorClass::Purged | ErrorClass::Client => Err(self.lost(failure.shared())),
            ErrorClass::Shared(blocked) => {
                self.learnt.size = Size::SINGLE;
                Err(self.give_up(Obstacle::of(blocked, failure)))
            }
        }
    }

    pub(super) fn abort(&mut self) -> Result<(), Ended> {
        self.shared.heartbeat.beat_in_kafka();
        if mutant::is("abort forgotten") {
            return Ok(());
        }
        if let Err(code) = self.producer.abort() {
            tracing::warn!(?code, "a transaction could not be aborted: the next producer ends it");
            return Err(self.lost(None));
        }
        self.count_transaction("aborted");
        Ok(())
    }

    pub(super) fn count_transaction(&self, outcome: &str) {
        self.shared.metrics.transactions_total.with_label_values(&[outcome]).inc();
    }

    /// What became of the transaction is not known.
    pub(super) fn lost(&mut self, obstacle: Option<Obstacle>) -> Ended {
        self.count_transaction("lost");
        self.ended(obstacle)
    }

    /// No transaction is open.
    pub(super) fn ended(&mut self, obstacle: Option<Obstacle>) -> Ended {
        Ended::Lost(self.in_detail(obstacle))
    }

    /// The connection's own error is nearer to the cause than the call that failed.
    fn in_detail(&mut self, obstacle: Option<Obstacle>) -> Option<Obstacle> {
        let of_brokers = [Blocked::NoBroker, Blocked::Tls, Blocked::NotAuthorized];
        let obstacle = match (obstacle, self.producer.take_trouble()) {
            (Some(obstacle), _) if !of_brokers.contains(&obstacle.blocked) => Some(obstacle),
            (obstacle, trouble) => trouble.or(obstacle),
        };
        obstacle.map(|obstacle| self.topics.explain(obstacle))
    }

    /// Aborts: an open transaction holds readers, and the next producer may come late.
    pub(super) fn give_up(&mut self, obstacle: Obstacle) -> Ended {
        let obstacle = self.in_detail(Some(obstacle));
        // Before the abort, which takes long where no broker answers.
        obstacle.iter().for_each(|obstacle| self.shared.block(obstacle));
        drop(self.abort());
        Ended::Lost(obstacle)
    }

    pub(super) fn disk_failed(&self, error: &io::Error) -> Obstacle {
        self.shared.metrics.journal_errors_total.with_label_values(&["read"]).inc();
        Obstacle::new(Blocked::Disk, error.to_string())
    }

    /// Time ran out: the next transaction is smaller. A callback that fails alone gets a producer
    /// with more time. The producer is replaced in any case: its requests are still on their way.
    fn too_slow(&mut self, failure: &Failure, attempted: Size) -> Ended {
        if let Some(trouble) = self.producer.take_trouble() {
            return self.lost(Some(trouble));
        }
        // What ends an unfinished transaction has the size of that, and many callbacks: none is to
        // blame alone.
        if self.learnt.size != Size::SINGLE && !self.unfinished {
            self.learnt.shrink(attempted);
            return self.lost(None);
        }
        let longest = !self.learnt.lengthen();
        self.learnt.suspects.first_is_slow = longest && !self.unfinished;
        self.lost(Some(Obstacle::of(Blocked::TooSlow, failure)))
    }
}
