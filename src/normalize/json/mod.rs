//! JSON as the sender's parser takes it, over the bytes as they came.
//!
//! Weni's parser is Go's: invalid UTF-8 in strings, lone surrogates, duplicate keys and deep nesting
//! all pass it and reach us, and none of them may cost a status. [`Document::parse`] reads the bytes
//! once and notes where each value begins and ends; a [`Value`] is one of those notes. Text is
//! repaired with U+FFFD only when it is asked for, so whatever is hashed or passed on are the bytes
//! that came.
//!
//! **Invariant:** nothing here recurses: depth costs a number on the heap, not the stack.

mod scan;

use std::{
    borrow::Cow,
    cell::{Cell, OnceCell},
    ops::Range,
};

use self::scan::{Scanner, unescape};
use crate::event::{Object, Reason, Text, Time};

/// More values than any body that is accepted can sensibly hold; bounds their notes to 32 MB.
const VALUES_MAX: usize = 2_000_000;
/// Parsers stop at 128, and an event puts its element one level deeper.
const STRICT_DEPTH: usize = 100;
pub(super) const BLANKS: &[u8] = b" \t\r\n";

/// Bytes that are JSON, and where its values are.
#[derive(Debug)]
pub(super) struct Document<'a> {
    pub(super) bytes: &'a [u8],
    /// The same, if all of it is UTF-8, as it nearly always is.
    text: Option<&'a str>,
    /// In the order in which they begin; keys are among them, each before its value. After them comes
    /// one note that stands for every missing member.
    notes: Vec<Note>,
    /// In the order of their notes.
    coded: Vec<Coded>,
    /// Whether every strict parser reads it: valid UTF-8, no lone surrogate, not too deep, and no
    /// number too large for 64-bit floating point.
    pub(super) is_strict: bool,
}

/// Where a value, or the name of a member, is.
#[derive(Debug)]
struct Note {
    start: u32,
    end: u32,
    /// The note after this value and all that is in it.
    next: u32,
    /// It is among [`Document::coded`].
    is_coded: bool,
    /// A name, or a value that is in a typed field without change.
    typed: Cell<bool>,
}

/// A string whose text is not its bytes: it has a backslash or invalid UTF-8.
#[derive(Debug)]
struct Coded {
    note: u32,
    /// Every strict parser reads it, whatever stands beside it.
    is_strict: bool,
    /// Made when it is first asked for.
    text: OnceCell<Box<str>>,
}

/// One JSON value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    at: u32,
}

impl<'a> Document<'a> {
    /// Reads a whole document; else why it is none, also in words.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, (Reason, String)> {
        let text = std::str::from_utf8(bytes).ok();
        let notes = Vec::with_capacity(bytes.len() / 8);
        let document = Self { bytes, text, notes, coded: Vec::new(), is_strict: text.is_some() };
        let mut scanner = Scanner { document, at: 0, open: Vec::with_capacity(16) };
        match scanner.scan() {
            Some(()) => Ok(scanner.document),
            None if scanner.document.notes.len() > VALUES_MAX => {
                Err((Reason::TooManyElements, "too many values".to_owned()))
            }
            None => Err((Reason::InvalidJson, format!("not JSON from byte {} on", scanner.at))),
        }
    }

    pub(super) fn root(&'a self) -> Value<'a> {
        Value { document: self, at: 0 }
    }
}

