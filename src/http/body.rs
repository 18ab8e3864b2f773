//! Reading a body within its limits: bytes of one, and of all together.
//!
//! **Invariant:** memory for a body is taken from the budget before it is used, and nobody waits
//! for it: waiting bodies hold what others wait for.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::error::Refusal;

/// What is read of a refused body so that its sender gets to see the answer.
const DRAIN_BYTES: usize = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Bytes that bodies may still take.
#[derive(Debug)]
pub(super) struct Budget(AtomicUsize);

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// A body that is read, and its share of the budget.
pub(super) struct Held<'a> {
    budget: &'a Budget,
    taken: usize,
    /// A body that came in one piece is used as it came.
    whole: Bytes,
    pieces: Vec<u8>,
}

impl<'a> Held<'a> {
    fn new(budget: &'a Budget) -> Self {
        Self { budget, taken: 0, whole: Bytes::new(), pieces: Vec::new() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        if self.pieces.is_empty() { &self.whole } else { &self.pieces }
    }

    fn add(&mut self, chunk: Bytes, max_bytes: usize) -> Result<(), Refusal> {
        let held = self.bytes().len();
        let len = held + chunk.len();
        if len > max_bytes {
            return Err(Refusal::TooLarge);
        }
        if held == 0 {
            self.take(chunk.len())?;
            self.whole = chunk;
            return Ok(());
        }
        if len > self.pieces.capacity() {
            let capacity = (len * 2).min(max_bytes);
            self.take(capacity.saturating_sub(self.taken))?;
            self.pieces.reserve_exact(capacity - self.pieces.len());
        }
        if self.pieces.is_empty() {
            self.pieces.extend_from_slice(&std::mem::take(&mut self.whole));
        }
        self.pieces.extend_from_slice(&chunk);
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        if !self.budget.take(bytes) {
            return Err(Refusal::Overloaded);
        }
        self.taken += bytes;
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.taken, Ordering::Relaxed);
    }
}

/// Reads a body of at most `max_bytes` until `deadline`.
///
/// # Errors
/// `TooLarge`, `Overloaded`, `Timeout`, or `Malformed` where it breaks off.
pub(super) async fn read<'a, B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    budget: &'a Budget,
    max_bytes: usize,
    deadline: Instant,
) -> Result<Held<'a>, Refusal> {
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(Refusal::TooLarge);
    }
    let mut held = Held::new(budget);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Refusal::Malformed)?;
            // Trailers are no part of the body.
            if let Ok(chunk) = frame.into_data() {
                held.add(chunk, max_bytes)?;
            }
        }
        Ok::<_, Refusal>(())
    };
    timeout_at(deadline, reading).await.map_err(|_| Refusal::Timeout)??;
    Ok(held)
}

/// Reads on and throws away, within limits.
pub(super) async fn drain<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let reading = async {
        let mut read = 0;
        while read < DRAIN_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, Buf::remaining);
        }
    };
    // Out of time or not: the body is dropped, and with it the connection if it had not ended.
    timeout_at(Instant::now() + DRAIN_TIME, reading).await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_one_piece_is_not_copied_and_one_in_pieces_is_whole() {
        let budget = Budget::new(1000);
        let chunk = Bytes::from(vec![7; 10]);
        let mut held = Held::new(&budget);
        held.add(chunk.clone(), 100).unwrap();
        assert_eq!(held.bytes().as_ptr(), chunk.as_ptr());
        held.add(Bytes::from_static(b"end"), 100).unwrap();
        assert_eq!(held.bytes(), [&[7; 10][..], b"end"].concat());
    }

    #[test]
    fn the_budget_is_taken_by_pieces_refused_without_waiting_and_given_back() {
        let budget = Budget::new(100);
        let mut first = Held::new(&budget);
        first.add(Bytes::from(vec![0; 60]), 100).unwrap();
        let mut second = Held::new(&budget);
        assert_eq!(second.add(Bytes::from(vec![0; 41]), 100), Err(Refusal::Overloaded));
        assert_eq!(first.add(Bytes::from(vec![0; 41]), 100), Err(Refusal::TooLarge));
        first.add(Bytes::from(vec![0; 1]), 100).unwrap();
        assert_eq!(second.add(Bytes::from_static(b"1"), 100), Err(Refusal::Overloaded));
        drop(first);
        second.add(Bytes::from(vec![0; 100]), 100).unwrap();
        drop(second);
        assert_eq!(budget.0.into_inner(), 100);
    }
}
