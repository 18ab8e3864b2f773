//! What is shown of people unless somebody asks for all: enough to tell two of them apart.
//!
//! **Invariant:** a member of an event is shown only where it is named here. A member that is not
//! stays hidden.

use serde_json::Value as Json;

use super::{Content, TailedRecord, text};

/// Shown as they are, with all that is in them: only the edge, its configuration or Meta writes them.
#[rustfmt::skip]
pub(super) const SHOWN: &[&str] = &[
    "schema_version", "event_id", "event_kind", "source", "receipt", "received_at", "occurred_at",
    "format", "element", "labels", "channel.waba_id", "channel.phone_number_id",
    "channel.display_phone_number", "errors.code", "errors.retry", "errors.fault", "status_known",
    "status_rank", "recipient.type", "conversation.expires_at", "pricing.billable", "media.voice",
    "permission.expires_at", "call.started_at", "call.ended_at", "call.duration_seconds",
];

/// Texts of the sender that should be words. They are shown if they are.
#[rustfmt::skip]
pub(super) const WORDS: &[&str] = &[
    "field", "status", "status_raw", "type", "edited_type", "interactive_type", "errors.title",
    "conversation.origin", "pricing.model", "pricing.type", "pricing.category",
    "permission.response", "system.type", "call.event", "call.direction", "call.status",
];

/// Of these texts the end is shown.
#[rustfmt::skip]
pub(super) const MASKED: &[&str] = &[
    "message_id", "related_message_id", "context.id", "context.from", "user_key", "group_id",
    "recipient.id", "recipient.user_id", "recipient.parent_user_id", "recipient.participant_id",
    "recipient.participant_user_id", "recipient.participant_parent_user_id", "from.id",
    "from.user_id", "from.parent_user_id", "to.id", "to.user_id", "to.parent_user_id",
    "system.new_id", "system.new_user_id", "call.from", "call.to", "thread",
];

/// Headers that are shown.
#[rustfmt::skip]
const HEADERS: &[&str] = &[
    "ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "ce_dataschema", "receipt",
    "phone_number_id", "replayed-from", "reason", "stage", "source", "received_at", "element",
    "topic",
];

/// Headers that are shown if they are words.
const WORD_HEADERS: &[&str] = &["status", "field", "format", "method", "content-encoding"];

/// Fewer digits are no phone number.
const PHONE_DIGITS_MIN: usize = 8;

/// The last four characters of a phone number or of a user's id.
pub(crate) fn person(id: &str) -> String {
    end_of(id, 4.min(id.chars().count() / 2))
}

/// The end of a message's id. Its beginning holds the phone number, in base64.
pub(crate) fn message_id(id: &str) -> String {
    end_of(id, 12.min(id.chars().count() / 3))
}

fn end_of(text: &str, chars: usize) -> String {
    let skipped = text.chars().count() - chars;
    std::iter::once('…').chain(text.chars().skip(skipped)).collect()
}

/// Removes or shortens what may not be shown.
pub(super) fn masked(mut item: TailedRecord) -> TailedRecord {
    let key = String::from_utf8_lossy(&item.record.key);
    let message = item.event().and_then(|event| text(event, "/message_id"));
    let key = match &*key {
        // A receipt names no one.
        key if key == item.header("receipt") => key.to_owned(),
        key if Some(key) == message => message_id(key),
        key => person(key),
    };
    item.record.key = key.into_bytes();
    item.record.headers.retain_mut(|(name, value)| {
        if WORD_HEADERS.contains(&name.as_str()) {
            *value = word(&String::from_utf8_lossy(value)).into_bytes();
            return true;
        }
        HEADERS.contains(&name.as_str())
    });
    if let Content::Event(event) = &mut item.content {
        retain("", event);
    }
    item.is_masked = true;
    item
}

/// Leaves what may be shown of the member at a path. Returns whether anything is left.
fn retain(path: &str, member: &mut Json) -> bool {
    if SHOWN.contains(&path) {
        return true;
    }
    match member {
        Json::Object(members) => {
            members.retain(|name, member| match path {
                "" => retain(name, member),
                _ => retain(&format!("{path}.{name}"), member),
            });
            !members.is_empty()
        }
        Json::Array(elements) => {
            elements.retain_mut(|element| retain(path, element));
            !elements.is_empty()
        }
        Json::String(text) if WORDS.contains(&path) => {
            // Meta's titles are sentences.
            *text = if path == "errors.title" { title(text) } else { word(text) };
            true
        }
        Json::String(text) if MASKED.contains(&path) => {
            let is_message = ["message_id", "related_message_id", "context.id"].contains(&path);
            *text = if is_message { message_id(text) } else { person(text) };
            true
        }
        _ => false,
    }
}

/// The text, if it is a plain word.
pub(crate) fn word(text: &str) -> String {
    let is_of_words = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
    let is_word = (1..=40).contains(&text.len()) && text.chars().all(is_of_words);
    if is_word { title(text) } else { "…".to_owned() }
}

fn title(text: &str) -> String {
    let digits = text.chars().filter(|letter| letter.is_numeric()).count();
    if digits < PHONE_DIGITS_MIN { text.to_owned() } else { "…".to_owned() }
}
