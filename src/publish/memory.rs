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
    pub(super) size: Size,
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
            size: Size::FULL,
            present_time: false,
        }
    }
}
