//! Reading a body within its limits: bytes of one, and of all together.
//!
//! **Invariant:** memory for a body is taken from the budget before it is used, until its call is
//! answered, and nobody waits for it: waiting bodies hold what others wait for.

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
    len: usize,
    /// What came first is used as it came; most bodies are no more than that.
    first: Bytes,
    /// The rest, copied: what hyper gives may be a small part of what it keeps in memory.
    pieces: Vec<Vec<u8>>,
}

impl<'a> Held<'a> {
    fn new(budget: &'a Budget) -> Self {
        Self { budget, taken: 0, len: 0, first: Bytes::new(), pieces: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends the body to `out` and frees its memory. Its share of the budget stays taken, for
    /// those bytes are in memory still.
    pub(super) fn move_to(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&std::mem::take(&mut self.first));
        self.pieces.drain(..).for_each(|piece| out.extend_from_slice(&piece));
    }

    fn add(&mut self, chunk: Bytes, max_bytes: usize) -> Result<(), Refusal> {
        if self.len + chunk.len() > max_bytes {
            return Err(Refusal::TooLarge);
        }
        if self.len == 0 {
            self.take(chunk.len())?;
            self.len = chunk.len();
            self.first = chunk;
            return Ok(());
        }
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let piece = match self.pieces.last_mut() {
                Some(last) if last.len() < last.capacity() => last,
                _ => self.grow(rest.len(), max_bytes)?,
            };
            let room = piece.capacity() - piece.len();
            let (fits, later) = rest.split_at(room.min(rest.len()));
            piece.extend_from_slice(fits);
            self.len += fits.len();
            rest = later;
        }
        Ok(())
    }

    /// Another piece, as large as all before it together: nothing is ever copied twice.
    fn grow(&mut self, needed: usize, max_bytes: usize) -> Result<&mut Vec<u8>, Refusal> {
        let capacity = self.len.max(needed).min(max_bytes - self.len);
        self.take(capacity)?;
        Ok(self.pieces.push_mut(Vec::with_capacity(capacity)))
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
    fn a_body_in_any_pieces_is_whole_and_takes_no_more_than_twice_its_size() {
        for pieces in [&[10][..], &[1, 1, 1, 1, 1], &[3, 50, 1, 0, 40], &[1, 99], &[100], &[0, 7]] {
            let budget = Budget::new(1000);
            let mut held = Held::new(&budget);
            let mut body = Vec::new();
            for len in pieces {
                let from = body.len();
                body.extend((from..from + len).map(|at| at as u8));
                held.add(body[from..].to_vec().into(), 100).unwrap();
            }
            assert_eq!(held.len(), body.len());
            assert!((body.len()..=body.len() * 2).contains(&held.taken), "{}", held.taken);
            let mut out = b"head".to_vec();
            held.move_to(&mut out);
            assert_eq!(out, [b"head", &body[..]].concat());
        }
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
