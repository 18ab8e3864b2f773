//! What callers, the writer and the keeper share, and what they do with it.
//!
//! Locks are taken in this order: `persist` or the spares' `making`, `who`, `committed`, `index`, then
//! `durable` or the queue's. Only `persist`, `making`, `history` and, in a fork, `who` are held during file I/O.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::Thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Checkpoint, OpenError, Options, Position,
    fork::{Forked, Request},
    identity::{Identity, Runs},
    index::Index,
    io_at,
    lock::{Claim, Lock},
    queue::Queue,
    recovery::{self, Found, History, Survey, Verdict},
    segment,
    spares::Spares,
};
use crate::{clock, metrics::Metrics, mutant};

/// Offsets of a full segment at which reading can begin.
const MARKS_IN_SEGMENT: u64 = 256;

/// The journal's identity, its runs, and its checkpoint.
#[derive(Debug)]
pub(super) struct IdentityState {
    pub(super) identity: Identity,
    runs: Runs,
    /// As it is on disk, or as a fork made it.
    pub(super) checkpoint: Option<Checkpoint>,
}

impl IdentityState {
    pub(super) fn run_id(&self, run: u32) -> Option<Uuid> {
        let own = self.runs.own(run).map(|own| self.identity.run_id(own));
        let committed = self.checkpoint.as_ref().filter(|found| found.position.run() == run);
        own.or_else(|| committed.map(|found| found.run_id))
    }

    pub(super) fn knows_run_id(&self, id: Uuid) -> bool {
        let committed = self.checkpoint.as_ref().map(|found| found.run_id);
        committed == Some(id) || self.runs.iter().any(|(_, own)| self.identity.run_id(own) == id)
    }

    /// The checkpoint that a forked identity begins with.
    pub(super) fn forked_checkpoint(identity: &Identity, runs: &Runs) -> Option<Checkpoint> {
        let position = identity.start?;
        let run_id = runs.own(position.run()).map(|own| identity.run_id(own)).unwrap_or_default();
        Some(Checkpoint { position, run_id, receipt: Uuid::nil(), cluster_id: String::new() })
    }
}

/// How far the journal is in Kafka.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) position: Position,
    /// The position before the last transaction. A broker that is killed may still forget its commit.
    confirmed: Position,
    /// A newer checkpoint that is not on disk yet.
    moved: Option<Checkpoint>,
    /// The position of the checkpoint on disk, if there is one.
    persisted: Option<Position>,
    publisher_has_opened: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) metrics: Arc<Metrics>,
    pub(super) run: u32,
    /// The run's id as in its file.
    pub(super) own_run_id: Uuid,
    claim: Claim,
    persist: Mutex<()>,
    pub(super) who: RwLock<IdentityState>,
    pub(super) committed: Mutex<Committed>,
    /// Positions that were settled without a commit, the latest last.
    pub(super) set_aside: Mutex<VecDeque<Position>>,
    /// Sends the committed watermark to callers that wait for it.
    pub(super) committed_moved: watch::Sender<Position>,
    pub(super) index: Mutex<Index>,
    pub(super) queue: Queue,
    durable: Mutex<Position>,
    durable_moved: Condvar,
    pub(super) spares: Spares,
    /// What the active segment has left, in bytes.
    pub(super) active_left_bytes: AtomicU64,
    pub(super) keeper: OnceLock<Thread>,
    pub(super) is_stopping: AtomicBool,
    pub(super) failure: watch::Sender<Option<String>>,
    history: Mutex<History>,
}

