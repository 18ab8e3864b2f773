//! JSON as the sender's parser takes it, over the bytes as they came.
//!
//! Weni's parser is Go's: invalid UTF-8 in strings, lone surrogates, duplicate keys and deep nesting
//! all pass it and reach us, and none of them may cost a status. [`Document::parse`] reads the bytes
//! once and notes where each value begins and ends; a [`Value`] is one of those notes. Text is
//! repaired with U+FFFD only when it is asked for, so whatever is hashed or passed on are the bytes
//! that came.
//!
//! **Invariant:** nothing here recurses: depth costs a number on the heap, not the stack.

mod fields;
mod scan;

use std::{borrow::Cow, cell::Cell, ops::Range};

use self::scan::{Scanner, unescape};

/// More values than any body that is accepted can sensibly hold; bounds memory to 32 MB.
const VALUES_MAX: usize = 2_000_000;
/// Parsers stop at 128, and an event puts its element one level deeper.
const STRICT_DEPTH: usize = 100;
const BLANKS: &[u8] = b" \t\r\n";

/// Bytes that are JSON, and where its values are.
#[derive(Debug)]
pub(super) struct Document<'a> {
    bytes: &'a [u8],
    /// The same, if all of it is UTF-8, as it nearly always is.
    text: Option<&'a str>,
    /// In the order in which they begin; keys are among them, each before its value.
    notes: Vec<Note>,
    deepest: usize,
    /// Some number is too large for 64-bit floating point.
    beyond_double: bool,
    /// Half of a surrogate pair is escaped somewhere without its other half.
    lone_surrogate: bool,
}

/// Where a value, or the name of a member, is.
#[derive(Debug)]
struct Note {
    start: u32,
    end: u32,
    /// The note after this value and all that is in it.
    next: u32,
    /// A string with a backslash.
    escaped: bool,
    /// A string with half of a surrogate pair.
    lone_surrogate: bool,
    /// A name, or a value that is in a typed field without change.
    typed: Cell<bool>,
}

/// One JSON value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    at: u32,
}

/// Why bytes are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// From this byte on.
    NotJson(usize),
    TooManyValues,
}

/// Whether there is nothing but blanks.
pub(super) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| BLANKS.contains(byte))
}

impl<'a> Document<'a> {
    /// Reads a whole document.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let document = Self {
            bytes,
            text: std::str::from_utf8(bytes).ok(),
            notes: Vec::with_capacity(bytes.len() / 8),
            deepest: 0,
            beyond_double: false,
            lone_surrogate: false,
        };
        Scanner { document, at: 0, open: Vec::with_capacity(16) }.scan()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn root(&'a self) -> Value<'a> {
        Value { document: self, at: 0 }
    }

    /// Whether every strict parser reads it: valid UTF-8, no lone surrogate, not too deep, and no
    /// number beyond all bounds.
    pub(super) fn is_strict(&self) -> bool {
        self.deepest <= STRICT_DEPTH
            && !self.beyond_double
            && self.text.is_some()
            && !self.lone_surrogate
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

    /// The text in that range; what is no text becomes U+FFFD.
    fn slice(self, range: Range<usize>) -> Cow<'a, str> {
        match self.document.text {
            Some(text) => Cow::Borrowed(&text[range]),
            None => String::from_utf8_lossy(&self.document.bytes[range]),
        }
    }

    fn first_byte(self) -> u8 {
        self.document.bytes[self.note().start as usize]
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
    pub(super) fn members(self) -> impl Iterator<Item = (Cow<'a, str>, Value<'a>)> {
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

    /// The member of that name; of several the last text, number or flag, else the last but null.
    pub(super) fn get(self, name: &str) -> Option<Value<'a>> {
        self.all(name).max_by_key(|value| value.weight())
    }

    /// Which of several values of one name is read: a heavier one, and of one weight the last.
    fn weight(self) -> u8 {
        match self.first_byte() {
            b'n' => 0,
            b'{' | b'[' => 1,
            _ => 2,
        }
    }

    /// Whether this string's text is that; cheaper than to ask for the text.
    fn spells(self, text: &str) -> bool {
        match self.note().escaped {
            true => self.string() == text,
            false => self.document.bytes[self.inner()] == *text.as_bytes(),
        }
    }

    /// A string's text, or a number's or boolean's as it is written; none for null, `{}` and `[]`.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        match self.first_byte() {
            b'"' => Some(self.string()),
            b'{' | b'[' | b'n' => None,
            _ => Some(self.slice(self.range())),
        }
    }

    /// Its text, or, of what has none, its JSON as it is written; none for null.
    pub(super) fn written(self) -> Option<Cow<'a, str>> {
        let json = || (!self.is_null()).then(|| self.slice(self.range()));
        self.text().or_else(json)
    }

    /// The text of a string; what is no text becomes U+FFFD.
    fn string(self) -> Cow<'a, str> {
        match self.note().escaped {
            true => Cow::Owned(unescape(&self.document.bytes[self.inner()])),
            false => self.slice(self.inner()),
        }
    }

    /// Whether every strict parser reads this string, whatever stands beside it.
    fn is_strict_string(self) -> bool {
        let is_text = || std::str::from_utf8(self.bytes()).is_ok();
        !self.note().lone_surrogate && (self.document.text.is_some() || is_text())
    }

    /// Whether every strict parser reads this value alone.
    pub(super) fn is_strict(self) -> bool {
        self.document.is_strict()
            || Document::parse(self.bytes()).is_ok_and(|document| document.is_strict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(json: &[u8]) -> Document<'_> {
        Document::parse(json).unwrap()
    }

    fn text(json: &[u8]) -> String {
        document(json).root().text().unwrap().into_owned()
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
            assert_eq!(
                Document::parse(json.as_bytes()).err(),
                Some(Unreadable::NotJson(at)),
                "{json}"
            );
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = [vec![b'['; 500_000], vec![b']'; 500_000]].concat();
        assert_eq!(document(&deep).deepest, 500_000);
        assert!(Document::parse(&vec![b'['; 1_000_000]).is_err());
        let wide = [b"[", &b"0,".repeat(VALUES_MAX)[..], b"0]"].concat();
        assert_eq!(Document::parse(&wide).err(), Some(Unreadable::TooManyValues));
    }

    #[test]
    fn members_and_elements_come_in_order_and_the_last_scalar_of_one_name_wins() {
        let text = b"{ \"a\" : 1 , \"b\":[ 2,{} ,\"]\"] , \"a\":2,\"a\":{},\"a\":null,\"b\":null}";
        let document = document(text);
        let json = document.root();
        let keys: Vec<_> = json.members().map(|(key, _)| key.into_owned()).collect();
        assert_eq!(keys, ["a", "b", "a", "a", "a", "b"]);
        assert_eq!(json.get("a").unwrap().bytes(), b"2");
        let elements: Vec<_> = json.get("b").unwrap().elements().map(Value::bytes).collect();
        assert_eq!(elements, [&b"2"[..], b"{}", b"\"]\""]);
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
            assert_eq!(document(json).is_strict(), strict, "{json:?}");
        }
        for (depth, strict) in [(100, true), (101, false)] {
            let json = [vec![b'['; depth], vec![b']'; depth]].concat();
            assert_eq!(document(&json).is_strict(), strict, "{depth}");
        }
    }
}
