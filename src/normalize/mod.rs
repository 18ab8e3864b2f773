//! From one callback to typed events and dead letters.
//!
//! It never fails: what cannot be read becomes a dead letter, alone. `envelope` and `value` find the
//! elements, `people` their users, and `element` writes the typed fields of one.
//!
//! **Invariant:** pure. No clock, no I/O; the same callback always yields the same items.

mod element;
mod envelope;
mod json;
mod people;
#[cfg(test)]
mod tests;
mod value;

use std::{borrow::Cow, io::Read as _};

use flate2::read::MultiGzDecoder;

use self::{
    json::{BLANKS, Document, Value},
    value::{Array, Found, Inside},
};
use crate::{
    callback::Callback,
    event::{
        DeadLetter, ElementContext, Event, EventKind, Format, Item, KeptLetter, RawForm, Reason,
        Settings, append_json, fragment,
    },
};

/// Above it a body is one dead letter: nothing that Meta sends comes near.
const ELEMENTS_MAX: usize = 20_000;
/// Bytes of values, keys and headers that a callback may become, for each byte of its body. Real
/// callbacks stay below 8. Each event repeats the channel and the contact: a phone number of 400 KB for
/// 9,000 elements is 3.6 GB of events, which would be made again after every restart.
const RATIO_MAX: usize = 32;
/// What a callback may become beyond that.
const ALLOWANCE_BYTES: usize = 1 << 20;
/// The names of fields and headers of one item, its receipt, times and ids.
const ITEM_BYTES: usize = 2048;
/// How often an item may hold what all items share: as two fields and as key or header, and each byte that is
/// no UTF-8 as three.
const SHARED_TIMES: usize = 9;

/// A callback's body, decompressed if its header says that it is compressed, or why it cannot be.
pub type Body<'a> = Result<Cow<'a, [u8]>, String>;

/// A body, read as JSON; nothing if it is blank.
#[derive(Debug)]
pub struct Parsed<'a>(Result<Option<Document<'a>>, (Reason, String)>);

/// Decompresses a callback's body, which may become `max_bytes`.
pub fn decode<'a>(callback: &Callback<'a>, max_bytes: usize) -> Body<'a> {
    match &*callback.content_encoding.unwrap_or_default().trim().to_ascii_lowercase() {
        "" | "identity" => return Ok(Cow::Borrowed(callback.body)),
        "gzip" | "x-gzip" => {}
        unknown => return Err(format!("encoding {unknown:?} is not known")),
    }
    let mut body = Vec::new();
    let mut decoder = MultiGzDecoder::new(callback.body).take(max_bytes as u64 + 1);
    decoder.read_to_end(&mut body).map_err(|error| format!("not gzip: {error}"))?;
    match body.len() > max_bytes {
        true => Err(format!("more than http.max_body_bytes ({max_bytes}) when decompressed")),
        false => Ok(Cow::Owned(body)),
    }
}

/// The same for a dead letter. The body of one that was taken out of its callback is not compressed.
pub fn decode_letter<'a>(letter: &KeptLetter<'a>, max_bytes: usize) -> Body<'a> {
    match letter.context {
        None => decode(&letter.callback, max_bytes),
        Some(_) => Ok(Cow::Borrowed(letter.callback.body)),
    }
}

/// Reads a body as JSON.
pub fn parse<'a>(body: &'a Body<'_>) -> Parsed<'a> {
    Parsed(match body {
        Err(detail) => Err((Reason::BadEncoding, detail.clone())),
        Ok(bytes) if bytes.iter().all(|byte| BLANKS.contains(byte)) => Ok(None),
        Ok(bytes) => Document::parse(bytes).map(Some),
    })
}

/// The items of a callback, in order. A callback without any element or unknown member has none.
pub fn items<'a>(
    callback: &'a Callback<'a>,
    settings: Settings<'a>,
    parsed: &'a Parsed<'a>,
) -> Vec<Item<'a>> {
    items_of(callback, None, settings, parsed)
}

/// The items of a dead letter: of the one element that was taken out of its callback, or of the
/// callback.
pub fn items_of_letter<'a>(
    letter: &'a KeptLetter<'a>,
    settings: Settings<'a>,
    parsed: &'a Parsed<'a>,
) -> Vec<Item<'a>> {
    let element = letter.context.as_ref().map(|context| (context, letter.was_event));
    items_of(&letter.callback, element, settings, parsed)
}

