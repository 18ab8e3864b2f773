//! The journal keeps each accepted record on disk, from before its answer until it is in Kafka.
//!
//! # Watermarks
//! `committed ≤ durable ≤ appended`. Records before *durable* survive a power cut and may be read.
//! Records before *committed* are in Kafka. Segments before the checkpoint (the committed position on
//! disk) are recycled. Those of the last transaction stay while there is room, because a broker that is
//! killed may still forget its commit.
//!
//! # Directory
//! ```text
//! lock                       held while the journal is open; names the process
//! identity, identity.copy    id, label, start of publishing        (identity.rs)
//! runs/<n>                   one a run, taken exclusively          (identity.rs)
//! checkpoint                 the committed position                (checkpoint.rs)
//! history                    ends of runs, known losses            (recovery.rs)
//! segments/<base>.segment    the records                           (segment.rs)
//! segments/spare-<run>-<n>   allocated, for segments to come       (spares.rs)
//! quarantine/                damaged bytes (recovery.rs), and the publisher's files
//! fork                       a request for a new identity          (fork.rs)
//! arrivals                   not the journal's: last arrivals      (serve)
//! ```
//!
//! A [`Position`] is `run << 40 | index`. A *run* is one opening of the journal. Every run starts a new
//! segment, so a position is never used twice, whatever a crash took from the tail.
//!
//! # Threads
//! Callers of [`Journal::append`] copy their records into a shared buffer. The *writer* writes and syncs
//! what has gathered there and wakes them. The *keeper* prepares segments, persists the checkpoint
//! and recycles, so that no append waits for that.
//!
//! All system calls go through [`disk`], all time through [`clock`], all randomness through
//! [`Options::random`], so that the simulator can replace them.
//!
//! **Invariant:** records are opaque bytes. The journal knows nothing of Kafka or HTTP.
//! **Invariant:** after a failed fsync the journal acknowledges nothing more, because a second fsync can
//! falsely succeed. The process has to end ([`Journal::failed`]).

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
mod outcome;
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
    sync::{Arc, mpsc},
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
    identity::Identity,
    inspection::{Inspection, Run, committed_on_disk, inspect},
    lock::{Holder, holder},
    options::Options,
    place::check_place,
    position::Position,
    reader::{JournalRecord, Reader},
};
use self::{disk::DiskFile, error::io_at, keeper::Keeper, shared::Shared, writer::Writer};
use crate::{clock, metrics::Metrics};

const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);
/// Positions that are remembered as set aside. A caller waits for its position for seconds only.
const SET_ASIDE_KEPT: usize = 10_000;

/// An open journal. Clones are handles of the same journal. Dropping the last one stops it as a crash
/// would; [`close`](Self::close) stops it cleanly.
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
/// let append = journal.append(5, &accepted, |out| out.extend(b"hello"));
/// let position = pollster::block_on(append)?;
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
    _lock: Box<dyn DiskFile>,
}

impl Journal {
    /// Opens or creates a journal: recovers what is there, takes a new run, starts the threads. Blocks,
    /// about half a second per GiB of backlog.
    ///
    /// # Errors
    /// [`OpenError`]: another process has it open, a newer program wrote it, or the disk refuses.
    /// Damage is not an error.
    pub fn open(mut options: Options, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        options.segment_bytes = options.segment_bytes.max(2 * segment::HEADER_BYTES);
        let at = || io_at(&options.directory);
        options.disk.create_directory(&options.directory).map_err(at())?;
        patiently(|| check_place(options.directory(), options.allow_volatile))?;
        let lock = patiently(|| lock::take(options.directory()))?;
        let open = || Shared::open(options.clone(), metrics.clone(), &*lock);
        let shared = Arc::new(patiently(open)?);
        let (wake, woken) = mpsc::sync_channel(1);
        let (writer, keeper) =
            (Writer::new(shared.clone(), wake), Keeper::new(shared.clone(), woken));
        let handle = Handle {
            shared,
            threads: Mutex::default(),
            #[cfg(any(test, feature = "simulation"))]
            stepped: Mutex::default(),
            _lock: lock,
        };
        #[cfg(any(test, feature = "simulation"))]
        if options.stepped {
            *handle.stepped.lock() = Some((writer, keeper));
            return Ok(Self { handle: Arc::new(handle) });
        }
        handle.start("writer", || writer.run()).map_err(at())?;
        handle.start("keeper", || keeper.run()).map_err(at())?;
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Appends a record of `len` bytes, which `write` appends to a buffer, and waits without a limit until
    /// it is durable.
    ///
    /// From the first poll on the record outlives the future. The writer raises `accepted` by one when the
    /// record is durable, so the account of callbacks is right even if the caller no longer waits.
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
        let (position, outcome) = shared.queue.push(len, accepted, write)?;
        outcome.await?;
        let took = clock::now() - started;
        shared.metrics.journal_append_seconds.observe(took.as_secs_f64());
        Ok(position)
    }

