//! The journal: what was accepted is on disk before it is answered, and stays until it is in
//! Kafka. It is the only queue.
//!
//! # Watermarks
//! `committed ≤ durable ≤ appended`. What lies before *durable* survives a power cut
//! and may be read; what lies before *committed* is in Kafka; segments that lie wholly before the
//! checkpoint (the committed position on disk) are recycled.
//!
//! # Directory
//! ```text
//! lock                       held while the journal is open; names the process
//! identity, identity.copy    id, label, start of publishing        (identity.rs)
//! runs/<n>                   one a run, taken exclusively          (identity.rs)
//! checkpoint                 the committed position                (checkpoint.rs)
//! history                    ends of runs, known losses            (recovery.rs)
//! segments/<base>.segment    the records                           (segment.rs)
//! segments/spare-<n>         allocated, for segments to come       (spares.rs)
//! quarantine/                damaged bytes that recovery found     (recovery.rs)
//! fork                       a request for a new identity          (fork.rs)
//! ```
//!
//! A [`Position`] is `run << 40 | index`. A *run* is one opening of the journal, and every run
//! starts a new segment, so a position is never used twice, whatever a crash took from the tail.
//!
//! # Threads
//! Callers of [`Journal::append`] copy their records into a shared buffer; one *writer* thread
//! writes and syncs what has gathered there and wakes them all; one *keeper* thread prepares
//! segments, persists the checkpoint and recycles, so that no append waits for that.
//!
//! **Invariant:** records are opaque bytes here, and the journal knows nothing of Kafka or HTTP.
//! **Invariant:** after a sync that failed nothing is acknowledged any more: a second try can
//! falsely succeed. The process has to end ([`Journal::failed`]).

mod batch;
mod bell;
mod checkpoint;
mod disk;
pub mod fork;
mod identity;
mod index;
mod inspection;
mod keeper;
mod lock;
mod queue;
mod reader;
mod recovery;
mod sealed;
mod segment;
mod shared;
mod spares;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus::IntCounter;
use uuid::Uuid;

use self::{batch::Outcome, keeper::Keeper, lock::Lock, shared::Shared, writer::Writer};
pub use self::{
    checkpoint::Checkpoint,
    inspection::{Inspection, Run, inspect},
    reader::{Reader, Record},
};
use crate::metrics::Metrics;

/// Where a record lies in a journal: the run that appended it, and its number in that run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    const INDEX_BITS: u32 = 40;
    /// Behind every record.
    pub const MAX: Self = Self(u64::MAX);

    /// Record `index` (below 2^40) of run `run`.
    pub const fn new(run: u32, index: u64) -> Self {
        Self((run as u64) << Self::INDEX_BITS | index)
    }

    /// The position that [`as_u64`](Self::as_u64) gave.
    pub const fn from_u64(position: u64) -> Self {
        Self(position)
    }

    /// `run << 40 | index`; fits 63 bits for the first eight million runs.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The opening of the journal that appended the record; the first is 1.
    pub const fn run(self) -> u32 {
        (self.0 >> Self::INDEX_BITS) as u32
    }

    /// The record's number in its run; the first is 0.
    pub const fn index(self) -> u64 {
        self.0 & ((1 << Self::INDEX_BITS) - 1)
    }

    /// The position behind this one in its run.
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    const fn plus(self, records: u64) -> Self {
        Self(self.0 + records)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run(), self.index())
    }
}

/// What an acknowledged record survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Power cuts: it is synced.
    Fsync,
    /// The end of the process: it is in the page cache.
    Os,
}

/// How a journal is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Made if it is not there, for its owner alone.
    pub directory: PathBuf,
    /// The most that uncommitted records may take, in bytes. On disk the journal may take four
    /// segments more.
    pub max_bytes: u64,
    /// Bytes of the file system that are left free.
    pub min_free_bytes: u64,
    pub durability: Durability,
    /// Length of a segment file in bytes, at least 16 KiB; one record larger than that makes its
    /// segment longer.
    pub segment_bytes: u64,
    /// How long an append waits to become durable.
    pub append_timeout: Duration,
    /// What a journal that is born now keeps for ever, or until a fork.
    pub label: String,
    /// When a record was accepted, in milliseconds since 1970, read from its bytes; for the
    /// metric of the oldest one.
    pub accepted_at_ms: fn(&[u8]) -> Option<u64>,
}

