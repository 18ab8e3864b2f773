//! Group commit. Callers copy their records into a batch under a short lock. The writer takes the batch,
//! writes once, syncs once, and wakes its callers (`outcome`). Meanwhile the next batch fills. There are no
//! timers: a batch holds what arrived during the previous sync.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

use super::{
    AppendError, Position,
    outcome::{BatchOutcome, Decision},
    segment::{self, FRAME_HEADER_BYTES},
};
use crate::mutant;

/// A journal that was full reports room again when this many of the largest records fit. With room for
/// only one, a load balancer that sends traffic again would be refused at once.
const ROOM_AGAIN: u64 = 2;
/// Batches that wait for a disk that is slower than the callers. Further records are refused, which
/// bounds the memory.
const BATCHES_MAX: usize = 8;
/// Limits of one batch.
const RECORDS_MAX: usize = 1024;
pub(super) const BYTES_MAX: usize = 4 << 20;
/// Buffers that are kept for the next batches.
const BUFFERS_KEPT: usize = 2;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    /// Notified when a batch waits or the queue closes.
    work: Condvar,
    /// The two upper limits of [`QueueState::admitted_bytes`]: what the journal may hold, and what the file
    /// system has room for.
    pub(super) bytes_limit: AtomicU64,
    pub(super) space_limit: AtomicU64,
    /// The last result of [`has_room`](Self::has_room).
    roomy: AtomicBool,
}

#[derive(Debug)]
struct QueueState {
    batches: VecDeque<WriteBatch>,
    /// Position of the next record.
    next: Position,
    /// Bytes of all frames ever admitted, on the scale of [`Index::bytes`](super::index::Index).
    admitted_bytes: u64,
    buffers: Vec<Vec<u8>>,
    /// Whether records are taken.
    is_open: bool,
}

/// Records that are written and synced together.
#[derive(Debug)]
pub(super) struct WriteBatch {
    pub(super) first: Position,
    pub(super) frames: Vec<u8>,
    /// Bytes of `frames` that are whole frames: a caller that panicked may leave a part of one.
    pub(super) whole: usize,
    /// One per record.
    pub(super) accepted: Vec<IntCounter>,
    pub(super) decision: Decision,
}

impl Queue {
    pub(super) fn new(next: Position, admitted_bytes: u64) -> Self {
        let (batches, buffers) = Default::default();
        Self {
            state: Mutex::new(QueueState { batches, next, admitted_bytes, buffers, is_open: true }),
            work: Condvar::new(),
            bytes_limit: AtomicU64::new(0),
            space_limit: AtomicU64::new(0),
            roomy: AtomicBool::new(true),
        }
    }

    /// Admits a record and copies it into the last batch, or refuses it. Returns its position, and what
    /// resolves when its batch is decided.
    pub(super) fn push(
        &self,
        len: usize,
        accepted: &IntCounter,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(Position, BatchOutcome), AppendError> {
        let frame_bytes = FRAME_HEADER_BYTES.saturating_add(len);
        let limit = self.limit();
        let mut state = self.state.lock();
        if !state.is_open {
            return Err(AppendError::Failed);
        }
        let admitted = state.admitted_bytes.saturating_add(frame_bytes as u64);
        if admitted > limit || u32::try_from(len).is_err() {
            return Err(AppendError::Full);
        }
        let batch = state.batch_with_room(frame_bytes).ok_or(AppendError::Slow)?;
        let position = batch.push(accepted, write);
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
    pub(super) fn next(&self) -> Option<WriteBatch> {
        let mut state = self.state.lock();
        loop {
            let batch = state.batches.pop_front();
            if batch.is_some() || !state.is_open {
                return batch;
            }
            self.work.wait(&mut state);
        }
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn try_next(&self) -> Option<WriteBatch> {
        self.state.lock().batches.pop_front()
    }

    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        let mut state = self.state.lock();
        if state.buffers.len() < BUFFERS_KEPT && buffer.capacity() <= 2 * BYTES_MAX {
            state.buffers.push(buffer);
        }
    }

    /// Refuses a batch and all batches after it, so that their positions can be used again. Nothing of
    /// them may be on disk.
    pub(super) fn refuse(&self, batch: WriteBatch, why: AppendError) {
        let mut refused = VecDeque::from([batch]);
        let mut state = self.state.lock();
        refused.append(&mut state.batches);
        state.next = refused[0].first;
        state.admitted_bytes -= refused.iter().map(|batch| batch.whole as u64).sum::<u64>();
        drop(state);
        refused.iter().for_each(|batch| batch.decision.decide(Err(why)));
    }

    /// Refuses further records. Queued batches are still written.
    pub(super) fn close(&self) {
        self.state.lock().is_open = false;
        self.work.notify_all();
    }

    /// Refuses further records, and fails those that the writer has not taken yet.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.is_open = false;
        let queued = std::mem::take(&mut state.batches);
        // A batch that is dropped undecided fails, which wakes its callers: they need the lock.
        drop(state);
        self.work.notify_all();
        drop(queued);
    }

    /// Whether the writer has taken all that was pushed.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().batches.is_empty()
    }

    /// Whether a record of `len` bytes fits. After a full journal, [`ROOM_AGAIN`] of them must fit.
    pub(super) fn has_room(&self, len: usize) -> bool {
        let room = self.limit().saturating_sub(self.admitted_bytes());
        let frame_bytes = FRAME_HEADER_BYTES.saturating_add(len) as u64;
        let records = if self.roomy.load(Ordering::Relaxed) { 1 } else { ROOM_AGAIN };
        let roomy = room >= frame_bytes.saturating_mul(records);
        let roomy = roomy || mutant::is("ready although full");
        self.roomy.store(roomy, Ordering::Relaxed);
        roomy
    }

    fn limit(&self) -> u64 {
        let bytes_limit = self.bytes_limit.load(Ordering::Relaxed);
        bytes_limit.min(self.space_limit.load(Ordering::Relaxed))
    }

    pub(super) fn admitted_bytes(&self) -> u64 {
        self.state.lock().admitted_bytes
    }
}

impl QueueState {
    fn batch_with_room(&mut self, frame_bytes: usize) -> Option<&mut WriteBatch> {
        let has_room = |last: &WriteBatch| {
            last.accepted.len() < RECORDS_MAX && last.whole + frame_bytes <= BYTES_MAX
        };
        if !self.batches.back().is_some_and(has_room) {
            if self.batches.len() == BATCHES_MAX {
                return None;
            }
            let batch = WriteBatch::new(self.next, self.buffers.pop().unwrap_or_default());
            self.batches.push_back(batch);
        }
        self.batches.back_mut()
    }
}

impl WriteBatch {
    pub(super) fn new(first: Position, mut frames: Vec<u8>) -> Self {
        frames.clear();
        let (accepted, decision) = (Vec::with_capacity(64), Decision::default());
        Self { first, frames, whole: 0, accepted, decision }
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

    pub(super) fn end(&self) -> Position {
        self.first.plus(self.accepted.len() as u64)
    }
}
