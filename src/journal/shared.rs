//! What callers, the writer and the keeper share: the watermarks, and what follows from them.
//!
//! Locks are taken in this order: `history` or the spares' `making`, `identity`, `watermarks`, then the
//! spares' `files` or the queue's. Only `history`, `making` and, in a fork, `identity` are held during
//! file I/O.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;

use super::{
    Checkpoint, Identity, Journal, OpenError, Options, Position,
    disk::DiskFile,
    identity::Runs,
    index::Index,
    io_at,
    keeper::Spares,
    place::Claim,
    recovery::{History, MissingRecords, Repair, Survey},
    segment::{self, HEADER_BYTES},
    writer::Queue,
};
use crate::{clock, metrics::Metrics};

/// How far the journal is on disk and in Kafka.
#[derive(Debug)]
pub(super) struct Watermarks {
    /// What is durable.
    pub(super) index: Index,
    pub(super) committed: Position,
    /// The position before the last transaction, of which a broker that is killed may still forget the
    /// commit. None until the publisher has opened.
    confirmed: Option<Position>,
    /// A newer checkpoint that is not on disk yet.
    pub(super) moved: Option<Checkpoint>,
    /// As it is on disk, or as a fork made it.
    pub(super) checkpoint: Option<Checkpoint>,
}

impl Watermarks {
    /// Durable records that are not committed.
    pub(super) fn pending(&self) -> u64 {
        self.index.count(self.committed, self.index.end)
    }

    /// Records before this position may be recycled; if room is short, those of the last transaction
    /// too.
    pub(super) fn recyclable(&self, is_short: bool) -> Option<Position> {
        let (checkpoint, confirmed) = (self.checkpoint.as_ref()?, self.confirmed?);
        Some(checkpoint.position.min(if is_short { self.committed } else { confirmed }))
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) metrics: Arc<Metrics>,
    pub(super) claim: Claim,
    pub(super) identity: RwLock<Identity>,
    pub(super) runs: Runs,
    pub(super) watermarks: Mutex<Watermarks>,
    /// Positions that were settled without a commit, the latest last.
    pub(super) set_aside: Mutex<VecDeque<Position>>,
    /// Sends the committed watermark to callers that wait for it.
    pub(super) committed_moved: watch::Sender<Position>,
    pub(super) queue: Queue,
    /// Notified when the index's end has moved: the durable watermark.
    pub(super) durable_moved: Condvar,
    pub(super) spares: Spares,
    pub(super) failure: watch::Sender<Option<String>>,
    /// Held while the checkpoint, the identity or the history is written.
    pub(super) history: Mutex<History>,
}

