//! Receipts: UUIDv7 that grow with every call of one process, made without a lock and without
//! asking the system for random bytes each time.

use std::sync::atomic::{AtomicU64, Ordering};

use uuid::{Builder, Uuid};

const COUNTER_BITS: u32 = 42;

/// Of the 74 bits that a UUIDv7 has behind its milliseconds, the first 42 count from a random
/// start and the last 32 are random for the process: what RFC 9562 calls a counter and a node.
pub(super) struct Receipts {
    counter: AtomicU64,
    process: u32,
}

impl Receipts {
    pub(super) fn new() -> Self {
        let (start, rest) = Uuid::new_v4().as_u64_pair();
        Self { counter: AtomicU64::new(start >> 16), process: rest as u32 }
    }

    /// The receipt of what was received `at_ms` milliseconds after 1970.
    pub(super) fn next(&self, at_ms: u64) -> Uuid {
        let count = self.counter.fetch_add(1, Ordering::Relaxed) & ((1 << COUNTER_BITS) - 1);
        let bits = u128::from(count) << 32 | u128::from(self.process);
        // Version and variant take 4 bits before the first 12 and 2 before the other 62.
        let (high, low) = (bits >> 62, bits & ((1 << 62) - 1));
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&(high as u16).to_be_bytes());
        bytes[2..].copy_from_slice(&(low as u64).to_be_bytes());
        Builder::from_unix_timestamp_millis(at_ms, &bytes).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_are_version_7_and_grow_within_a_millisecond_and_over_it() {
        let receipts = Receipts { counter: AtomicU64::new((1 << 30) - 3), process: u32::MAX };
        let made: Vec<_> = (0..8).map(|n| receipts.next(1_763_842_387_482 + n / 6)).collect();
        assert!(made.is_sorted_by(|a, b| a < b), "{made:?}");
        assert!(made.iter().all(|receipt| receipt.get_version_num() == 7));
        assert!(made.iter().all(|receipt| receipt.get_variant() == uuid::Variant::RFC4122));
        let seconds = made[0].get_timestamp().unwrap().to_unix();
        assert_eq!(seconds, (1_763_842_387, 482_000_000));
    }

    #[test]
    fn two_processes_do_not_count_alike() {
        let (one, other) = (Receipts::new(), Receipts::new());
        assert_ne!(one.next(7), other.next(7));
    }
}
