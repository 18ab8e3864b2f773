//! What a publisher learns and keeps from one client to the next.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use super::{
    Shared,
    batch::{ItemId, Refusal, Size},
    window::Window,
};
use crate::{event::Topic, journal::Position};

/// The time that a transaction may take, unless a callback alone needs more.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// librdkafka's own default of `batch.size`.
pub(super) const BATCH_BYTES: usize = 1_000_000;

/// What a publisher learns and keeps from one client to the next.
pub(super) struct Memory {
    pub(super) transaction_timeout: Duration,
    /// What one request carries for a partition at most.
    pub(super) batch_bytes: usize,
    /// Callbacks that made normalizing panic twice.
    pub(super) panicked: BTreeSet<Position>,
    pub(super) window: Window,
    pub(super) refused: HashMap<ItemId, Refusal>,
    /// What was refused since a record of its topic was last committed, by topic and code.
    pub(super) in_a_row: HashMap<(Topic, i32), Vec<ItemId>>,
    /// Records that were damaged on the way once: a second time it is theirs.
    pub(super) damaged: BTreeSet<ItemId>,
    pub(super) sizing: Sizing,
    pub(super) present_time: bool,
}

impl Memory {
    pub(super) fn new(shared: &Shared, panicked: BTreeSet<Position>) -> Self {
        Self {
            transaction_timeout: TRANSACTION_TIMEOUT,
            batch_bytes: BATCH_BYTES,
            panicked,
            window: Window::new(shared.config.load().duplicates),
            refused: HashMap::new(),
            in_a_row: HashMap::new(),
            damaged: BTreeSet::new(),
            sizing: Sizing { size: Size::FULL, too_much: None },
            present_time: false,
        }
    }
}

/// How much the next transaction takes. To try too much costs a client and all that it had sent.
pub(super) struct Sizing {
    pub(super) size: Size,
    /// What time ran out for.
    too_much: Option<Size>,
}

impl Sizing {
    /// Something was committed, well within its time or not.
    pub(super) fn grow(&mut self, well_within_time: bool) {
        let double = self.size.double();
        let known_as_too_much = self.too_much.is_some_and(|too_much| !double.is_below(too_much));
        if known_as_too_much && !well_within_time {
            self.size = self.size.a_little_more();
        } else {
            self.size = double;
            self.too_much = self.too_much.filter(|_| !known_as_too_much);
        }
    }

    /// Time ran out for so much.
    pub(super) fn shrink(&mut self, attempted: Size) {
        // Where nothing was sent it was not for the size.
        let too_much = if attempted.records == 0 { self.size } else { self.size.min(attempted) };
        self.size = too_much.half();
        self.too_much = Some(too_much);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(records: usize) -> Size {
        Size { records, bytes: records * 1000 }
    }

    #[test]
    fn what_time_ran_out_for_is_halved_and_only_come_near_to() {
        let mut sizing = Sizing { size: Size::FULL, too_much: None };
        sizing.shrink(of(800));
        assert_eq!(sizing.size, of(400));
        sizing.grow(false);
        assert!(sizing.size.is_below(of(500)), "{:?}", sizing.size);
        sizing.size = Size::SINGLE;
        (0..8).for_each(|_| sizing.grow(false));
        assert_eq!(sizing.size.records, 256, "what is known to fit comes back fast");
    }

    #[test]
    fn what_time_ran_out_for_is_tried_again_when_there_is_time() {
        let mut sizing = Sizing { size: Size::FULL, too_much: None };
        sizing.shrink(of(800));
        (0..2).for_each(|_| sizing.grow(true));
        assert_eq!(sizing.size, of(1600));
        (0..8).for_each(|_| sizing.grow(false));
        assert_eq!(sizing.size, Size::FULL);
    }
}
