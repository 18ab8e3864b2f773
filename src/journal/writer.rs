//! Group commit: callers copy their records into a batch under a short lock; one thread takes
//! the batch, writes once, syncs once, and wakes all who wait for it. While it syncs, the next
//! batch fills. No timers: a batch is what gathered while the one before was synced.

use std::{
    collections::VecDeque,
    fs::{self, File},
    future::poll_fn,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

use super::{
    AppendError, Durability, Position, disk,
    segment::{self, FRAME_HEADER_BYTES, HEADER_BYTES, Header},
    shared::Shared,
};

const BATCH_RECORDS_MAX: usize = 1024;
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Buffers that are kept for the next batches.
const BUFFERS_KEPT: usize = 2;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Durable,
    Full,
    Failed,
}

/// Where those who wait for one batch learn what became of it.
#[derive(Debug)]
pub(super) struct Commit {
    outcome: AtomicU8,
    wakers: Mutex<Vec<Waker>>,
}

impl Commit {
    const WAITING: u8 = u8::MAX;

    fn new() -> Self {
        let wakers = Mutex::new(Vec::with_capacity(64));
        Self { outcome: AtomicU8::new(Self::WAITING), wakers }
    }

    fn decide(&self, outcome: Outcome) {
        self.outcome.store(outcome as u8, Ordering::Release);
        // Whoever comes later locks after this and sees the outcome.
        let wakers = std::mem::take(&mut *self.wakers.lock());
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) async fn wait(&self) -> Outcome {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Outcome> {
        if let Some(outcome) = self.outcome() {
            return Poll::Ready(outcome);
        }
        let mut wakers = self.wakers.lock();
        match self.outcome() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                wakers.push(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn outcome(&self) -> Option<Outcome> {
        match self.outcome.load(Ordering::Acquire) {
            Self::WAITING => None,
            decided if decided == Outcome::Durable as u8 => Some(Outcome::Durable),
            decided if decided == Outcome::Full as u8 => Some(Outcome::Full),
            _ => Some(Outcome::Failed),
        }
    }
}

/// Records that are written and synced together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) first: Position,
    frames: Vec<u8>,
    /// Bytes of `frames` that are whole frames: a caller that panicked may leave a part of one.
    whole: usize,
    /// One a record.
    accepted: Vec<IntCounter>,
    commit: Arc<Commit>,
}

impl Batch {
    pub(super) fn new(first: Position, mut frames: Vec<u8>) -> Self {
        frames.clear();
        let accepted = Vec::with_capacity(64);
        Self { first, frames, whole: 0, accepted, commit: Arc::new(Commit::new()) }
    }

    fn has_room(&self, frame_bytes: usize) -> bool {
        self.accepted.len() < BATCH_RECORDS_MAX && self.whole + frame_bytes <= BATCH_BYTES_MAX
    }

    /// Adds a record and returns its position.
    pub(super) fn push(
        &mut self,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Position {
        self.frames.truncate(self.whole);
        let (position, index) = (self.end(), self.accepted.len() as u32);
        self.whole += segment::put_frame(&mut self.frames, position, index, write);
        self.accepted.push(accepted.clone());
        position
    }

    /// The whole frames, as they are written into a segment with this salt.
    pub(super) fn seal(&mut self, salt: u32) -> &[u8] {
        self.frames.truncate(self.whole);
        segment::seal_frames(&mut self.frames, salt);
        &self.frames
    }

    fn end(&self) -> Position {
        self.first.plus(self.accepted.len() as u64)
    }
}

/// Batches on their way to the writer.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Rung when there is work, or none any more.
    work: Condvar,
    /// [`State::admitted_bytes`] may not exceed these two: what the journal may hold, and what
    /// the file system has room for.
    pub(super) bytes_limit: AtomicU64,
    pub(super) space_limit: AtomicU64,
    /// When the writer took the batch that it has, in microseconds since `opened`; 0 if none.
    busy_since_us: AtomicU64,
    opened: Instant,
    stall: Duration,
}

#[derive(Debug)]
struct State {
    batches: VecDeque<Batch>,
    /// Position of the next record.
    next: Position,
    /// Bytes of all frames ever admitted, on the scale of [`Index::bytes`](super::index::Index).
    admitted_bytes: u64,
    buffers: Vec<Vec<u8>>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// What is queued is still written.
    Closing,
    Stopped,
}

impl Queue {
    /// A record is refused at once when the writer has been busy with one batch for `stall`:
    /// that bounds what gathers in memory in front of a disk that hangs.
    pub(super) fn new(next: Position, admitted_bytes: u64, stall: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                batches: VecDeque::new(),
                next,
                admitted_bytes,
                buffers: Vec::new(),
                phase: Phase::Open,
            }),
            work: Condvar::new(),
            bytes_limit: AtomicU64::new(0),
            space_limit: AtomicU64::new(0),
            busy_since_us: AtomicU64::new(0),
            opened: Instant::now(),
            stall,
        }
    }

    /// Admits a record and copies it into the last batch, or refuses it.
    pub(super) fn push(
        &self,
        len: usize,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(Position, Arc<Commit>), AppendError> {
        let frame_bytes = FRAME_HEADER_BYTES.saturating_add(len);
        let limit = self.bytes_limit.load(Ordering::Relaxed);
        let limit = limit.min(self.space_limit.load(Ordering::Relaxed));
        if self.is_stalled() {
            return Err(AppendError::Slow);
        }
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return Err(AppendError::Failed);
        }
        let admitted = state.admitted_bytes.saturating_add(frame_bytes as u64);
        if admitted > limit || u32::try_from(len).is_err() {
            return Err(AppendError::Full);
        }
        let batch = state.batch_with_room(frame_bytes);
        let position = batch.push(accepted, write);
        let commit = batch.commit.clone();
        state.next = position.next();
        state.admitted_bytes = admitted;
        drop(state);
        self.work.notify_one();
        Ok((position, commit))
    }

    fn is_stalled(&self) -> bool {
        let since = self.busy_since_us.load(Ordering::Relaxed);
        since != 0 && self.opened.elapsed() > Duration::from_micros(since) + self.stall
    }

    /// The next batch, as soon as there is one; `None` when there will be none.
    fn next(&self) -> Option<Batch> {
        self.busy_since_us.store(0, Ordering::Relaxed);
        let mut state = self.state.lock();
        loop {
            if state.phase == Phase::Stopped {
                return None;
            }
            if let Some(batch) = state.batches.pop_front() {
                drop(state);
                let now_us = self.opened.elapsed().as_micros().max(1) as u64;
                self.busy_since_us.store(now_us, Ordering::Relaxed);
                return Some(batch);
            }
            if state.phase == Phase::Closing {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    /// Gives a batch's buffer back for another.
    fn recycle(&self, buffer: Vec<u8>) {
        let mut state = self.state.lock();
        if state.buffers.len() < BUFFERS_KEPT && buffer.capacity() <= 2 * BATCH_BYTES_MAX {
            state.buffers.push(buffer);
        }
    }

    /// Refuses a batch of which nothing is on disk, and all behind it, so that their positions
    /// can be given again.
    fn refuse(&self, batch: Batch, outcome: Outcome) {
        let mut refused = VecDeque::from([batch]);
        let mut state = self.state.lock();
        refused.append(&mut state.batches);
        state.next = refused[0].first;
        state.admitted_bytes -= refused.iter().map(|batch| batch.whole as u64).sum::<u64>();
        drop(state);
        refused.iter().for_each(|batch| batch.commit.decide(outcome));
    }

    /// Takes no more records; what is queued is still written.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        drop(state);
        self.work.notify_all();
    }

    /// Takes no more records, and fails those that the writer has not got.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Stopped;
        let queued = std::mem::take(&mut state.batches);
        drop(state);
        self.work.notify_all();
        queued.iter().for_each(|batch| batch.commit.decide(Outcome::Failed));
    }

    /// Whether the writer waits for work.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.busy_since_us.load(Ordering::Relaxed) == 0
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.lock().phase == Phase::Open
    }

    /// Whether anything more is admitted.
    pub(super) fn has_room(&self) -> bool {
        let limit = self.bytes_limit.load(Ordering::Relaxed);
        self.admitted_bytes() < limit.min(self.space_limit.load(Ordering::Relaxed))
    }

    /// Bytes of all frames ever admitted.
    pub(super) fn admitted_bytes(&self) -> u64 {
        self.state.lock().admitted_bytes
    }
}

