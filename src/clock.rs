//! The clock of the journal and the publisher. It is the machine's clock, or, under the feature
//! `simulation`, that of the simulated world in which a thread runs.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Condvar, MutexGuard};

/// A simulated world. It runs on the thread that waits: everything else happens inside [`World::turn`].
#[cfg(feature = "simulation")]
pub trait World {
    /// The present instant.
    fn now(&self) -> Instant;
    /// Milliseconds since 1970.
    fn wall_ms(&self) -> u64;
    /// Lets one thing happen elsewhere, or time pass up to `until`.
    fn turn(&self, until: Instant);
}

#[cfg(feature = "simulation")]
thread_local! {
    static WORLD: std::cell::RefCell<Option<std::rc::Rc<dyn World>>> = const { std::cell::RefCell::new(None) };
}

/// Puts this thread into a world, or back into the real one.
#[cfg(feature = "simulation")]
pub fn enter(world: Option<std::rc::Rc<dyn World>>) {
    WORLD.set(world);
}

#[cfg(feature = "simulation")]
fn world() -> Option<std::rc::Rc<dyn World>> {
    WORLD.with_borrow(Clone::clone)
}

/// The present instant.
pub fn now() -> Instant {
    #[cfg(feature = "simulation")]
    if let Some(world) = world() {
        return world.now();
    }
    Instant::now()
}

/// Milliseconds since 1970; 0 before.
pub fn wall_ms() -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(world) = world() {
        return world.wall_ms();
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Waits for `pause`.
pub fn sleep(pause: Duration) {
    #[cfg(feature = "simulation")]
    if let Some(world) = world() {
        let until = world.now() + pause;
        while world.now() < until {
            world.turn(until);
        }
        return;
    }
    thread::sleep(pause);
}

/// Waits on `condvar` until `deadline`, a notification, or a spurious wake: the caller must check its
/// condition again. Returns false once the deadline has passed.
pub fn wait_until<T>(condvar: &Condvar, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> bool {
    #[cfg(feature = "simulation")]
    if let Some(world) = world() {
        MutexGuard::unlocked(guard, || world.turn(deadline));
        return world.now() < deadline;
    }
    !condvar.wait_until(guard, deadline).timed_out()
}
