//! What a publisher keeps from one producer to the next: how much a transaction takes, and which
//! records and callbacks are under suspicion.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use super::account::{ItemId, Sent};
use crate::{
    config::client::TRANSACTION_TIMEOUT,
    event::{Reason, Topic},
    journal::Position,
    kafka::{BATCH_BYTES, Code, ProducerSettings, Timestamps},
};

/// The most that brokers allow by default (`transaction.max.timeout.ms`).
const TRANSACTION_TIMEOUT_MAX: Duration = Duration::from_secs(15 * 60);
/// A callback that ran out of the longest time alone so often becomes a dead letter.
const SLOW_MAX: u32 = 5;

/// How much a transaction takes; always at least one callback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

impl Size {
    /// Short transactions for readers, little memory for the client.
    pub(super) const FULL: Self = Self { items: 10_000, bytes: 8 << 20 };
    /// More than any earlier transaction held, also one whose settings made smaller records.
    pub(super) const TWICE: Self =
        Self { items: 2 * Self::FULL.items, bytes: 2 * Self::FULL.bytes };
    /// No limit.
    pub(super) const ALL: Self = Self { items: usize::MAX, bytes: usize::MAX };
    /// One callback.
    pub(super) const SINGLE: Self = Self { items: 1, bytes: 1 };

    pub(super) fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes += bytes;
    }

    pub(super) fn is_below(self, limit: Self) -> bool {
        self.items < limit.items && self.bytes < limit.bytes
    }

    fn half(self) -> Self {
        Self { items: (self.items / 2).max(1), bytes: (self.bytes / 2).max(1) }
    }

    fn double(self) -> Self {
        Self { items: 2 * self.items, bytes: 2 * self.bytes }.min(Self::FULL)
    }

    fn min(self, other: Self) -> Self {
        Self { items: self.items.min(other.items), bytes: self.bytes.min(other.bytes) }
    }
}

/// Why a record is not published as what it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct RejectedRecord {
    pub(super) code: Code,
    /// Its dead letter was rejected as well.
    pub(super) dead_letter_too: bool,
}

/// Records and callbacks under suspicion.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Records that Kafka rejected alone.
    pub(super) rejected: HashMap<ItemId, RejectedRecord>,
    /// Rejections since a record of the topic was last committed, by topic and code.
    pub(super) consecutive_rejections: HashMap<(Topic, i32), BTreeSet<ItemId>>,
    /// Records that were corrupted on the way once. The second time, the record is to blame.
    pub(super) corrupted_once: BTreeSet<ItemId>,
    /// Callbacks that become a dead letter as a whole, and why.
    pub(super) dead: BTreeMap<Position, Reason>,
    /// The first callback that is not committed ran out of the longest time alone. It counts if
    /// Kafka takes other records in time.
    pub(super) first_is_slow: bool,
    /// The callback that did so, and how often.
    pub(super) slow: Option<(Position, u32)>,
}

impl Suspects {
    /// These records were committed, and all that lies before `position`.
    fn forget(&mut self, position: Position, committed: &[Sent]) {
        self.rejected.retain(|id, _| id.position >= position);
        self.corrupted_once.retain(|id| id.position >= position);
        self.dead.retain(|dead, _| *dead >= position);
        self.slow = self.slow.filter(|(slow, _)| *slow >= position);
        let is_out = |topic: Topic| committed.iter().all(|sent| sent.topic != topic);
        self.consecutive_rejections.retain(|(topic, _), _| is_out(*topic));
    }

    /// The callback ran out of time, and Kafka takes others in time.
    pub(super) fn was_too_slow(&mut self, position: Position) {
        let times = self.slow.filter(|(slow, _)| *slow == position).map_or(0, |(_, times)| times);
        self.slow = Some((position, times + 1));
        if times + 1 >= SLOW_MAX {
            self.dead.insert(position, Reason::TooSlow);
        }
    }
}

