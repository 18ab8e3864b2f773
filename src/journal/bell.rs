//! What wakes the keeper, and stops it.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<(Rung, Stopped)>,
    changed: Condvar,
}

type Rung = bool;
type Stopped = bool;

impl Bell {
    pub(super) fn ring(&self) {
        self.state.lock().0 = true;
        self.changed.notify_all();
    }

    pub(super) fn stop(&self) {
        self.state.lock().1 = true;
        self.changed.notify_all();
    }

    /// Waits for a ring or the next round; true when the keeper shall stop.
    pub(super) fn wait(&self, deadline: Instant) -> Stopped {
        let mut state = self.state.lock();
        while !state.0 && !state.1 {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.0 = false;
        state.1
    }
}
