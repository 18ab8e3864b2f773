//! Group commit. Callers copy their records into a batch under a short lock. The thread of the writer
//! takes the batch, writes once, syncs once, and wakes all its callers. Meanwhile the next batch fills.
//! There are no timers: a batch holds what arrived during the previous sync.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, mpsc::SyncSender},
    time::Instant,
};

use parking_lot::{Condvar, Mutex};
use prometheus::{IntCounter, local::LocalHistogram};

use super::{
    AppendError, Position,
    disk::{self, DiskFile, Mode},
    outcome::{BatchOutcome, Decision},
    segment::{self, FRAME_HEADER_BYTES, HEADER_BYTES, Header},
    shared::Shared,
};
use crate::{clock, mutant};

/// A journal that was full reports room again when this many of the largest records fit. With room for
/// only one, a load balancer that sends traffic again would be refused at once.
const ROOM_AGAIN: u64 = 2;
/// Batches that wait for a disk that is slower than the callers. Further records are refused, which
/// bounds the memory.
const BATCHES_MAX: usize = 8;
/// Limits of one batch.
const RECORDS_MAX: usize = 1024;
pub(super) const BYTES_MAX: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    /// Notified when a batch waits or the queue closes.
    work: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    batches: VecDeque<WriteBatch>,
    /// Position of the next record.
    next: Position,
    /// Bytes of all frames ever admitted, on the scale of [`Index::bytes`](super::index::Index).
    admitted_bytes: u64,
    /// The upper limits of `admitted_bytes`: what the journal may hold, and what the file system has room
    /// for.
    bytes_limit: u64,
    space_limit: u64,
    /// Whether the last call of [`has_room`](Queue::has_room) found none.
    was_full: bool,
    /// For the next batch.
    buffer: Vec<u8>,
    is_closed: bool,
}

/// Records that are written and synced together.
#[derive(Debug)]
pub(super) struct WriteBatch {
    first: Position,
    frames: Vec<u8>,
    /// Bytes of `frames` that are whole frames: a caller that panicked may leave a part of one.
    whole: usize,
    /// The counter of each record, and since when its caller waits.
    records: Vec<(IntCounter, Instant)>,
    decision: Decision,
}

impl Queue {
    pub(super) fn new(next: Position, admitted_bytes: u64) -> Self {
        let state = QueueState { next, admitted_bytes, ..QueueState::default() };
        Self { state: Mutex::new(state), work: Condvar::new() }
    }

    /// Admits a record and copies it into the last batch, or refuses it. Returns its position, and the outcome
    /// of the batch.
    pub(super) fn push(
        &self,
        len: usize,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(Position, BatchOutcome), AppendError> {
        let (frame_bytes, since) = (FRAME_HEADER_BYTES.saturating_add(len), clock::now());
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(AppendError::Failed);
        }
        let admitted = state.admitted_bytes.saturating_add(frame_bytes as u64);
        if admitted > state.limit() || u32::try_from(len).is_err() {
            return Err(AppendError::Full);
        }
        let batch = state.batch_with_room(frame_bytes).ok_or(AppendError::Slow)?;
        let position = batch.push(accepted, since, write);
        let (is_first, outcome) = (position == batch.first, batch.decision.outcome());
        state.next = position.next();
        state.admitted_bytes = admitted;
        drop(state);
        if is_first {
            self.work.notify_one();
        }
        Ok((position, outcome))
    }

    /// Waits for the next batch; `None` once the queue is closed and empty.
    fn next(&self) -> Option<WriteBatch> {
        let mut state = self.state.lock();
        loop {
            let batch = state.batches.pop_front();
            if batch.is_some() || state.is_closed {
                return batch;
            }
            self.work.wait(&mut state);
        }
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn try_next(&self) -> Option<WriteBatch> {
        self.state.lock().batches.pop_front()
    }

    /// Whether the writer has taken all that was pushed.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().batches.is_empty()
    }

    /// Refuses a batch and all batches after it, so that their positions can be used again. Nothing of
    /// them may be on disk.
    fn refuse(&self, batch: WriteBatch, why: AppendError) {
        let mut refused = VecDeque::from([batch]);
        let mut state = self.state.lock();
        refused.append(&mut state.batches);
        state.next = refused[0].first;
        state.admitted_bytes -= refused.iter().map(|batch| batch.whole as u64).sum::<u64>();
        drop(state);
        refused.iter().for_each(|batch| batch.decide(Err(why)));
    }

