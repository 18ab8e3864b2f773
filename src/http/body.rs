//! Reading a request's body within its limits.
//!
//! A body that comes in one piece is used as it is; pieces are copied together as they come, so
//! that many small ones do not hold many large read buffers.

use std::{
    ops::Deref,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::error::Refusal;

/// How much of a body that nobody wants is read, and how long, for the connection to be of use
/// again or the answer to be heard.
pub(super) const DRAIN_BYTES: usize = 1 << 20;
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Bytes of bodies that may be in memory, of all requests together.
pub(super) struct Budget {
    left: AtomicUsize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self { left: AtomicUsize::new(bytes) }
    }

    fn take(&self, bytes: usize) -> Result<(), Refusal> {
        self.left
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .map(|_| ())
            .map_err(|_| Refusal::Overloaded)
    }
}

/// A body in memory; its bytes go back to the budget with it.
pub(super) struct Body<'b> {
    /// The only piece, or empty.
    piece: Bytes,
    /// All pieces, when there were several.
    pieces: Vec<u8>,
    taken: usize,
    budget: &'b Budget,
}

impl Deref for Body<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.pieces.is_empty() { &self.piece } else { &self.pieces }
    }
}

impl Drop for Body<'_> {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.taken, Ordering::Relaxed);
    }
}

impl<'b> Body<'b> {
    /// Reads to the end.
    ///
    /// # Errors
    /// `TooLarge`, `Overloaded`, `Malformed`, and `Timeout` when `time` is over.
    pub(super) async fn read(
        incoming: &mut Incoming,
        budget: &'b Budget,
        bytes_max: usize,
        time: Duration,
    ) -> Result<Self, Refusal> {
        let mut body = Self { piece: Bytes::new(), pieces: Vec::new(), taken: 0, budget };
        if incoming.size_hint().lower() > bytes_max as u64 {
            return Err(Refusal::TooLarge);
        }
        timeout(time, body.fill(incoming, bytes_max)).await.map_err(|_| Refusal::Timeout)??;
        Ok(body)
    }

    async fn fill(&mut self, incoming: &mut Incoming, bytes_max: usize) -> Result<(), Refusal> {
        while let Some(piece) = next_piece(incoming).await? {
            if self.len() + piece.len() > bytes_max {
                return Err(Refusal::TooLarge);
            }
            self.add(piece)?;
        }
        Ok(())
    }

    fn add(&mut self, piece: Bytes) -> Result<(), Refusal> {
        if self.is_empty() {
            self.take(piece.len())?;
            self.piece = piece;
            return Ok(());
        }
        let held = if self.pieces.is_empty() { self.piece.len() } else { 0 };
        self.pieces.reserve(held + piece.len());
        self.take(self.pieces.capacity().saturating_sub(self.taken))?;
        self.pieces.extend_from_slice(&std::mem::take(&mut self.piece));
        self.pieces.extend_from_slice(&piece);
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.budget.take(bytes)?;
        self.taken += bytes;
        Ok(())
    }
}

/// The next data of a body that is not empty; `None` at its end.
async fn next_piece(incoming: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    while !incoming.is_end_stream() {
        let Some(frame) = incoming.frame().await else { break };
        let frame = frame.map_err(|_| Refusal::Malformed)?;
        if let Ok(piece) = frame.into_data()
            && !piece.is_empty()
        {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}

/// Reads what is left of a body that nobody wants; whether that was all of it.
pub(super) async fn drain(incoming: &mut Incoming) -> bool {
    let all = async {
        let mut left = DRAIN_BYTES;
        while let Ok(piece) = next_piece(incoming).await {
            let Some(piece) = piece else { return true };
            match left.checked_sub(piece.len()) {
                Some(less) => left = less,
                None => return false,
            }
        }
        false
    };
    timeout(DRAIN_TIME, all).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(budget: &Budget, pieces: &[&'static [u8]]) -> Result<Vec<u8>, Refusal> {
        let mut body = Body { piece: Bytes::new(), pieces: Vec::new(), taken: 0, budget };
        for piece in pieces {
            body.add(Bytes::from_static(piece))?;
        }
        let kept = body.piece.len() + body.pieces.capacity();
        assert!(body.taken >= kept, "{} taken for {kept}", body.taken);
        Ok(body.to_vec())
    }

    #[test]
    fn pieces_are_put_together_and_their_bytes_go_back() {
        let budget = Budget::new(64);
        assert_eq!(body(&budget, &[]).unwrap(), b"");
        assert_eq!(body(&budget, &[b"whole"]).unwrap(), b"whole");
        assert_eq!(body(&budget, &[b"{", b"\"a\"", b":1}"]).unwrap(), b"{\"a\":1}");
        assert_eq!(budget.left.load(Ordering::Relaxed), 64);
    }

    #[test]
    fn what_the_budget_does_not_hold_is_refused_and_given_back() {
        let budget = Budget::new(20);
        assert_eq!(body(&budget, &[b"0123456789", b"0123456789a"]), Err(Refusal::Overloaded));
        assert_eq!(body(&budget, &[b"0123456789", b"0123456789"]).map(|b| b.len()), Ok(20));
        assert_eq!(budget.left.load(Ordering::Relaxed), 20);
    }
}
