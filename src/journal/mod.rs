//! The journal keeps each accepted record on disk, from before its answer until it is in Kafka. It is
//! the only queue.
//!
//! # Watermarks
//! `committed ≤ durable ≤ appended`. Records before *durable* survive a power cut and may be read.
//! Records before *committed* are in Kafka. Segments whose records all lie before the checkpoint (the
//! committed position on disk) are recycled.
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
//! All system calls go through [`disk`], all time through [`clock`], all randomness through
//! [`Options::random`], so that the simulator can replace them.
//!
//! **Invariant:** records are opaque bytes here, and the journal knows nothing of Kafka or HTTP.
//! **Invariant:** after a failed fsync the journal acknowledges nothing more, because a second fsync can
//! falsely succeed. The process has to end ([`Journal::failed`]).

mod batch;
mod checkpoint;
pub mod disk;
mod error;
pub mod fork;
mod identity;
mod index;
mod inspection;
mod keeper;
mod lock;
mod options;
mod place;
mod position;
mod prefixes;
mod queue;
mod reader;
mod recovery;
mod salvage;
mod sealed;
mod segment;
mod shared;
mod spares;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::IntCounter;
use uuid::Uuid;

pub use self::{
    checkpoint::Checkpoint,
    disk::Directory,
    error::{AppendError, OpenError},
    inspection::{Inspection, Run, committed_on_disk, inspect},
    options::Options,
    position::Position,
    reader::{Reader, Record},
};
use self::{error::io_at, keeper::Keeper, lock::Lock, shared::Shared, writer::Writer};
use crate::{clock, metrics::Metrics};

/// The pause after an opening that failed because file descriptors or memory are short.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);
/// Positions that are remembered as set aside. A caller waits for its position for seconds only.
const SET_ASIDE_KEPT: usize = 10_000;

/// An open journal. Clones are handles of the same journal. Dropping the last one stops it as a crash
/// would: call [`close`](Self::close) for a clean stop.
///
/// ```
/// use std::sync::Arc;
///
/// use weni_edge::journal::{Checkpoint, Journal, Options, Position};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let directory = tempfile::tempdir()?;
/// let options = Options {
///     allow_volatile: true,
///     min_free_bytes: 0,
///     segment_bytes: 1 << 20,
///     ..Options::new(directory.path())
/// };
/// let journal = Journal::open(options, Arc::default())?;
/// let accepted = prometheus::IntCounter::new("accepted", "Durable records.")?;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// let append = journal.append(5, &accepted, |out| out.extend(b"hello"));
/// let position = runtime.block_on(append)?;
/// assert_eq!((accepted.get(), journal.pending()), (1, 1));
///
/// let mut reader = journal.reader(Position::MIN);
/// let record = reader.next()?.expect("it is durable");
/// assert_eq!((record.position, record.payload), (position, &b"hello"[..]));
///
/// // After its transaction is committed in Kafka:
/// journal.advance_committed(Checkpoint {
///     position: position.next(),
///     run_id: journal.run_id(position.run()).unwrap_or_default(),
///     receipt: uuid::Uuid::nil(),
///     cluster_id: "a cluster".to_owned(),
/// });
/// assert_eq!(journal.pending(), 0);
/// journal.close();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    #[cfg(any(test, feature = "simulation"))]
    stepped: Mutex<Option<(Writer, Keeper)>>,
    /// Released when the threads have ended.
    _lock: Lock,
}