/// `element`: if the body is one element of a callback, where it stood, and whether it was an event.
fn items_of<'a>(
    callback: &'a Callback<'a>,
    element: Option<(&'a ElementContext<'a>, bool)>,
    settings: Settings<'a>,
    parsed: &'a Parsed<'a>,
) -> Vec<Item<'a>> {
    let items = match (&parsed.0, element) {
        (Ok(Some(document)), _) => Walk::new(callback, settings, document).items(element),
        (Ok(None), None) => return Vec::new(),
        (Ok(None), Some(_)) => Err((Reason::InvalidJson, "not JSON".to_owned())),
        (Err(why), _) => Err(why.clone()),
    };
    items.unwrap_or_else(|(reason, detail)| {
        let context = element.map(|(of, _)| (of.clone(), EventKind::ChannelEvent.topic()));
        let letter = DeadLetter::new(callback, reason, detail, callback.body.into(), context);
        vec![Item::DeadLetter(letter)]
    })
}

/// A value, and the JSON pointer to it.
type Placed<'a> = (String, Value<'a>);

/// One callback while its items are made.
struct Walk<'a> {
    callback: &'a Callback<'a>,
    settings: Settings<'a>,
    document: &'a Document<'a>,
    items: Vec<Item<'a>>,
    /// JSON pointer to what is being read.
    path: String,
    /// What is read of the present value.
    inside: Inside<'a>,
    /// What is not known.
    rest: Vec<Placed<'a>>,
    /// Of the first callback.
    format: Option<Format>,
    /// What is read or copied again for each element, of all elements: the pointer, which has the array's
    /// name in it, the channel's number and the thread. Each may be as long as the body.
    shared_bytes: usize,
    /// Why all of the body is one dead letter. Nothing more is read then.
    fault: Option<Reason>,
}

impl<'a> Walk<'a> {
    fn new(callback: &'a Callback<'a>, settings: Settings<'a>, document: &'a Document<'a>) -> Self {
        Self {
            callback,
            settings,
            document,
            items: Vec::new(),
            path: String::with_capacity(64),
            inside: Inside::default(),
            rest: Vec::new(),
            format: None,
            shared_bytes: 0,
            fault: None,
        }
    }

    /// The items, or why all of the body is one dead letter, also in words.
    fn items(
        mut self,
        element: Option<(&ElementContext<'a>, bool)>,
    ) -> Result<Vec<Item<'a>>, (Reason, String)> {
        match element {
            None => self.whole(),
            Some((context, was_event)) => self.alone(context, was_event),
        }
        let Some(reason) = self.fault else { return Ok(self.items) };
        let detail = match reason {
            Reason::Amplification => "its elements repeat what they share too often".to_owned(),
            Reason::TooManyElements => format!("more than {ELEMENTS_MAX} elements"),
            _ => "JSON, but no callback".to_owned(),
        };
        Err((reason, detail))
    }

    /// What the callback may become, in bytes.
    fn bytes_max(&self) -> usize {
        RATIO_MAX * self.document.bytes.len() + ALLOWANCE_BYTES
    }

    /// Whether values, keys and headers of the items have more bytes than the callback may become.
    fn is_amplified(&self) -> bool {
        let Self { callback, settings, document, items, .. } = self;
        // More than one item shares with others: all of the body, and the texts of the call's head.
        let head = callback.encoded_len() - callback.body.len() + settings.labels.len();
        let item_bytes = ITEM_BYTES + head + SHARED_TIMES * document.bytes.len();
        // Few callbacks come near, and for the others counting can be left out.
        if items.len().saturating_mul(item_bytes) <= self.bytes_max() {
            return false;
        }
        let (mut bytes, mut value) = (0, Vec::new());
        items.iter().any(|item| {
            value.clear();
            let mut header = |name: &str, value: &[u8]| bytes += name.len() + value.len();
            bytes += match item {
                Item::Event(event) => {
                    event.headers(&mut header);
                    event.write_json(&mut value);
                    event.key().len() + value.len()
                }
                Item::DeadLetter(letter) => {
                    letter.headers(&mut header);
                    letter.key().len() + letter.value.len()
                }
            };
            bytes > self.bytes_max()
        })
    }

