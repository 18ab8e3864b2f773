//! Reads a body within its limits: bytes, time, and the budget.

use std::{pin::Pin, time::Duration};

use bytes::{Buf, Bytes};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, timeout_at};

use super::{budget::Hold, error::Refusal};

/// A body up to this size takes no more memory than this, in however many chunks it comes.
const SMALL_BYTES: usize = 16 << 10;
/// How much of a refused body is read, so that its sender gets to see the answer.
const DRAIN_BYTES: usize = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The least speed of a body, after its first seconds.
const BYTES_PER_SECOND_MIN: f64 = 1024.0;
const GRACE: Duration = Duration::from_secs(5);

/// A body in memory. Its part of the budget stays with the call's [`Hold`].
#[derive(Default)]
pub(super) struct BufferedBody {
    /// A body of known length that came in one chunk is kept as it came.
    whole: Bytes,
    /// Other bodies are copied: hyper's chunk may keep a much larger buffer alive.
    copied: Vec<u8>,
}

impl BufferedBody {
    pub(super) fn len(&self) -> usize {
        self.whole.len() + self.copied.len()
    }

    /// Appends the body to `out` and frees its memory.
    pub(super) fn move_to(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&std::mem::take(&mut self.whole));
        out.extend_from_slice(&std::mem::take(&mut self.copied));
    }

    fn add(
        &mut self,
        hold: &mut Hold,
        chunk: Bytes,
        is_last: bool,
        max_bytes: usize,
    ) -> Result<(), Refusal> {
        let mut reserve = |bytes| if hold.take(bytes) { Ok(()) } else { Err(Refusal::Overloaded) };
        let len = self.len() + chunk.len();
        if len > max_bytes {
            return Err(Refusal::TooLarge);
        }
        if is_last && self.copied.is_empty() {
            reserve(len)?;
            self.whole = chunk;
            return Ok(());
        }
        let capacity = self.copied.capacity();
        if len > capacity {
            let most = if len <= SMALL_BYTES { SMALL_BYTES.min(max_bytes) } else { max_bytes };
            let larger = (2 * capacity).max(len).min(most);
            reserve(larger - capacity)?;
            self.copied.reserve_exact(larger - self.copied.len());
        }
        self.copied.extend_from_slice(&chunk);
        Ok(())
    }
}

/// Until when the next chunk has to come: one second per KiB after the first 5 s, at most until
/// `deadline`.
pub(super) fn chunk_deadline(since: Instant, deadline: Instant, read: usize) -> Instant {
    let earned = Duration::from_secs(1).mul_f64(read as f64 / BYTES_PER_SECOND_MIN);
    deadline.min(since + GRACE + earned)
}

/// What the future yields, or none if the timer fires first.
///
/// A call has one timer. Moving a timer to a later time takes one atomic step, and a new one the lock that
/// all timers share.
pub(super) async fn in_time<T>(
    timer: Pin<&mut Sleep>,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        done = future => Some(done),
        () = timer => None,
    }
}

/// Reads a body of at most `max_bytes`, whose call came at `since`, within `time`. One that breaks off is
/// `Malformed`. The timer is set to the first chunk's deadline.
pub(super) async fn read<B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    hold: &mut Hold,
    max_bytes: usize,
    since: Instant,
    time: Duration,
    mut timer: Pin<&mut Sleep>,
) -> Result<BufferedBody, Refusal> {
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(Refusal::TooLarge);
    }
    let mut buffered = BufferedBody::default();
    while !body.is_end_stream() {
        let frame = in_time(timer.as_mut(), body.frame()).await;
        let Some(frame) = frame.ok_or(Refusal::Timeout)? else { break };
        // Trailers are no part of the body.
        if let Ok(chunk) = frame.map_err(|_| Refusal::Malformed)?.into_data() {
            buffered.add(hold, chunk, body.is_end_stream(), max_bytes)?;
        }
        if !body.is_end_stream() {
            timer.as_mut().reset(chunk_deadline(since, since + time, buffered.len()));
        }
    }
    Ok(buffered)
}

/// Reads on and discards, within limits.
pub(super) async fn drain<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let reading = async {
        let mut read = 0;
        while read < DRAIN_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, Buf::remaining);
        }
    };
    // In either case the body is dropped, and its connection too if the body had not ended.
    timeout_at(Instant::now() + DRAIN_TIME, reading).await.ok();
}

#[cfg(test)]
mod tests {
    use super::{
        super::budget::{Budget, Share},
        *,
    };

    fn hold(bytes: usize, max_body_bytes: usize) -> Hold {
        Hold::new(&Share::new(&Budget::new(bytes, max_body_bytes)))
    }

    #[test]
    fn a_body_in_any_pieces_is_whole_and_takes_no_more_than_twice_its_size() {
        for pieces in [&[10][..], &[1, 1, 1, 1, 1], &[3, 50, 1, 0, 40], &[1, 99], &[100], &[0, 7]] {
            let mut hold = hold(1000, 100);
            let mut held = BufferedBody::default();
            let mut body = Vec::new();
            for len in pieces {
                let from = body.len();
                body.extend((from..from + len).map(|at| at as u8));
                held.add(&mut hold, body[from..].to_vec().into(), pieces.len() == 1, 100).unwrap();
            }
            assert_eq!(held.len(), body.len());
            let taken = hold.bytes();
            assert!((body.len()..=body.len() * 2).contains(&taken), "{taken}");
            let mut out = b"head".to_vec();
            held.move_to(&mut out);
            assert_eq!(out, [b"head", &body[..]].concat());
        }
    }

    #[test]
    fn a_body_beyond_its_limit_or_the_budget_is_refused_without_waiting() {
        let share = Share::new(&Budget::new(100_000, 100_000));
        let [mut first, mut second] = [(); 2].map(|()| Hold::new(&share));
        let body = |bytes| Bytes::from(vec![0; bytes]);
        let [mut large, mut other] = [(); 2].map(|()| BufferedBody::default());
        large.add(&mut first, body(60_000), false, 100_000).unwrap();
        assert_eq!(large.add(&mut first, body(40_001), false, 100_000), Err(Refusal::TooLarge));
        assert_eq!(other.add(&mut second, body(80_000), true, 100_000), Err(Refusal::Overloaded));
        drop(first);
        other.add(&mut second, body(80_000), true, 100_000).unwrap();
    }

    #[test]
    fn a_small_body_in_pieces_takes_no_more_than_its_limit() {
        let mut hold = hold(1 << 20, 100_000);
        let mut held = BufferedBody::default();
        for _ in 0..16 {
            held.add(&mut hold, Bytes::from(vec![0; 1024]), false, 100_000).unwrap();
            assert!(hold.bytes() <= SMALL_BYTES);
        }
    }

    #[test]
    fn a_body_has_five_seconds_and_one_more_for_each_kib_up_to_the_deadline() {
        let since = Instant::now();
        let deadline = since + Duration::from_secs(20);
        let seconds = |read| (chunk_deadline(since, deadline, read) - since).as_secs_f64();
        assert_eq!([0, 512, 1024, 15 << 10, 1 << 20].map(seconds), [5.0, 5.5, 6.0, 20.0, 20.0]);
    }
}