impl Journal {
    /// Opens a journal, or makes it: recovers what is there, takes a new run, starts the threads.
    /// Blocks, about a second per GiB of backlog.
    ///
    /// # Errors
    /// [`OpenError`]: another process has it open, a newer program wrote it, or the disk refuses.
    /// Damage is not an error.
    pub fn open(mut options: Options, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        options.segment_bytes = options.segment_bytes.max(2 * segment::HEADER_BYTES);
        let directory = options.directory.clone();
        options.disk.create_directory(&directory).map_err(io_at(&directory))?;
        patiently(|| place::check(options.directory(), options.allow_volatile))?;
        let lock = patiently(|| Lock::take(options.directory()))?;
        #[cfg(any(test, feature = "simulation"))]
        let stepped = options.stepped;
        let open = || Shared::open(options.clone(), metrics.clone(), &lock);
        let shared = Arc::new(patiently(open)?);
        let handle = Handle {
            shared: shared.clone(),
            threads: Mutex::default(),
            #[cfg(any(test, feature = "simulation"))]
            stepped: Mutex::default(),
            _lock: lock,
        };
        let writer = Writer::new(shared.clone());
        let keeper = Keeper::new(shared);
        #[cfg(any(test, feature = "simulation"))]
        if stepped {
            *handle.stepped.lock() = Some((writer, keeper));
            return Ok(Self { handle: Arc::new(handle) });
        }
        handle.start("journal-writer", move || writer.run()).map_err(io_at(&directory))?;
        handle.start("journal-keeper", move || keeper.run()).map_err(io_at(&directory))?;
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Appends a record of `len` bytes, which `write` appends to the buffer it is given, and
    /// returns when it is durable, however long that takes.
    ///
    /// From the first poll on the record outlives the future: if the caller drops it, the record is
    /// written all the same. The writer raises `accepted` by one when the record is durable, so the
    /// account of callbacks is right even if the caller no longer waits.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn append(
        &self,
        len: usize,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Position, AppendError> {
        let started = clock::now();
        let shared = self.shared();
        let (position, mut outcome) = shared.queue.push(len, accepted, write)?;
        let decided = outcome.wait_for(Option::is_some).await.map(|outcome| *outcome);
        // A writer that panics drops its batch without an outcome.
        decided.unwrap_or_default().unwrap_or(Err(AppendError::Failed))?;
        let took = clock::now() - started;
        shared.metrics.journal_append_seconds.observe(took.as_secs_f64());
        Ok(position)
    }

    /// A random id that the journal got when it was created. A fork replaces it.
    pub fn id(&self) -> Uuid {
        self.shared().who.read().identity.id
    }

    /// [`Options::label`] from when the journal was created. A fork replaces it.
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

    /// The first record at or after `position`, or the position of the next record if there is none.
    pub fn first_from(&self, position: Position) -> Position {
        let index = self.shared().index.lock();
        index.locate(position).map_or(index.end(), |place| position.max(place.base))
    }

    /// Waits without a limit until the record at `position` is committed. A record that was
    /// [set aside](Self::set_aside) never is.
    pub async fn wait_committed(&self, position: Position) {
        let mut committed = self.shared().committed_moved.subscribe();
        let is_committed = committed.wait_for(|committed| position < *committed).await;
        // INVARIANT: `self` holds the sender while this waits.
        is_committed.expect("the sender lives");
        if self.shared().set_aside.lock().contains(&position) {
            std::future::pending().await
        }
    }

    /// Marks records that will be settled without being in Kafka. Call it before their commit.
    pub fn set_aside(&self, positions: &[Position]) {
        let mut set_aside = self.shared().set_aside.lock();
        set_aside.extend(positions);
        let too_many = set_aside.len().saturating_sub(SET_ASIDE_KEPT);
        set_aside.drain(..too_many);
    }

    /// Whether the journal takes appends: it is neither closed nor failed.
    pub fn is_open(&self) -> bool {
        self.shared().queue.is_open()
    }

    /// Whether there is room for a record of `len` bytes. After there was none, room for two is needed.
    pub fn has_room(&self, len: usize) -> bool {
        self.shared().queue.has_room(len)
    }

    /// Durable records that are not committed.
    pub fn pending(&self) -> u64 {
        self.shared().pending()
    }

    /// Durable records in `[from, to)`.
    pub fn count(&self, from: Position, to: Position) -> u64 {
        self.shared().index.lock().count(from, to)
    }

    /// Blocks until a record at or after `beyond` is durable. Returns false after `timeout`.
    pub fn wait_durable(&self, beyond: Position, timeout: Duration) -> bool {
        self.shared().wait_durable(beyond, timeout)
    }

    /// Reads from the first record at or after `from`. A reader holds no segment back: committed records
    /// may be recycled before it has read them.
    pub fn reader(&self, from: Position) -> Reader {
        Reader::new(self.handle.shared.clone(), from)
    }

    /// The checkpoint on disk; after a fork, where that begins.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.shared().who.read().checkpoint.clone()
    }