/// What a publisher keeps from one producer to the next.
#[derive(Debug)]
pub(super) struct Learnt {
    /// What the next transaction takes.
    pub(super) size: Size,
    /// For the next producer.
    pub(super) settings: ProducerSettings,
    pub(super) suspects: Suspects,
    pub(super) timestamps: Timestamps,
    /// Openings that still try to end a transaction whose end Kafka has not told all partitions,
    /// also where the position shows it no more.
    pub(super) tries_to_end: u32,
}

impl Learnt {
    /// `failed`: callbacks at which normalizing panicked or hung twice.
    pub(super) fn new(failed: BTreeSet<Position>) -> Self {
        let dead = failed.into_iter().map(|position| (position, Reason::Panic)).collect();
        Self {
            size: Size::FULL,
            settings: ProducerSettings { timeout: TRANSACTION_TIMEOUT, batch_bytes: BATCH_BYTES },
            suspects: Suspects { dead, ..Suspects::default() },
            timestamps: Timestamps::Accepted,
            tries_to_end: 0,
        }
    }

    /// These records were committed, and all that lies before `position`.
    pub(super) fn committed(&mut self, position: Position, sent: &[Sent]) {
        self.grow();
        self.timestamps = Timestamps::Accepted;
        self.suspects.forget(position, sent);
    }

    fn grow(&mut self) {
        self.size = self.size.double();
        if self.size == Size::FULL {
            // For the next producer: one that dies holds readers so long.
            self.settings.timeout = TRANSACTION_TIMEOUT;
        }
    }

    /// Time ran out for so much.
    pub(super) fn shrink(&mut self, attempted: Size) {
        // Where nothing was sent, the size was not the cause.
        let attempted = if attempted.items == 0 { self.size } else { self.size.min(attempted) };
        self.size = attempted.half();
    }

    /// Time ran out for one callback. Returns false if it had the longest time already.
    pub(super) fn lengthen(&mut self) -> bool {
        let longest = self.settings.timeout >= TRANSACTION_TIMEOUT_MAX;
        self.settings.timeout = (2 * self.settings.timeout).min(TRANSACTION_TIMEOUT_MAX);
        !longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_ran_out_halves_the_size_and_each_commit_doubles_it() {
        let mut learnt = Learnt::new(BTreeSet::new());
        learnt.shrink(Size { items: 800, bytes: 1 << 20 });
        assert_eq!(learnt.size, Size { items: 400, bytes: 512 << 10 });
        learnt.shrink(Size { items: 0, bytes: 0 });
        assert_eq!(learnt.size.items, 200, "nothing was sent: less all the same");
        (0..8).for_each(|_| learnt.grow());
        assert_eq!(learnt.size, Size::FULL);
    }

    #[test]
    fn time_doubles_to_the_longest_that_brokers_allow() {
        let mut learnt = Learnt::new(BTreeSet::new());
        let doubled = (0..).take_while(|_| learnt.lengthen()).count();
        assert_eq!(doubled, 6, "15 s to 15 min");
        assert_eq!(learnt.settings.timeout, TRANSACTION_TIMEOUT_MAX);
        learnt.size = Size::FULL.half().half();
        learnt.grow();
        assert_eq!(learnt.settings.timeout, TRANSACTION_TIMEOUT_MAX, "still for want of time");
        learnt.grow();
        assert_eq!(learnt.settings.timeout, TRANSACTION_TIMEOUT);
    }

    #[test]
    fn a_callback_is_too_slow_at_the_fifth_time_in_a_row() {
        let (slow, other) = (Position::new(1, 5), Position::new(1, 6));
        let mut suspects = Suspects::default();
        (0..4).for_each(|_| suspects.was_too_slow(slow));
        assert!(suspects.dead.is_empty());
        suspects.was_too_slow(other);
        (0..4).for_each(|_| suspects.was_too_slow(slow));
        assert!(suspects.dead.is_empty(), "another one came in between");
        suspects.was_too_slow(slow);
        assert_eq!(suspects.dead.get(&slow), Some(&Reason::TooSlow));
    }
}