impl Shared {
    /// Recovers what is on disk and takes a run.
    pub(super) fn open(
        options: Options,
        metrics: Arc<Metrics>,
        lock: &Lock,
    ) -> Result<Self, OpenError> {
        let journal = options.directory();
        let at = || io_at(journal.path);
        journal.disk.create_directory(&segment::directory(journal.path)).map_err(at())?;
        Runs::create_directory(journal).map_err(at())?;
        let identity = match Identity::read(journal)? {
            Some(identity) => identity,
            None => create_identity(&options).map_err(at())?,
        };
        let mut runs = Runs::read(journal)?;
        let found = Checkpoint::read(journal, identity.id)?;
        let history = History::read(journal)?;
        let bases = segment::bases(journal).map_err(at())?;
        let reached = found.as_ref().map(|found| found.position).or(identity.start);
        bases.into_iter().chain(reached).for_each(|position| runs.add(position.run(), None));
        let run = runs.take(journal, options.random_uuid())?;
        let survey = Survey::make(journal, options.segment_bytes / MARKS_IN_SEGMENT);
        let mut survey = survey.inspect_err(|_| {
            // Nothing has changed: a start that is refused over and over takes no runs.
            journal.disk.remove(&Runs::path(journal.path, run)).ok();
        })?;
        for Found { header, .. } in &survey.segments {
            runs.add(header.base.run(), Some(header.run_id));
        }
        let checkpoint = found.or_else(|| IdentityState::forked_checkpoint(&identity, &runs));
        let committed = checkpoint.as_ref().map(|found| found.position);
        let verdict = Verdict::reach(&survey, &history, committed);
        recovery::repair(journal, run, &mut survey, &verdict, &metrics).map_err(at())?;
        let needed: BTreeSet<_> = survey.bases().chain(committed).map(Position::run).collect();
        runs.mend(journal, needed.first().copied().unwrap_or(run)).map_err(at())?;
        let spares = Spares::adopt(&options, run, &survey.spares).map_err(at())?;

        let start = Position::new(run, 0);
        let mut index = Index::new(start, options.segment_bytes / MARKS_IN_SEGMENT);
        for Found { header, scan } in &survey.segments {
            index.add_scanned(*header, scan);
        }
        let position = committed.unwrap_or_else(|| index.oldest());
        let committed = Committed {
            position,
            confirmed: position,
            moved: None,
            persisted: committed,
            publisher_has_opened: false,
        };
        metrics.callbacks_recovered_total.inc_by(index.count(committed.position, start));
        metrics.journal_capacity_bytes.set(options.max_bytes as i64);
        // INVARIANT: `take` has just added it.
        let own_run_id = runs.own(run).expect("the run that was taken");
        let claim = Claim::new(journal, lock, run).map_err(at())?;
        let shared = Self {
            claim,
            queue: Queue::new(start, index.bytes()),
            options,
            metrics,
            run,
            own_run_id,
            persist: Mutex::default(),
            who: RwLock::new(IdentityState { identity, runs, checkpoint }),
            set_aside: Mutex::default(),
            committed_moved: watch::Sender::new(committed.position),
            committed: Mutex::new(committed),
            index: Mutex::new(index),
            durable: Mutex::new(start),
            durable_moved: Condvar::new(),
            spares,
            active_left_bytes: AtomicU64::new(0),
            keeper: OnceLock::new(),
            is_stopping: AtomicBool::new(false),
            failure: watch::Sender::new(None),
            history: Mutex::new(verdict.history),
        };
        shared.limit_bytes();
        shared.limit_space();
        shared.refresh_metrics();
        Ok(shared)
    }

    pub(super) fn durable(&self) -> Position {
        *self.durable.lock()
    }

    pub(super) fn pending(&self) -> u64 {
        let committed = self.committed.lock();
        let index = self.index.lock();
        index.count(committed.position, index.end())
    }

    /// Records that have just become durable may be read from now on.
    pub(super) fn advance_durable(&self, positions: Range<Position>, bytes: u64) {
        let end = positions.end;
        self.index.lock().extend(positions, bytes);
        *self.durable.lock() = end;
        self.durable_moved.notify_all();
    }

    pub(super) fn wait_durable(&self, beyond: Position, timeout: Duration) -> bool {
        let deadline = clock::now() + timeout;
        let mut durable = self.durable.lock();
        while *durable <= beyond {
            if !clock::wait_until(&self.durable_moved, &mut durable, deadline) {
                break;
            }
        }
        *durable > beyond
    }

    pub(super) fn advance_committed(&self, checkpoint: Checkpoint) {
        let mut committed = self.committed.lock();
        if checkpoint.position < committed.position {
            return;
        }
        committed.confirmed = committed.position;
        committed.position = checkpoint.position;
        self.committed_moved.send_replace(checkpoint.position);
        committed.moved = Some(checkpoint);
        drop(committed);
        self.limit_bytes();
    }

    pub(super) fn reset_committed(&self, position: Position) -> u64 {
        let mut committed = self.committed.lock();
        committed.publisher_has_opened = true;
        let (found_committed, _) = self.move_to(&mut committed, position);
        drop(committed);
        self.limit_bytes();
        found_committed
    }

    /// Moves the committed watermark either way. Returns how many records are no longer pending,
    /// and how many are pending again.
    fn move_to(&self, committed: &mut Committed, position: Position) -> (u64, u64) {
        let index = self.index.lock();
        let position = position.min(index.end());
        let no_longer = index.count(committed.position, position);
        let again = index.count(position, committed.position);
        self.metrics.callbacks_recovered_total.inc_by(again);
        committed.position = position;
        committed.confirmed = position;
        self.committed_moved.send_replace(position);
        (no_longer, again)
    }

    pub(super) fn take_fork(&self) -> io::Result<Option<Forked>> {
        let journal = self.options.directory();
        let _persist = self.persist.lock();
        let Some(request) = Request::read(journal).map_err(io::Error::other)? else {
            return Ok(None);
        };
        let mut who = self.who.write();
        if who.identity.id == request.new_id {
            // Taken up already; only the request could not be removed.
            Request::remove(journal)?;
            return Ok(None);
        }
        let (oldest, end) = {
            let index = self.index.lock();
            (index.oldest(), index.end())
        };
        let from = request.from.clamp(oldest, end);
        let identity = Identity { id: request.new_id, label: request.label, start: Some(from) };
        identity.write(journal)?;
        who.checkpoint = IdentityState::forked_checkpoint(&identity, &who.runs);
        who.identity = identity;
        let mut committed = self.committed.lock();
        let (left_out, repeated) = self.move_to(&mut committed, from);
        committed.moved = None;
        committed.persisted = Some(from);
        drop((committed, who));
        self.limit_bytes();
        if let Err(error) = Request::remove(journal) {
            tracing::warn!(%error, "a fork request that was taken up could not be removed");
        }
        Ok(Some(Forked { from, left_out, repeated }))
    }

