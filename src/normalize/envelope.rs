//! Finds the elements of a callback: which arrays there are, to whom they belong, and what is not
//! known.
//!
//! A callback is an object with `entry`, an object of the shape of `value`, a single change, or an
//! array of those. Keys match exactly. Of a key given twice the last scalar wins, and all arrays are
//! read.

use std::mem;

use super::{
    ELEMENTS_MAX, Placed, Walk,
    amplification::{contact_bytes, scope_bytes},
    json::Value,
    people::Person,
    value::{Array, Found, Inside},
};
use crate::event::{ElementContext, EventKind, Format, Item, Reason};

/// Done, or why all of the body is one dead letter.
pub(super) type Done = Result<(), Reason>;

/// Members that only a callback, or a value, has.
fn is_telling(name: &str) -> bool {
    matches!(name, "entry" | "contacts" | "standby" | "metadata" | "messaging_product" | "history")
        || Array::named(name, None).is_some()
}

fn is_change(value: Value<'_>) -> bool {
    ["field", "value"].iter().all(|name| value.get(name).is_some())
}

fn is_callback(value: Value<'_>) -> bool {
    let is_empty = value.members().next().is_none();
    value.is_object()
        && (is_empty || is_change(value) || value.members().any(|(key, _)| is_telling(&key)))
}

pub(super) fn is_text(value: Value<'_>) -> bool {
    value.is_null() || value.text().is_some()
}

