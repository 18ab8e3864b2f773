//! Finds the elements of a callback: which arrays there are, to whom they belong, and what is not
//! known.
//!
//! A callback is an object with `entry`, an object of the shape of `value`, a single change, or an
//! array of those. Keys match exactly; a key given twice: the last scalar wins, all arrays are read.

use std::collections::HashMap;

use super::{Read, json::Value};
use crate::event::{Channel, Contact, EventKind, Format, Place, Text};

/// An array whose elements become items of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Array {
    Statuses,
    Messages,
    Echoes,
    Calls,
    Errors,
    History,
    StandbyStatuses,
    StandbyMessages,
}

impl Array {
    /// The array under this member of a value.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "statuses" => Self::Statuses,
            "messages" => Self::Messages,
            "message_echoes" => Self::Echoes,
            "calls" => Self::Calls,
            "errors" => Self::Errors,
            _ => return None,
        })
    }

    fn named_in_standby(name: &str) -> Option<Self> {
        Some(match name {
            "statuses" => Self::StandbyStatuses,
            "messages" | "message_echoes" => Self::StandbyMessages,
            _ => return None,
        })
    }

    /// The array in which something at this JSON pointer stands.
    pub(super) fn around(pointer: &str) -> Option<Self> {
        let is_number = |segment: &str| segment.parse::<usize>().is_ok();
        let mut upwards = pointer.rsplit('/');
        let (element, name) = (upwards.next()?, upwards.next()?);
        match (is_number(element), upwards.next()) {
            (false, _) => None,
            (true, Some("standby")) => Self::named_in_standby(name),
            (true, Some(thread)) if is_number(thread) && upwards.next() == Some("threads") => {
                (name == "messages").then_some(Self::History)
            }
            (true, _) => Self::named(name),
        }
    }

    /// What an element of this array is.
    pub(super) fn kind(self, element: Value<'_>) -> EventKind {
        match self {
            Self::Statuses => match element.get("type").and_then(Value::text).as_deref() {
                None | Some("" | "message") => EventKind::MessageStatus,
                Some("payment") => EventKind::PaymentStatus,
                Some("call") => EventKind::CallStatus,
                Some(_) => EventKind::ChannelEvent,
            },
            Self::Messages => EventKind::InboundMessage,
            Self::Echoes => EventKind::Echo,
            Self::Calls => EventKind::Call,
            Self::History => EventKind::HistoryMessage,
            Self::Errors | Self::StandbyStatuses | Self::StandbyMessages => EventKind::ChannelEvent,
        }
    }
}

/// What a walk comes across, in order.
pub(super) enum Part<'a> {
    /// What follows belongs here.
    Scope(Box<Scope<'a>>),
    Element {
        array: Array,
        value: Value<'a>,
        pointer: String,
    },
    /// Something else stands where a callback, entry, change or value belongs.
    NotRecognized {
        value: Value<'a>,
        pointer: String,
    },
    /// Members that are not known. `whole` is given where nothing else of it is published.
    Remainder {
        whole: Option<Value<'a>>,
        members: Vec<(Text<'a>, Value<'a>)>,
        pointer: String,
    },
}

/// What elements of one value share.
#[derive(Default, Clone)]
pub(super) struct Scope<'a> {
    pub(super) format: Option<Format>,
    pub(super) field: Option<Text<'a>>,
    pub(super) channel: Channel<'a>,
    /// The entry's time, as it was written.
    pub(super) time: Option<Text<'a>>,
    contacts: Vec<Listed<'a>>,
    by_wa_id: HashMap<Text<'a>, usize>,
    by_user_id: HashMap<Text<'a>, usize>,
    /// Of the only element, where it was found before and nothing is listed.
    found: Option<Contact<'a>>,
}

#[derive(Clone)]
struct Listed<'a> {
    contact: Contact<'a>,
    raw: Value<'a>,
    claimed: bool,
}

impl<'a> Scope<'a> {
    /// What an element that was taken out of its callback shared with the others.
    pub(super) fn of(place: &Place<'a>) -> Self {
        Self {
            format: place.format,
            field: place.field.clone(),
            channel: place.channel.clone(),
            time: place.entry_time.text.clone(),
            found: place.contact.clone(),
            ..Self::default()
        }
    }