impl Shared {
    /// Recovers what is on disk and takes a run.
    pub(super) fn open(
        options: Options,
        metrics: Arc<Metrics>,
        lock: &dyn DiskFile,
    ) -> Result<Self, OpenError> {
        let journal = options.directory();
        let at = || io_at(journal.path);
        journal.disk.create_directory(&segment::directory(journal.path)).map_err(at())?;
        journal.disk.create_directory(&Runs::directory(journal.path)).map_err(at())?;
        let identity = match Identity::read(journal)? {
            Some(identity) => identity,
            None => create_identity(&options).map_err(at())?,
        };
        let mut runs = Runs::read(journal)?;
        let found = Checkpoint::read(journal, identity.id)?;
        let history = History::read(journal)?;
        let segments = journal.disk.list(&segment::directory(journal.path)).map_err(at())?;
        let bases = segments.iter().filter_map(|path| segment::base_of(path));
        let reached = found.as_ref().map_or(identity.start, |found| found.position);
        bases.chain([reached]).for_each(|position| runs.add(position.run(), None));
        let run = runs.take(journal, options.random_uuid())?;
        let survey = Survey::make(journal);
        let mut survey = survey.inspect_err(|_| {
            // Nothing has changed: a start that is refused over and over takes no runs.
            journal.disk.remove(&Runs::path(journal.path, run)).ok();
        })?;
        survey.add_runs(&mut runs);
        let checkpoint = found.or_else(|| identity.first_checkpoint(&runs));
        let committed = checkpoint.as_ref().map(|found| found.position);
        let missing = MissingRecords::find(&survey, &history, committed);
        let repair = Repair { journal, run, metrics: &metrics };
        repair.make(&mut survey, &missing).map_err(at())?;
        let needed = survey.bases().chain(committed).min().map_or(run, Position::run);
        runs.mend(journal, needed).map_err(at())?;

        let start = Position::new(run, 0);
        let found = survey.segments.into_iter().map(|scan| scan.layout).collect();
        let index = Index::new(found, start);
        let committed = committed.unwrap_or_else(|| index.oldest());
        let (bytes, recovered) = (index.bytes, index.count(committed, start));
        metrics.callbacks_recovered_total.inc_by(recovered);
        metrics.journal_capacity_bytes.set(options.max_bytes as i64);
        let watermarks = Watermarks { index, committed, confirmed: None, moved: None, checkpoint };
        let claim = Claim::new(&options, lock, run).map_err(at())?;
        let shared = Self {
            claim,
            queue: Queue::new(start, bytes),
            options,
            metrics,
            identity: RwLock::new(identity),
            runs,
            set_aside: Mutex::default(),
            committed_moved: watch::Sender::new(committed),
            watermarks: Mutex::new(watermarks),
            durable_moved: Condvar::new(),
            spares: Spares::new(run),
            failure: watch::Sender::new(None),
            history: Mutex::new(missing.history),
        };
        // The usable spares of an earlier run are taken over, the others removed.
        let adopted = survey.spares.iter().try_for_each(|path| shared.add_spare(path));
        adopted.map_err(io_at(&shared.options.directory))?;
        shared.set_committed(&mut shared.watermarks.lock(), committed);
        shared.limit_space();
        shared.refresh_metrics();
        Ok(shared)
    }

    /// Moves the committed watermark either way. Returns how many records are no longer pending, and how
    /// many are pending again.
    pub(super) fn move_to(&self, watermarks: &mut Watermarks, position: Position) -> (u64, u64) {
        let position = position.min(watermarks.index.end);
        let no_longer = watermarks.index.count(watermarks.committed, position);
        let again = watermarks.index.count(position, watermarks.committed);
        self.metrics.callbacks_recovered_total.inc_by(again);
        watermarks.confirmed = watermarks.confirmed.and(Some(position));
        self.set_committed(watermarks, position);
        (no_longer, again)
    }

    fn set_committed(&self, watermarks: &mut Watermarks, position: Position) {
        watermarks.committed = position;
        self.committed_moved.send_replace(position);
        let before = watermarks.index.bytes_before(position);
        self.queue.limit_bytes(before.saturating_add(self.options.max_bytes));
    }

    pub(super) fn write_checkpoint(&self) -> io::Result<()> {
        let _writing = self.history.lock();
        let id = self.identity.read().id;
        let Some(checkpoint) = self.watermarks.lock().moved.clone() else { return Ok(()) };
        checkpoint.write(self.options.directory(), id)?;
        let mut watermarks = self.watermarks.lock();
        watermarks.moved.take_if(|moved| *moved == checkpoint);
        watermarks.checkpoint = Some(checkpoint);
        Ok(())
    }

    /// Brings the limit of bytes up to date with what the file system has left.
    pub(super) fn limit_space(&self) {
        let room = self.room_bytes();
        let watermarks = self.watermarks.lock();
        let index = &watermarks.index;
        let is_settled =
            || watermarks.recyclable(true).is_some_and(|limit| index.count(limit, index.end) == 0);
        let segment_bytes = self.options.segment_bytes;
        let open = index.segments.back().filter(|_| index.last_is_open);
        let left = match open.map(|open| open.end) {
            None => 0,
            // The writer recycles the open segment itself.
            Some(end) if room == 0 && end > HEADER_BYTES && is_settled() => {
                segment_bytes - HEADER_BYTES
            }
            Some(end) => segment_bytes.saturating_sub(end),
        };
        let limit = index.bytes.saturating_add(left).saturating_add(room);
        self.queue.limit_space(limit);
    }

