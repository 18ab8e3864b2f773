//! What is shown of people unless somebody asks for all: enough to tell two of them apart.
//!
//! **Invariant:** a member of an event is shown only where it is named here as harmless. A new member
//! does not compile before someone has decided.

use crate::event::form::{
    AnyEvent, Call, Context, Details, Envelope, Form, Media, Message, MetaError, Party, Recipient,
    Status, System,
};

/// Digits of a phone number; fewer are no phone number.
const PHONE_DIGITS_MIN: usize = 8;
/// Characters of a message's id; shorter words are none.
const ID_CHARS_MIN: usize = 20;

/// The last four characters of a phone number or of a user's id.
pub(super) fn person(id: &str) -> String {
    end_of(id, 4.min(id.chars().count() / 2))
}

/// The end of a message's id. Its beginning holds the phone number, in base64.
pub(super) fn message_id(id: &str) -> String {
    end_of(id, 12.min(id.chars().count() / 3))
}

fn end_of(text: &str, chars: usize) -> String {
    let skipped = text.chars().count() - chars;
    std::iter::once('…').chain(text.chars().skip(skipped)).collect()
}

/// A text in which phone numbers and ids are masked.
pub(super) fn text(text: &str) -> String {
    let is_base64 = |letter: char| letter.is_ascii_alphanumeric() || "+/=".contains(letter);
    let mut shown = String::with_capacity(text.len());
    for word in runs(text, is_base64) {
        let has_digit = word.contains(|letter: char| letter.is_ascii_digit());
        if word.starts_with(is_base64) && word.len() >= ID_CHARS_MIN && has_digit {
            shown += &message_id(word);
        } else {
            shown += word;
        }
    }
    let mut masked = String::with_capacity(shown.len());
    for number in runs(&shown, |letter| letter.is_ascii_digit() || " ()-+".contains(letter)) {
        let digits: String = number.chars().filter(char::is_ascii_digit).collect();
        if digits.len() >= PHONE_DIGITS_MIN {
            masked += &number.replacen(number.trim(), &person(&digits), 1);
        } else {
            masked += number;
        }
    }
    masked
}

/// Cuts a text where letters that belong begin and end.
fn runs(text: &str, belongs: impl Fn(char) -> bool) -> Vec<&str> {
    let mut runs = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_in = belongs(first);
        let end = rest.find(|letter| belongs(letter) != is_in).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        runs.push(run);
        rest = after;
    }
    runs
}

fn each(ids: &mut [&mut Option<String>], mask: fn(&str) -> String) {
    for id in ids.iter_mut().filter_map(|id| id.as_mut()) {
        *id = mask(id);
    }
}

/// An event of which only harmless members are left.
#[rustfmt::skip]
pub(super) fn event(event: &mut AnyEvent) {
    let Form { envelope, details: Details { status, message, call, payment } } = event;
    let Envelope {
        schema_version: _, event_id: _, event_kind: _, source: _, receipt: _, received_at: _, occurred_at: _,
        format: _, field: _, element: _, labels: _, channel: _,
        message_id, timestamp_raw, user_key, contact, errors, raw, raw_base64,
    } = envelope;
    let Status {
        status: _, status_raw: _, status_known: _, status_rank: _, conversation: _, pricing: _,
        recipient, callback_data,
    } = status;
    let Message {
        r#type: _, edited_type: _, interactive_type: _, permission: _,
        from, to, group_id, text: body, related_message_id, media, reply_id, response_json, system, context, referral,
    } = message;
    (*contact, *raw, *referral, *payment) = (None, None, None, None);
    for gone in [timestamp_raw, raw_base64, callback_data, body, reply_id, response_json] {
        *gone = None;
    }
    each(&mut [message_id, related_message_id], self::message_id);
    each(&mut [user_key, group_id], person);
    if let Some(recipient) = recipient {
        let Recipient {
            r#type: _, id, user_id, parent_user_id, participant_id, participant_user_id, participant_parent_user_id,
        } = recipient;
        each(&mut [id, user_id, parent_user_id], person);
        each(&mut [participant_id, participant_user_id, participant_parent_user_id], person);
    }
    for Party { id, user_id, parent_user_id } in [from, to].into_iter().flatten() {
        each(&mut [id, user_id, parent_user_id], person);
    }
    if let Some(Media { mime_type: _, voice: _, id, sha256, filename, caption, url }) = media {
        (*id, *sha256, *filename, *caption, *url) = (None, None, None, None, None);
    }
    if let Some(System { r#type: _, new_id, new_user_id }) = system {
        each(&mut [new_id, new_user_id], person);
    }
    if let Some(Context { id, from }) = context {
        each(&mut [id], self::message_id);
        each(&mut [from], person);
    }
    if let Some(Call { event: _, direction: _, status: _, started_at: _, ended_at: _, duration_seconds: _, from, to }) = call {
        each(&mut [from, to], person);
    }
    for MetaError { code: _, href: _, retry: _, fault: _, title, message, details } in errors.iter_mut().flatten() {
        each(&mut [title, message, details], text);
    }
}

/// What a header shows; none if it is left out.
pub(super) fn header(name: &str, value: &str) -> Option<String> {
    const HARMLESS: [&str; 24] = [
        "ce_specversion",
        "ce_id",
        "ce_type",
        "ce_source",
        "ce_time",
        "ce_dataschema",
        "content-type",
        "content-encoding",
        "receipt",
        "status",
        "phone_number_id",
        "traceparent",
        "replayed-from",
        "reason",
        "stage",
        "source",
        "received_at",
        "method",
        "element",
        "topic",
        "format",
        "field",
        "entry_time",
        "channel",
    ];
    match name {
        "detail" => Some(text(value)),
        _ => HARMLESS.contains(&name).then(|| value.to_owned()),
    }
}
