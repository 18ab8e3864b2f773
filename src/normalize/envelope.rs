//! Finds the elements of a callback: which arrays there are, to whom they belong, and what is not
//! known.
//!
//! A callback is an object with `entry`, an object of the shape of `value`, a single change, or an
//! array of those. Keys match exactly. Of a key given twice the last scalar wins, and all arrays are
//! read.

use std::mem;

use super::{
    ELEMENTS_MAX, Placed, Walk,
    json::Value,
    value::{Array, Found, Inside},
};
use crate::event::{ElementContext, EventKind, Format, Reason, Text};

/// Members that only a callback, or a value, has.
fn is_telling(name: &str) -> bool {
    matches!(name, "entry" | "contacts" | "standby" | "metadata" | "messaging_product" | "history")
        || Array::named(name, None).is_some()
}

fn is_change(value: Value<'_>) -> bool {
    value.has("field") && value.has("value")
}

fn is_callback(value: Value<'_>) -> bool {
    let is_empty = value.members().next().is_none();
    value.is_object()
        && (is_empty || is_change(value) || value.members().any(|(key, _)| is_telling(key)))
}

pub(super) fn is_text(value: Value<'_>) -> bool {
    value.is_null() || value.text().is_some()
}

impl<'a> Walk<'a> {
    /// Makes the items of a whole body.
    pub(super) fn whole(&mut self) {
        let root = self.document.root();
        match root.is_array() {
            false if is_callback(root) => self.envelope(root),
            true if root.elements().next().is_none() || root.elements().any(is_callback) => {
                self.each(root, |walk, root| match is_callback(root) {
                    true => walk.envelope(root),
                    false => walk.dead(root, &ElementContext::default()),
                });
            }
            _ => self.fault = Some(Reason::Unrecognized),
        }
        if !self.rest.is_empty() {
            self.remainder();
        }
        if self.fault.is_none() && self.is_amplified() {
            self.fault = Some(Reason::Amplification);
        }
    }

    /// Makes the items of what was taken out of its callback. `was_event`: it is one event.
    pub(super) fn alone(&mut self, context: &ElementContext<'a>, was_event: bool) {
        let value = self.document.root();
        self.path.clone_from(&context.element);
        let (array, in_standby) = Array::around(&self.path, context.field.as_deref());
        let is_element = was_event || array != Array::Whole;
        if was_event && self.path.is_empty() && value.members().all(|(key, _)| key.starts_with('/'))
        {
            self.format = context.format;
            self.rest = value.members().map(|(key, value)| (key.to_owned(), value)).collect();
            self.remainder();
        } else if is_element && value.is_object() {
            self.element(Found::new(array, in_standby, value, context.clone()));
        } else if !is_element && is_callback(value) {
            self.envelope(value);
        } else {
            self.dead(value, context);
        }
    }

    fn envelope(&mut self, value: Value<'a>) {
        let (is_change, is_whole) = (is_change(value), value.has("entry"));
        let is_cloud = is_whole || is_change || value.has("metadata");
        let format = Some(if is_cloud { Format::Cloud } else { Format::OnPremise });
        self.format = self.format.or(format);
        let scope = ElementContext { format, ..ElementContext::default() };
        if !is_whole {
            return if is_change { self.change(value, &scope) } else { self.value(value, &scope) };
        }
        self.members(value, |walk, key, member| match key {
            "object" if is_text(member) => {}
            "entry" => walk.each(member, |walk, entry| walk.entry(entry, &scope)),
            _ => walk.rest.push(walk.here(member)),
        });
    }

    fn entry(&mut self, value: Value<'a>, scope: &ElementContext<'a>) {
        if !value.is_object() {
            return self.dead(value, scope);
        }
        let mut scope = scope.clone();
        scope.channel.waba_id = value.filled("id");
        scope.entry_time = value.filled("time");
        self.members(value, |walk, key, member| match key {
            "id" | "time" if is_text(member) => {}
            "changes" => walk.each(member, |walk, change| walk.change(change, &scope)),
            _ => walk.rest.push(walk.here(member)),
        });
    }

    fn change(&mut self, value: Value<'a>, scope: &ElementContext<'a>) {
        if !value.is_object() {
            return self.dead(value, scope);
        }
        let field = value.get("field").text().map(Text::from);
        let scope = ElementContext { field, ..scope.clone() };
        self.members(value, |walk, key, member| match key {
            "field" if is_text(member) => {}
            "value" if member.is_null() => {}
            "value" if member.is_object() => walk.value(member, &scope),
            "value" => walk.dead(member, &scope),
            _ => walk.rest.push(walk.here(member)),
        });
    }

    /// The object in which the arrays are: a change's `value`, or the whole of an on-premise callback.
    fn value(&mut self, value: Value<'a>, scope: &ElementContext<'a>) {
        let (mut scope, metadata) = (scope.clone(), value.get("metadata"));
        scope.channel.phone_number_id = metadata.filled("phone_number_id");
        scope.channel.display_phone_number = metadata.filled("display_phone_number");
        self.inside = Inside { scope, ..Inside::default() };
        self.read_inside(value, false);
        // Without an array the value is one event, with all that is in it.
        let is_whole = !self.inside.is_split && !self.inside.others.is_empty();
        if is_whole {
            self.find(Array::Whole, false, value);
        }
        let Inside { mut found, mut contacts, others, unknown, .. } = mem::take(&mut self.inside);
        if self.fault.is_some() {
            return;
        }
        contacts.join(&mut found);
        if !is_whole {
            self.rest.extend(others);
            self.rest.extend(unknown);
            contacts.unknown(&mut self.rest);
        }
        found.into_iter().for_each(|found| self.element(found));
    }

    /// Makes a dead letter of what stands where something else belongs.
    fn dead(&mut self, value: Value<'a>, scope: &ElementContext<'a>) {
        let (reason, detail) = match value.is_object() {
            true => (Reason::Unrecognized, "something else belongs here"),
            false => (Reason::NotAnObject, "an object belongs here"),
        };
        let context = ElementContext { element: self.path.clone(), ..scope.clone() };
        self.dead_letter(reason, detail, value, context, EventKind::ChannelEvent);
        if self.items.len() > ELEMENTS_MAX {
            self.fault = Some(Reason::TooManyElements);
        }
    }

    /// A value that is being read, with its place.
    pub(super) fn here(&self, value: Value<'a>) -> Placed<'a> {
        (self.path.clone(), value)
    }

    /// Reads each element of an array. What is no array is an array of one; null is none.
    pub(super) fn each(&mut self, array: Value<'a>, mut read: impl FnMut(&mut Self, Value<'a>)) {
        if !array.is_array() && !array.is_null() {
            return read(self, array);
        }
        for (at, value) in array.elements().enumerate() {
            self.step(itoa::Buffer::new().format(at), |walk| read(walk, value));
        }
    }

    /// Reads each member of an object.
    pub(super) fn members(
        &mut self,
        object: Value<'a>,
        mut read: impl FnMut(&mut Self, &'a str, Value<'a>),
    ) {
        for (key, value) in object.members() {
            self.step(key, |walk| read(walk, key, value));
        }
    }

    /// Reads what is one step further on the path, as a JSON pointer has it (RFC 6901).
    fn step(&mut self, step: &str, read: impl FnOnce(&mut Self)) {
        if self.fault.is_some() {
            return;
        }
        let above = self.path.len();
        self.path.push('/');
        match step.contains(['~', '/']) {
            true => self.path.push_str(&step.replace('~', "~0").replace('/', "~1")),
            false => self.path.push_str(step),
        }
        read(self);
        self.path.truncate(above);
    }
}
