//! A durable queue of opaque records on local disk: what is appended is synced before the append
//! returns, and is read in order from any position on.
//!
//! ```text
//! lock, journal (identity), runs/<n>, checkpoint, fork (a request)
//! segments/<first position>.segment, segments/spare-*
//! quarantine/ what was found damaged
//! ```
//!
//! Watermarks: `committed ≤ durable ≤ appended`. Committed is what the reader [settles](Journal::settle);
//! segments before it are recycled once the checkpoint is on disk. Memory holds one entry a segment.
//!
//! **Invariant:** the journal knows nothing of Kafka, HTTP or JSON.
//! **Invariant:** after a failed sync nothing is acknowledged any more.

mod checkpoint;
mod files;
pub mod fork;
mod identity;
mod keeper;
mod reader;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use tokio::sync::watch;
use uuid::Uuid;

pub use self::{
    checkpoint::Checkpoint,
    reader::{Reader, Record},
    writer::AppendError,
};
use self::{
    identity::Identity,
    keeper::{Samples, now_ms},
    recovery::{Recovered, Segment},
    writer::Queue,
};
use crate::metrics::Metrics;

const INDEX_BITS: u32 = 40;

/// Names one record for ever: the opening of the journal that wrote it, and its number in that.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// Behind every record.
    pub const MAX: Self = Self(u64::MAX);

    /// Record `index` (below 2^40) of run `run` (below 2^23, so that it is an offset for Kafka).
    pub fn new(run: u32, index: u64) -> Self {
        Self(u64::from(run) << INDEX_BITS | index)
    }

    /// The number of the opening.
    pub fn run(self) -> u32 {
        (self.0 >> INDEX_BITS) as u32
    }

    /// The record's number in its run.
    pub fn index(self) -> u64 {
        self.0 & ((1 << INDEX_BITS) - 1)
    }

    /// `run << 40 | index`.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`as_u64`](Self::as_u64).
    pub fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// The position behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run(), self.index())
    }
}

/// How a journal is opened.
#[derive(Debug, Clone)]
pub struct Options {
    pub directory: PathBuf,
    /// The most that unsettled records may take.
    pub max_bytes: u64,
    /// What of the file system is left free.
    pub min_free_bytes: u64,
    /// Whether appends are synced; without, they survive the process but not the power.
    pub sync: bool,
    pub segment_bytes: u64,
    /// How long an append waits for the disk.
    pub append_timeout: Duration,
    /// Kept from birth, opaque; one line.
    pub label: String,
}

impl Options {
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            max_bytes: 10 << 30,
            min_free_bytes: 0,
            sync: true,
            segment_bytes: 64 << 20,
            append_timeout: Duration::from_secs(10),
            label: String::new(),
        }
    }
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another process has this journal open: pid {holder}")]
    Locked { holder: String },
    #[error(
        "this journal was written by a newer version (format {version}, this one reads {}): use that one",
        segment::VERSION
    )]
    Newer { version: u32 },
    #[error("the directory holds something that is not a journal")]
    NotAJournal,
    #[error("the journal's directory: {0}")]
    Io(#[from] io::Error),
}

/// A journal that is open. Clones are the same one; the last one closes it.
#[derive(Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the journal's threads and readers share.
pub(crate) struct Shared {
    directory: PathBuf,
    metrics: Arc<Metrics>,
    max_bytes: u64,
    min_free_bytes: u64,
    segment_bytes: u64,
    sync: bool,
    append_timeout: Duration,
    disk: Disk,
    /// Kept open: the lock goes with it.
    _lock: File,

    identity: Mutex<Identity>,
    run: u32,
    run_id: Uuid,
    runs: BTreeMap<u32, Uuid>,

    queue: Mutex<Queue>,
    work: Condvar,
    segments: Mutex<VecDeque<Segment>>,
    spares: Mutex<Vec<PathBuf>>,
    /// Bytes of records that are not recycled, and of those admitted.
    used: AtomicU64,
    /// The file system has more than the least free bytes.
    room: AtomicBool,

    durable: AtomicU64,
    /// Held while the watermark moves, so that nobody misses it.
    moving: Mutex<()>,
    moved: Condvar,
    committed: AtomicU64,
    checkpoints: Mutex<Checkpoints>,
    samples: Mutex<Samples>,

    stopping: Mutex<bool>,
    keep: Condvar,
    failed: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct Checkpoints {
    known: Option<Checkpoint>,
    written: Option<Checkpoint>,
    /// The reader has said where it goes on.
    may_recycle: bool,
}

/// Writes and syncs, and where tests make them fail.
#[derive(Default)]
struct Disk {
    #[cfg(test)]
    fault: Mutex<Option<tests::Fault>>,
}

impl Disk {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        tests::Fault::on_write(&self.fault)?;
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        tests::Fault::on_sync(&self.fault)?;
        file.sync_data()
    }
}

