//! The window in which exact repetitions are known: same source, same update, same bytes.
//!
//! What a transaction adds counts at once (a repetition may sit in the same one), but is forgotten
//! when the transaction is aborted.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::config;

/// First occurrences of the last minutes, oldest first.
pub(super) struct Window {
    window_ms: u64,
    entries: usize,
    known: HashSet<u128>,
    /// Time of acceptance in milliseconds, and what was accepted.
    order: VecDeque<(u64, u128)>,
    /// How many of the newest belong to the open transaction.
    uncommitted: usize,
}

impl Window {
    pub(super) fn new(limits: config::Duplicates) -> Self {
        Self {
            window_ms: limits.window.as_millis().try_into().unwrap_or(u64::MAX),
            entries: limits.entries,
            known: HashSet::new(),
            order: VecDeque::new(),
            uncommitted: 0,
        }
    }

    /// Whether this update was seen within the window; if not, it is remembered.
    pub(super) fn repeats(
        &mut self,
        source: &str,
        event_id: [u8; 16],
        content_hash: [u8; 32],
        received_at_ms: u64,
    ) -> bool {
        if self.window_ms == 0 || self.entries == 0 {
            return false;
        }
        let oldest_ms = received_at_ms.saturating_sub(self.window_ms);
        self.forget(|order| order.front().is_some_and(|(at, _)| *at < oldest_ms));
        let key = digest(source, event_id, content_hash);
        if !self.known.insert(key) {
            return true;
        }
        let entries = self.entries;
        self.forget(|order| order.len() >= entries);
        self.order.push_back((received_at_ms, key));
        self.uncommitted += 1;
        false
    }

    /// What the open transaction added stays.
    pub(super) fn commit(&mut self) {
        self.uncommitted = 0;
    }

    /// What the open transaction added is forgotten.
    pub(super) fn abort(&mut self) {
        for _ in 0..std::mem::take(&mut self.uncommitted) {
            if let Some((_, key)) = self.order.pop_back() {
                self.known.remove(&key);
            }
        }
    }

    /// Forgets the oldest while `too_old`; an uncommitted one must stay to be forgotten by an abort.
    fn forget(&mut self, too_old: impl Fn(&VecDeque<(u64, u128)>) -> bool) {
        while self.order.len() > self.uncommitted && too_old(&self.order) {
            if let Some((_, key)) = self.order.pop_front() {
                self.known.remove(&key);
            }
        }
    }
}

/// 128 bits that differ where source, update or bytes differ: half of them are of the content's
/// SHA-256, half a hash of all three.
fn digest(source: &str, event_id: [u8; 16], content_hash: [u8; 32]) -> u128 {
    let mut hasher = DefaultHasher::new();
    (source, event_id, content_hash).hash(&mut hasher);
    let content = content_hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    u128::from(hasher.finish()) << 64 | u128::from(content)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MINUTE_MS: u64 = 60_000;

    fn window(entries: usize) -> Window {
        Window::new(config::Duplicates { window: Duration::from_secs(60), entries })
    }

    fn seen(window: &mut Window, update: u8, at: u64) -> bool {
        window.repeats("loja", [update; 16], [update; 32], at)
    }

    #[test]
    fn a_repetition_is_known_at_once_and_after_the_commit_until_the_window_has_passed() {
        let mut window = window(100);
        assert!(!seen(&mut window, 1, 0));
        assert!(seen(&mut window, 1, 1));
        window.commit();
        assert!(seen(&mut window, 1, MINUTE_MS));
        assert!(!seen(&mut window, 1, MINUTE_MS + 1));
    }

    #[test]
    fn an_abort_forgets_what_its_transaction_added_and_nothing_else() {
        let mut window = window(100);
        assert!(!seen(&mut window, 1, 0));
        window.commit();
        assert!(!seen(&mut window, 2, 1));
        window.abort();
        assert!(seen(&mut window, 1, 2));
        assert!(!seen(&mut window, 2, 2));
    }

    #[test]
    fn other_bytes_or_another_source_are_no_repetition() {
        let mut window = window(100);
        assert!(!window.repeats("loja", [1; 16], [1; 32], 0));
        assert!(!window.repeats("loja", [1; 16], [2; 32], 0));
        assert!(!window.repeats("outra", [1; 16], [1; 32], 0));
    }

    #[test]
    fn the_oldest_give_way_when_the_window_is_full() {
        let mut window = window(2);
        for update in 1..=3 {
            assert!(!seen(&mut window, update, 0));
            window.commit();
        }
        assert!(!seen(&mut window, 1, 0));
        assert!(seen(&mut window, 3, 0));
    }
}
