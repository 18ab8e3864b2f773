//! What callers, the writer and the keeper share: the watermarks, and what follows from them.
//!
//! Locks are taken in this order: `persist` or the spares' `making`, `identity`, `watermarks`, then the
//! spares' `files`. The queue's is taken alone. Only `persist`, `making`, `history` and, in a fork,
//! `identity` are held during file I/O.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;

use super::{
    Checkpoint, Identity, Journal, OpenError, Options, Position,
    disk::DiskFile,
    fork::{self, Forked},
    identity::Runs,
    index::Index,
    io_at,
    lock::Claim,
    queue::Queue,
    recovery::{self, History, MissingRecords, Survey},
    sealed,
    segment::{self, HEADER_BYTES},
    spares::Spares,
};
use crate::{clock, metrics::Metrics, mutant};

/// Offsets of a full segment at which reading can begin.
const MARKS_IN_SEGMENT: u64 = 256;

/// How far the journal is on disk and in Kafka.
#[derive(Debug)]
pub(super) struct Watermarks {
    /// What is durable.
    pub(super) index: Index,
    pub(super) committed: Position,
    /// The position before the last transaction. A broker that is killed may still forget its commit.
    confirmed: Position,
    /// A newer checkpoint that is not on disk yet.
    moved: Option<Checkpoint>,
    /// As it is on disk, or as a fork made it.
    pub(super) checkpoint: Option<Checkpoint>,
    publisher_has_opened: bool,
}

impl Watermarks {
    /// Durable records that are not committed.
    pub(super) fn pending(&self) -> u64 {
        self.index.count(self.committed, self.index.end)
    }

    /// Records before this position may be recycled; if room is short, those of the last transaction
    /// too.
    fn recyclable(&self, is_short: bool) -> Option<Position> {
        let checkpoint = self.checkpoint.as_ref().filter(|_| self.publisher_has_opened)?;
        Some(checkpoint.position.min(if is_short { self.committed } else { self.confirmed }))
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) metrics: Arc<Metrics>,
    pub(super) claim: Claim,
    persist: Mutex<()>,
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
    history: Mutex<History>,
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
        let identity = match Identity::read_and_mend(journal)? {
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
        let survey = Survey::make(journal, options.segment_bytes / MARKS_IN_SEGMENT);
        let mut survey = survey.inspect_err(|_| {
            // Nothing has changed: a start that is refused over and over takes no runs.
            journal.disk.remove(&Runs::path(journal.path, run)).ok();
        })?;
        survey.add_runs(&mut runs);
        let checkpoint = found.or_else(|| identity.first_checkpoint(&runs));
        let committed = checkpoint.as_ref().map(|found| found.position);
        let missing = MissingRecords::find(&survey, &history, committed);
        recovery::repair(journal, run, &mut survey, &missing, &metrics).map_err(at())?;
        let needed = survey.bases().chain(committed).min().map_or(run, Position::run);
        runs.mend(journal, needed).map_err(at())?;
        let spares = Spares::adopt(&options, run, &survey.others).map_err(at())?;

        let start = Position::new(run, 0);
        let found = survey.segments.into_iter().map(|scan| scan.layout).collect();
        let index = Index::new(found, start, options.segment_bytes / MARKS_IN_SEGMENT);
        let committed = committed.unwrap_or_else(|| index.oldest());
        let (bytes, recovered) = (index.bytes, index.count(committed, start));
        metrics.callbacks_recovered_total.inc_by(recovered);
        metrics.journal_capacity_bytes.set(options.max_bytes as i64);
        let watermarks = Watermarks {
            index,
            committed,
            confirmed: committed,
            moved: None,
            checkpoint,
            publisher_has_opened: false,
        };
        let claim = Claim::new(&options, lock, run).map_err(at())?;
        let shared = Self {
            claim,
            queue: Queue::new(start, bytes),
            options,
            metrics,
            persist: Mutex::default(),
            identity: RwLock::new(identity),
            runs,
            set_aside: Mutex::default(),
            committed_moved: watch::Sender::new(committed),
            watermarks: Mutex::new(watermarks),
            durable_moved: Condvar::new(),
            spares,
            failure: watch::Sender::new(None),
            history: Mutex::new(missing.history),
        };
        shared.limit_bytes(&shared.watermarks.lock());
        shared.limit_space();
        shared.refresh_metrics();
        Ok(shared)
    }

    /// Moves the committed watermark either way. Returns how many records are no longer pending,
    /// and how many are pending again.
    fn move_to(&self, watermarks: &mut Watermarks, position: Position) -> (u64, u64) {
        let position = position.min(watermarks.index.end);
        let no_longer = watermarks.index.count(watermarks.committed, position);
        let again = watermarks.index.count(position, watermarks.committed);
        self.metrics.callbacks_recovered_total.inc_by(again);
        watermarks.committed = position;
        watermarks.confirmed = position;
        self.committed_moved.send_replace(position);
        self.limit_bytes(watermarks);
        (no_longer, again)
    }

