//! Reads the bytes of a document once, and notes where each value begins and ends.

use std::cell::{Cell, OnceCell};

use super::{BLANKS, Coded, Document, Note, STRICT_DEPTH, VALUES_MAX};

pub(super) struct Scanner<'a> {
    pub(super) document: Document<'a>,
    pub(super) at: usize,
    /// The notes of the containers that are open.
    pub(super) open: Vec<u32>,
}

/// `None`: at `at` is no JSON, or there are more values than a document may have.
impl Scanner<'_> {
    pub(super) fn scan(&mut self) -> Option<()> {
        loop {
            self.blanks();
            let note = self.begin(false)?;
            let first = self.peek()?;
            let is_container = matches!(first, b'{' | b'[');
            match first {
                b'{' | b'[' => {
                    self.at += 1;
                    self.open.push(note);
                    self.document.is_strict &= self.open.len() <= STRICT_DEPTH;
                }
                b'"' => self.string()?,
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                _ => return None,
            }
            // Of a container once more where it ends.
            self.finish(note);
            if !self.advance(is_container)? {
                break;
            }
        }
        self.blanks();
        (self.at == self.document.bytes.len()).then_some(())?;
        // Stands for every missing member.
        self.begin(false);
        Some(())
    }

    fn peek(&self) -> Option<u8> {
        self.document.bytes.get(self.at).copied()
    }

    /// Whether this byte comes next, which is then passed.
    fn skip(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(|byte| BLANKS.contains(&byte)) {
            self.at += 1;
        }
    }

    /// Notes that a value, or the name of a member, begins here. Its end is not known yet.
    fn begin(&mut self, is_name: bool) -> Option<u32> {
        let (number, start) = (self.document.notes.len(), self.at as u32);
        let typed = Cell::new(is_name);
        self.document.notes.push(Note { start, end: start, next: 0, is_coded: false, typed });
        (number < VALUES_MAX).then_some(number as u32)
    }

    /// Notes that a value ends here.
    fn finish(&mut self, note: u32) {
        let next = self.document.notes.len() as u32;
        let note = &mut self.document.notes[note as usize];
        (note.end, note.next) = (self.at as u32, next);
    }

    /// Goes to the next value, and closes what ends before it; false if none follows. `is_first`: of
    /// the container that is open.
    fn advance(&mut self, mut is_first: bool) -> Option<bool> {
        while let Some(&container) = self.open.last() {
            self.blanks();
            let start = self.document.notes[container as usize].start as usize;
            let is_object = self.document.bytes[start] == b'{';
            if self.skip(if is_object { b'}' } else { b']' }) {
                self.open.pop();
                self.finish(container);
                is_first = false;
                continue;
            }
            (is_first || self.skip(b',')).then_some(())?;
            if is_object {
                self.blanks();
                self.key()?;
            }
            return Some(true);
        }
        Some(false)
    }

    fn key(&mut self) -> Option<()> {
        let note = self.begin(true)?;
        self.string()?;
        self.finish(note);
        self.blanks();
        self.skip(b':').then_some(())
    }

    /// A string with its quotes; any byte that is no control character may be in it. Its note is the
    /// last one.
    fn string(&mut self) -> Option<()> {
        self.skip(b'"').then_some(())?;
        let (start, mut is_escaped, mut is_lone) = (self.at, false, false);
        loop {
            let rest = &self.document.bytes[self.at..];
            let plain = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
            let plain = &rest[..plain];
            // Without an early end, the processor takes many bytes at once.
            if plain.iter().fold(false, |found, byte| found | (*byte < b' ')) {
                self.at += plain.iter().take_while(|byte| **byte >= b' ').count();
                return None;
            }
            self.at += plain.len();
            if self.peek()? == b'"' {
                break;
            }
            self.at += 1;
            let (letter, bytes) = unescape_one(&self.document.bytes[self.at..])?;
            self.at += bytes;
            (is_escaped, is_lone) = (true, is_lone | letter.is_none());
        }
        let document = &mut self.document;
        let is_utf8 =
            document.text.is_some() || std::str::from_utf8(&document.bytes[start..self.at]).is_ok();
        if is_escaped || !is_utf8 {
            let (note, is_strict) = (document.notes.len() - 1, is_utf8 && !is_lone);
            document.is_strict &= is_strict;
            document.notes[note].is_coded = true;
            let (note, text) = (note as u32, OnceCell::new());
            document.coded.push(Coded { note, is_strict, text });
        }
        self.at += 1;
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        let start = self.at;
        self.skip(b'-');
        if !self.skip(b'0') {
            self.digits()?;
        }
        if self.skip(b'.') {
            self.digits()?;
        }
        let has_exponent = self.skip(b'e') || self.skip(b'E');
        if has_exponent {
            if !self.skip(b'+') {
                self.skip(b'-');
            }
            self.digits()?;
        }
        if has_exponent || self.at - start >= 300 {
            let number = &self.document.bytes[start..self.at];
            let number = std::str::from_utf8(number).unwrap_or_default().parse::<f64>();
            self.document.is_strict &= number.is_ok_and(f64::is_finite);
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.document.bytes[self.at..].starts_with(word).then(|| self.at += word.len())
    }
}

/// The text inside a string that was read; what is no text becomes U+FFFD.
pub(super) fn unescape(inner: &[u8]) -> String {
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        text.push_str(&String::from_utf8_lossy(&rest[..at]));
        let escape = &rest[at + 1..];
        let (letter, bytes) = unescape_one(escape).unwrap_or_default();
        text.push(letter.unwrap_or(char::REPLACEMENT_CHARACTER));
        rest = &escape[bytes..];
    }
    text.push_str(&String::from_utf8_lossy(rest));
    text
}

/// What a backslash and these bytes stand for, and how many of them; without a character it is half
/// of a surrogate pair. None: nothing that may be escaped.
fn unescape_one(escape: &[u8]) -> Option<(Option<char>, usize)> {
    let letter = match *escape.first()? {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        byte @ (b'"' | b'\\' | b'/') => char::from(byte),
        _ => {
            let first = unit(escape)?;
            let second = escape[5..].strip_prefix(b"\\").and_then(unit);
            let letter = char::decode_utf16([first].into_iter().chain(second)).next()?.ok();
            let is_pair = letter.is_some_and(|letter| letter > '\u{ffff}');
            return Some((letter, if is_pair { 11 } else { 5 }));
        }
    };
    Some((Some(letter), 1))
}

/// The number in `uXXXX`.
fn unit(escape: &[u8]) -> Option<u16> {
    let mut unit = [0; 2];
    hex::decode_to_slice(escape.strip_prefix(b"u")?.get(..4)?, &mut unit).ok()?;
    Some(u16::from_be_bytes(unit))
}
