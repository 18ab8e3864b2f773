//! Finds the elements of a callback: which arrays there are, to whom they belong, and what is not
//! known.
//!
//! A callback is an object with `entry`, an object of the shape of `value`, a single change, or an
//! array of those. Keys match exactly. Of a key given twice the last scalar wins, and all arrays are
//! read.

use super::{
    amplification::owned_bytes,
    json::Value,
    people::Person,
    value::{Array, Found, Inside, is_text, join, of_array, unknown_of},
};
use crate::event::{Channel, Contact, ElementContext, EventKind, Format, Reason, Text};

/// What a callback is made of.
#[derive(Debug, Clone)]
pub(super) enum Part<'a> {
    Element(Element<'a>),
    /// Something else stands where an object belongs.
    Dead {
        reason: Reason,
        value: Value<'a>,
        context: ElementContext<'a>,
        kind: EventKind,
    },
    /// Members that are not known, by JSON pointer.
    Remainder {
        format: Option<Format>,
        members: Vec<(String, Value<'a>)>,
    },
}

/// An object that becomes an event.
#[derive(Debug, Clone)]
pub(super) struct Element<'a> {
    pub(super) array: Array,
    pub(super) kind: EventKind,
    pub(super) value: Value<'a>,
    pub(super) context: ElementContext<'a>,
    pub(super) person: Person<'a>,
}

/// The parts of a document that is a callback, or nothing if it is none.
///
/// # Errors
/// When it has more than `max` elements, or they hold more than `budget` bytes of their own.
pub(super) fn parts<'a>(
    document: Value<'a>,
    max: usize,
    budget: usize,
) -> Result<Option<Vec<Part<'a>>>, Reason> {
    let mut walk = Walk { max, budget, ..Walk::default() };
    let roots: Vec<_> = match document.is_array() {
        true => document.elements().enumerate().map(|(at, one)| (one, format!("/{at}"))).collect(),
        false => vec![(document, String::new())],
    };
    if !roots.is_empty() && !roots.iter().any(|(root, _)| is_callback(*root)) {
        return Ok(None);
    }
    for (root, pointer) in roots {
        match is_callback(root) {
            true => walk.callback(root, &pointer)?,
            false => walk.dead(root, ElementContext { element: pointer, ..Default::default() })?,
        }
    }
    if !walk.rest.is_empty() {
        let Walk { format, rest, .. } = walk;
        walk.parts.push(Part::Remainder { format, members: rest });
    }
    Ok(Some(walk.parts))
}

/// The parts of what was taken out of its callback. `was_event`: it is one event.
///
/// # Errors
/// When it has more than `max` elements, or they hold more than `budget` bytes of their own.
pub(super) fn parts_alone<'a>(
    value: Value<'a>,
    context: &ElementContext<'a>,
    was_event: bool,
    max: usize,
    budget: usize,
) -> Result<Vec<Part<'a>>, Reason> {
    let pointer = context.element.as_str();
    let is_pointer = |(key, _): (Text<'_>, Value<'_>)| key.starts_with('/');
    if was_event && pointer.is_empty() && value.members().all(is_pointer) {
        let members = value.members().map(|(key, member)| (key.into_owned(), member)).collect();
        return Ok(vec![Part::Remainder { format: context.format, members }]);
    }
    let mut walk = Walk { max, budget, ..Walk::default() };
    let (array, in_standby) = Array::around(pointer, context.field.as_deref());
    let is_element = was_event || array != Array::Whole;
    if is_element && value.is_object() {
        let kind = array.kind(value, in_standby);
        let person = Person::of(value, kind, &context.channel, context.thread.as_ref());
        let context = context.clone();
        walk.parts.push(Part::Element(Element { array, kind, value, context, person }));
    } else if !is_element && is_callback(value) {
        walk.callback(value, pointer)?;
    } else {
        walk.dead(value, context.clone())?;
    }
    Ok(walk.parts)
}

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

/// What the elements of one value share.
#[derive(Debug, Default, Clone)]
struct Scope<'a> {
    format: Option<Format>,
    field: Option<Text<'a>>,
    channel: Channel<'a>,
    entry_time: Option<Text<'a>>,
}

impl<'a> Scope<'a> {
    /// Bytes that each copy takes.
    fn owned_bytes(&self) -> usize {
        let Self { field, channel, entry_time, .. } = self;
        let Channel { waba_id, phone_number_id, display_phone_number } = channel;
        let texts = [field, entry_time, waba_id, phone_number_id, display_phone_number];
        texts.into_iter().flatten().map(owned_bytes).sum()
    }

    fn context(&self, element: String) -> ElementContext<'a> {
        let Self { format, field, channel, entry_time } = self.clone();
        ElementContext { format, field, element, channel, entry_time, ..Default::default() }
    }
}

#[derive(Default)]
struct Walk<'a> {
    parts: Vec<Part<'a>>,
    /// What is not known so far.
    rest: Vec<(String, Value<'a>)>,
    format: Option<Format>,
    max: usize,
    /// Bytes of pointers and copied texts that may still come.
    budget: usize,
}

impl<'a> Walk<'a> {
    fn spend(&mut self, bytes: usize) -> Result<(), Reason> {
        self.budget = self.budget.checked_sub(bytes).ok_or(Reason::Amplification)?;
        Ok(())
    }

