//! What is shown of people unless somebody asks for all: enough to tell two of them apart.
//!
//! **Invariant:** a member of an event is shown only where it is named here. A member that is not
//! stays hidden.

use serde_json::Value as Json;

/// What the edge, its configuration or Meta alone writes. Of objects all of it.
#[rustfmt::skip]
pub(super) const SHOWN: &[&str] = &[
    "schema_version", "event_id", "event_kind", "source", "receipt", "received_at", "occurred_at",
    "format", "element", "labels", "channel.waba_id", "channel.phone_number_id",
    "channel.display_phone_number", "errors.code", "errors.retry", "errors.fault", "status_known",
    "status_rank", "recipient.type", "conversation.expires_at", "pricing.billable", "media.voice",
    "permission.expires_at", "call.started_at", "call.ended_at", "call.duration_seconds",
];

/// Text of the sender, which should be a word: shown if it is one.
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
    "system.new_id", "system.new_user_id", "call.from", "call.to",
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

/// Leaves what may be shown of the member at a path. Returns whether anything is left.
pub(super) fn retain(path: &str, member: &mut Json) -> bool {
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

/// What a header shows; none if it is left out.
pub(super) fn header(name: &str, value: &str) -> Option<String> {
    match name {
        _ if HEADERS.contains(&name) => Some(value.to_owned()),
        _ => WORD_HEADERS.contains(&name).then(|| word(value)),
    }
}

fn word(text: &str) -> String {
    let is_of_words = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
    let is_word = (1..=40).contains(&text.len()) && text.chars().all(is_of_words);
    if is_word { title(text) } else { "…".to_owned() }
}

fn title(text: &str) -> String {
    let digits = text.chars().filter(|letter| letter.is_numeric()).count();
    if digits < PHONE_DIGITS_MIN { text.to_owned() } else { "…".to_owned() }
}