    pub(super) fn write_checkpoint(&self) -> io::Result<()> {
        let _persist = self.persist.lock();
        let id = self.who.read().identity.id;
        let Some(checkpoint) = self.committed.lock().moved.clone() else { return Ok(()) };
        checkpoint.write(self.options.directory(), id)?;
        self.who.write().checkpoint = Some(checkpoint.clone());
        let mut committed = self.committed.lock();
        committed.persisted = Some(checkpoint.position);
        committed.moved.take_if(|moved| *moved == checkpoint);
        Ok(())
    }

    /// Makes spares of the segments that lie wholly before the checkpoint and before the last transaction.
    /// If room is short, segments of the last transaction are recycled too.
    pub(super) fn recycle(&self) -> io::Result<()> {
        // Held until the files are ready, so that the writer waits for them instead of finding no room.
        let _making = self.spares.making();
        // Without room for another segment, accepting new records comes first.
        let is_short = self.spares.room_bytes() == 0;
        let mut settled = Vec::new();
        {
            let committed = self.committed.lock();
            let Some(persisted) = committed.persisted.filter(|_| committed.publisher_has_opened)
            else {
                return Ok(());
            };
            let limit =
                persisted.min(if is_short { committed.position } else { committed.confirmed });
            let mut index = self.index.lock();
            let limit = if mutant::is("recycled too early") { index.end() } else { limit };
            settled.extend(std::iter::from_fn(|| index.pop_before(limit)));
        }
        self.spares.recycle(&settled)
    }

    /// Brings the limit of bytes up to date with what is committed.
    fn limit_bytes(&self) {
        let committed = self.committed.lock();
        let index = self.index.lock();
        let limit = index.bytes_before(committed.position).saturating_add(self.options.max_bytes);
        self.queue.bytes_limit.store(limit, Ordering::Relaxed);
    }

    /// Whether all records may be recycled, and the writer has a segment of them to recycle.
    fn is_settled(&self) -> bool {
        let committed = self.committed.lock();
        let index = self.index.lock();
        let persisted = committed.persisted.filter(|_| committed.publisher_has_opened);
        index.is_appended_to()
            && persisted.is_some_and(|persisted| {
                index.count(persisted.min(committed.position), index.end()) == 0
            })
    }

    /// Brings the limit of bytes up to date with what the file system has left.
    pub(super) fn limit_space(&self) {
        let room = self.spares.room_bytes();
        let mut left = self.active_left_bytes.load(Ordering::Relaxed);
        if room == 0 && self.is_settled() {
            // The writer recycles the active segment itself.
            left = left.max(self.options.segment_bytes - segment::HEADER_BYTES);
        }
        let written = self.index.lock().bytes();
        let limit = written.saturating_add(left).saturating_add(room);
        self.queue.space_limit.store(limit, Ordering::Relaxed);
    }

    pub(super) fn refresh_metrics(&self) {
        let admitted = self.queue.admitted_bytes();
        let committed = self.committed.lock();
        let index = self.index.lock();
        let metrics = &self.metrics;
        let bytes = admitted.saturating_sub(index.bytes_before(committed.position));
        metrics.journal_bytes.set(bytes as i64);
        metrics.journal_segments.set((index.len() + self.spares.len()) as i64);
        let pending = index.count(committed.position, index.end());
        metrics.journal_pending_callbacks.set(pending as i64);
    }

    /// Lets the keeper begin its next round at once.
    pub(super) fn wake_keeper(&self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
    }

    /// An error unless this process is the only one that has the journal.
    pub(super) fn check_claim(&self) -> io::Result<()> {
        if mutant::is("a second opening past the lock") {
            return Ok(());
        }
        self.claim.check(&*self.options.disk)
    }

    /// Stops acknowledging for ever, and tells [`Journal::failed`](super::Journal::failed).
    pub(super) fn fail(&self, reason: String) {
        tracing::error!(%reason, "the journal can no longer be trusted");
        self.queue.abandon();
        self.failure.send_replace(Some(reason));
    }

    /// At a clean stop: the checkpoint, and how far this run got.
    pub(super) fn write_last_words(&self) {
        if let Err(error) = self.write_checkpoint() {
            self.metrics.journal_errors_total.with_label_values(&["checkpoint"]).inc();
            tracing::error!(%error, "the checkpoint cannot be written; up to a second of callbacks may be published again");
        }
        let durable = self.durable();
        let mut history = self.history.lock();
        if self.failure.borrow().is_none() && durable.index() > 0 {
            history.ends.insert(self.run, durable);
            if let Err(error) = history.write(self.options.directory()) {
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
    let identity = Identity::born(options);
    identity.write(options.directory())?;
    Ok(identity)
}