    fn list(&mut self, raw: Value<'a>) {
        let text =
            |value: Option<Value<'a>>| value.and_then(Value::text).filter(|text| !text.is_empty());
        let profile = raw.get("profile");
        let of_profile = |name| text(profile.and_then(|profile| profile.get(name)));
        let contact = Contact {
            wa_id: text(raw.get("wa_id")),
            user_id: text(raw.get("user_id")),
            parent_user_id: text(raw.get("parent_user_id")),
            username: text(raw.get("username")).or_else(|| of_profile("username")),
            name: of_profile("name"),
        };
        let at = self.contacts.len();
        if let Some(wa_id) = &contact.wa_id {
            self.by_wa_id.entry(wa_id.clone()).or_insert(at);
        }
        if let Some(user_id) = &contact.user_id {
            self.by_user_id.entry(user_id.clone()).or_insert(at);
        }
        self.contacts.push(Listed { contact, raw, claimed: false });
    }

    /// The contact that an element is about: by phone number, else by user id; no guessing.
    pub(super) fn contact_of(&mut self, read: &Read<'a>) -> Option<Contact<'a>> {
        let by_wa_id = read.wa_ids.iter().find_map(|id| self.by_wa_id.get(id));
        let found =
            by_wa_id.or_else(|| read.user_ids.iter().find_map(|id| self.by_user_id.get(id)));
        let Some(found) = found else { return self.found.clone() };
        let listed = self.contacts.get_mut(*found)?;
        listed.claimed = true;
        Some(listed.contact.clone())
    }

    /// Contacts that belong to no element so far; they are nobody's only once.
    pub(super) fn take_unclaimed(&mut self) -> Vec<Value<'a>> {
        let contacts = std::mem::take(&mut self.contacts);
        contacts.into_iter().filter(|listed| !listed.claimed).map(|listed| listed.raw).collect()
    }
}

type Visit<'v, 'a> = &'v mut dyn FnMut(Part<'a>);

/// Walks a document. False: it is no callback at all, and nothing was visited.
pub(super) fn walk<'a>(document: Value<'a>, visit: Visit<'_, 'a>) -> bool {
    if document.is_array() {
        let mut elements = document.elements().peekable();
        let nothing = elements.peek().is_none();
        if !nothing && !document.elements().any(is_callback) {
            return false;
        }
        for (at, element) in elements.enumerate() {
            let pointer = format!("/{at}");
            if is_callback(element) {
                callback(element, &pointer, visit);
            } else {
                visit(Part::Scope(Box::default()));
                visit(Part::NotRecognized { value: element, pointer });
            }
        }
        return true;
    }
    let is_callback = is_callback(document);
    if is_callback {
        callback(document, "", visit);
    }
    is_callback
}

/// Visits something that was taken out of its callback. `is_known`: its members were found to be
/// what no array holds.
pub(super) fn visit_alone<'a>(
    value: Value<'a>,
    pointer: String,
    is_known: bool,
    visit: Visit<'_, 'a>,
) {
    if let Some(array) = Array::around(&pointer) {
        visit(Part::Element { array, value, pointer });
    } else if is_known {
        let members = value.members().collect();
        visit(Part::Remainder { whole: Some(value), members, pointer });
    } else if is_in_root(&pointer) && is_callback(value) {
        callback(value, &pointer, visit);
    } else {
        visit(Part::NotRecognized { value, pointer });
    }
}

/// Whether this is the pointer to a callback in an array of them.
fn is_in_root(pointer: &str) -> bool {
    pointer.strip_prefix('/').is_some_and(|number| number.parse::<usize>().is_ok())
}

/// Members that only a callback, or a value, has.
const TELLING: [&str; 9] = [
    "entry",
    "statuses",
    "messages",
    "contacts",
    "errors",
    "standby",
    "metadata",
    "messaging_product",
    "message_echoes",
];

