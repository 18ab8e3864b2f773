//! From one callback to typed events and dead letters.
//!
//! It never fails: what cannot be read becomes a dead letter, alone. `envelope` finds the elements,
//! `status`, `message` and `other` read one each.
//!
//! **Invariant:** pure. No clock, no I/O; the same callback always yields the same items.

mod amplification;
mod contract;
mod envelope;
mod error_codes;
mod json;
mod message;
mod other;
mod status;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, io};

use flate2::read::MultiGzDecoder;

#[doc(hidden)]
pub use self::contract::hold_to_the_contract;
use self::{
    envelope::{Array, Part, Scope},
    json::{Document, Unreadable, Value},
};
use crate::{
    callback::Callback,
    event::{
        Contact, DeadLetter, Detail, ErrorDetail, Event, EventKind, Item, KeptLetter, Occurred,
        Place, Reason, Stage, Text, Topic,
    },
};

/// Above it a body is one dead letter: nothing that Meta sends comes near.
const ELEMENTS_MAX: usize = 20_000;

/// A callback's body, decompressed if its header says that it is compressed.
#[derive(Debug)]
pub struct Body<'a>(Result<Cow<'a, [u8]>, String>);

/// A body, read as JSON.
#[derive(Debug)]
pub struct Parsed<'a>(Result<Option<Document<'a>>, (Reason, String)>);

/// Decompresses a callback's body, which may become `max_bytes`.
pub fn decode<'a>(callback: &Callback<'a>, max_bytes: usize) -> Body<'a> {
    Body(decoded(callback, max_bytes))
}

/// The same for a dead letter. The body of one that was taken out of its callback is not compressed.
pub fn decode_letter<'a>(letter: &KeptLetter<'a>, max_bytes: usize) -> Body<'a> {
    match letter.place {
        None => decode(&letter.callback, max_bytes),
        Some(_) => Body(Ok(Cow::Borrowed(letter.callback.body))),
    }
}

/// Reads a body as JSON.
pub fn parse<'a>(body: &'a Body<'_>) -> Parsed<'a> {
    Parsed(match &body.0 {
        Err(detail) => Err((Reason::BadEncoding, detail.clone())),
        Ok(body) if json::is_blank(body) => Ok(None),
        Ok(body) => match Document::parse(body) {
            Ok(document) => Ok(Some(document)),
            Err(Unreadable::NotJson { at }) => {
                Err((Reason::InvalidJson, format!("not JSON from byte {at} on")))
            }
            Err(Unreadable::TooManyValues) => {
                Err((Reason::TooManyElements, "too many values".to_owned()))
            }
        },
    })
}

/// The items of a callback, in order. A callback without any element or unknown member has none.
pub fn items<'a>(callback: &'a Callback<'a>, parsed: &'a Parsed<'a>) -> Vec<Item<'a>> {
    let whole = |reason, detail: String| {
        let letter = DeadLetter::of_callback(callback, reason, Stage::Normalize, detail);
        vec![Item::DeadLetter(letter)]
    };
    let document = match &parsed.0 {
        Ok(Some(document)) => document,
        Ok(None) => return Vec::new(),
        Err((reason, detail)) => return whole(*reason, detail.clone()),
    };
    let root = document.root();
    // Each element is a value, so a body of ordinary size is not walked twice.
    let values = document.values();
    let limit = amplification::Limit::of(callback, document);
    if values > ELEMENTS_MAX || limit.may_be_exceeded_by(values) {
        let (elements, items) = count(root);
        if elements > ELEMENTS_MAX {
            let detail = format!("more than {ELEMENTS_MAX} elements");
            return whole(Reason::TooManyElements, detail);
        }
        if limit.may_be_exceeded_by(items) && limit.is_exceeded(callback, document) {
            let detail = "its elements repeat what they share too often";
            return whole(Reason::Amplification, detail.to_owned());
        }
    }
    let mut items = Vec::new();
    let mut each = |item| items.push(item);
    let mut reading = Reading {
        callback,
        strict: document.is_strict(),
        scope: Scope::default(),
        each: &mut each,
    };
    if !envelope::walk(root, &mut |part| reading.part(part)) {
        return whole(Reason::Unrecognized, "JSON, but no callback".to_owned());
    }
    items
}

/// The items of a dead letter: of the one element that was taken out of its callback, or of the
/// callback.
pub fn items_of_letter<'a>(letter: &'a KeptLetter<'a>, parsed: &'a Parsed<'a>) -> Vec<Item<'a>> {
    let callback = &letter.callback;
    let Some(place) = &letter.place else { return items(callback, parsed) };
    let Ok(Some(document)) = &parsed.0 else {
        let (reason, detail) = (Reason::InvalidJson, "not JSON");
        let (stage, value) = (Stage::Normalize, Cow::Borrowed(callback.body));
        let place = (place.clone(), EventKind::ChannelEvent.topic());
        let letter = DeadLetter::of_element(callback, reason, stage, detail, value, place);
        return vec![Item::DeadLetter(letter)];
    };
    let mut items = Vec::new();
    let mut each = |item| items.push(item);
    let strict = document.is_strict();
    let mut reading = Reading { callback, strict, scope: Scope::of(place), each: &mut each };
    let pointer = place.element.clone();
    envelope::visit_alone(document.root(), pointer, letter.was_event, &mut |part| {
        reading.part(part);
    });
    items
}

