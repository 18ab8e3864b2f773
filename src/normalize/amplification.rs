//! What one callback may become: its elements each repeat the channel, the contact and their place.
//!
//! 400 KB of a phone number over 9,000 elements are 3.6 GB of events. The journal would give them to
//! the publisher again after every restart, so the limit is decided before anything is sent.

use std::borrow::Cow;

use super::{Walk, json::Document};
use crate::event::{Channel, Contact, ElementContext, Item, Text};

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

/// Bytes that each copy of what a value's elements share takes.
pub(super) fn scope_bytes(scope: &ElementContext<'_>) -> usize {
    let ElementContext { field, channel, entry_time, .. } = scope;
    let Channel { waba_id, phone_number_id, display_phone_number } = channel;
    let texts = [field, entry_time, waba_id, phone_number_id, display_phone_number];
    texts.into_iter().flatten().map(owned_bytes).sum()
}

/// Bytes that each copy of a contact takes.
pub(super) fn contact_bytes(contact: &Contact<'_>) -> usize {
    let Contact { wa_id, user_id, parent_user_id, username, name, identity_key_hash } = contact;
    let texts = [wa_id, user_id, parent_user_id, username, name, identity_key_hash];
    texts.into_iter().flatten().map(owned_bytes).sum()
}

/// What a callback with this body may become, in bytes.
pub(super) fn limit(document: &Document<'_>) -> usize {
    RATIO_MAX * document.len() + ALLOWANCE_BYTES
}

impl Walk<'_> {
    /// Whether values, keys and headers of the items have more bytes than the limit.
    pub(super) fn is_amplified(&self) -> bool {
        let Self { callback, settings, document, items, .. } = self;
        let limit = limit(document);
        // More than one item shares with others: all of the body, and the texts of the call's head.
        let head = callback.encoded_len() - callback.body.len() + settings.labels.len();
        let item_bytes = ITEM_BYTES + head + SHARED_TIMES * document.len();
        // Few callbacks come near, and for the others counting can be left out.
        if items.len().saturating_mul(item_bytes) <= limit {
            return false;
        }
        let (mut bytes, mut out) = (0, Vec::new());
        items.iter().any(|item| {
            out.clear();
            bytes += write(item, &mut out) + out.len();
            bytes > limit
        })
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