fn is_callback(value: Value<'_>) -> bool {
    if !value.is_object() {
        return false;
    }
    let mut empty = true;
    let mut field = false;
    let mut inner = false;
    for (key, member) in value.members() {
        empty = false;
        if TELLING.contains(&&*key) {
            return true;
        }
        field |= key == "field";
        inner |= key == "value" && member.is_object();
    }
    empty || (field && inner)
}

fn callback<'a>(value: Value<'a>, pointer: &str, visit: Visit<'_, 'a>) {
    if value.get("entry").is_none() {
        if value.get("field").is_some() && value.get("value").is_some_and(Value::is_object) {
            let scope = Scope { format: Some(Format::Cloud), ..Scope::default() };
            return change(value, pointer, &scope, visit);
        }
        let cloud = value.get("metadata").is_some();
        let format = if cloud { Format::Cloud } else { Format::OnPremise };
        return inner_value(
            value,
            pointer,
            Scope { format: Some(format), ..Scope::default() },
            visit,
        );
    }
    let scope = Scope { format: Some(Format::Cloud), ..Scope::default() };
    let mut rest = Vec::new();
    for (key, member) in value.members() {
        match &*key {
            "object" => {}
            "entry" => each_object(member, &format!("{pointer}/entry"), &scope, visit, &mut entry),
            _ => rest.push((key, member)),
        }
    }
    remainder(rest, pointer, &scope, visit);
}

/// Calls `read` for each object of an array; what is none is said.
fn each_object<'a>(
    array: Value<'a>,
    pointer: &str,
    scope: &Scope<'a>,
    visit: Visit<'_, 'a>,
    read: &mut dyn FnMut(Value<'a>, &str, &Scope<'a>, Visit<'_, 'a>),
) {
    let not_recognized = |value: Value<'a>, pointer: String, visit: Visit<'_, 'a>| {
        visit(Part::Scope(Box::new(scope.clone())));
        visit(Part::NotRecognized { value, pointer });
    };
    if !array.is_array() && !array.is_null() {
        return not_recognized(array, pointer.to_owned(), visit);
    }
    for (at, value) in array.elements().enumerate() {
        let pointer = format!("{pointer}/{at}");
        if value.is_object() {
            read(value, &pointer, scope, visit);
        } else {
            not_recognized(value, pointer, visit);
        }
    }
}

fn entry<'a>(value: Value<'a>, pointer: &str, scope: &Scope<'a>, visit: Visit<'_, 'a>) {
    let mut scope = scope.clone();
    scope.channel.waba_id = value.get("id").and_then(Value::text).filter(|id| !id.is_empty());
    scope.time = value.get("time").and_then(Value::text);
    let mut rest = Vec::new();
    for (key, member) in value.members() {
        match &*key {
            "id" | "time" => {}
            "changes" => {
                each_object(member, &format!("{pointer}/changes"), &scope, visit, &mut change);
            }
            _ => rest.push((key, member)),
        }
    }
    remainder(rest, pointer, &scope, visit);
}

fn change<'a>(value: Value<'a>, pointer: &str, scope: &Scope<'a>, visit: Visit<'_, 'a>) {
    let mut scope = scope.clone();
    scope.field = value.get("field").and_then(Value::text);
    let mut rest = Vec::new();
    for (key, member) in value.members() {
        match &*key {
            "field" => {}
            "value" if member.is_null() => {}
            "value" if member.is_object() => {
                inner_value(member, &format!("{pointer}/value"), scope.clone(), visit);
            }
            "value" => {
                visit(Part::Scope(Box::new(scope.clone())));
                visit(Part::NotRecognized { value: member, pointer: format!("{pointer}/value") });
            }
            _ => rest.push((key, member)),
        }
    }
    remainder(rest, pointer, &scope, visit);
}

fn remainder<'a>(
    members: Vec<(Text<'a>, Value<'a>)>,
    pointer: &str,
    scope: &Scope<'a>,
    visit: Visit<'_, 'a>,
) {
    if !members.is_empty() {
        visit(Part::Scope(Box::new(scope.clone())));
        visit(Part::Remainder { whole: None, members, pointer: pointer.to_owned() });
    }
}