    /// Refuses further records. Queued batches are still written.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.work.notify_all();
    }

    /// Refuses further records, and fails those that the writer has not taken yet.
    pub(super) fn abandon(&self) {
        self.close();
        let queued = std::mem::take(&mut self.state.lock().batches);
        queued.iter().for_each(|batch| batch.decide(Err(AppendError::Failed)));
    }

    /// Limits [`admitted_bytes`](Self::admitted_bytes) by what the journal may hold.
    pub(super) fn limit_bytes(&self, limit: u64) {
        self.state.lock().bytes_limit = limit;
    }

    /// Limits [`admitted_bytes`](Self::admitted_bytes) by what the file system has room for.
    pub(super) fn limit_space(&self, limit: u64) {
        self.state.lock().space_limit = limit;
    }

    pub(super) fn admitted_bytes(&self) -> u64 {
        self.state.lock().admitted_bytes
    }

    /// Whether a record of `len` bytes fits. After a full journal, [`ROOM_AGAIN`] of them must fit.
    pub(super) fn has_room(&self, len: usize) -> bool {
        let mut state = self.state.lock();
        let room = state.limit().saturating_sub(state.admitted_bytes);
        let frame_bytes = FRAME_HEADER_BYTES.saturating_add(len) as u64;
        let records = if state.was_full { ROOM_AGAIN } else { 1 };
        state.was_full = room < frame_bytes.saturating_mul(records);
        !state.was_full || mutant::is("ready although full")
    }
}

impl QueueState {
    fn limit(&self) -> u64 {
        self.bytes_limit.min(self.space_limit)
    }

    fn batch_with_room(&mut self, frame_bytes: usize) -> Option<&mut WriteBatch> {
        let has_room = |last: &WriteBatch| {
            last.records.len() < RECORDS_MAX && last.whole + frame_bytes <= BYTES_MAX
        };
        if !self.batches.back().is_some_and(has_room) {
            if self.batches.len() == BATCHES_MAX {
                return None;
            }
            let batch = WriteBatch::new(self.next, std::mem::take(&mut self.buffer));
            self.batches.push_back(batch);
        }
        self.batches.back_mut()
    }
}

impl WriteBatch {
    pub(super) fn new(first: Position, mut frames: Vec<u8>) -> Self {
        frames.clear();
        let (records, decision) = (Vec::with_capacity(64), Decision::default());
        Self { first, frames, whole: 0, records, decision }
    }

