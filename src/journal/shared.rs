//! What callers, the writer and the keeper share, and what they do with it.
//!
//! Locks are taken in this order, and none is held while a file is read or written, but for
//! `persist` and the spares' `making`, which are held for just that: `persist`, `who`, `committed`,
//! `index`, queue; `making` alone.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Checkpoint, OpenError, Options, Position,
    bell::Bell,
    disk,
    fork::{Forked, Request},
    identity::{Identity, Runs},
    index::Index,
    io_at,
    queue::Queue,
    recovery::{self, Found, History, Survey, Verdict},
    segment,
    spares::Spares,
};
use crate::metrics::Metrics;

/// Reading can begin at so many places of a full segment.
const MARKS_IN_SEGMENT: u64 = 256;

/// Who the journal is.
#[derive(Debug)]
pub(super) struct Who {
    pub(super) identity: Identity,
    runs: Runs,
    /// As it is on disk, or as a fork made it.
    pub(super) checkpoint: Option<Checkpoint>,
}

impl Who {
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
    /// Before the last transaction: a broker that is killed may yet forget the end of that one.
    confirmed: Position,
    /// What is to be persisted.
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
    persist: Mutex<()>,
    pub(super) who: RwLock<Who>,
    pub(super) committed: Mutex<Committed>,
    /// Tells whoever waits for it where the committed watermark is.
    pub(super) committed_moved: watch::Sender<Position>,
    pub(super) index: Mutex<Index>,
    pub(super) queue: Queue,
    durable: AtomicU64,
    /// How many threads wait for the durable watermark, so that the writer need not ask.
    waiting: AtomicUsize,
    watermark: Mutex<()>,
    watermark_moved: Condvar,
    pub(super) spares: Spares,
    /// What the active segment has left, in bytes.
    pub(super) active_left_bytes: AtomicU64,
    pub(super) keeper_bell: Bell,
    pub(super) failure: watch::Sender<Option<String>>,
    history: Mutex<History>,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

impl Shared {
    /// Recovers what is on disk and takes a run.
    pub(super) fn open(options: Options, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let journal = options.directory.clone();
        let at = || io_at(&journal);
        disk::create_directory(&segment::directory(&journal)).map_err(at())?;
        Runs::create_directory(&journal).map_err(at())?;
        let identity = match Identity::read(&journal)? {
            Some(identity) => identity,
            None => bear(&options).map_err(at())?,
        };
        let mut runs = Runs::read(&journal)?;
        let found = Checkpoint::read(&journal, identity.id)?;
        let mut survey = Survey::make(&journal, options.segment_bytes / MARKS_IN_SEGMENT)?;
        survey.bases().for_each(|base| runs.add(base.run(), None));
        for Found { header, .. } in &survey.segments {
            runs.add(header.base.run(), Some(header.run_id));
        }
        let checkpoint = found.or_else(|| Who::forked_checkpoint(&identity, &runs));
        let committed = checkpoint.as_ref().map(|found| found.position);
        runs.add(committed.unwrap_or_default().run(), None);
        let verdict = Verdict::reach(&survey, &History::read(&journal)?, committed);

        let run = runs.take(&journal)?;
        recovery::repair(&journal, run, &mut survey, &verdict, &metrics).map_err(at())?;
        let needed: BTreeSet<_> = survey.bases().chain(committed).map(Position::run).collect();
        runs.mend(&journal, needed.first().copied().unwrap_or(run)).map_err(at())?;
        let spares = Spares::adopt(&options, run, &survey.others).map_err(at())?;

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
        let shared = Self {
            queue: Queue::new(start, index.bytes(), options.append_timeout),
            options,
            metrics,
            run,
            own_run_id,
            persist: Mutex::default(),
            who: RwLock::new(Who { identity, runs, checkpoint }),
            committed_moved: watch::Sender::new(committed.position),
            committed: Mutex::new(committed),
            index: Mutex::new(index),
            durable: AtomicU64::new(start.as_u64()),
            waiting: AtomicUsize::new(0),
            watermark: Mutex::default(),
            watermark_moved: Condvar::new(),
            spares,
            active_left_bytes: AtomicU64::new(0),
            keeper_bell: Bell::default(),
            failure: watch::Sender::new(None),
            history: Mutex::new(verdict.history),
            #[cfg(test)]
            faults: super::tests::Faults::default(),
        };
        shared.limit_bytes();
        shared.limit_space();
        shared.refresh_metrics();
        Ok(shared)
    }

