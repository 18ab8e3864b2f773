//! Records that become durable together, and the callers that wait for that.

use prometheus::IntCounter;
use tokio::sync::watch;

use super::{AppendError, Position, segment};

const RECORDS_MAX: usize = 1024;
pub(super) const BYTES_MAX: usize = 4 << 20;

/// Whether a batch is durable; `None` until the writer has decided.
pub(super) type Outcome = Option<Result<(), AppendError>>;

/// Records that are written and synced together.
#[derive(Debug)]
pub(super) struct WriteBatch {
    pub(super) first: Position,
    pub(super) frames: Vec<u8>,
    /// Bytes of `frames` that are whole frames: a caller that panicked may leave a part of one.
    pub(super) whole: usize,
    /// One per record.
    pub(super) accepted: Vec<IntCounter>,
    outcome: watch::Sender<Outcome>,
}

impl WriteBatch {
    pub(super) fn new(first: Position, mut frames: Vec<u8>) -> Self {
        frames.clear();
        let accepted = Vec::with_capacity(64);
        Self { first, frames, whole: 0, accepted, outcome: watch::Sender::new(None) }
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

    pub(super) fn outcome(&self) -> watch::Receiver<Outcome> {
        self.outcome.subscribe()
    }

    /// Tells all callers of the batch.
    pub(super) fn decide(&self, result: Result<(), AppendError>) {
        self.outcome.send_replace(Some(result));
    }
}
