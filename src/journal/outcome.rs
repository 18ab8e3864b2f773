//! How the callers of a batch learn whether it is durable.
//!
//! The writer wakes one caller, and that one wakes the others. A wake-up from a thread outside the runtime
//! takes a lock that all of the runtime's threads share; from inside it does not.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};

use super::AppendError;

/// Decides a batch. Dropping it undecided, as a writer that panics does, fails the batch.
#[derive(Debug, Default)]
pub(super) struct Decision(Arc<Mutex<Decided>>);

/// Resolves when the batch is decided.
#[derive(Debug)]
pub(super) struct BatchOutcome {
    shared: Arc<Mutex<Decided>>,
    /// The place in `waiting`, from the first poll on.
    place: Option<usize>,
}

#[derive(Debug, Default)]
struct Decided {
    result: Option<Result<(), AppendError>>,
    /// `None` where a caller no longer waits.
    waiting: Vec<Option<Waker>>,
}

impl Decision {
    pub(super) fn outcome(&self) -> BatchOutcome {
        BatchOutcome { shared: Arc::clone(&self.0), place: None }
    }

    pub(super) fn decide(&self, result: Result<(), AppendError>) {
        let mut decided = self.0.lock();
        decided.result = Some(result);
        let first = std::iter::from_fn(|| decided.waiting.pop()).flatten().next();
        drop(decided);
        first.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Decision {
    fn drop(&mut self) {
        if self.0.lock().result.is_none() {
            self.decide(Err(AppendError::Failed));
        }
    }
}

impl Future for BatchOutcome {
    type Output = Result<(), AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (shared, waker) = (Arc::clone(&self.shared), context.waker().clone());
        let mut decided = shared.lock();
        if let Some(result) = decided.result {
            wake_others(decided);
            return Poll::Ready(result);
        }
        let place = *self.place.get_or_insert_with(|| {
            decided.waiting.push(None);
            decided.waiting.len() - 1
        });
        let before = decided.waiting[place].replace(waker);
        drop(decided);
        // Without the lock: a waker may be the last to hold a task, and that task another outcome.
        drop(before);
        Poll::Pending
    }
}

impl Drop for BatchOutcome {
    /// It may be the caller that was to wake the others.
    fn drop(&mut self) {
        let mut decided = self.shared.lock();
        if decided.result.is_some() {
            wake_others(decided);
        } else if let Some(place) = self.place {
            let waker = decided.waiting[place].take();
            drop(decided);
            drop(waker);
        }
    }
}

fn wake_others(mut decided: MutexGuard<'_, Decided>) {
    let others = mem::take(&mut decided.waiting);
    drop(decided);
    others.into_iter().flatten().for_each(Waker::wake);
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A caller that waits, and how often it was woken.
    struct Caller {
        outcome: Pin<Box<BatchOutcome>>,
        woken: Arc<WakeCount>,
    }

    impl Caller {
        fn of(decision: &Decision) -> Self {
            let mut caller = Self { outcome: Box::pin(decision.outcome()), woken: Arc::default() };
            assert!(caller.poll().is_pending());
            caller
        }

        fn poll(&mut self) -> Poll<Result<(), AppendError>> {
            let waker = Waker::from(Arc::clone(&self.woken));
            self.outcome.as_mut().poll(&mut Context::from_waker(&waker))
        }

        fn is_woken(&self) -> bool {
            self.woken.0.load(Ordering::Relaxed) > 0
        }
    }

    /// Callers that wait for a decided batch; the one that was woken is the last.
    fn decided(result: Result<(), AppendError>) -> Vec<Caller> {
        let decision = Decision::default();
        let mut callers: Vec<_> = (0..5).map(|_| Caller::of(&decision)).collect();
        // One gives up before the decision.
        drop(callers.pop());
        decision.decide(result);
        callers.sort_by_key(Caller::is_woken);
        let woken: Vec<_> = callers.iter().map(Caller::is_woken).collect();
        assert_eq!(woken, [false, false, false, true]);
        callers
    }

    #[test]
    fn the_caller_that_is_woken_wakes_the_others() {
        for result in [Ok(()), Err(AppendError::Full)] {
            let mut callers = decided(result);
            assert_eq!(callers.pop().unwrap().poll(), Poll::Ready(result));
            assert!(callers.iter().all(Caller::is_woken));
            assert!(callers.iter_mut().all(|caller| caller.poll() == Poll::Ready(result)));
        }
    }

    #[test]
    fn the_caller_that_is_woken_wakes_the_others_also_if_it_gives_up() {
        let mut callers = decided(Ok(()));
        drop(callers.pop());
        assert!(callers.iter().all(Caller::is_woken));
    }

    #[test]
    fn a_batch_that_nobody_decides_has_failed() {
        let decision = Decision::default();
        let mut caller = Caller::of(&decision);
        drop(decision);
        assert!(caller.is_woken());
        assert_eq!(caller.poll(), Poll::Ready(Err(AppendError::Failed)));
    }
}
