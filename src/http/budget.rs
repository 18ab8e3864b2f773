//! One budget for all memory held for callers: heads, bodies, and answers until they are written.
//!
//! Each call takes its first bytes from the reserve and the others from the rest, so ordinary calls pass
//! while large or slow bodies hold the rest.
//!
//! **Invariant:** memory is taken from the budget before it is used. No call waits for memory, because
//! waiting calls hold what others wait for.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// How much of each call comes from the reserve.
const RESERVED_BYTES: usize = 32 << 10;

/// What calls may still take.
#[derive(Debug)]
pub(super) struct Budget {
    reserve: Pool,
    rest: Pool,
}

#[derive(Debug)]
struct Pool {
    left: AtomicUsize,
    /// Any source may have this much. A small pool admits one large body at a time.
    least: usize,
}

/// What the calls of one source hold.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    /// It is the only source and may take all.
    pub(super) alone: AtomicBool,
    reserve: AtomicUsize,
    rest: AtomicUsize,
}

/// What one call holds, until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    share: Arc<Share>,
    bytes: usize,
}

impl Budget {
    /// A quarter is the reserve. One body of `max_body_bytes` fits, however small `bytes` is.
    pub(super) fn new(bytes: usize, max_body_bytes: usize) -> Arc<Self> {
        let body = max_body_bytes.max(RESERVED_BYTES);
        let reserve = (bytes / 4).min(bytes.saturating_sub(body)).max(2 * RESERVED_BYTES);
        let rest = bytes.saturating_sub(reserve).max(body);
        let pool = |bytes: usize, least| Pool { left: bytes.into(), least };
        Arc::new(Self { reserve: pool(reserve, RESERVED_BYTES), rest: pool(rest, body) })
    }
}

