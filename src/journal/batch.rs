//! Records that become durable together, and those who wait for that.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use prometheus::IntCounter;

use super::{Position, segment};

const RECORDS_MAX: usize = 1024;
pub(super) const BYTES_MAX: usize = 4 << 20;

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

    pub(super) fn decide(&self, outcome: Outcome) {
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
    pub(super) frames: Vec<u8>,
    /// Bytes of `frames` that are whole frames: a caller that panicked may leave a part of one.
    pub(super) whole: usize,
    /// One a record.
    pub(super) accepted: Vec<IntCounter>,
    pub(super) commit: Arc<Commit>,
}

impl Batch {
    pub(super) fn new(first: Position, mut frames: Vec<u8>) -> Self {
        frames.clear();
        let accepted = Vec::with_capacity(64);
        Self { first, frames, whole: 0, accepted, commit: Arc::new(Commit::new()) }
    }

    pub(super) fn has_room(&self, frame_bytes: usize) -> bool {
        self.accepted.len() < RECORDS_MAX && self.whole + frame_bytes <= BYTES_MAX
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
