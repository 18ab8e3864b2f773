//! What one `value` holds: its arrays, its contacts, and what is not known.

use super::{
    ELEMENTS_MAX, Placed, Walk,
    envelope::is_text,
    json::Value,
    people::{Contacts, Person},
};
use crate::event::{ElementContext, EventKind, Reason};

/// An array whose elements become events of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Array {
    Statuses,
    Messages,
    Echoes,
    Calls,
    Errors,
    History,
    /// Elements of which only the members that all kinds have are known.
    Other,
    /// No array: a value that has none, whole.
    Whole,
}

impl Array {
    /// The array under this member of a value of this field.
    pub(super) fn named(name: &str, field: Option<&str>) -> Option<Self> {
        Some(match name {
            "statuses" => Self::Statuses,
            "messages" => Self::Messages,
            "message_echoes" => Self::Echoes,
            "calls" => Self::Calls,
            "errors" => Self::Errors,
            "user_preferences" | "user_id_update" | "groups" | "automatic_events"
            | "user_actions" | "state_sync" => Self::Other,
            "smb_message_echoes" if field == Some(name) => Self::Echoes,
            name if field == Some(name) => Self::Other,
            _ => return None,
        })
    }

    /// The array in which the element at this JSON pointer stands, and whether it is in `standby`.
    pub(super) fn around(pointer: &str, field: Option<&str>) -> (Self, bool) {
        let path = match pointer.rsplit_once('/') {
            Some((path, last)) if last.parse::<usize>().is_ok() => path,
            _ => pointer,
        };
        let (path, name) = path.rsplit_once('/').unwrap_or_default();
        // One thread may stand for an array of them.
        let mut above = path.rsplit('/').take(2);
        let is_thread = name == "messages" && above.any(|segment| segment == "threads");
        match Self::named(name, field) {
            Some(_) if is_thread => (Self::History, false),
            Some(array) => (array, path.ends_with("/standby")),
            None => (Self::Whole, false),
        }
    }

    /// What an element of this array is.
    fn kind(self, element: Value<'_>, in_standby: bool) -> EventKind {
        match (self, in_standby) {
            (Self::Statuses, _) => match element.get("type").text() {
                None | Some("" | "message") if in_standby => EventKind::StandbyStatus,
                None | Some("" | "message") => EventKind::MessageStatus,
                Some("payment") => EventKind::PaymentStatus,
                Some("call") => EventKind::CallStatus,
                Some(_) => EventKind::ChannelEvent,
            },
            (Self::Messages, false) => EventKind::InboundMessage,
            (Self::Messages, true) => EventKind::StandbyMessage,
            (Self::Echoes, false) => EventKind::Echo,
            (Self::Echoes, true) => EventKind::StandbyEcho,
            (Self::Calls, _) => EventKind::Call,
            (Self::History, _) => EventKind::HistoryMessage,
            (Self::Errors | Self::Other | Self::Whole, _) => EventKind::ChannelEvent,
        }
    }
}

/// What becomes an event.
pub(super) struct Found<'a> {
    pub(super) array: Array,
    pub(super) kind: EventKind,
    pub(super) value: Value<'a>,
    pub(super) person: Person<'a>,
    pub(super) context: ElementContext<'a>,
}

impl<'a> Found<'a> {
    pub(super) fn new(
        array: Array,
        in_standby: bool,
        value: Value<'a>,
        context: ElementContext<'a>,
    ) -> Self {
        let kind = array.kind(value, in_standby);
        Self { array, kind, value, person: Person::of(value, kind, &context), context }
    }
}

/// What is read of one value.
#[derive(Default)]
pub(super) struct Inside<'a> {
    /// What its elements share.
    pub(super) scope: ElementContext<'a>,
    pub(super) found: Vec<Found<'a>>,
    pub(super) contacts: Contacts<'a>,
    /// Members that no array holds.
    pub(super) others: Vec<Placed<'a>>,
    /// What is not known inside known members.
    pub(super) unknown: Vec<Placed<'a>>,
    /// It has an array whose elements are events.
    pub(super) is_split: bool,
}