    /// Adds a record and returns its position.
    pub(super) fn push(
        &mut self,
        accepted: &IntCounter,
        since: Instant,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Position {
        self.frames.truncate(self.whole);
        let (position, index) = (self.end(), self.records.len() as u32);
        self.whole += segment::put_frame(&mut self.frames, position, index, write);
        self.records.push((accepted.clone(), since));
        position
    }

    /// The whole frames, as they are written into a segment with this salt.
    pub(super) fn seal(&mut self, salt: u32) -> &[u8] {
        self.frames.truncate(self.whole);
        segment::seal_frames(&mut self.frames, salt);
        &self.frames
    }

    fn end(&self) -> Position {
        self.first.plus(self.records.len() as u64)
    }

    fn decide(&self, result: Result<(), AppendError>) {
        self.decision.decide(result);
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// Lets the keeper begin its next round at once.
    wake_keeper: SyncSender<()>,
    open: Option<OpenFile>,
    /// Of a batch. Added up here, because all threads share the metric.
    append_seconds: LocalHistogram,
}

/// The index's open segment.
#[derive(Debug)]
struct OpenFile {
    file: Box<dyn DiskFile>,
    salt: u32,
    /// Offset after the last frame.
    end: u64,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, wake_keeper: SyncSender<()>) -> Self {
        let append_seconds = shared.metrics.journal_append_seconds.local();
        Self { shared, wake_keeper, open: None, append_seconds }
    }

    pub(super) fn run(mut self) {
        while let Some(batch) = self.shared.queue.next() {
            self.step(batch);
        }
    }

    /// Makes a batch durable and tells its callers, or refuses it.
    pub(super) fn step(&mut self, mut batch: WriteBatch) {
        match self.write(&mut batch) {
            Ok(()) => self.acknowledge(batch),
            Err(why) => self.shared.queue.refuse(batch, why),
        }
    }

    fn write(&mut self, batch: &mut WriteBatch) -> Result<(), AppendError> {
        let (bytes, capacity) = (batch.whole as u64, self.shared.options.segment_bytes);
        let open = match self.open.take() {
            Some(open) if open.end + bytes <= capacity => open,
            _ => self.next_segment(batch.first)?,
        };
        let OpenFile { file, salt, end } = open;
        if let Err(error) = file.write_at(batch.seal(salt), end) {
            // `file` is dropped: the next batch begins another segment.
            self.shared.watermarks.lock().index.last_is_open = false;
            return Err(self.undone(error, || file.set_len(end).and_then(|()| file.sync_all())));
        }
        let started = clock::now();
        if !mutant::is("data not synced") {
            file.sync_data().map_err(|error| self.disk_failed(&error))?;
        }
        let took = clock::now() - started;
        self.shared.metrics.journal_sync_seconds.observe(took.as_secs_f64());
        // Before any caller is told.
        self.shared.claim.check().map_err(|error| self.failed(error.to_string()))?;
        self.open = Some(OpenFile { file, salt, end: end + bytes });
        Ok(())
    }

    /// What is on disk is unknown.
    fn disk_failed(&self, error: &io::Error) -> AppendError {
        self.failed(format!("the journal's disk failed: {error}"))
    }

    fn failed(&self, reason: String) -> AppendError {
        self.count_error();
        self.shared.fail(reason);
        AppendError::Failed
    }

    /// Comes before the log and before what a failure leads to: the process may end there.
    fn count_error(&self) {
        self.shared.metrics.journal_errors_total.with_label_values(&["append"]).inc();
    }

    /// There may only have been no room: then `undo` removes what was begun.
    fn undone(&self, error: io::Error, undo: impl FnOnce() -> io::Result<()>) -> AppendError {
        if !disk::is_full(&error) {
            return self.disk_failed(&error);
        }
        undo().map_or_else(|error| self.disk_failed(&error), |()| self.full(&error))
    }

    /// There is no room, and nothing of the batch is on disk.
    fn full(&self, error: &io::Error) -> AppendError {
        self.count_error();
        tracing::error!(%error, "the disk has no room for the journal: callbacks are refused until there is room");
        // The keeper computes the real limit in its next round.
        self.shared.queue.limit_space(0);
        AppendError::Full
    }

    /// Counts the records of a durable batch, moves the durable watermark, wakes the callers.
    fn acknowledge(&self, batch: WriteBatch) {
        self.shared.metrics.journal_batch_records.observe(batch.records.len() as f64);
        let now = clock::now();
        for (accepted, since) in &batch.records {
            accepted.inc();
            self.append_seconds.observe((now - *since).as_secs_f64());
        }
        self.append_seconds.flush();
        let positions = batch.first..batch.end();
        self.shared.watermarks.lock().index.extend(positions, batch.whole as u64);
        self.shared.durable_moved.notify_all();
        batch.decide(Ok(()));
        if batch.frames.capacity() <= 2 * BYTES_MAX {
            self.shared.queue.state.lock().buffer = batch.frames;
        }
    }

    /// Begins a segment in a spare file, which gets the segment's name only after its header is durable.
    fn next_segment(&self, base: Position) -> Result<OpenFile, AppendError> {
        let shared = &self.shared;
        // Close the full segment now. If the disk has no room for another, the only way to get space is to
        // recycle this one after it is committed.
        shared.watermarks.lock().index.last_is_open = false;
        let spare = shared.take_spare().or_else(|error| {
            let recycled = shared.recycle();
            shared.take_spare().map_err(|_| recycled.err().unwrap_or(error))
        });
        let spare = spare.map_err(|error| self.full(&error))?;
        let salt =
            if mutant::is("salt not checked") { 0 } else { (shared.options.random)() as u32 };
        // INVARIANT: the opening took this run, and keeps its id.
        let header = Header { run_id: shared.runs.own[&base.run()], base, salt };
        let file = self.name_segment(&spare, &header);
        let file =
            file.map_err(|error| self.undone(error, || shared.options.disk.remove(&spare)))?;
        shared.watermarks.lock().index.add_empty(header);
        self.wake_keeper.try_send(()).ok();
        Ok(OpenFile { file, salt, end: HEADER_BYTES })
    }

    fn name_segment(&self, spare: &Path, header: &Header) -> io::Result<Box<dyn DiskFile>> {
        let journal = self.shared.options.directory();
        let file = journal.disk.open(spare, Mode::Create)?;
        file.write_at(&header.encode(), 0)?;
        file.sync_all()?;
        journal.disk.rename(spare, &segment::path(journal.path, header.base))?;
        if !mutant::is("directory not synced") {
            journal.disk.sync_directory(&segment::directory(journal.path))?;
        }
        Ok(file)
    }
}