    /// A random id that the journal got when it was created. A fork replaces it.
    pub fn id(&self) -> Uuid {
        self.shared().identity.read().id
    }

    /// [`Options::label`] from when the journal was created. A fork replaces it.
    pub fn label(&self) -> String {
        self.shared().identity.read().label.clone()
    }

    /// The id under which positions of a run are committed. It is known while there are records of the
    /// run, and for the last thousand runs.
    pub fn run_id(&self, run: u32) -> Option<Uuid> {
        let own = self.shared().runs.own.get(&run);
        let own = own.map(|own| self.shared().identity.read().run_id(*own));
        let checkpoint = || self.checkpoint().filter(|found| found.position.run() == run);
        own.or_else(|| checkpoint().map(|found| found.run_id))
    }

    /// Whether this is the id of one of the journal's runs.
    pub fn knows_run_id(&self, id: Uuid) -> bool {
        let identity = self.shared().identity.read();
        self.checkpoint().is_some_and(|found| found.run_id == id)
            || self.shared().runs.own.values().any(|own| identity.run_id(*own) == id)
    }

    /// The first position that is not committed.
    pub fn committed(&self) -> Position {
        self.shared().watermarks.lock().committed
    }

    /// The oldest record that is left, or else [`durable`](Self::durable).
    pub fn oldest(&self) -> Position {
        self.shared().watermarks.lock().index.oldest()
    }

    /// The first record at or after `position`, or else the position of the next record.
    pub fn first_from(&self, position: Position) -> Position {
        let index = &self.shared().watermarks.lock().index;
        index.locate(position).map_or(index.end, |segment| position.max(segment.header.base))
    }

    /// Waits without a limit until the record at `position` is committed. A record that was
    /// [set aside](Self::set_aside) never is.
    pub async fn wait_committed(&self, position: Position) {
        let mut committed = self.shared().committed_moved.subscribe();
        // INVARIANT: `self` holds the sender while this waits.
        committed.wait_for(|committed| position < *committed).await.expect("the sender lives");
        if self.is_set_aside(position) {
            std::future::pending().await
        }
    }

    /// Whether the record was [set aside](Self::set_aside), as far as that is remembered.
    pub fn is_set_aside(&self, position: Position) -> bool {
        self.shared().set_aside.lock().contains(&position)
    }

    /// Marks records that will be settled without being in Kafka. Call it before their commit.
    pub fn set_aside(&self, positions: &[Position]) {
        let mut set_aside = self.shared().set_aside.lock();
        set_aside.extend(positions);
        let too_many = set_aside.len().saturating_sub(SET_ASIDE_KEPT);
        set_aside.drain(..too_many);
    }

    /// Whether there is room for a record of `len` bytes. After there was none, room for two is needed.
    pub fn has_room(&self, len: usize) -> bool {
        self.shared().queue.has_room(len)
    }

    /// Durable records that are not committed.
    pub fn pending(&self) -> u64 {
        self.shared().watermarks.lock().pending()
    }

    /// Durable records in `[from, to)`.
    pub fn count(&self, from: Position, to: Position) -> u64 {
        self.shared().watermarks.lock().index.count(from, to)
    }

    /// Reads from the first record at or after `from`. Committed records may be recycled before the reader
    /// reaches them.
    pub fn reader(&self, from: Position) -> Reader {
        Reader::new(self.handle.shared.clone(), from)
    }

    /// The checkpoint on disk; after a fork, where that begins.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.shared().watermarks.lock().checkpoint.clone()
    }

    /// The journal's directory.
    pub fn directory(&self) -> Directory<'_> {
        self.shared().options.directory()
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

    /// The reason, if the journal has failed.
    pub fn failure(&self) -> Option<String> {
        self.shared().failure.borrow().clone()
    }

    /// Writes and syncs one batch, if one waits. For a [`stepped`](Options::stepped) journal.
    #[cfg(any(test, feature = "simulation"))]
    pub fn step_writer(&self) -> bool {
        // The lock is held if this is called from within a step.
        let Some(mut stepped) = self.handle.stepped.try_lock() else { return false };
        let Some((writer, _)) = &mut *stepped else { return false };
        self.shared().queue.try_next().map(|batch| writer.step(batch)).is_some()
    }

    /// Does what the keeper does once a second. For a [`stepped`](Options::stepped) journal.
    #[cfg(any(test, feature = "simulation"))]
    pub fn round_keeper(&self) {
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

/// Tries again every second while file descriptors or memory are short: that passes, and is not damage.
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
    fn start(&self, what: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let name = format!("journal-{what}");
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let _told = scopeguard::guard_on_unwind((), |()| {
                shared.fail(format!("the journal's {what} panicked"));
            });
            work();
        });
        let thread = thread.map_err(|error| {
            io::Error::new(error.kind(), format!("the thread {name} cannot be started: {error}"))
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Waits for both threads to end: the writer once the queue is closed or abandoned, and then the
    /// keeper.
    fn join(&self) {
        for thread in self.threads.lock().drain(..) {
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
