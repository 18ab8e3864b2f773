//! Group commit: callers put their frames into the batch that is being gathered, one thread writes
//! it, syncs once, and wakes all of them.
//!
//! There is no timer and no delay: while one batch is being synced the next one gathers.
//!
//! **Invariant:** a failed sync is never tried again, because a second try can falsely succeed. The
//! journal is broken then; whoever opens it next finds out what is on disk.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use parking_lot::Mutex;
use prometheus::IntCounter;

use super::{
    Shared,
    recovery::Segment,
    segment::{FRAME_HEADER_BYTES, FRAMES_START, PAYLOAD_BYTES_MAX, seal},
};

/// What one batch holds at most.
const BATCH_RECORDS: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

/// Why a record is not in the journal, or not known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The limit in bytes, or the file system, has no room.
    #[error("the journal is full")]
    Full,
    /// Not durable within the time; it counts as accepted if it still becomes so.
    #[error("the disk is slow")]
    Slow,
    /// The journal is closed, or broken by a failed sync.
    #[error("the journal takes nothing any more")]
    Failed,
}

/// What became of a batch.
const PENDING: u8 = 0;
const DURABLE: u8 = 1;
const FULL: u8 = 2;
const FAILED: u8 = 3;
/// Given up by its callers, and still being written.
const SLOW: u8 = 4;

/// Where the callers of one batch wait.
pub(super) struct Ticket {
    outcome: AtomicU8,
    waiting: Mutex<Vec<Waker>>,
}

impl Ticket {
    fn new() -> Arc<Self> {
        Arc::new(Self { outcome: AtomicU8::new(PENDING), waiting: Mutex::default() })
    }