    /// Makes an item of an element, or of what stands where one belongs.
    fn element(&mut self, found: Found<'a>) {
        let Found { array, kind, value, person, context } = found;
        let message_id = value.filled("id");
        let status = value.get("status");
        let fault = match kind {
            _ if !value.is_object() => Some((Reason::NotAnObject, "an object belongs here")),
            EventKind::MessageStatus | EventKind::InboundMessage if message_id.is_none() => {
                Some((Reason::MissingId, "no id"))
            }
            EventKind::MessageStatus if status.text().is_none_or(|text| text.trim().is_empty()) => {
                Some((Reason::MissingStatus, "no status"))
            }
            _ => None,
        };
        if let Some((reason, detail)) = fault {
            return self.dead_letter(reason, detail, value, context, kind);
        }
        let raw = Cow::Borrowed(value.bytes());
        let mut event = Event::new(self.callback, self.settings, kind, context, raw);
        event.message_id = message_id;
        event.group_id = value.filled("group_id");
        event.user_key = person.key(event.context.contact.as_ref());
        event.timestamp = value.filled("timestamp");
        event.occurred = (event.timestamp.clone())
            .or_else(|| value.get("metadata").filled("timestamp"))
            .or_else(|| event.context.entry_time.clone());
        event.state = status.written();
        event.typed = fragment(|out| {
            match array {
                Array::Statuses => element::status(value, &mut event, out),
                Array::Messages | Array::Echoes | Array::History => {
                    element::message(value, &mut event, out);
                }
                Array::Calls => {
                    value.get("biz_opaque_callback_data").copy("callback_data", out);
                    element::call(value, kind, out);
                }
                Array::Errors | Array::Other | Array::Whole => {}
            }
            element::errors(value, array, &mut event, out);
        });
        // The list of errors says neither which of the element's parts each belongs to, nor that one
        // stood for the list, nor where one list ended.
        let is_of_parts = kind == EventKind::ChannelEvent && array != Array::Errors;
        let mut lists = value.all("errors");
        let is_one_list = lists.next().is_none_or(Value::is_array) && lists.next().is_none();
        let is_needed = !event.errors.is_empty() && (is_of_parts || !is_one_list);
        event.raw_form = self.raw_form(value, &event, is_needed);
        self.items.push(Item::Event(event));
    }

    fn raw_form(&self, value: Value<'a>, event: &Event<'a>, is_needed: bool) -> RawForm {
        if !value.is_strict() {
            return RawForm::Base64;
        }
        if self.callback.raw || is_needed {
            return RawForm::Json;
        }
        // An empty one is in no field.
        if event.message_id.is_some() && value.get("id").is_string() {
            value.get("id").mark_typed();
        }
        if event.timestamp.is_some() {
            value.get("timestamp").mark_time();
        }
        if value.is_all_typed() { RawForm::Omitted } else { RawForm::Json }
    }

    /// Makes an event of what no other event holds: an object of members, each by its JSON pointer
    /// and verbatim.
    fn remainder(&mut self) {
        let mut raw = vec![b'{'];
        for (at, (pointer, value)) in self.rest.iter().enumerate() {
            if at > 0 {
                raw.push(b',');
            }
            append_json(&mut raw, pointer);
            raw.push(b':');
            raw.extend_from_slice(value.bytes());
        }
        raw.push(b'}');
        let is_strict = self.document.is_strict
            || Document::parse(&raw).is_ok_and(|document| document.is_strict);
        let context = ElementContext { format: self.format, ..ElementContext::default() };
        let (kind, raw) = (EventKind::Remainder, Cow::Owned(raw));
        let mut event = Event::new(self.callback, self.settings, kind, context, raw);
        event.raw_form = if is_strict { RawForm::Json } else { RawForm::Base64 };
        self.items.push(Item::Event(event));
    }

    fn dead_letter(
        &mut self,
        reason: Reason,
        detail: &str,
        value: Value<'a>,
        context: ElementContext<'a>,
        kind: EventKind,
    ) {
        let (bytes, context) = (Cow::Borrowed(value.bytes()), Some((context, kind.topic())));
        let letter = DeadLetter::new(self.callback, reason, detail, bytes, context);
        self.items.push(Item::DeadLetter(letter));
    }
}
