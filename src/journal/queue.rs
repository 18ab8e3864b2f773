//! Group commit: callers copy their records into a batch under a short lock; the writer takes the
//! batch, writes once, syncs once, and wakes all who wait for it. While it syncs, the next batch
//! fills. No timers: a batch is what gathered while the one before was synced.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

use super::{
    AppendError, Position,
    batch::{self, Batch, Commit, Outcome},
    segment::FRAME_HEADER_BYTES,
};

/// Buffers that are kept for the next batches.
const BUFFERS_KEPT: usize = 2;

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
    pub(super) fn next(&self) -> Option<Batch> {
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
    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        let mut state = self.state.lock();
        if state.buffers.len() < BUFFERS_KEPT && buffer.capacity() <= 2 * batch::BYTES_MAX {
            state.buffers.push(buffer);
        }
    }

    /// Refuses a batch of which nothing is on disk, and all behind it, so that their positions
    /// can be given again.
    pub(super) fn refuse(&self, batch: Batch, outcome: Outcome) {
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