/// The object in which the arrays are: a change's `value`, or the whole of an on-premise callback.
fn inner_value<'a>(value: Value<'a>, pointer: &str, mut scope: Scope<'a>, visit: Visit<'_, 'a>) {
    let metadata = value.get("metadata");
    let of_metadata = |name| {
        let found = metadata.and_then(|metadata| metadata.get(name)).and_then(Value::text);
        found.filter(|text| !text.is_empty())
    };
    scope.channel.phone_number_id = of_metadata("phone_number_id");
    scope.channel.display_phone_number = of_metadata("display_phone_number");
    for (_, contacts) in value.members().filter(|(key, _)| key == "contacts") {
        contacts.elements().filter(|contact| contact.is_object()).for_each(|raw| scope.list(raw));
    }
    visit(Part::Scope(Box::new(scope)));

    let mut rest = Vec::new();
    let mut whole = Some(value);
    for (key, member) in value.members() {
        let at = |inner: &str| format!("{pointer}/{inner}");
        if let Some(array) = Array::named(&key) {
            whole = None;
            elements(array, member, &at(&key), visit);
            continue;
        }
        match &*key {
            "messaging_product" | "metadata" => {}
            // Those that are claimed are in their elements' events; the others come with the rest.
            "contacts" if member.elements().all(Value::is_object) && member.is_array() => {}
            "standby" if member.is_object() => {
                whole = None;
                rest.extend(standby(member, &at("standby"), visit));
            }
            "history" if member.is_array() => {
                whole = None;
                history(member, &at("history"), visit);
            }
            _ => rest.push((key, member)),
        }
    }
    visit(Part::Remainder { whole, members: rest, pointer: pointer.to_owned() });
}

fn elements<'a>(array: Array, member: Value<'a>, pointer: &str, visit: Visit<'_, 'a>) {
    if !member.is_array() && !member.is_null() {
        return visit(Part::NotRecognized { value: member, pointer: pointer.to_owned() });
    }
    for (at, value) in member.elements().enumerate() {
        visit(Part::Element { array, value, pointer: format!("{pointer}/{at}") });
    }
}

/// Returns the members that are not known.
fn standby<'a>(
    standby: Value<'a>,
    pointer: &str,
    visit: Visit<'_, 'a>,
) -> Vec<(Text<'a>, Value<'a>)> {
    let mut rest = Vec::new();
    for (key, member) in standby.members() {
        match Array::named_in_standby(&key) {
            Some(array) => elements(array, member, &format!("{pointer}/{key}"), visit),
            None => rest.push((key, member)),
        }
    }
    rest
}

/// `history[].threads[].messages[]`; what else is in a chunk or a thread comes as it is.
fn history<'a>(chunks: Value<'a>, pointer: &str, visit: Visit<'_, 'a>) {
    for (at, chunk) in chunks.elements().enumerate() {
        let pointer = format!("{pointer}/{at}");
        if !chunk.is_object() {
            visit(Part::NotRecognized { value: chunk, pointer });
            continue;
        }
        let mut rest = Vec::new();
        for (key, member) in chunk.members() {
            if key != "threads" || !member.is_array() {
                rest.push((key, member));
                continue;
            }
            for (at, thread) in member.elements().enumerate() {
                let pointer = format!("{pointer}/threads/{at}");
                if thread.is_object() {
                    self::thread(thread, &pointer, visit);
                } else {
                    visit(Part::NotRecognized { value: thread, pointer });
                }
            }
        }
        if !rest.is_empty() {
            visit(Part::Remainder { whole: None, members: rest, pointer });
        }
    }
}

fn thread<'a>(thread: Value<'a>, pointer: &str, visit: Visit<'_, 'a>) {
    let mut rest = Vec::new();
    for (key, member) in thread.members() {
        match &*key {
            "messages" => elements(Array::History, member, &format!("{pointer}/messages"), visit),
            _ => rest.push((key, member)),
        }
    }
    // Its id alone says no more than its messages do.
    if rest.iter().any(|(key, _)| key != "id") {
        visit(Part::Remainder { whole: None, members: rest, pointer: pointer.to_owned() });
    }
}
