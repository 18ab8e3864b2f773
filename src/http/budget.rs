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

/// How much of each body, and of the rest of each call, comes from the reserve.
pub(super) const RESERVED_BYTES: usize = 16 << 10;
/// The least that a source may have of the reserve: one call and its body.
const RESERVED_MIN: usize = 2 * RESERVED_BYTES;

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
#[derive(Debug, Default)]
pub(super) struct Share {
    /// It is the only source and may take all.
    pub(super) alone: AtomicBool,
    reserve: AtomicUsize,
    rest: AtomicUsize,
}

/// What one call or its body holds, until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    budget: Arc<Budget>,
    share: Arc<Share>,
    reserved: usize,
    beyond: usize,
}

impl Budget {
    /// A quarter is the reserve. One body of `max_body_bytes` fits, however small `bytes` is.
    pub(super) fn new(bytes: usize, max_body_bytes: usize) -> Arc<Self> {
        let body = max_body_bytes.max(RESERVED_BYTES);
        let reserve = (bytes / 4).min(bytes.saturating_sub(body)).max(2 * RESERVED_MIN);
        let rest = bytes.saturating_sub(reserve).max(body);
        let pool = |bytes: usize, least| Pool { left: bytes.into(), least };
        Arc::new(Self { reserve: pool(reserve, RESERVED_MIN), rest: pool(rest, body) })
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
        self.left.fetch_add(bytes, Ordering::Relaxed);
        share.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Hold {
    pub(super) fn new(budget: &Arc<Budget>, share: &Arc<Share>) -> Self {
        let (budget, share) = (Arc::clone(budget), Arc::clone(share));
        Self { budget, share, reserved: 0, beyond: 0 }
    }

    /// An empty hold of the same source.
    pub(super) fn another(&self) -> Self {
        Self::new(&self.budget, &self.share)
    }

    /// Takes `bytes` more. Returns false if the budget does not have them for this source.
    #[must_use]
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let Self { budget, share, reserved, beyond } = self;
        let alone = share.alone.load(Ordering::Relaxed);
        let from_reserve = bytes.min(RESERVED_BYTES - *reserved);
        let from_rest = bytes - from_reserve;
        if !budget.reserve.take(&share.reserve, alone, from_reserve) {
            return false;
        }
        *reserved += from_reserve;
        if !budget.rest.take(&share.rest, alone, from_rest) {
            return false;
        }
        *beyond += from_rest;
        true
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.reserve.give_back(&self.share.reserve, self.reserved);
        self.budget.rest.give_back(&self.share.rest, self.beyond);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Hold {
        pub(in super::super) fn bytes(&self) -> usize {
            self.reserved + self.beyond
        }
    }

    const BODY: usize = 1_000_000;

    fn left(budget: &Budget) -> (usize, usize) {
        (budget.reserve.left.load(Ordering::Relaxed), budget.rest.left.load(Ordering::Relaxed))
    }

    #[test]
    fn a_small_hold_takes_nothing_but_the_reserve_and_a_large_one_little_of_it() {
        let budget = Budget::new(4 << 20, BODY);
        let mut hold = Hold::new(&budget, &Arc::default());
        for _ in 0..16 {
            assert!(hold.take(1024));
        }
        assert_eq!((hold.reserved, hold.beyond), (RESERVED_BYTES, 0));
        assert!(hold.take(1));
        let mut whole = hold.another();
        assert!(whole.take(RESERVED_BYTES + 7));
        assert_eq!((hold.beyond, whole.reserved, whole.beyond), (1, RESERVED_BYTES, 7));
        drop((hold, whole));
        assert_eq!(left(&budget), (1 << 20, 3 << 20));
    }

    #[test]
    fn one_source_leaves_as_much_to_others_as_it_holds_unless_it_is_alone() {
        let budget = Budget::new(64 << 20, BODY);
        let all_of = |share: &Arc<Share>, bytes| {
            let holds = std::iter::repeat_with(|| {
                let mut hold = Hold::new(&budget, share);
                hold.take(bytes).then_some(hold)
            });
            holds.map_while(|hold| hold).collect::<Vec<_>>()
        };
        let [first, second, alone] = [(); 3].map(|()| Arc::<Share>::default());
        alone.alone.store(true, Ordering::Relaxed);
        let small = all_of(&first, RESERVED_BYTES);
        assert_eq!(small.len(), 512, "half of 16 MiB");
        assert_eq!(all_of(&second, RESERVED_BYTES).len(), 256, "half of what is left");
        let large = all_of(&second, BODY);
        assert_eq!(large.len(), 25, "half of 48 MiB");
        drop((small, large));
        assert_eq!(all_of(&alone, RESERVED_BYTES).len(), 1024);
        assert_eq!(left(&budget), (16 << 20, 48 << 20));
    }

    #[test]
    fn what_others_took_of_one_pool_stops_nobody_at_the_other() {
        let budget = Budget::new(64 << 20, BODY);
        let [first, second] = [(); 2].map(|()| Arc::<Share>::default());
        let take = |share: &Arc<Share>, bytes, times| -> Vec<_> {
            let mut holds: Vec<_> = (0..times).map(|_| Hold::new(&budget, share)).collect();
            holds.iter_mut().for_each(|hold| assert!(hold.take(bytes)));
            holds
        };
        let large = take(&first, BODY, 25);
        let others = take(&second, BODY, 3);
        assert!(
            Hold::new(&budget, &first).take(1000),
            "a small call of who holds most of the rest"
        );
        drop((large, others));
        let mut growing = take(&first, RESERVED_BYTES, 1);
        let small = take(&first, RESERVED_BYTES, 500);
        let others = take(&second, RESERVED_BYTES, 100);
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
                let mut call = Hold::new(&budget, &Arc::default());
                let mut held = call.another();
                assert!(call.take(RESERVED_BYTES) && held.take(body), "{body} of {bytes}");
            }
        }
    }
}