    pub(super) fn write_checkpoint(&self) -> io::Result<()> {
        let _persist = self.persist.lock();
        let id = self.identity.read().id;
        let Some(checkpoint) = self.watermarks.lock().moved.clone() else { return Ok(()) };
        checkpoint.write(self.options.directory(), id)?;
        let mut watermarks = self.watermarks.lock();
        watermarks.moved.take_if(|moved| *moved == checkpoint);
        watermarks.checkpoint = Some(checkpoint);
        Ok(())
    }

    /// Makes spares of the segments that lie wholly before the checkpoint and before the last transaction.
    /// If room is short, segments of the last transaction are recycled too.
    pub(super) fn recycle(&self) -> io::Result<()> {
        // Held until the files are ready, so that the writer waits for them instead of finding no room.
        let _making = self.spares.making.lock();
        // Without room for another segment, accepting new records comes first.
        let is_short = self.spares.room_bytes() == 0;
        let mut watermarks = self.watermarks.lock();
        let Some(limit) = watermarks.recyclable(is_short) else { return Ok(()) };
        let index = &mut watermarks.index;
        let limit = if mutant::is("recycled too early") { index.end } else { limit };
        let settled: Vec<_> = std::iter::from_fn(|| index.pop_before(limit)).collect();
        drop(watermarks);
        self.spares.recycle(&settled)
    }

    /// Brings the limit of bytes up to date with what is committed.
    fn limit_bytes(&self, watermarks: &Watermarks) {
        let before = watermarks.index.bytes_before(watermarks.committed);
        let limit = before.saturating_add(self.options.max_bytes);
        self.queue.bytes_limit.store(limit, Ordering::Relaxed);
    }

    /// Brings the limit of bytes up to date with what the file system has left.
    pub(super) fn limit_space(&self) {
        let room = self.spares.room_bytes();
        let watermarks = self.watermarks.lock();
        let index = &watermarks.index;
        let is_settled =
            || watermarks.recyclable(true).is_some_and(|limit| index.count(limit, index.end) == 0);
        let segment_bytes = self.options.segment_bytes;
        let left = match index.open().map(|open| open.end) {
            None => 0,
            // The writer recycles the open segment itself.
            Some(end) if room == 0 && end > HEADER_BYTES && is_settled() => {
                segment_bytes - HEADER_BYTES
            }
            Some(end) => segment_bytes.saturating_sub(end),
        };
        let limit = index.bytes.saturating_add(left).saturating_add(room);
        self.queue.space_limit.store(limit, Ordering::Relaxed);
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
        watermarks.confirmed = watermarks.committed;
        watermarks.committed = checkpoint.position;
        self.shared().committed_moved.send_replace(checkpoint.position);
        watermarks.moved = Some(checkpoint);
        self.shared().limit_bytes(&watermarks);
    }

    /// Sets the committed watermark to Kafka's position, which may be earlier, and allows recycling. Call
    /// it each time the publisher has opened.
    ///
    /// Returns how many pending records turn out to be committed. The caller must count them as settled.
    /// Records that become pending again are counted as recovered here.
    pub fn reset_committed(&self, position: Position) -> u64 {
        let mut watermarks = self.shared().watermarks.lock();
        watermarks.publisher_has_opened = true;
        let (found_committed, _) = self.shared().move_to(&mut watermarks, position);
        found_committed
    }

    /// Takes up the request that `journal fork` left, if there is one. The journal then has another id
    /// and label, its runs have other ids, and publishing begins where the request says: all at once, and
    /// durably. Call it while nothing is being published.
    ///
    /// # Errors
    /// When the request cannot be read, or the identity cannot be written. The journal has failed if the
    /// new identity may be on disk.
    pub fn take_fork(&self) -> io::Result<Option<Forked>> {
        let shared = self.shared();
        let journal = shared.options.directory();
        let _persist = shared.persist.lock();
        let request = sealed::read(journal, fork::NAME, fork::KIND, Identity::decode);
        let Some(mut forked) = request.map_err(io::Error::other)? else { return Ok(None) };
        let request = journal.path.join(fork::NAME);
        let mut identity = shared.identity.write();
        if identity.id == forked.id {
            // Taken up already, and the request is still there.
            journal.disk.remove_if_there(&request)?;
            return Ok(None);
        }
        let (oldest, end) = (self.oldest(), self.durable());
        forked.start = forked.start.clamp(oldest, end);
        if let Err(error) = forked.write(journal) {
            // If the new identity may be on disk, the next opening begins where it says. What this process
            // published under the old one would be published again.
            if !Identity::is_written(&identity, journal) {
                shared.fail(format!("the new identity of a fork cannot be written: {error}"));
            }
            return Err(error);
        }
        let mut watermarks = shared.watermarks.lock();
        let (left_out, repeated) = shared.move_to(&mut watermarks, forked.start);
        watermarks.moved = None;
        watermarks.checkpoint = forked.first_checkpoint(&shared.runs);
        *identity = forked;
        drop((watermarks, identity));
        if let Err(error) = journal.disk.remove_if_there(&request) {
            tracing::warn!(%error, "a fork request that was taken up could not be removed");
        }
        Ok(Some(Forked { left_out, repeated }))
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
