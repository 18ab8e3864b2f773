//! From one callback to typed events and dead letters.
//!
//! It never fails: what cannot be read becomes a dead letter, alone. `envelope` finds the elements,
//! `status`, `message` and `other` read one each.
//!
//! **Invariant:** pure. No clock, no I/O; the same callback always yields the same items.

mod amplification;
mod envelope;
mod error_codes;
mod json;
mod message;
mod other;
mod people;
mod status;
#[cfg(test)]
mod tests;
mod value;

use std::{borrow::Cow, io};

use flate2::read::MultiGzDecoder;

use self::{
    envelope::{Element, Part},
    json::{Document, Unreadable, Value},
    value::Array,
};
use crate::{
    callback::Callback,
    event::{
        DeadLetter, ElementContext, Event, EventKind, Format, Item, KeptLetter, RawForm, Reason,
        Settings, Stage, fragment,
    },
};

/// Above it a body is one dead letter: nothing that Meta sends comes near.
const ELEMENTS_MAX: usize = 20_000;

/// A callback's body, decompressed if its header says that it is compressed.
#[derive(Debug)]
pub struct Body<'a> {
    bytes: Result<Cow<'a, [u8]>, String>,
    /// What is in typed fields is left out of `raw`.
    is_untyped: bool,
}

impl Body<'_> {
    /// Its bytes; none if they cannot be decompressed.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_deref().ok()
    }
}

/// A body, read as JSON.
#[derive(Debug)]
pub struct Parsed<'a>(Result<Option<Document<'a>>, (Reason, String)>);

/// Decompresses a callback's body, which may become `max_bytes`.
pub fn decode<'a>(callback: &Callback<'a>, max_bytes: usize) -> Body<'a> {
    Body { bytes: decoded(callback, max_bytes), is_untyped: !callback.raw }
}

/// The same for a dead letter. The body of one that was taken out of its callback is not compressed.
pub fn decode_letter<'a>(letter: &KeptLetter<'a>, max_bytes: usize) -> Body<'a> {
    match letter.context {
        None => decode(&letter.callback, max_bytes),
        Some(_) => {
            let bytes = Ok(Cow::Borrowed(letter.callback.body));
            Body { bytes, is_untyped: !letter.callback.raw }
        }
    }
}

/// Reads a body as JSON.
pub fn parse<'a>(body: &'a Body<'_>) -> Parsed<'a> {
    Parsed(match &body.bytes {
        Err(detail) => Err((Reason::BadEncoding, detail.clone())),
        Ok(bytes) if json::is_blank(bytes) => Ok(None),
        Ok(bytes) => match Document::parse(bytes) {
            Ok(mut document) => {
                if body.is_untyped {
                    document.watch_typed();
                }
                Ok(Some(document))
            }
            Err(Unreadable::NotJson { at }) => {
                Err((Reason::InvalidJson, format!("not JSON from byte {at} on")))
            }
            Err(Unreadable::TooManyValues) => {
                Err((Reason::TooManyElements, "too many values".to_owned()))
            }
        },
    })
}

const SHARED_TOO_OFTEN: &str = "its elements repeat what they share too often";

/// The items of a callback, in order. A callback without any element or unknown member has none.
pub fn items<'a>(
    callback: &'a Callback<'a>,
    settings: Settings<'a>,
    parsed: &'a Parsed<'a>,
) -> Vec<Item<'a>> {
    let whole = |reason, detail: &str| {
        let letter = DeadLetter::of_callback(callback, reason, Stage::Normalize, detail);
        vec![Item::DeadLetter(letter)]
    };
    let document = match &parsed.0 {
        Ok(Some(document)) => document,
        Ok(None) => return Vec::new(),
        Err((reason, detail)) => return whole(*reason, detail),
    };
    let reading = Reading { callback, settings, document };
    let limit = amplification::Limit::of(&reading);
    let amplified = || whole(Reason::Amplification, SHARED_TOO_OFTEN);
    let parts = match envelope::parts(document.root(), ELEMENTS_MAX, limit.bytes) {
        Ok(Some(parts)) => parts,
        Ok(None) => return whole(Reason::Unrecognized, "JSON, but no callback"),
        Err(Reason::Amplification) => return amplified(),
        Err(reason) => return whole(reason, &format!("more than {ELEMENTS_MAX} elements")),
    };
    if limit.may_be_exceeded_by(parts.len()) && limit.is_exceeded(&reading, &parts) {
        return amplified();
    }
    parts.into_iter().map(|part| reading.item(part)).collect()
}