    pub(super) fn durable(&self) -> Position {
        Position::from_u64(self.durable.load(Ordering::Acquire))
    }

    pub(super) fn pending(&self) -> u64 {
        let committed = self.committed.lock();
        let index = self.index.lock();
        index.count(committed.position, index.end())
    }

    /// Records that have just become durable may be read from now on.
    pub(super) fn made_durable(&self, positions: Range<Position>, bytes: u64) {
        let end = positions.end;
        self.index.lock().extend(positions, bytes);
        self.durable.store(end.as_u64(), Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            // Whoever counted itself holds the lock until it waits.
            drop(self.watermark.lock());
            self.watermark_moved.notify_all();
        }
    }

    pub(super) fn wait_durable(&self, beyond: Position, timeout: Duration) -> bool {
        if self.durable() > beyond {
            return true;
        }
        let deadline = Instant::now() + timeout;
        let mut guard = self.watermark.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let is_durable = || self.durable.load(Ordering::SeqCst) > beyond.as_u64();
        while !is_durable() {
            if self.watermark_moved.wait_until(&mut guard, deadline).timed_out() {
                break;
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        is_durable()
    }

    pub(super) fn settle(&self, checkpoint: Checkpoint) {
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

    pub(super) fn opened_by_publisher(&self, position: Position) -> u64 {
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
        let journal = &self.options.directory;
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
        who.checkpoint = Who::forked_checkpoint(&identity, &who.runs);
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
        checkpoint.write(&self.options.directory, id)?;
        self.who.write().checkpoint = Some(checkpoint.clone());
        let mut committed = self.committed.lock();
        committed.persisted = Some(checkpoint.position);
        committed.moved.take_if(|moved| *moved == checkpoint);
        Ok(())
    }

    /// Makes spares of the segments that lie wholly before the checkpoint and the last transaction;
    /// of that one's too where room is short.
    pub(super) fn recycle(&self) -> io::Result<()> {
        let mut settled = Vec::new();
        {
            let committed = self.committed.lock();
            let Some(persisted) = committed.persisted.filter(|_| committed.publisher_has_opened)
            else {
                return Ok(());
            };
            // Where there is no room for another segment, accepting comes first.
            let is_short = self.spares.room_bytes() == 0;
            let limit =
                persisted.min(if is_short { committed.position } else { committed.confirmed });
            let mut index = self.index.lock();
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

    /// Brings the limit of bytes up to date with what the file system has left.
    pub(super) fn limit_space(&self) {
        let written = self.index.lock().bytes();
        let left = self.active_left_bytes.load(Ordering::Relaxed);
        let limit = written.saturating_add(left).saturating_add(self.spares.room_bytes());
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

    /// From now on nothing is acknowledged.
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
            if let Err(error) = history.write(&self.options.directory) {
                tracing::warn!(%error, "the journal's end cannot be written down");
            }
        }
    }

    pub(super) fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(error) = self.faults.write.lock().take() {
            file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        file.write_all_at(bytes, offset)
    }

    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        drop(self.faults.hang.lock());
        #[cfg(test)]
        if let Some(error) = self.faults.sync.lock().take() {
            return Err(error);
        }
        file.sync_data()
    }
}

/// Gives a directory its identity. Where records are already, theirs is lost.
fn bear(options: &Options) -> io::Result<Identity> {
    if std::fs::read_dir(segment::directory(&options.directory))?.next().is_some() {
        tracing::error!(
            "the journal's identity is lost; it gets another, and publishes from the oldest record that is left"
        );
    }
    let identity = Identity::born(&options.label);
    identity.write(&options.directory)?;
    Ok(identity)
}