impl Journal {
    /// Opens the journal in a directory, or gives birth to one. Blocks while it reads what is there.
    ///
    /// # Errors
    /// [`OpenError`]. Damage is none: it is set aside and reported.
    pub fn open(options: Options, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let directory = &options.directory;
        files::create_directory(&directory.join(recovery::SEGMENTS))?;
        let lock = identity::lock(directory)?;
        if let Some(request) = fork::Request::read(directory)? {
            request.apply(directory)?;
        }
        let identity = match Identity::read(directory)? {
            Some(identity) => identity,
            None => {
                let born = Identity { id: Uuid::new_v4(), label: options.label.clone() };
                born.write(directory)?;
                born
            }
        };
        let checkpoint = Checkpoint::read(directory)?;
        let (scanned, spares) = recovery::scan(directory)?;
        let mut runs = identity::read_runs(directory)?;
        runs.extend(
            scanned.iter().filter_map(recovery::Scanned::header).map(|h| (h.run, h.run_id)),
        );
        if let Some(checkpoint) = checkpoint.as_ref().filter(|kept| !kept.run_id.is_nil()) {
            runs.entry(checkpoint.position.run()).or_insert(checkpoint.run_id);
        }
        // The run is taken before anything is cut: a position is never used twice.
        let run = identity::take_run(directory, &mut runs)?;
        let mut recovered = Recovered { spares, ..Recovered::default() };
        for segment in scanned {
            segment.mend(directory, &mut recovered)?;
        }
        Ok(Self::start(options, metrics, lock, identity, (run, runs), checkpoint, recovered)?)
    }