impl<'a> Walk<'a> {
    /// The items of a whole body.
    pub(super) fn whole(mut self) -> Result<Vec<Item<'a>>, Reason> {
        let root = self.document.root();
        match root.is_array() {
            false if is_callback(root) => self.envelope(root)?,
            true if root.elements().next().is_none() || root.elements().any(is_callback) => {
                self.each(root, |walk, root| match is_callback(root) {
                    true => walk.envelope(root),
                    false => walk.dead(root, &ElementContext::default()),
                })?;
            }
            _ => return Err(Reason::Unrecognized),
        }
        if !self.rest.is_empty() {
            self.remainder();
        }
        if self.is_amplified() { Err(Reason::Amplification) } else { Ok(self.items) }
    }

    /// The items of what was taken out of its callback. `was_event`: it is one event.
    pub(super) fn alone(
        mut self,
        context: &ElementContext<'a>,
        was_event: bool,
    ) -> Result<Vec<Item<'a>>, Reason> {
        let value = self.document.root();
        self.path.clone_from(&context.element);
        let (array, in_standby) = Array::around(&self.path, context.field.as_deref());
        let is_element = was_event || array != Array::Whole;
        if was_event && self.path.is_empty() && value.members().all(|(key, _)| key.starts_with('/'))
        {
            self.format = context.format;
            self.rest = value.members().map(|(key, value)| (key.into_owned(), value)).collect();
            self.remainder();
        } else if is_element && value.is_object() {
            let kind = array.kind(value, in_standby);
            let person = Person::of(value, kind, &context.channel, context.thread.as_ref());
            // It shares with no other element.
            self.budget = usize::MAX;
            self.element(array, kind, value, person, context.clone())?;
        } else if !is_element && is_callback(value) {
            self.envelope(value)?;
        } else {
            self.dead(value, context)?;
        }
        Ok(self.items)
    }

    fn envelope(&mut self, value: Value<'a>) -> Done {
        let (is_change, is_whole) = (is_change(value), value.get("entry").is_some());
        let is_cloud = is_whole || is_change || value.get("metadata").is_some();
        let format = Some(if is_cloud { Format::Cloud } else { Format::OnPremise });
        self.format = self.format.or(format);
        let scope = ElementContext { format, ..ElementContext::default() };
        if !is_whole {
            return if is_change { self.change(value, &scope) } else { self.value(value, &scope) };
        }
        self.members(value, |walk, key, member| match key {
            "object" if is_text(member) => Ok(()),
            "entry" => walk.each(member, |walk, entry| walk.entry(entry, &scope)),
            _ => walk.unknown(member),
        })
    }

    fn entry(&mut self, value: Value<'a>, scope: &ElementContext<'a>) -> Done {
        if !value.is_object() {
            return self.dead(value, scope);
        }
        let mut scope = self.copy(scope)?;
        scope.channel.waba_id = value.filled("id");
        scope.entry_time = value.filled("time");
        self.members(value, |walk, key, member| match key {
            "id" | "time" if is_text(member) => Ok(()),
            "changes" => walk.each(member, |walk, change| walk.change(change, &scope)),
            _ => walk.unknown(member),
        })
    }

    fn change(&mut self, value: Value<'a>, scope: &ElementContext<'a>) -> Done {
        if !value.is_object() {
            return self.dead(value, scope);
        }
        let field = value.get("field").and_then(Value::text);
        let scope = ElementContext { field, ..self.copy(scope)? };
        self.members(value, |walk, key, member| match key {
            "field" if is_text(member) => Ok(()),
            "value" if member.is_null() => Ok(()),
            "value" if member.is_object() => walk.value(member, &scope),
            "value" => walk.dead(member, &scope),
            _ => walk.unknown(member),
        })
    }

    /// The object in which the arrays are: a change's `value`, or the whole of an on-premise callback.
    fn value(&mut self, value: Value<'a>, scope: &ElementContext<'a>) -> Done {
        let metadata = value.get("metadata").filter(|metadata| metadata.is_object());
        let of_metadata = |name| metadata.and_then(|metadata| metadata.filled(name));
        let mut scope = self.copy(scope)?;
        scope.channel.phone_number_id = of_metadata("phone_number_id");
        scope.channel.display_phone_number = of_metadata("display_phone_number");
        self.inside = Inside { scope, ..Inside::default() };
        self.read_inside(value, false)?;
        // Without an array the value is one event, with all that is in it.
        let is_whole = !self.inside.is_split && !self.inside.others.is_empty();
        if is_whole {
            self.find(Array::Whole, false, value, None)?;
        }
        let Inside { scope, found, mut contacts, others, unknown, .. } =
            mem::take(&mut self.inside);
        if self.items.len() + found.len() > ELEMENTS_MAX {
            return Err(Reason::TooManyElements);
        }
        contacts.join(&found);
        if !is_whole {
            self.rest.extend(others);
            self.rest.extend(unknown);
            contacts.unknown(&mut self.rest);
        }
        for Found { array, kind, value, pointer, thread, person } in found {
            let contact = contacts.of(&person);
            self.spend(contact.map_or(0, contact_bytes))?;
            let (element, contact) = (pointer, contact.cloned());
            let context = ElementContext { element, contact, thread, ..self.copy(&scope)? };
            self.element(array, kind, value, person, context)?;
        }
        Ok(())
    }

    /// Makes a dead letter of what stands where something else belongs.
    fn dead(&mut self, value: Value<'a>, scope: &ElementContext<'a>) -> Done {
        let (reason, detail) = match value.is_object() {
            true => (Reason::Unrecognized, "something else belongs here"),
            false => (Reason::NotAnObject, "an object belongs here"),
        };
        let context = ElementContext { element: self.path.clone(), ..self.copy(scope)? };
        self.dead_letter(reason, detail, value, context, EventKind::ChannelEvent);
        if self.items.len() > ELEMENTS_MAX { Err(Reason::TooManyElements) } else { Ok(()) }
    }

    /// Copies what the elements of a value share.
    fn copy(&mut self, scope: &ElementContext<'a>) -> Result<ElementContext<'a>, Reason> {
        self.spend(scope_bytes(scope))?;
        Ok(scope.clone())
    }

    pub(super) fn spend(&mut self, bytes: usize) -> Done {
        self.budget = self.budget.checked_sub(bytes).ok_or(Reason::Amplification)?;
        Ok(())
    }

    /// Notes that this value is not known.
    fn unknown(&mut self, value: Value<'a>) -> Done {
        self.rest.push(self.here(value));
        Ok(())
    }

    /// A value that is being read, with its place.
    pub(super) fn here(&self, value: Value<'a>) -> Placed<'a> {
        (self.path.clone(), value)
    }

    /// Reads each element of an array. What is no array is an array of one; null is none.
    pub(super) fn each(
        &mut self,
        array: Value<'a>,
        mut read: impl FnMut(&mut Self, Value<'a>) -> Done,
    ) -> Done {
        if !array.is_array() {
            return if array.is_null() { Ok(()) } else { read(self, array) };
        }
        for (at, value) in array.elements().enumerate() {
            self.step(itoa::Buffer::new().format(at), |walk| read(walk, value))?;
        }
        Ok(())
    }

    /// Reads each member of an object.
    pub(super) fn members(
        &mut self,
        object: Value<'a>,
        mut read: impl FnMut(&mut Self, &str, Value<'a>) -> Done,
    ) -> Done {
        for (key, value) in object.members() {
            self.step(&key, |walk| read(walk, &key, value))?;
        }
        Ok(())
    }

    /// Reads what is one step further on the path, as a JSON pointer has it (RFC 6901).
    fn step(&mut self, step: &str, read: impl FnOnce(&mut Self) -> Done) -> Done {
        let above = self.path.len();
        self.path.push('/');
        match step.contains(['~', '/']) {
            true => self.path.push_str(&step.replace('~', "~0").replace('/', "~1")),
            false => self.path.push_str(step),
        }
        let done = read(self);
        self.path.truncate(above);
        done
    }
}
