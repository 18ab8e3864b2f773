//! What one callback may become: its elements each repeat the channel, the contact and their place.
//!
//! 400 KB of a phone number over 9,000 elements are 3.6 GB of events. The journal would give them to
//! the publisher again after every restart, so the limit is decided before anything is sent.

use std::borrow::Cow;

use super::{Reading, envelope::Part};
use crate::event::{Contact, Item, Text};

/// Bytes of values, keys and headers for each byte of the body. Real callbacks stay below 8.
const RATIO_MAX: usize = 32;
/// What a callback may become beyond that.
const ALLOWANCE_BYTES: usize = 1 << 20;
/// The names of fields and headers of one item, its receipt, times and ids.
const ITEM_BYTES: usize = 2048;
/// How often an item may hold what all items share: as field and as header, and each byte that is no
/// UTF-8 as three.
const SHARED_TIMES: usize = 6;

/// Bytes that a copy of the text takes: none where it stands in the callback.
pub(super) fn owned_bytes(text: &Text<'_>) -> usize {
    if matches!(text, Cow::Owned(_)) { text.len() } else { 0 }
}

impl Contact<'_> {
    /// Bytes that each copy takes.
    pub(super) fn owned_bytes(&self) -> usize {
        let Self { wa_id, user_id, parent_user_id, username, name, identity_key_hash } = self;
        let texts = [wa_id, user_id, parent_user_id, username, name, identity_key_hash];
        texts.into_iter().flatten().map(owned_bytes).sum()
    }
}

/// What one callback may become.
pub(super) struct Limit {
    /// All of it, in bytes.
    pub(super) bytes: usize,
    /// More than one item shares with others: all of the body, and the texts of the call's head.
    item_bytes: usize,
}

impl Limit {
    pub(super) fn of(reading: &Reading<'_>) -> Self {
        let Reading { callback, settings, document } = reading;
        let head = callback.encoded_len() - callback.body.len() + settings.labels.len();
        Self {
            bytes: RATIO_MAX * document.len() + ALLOWANCE_BYTES,
            item_bytes: ITEM_BYTES + head + SHARED_TIMES * document.len(),
        }
    }

    /// A cheap upper bound: without it the exact count can be left out.
    pub(super) fn may_be_exceeded_by(&self, items: usize) -> bool {
        items.saturating_mul(self.item_bytes) > self.bytes
    }

    /// Counts every byte of values, keys and headers, and stops at the limit.
    pub(super) fn is_exceeded(&self, reading: &Reading<'_>, parts: &[Part<'_>]) -> bool {
        let mut left = self.bytes;
        let mut out = Vec::new();
        for part in parts {
            out.clear();
            let bytes = write(&reading.item(part.clone()), &mut out) + out.len();
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => return true,
            }
        }
        false
    }
}

/// Writes an event's value to `out`; returns the bytes of all else that its record holds.
fn write(item: &Item<'_>, out: &mut Vec<u8>) -> usize {
    let mut bytes = 0;
    let mut header = |name: &str, value: &[u8]| bytes += name.len() + value.len();
    match item {
        Item::Event(event) => {
            event.headers(&mut header);
            event.write_json(out);
            bytes + event.key().len()
        }
        Item::DeadLetter(letter) => {
            letter.headers(&mut header);
            bytes + letter.key().len() + letter.value().len()
        }
    }
}