    fn start(
        options: Options,
        metrics: Arc<Metrics>,
        lock: File,
        identity: Identity,
        (run, runs): (u32, BTreeMap<u32, Uuid>),
        checkpoint: Option<Checkpoint>,
        recovered: Recovered,
    ) -> io::Result<Self> {
        let Options { directory, max_bytes, min_free_bytes, sync, .. } = options;
        let Recovered { segments, spares, corrupt_bytes, quarantined } = recovered;
        metrics.journal_corrupt_bytes_total.inc_by(corrupt_bytes);
        metrics.quarantined_total.with_label_values(&["journal"]).inc_by(quarantined);
        metrics.journal_capacity_bytes.set(max_bytes as i64);
        let durable = Position::new(run, 0);
        let oldest = segments.front().map_or(durable, |first| first.header.base);
        let committed = checkpoint.as_ref().map_or(oldest, |kept| kept.position);
        let mut samples = Samples::default();
        segments
            .iter()
            .for_each(|segment| samples.add(segment.header.base, segment.header.created_ms));
        samples.add(durable, now_ms());
        let used = segments.iter().map(Segment::bytes).sum();
        let shared = Arc::new(Shared {
            directory,
            max_bytes,
            min_free_bytes,
            // So that what is settled never keeps the journal full.
            segment_bytes: options.segment_bytes.min(max_bytes / 8).max(segment::FRAMES_START * 2),
            sync,
            append_timeout: options.append_timeout,
            disk: Disk::default(),
            _lock: lock,
            identity: Mutex::new(identity),
            run,
            run_id: runs.get(&run).copied().unwrap_or_default(),
            runs,
            queue: Mutex::default(),
            work: Condvar::new(),
            segments: Mutex::new(segments),
            spares: Mutex::new(spares),
            used: AtomicU64::new(used),
            room: AtomicBool::new(true),
            durable: AtomicU64::new(durable.as_u64()),
            moving: Mutex::new(()),
            moved: Condvar::new(),
            committed: AtomicU64::new(committed.as_u64()),
            checkpoints: Mutex::new(Checkpoints {
                known: checkpoint.clone(),
                written: checkpoint,
                may_recycle: false,
            }),
            samples: Mutex::new(samples),
            stopping: Mutex::new(false),
            keep: Condvar::new(),
            failed: watch::Sender::new(None),
            metrics,
        });
        shared.metrics.callbacks_recovered_total.inc_by(shared.count(committed, durable));
        shared.look_at_free_space();
        shared.observe();
        let handle = Handle { shared, threads: Mutex::default() };
        handle.spawn("journal", |shared| writer::run(shared, None))?;
        handle.spawn("journal-keeper", keeper::run)?;
        Ok(Self { handle: Arc::new(handle) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// The journal's id: random, born with it.
    pub fn id(&self) -> Uuid {
        self.shared().identity.lock().id
    }

    /// The label that was given at birth, or by the last fork.
    pub fn label(&self) -> String {
        self.shared().identity.lock().label.clone()
    }

    /// The random id of a run.
    pub fn run_id(&self, run: u32) -> Option<Uuid> {
        self.shared().runs.get(&run).copied()
    }

    /// Whether a run with this id was an opening of this journal.
    pub fn knows_run_id(&self, id: Uuid) -> bool {
        self.shared().runs.values().any(|known| *known == id)
    }

    /// Appends what `write` adds to the buffer, `len` bytes, and returns when it is durable. A
    /// caller that goes away does not take the record along. `accepted` is counted for each record
    /// that becomes durable, also when its caller was told otherwise or has gone.
    ///
    /// # Errors
    /// [`AppendError`]; with `Slow` the record may still become durable.
    pub async fn append(
        &self,
        len: usize,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), AppendError> {
        self.shared().append(len, accepted, write).await
    }

    /// The first position that is not durable.
    pub fn durable(&self) -> Position {
        self.shared().durable()
    }

    /// The first position that is not committed.
    pub fn committed(&self) -> Position {
        self.shared().committed()
    }

    /// The oldest record that is left, or the next one if there is none.
    pub fn oldest(&self) -> Position {
        self.first_from(Position::default())
    }

    /// The first record at or behind `position`, or the next one to come.
    pub fn first_from(&self, position: Position) -> Position {
        let found = self.shared().segment_at(position);
        found.map_or(self.durable(), |segment| position.max(segment.header.base))
    }

    /// Durable records that are not committed.
    pub fn pending(&self) -> u64 {
        self.count(self.committed(), self.durable())
    }

    /// Records in [from, to).
    pub fn count(&self, from: Position, to: Position) -> u64 {
        self.shared().count(from, to)
    }

    /// Whether appends are taken: neither closed nor broken.
    pub fn is_open(&self) -> bool {
        !self.shared().queue.lock().is_closed()
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        let shared = self.shared();
        shared.room.load(Ordering::Relaxed)
            && shared.used.load(Ordering::Relaxed) < shared.max_bytes
    }

    /// Waits until something behind `position` is durable; false when it is not within `timeout`.
    pub fn wait_durable(&self, position: Position, timeout: Duration) -> bool {
        let shared = self.shared();
        let mut moving = shared.moving.lock();
        if shared.durable() <= position {
            shared.moved.wait_for(&mut moving, timeout);
        }
        shared.durable() > position
    }

    /// Reads from the first record at or behind `from`.
    pub fn reader(&self, from: Position) -> Reader {
        Reader::new(Arc::clone(self.shared()), from)
    }

    /// What is known as committed.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.shared().checkpoints.lock().known.clone()
    }

    /// Everything before the checkpoint's position is committed. Written within a second, after
    /// which what it settles may be recycled.
    pub fn settle(&self, checkpoint: Checkpoint) {
        let shared = self.shared();
        shared.committed.store(checkpoint.position.as_u64(), Ordering::Release);
        shared.checkpoints.lock().known = Some(checkpoint);
    }

    /// The reader of this run has found where it goes on; from now on segments are recycled. The
    /// watermark may go back: those records are then pending again, and counted as recovered.
    pub fn go_on_from(&self, position: Position) {
        let shared = self.shared();
        let before = shared.committed.swap(position.as_u64(), Ordering::AcqRel);
        let again = shared.count(position, Position::from_u64(before));
        shared.metrics.callbacks_recovered_total.inc_by(again);
        shared.checkpoints.lock().may_recycle = true;
    }

    /// Whether somebody asked for a fork.
    pub fn fork_requested(&self) -> bool {
        fork::Request::is_there(&self.shared().directory)
    }

    /// Takes up a fork that was asked for. Returns it, and how many pending records it leaves out.
    ///
    /// # Errors
    /// When the request cannot be read or made true; it is still there then.
    pub fn take_fork(&self) -> io::Result<Option<(fork::Request, u64)>> {
        let shared = self.shared();
        let Some(request) = fork::Request::read(&shared.directory)? else { return Ok(None) };
        let mut checkpoints = shared.checkpoints.lock();
        let checkpoint = request.apply(&shared.directory)?;
        checkpoints.known = Some(checkpoint.clone());
        checkpoints.written = Some(checkpoint);
        drop(checkpoints);
        *shared.identity.lock() = Identity { id: request.new_id, label: request.label.clone() };
        let left_out = shared.count(shared.committed(), request.from);
        self.go_on_from(request.from);
        Ok(Some((request, left_out)))
    }

    /// Brings the gauges up to date.
    pub fn observe(&self) {
        self.shared().observe();
    }

    /// Resolves when the journal can no longer be trusted, and says why.
    pub async fn failed(&self) -> String {
        let mut failed = self.shared().failed.subscribe();
        // INVARIANT: the sender lives as long as `self`.
        let why = failed.wait_for(Option::is_some).await.expect("the journal");
        why.clone().unwrap_or_default()
    }

    /// Takes nothing any more, writes what is gathered, and the checkpoint.
    pub fn close(&self) {
        self.handle.stop();
        if let Err(error) = self.shared().write_checkpoint() {
            tracing::error!(%error, "the journal's last checkpoint");
        }
    }
}

impl Handle {
    fn spawn(&self, name: &str, run: impl FnOnce(&Shared) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let watched = Arc::clone(&shared);
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&shared)));
            if ended.is_err() {
                watched.break_down("a thread of the journal panicked".to_owned());
            }
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    fn stop(&self) {
        self.shared.close_queue();
        *self.shared.stopping.lock() = true;
        self.shared.keep.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A panic has been reported already.
            thread.join().ok();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn durable(&self) -> Position {
        Position(self.durable.load(Ordering::Acquire))
    }

    fn committed(&self) -> Position {
        Position(self.committed.load(Ordering::Acquire))
    }

    /// Reserves bytes for a record.
    fn admit(&self, bytes: u64) -> bool {
        if !self.room.load(Ordering::Relaxed) {
            return false;
        }
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = used + bytes <= self.max_bytes;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The segment has grown, durably.
    fn advance(&self, grown: &Segment) {
        if let Some(last) = self.segments.lock().back_mut() {
            last.clone_from(grown);
        }
        let moving = self.moving.lock();
        self.durable.store(grown.next.as_u64(), Ordering::Release);
        drop(moving);
        self.moved.notify_all();
    }

    /// The segment with the first record at or behind `position`.
    fn segment_at(&self, position: Position) -> Option<Segment> {
        let segments = self.segments.lock();
        let at = segments.partition_point(|segment| segment.next <= position);
        segments.iter().skip(at).find(|segment| segment.records > 0).cloned()
    }

    fn count(&self, from: Position, to: Position) -> u64 {
        self.segments.lock().iter().map(|segment| segment.count(from, to)).sum()
    }

    fn observe(&self) {
        let committed = self.committed();
        let pending = self.count(committed, self.durable());
        let metrics = &self.metrics;
        metrics.journal_pending_callbacks.set(pending as i64);
        metrics.journal_bytes.set(self.used.load(Ordering::Relaxed) as i64);
        let segments = self.segments.lock().len() + self.spares.lock().len();
        metrics.journal_segments.set(segments as i64);
        let since = self.samples.lock().before(committed).unwrap_or_else(now_ms);
        let age = now_ms().saturating_sub(since) as f64 / 1000.0;
        metrics.journal_oldest_pending_age_seconds.set(if pending > 0 { age } else { 0.0 });
    }
}

/// One opening of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub number: u32,
    pub id: Uuid,
    /// Records of it that are left.
    pub records: u64,
}

/// What a journal holds, as its files say.
#[derive(Debug)]
pub struct Inspection {
    pub id: Uuid,
    pub label: String,
    pub runs: Vec<Run>,
    pub checkpoint: Option<Checkpoint>,
    segments: Vec<Segment>,
}

impl Inspection {
    /// The oldest record that is left, or [`end`](Self::end).
    pub fn oldest(&self) -> Position {
        self.segments.first().map_or(self.end(), |first| first.header.base)
    }