    fn callback(&mut self, value: Value<'a>, pointer: &str) -> Result<(), Reason> {
        let is_cloud = ["entry", "metadata"].iter().any(|name| value.get(name).is_some());
        let is_cloud = is_cloud || is_change(value);
        let format = if is_cloud { Format::Cloud } else { Format::OnPremise };
        self.format = self.format.or(Some(format));
        let scope = Scope { format: Some(format), ..Scope::default() };
        if value.get("entry").is_none() {
            return match is_change(value) {
                true => self.change(value, pointer, &scope),
                false => self.value(value, pointer, scope),
            };
        }
        for (key, member) in value.members() {
            let pointer = || join(pointer, &key);
            match &*key {
                "object" if is_text(member) => {}
                "entry" => self.each(member, pointer(), &scope, Self::entry)?,
                _ => self.rest.push((pointer(), member)),
            }
        }
        Ok(())
    }

    fn entry(&mut self, value: Value<'a>, pointer: &str, scope: &Scope<'a>) -> Result<(), Reason> {
        let mut scope = scope.clone();
        scope.channel.waba_id = value.filled("id");
        scope.entry_time = value.filled("time");
        for (key, member) in value.members() {
            let pointer = || join(pointer, &key);
            match &*key {
                "id" | "time" if is_text(member) => {}
                "changes" => self.each(member, pointer(), &scope, Self::change)?,
                _ => self.rest.push((pointer(), member)),
            }
        }
        Ok(())
    }

    fn change(&mut self, value: Value<'a>, pointer: &str, scope: &Scope<'a>) -> Result<(), Reason> {
        let mut scope = scope.clone();
        scope.field = value.get("field").and_then(Value::text);
        for (key, member) in value.members() {
            let pointer = || join(pointer, &key);
            match &*key {
                "field" if is_text(member) => {}
                "value" if member.is_null() => {}
                "value" if member.is_object() => self.value(member, &pointer(), scope.clone())?,
                "value" => self.dead(member, scope.context(pointer()))?,
                _ => self.rest.push((pointer(), member)),
            }
        }
        Ok(())
    }

    /// Reads each object of an array, or the one object that stands for it.
    fn each(
        &mut self,
        array: Value<'a>,
        pointer: String,
        scope: &Scope<'a>,
        read: fn(&mut Self, Value<'a>, &str, &Scope<'a>) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        for (value, pointer) in of_array(array, pointer) {
            match value.is_object() {
                true => read(self, value, &pointer, scope)?,
                false => self.dead(value, scope.context(pointer))?,
            }
        }
        Ok(())
    }

    /// The object in which the arrays are: a change's `value`, or the whole of an on-premise callback.
    fn value(
        &mut self,
        value: Value<'a>,
        pointer: &str,
        mut scope: Scope<'a>,
    ) -> Result<(), Reason> {
        let metadata = value.get("metadata").filter(|metadata| metadata.is_object());
        let of_metadata = |name| metadata.and_then(|metadata| metadata.filled(name));
        scope.channel.phone_number_id = of_metadata("phone_number_id");
        scope.channel.display_phone_number = of_metadata("display_phone_number");
        let (field, budget) = (scope.field.clone(), self.budget);
        let mut inside = Inside { field, budget, ..Inside::default() };
        inside.read(value, pointer, false)?;
        self.budget = inside.budget;
        // Without an array the value is one event, with all that is in it.
        let is_whole = !inside.is_split && !inside.others.is_empty();
        if is_whole {
            let (array, in_standby, pointer) = (Array::Whole, false, pointer.to_owned());
            inside.found.push(Found { array, in_standby, value, pointer, thread: None });
        }
        if self.parts.len() + inside.found.len() > self.max {
            return Err(Reason::TooManyElements);
        }
        self.spend(inside.found.len().saturating_mul(scope.owned_bytes()))?;
        let kind = |found: &Found<'a>| found.array.kind(found.value, found.in_standby);
        let people: Vec<_> = (inside.found.iter())
            .map(|one| Person::of(one.value, kind(one), &scope.channel, one.thread.as_ref()))
            .collect();
        let (joined, alone) = inside.contacts.join(&people);
        if !is_whole {
            self.rest.append(&mut inside.others);
            self.rest.append(&mut inside.unknown);
            self.rest.extend(joined.into_iter().flat_map(|one| unknown_of(one.raw, &one.pointer)));
            self.rest.extend(alone.into_iter().map(|one| (one.pointer.clone(), one.raw)));
        }
        for (found, person) in inside.found.into_iter().zip(people) {
            let kind = kind(&found);
            let Found { array, value, pointer, thread, .. } = found;
            let contact = inside.contacts.of(&person);
            self.spend(contact.map_or(0, Contact::owned_bytes))?;
            let contact = contact.cloned();
            let context = ElementContext { contact, thread, ..scope.context(pointer) };
            self.parts.push(match value.is_object() {
                true => Part::Element(Element { array, kind, value, context, person }),
                false => Part::Dead { reason: Reason::NotAnObject, value, context, kind },
            });
        }
        Ok(())
    }

    fn dead(&mut self, value: Value<'a>, context: ElementContext<'a>) -> Result<(), Reason> {
        let is_object = value.is_object();
        let reason = if is_object { Reason::Unrecognized } else { Reason::NotAnObject };
        self.parts.push(Part::Dead { reason, value, context, kind: EventKind::ChannelEvent });
        if self.parts.len() > self.max { Err(Reason::TooManyElements) } else { Ok(()) }
    }
}
