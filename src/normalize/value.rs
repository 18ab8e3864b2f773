//! What one `value` holds: its arrays, its contacts, and what is not known.

use super::{amplification::owned_bytes, json::Value, people::Contacts};
use crate::event::{EventKind, Reason, Text};

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
        let is_number = |segment: &str| segment.parse::<usize>().is_ok();
        let path = match pointer.rsplit_once('/') {
            Some((path, last)) if is_number(last) => path,
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
    pub(super) fn kind(self, element: Value<'_>, in_standby: bool) -> EventKind {
        match (self, in_standby) {
            (Self::Statuses, _) => match element.get("type").and_then(Value::text).as_deref() {
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

/// Objects of one value that become events, before their contacts are known.
pub(super) struct Found<'a> {
    pub(super) array: Array,
    pub(super) in_standby: bool,
    pub(super) value: Value<'a>,
    pub(super) pointer: String,
    pub(super) thread: Option<Text<'a>>,
}

/// What one value holds.
#[derive(Default)]
pub(super) struct Inside<'a> {
    pub(super) field: Option<Text<'a>>,
    pub(super) found: Vec<Found<'a>>,
    pub(super) contacts: Contacts<'a>,
    /// Members that no array holds.
    pub(super) others: Vec<(String, Value<'a>)>,
    /// What is not known inside known members.
    pub(super) unknown: Vec<(String, Value<'a>)>,
    /// It has an array whose elements are events.
    pub(super) is_split: bool,
    /// Bytes of pointers and copied texts that may still come.
    pub(super) budget: usize,
}

impl<'a> Inside<'a> {
    /// # Errors
    /// The budget is exceeded.
    pub(super) fn read(
        &mut self,
        value: Value<'a>,
        pointer: &str,
        in_standby: bool,
    ) -> Result<(), Reason> {
        let metadata = value.get("metadata");
        for (key, member) in value.members() {
            let pointer = || join(pointer, &key);
            let field = self.field.as_deref().filter(|field| *field != "history");
            let array = Array::named(&key, field.filter(|_| member.is_array()));
            match (&*key, in_standby) {
                ("contacts", _) => self.contacts(member, pointer()),
                ("messaging_product" | "metadata" | "standby" | "history", _)
                    if member.is_null() => {}
                ("messaging_product", false) if is_text(member) => {}
                ("metadata", false) => {
                    let known = ["phone_number_id", "display_phone_number"];
                    let known = if is_same(member, metadata) { &known[..] } else { &[] };
                    self.unknown.extend(unknown_in(member, pointer, known));
                }
                ("standby", false) if member.is_object() => self.read(member, &pointer(), true)?,
                ("history", false) if member.is_array() || member.is_object() => {
                    self.is_split = true;
                    self.history(member, pointer())?;
                }
                _ => match array {
                    Some(_) if member.is_null() => {}
                    Some(array) => {
                        self.is_split = true;
                        self.split(array, in_standby, member, pointer(), None)?;
                    }
                    None => self.others.push((pointer(), member)),
                },
            }
        }
        Ok(())
    }

    fn split(
        &mut self,
        array: Array,
        in_standby: bool,
        member: Value<'a>,
        pointer: String,
        thread: Option<&Text<'a>>,
    ) -> Result<(), Reason> {
        let thread_bytes = thread.map_or(0, owned_bytes);
        for (value, pointer) in of_array(member, pointer) {
            let bytes = pointer.len() + thread_bytes;
            self.budget = self.budget.checked_sub(bytes).ok_or(Reason::Amplification)?;
            let thread = thread.cloned();
            self.found.push(Found { array, in_standby, value, pointer, thread });
        }
        Ok(())
    }

    fn not_an_object(&mut self, value: Value<'a>, pointer: String) {
        self.found.push(Found {
            array: Array::Other,
            in_standby: false,
            value,
            pointer,
            thread: None,
        });
    }

    fn contacts(&mut self, contacts: Value<'a>, pointer: String) {
        for (contact, pointer) in of_array(contacts, pointer) {
            match contact.is_object() {
                true => self.contacts.list(contact, pointer),
                false => self.unknown.push((pointer, contact)),
            }
        }
    }

    /// `history[].threads[].messages[]` and `history[].errors[]`.
    fn history(&mut self, chunks: Value<'a>, pointer: String) -> Result<(), Reason> {
        for (chunk, pointer) in of_array(chunks, pointer) {
            if !chunk.is_object() {
                self.not_an_object(chunk, pointer);
                continue;
            }
            for (key, member) in chunk.members() {
                let pointer = join(&pointer, &key);
                match &*key {
                    "errors" => self.split(Array::Errors, false, member, pointer, None)?,
                    "threads" => of_array(member, pointer)
                        .try_for_each(|(thread, pointer)| self.thread(thread, &pointer))?,
                    _ => self.unknown.push((pointer, member)),
                }
            }
        }
        Ok(())
    }

    fn thread(&mut self, thread: Value<'a>, pointer: &str) -> Result<(), Reason> {
        if !thread.is_object() {
            self.not_an_object(thread, pointer.to_owned());
            return Ok(());
        }
        let id = thread.filled("id");
        let mut rest = Vec::new();
        for (key, member) in thread.members() {
            let pointer = join(pointer, &key);
            match &*key {
                "messages" => self.split(Array::History, false, member, pointer, id.as_ref())?,
                _ => rest.push((pointer, member)),
            }
        }
        // Its id alone says no more than its messages do.
        let is_id = |pointer: &str, member| pointer.ends_with("/id") && is_text(member);
        if !rest.iter().all(|(pointer, member)| is_id(pointer, *member)) {
            self.unknown.append(&mut rest);
        }
        Ok(())
    }
}

/// The elements of an array with their pointers. What is no array is an array of one; null is none.
pub(super) fn of_array<'a>(
    array: Value<'a>,
    pointer: String,
) -> impl Iterator<Item = (Value<'a>, String)> {
    let alone = (!array.is_array() && !array.is_null()).then(|| (array, pointer.clone()));
    let inside = array.elements().enumerate();
    let of = move |at| join(&pointer, itoa::Buffer::new().format(at));
    alone.into_iter().chain(inside.map(move |(at, value)| (value, of(at))))
}

/// What is not known of an object of texts: all of it, if it is no object.
fn unknown_in<'a>(
    object: Value<'a>,
    pointer: impl Fn() -> String,
    known: &[&str],
) -> Vec<(String, Value<'a>)> {
    if !object.is_object() {
        return if object.is_null() { Vec::new() } else { vec![(pointer(), object)] };
    }
    let is_known = |key: &str, member| known.contains(&key) && is_text(member);
    (object.members().filter(|(key, member)| !is_known(key, *member)))
        .map(|(key, member)| (join(&pointer(), &key), member))
        .collect()
}

/// Whether this member is the one that is read, of several that have its name.
fn is_same(member: Value<'_>, read: Option<Value<'_>>) -> bool {
    read.is_some_and(|read| std::ptr::eq(read.bytes(), member.bytes()))
}

/// What of a contact is not known.
pub(super) fn unknown_of<'a>(contact: Value<'a>, pointer: &str) -> Vec<(String, Value<'a>)> {
    let mut unknown = Vec::new();
    let (profile, own) = (contact.get("profile"), contact.filled("username"));
    for (key, member) in contact.members() {
        let pointer = || join(pointer, &key);
        match &*key {
            "wa_id" | "user_id" | "parent_user_id" | "username" | "identity_key_hash"
                if is_text(member) => {}
            "profile" => {
                // The contact's own name goes before that of its profile.
                let differs = |name| own.as_ref().is_some_and(|own| *own != name);
                let known = match member.filled("username").is_some_and(differs) {
                    _ if !is_same(member, profile) => &[][..],
                    true => &["name"],
                    false => &["name", "username"],
                };
                unknown.extend(unknown_in(member, pointer, known));
            }
            _ => unknown.push((pointer(), member)),
        }
    }
    unknown
}

pub(super) fn is_text(value: Value<'_>) -> bool {
    value.is_null() || value.text().is_some()
}

/// A JSON pointer to a member (RFC 6901).
pub(super) fn join(pointer: &str, key: &str) -> String {
    match key.contains(['~', '/']) {
        true => [pointer, "/", &key.replace('~', "~0").replace('/', "~1")].concat(),
        false => [pointer, "/", key].concat(),
    }
}
