//! Reads the bytes of a document once, and notes where each value begins and ends.

use super::{BLANKS, Document, Note, Unreadable, VALUES_MAX};

pub(super) struct Scanner<'a> {
    pub(super) document: Document<'a>,
    pub(super) at: usize,
    /// The notes of the containers that are open.
    pub(super) open: Vec<u32>,
}

impl<'a> Scanner<'a> {
    pub(super) fn scan(mut self) -> Result<Document<'a>, Unreadable> {
        loop {
            self.blanks();
            let note = self.begin(false)?;
            match self.peek() {
                Some(opening @ (b'{' | b'[')) => {
                    if self.enter(note, opening)? {
                        continue;
                    }
                }
                _ => {
                    self.document.notes[note as usize].escaped = self.scalar()?;
                    self.finish(note);
                }
            }
            if !self.close()? {
                break;
            }
        }
        self.blanks();
        if self.at < self.document.bytes.len() { self.fail() } else { Ok(self.document) }
    }

    fn peek(&self) -> Option<u8> {
        self.document.bytes.get(self.at).copied()
    }

    fn fail<T>(&self) -> Result<T, Unreadable> {
        Err(Unreadable::NotJson { at: self.at })
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(|byte| BLANKS.contains(&byte)) {
            self.at += 1;
        }
    }

    /// Notes that a value begins here.
    fn begin(&mut self, is_key: bool) -> Result<u32, Unreadable> {
        let number = self.document.notes.len();
        if number == VALUES_MAX {
            return Err(Unreadable::TooManyValues);
        }
        let start = self.at as u32;
        self.document.notes.push(Note { start, end: start, next: 0, escaped: false, is_key });
        Ok(number as u32)
    }

    /// Notes that a value ends here.
    fn finish(&mut self, note: u32) {
        let next = self.document.notes.len() as u32;
        let note = &mut self.document.notes[note as usize];
        (note.end, note.next) = (self.at as u32, next);
    }

    /// Goes into a container, up to its first value; false when nothing is in it (and it is left
    /// to be closed).
    fn enter(&mut self, note: u32, opening: u8) -> Result<bool, Unreadable> {
        self.at += 1;
        self.open.push(note);
        self.document.deepest = self.document.deepest.max(self.open.len());
        self.blanks();
        match (opening, self.peek()) {
            (b'{', Some(b'}')) | (b'[', Some(b']')) => Ok(false),
            (b'{', _) => self.key().map(|()| true),
            _ => Ok(true),
        }
    }

    /// A value without others in it. Returns whether it is a string with something escaped.
    fn scalar(&mut self) -> Result<bool, Unreadable> {
        match self.peek() {
            Some(b'"') => return self.string(),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word(b"true")?,
            Some(b'f') => self.word(b"false")?,
            Some(b'n') => self.word(b"null")?,
            _ => return self.fail(),
        }
        Ok(false)
    }

    /// After a value: closes what ends here; true if another value follows.
    fn close(&mut self) -> Result<bool, Unreadable> {
        while let Some(&container) = self.open.last() {
            self.blanks();
            let start = self.document.notes[container as usize].start as usize;
            let object = self.document.bytes[start] == b'{';
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    if object {
                        self.blanks();
                        self.key()?;
                    }
                    return Ok(true);
                }
                Some(b'}') if object => {}
                Some(b']') if !object => {}
                _ => return self.fail(),
            }
            self.at += 1;
            self.open.pop();
            self.finish(container);
        }
        Ok(false)
    }

    fn key(&mut self) -> Result<(), Unreadable> {
        let note = self.begin(true)?;
        self.document.notes[note as usize].escaped = self.string()?;
        self.finish(note);
        self.blanks();
        if self.peek() != Some(b':') {
            return self.fail();
        }
        self.at += 1;
        Ok(())
    }

    /// A string with its quotes; any byte that is no control character may be in it. Returns
    /// whether something in it is escaped.
    fn string(&mut self) -> Result<bool, Unreadable> {
        if self.peek() != Some(b'"') {
            return self.fail();
        }
        self.at += 1;
        let mut escaped = false;
        loop {
            let rest = &self.document.bytes[self.at..];
            let plain = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
            let plain = &rest[..plain];
            // Without an early end, the processor takes many bytes at once.
            if plain.iter().fold(false, |found, byte| found | (*byte < b' ')) {
                self.at += plain.iter().take_while(|byte| **byte >= b' ').count();
                return self.fail();
            }
            self.at += plain.len();
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(_) => self.escape()?,
                None => return self.fail(),
            }
            escaped = true;
        }
    }

    fn escape(&mut self) -> Result<(), Unreadable> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                let digits = self.document.bytes.get(self.at + 1..self.at + 5);
                if let Some([b'd' | b'D', b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..]) = digits {
                    self.document.surrogates = true;
                }
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return self.fail();
                }
                self.at += 5;
            }
            _ => return self.fail(),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Unreadable> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        let digits = self.at - start;
        if self.exponent()? || digits >= 300 {
            let number = &self.document.bytes[start..self.at];
            let number = std::str::from_utf8(number).unwrap_or_default().parse::<f64>();
            self.document.beyond_double |= !number.is_ok_and(f64::is_finite);
        }
        Ok(())
    }

    fn exponent(&mut self) -> Result<bool, Unreadable> {
        if !matches!(self.peek(), Some(b'e' | b'E')) {
            return Ok(false);
        }
        self.at += 1;
        if matches!(self.peek(), Some(b'+' | b'-')) {
            self.at += 1;
        }
        self.digits().map(|()| true)
    }

    fn digits(&mut self) -> Result<(), Unreadable> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { self.fail() } else { Ok(()) }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Unreadable> {
        if !self.document.bytes[self.at..].starts_with(word) {
            return self.fail();
        }
        self.at += word.len();
        Ok(())
    }
}

/// The text inside a string; what is no text becomes U+FFFD.
pub(super) fn unescape(inner: &[u8]) -> String {
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        text.push_str(&String::from_utf8_lossy(&rest[..at]));
        rest = &rest[at + 1..];
        let (letter, taken) = match rest[0] {
            b'b' => ('\u{8}', 1),
            b'f' => ('\u{c}', 1),
            b'n' => ('\n', 1),
            b'r' => ('\r', 1),
            b't' => ('\t', 1),
            b'u' => unicode(rest),
            other => (char::from(other), 1),
        };
        text.push(letter);
        rest = &rest[taken..];
    }
    text.push_str(&String::from_utf8_lossy(rest));
    text
}

/// The character of `uXXXX`, or of a pair of them; a lone surrogate is U+FFFD.
fn unicode(rest: &[u8]) -> (char, usize) {
    let first = unit(rest);
    if (0xd800..0xdc00).contains(&first)
        && rest.get(5) == Some(&b'\\')
        && rest.get(6) == Some(&b'u')
    {
        let second = unit(&rest[6..]);
        if (0xdc00..0xe000).contains(&second) {
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11);
        }
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 5)
}

/// The number in `uXXXX`.
fn unit(escape: &[u8]) -> u32 {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap_or(0);
    escape[1..5].iter().fold(0, |unit, byte| unit << 4 | digit(byte))
}

pub(super) fn has_lone_surrogate(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        rest = &rest[at + 1..];
        if rest[0] != b'u' {
            rest = &rest[1..];
            continue;
        }
        let (letter, taken) = unicode(rest);
        // An escaped U+FFFD itself is no surrogate.
        if letter == char::REPLACEMENT_CHARACTER && unit(rest) != 0xfffd {
            return true;
        }
        rest = &rest[taken..];
    }
    false
}