    pub(super) fn refresh_metrics(&self) {
        let admitted = self.queue.admitted_bytes();
        let watermarks = self.watermarks.lock();
        let Watermarks { index, committed, .. } = &*watermarks;
        let bytes = admitted.saturating_sub(index.bytes_before(*committed));
        self.metrics.journal_bytes.set(bytes as i64);
        let segments = index.segments.len() + self.spares.len();
        self.metrics.journal_segments.set(segments as i64);
        self.metrics.journal_pending_callbacks.set(watermarks.pending() as i64);
    }

    /// Stops acknowledging for ever, and tells [`Journal::failed`](super::Journal::failed).
    pub(super) fn fail(&self, reason: String) {
        tracing::error!(%reason, "the journal can no longer be trusted");
        self.queue.abandon();
        self.failure.send_replace(Some(reason));
    }
}

impl Journal {
    /// The first position that is not durable yet.
    pub fn durable(&self) -> Position {
        self.shared().watermarks.lock().index.end
    }

    /// Blocks until a record at or after `beyond` is durable. Returns false after `timeout`.
    pub fn wait_durable(&self, beyond: Position, timeout: Duration) -> bool {
        let deadline = clock::now() + timeout;
        let mut watermarks = self.shared().watermarks.lock();
        while watermarks.index.end <= beyond {
            if !clock::wait_until(&self.shared().durable_moved, &mut watermarks, deadline) {
                break;
            }
        }
        watermarks.index.end > beyond
    }

    /// Moves the committed watermark forward; an earlier position is ignored. The keeper writes it to disk
    /// within a second and then recycles segments before the previous watermark.
    pub fn advance_committed(&self, checkpoint: Checkpoint) {
        let mut watermarks = self.shared().watermarks.lock();
        if checkpoint.position < watermarks.committed {
            return;
        }
        watermarks.confirmed = watermarks.confirmed.and(Some(watermarks.committed));
        self.shared().set_committed(&mut watermarks, checkpoint.position);
        watermarks.moved = Some(checkpoint);
    }

    /// Sets the committed watermark to Kafka's position, which may be earlier, and allows recycling. Call
    /// it each time the publisher has opened.
    ///
    /// Returns how many pending records turn out to be committed. The caller must count them as settled.
    /// Records that become pending again are counted as recovered here.
    pub fn reset_committed(&self, position: Position) -> u64 {
        let mut watermarks = self.shared().watermarks.lock();
        watermarks.confirmed = Some(position);
        self.shared().move_to(&mut watermarks, position).0
    }

    /// Writes and syncs the queued records, stops the threads, writes the checkpoint and how far this run
    /// got. Blocks. Later appends get [`AppendError::Failed`](super::AppendError); readers still work.
    pub fn close(&self) {
        let shared = self.shared();
        shared.queue.close();
        #[cfg(any(test, feature = "simulation"))]
        while self.step_writer() {}
        self.handle.join();
        if let Err(error) = shared.write_checkpoint() {
            shared.metrics.journal_errors_total.with_label_values(&["checkpoint"]).inc();
            tracing::error!(%error, "the checkpoint cannot be written; up to a second of callbacks may be published again");
        }
        let durable = self.durable();
        let mut history = shared.history.lock();
        if shared.failure.borrow().is_none() && durable.index() > 0 {
            history.ends.insert(durable.run(), durable);
            if let Err(error) = history.write(shared.options.directory()) {
                tracing::warn!(%error, "the end of this run cannot be written to the journal's history");
            }
        }
    }
}

/// Creates an identity. If the directory already holds segments, their identity is lost.
fn create_identity(options: &Options) -> io::Result<Identity> {
    if !options.disk.list(&segment::directory(&options.directory))?.is_empty() {
        tracing::error!(
            "the journal's identity is lost; it gets another, and publishes from the oldest record that is left"
        );
    }
    let (id, label) = (options.random_uuid(), options.label.clone());
    let identity = Identity { id, label, start: Position::MIN };
    identity.write(options.directory())?;
    Ok(identity)
}