/// The items of a dead letter: of the one element that was taken out of its callback, or of the
/// callback.
pub fn items_of_letter<'a>(
    letter: &'a KeptLetter<'a>,
    settings: Settings<'a>,
    parsed: &'a Parsed<'a>,
) -> Vec<Item<'a>> {
    let callback = &letter.callback;
    let Some(context) = &letter.context else { return items(callback, settings, parsed) };
    let dead = |reason, detail: &str| {
        let value = Cow::Borrowed(callback.body);
        let context = Some((context.clone(), EventKind::ChannelEvent.topic()));
        let stage = Stage::Normalize;
        vec![Item::DeadLetter(DeadLetter::new(callback, reason, stage, detail, value, context))]
    };
    let Ok(Some(document)) = &parsed.0 else { return dead(Reason::InvalidJson, "not JSON") };
    let reading = Reading { callback, settings, document };
    let budget = amplification::Limit::of(&reading).bytes;
    let (root, was_event) = (document.root(), letter.was_event);
    match envelope::parts_alone(root, context, was_event, ELEMENTS_MAX, budget) {
        Ok(parts) => parts.into_iter().map(|part| reading.item(part)).collect(),
        Err(Reason::Amplification) => dead(Reason::Amplification, SHARED_TOO_OFTEN),
        Err(reason) => dead(reason, &format!("more than {ELEMENTS_MAX} elements")),
    }
}

/// The body as JSON should be: decompressed, if its header says that it is compressed.
fn decoded<'a>(callback: &Callback<'a>, max_bytes: usize) -> Result<Cow<'a, [u8]>, String> {
    let encoding = callback.content_encoding.unwrap_or("identity").trim().to_ascii_lowercase();
    match encoding.as_str() {
        "" | "identity" => Ok(Cow::Borrowed(callback.body)),
        "gzip" | "x-gzip" => {
            let mut body = Vec::new();
            let decoder = MultiGzDecoder::new(callback.body);
            let mut decoder = io::Read::take(decoder, max_bytes as u64 + 1);
            io::Read::read_to_end(&mut decoder, &mut body)
                .map_err(|error| format!("not gzip: {error}"))?;
            if body.len() > max_bytes {
                return Err(format!(
                    "more than http.max_body_bytes ({max_bytes}) when decompressed"
                ));
            }
            Ok(Cow::Owned(body))
        }
        other => Err(format!("encoding {other:?} is not known")),
    }
}

/// One callback while its items are made.
struct Reading<'a> {
    callback: &'a Callback<'a>,
    settings: Settings<'a>,
    document: &'a Document<'a>,
}