impl State {
    fn batch_with_room(&mut self, frame_bytes: usize) -> &mut Batch {
        if self.batches.back().is_none_or(|last| !last.has_room(frame_bytes)) {
            let batch = Batch::new(self.next, self.buffers.pop().unwrap_or_default());
            self.batches.push_back(batch);
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }
}

/// Why a batch did not become durable.
enum Trouble {
    /// There is no room; nothing of the batch is on disk.
    Full(io::Error),
    /// What is on disk is not known.
    Broken(io::Error),
}

/// The segment that is written to.
struct Active {
    file: File,
    salt: u32,
    /// Offset behind the last durable frame.
    end: u64,
    capacity: u64,
}

/// The thread that makes records durable.
pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Option<Active>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, active: None }
    }

    pub(super) fn run(mut self) {
        while let Some(mut batch) = self.shared.queue.next() {
            let error = match self.write(&mut batch) {
                Ok(()) => {
                    self.acknowledge(batch);
                    continue;
                }
                Err(error) => error,
            };
            self.shared.metrics.journal_errors_total.with_label_values(&["append"]).inc();
            match error {
                Trouble::Full(error) => {
                    tracing::error!(%error, "no room for the journal; callbacks are refused");
                    // Until the keeper has looked again.
                    self.shared.active_left_bytes.store(0, Ordering::Relaxed);
                    self.shared.queue.space_limit.store(0, Ordering::Relaxed);
                    self.shared.queue.refuse(batch, Outcome::Full);
                }
                Trouble::Broken(error) => {
                    self.shared.fail(format!("the journal's disk failed: {error}"));
                    self.shared.queue.refuse(batch, Outcome::Failed);
                }
            }
        }
    }

    /// Makes a batch durable.
    fn write(&mut self, batch: &mut Batch) -> Result<(), Trouble> {
        let mut active = match self.active.take() {
            Some(active) if active.end + batch.whole as u64 <= active.capacity => active,
            _ => self.next_segment(batch.first)?,
        };
        let frames = batch.seal(active.salt);
        if let Err(error) = self.shared.write_at(&active.file, frames, active.end) {
            // The next batch begins another segment.
            self.shared.index.lock().close_last();
            return Err(cut_back(&active, error));
        }
        if self.shared.options.durability == Durability::Fsync {
            let started = Instant::now();
            self.shared.sync(&active.file).map_err(Trouble::Broken)?;
            self.shared.metrics.journal_sync_seconds.observe(started.elapsed().as_secs_f64());
        }
        active.end += frames.len() as u64;
        let left = active.capacity.saturating_sub(active.end);
        self.shared.active_left_bytes.store(left, Ordering::Relaxed);
        self.active = Some(active);
        Ok(())
    }

    /// Tells everyone that a batch is durable.
    fn acknowledge(&self, batch: Batch) {
        let records = batch.accepted.len();
        self.shared.metrics.journal_batch_records.observe(records as f64);
        batch.accepted.iter().for_each(IntCounter::inc);
        self.shared.made_durable(batch.first..batch.end(), batch.whole as u64);
        batch.commit.decide(Outcome::Durable);
        self.shared.queue.recycle(batch.frames);
    }

    /// Begins a segment in a spare file. It has its name only when its header is durable.
    fn next_segment(&self, base: Position) -> Result<Active, Trouble> {
        let shared = &self.shared;
        // Where there is room for no other segment, this one has to make it, once it is settled.
        shared.index.lock().close_last();
        let spare = shared.spares.take().map_err(Trouble::Full)?;
        let header = Header::new(shared.own_run_id, base, shared.options.durability);
        let file = match self.name_segment(&spare, &header) {
            Ok(file) => file,
            Err(error) if disk::is_full(&error) => {
                return Err(match fs::remove_file(&spare) {
                    Ok(()) => Trouble::Full(error),
                    Err(error) => Trouble::Broken(error),
                });
            }
            Err(error) => return Err(Trouble::Broken(error)),
        };
        shared.index.lock().add_empty(header);
        let capacity = shared.options.segment_bytes;
        // Before the keeper looks how much room there is.
        shared.active_left_bytes.store(capacity - HEADER_BYTES, Ordering::Relaxed);
        shared.keeper_bell.ring();
        Ok(Active { file, salt: header.salt, end: HEADER_BYTES, capacity })
    }

    fn name_segment(&self, spare: &PathBuf, header: &Header) -> io::Result<File> {
        let journal = &self.shared.options.directory;
        let file = disk::open_or_create(spare)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        fs::rename(spare, segment::path(journal, header.base))?;
        disk::sync_directory(&segment::directory(journal))?;
        Ok(file)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail("the journal's writer panicked".to_owned());
        }
    }
}

/// Takes back what a failed write may have left behind the durable end.
fn cut_back(active: &Active, error: io::Error) -> Trouble {
    if !disk::is_full(&error) {
        return Trouble::Broken(error);
    }
    match active.file.set_len(active.end).and_then(|()| active.file.sync_all()) {
        Ok(()) => Trouble::Full(error),
        Err(error) => Trouble::Broken(error),
    }
}