impl Pool {
    /// Refuses if the source is not alone and would then hold more than it leaves to the others.
    fn take(&self, share: &AtomicUsize, alone: bool, bytes: usize) -> bool {
        // A call that needs nothing of this pool passes, whatever its source holds of it.
        if bytes == 0 {
            return true;
        }
        // Counted first, so that of two calls at once both are refused rather than both admitted.
        let held = share.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let may_leave = |left: &usize| alone || held <= self.least.max(*left);
        let take = |left: usize| left.checked_sub(bytes).filter(may_leave);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if !taken {
            share.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    fn give_back(&self, share: &AtomicUsize, bytes: usize) {
        if bytes > 0 {
            self.left.fetch_add(bytes, Ordering::Relaxed);
            share.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Share {
    pub(super) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        let (alone, reserve, rest) = Default::default();
        Arc::new(Self { budget: Arc::clone(budget), alone, reserve, rest })
    }
}

impl Hold {
    pub(super) fn new(share: &Arc<Share>) -> Self {
        Self { share: Arc::clone(share), bytes: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `bytes` more. Returns false if the budget does not have them for this source.
    #[must_use]
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let Share { budget, alone, reserve, rest } = &*self.share;
        let alone = alone.load(Ordering::Relaxed);
        let from_reserve = bytes.min(RESERVED_BYTES.saturating_sub(self.bytes));
        if !budget.reserve.take(reserve, alone, from_reserve) {
            return false;
        }
        if !budget.rest.take(rest, alone, bytes - from_reserve) {
            budget.reserve.give_back(reserve, from_reserve);
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// Gives back all but the first `bytes`.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let Share { budget, reserve, rest, .. } = &*self.share;
        let [reserved, left] = [self.bytes, bytes].map(|bytes| bytes.min(RESERVED_BYTES));
        budget.reserve.give_back(reserve, reserved - left);
        budget.rest.give_back(rest, (self.bytes - reserved) - (bytes - left));
        self.bytes = bytes;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: usize = 1_000_000;

    fn left(budget: &Budget) -> (usize, usize) {
        (budget.reserve.left.load(Ordering::Relaxed), budget.rest.left.load(Ordering::Relaxed))
    }

    fn shares<const COUNT: usize>(budget: &Arc<Budget>) -> [Arc<Share>; COUNT] {
        [(); COUNT].map(|()| Share::new(budget))
    }

    #[test]
    fn a_small_hold_takes_nothing_but_the_reserve_and_gives_back_what_it_took_last() {
        let budget = Budget::new(4 << 20, BODY);
        let [share] = shares(&budget);
        let mut hold = Hold::new(&share);
        for _ in 0..32 {
            assert!(hold.take(1024));
        }
        assert_eq!(left(&budget), ((1 << 20) - RESERVED_BYTES, 3 << 20));
        assert!(hold.take(7));
        assert_eq!(left(&budget), ((1 << 20) - RESERVED_BYTES, (3 << 20) - 7));
        hold.shrink(1024);
        assert_eq!(left(&budget), ((1 << 20) - 1024, 3 << 20));
        assert!(!hold.take(4 << 20));
        assert_eq!((hold.bytes(), left(&budget)), (1024, ((1 << 20) - 1024, 3 << 20)));
        drop(hold);
        assert_eq!(left(&budget), (1 << 20, 3 << 20));
    }

    #[test]
    fn one_source_leaves_as_much_to_others_as_it_holds_unless_it_is_alone() {
        let budget = Budget::new(64 << 20, BODY);
        let all_of = |share: &Arc<Share>, bytes| {
            let holds = std::iter::repeat_with(|| {
                let mut hold = Hold::new(share);
                hold.take(bytes).then_some(hold)
            });
            holds.map_while(|hold| hold).collect::<Vec<_>>()
        };
        let [first, second, alone] = shares(&budget);
        alone.alone.store(true, Ordering::Relaxed);
        let small = all_of(&first, RESERVED_BYTES);
        assert_eq!(small.len(), 256, "half of 16 MiB");
        assert_eq!(all_of(&second, RESERVED_BYTES).len(), 128, "half of what is left");
        let large = all_of(&second, BODY);
        assert_eq!(large.len(), 26, "half of 48 MiB");
        drop((small, large));
        assert_eq!(all_of(&alone, RESERVED_BYTES).len(), 512);
        assert_eq!(left(&budget), (16 << 20, 48 << 20));
    }

    #[test]
    fn what_others_took_of_one_pool_stops_nobody_at_the_other() {
        let budget = Budget::new(64 << 20, BODY);
        let [first, second] = shares(&budget);
        let take = |share: &Arc<Share>, bytes, times| -> Vec<_> {
            let mut holds: Vec<_> = (0..times).map(|_| Hold::new(share)).collect();
            holds.iter_mut().for_each(|hold| assert!(hold.take(bytes)));
            holds
        };
        let large = take(&first, BODY, 25);
        let others = take(&second, BODY, 3);
        assert!(Hold::new(&first).take(1000), "a small call of who holds most of the rest");
        drop((large, others));
        let mut growing = take(&first, RESERVED_BYTES, 1);
        let small = take(&first, RESERVED_BYTES, 250);
        let others = take(&second, RESERVED_BYTES, 50);
        assert!(growing[0].take(BODY), "a body grows beyond what it has of the reserve");
        drop((small, others));
    }

    #[test]
    fn however_small_a_budget_is_it_holds_the_largest_call_of_any_source() {
        for body in [1024, BODY, 16 << 20] {
            for bytes in [body, body + 1, body * 2, body * 3] {
                let budget = Budget::new(bytes, body);
                let (reserve, rest) = left(&budget);
                assert!(reserve + rest <= bytes.max(RESERVED_BYTES) + (64 << 10), "{bytes}");
                let [share] = shares(&budget);
                let mut call = Hold::new(&share);
                assert!(call.take(16 << 10) && call.take(body), "{body} of {bytes}");
            }
        }
    }
}