impl<'a> Value<'a> {
    fn note(self) -> &'a Note {
        &self.document.notes[self.at as usize]
    }

    fn range(self) -> Range<usize> {
        let note = self.note();
        note.start as usize..note.end as usize
    }

    /// A string's place without its quotes.
    fn inner(self) -> Range<usize> {
        let note = self.note();
        note.start as usize + 1..note.end as usize - 1
    }

    /// Its bytes, without blanks around it.
    pub(super) fn bytes(self) -> &'a [u8] {
        &self.document.bytes[self.range()]
    }

    /// The text in that range, which is valid UTF-8.
    fn slice(self, range: Range<usize>) -> &'a str {
        match self.document.text {
            Some(text) => &text[range],
            None => std::str::from_utf8(&self.document.bytes[range]).unwrap_or_default(),
        }
    }

    fn first_byte(self) -> u8 {
        self.document.bytes.get(self.note().start as usize).copied().unwrap_or(b'n')
    }

    pub(super) fn is_string(self) -> bool {
        self.first_byte() == b'"'
    }

    pub(super) fn is_object(self) -> bool {
        self.first_byte() == b'{'
    }

    pub(super) fn is_array(self) -> bool {
        self.first_byte() == b'['
    }

    pub(super) fn is_null(self) -> bool {
        self.first_byte() == b'n'
    }

    /// Key and value of each member, in order; none if this is no object.
    pub(super) fn members(self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        let mut inside = self.inside(self.is_object());
        std::iter::from_fn(move || Some((inside.next()?.string(), inside.next()?)))
    }

    /// The elements, in order; none if this is no array.
    pub(super) fn elements(self) -> impl Iterator<Item = Value<'a>> {
        self.inside(self.is_array())
    }

    /// What is directly inside: elements, or keys and values in turn.
    fn inside(self, is_container: bool) -> impl Iterator<Item = Value<'a>> {
        let end = if is_container { self.note().next } else { self.at + 1 };
        let mut at = self.at + 1;
        std::iter::from_fn(move || {
            let value = Value { at, ..self };
            (at < end).then(|| {
                at = value.note().next;
                value
            })
        })
    }

    /// The members of that name, in order.
    pub(super) fn all(self, name: &str) -> impl Iterator<Item = Value<'a>> {
        let end = if self.is_object() { self.note().next } else { 0 };
        let mut at = self.at + 1;
        std::iter::from_fn(move || {
            // A name is one note, and its value begins with the next.
            while at < end {
                let (key, value) = (Value { at, ..self }, Value { at: at + 1, ..self });
                at = value.note().next;
                if key.spells(name) {
                    return Some(value);
                }
            }
            None
        })
    }

    /// The member of that name: of several the last text, number or flag, else the last but null. A
    /// missing one is read as null.
    pub(super) fn get(self, name: &str) -> Value<'a> {
        let missing = Value { at: self.document.notes.len() as u32 - 1, ..self };
        self.all(name).max_by_key(|value| value.weight()).unwrap_or(missing)
    }

    /// Whether there is a member of that name, which may be null.
    pub(super) fn has(self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// Whether both are at the same place.
    pub(super) fn is(self, other: Value<'a>) -> bool {
        self.at == other.at
    }

    /// Which of several values of one name is read: a heavier one, and of one weight the last.
    fn weight(self) -> u8 {
        match self.first_byte() {
            b'n' => 0,
            b'{' | b'[' => 1,
            _ => 2,
        }
    }

    fn coded(self) -> Option<&'a Coded> {
        let coded = &self.document.coded;
        self.note().is_coded.then(|| &coded[coded.partition_point(|one| one.note < self.at)])
    }

    /// Whether this string's text is that; cheaper than to ask for the text.
    fn spells(self, text: &str) -> bool {
        match self.note().is_coded {
            true => self.string() == text,
            false => self.document.bytes[self.inner()] == *text.as_bytes(),
        }
    }

    /// The text of a string; what is no text becomes U+FFFD.
    fn string(self) -> &'a str {
        let text = || unescape(&self.document.bytes[self.inner()]).into();
        self.coded().map_or_else(|| self.slice(self.inner()), |coded| coded.text.get_or_init(text))
    }

    /// A string's text, or a number's or boolean's as it is written; none for null, `{}` and `[]`.
    pub(super) fn text(self) -> Option<&'a str> {
        match self.first_byte() {
            b'"' => Some(self.string()),
            b'{' | b'[' | b'n' => None,
            _ => Some(self.slice(self.range())),
        }
    }

    /// Its text, or, of what has none, its JSON as it is written; none for null.
    pub(super) fn written(self) -> Option<Text<'a>> {
        let json = || (!self.is_null()).then(|| String::from_utf8_lossy(self.bytes()));
        self.text().map(Cow::Borrowed).or_else(json)
    }

    /// Whether every strict parser reads this value alone.
    pub(super) fn is_strict(self) -> bool {
        self.document.is_strict
            || Document::parse(self.bytes()).is_ok_and(|document| document.is_strict)
    }
}

