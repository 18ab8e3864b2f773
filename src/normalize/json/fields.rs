//! Typed fields: a value's texts, flags, numbers and times, written as they are read.
//!
//! What is written without change is marked, so that the element's bytes may be left out where nothing
//! else is in them.

use super::Value;
use crate::event::{Object, Text, Time};

impl<'a> Value<'a> {
    /// The text of a member, if it has some that is not empty.
    pub(in crate::normalize) fn filled(self, name: &str) -> Option<Text<'a>> {
        self.get(name)?.text().filter(|text| !text.is_empty())
    }

    /// Notes that this value, and all that is in it, is in a typed field without change.
    pub(in crate::normalize) fn mark_typed(self) {
        let range = self.at as usize..self.note().next as usize;
        self.document.notes[range].iter().for_each(|note| note.typed.set(true));
    }

    /// Whether every member of this object, at every depth, is in a typed field without change.
    pub(in crate::normalize) fn is_all_typed(self) -> bool {
        (self.at + 1..self.note().next).all(|at| {
            let note = &self.document.notes[at as usize];
            let has_members = note.next > at + 1;
            has_members || note.typed.get()
        })
    }

    /// Writes its text as a field. Only a string is there without change.
    pub(in crate::normalize) fn copy(self, field: &str, out: &mut Object<'_>) {
        if self.is_string() {
            self.mark_typed();
            if self.is_strict_string() {
                return out.json(field, self.bytes());
            }
        }
        out.maybe(field, self.text());
    }

    /// Writes a member's text as a field.
    pub(in crate::normalize) fn copy_member(self, name: &str, field: &str, out: &mut Object<'_>) {
        if let Some(member) = self.get(name) {
            member.copy(field, out);
        }
    }

    /// Writes the text of the first of these members that has some as a field, and returns it. Users may
    /// hide their number: then it comes empty.
    pub(in crate::normalize) fn copy_first(
        self,
        names: &[&str],
        field: &str,
        out: &mut Object<'_>,
    ) -> Option<Text<'a>> {
        let filled = |name: &&str| {
            let member = self.get(name)?;
            Some((member, member.text().filter(|text| !text.is_empty())?))
        };
        let (member, text) = names.iter().find_map(filled)?;
        member.copy(field, out);
        Some(text)
    }

    /// Writes a flag as a field.
    pub(in crate::normalize) fn copy_flag(self, name: &str, field: &str, out: &mut Object<'_>) {
        let is_flag = |value: &Value<'_>| matches!(value.bytes(), b"true" | b"false");
        if let Some(flag) = self.get(name).filter(is_flag) {
            flag.mark_typed();
            out.json(field, flag.bytes());
        }
    }

    /// Writes a whole number as a field, and returns it.
    pub(in crate::normalize) fn copy_number(
        self,
        name: &str,
        field: &str,
        out: &mut Object<'_>,
    ) -> Option<i64> {
        let member = self.get(name)?;
        let text = member.text()?;
        let number = text.trim().parse().ok()?;
        // A string, or -0, is not written as it came.
        if member.bytes() == itoa::Buffer::new().format(number).as_bytes() {
            member.mark_typed();
        }
        out.number(field, number);
        Some(number)
    }

    /// Writes a time since 1970 as RFC 3339.
    pub(in crate::normalize) fn copy_time(self, name: &str, field: &str, out: &mut Object<'_>) {
        if let Some(member) = self.get(name)
            && let Some(time) = member.text().and_then(|text| Time::read(&text)?.rfc3339())
        {
            member.mark_time();
            out.text(field, &time);
        }
    }

    /// A time in digits can be told from RFC 3339 again, unless zeros lead it or it is no string.
    pub(in crate::normalize) fn mark_time(self) {
        let is_plain = |text: Text<'_>| !(text.len() > 1 && text.starts_with('0'));
        if self.is_string() && self.text().is_some_and(is_plain) {
            self.mark_typed();
        }
    }
}