    /// Moves the committed watermark forward; an earlier position is ignored. The keeper writes it to disk
    /// within a second and then recycles segments before the previous watermark.
    pub fn advance_committed(&self, checkpoint: Checkpoint) {
        self.shared().advance_committed(checkpoint);
    }

    /// Sets the committed watermark to Kafka's position, which may be earlier, and allows recycling. Call
    /// it each time the publisher has opened.
    ///
    /// Returns how many pending records turn out to be committed. The caller must count them as settled.
    /// Records that become pending again are counted as recovered here.
    pub fn reset_committed(&self, committed: Position) -> u64 {
        self.shared().reset_committed(committed)
    }

    /// The journal's directory.
    pub fn directory(&self) -> Directory<'_> {
        self.shared().options.directory()
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
    /// When it cannot be written. The keeper tries again every second.
    pub fn write_checkpoint(&self) -> io::Result<()> {
        self.shared().write_checkpoint()
    }

    /// Updates the gauges now. The keeper updates them once a second.
    pub fn refresh_metrics(&self) {
        self.shared().refresh_metrics();
    }

    /// Resolves with the reason when the journal has failed. It acknowledges nothing more then, and the
    /// process has to end.
    pub async fn failed(&self) -> String {
        let mut failure = self.shared().failure.subscribe();
        // INVARIANT: `self` holds the sender while this waits.
        let reason = failure.wait_for(Option::is_some).await.expect("the sender lives");
        reason.clone().unwrap_or_default()
    }

    /// Writes and syncs the queued records, stops the threads, writes the checkpoint. Blocks. Later appends
    /// get [`AppendError::Failed`]; readers still work.
    pub fn close(&self) {
        self.shared().queue.close();
        self.handle.join();
        self.shared().write_last_words();
    }

    /// Writes and syncs one batch, if one waits. For a journal that was opened
    /// [`stepped`](Options::stepped).
    #[cfg(any(test, feature = "simulation"))]
    pub fn step_writer(&self) -> bool {
        self.handle.step_writer()
    }

    /// Does what the keeper does once a second. For a journal that was opened
    /// [`stepped`](Options::stepped).
    #[cfg(any(test, feature = "simulation"))]
    pub fn round_keeper(&self) {
        // The lock is held if this is called from within a step.
        if let Some(mut stepped) = self.handle.stepped.try_lock()
            && let Some((_, keeper)) = &mut *stepped
        {
            keeper.round();
        }
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

/// Tries again every second while the process or the machine is short of file descriptors or memory. Such
/// a shortage is not damage, and passes.
fn patiently<T>(mut open: impl FnMut() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let mut is_told = false;
    loop {
        match open() {
            Err(OpenError::Io { path, source }) if salvage::is_shortage(&source) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::error!(path = %path.display(), error = %source,
                        "the journal cannot be opened: file descriptors or memory are short; trying again every second");
                }
                clock::sleep(SHORTAGE_PAUSE);
            }
            result => return result,
        }
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

    #[cfg(any(test, feature = "simulation"))]
    fn step_writer(&self) -> bool {
        let Some(mut stepped) = self.stepped.try_lock() else { return false };
        let Some((writer, _)) = &mut *stepped else { return false };
        let next = self.shared.queue.try_next();
        next.map(|batch| writer.step(batch)).is_some()
    }

    /// Waits for both threads to end. The queue must be closed or abandoned before.
    fn join(&self) {
        #[cfg(any(test, feature = "simulation"))]
        while self.step_writer() {}
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        for thread in self.threads.lock().drain(..) {
            thread.thread().unpark();
            // A thread that panicked has reported it through `failed`.
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