impl<'a> Walk<'a> {
    /// Reads a value, or the `standby` in it, into `inside`.
    pub(super) fn read_inside(&mut self, value: Value<'a>, in_standby: bool) {
        let metadata = value.get("metadata");
        self.members(value, |walk, key, member| {
            let field = walk.inside.scope.field.as_deref().filter(|field| *field != "history");
            let array = Array::named(key, field.filter(|_| member.is_array()));
            match (key, in_standby) {
                ("contacts", _) => walk.each(member, Self::contact),
                ("messaging_product" | "metadata" | "standby" | "history", _)
                    if member.is_null() => {}
                ("messaging_product", false) if is_text(member) => {}
                ("metadata", false) => {
                    let known = ["phone_number_id", "display_phone_number"];
                    let known = if member.is(metadata) { &known[..] } else { &[] };
                    walk.texts(member, known);
                }
                ("standby", false) if member.is_object() => walk.read_inside(member, true),
                ("history", false) if member.is_array() || member.is_object() => {
                    walk.inside.is_split = true;
                    walk.each(member, Self::chunk);
                }
                _ => match array {
                    Some(_) if member.is_null() => {}
                    Some(array) => {
                        walk.inside.is_split = true;
                        walk.each(member, |walk, one| walk.find(array, in_standby, one));
                    }
                    None => walk.inside.others.push(walk.here(member)),
                },
            }
        });
    }

    /// Notes what becomes an event.
    pub(super) fn find(&mut self, array: Array, in_standby: bool, value: Value<'a>) {
        let scope = &self.inside.scope;
        let shared = [&scope.channel.display_phone_number, &scope.thread];
        self.shared_bytes += self.path.len();
        self.shared_bytes += shared.into_iter().flatten().map(|text| text.len()).sum::<usize>();
        if self.shared_bytes > self.bytes_max() {
            self.fault = Some(Reason::Amplification);
        }
        if self.items.len() + self.inside.found.len() >= ELEMENTS_MAX {
            self.fault = Some(Reason::TooManyElements);
        }
        let context = ElementContext { element: self.path.clone(), ..self.inside.scope.clone() };
        self.inside.found.push(Found::new(array, in_standby, value, context));
    }

    /// One of `history[]`, with `threads[].messages[]` and `errors[]`.
    fn chunk(&mut self, chunk: Value<'a>) {
        if !chunk.is_object() {
            return self.find(Array::Other, false, chunk);
        }
        self.members(chunk, |walk, key, member| match key {
            "errors" => {
                walk.each(member, |walk, error| walk.find(Array::Errors, false, error));
            }
            "threads" => walk.each(member, Self::thread),
            _ => walk.inside.unknown.push(walk.here(member)),
        });
    }

    fn thread(&mut self, thread: Value<'a>) {
        if !thread.is_object() {
            return self.find(Array::Other, false, thread);
        }
        self.inside.scope.thread = thread.filled("id");
        let is_known = |key: &str, member| key == "messages" || (key == "id" && is_text(member));
        // Its id alone says no more than its messages do.
        let says_more = thread.members().any(|(key, member)| !is_known(key, member));
        self.members(thread, |walk, key, member| match key {
            "messages" => {
                walk.each(member, |walk, message| walk.find(Array::History, false, message));
            }
            _ if says_more => walk.inside.unknown.push(walk.here(member)),
            _ => {}
        });
        self.inside.scope.thread = None;
    }

    fn contact(&mut self, contact: Value<'a>) {
        if !contact.is_object() {
            return self.inside.unknown.push(self.here(contact));
        }
        let start = self.inside.unknown.len();
        let (profile, own) = (contact.get("profile"), contact.filled("username"));
        self.members(contact, |walk, key, member| match key {
            "wa_id" | "user_id" | "parent_user_id" | "username" | "identity_key_hash"
                if is_text(member) => {}
            "profile" => {
                // The contact's own name goes before that of its profile.
                let differs = |name| own.as_ref().is_some_and(|own| *own != name);
                let known = match member.filled("username").is_some_and(differs) {
                    _ if !member.is(profile) => &[][..],
                    true => &["name"],
                    false => &["name", "username"],
                };
                walk.texts(member, known);
            }
            _ => walk.inside.unknown.push(walk.here(member)),
        });
        let unknown = self.inside.unknown.split_off(start);
        self.inside.contacts.list(self.here(contact), unknown);
    }

    /// Reads an object of texts, or what stands where one belongs.
    fn texts(&mut self, object: Value<'a>, known: &[&str]) {
        if !object.is_object() && !object.is_null() {
            return self.inside.unknown.push(self.here(object));
        }
        self.members(object, |walk, key, member| {
            if !known.contains(&key) || !is_text(member) {
                walk.inside.unknown.push(walk.here(member));
            }
        });
    }
}