impl Options {
    /// The defaults: 10 GiB, 1 GiB left free, synced, segments of 64 MiB, 10 s.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            max_bytes: 10 << 30,
            min_free_bytes: 1 << 30,
            durability: Durability::Fsync,
            segment_bytes: 64 << 20,
            append_timeout: Duration::from_secs(10),
            label: String::new(),
            accepted_at_ms: |_| None,
        }
    }
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the journal in {directory} is in use by {}", match pid {
        Some(pid) => format!("process {pid}"), None => "another process".to_owned()
    }, directory = directory.display())]
    Locked { directory: PathBuf, pid: Option<u32> },
    /// Another process opened it at the same moment, past the lock.
    #[error(
        "another process has just opened the journal as run {run}; locks seem not to work on its file system"
    )]
    RunTaken { run: u32 },
    /// A newer program has written to it.
    #[error(
        "{} has format version {version}; this program reads up to {}: start the newer program again, \
         until nothing is pending, or give this one another journal.directory",
        path.display(), sealed::FORMAT_VERSION
    )]
    Newer { path: PathBuf, version: u32 },
    /// The file system refused.
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Says at which path an I/O error happened.
fn io_at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

/// Why a record was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No room in the journal or on the disk. The record is not stored.
    #[error("the journal is full")]
    Full,
    /// Not durable in time. The record may still become durable, and counts as accepted then.
    #[error("the journal's disk is too slow")]
    Slow,
    /// The journal is closed or can no longer be trusted. The record may be found when it is
    /// opened again, and counts as recovered then.
    #[error("the journal takes no records any more")]
    Failed,
}

/// An open journal. Clones are handles of the same one; when the last is dropped it stops as in
/// a crash, without the courtesies of [`close`](Self::close).
#[derive(Debug, Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Released when the threads have ended.
    _lock: Lock,
}

impl Journal {
    /// Opens a journal, or makes it: recovers what is there, takes a new run, starts the threads.
    /// Blocks, about a second per GiB of backlog.
    ///
    /// # Errors
    /// [`OpenError`]: somebody else has it open, a newer program wrote it, or the disk refuses.
    /// Damage is no error.
    pub fn open(mut options: Options, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        options.segment_bytes = options.segment_bytes.max(2 * segment::HEADER_BYTES);
        let directory = options.directory.clone();
        disk::create_directory(&directory).map_err(io_at(&directory))?;
        let lock = Lock::take(&directory)?;
        let shared = Arc::new(Shared::open(options, metrics)?);
        let handle = Handle { shared: shared.clone(), threads: Mutex::default(), _lock: lock };
        let writer = Writer::new(shared.clone());
        handle.start("journal-writer", move || writer.run()).map_err(io_at(&directory))?;
        let keeper = Keeper::new(shared);
        handle.start("journal-keeper", move || keeper.run()).map_err(io_at(&directory))?;
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Appends a record of `len` bytes, which `write` appends to the buffer it is given, and
    /// returns when it is durable.
    ///
    /// From the first poll on the record outlives the future: dropped or timed out, it is written
    /// all the same. `accepted` is raised by one when the record is durable, by whoever makes it
    /// so: that keeps the account of callbacks right also where nobody waits any more.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn append(
        &self,
        len: usize,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Position, AppendError> {
        let started = Instant::now();
        let shared = self.shared();
        let (position, commit) = shared.queue.push(len, accepted, write)?;
        let outcome = tokio::time::timeout(shared.options.append_timeout, commit.wait()).await;
        match outcome {
            Ok(Outcome::Durable) => {
                shared.metrics.journal_append_seconds.observe(started.elapsed().as_secs_f64());
                Ok(position)
            }
            Ok(Outcome::Full) => Err(AppendError::Full),
            Ok(Outcome::Failed) => Err(AppendError::Failed),
            Err(_elapsed) => Err(AppendError::Slow),
        }
    }

    /// Random, born with the journal; another one after a fork.
    pub fn id(&self) -> Uuid {
        self.shared().who.read().identity.id
    }

    /// What [`Options::label`] was when the journal was born, or what a fork said.
    pub fn label(&self) -> String {
        self.shared().who.read().identity.label.clone()
    }

    /// The run that this opening is.
    pub fn current_run(&self) -> u32 {
        self.shared().run
    }

    /// The id under which positions of a run are committed, as long as it is known: while there
    /// are records of it, and for the last thousand runs.
    pub fn run_id(&self, run: u32) -> Option<Uuid> {
        self.shared().who.read().run_id(run)
    }

    /// Whether this is the id of one of the journal's runs.
    pub fn knows_run_id(&self, id: Uuid) -> bool {
        self.shared().who.read().knows_run_id(id)
    }

    /// The first position that is not durable yet.
    pub fn durable(&self) -> Position {
        self.shared().durable()
    }

    /// The first position that is not committed.
    pub fn committed(&self) -> Position {
        self.shared().committed.lock().position
    }

    /// The oldest record that is left, or [`durable`](Self::durable) if there is none.
    pub fn oldest(&self) -> Position {
        self.shared().index.lock().oldest()
    }

    /// Where reading from `position` on begins: a record at or behind it, or, where there is none
    /// yet, where the next one will be.
    pub fn first_from(&self, position: Position) -> Position {
        let index = self.shared().index.lock();
        index.locate(position).map_or(index.end(), |place| position.max(place.base))
    }

    /// Waits until the record at `position` is committed; false when the time was too short.
    pub async fn wait_committed(&self, position: Position, timeout: Duration) -> bool {
        let mut committed = self.shared().committed_moved.subscribe();
        let is_committed = committed.wait_for(|committed| position < *committed);
        matches!(tokio::time::timeout(timeout, is_committed).await, Ok(Ok(_)))
    }

    /// Whether appends are taken: neither closed nor failed.
    pub fn is_open(&self) -> bool {
        self.shared().queue.is_open()
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        self.shared().queue.has_room()
    }

    /// Durable records that are not committed.
    pub fn pending(&self) -> u64 {
        self.shared().pending()
    }

    /// Durable records in `[from, to)`.
    pub fn count(&self, from: Position, to: Position) -> u64 {
        self.shared().index.lock().count(from, to)
    }

    /// Blocks until a record at or behind `beyond` is durable; false when the time was too short.
    pub fn wait_durable(&self, beyond: Position, timeout: Duration) -> bool {
        self.shared().wait_durable(beyond, timeout)
    }

    /// Reads on from the first record at or behind `from`. It holds no segment back: what is
    /// committed may be recycled before it is read.
    pub fn reader(&self, from: Position) -> Reader {
        Reader::new(self.handle.shared.clone(), from)
    }

    /// The checkpoint on disk; after a fork, where that begins.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.shared().who.read().checkpoint.clone()
    }