    fn poll(&self, context: &Context<'_>, first: bool) -> Poll<Result<(), AppendError>> {
        if let Some(result) = self.result() {
            return Poll::Ready(result);
        }
        let mut waiting = self.waiting.lock();
        // Only now, under the lock, is it certain that a wake-up will come.
        if let Some(result) = self.result() {
            return Poll::Ready(result);
        }
        if first || !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    fn result(&self) -> Option<Result<(), AppendError>> {
        match self.outcome.load(Ordering::Acquire) {
            PENDING => None,
            DURABLE => Some(Ok(())),
            FULL => Some(Err(AppendError::Full)),
            SLOW => Some(Err(AppendError::Slow)),
            _ => Some(Err(AppendError::Failed)),
        }
    }

    fn settle(&self, outcome: u8) {
        self.outcome.store(outcome, Ordering::Release);
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Frames that are made durable together.
struct Batch {
    /// Frames, their headers still blank.
    bytes: Vec<u8>,
    /// Bytes of each frame, and where its record is counted as accepted.
    frames: Vec<(u32, IntCounter)>,
    ticket: Arc<Ticket>,
    since: Instant,
}

impl Batch {
    fn new(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self { bytes, frames: Vec::new(), ticket: Ticket::new(), since: Instant::now() }
    }

    fn is_full(&self) -> bool {
        self.frames.len() >= BATCH_RECORDS || self.bytes.len() >= BATCH_BYTES
    }
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    gathering: VecDeque<Batch>,
    /// The batch that is being written: since when, and who waits for it.
    writing: Option<(Instant, Arc<Ticket>)>,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
    closed: bool,
    /// The disk has been slower than callers wait.
    slow: bool,
}

impl Queue {
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

impl Shared {
    /// Puts a record of `len` bytes into the batch that is being gathered.
    fn enqueue(
        &self,
        len: usize,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Arc<Ticket>, AppendError> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(AppendError::Failed);
        }
        if queue.slow {
            return Err(AppendError::Slow);
        }
        if queue.gathering.back().is_none_or(Batch::is_full) {
            let buffer = queue.spare.pop().unwrap_or_default();
            queue.gathering.push_back(Batch::new(buffer));
        }
        let idle = queue.writing.is_none();
        // INVARIANT: pushed just above when there was none.
        let batch = queue.gathering.back_mut().expect("a batch");
        let start = batch.bytes.len();
        batch.bytes.reserve(FRAME_HEADER_BYTES + len);
        batch.bytes.resize(start + FRAME_HEADER_BYTES, 0);
        write(&mut batch.bytes);
        batch.frames.push(((batch.bytes.len() - start) as u32, accepted.clone()));
        let first = batch.frames.len() == 1;
        let ticket = Arc::clone(&batch.ticket);
        drop(queue);
        if idle && first {
            self.work.notify_one();
        }
        Ok(ticket)
    }

    /// Appends one record and waits until it is durable.
    pub(super) async fn append(
        &self,
        len: usize,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), AppendError> {
        let since = Instant::now();
        let bytes = (FRAME_HEADER_BYTES + len) as u64;
        if len > PAYLOAD_BYTES_MAX || !self.admit(bytes) {
            return Err(AppendError::Full);
        }
        let ticket = self.enqueue(len, accepted, write).inspect_err(|_| self.release(bytes))?;
        let mut first = true;
        let result = poll_fn(|context| ticket.poll(context, std::mem::take(&mut first))).await;
        self.metrics.journal_append_seconds.observe(since.elapsed().as_secs_f64());
        result
    }

    /// Callers of a batch that the disk has not taken in time are answered; nobody new waits for
    /// such a disk. Called by the keeper.
    pub(super) fn give_up_on_slow_disk(&self) {
        let mut queue = self.queue.lock();
        let Some((since, ticket)) = &queue.writing else { return };
        if since.elapsed() < self.append_timeout {
            return;
        }
        ticket.settle(SLOW);
        queue.slow = true;
        let late = self.append_timeout;
        queue
            .gathering
            .iter()
            .filter(|batch| batch.since.elapsed() >= late)
            .for_each(|batch| batch.ticket.settle(SLOW));
    }

    /// Lets nobody in any more; what is gathered is still written.
    pub(super) fn close_queue(&self) {
        self.queue.lock().closed = true;
        self.work.notify_all();
    }

    /// Nothing will be durable any more: everybody who waits is told.
    pub(super) fn break_down(&self, why: String) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        for batch in queue.gathering.drain(..) {
            batch.ticket.settle(FAILED);
        }
        if let Some((_, ticket)) = queue.writing.take() {
            ticket.settle(FAILED);
        }
        drop(queue);
        self.failed.send_replace(Some(why));
    }
}

/// The writer's thread.
pub(super) fn run(shared: &Shared, mut active: Option<Segment>) {
    loop {
        let Some(mut batch) = next_batch(shared) else { return };
        let mut written = 0;
        let outcome = match write_batch(shared, &mut active, &mut batch, &mut written) {
            Ok(()) => DURABLE,
            Err(WriteError::Full(error)) => {
                shared.metrics.journal_errors_total.with_label_values(&["append"]).inc();
                tracing::error!(%error, "the disk is full: the journal takes nothing until it has room");
                FULL
            }
            Err(WriteError::Fatal(error)) => {
                shared.metrics.journal_errors_total.with_label_values(&["append"]).inc();
                return shared.break_down(format!("an append failed: {error}"));
            }
        };
        shared.release((batch.bytes.len() - written) as u64);
        let mut queue = shared.queue.lock();
        queue.writing = None;
        queue.slow = false;
        if queue.spare.len() < 2 {
            queue.spare.push(std::mem::take(&mut batch.bytes));
        }
        drop(queue);
        batch.ticket.settle(outcome);
    }
}

fn next_batch(shared: &Shared) -> Option<Batch> {
    let mut queue = shared.queue.lock();
    loop {
        if let Some(batch) = queue.gathering.pop_front() {
            queue.writing = Some((Instant::now(), Arc::clone(&batch.ticket)));
            return Some(batch);
        }
        if queue.closed {
            return None;
        }
        shared.work.wait(&mut queue);
    }
}

/// Why a batch is not durable.
enum WriteError {
    /// Nothing of it is left on disk; later batches may fit.
    Full(io::Error),
    Fatal(io::Error),
}

fn write_batch(
    shared: &Shared,
    active: &mut Option<Segment>,
    batch: &mut Batch,
    written: &mut usize,
) -> Result<(), WriteError> {
    let mut bytes = &mut batch.bytes[..];
    let mut frames = &batch.frames[..];
    while !frames.is_empty() {
        let room =
            active.as_ref().map_or(0, |segment| shared.segment_bytes.saturating_sub(segment.end));
        let (taken, taken_bytes) = fitting(frames, room);
        let segment = match active {
            Some(segment) if taken > 0 => segment,
            _ => {
                let least = FRAMES_START + u64::from(frames[0].0);
                active.insert(shared.next_segment(least).map_err(WriteError::Full)?)
            }
        };
        // A new segment may be of any size: its first frame always fits.
        let (taken, taken_bytes) = if taken > 0 {
            (taken, taken_bytes)
        } else {
            fitting(frames, shared.segment_bytes - FRAMES_START).max((1, frames[0].0 as usize))
        };
        let (part, rest) = std::mem::take(&mut bytes).split_at_mut(taken_bytes);
        write_part(shared, segment, part, &frames[..taken])?;
        *written += taken_bytes;
        (bytes, frames) = (rest, &frames[taken..]);
    }
    Ok(())
}

/// How many frames, and how many bytes of them, fit into `room` bytes.
fn fitting(frames: &[(u32, IntCounter)], room: u64) -> (usize, usize) {
    let mut bytes = 0;
    for (count, (frame, _)) in frames.iter().enumerate() {
        if (bytes + *frame as usize) as u64 > room {
            return (count, bytes);
        }
        bytes += *frame as usize;
    }
    (frames.len(), bytes)
}

/// Writes frames that fit, syncs, and moves the durable watermark behind them.
fn write_part(
    shared: &Shared,
    segment: &mut Segment,
    bytes: &mut [u8],
    frames: &[(u32, IntCounter)],
) -> Result<(), WriteError> {
    let mut rest = &mut bytes[..];
    let mut position = segment.next;
    for (index, (frame, _)) in frames.iter().enumerate() {
        let (frame, behind) = std::mem::take(&mut rest).split_at_mut(*frame as usize);
        seal(frame, segment.header.salt, position, index as u32);
        position = position.next();
        rest = behind;
    }
    if let Err(error) = shared.disk.write(&segment.file, bytes, segment.end) {
        if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Err(WriteError::Fatal(error));
        }
        // What was written of it must not stand before what comes next.
        segment.file.set_len(segment.end).map_err(WriteError::Fatal)?;
        segment.file.sync_all().map_err(WriteError::Fatal)?;
        return Err(WriteError::Full(error));
    }
    if shared.sync {
        let since = Instant::now();
        shared.disk.sync(&segment.file).map_err(WriteError::Fatal)?;
        shared.metrics.journal_sync_seconds.observe(since.elapsed().as_secs_f64());
    }
    shared.metrics.journal_batch_records.observe(frames.len() as f64);
    frames.iter().for_each(|(_, accepted)| accepted.inc());
    segment.next = position;
    segment.records += frames.len() as u64;
    segment.end += bytes.len() as u64;
    shared.advance(segment);
    Ok(())
}