/// Typed fields. What is written without change is marked, so that the element's bytes may be left out
/// where nothing else is in them.
impl<'a> Value<'a> {
    /// The text of a member, if it has some that is not empty.
    pub(super) fn filled(self, name: &str) -> Option<Text<'a>> {
        self.get(name).text().filter(|text| !text.is_empty()).map(Cow::Borrowed)
    }

    /// Notes that this value, and all that is in it, is in a typed field without change.
    pub(super) fn mark_typed(self) {
        let range = self.at as usize..self.note().next as usize;
        self.document.notes[range].iter().for_each(|note| note.typed.set(true));
    }

    /// Whether every member of this object, at every depth, is in a typed field without change.
    pub(super) fn is_all_typed(self) -> bool {
        (self.at + 1..self.note().next).all(|at| {
            let note = &self.document.notes[at as usize];
            let has_members = note.next > at + 1;
            has_members || note.typed.get()
        })
    }

    /// Writes its text as a field. Only a string is there without change.
    pub(super) fn copy(self, field: &str, out: &mut Object<'_>) {
        if self.is_string() {
            self.mark_typed();
            if self.coded().is_none_or(|coded| coded.is_strict) {
                return out.json(field, self.bytes());
            }
        }
        out.maybe(field, self.text());
    }

    /// Writes the texts of members as fields of the same names.
    pub(super) fn copy_members(self, names: &[&str], out: &mut Object<'_>) {
        names.iter().for_each(|name| self.get(name).copy(name, out));
    }

    /// Writes the text of the first of these members that has some as a field, and returns it. Users may
    /// hide their number: then it comes empty.
    pub(super) fn copy_first(
        self,
        names: &[&str],
        field: &str,
        out: &mut Object<'_>,
    ) -> Option<&'a str> {
        let is_filled = |member: &Value<'a>| member.text().is_some_and(|text| !text.is_empty());
        let member = names.iter().map(|name| self.get(name)).find(is_filled)?;
        member.copy(field, out);
        member.text()
    }

    /// Writes it as it came, unless it is null or a strict parser would refuse it.
    pub(super) fn copy_json(self, field: &str, out: &mut Object<'_>) {
        if !self.is_null() && self.is_strict() {
            self.mark_typed();
            out.json(field, self.bytes());
        }
    }

    pub(super) fn copy_flag(self, field: &str, out: &mut Object<'_>) {
        if matches!(self.bytes(), b"true" | b"false") {
            self.copy_json(field, out);
        }
    }

    /// Writes a whole number as a field, and returns it.
    pub(super) fn copy_number(self, field: &str, out: &mut Object<'_>) -> Option<i64> {
        let number: i64 = self.text()?.trim().parse().ok()?;
        // A string, or -0, is not written as it came.
        if self.bytes() == itoa::Buffer::new().format(number).as_bytes() {
            self.mark_typed();
        }
        out.value(field, number);
        Some(number)
    }

    /// Writes a time since 1970 as RFC 3339.
    pub(super) fn copy_time(self, field: &str, out: &mut Object<'_>) {
        if let Some(time) = self.text().and_then(|text| Time::read(text)?.rfc3339()) {
            self.mark_time();
            out.value(field, time);
        }
    }

    /// A time in digits can be told from RFC 3339 again, unless zeros lead it or it is no string.
    pub(super) fn mark_time(self) {
        let is_plain = |text: &str| !(text.len() > 1 && text.starts_with('0'));
        if self.is_string() && self.text().is_some_and(is_plain) {
            self.mark_typed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(json: &[u8]) -> Document<'_> {
        Document::parse(json).unwrap()
    }

    fn text(json: &[u8]) -> String {
        document(json).root().text().unwrap().to_owned()
    }

    #[test]
    fn what_gos_parser_takes_is_taken() {
        assert_eq!(text(b" \"a\\u00e9\\n\\ud83d\\ude42\" "), "aé\n🙂");
        assert_eq!(text(b"\"a\xff\""), "a\u{fffd}");
        assert_eq!(text(b"\"\\ud83d!\""), "\u{fffd}!");
        assert_eq!(text(b"-1.5e+3"), "-1.5e+3");
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        for (json, at) in [
            ("", 0),
            ("{", 1),
            ("[1,]", 3),
            ("{\"a\" 1}", 5),
            ("01", 1),
            ("NaN", 0),
            ("\"\\x\"", 2),
            ("{}x", 2),
            ("\u{feff}{}", 0),
            ("\"a\nb\"", 2),
            ("[1 2]", 3),
            ("{\"a\":1,}", 7),
            ("1.", 2),
        ] {
            let why = (Reason::InvalidJson, format!("not JSON from byte {at} on"));
            assert_eq!(Document::parse(json.as_bytes()).err(), Some(why), "{json}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = [vec![b'['; 500_000], vec![b']'; 500_000]].concat();
        assert!(!document(&deep).is_strict);
        assert!(Document::parse(&vec![b'['; 1_000_000]).is_err());
        let wide = [b"[", &b"0,".repeat(VALUES_MAX)[..], b"0]"].concat();
        assert_eq!(Document::parse(&wide).unwrap_err().0, Reason::TooManyElements);
    }

    #[test]
    fn members_and_elements_come_in_order_and_the_last_scalar_of_one_name_wins() {
        let text = b"{ \"a\" : 1 , \"b\":[ 2,{} ,\"]\"] , \"a\":2,\"a\":{},\"a\":null,\"b\":null}";
        let document = document(text);
        let json = document.root();
        let keys: Vec<_> = json.members().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a", "b", "a", "a", "a", "b"]);
        assert_eq!(json.get("a").bytes(), b"2");
        assert!(json.get("c").is_null() && json.has("b") && !json.has("c"));
        let elements: Vec<_> = json.get("b").elements().map(Value::bytes).collect();
        assert_eq!(elements, [&b"2"[..], b"{}", b"\"]\""]);
    }

    #[test]
    fn a_text_that_is_not_its_bytes_is_decoded_once() {
        for json in [&br#""\u0031""#[..], b"\"\xff\""] {
            let document = document(json);
            let text = || document.root().text().unwrap();
            assert!(std::ptr::eq(text(), text()), "{json:?}");
        }
    }

    #[test]
    fn strict_is_what_every_parser_reads() {
        for (json, strict) in [
            (&b"\"\\ud83d\\ude42\""[..], true),
            (b"\"\\ud83d\"", false),
            (b"\"\\\\ud83d\"", true),
            (b"\"\xff\"", false),
            (b"\"\\ufffd\"", true),
            (b"1e308", true),
            (b"-1e309", false),
        ] {
            assert_eq!(document(json).is_strict, strict, "{json:?}");
        }
        for (depth, strict) in [(100, true), (101, false)] {
            let json = [vec![b'['; depth], vec![b']'; depth]].concat();
            assert_eq!(document(&json).is_strict, strict, "{depth}");
        }
    }
}