impl<'a> Reading<'a> {
    fn item(&self, part: Part<'a>) -> Item<'a> {
        match part {
            Part::Element(element) => self.element(element),
            Part::Dead { reason, value, context, kind } => {
                let detail = match reason {
                    Reason::NotAnObject => "an object belongs here",
                    _ => "something else belongs here",
                };
                self.dead_letter(reason, detail, value, context, kind)
            }
            Part::Remainder { format, members } => self.remainder(format, &members),
        }
    }

    fn element(&self, element: Element<'a>) -> Item<'a> {
        let Element { array, kind, value, context, person } = element;
        let message_id = value.filled("id");
        let status = value.get("status").and_then(Value::text);
        let has_status = status.is_some_and(|status| !status.trim().is_empty());
        let missing = match kind {
            EventKind::MessageStatus | EventKind::InboundMessage if message_id.is_none() => {
                Some((Reason::MissingId, "no id"))
            }
            EventKind::MessageStatus if !has_status => Some((Reason::MissingStatus, "no status")),
            _ => None,
        };
        if let Some((reason, detail)) = missing {
            return self.dead_letter(reason, detail, value, context, kind);
        }
        let raw = Cow::Borrowed(value.bytes());
        let mut event = Event::new(self.callback, self.settings, kind, context, raw);
        event.message_id = message_id;
        event.group_id = value.filled("group_id");
        event.user_key = person.key(event.context.contact.as_ref());
        event.timestamp = value.filled("timestamp");
        let in_metadata =
            || value.get("metadata").and_then(|metadata| metadata.filled("timestamp"));
        let own = event.timestamp.clone().or_else(in_metadata);
        event.occurred = own.or_else(|| event.context.entry_time.clone());
        event.typed = fragment(|out| {
            match array {
                Array::Statuses => status::read(value, &mut event, out),
                Array::Messages | Array::Echoes | Array::History => {
                    message::read(value, &mut event, out);
                }
                Array::Calls => {
                    event.state = value.get("status").and_then(Value::written);
                    value.copy_member("biz_opaque_callback_data", "callback_data", out);
                    other::call(value, kind, out);
                }
                Array::Errors | Array::Other | Array::Whole => {
                    event.state = value.get("status").and_then(Value::written);
                }
            }
            match array {
                Array::Errors => other::error(value, &mut event, out),
                _ => other::errors(value, &mut event, out),
            }
        });
        // The list of errors says neither which of the element's parts each belongs to, nor that one
        // stood for the list, nor where one list ended.
        let is_of_parts = kind == EventKind::ChannelEvent && array != Array::Errors;
        let mut lists =
            value.members().filter(|(key, _)| key == "errors").map(|(_, errors)| errors);
        let is_one_list = lists.next().is_none_or(Value::is_array) && lists.next().is_none();
        let is_needed = !event.errors.is_empty() && (is_of_parts || !is_one_list);
        event.raw_form = self.raw_form(value, is_needed);
        Item::Event(event)
    }

    fn raw_form(&self, value: Value<'a>, is_needed: bool) -> RawForm {
        let mark = |name: &str, mark: fn(Value<'a>)| value.get(name).map(mark);
        if !(self.document.is_strict() || value.is_strict()) {
            return RawForm::Base64;
        }
        if self.callback.raw || is_needed {
            return RawForm::Json;
        }
        // An empty one is in no field.
        if value.filled("id").is_some() {
            mark("id", |id| {
                if id.is_string() {
                    id.mark_typed()
                }
            });
        }
        if value.filled("timestamp").is_some() {
            mark("timestamp", Value::mark_time);
        }
        if value.is_all_typed() { RawForm::Omitted } else { RawForm::Json }
    }

    /// What no other event of the callback holds.
    fn remainder(&self, format: Option<Format>, members: &[(String, Value<'a>)]) -> Item<'a> {
        let raw = Cow::Owned(other::gather(members));
        let is_strict = self.document.is_strict()
            || Document::parse(&raw).is_ok_and(|document| document.is_strict());
        let context = ElementContext { format, ..ElementContext::default() };
        let kind = EventKind::Remainder;
        let mut event = Event::new(self.callback, self.settings, kind, context, raw);
        event.raw_form = if is_strict { RawForm::Json } else { RawForm::Base64 };
        Item::Event(event)
    }

    fn dead_letter(
        &self,
        reason: Reason,
        detail: &str,
        value: Value<'a>,
        context: ElementContext<'a>,
        kind: EventKind,
    ) -> Item<'a> {
        let (stage, bytes) = (Stage::Normalize, Cow::Borrowed(value.bytes()));
        let context = Some((context, kind.topic()));
        Item::DeadLetter(DeadLetter::new(self.callback, reason, stage, detail, bytes, context))
    }
}