    /// Moves the committed watermark on. It is persisted within a second, and then segments
    /// before the watermark that it replaces are recycled. One that lies further back is not taken.
    pub fn settle(&self, checkpoint: Checkpoint) {
        self.shared().settle(checkpoint);
    }

    /// Sets the committed watermark to what Kafka says, also back, and allows recycling. To be
    /// called whenever the publisher has opened.
    ///
    /// Returns how many records this finds committed that were pending; the account of callbacks
    /// holds only if the caller counts them as settled. Those that become pending again are
    /// counted as recovered here.
    pub fn opened_by_publisher(&self, committed: Position) -> u64 {
        self.shared().opened_by_publisher(committed)
    }

    /// Whether `journal fork` left a request.
    pub fn fork_requested(&self) -> bool {
        fork::Request::is_pending(&self.shared().options.directory)
    }

    /// Takes up the request that `journal fork` left, if there is one: from then on the journal
    /// has another id and label, its runs have other ids, and publishing begins where the request
    /// says. All of that at once, and durably. To be called while nothing is being published.
    ///
    /// # Errors
    /// When the request cannot be read or the identity not be written; nothing has changed then.
    pub fn take_fork(&self) -> io::Result<Option<fork::Forked>> {
        self.shared().take_fork()
    }

    /// Persists the committed watermark now, if it has moved.
    ///
    /// # Errors
    /// When it cannot be written; it is tried again every second.
    pub fn write_checkpoint(&self) -> io::Result<()> {
        self.shared().write_checkpoint()
    }

    /// Brings the gauges up to date, which otherwise happens once a second.
    pub fn refresh_metrics(&self) {
        self.shared().refresh_metrics();
    }

    /// Resolves with the reason when the journal can no longer be trusted: the process has to
    /// end then, and nothing is acknowledged any more.
    pub async fn failed(&self) -> String {
        let mut failure = self.shared().failure.subscribe();
        // INVARIANT: `self` holds the sender while this waits.
        let reason = failure.wait_for(Option::is_some).await.expect("the sender lives");
        reason.clone().unwrap_or_default()
    }

    /// Writes and syncs what waits, stops the threads, persists the checkpoint. Blocks. Later
    /// appends get [`AppendError::Failed`]; reading goes on.
    pub fn close(&self) {
        self.shared().queue.close();
        self.handle.join();
        self.shared().write_last_words();
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

impl Handle {
    fn start(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        let thread = thread.map_err(|error| {
            io::Error::new(error.kind(), format!("the thread {name} cannot be started: {error}"))
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Waits for the writer, which has been told to stop, and then for the keeper.
    fn join(&self) {
        for thread in self.threads.lock().drain(..) {
            self.shared.keeper_bell.stop();
            // A panic has been reported by whoever panicked, through `failed`.
            drop(thread.join());
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.abandon();
        self.join();
    }
}