    /// Behind the last record.
    pub fn end(&self) -> Position {
        let committed = self.checkpoint.as_ref().map(|kept| kept.position).unwrap_or_default();
        self.segments.last().map_or(committed, |last| last.next)
    }

    /// What this journal knows as committed: the first position that is not.
    pub fn committed(&self) -> Position {
        self.checkpoint.as_ref().map_or(self.oldest(), |kept| kept.position)
    }

    /// Records in [from, to).
    pub fn count(&self, from: Position, to: Position) -> u64 {
        self.segments.iter().map(|segment| segment.count(from, to)).sum()
    }
}

/// Looks into a journal without opening it; a process that has it open is not disturbed.
///
/// # Errors
/// When there is no journal that can be read.
pub fn inspect(directory: &Path) -> Result<Inspection, OpenError> {
    let Identity { id, label } = Identity::read(directory)?.ok_or(OpenError::NotAJournal)?;
    let checkpoint = Checkpoint::read(directory)?;
    let (scanned, _) = recovery::scan(directory)?;
    let segments: Vec<_> =
        scanned.into_iter().filter_map(recovery::Scanned::into_segment).collect();
    let mut known = identity::read_runs(directory)?;
    known.extend(segments.iter().map(|segment| (segment.header.run, segment.header.run_id)));
    let runs = known.into_iter().map(|(number, id)| {
        let (from, to) = (Position::new(number, 0), Position::new(number + 1, 0));
        let records = segments.iter().map(|segment| segment.count(from, to)).sum();
        Run { number, id, records }
    });
    Ok(Inspection { id, label, runs: runs.collect(), checkpoint, segments })
}