/// How many elements a document has, and how many items it gives at most.
fn count(document: Value<'_>) -> (usize, usize) {
    let (mut elements, mut items) = (0, 0);
    envelope::walk(document, &mut |part| {
        elements += usize::from(matches!(part, Part::Element { .. }));
        items += usize::from(!matches!(part, Part::Scope(_)));
    });
    (elements, items)
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
struct Reading<'r, 'a> {
    callback: &'a Callback<'a>,
    /// Every strict parser reads the whole document, and so each of its elements.
    strict: bool,
    scope: Scope<'a>,
    each: &'r mut dyn FnMut(Item<'a>),
}

impl<'a> Reading<'_, 'a> {
    fn part(&mut self, part: Part<'a>) {
        match part {
            Part::Scope(scope) => self.scope = *scope,
            Part::Element { array, value, pointer } => self.element(array, value, pointer),
            Part::NotRecognized { value, pointer } => {
                let place = self.place(pointer, None);
                let topic = EventKind::ChannelEvent.topic();
                let (reason, detail) = if value.is_object() {
                    (Reason::Unrecognized, "something else belongs here")
                } else {
                    (Reason::NotAnObject, "an object belongs here")
                };
                self.dead_letter(reason, detail, value, place, topic);
            }
            Part::Remainder { whole, members, pointer } => self.remainder(whole, members, pointer),
        }
    }

    fn element(&mut self, array: Array, value: Value<'a>, pointer: String) {
        let kind = array.kind(value);
        if !value.is_object() {
            let place = self.place(pointer, None);
            return self.dead_letter(
                Reason::NotAnObject,
                "an object belongs here",
                value,
                place,
                kind.topic(),
            );
        }
        let read = match array {
            Array::Statuses | Array::StandbyStatuses => status::read(value),
            Array::Errors => other::read_error(value),
            Array::Calls => other::read(value),
            _ => message::read(value),
        };
        let contact = self.scope.contact_of(&read);
        let place = self.place(pointer, contact);
        let id = read.id.as_deref().unwrap_or_default();
        let missing = match (kind.topic(), &read.detail) {
            (Topic::ChannelEvent, _) => None,
            _ if id.is_empty() => Some((Reason::MissingId, "no id")),
            (_, Detail::Status(status)) if status.normal().is_none_or(|text| text.is_empty()) => {
                Some((Reason::MissingStatus, "no status"))
            }
            _ => None,
        };
        if let Some((reason, detail)) = missing {
            return self.dead_letter(reason, detail, value, place, kind.topic());
        }
        let strict = self.strict || value.is_strict();
        let raw = Cow::Borrowed(value.bytes());
        let mut event = Event::new(self.callback, kind, place, raw, strict);
        event.message_id = read.id;
        event.other_key = read.other_key;
        event.occurred = read.occurred;
        event.state = read.state;
        event.detail = read.detail;
        event.errors = read.errors;
        (self.each)(Item::Event(event));
    }

    /// What of a value, change or entry is not known, and contacts that belong to nobody.
    fn remainder(
        &mut self,
        whole: Option<Value<'a>>,
        members: Vec<(Text<'a>, Value<'a>)>,
        pointer: String,
    ) {
        let contacts = self.scope.take_unclaimed();
        let raw = match whole {
            Some(value) if !members.is_empty() => Cow::Borrowed(value.bytes()),
            _ if members.is_empty() && contacts.is_empty() => return,
            _ => Cow::Owned(other::gather(&members, &contacts)),
        };
        let member =
            |name: &str| members.iter().rfind(|(key, _)| key == name).map(|(_, value)| value);
        let find = |names: &[&str]| {
            names.iter().find_map(|name| member(name)).and_then(|value| value.text())
        };
        let entry_time = Occurred { text: self.scope.time.clone() };
        let place = Place { entry_time, ..self.place(pointer, None) };
        // A gathered object is what it was gathered from.
        let strict =
            self.strict || Document::parse(&raw).is_ok_and(|document| document.is_strict());
        let message_id = find(&["id"]);
        let other_key = find(&["group_id", "recipient_id", "wa_id"]);
        let (text, state) =
            (find(&["timestamp"]), member("status").and_then(|value| value.written()));
        let mut event = Event::new(self.callback, EventKind::ChannelEvent, place, raw, strict);
        event.message_id = message_id.filter(|id| !id.is_empty());
        event.other_key = other_key;
        event.occurred = Occurred { text };
        event.state = state;
        (self.each)(Item::Event(event));
    }

    fn place(&self, element: String, contact: Option<Contact<'a>>) -> Place<'a> {
        Place {
            format: self.scope.format,
            field: self.scope.field.clone(),
            element,
            channel: self.scope.channel.clone(),
            contact,
            entry_time: Occurred::default(),
        }
    }

    fn dead_letter(
        &mut self,
        reason: Reason,
        detail: &str,
        value: Value<'a>,
        place: Place<'a>,
        topic: Topic,
    ) {
        let bytes = Cow::Borrowed(value.bytes());
        let stage = Stage::Normalize;
        let letter =
            DeadLetter::of_element(self.callback, reason, stage, detail, bytes, (place, topic));
        (self.each)(Item::DeadLetter(letter));
    }
}

/// What was read of one element.
struct Read<'a> {
    id: Option<Text<'a>>,
    other_key: Option<Text<'a>>,
    occurred: Occurred<'a>,
    /// Its `status`.
    state: Option<Text<'a>>,
    detail: Detail<'a>,
    errors: Vec<ErrorDetail<'a>>,
    /// Phone numbers, then user ids, by which its contact may be found; the nearest first.
    wa_ids: Vec<Text<'a>>,
    user_ids: Vec<Text<'a>>,
}
