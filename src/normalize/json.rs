//! JSON as the sender's parser takes it, over the bytes as they came.
//!
//! Weni's parser is Go's: invalid UTF-8 in strings, lone surrogates, duplicate keys and deep nesting
//! all pass it and reach us, and none of them may cost a status. A [`Value`] is a slice of bytes
//! that [`parse`] found to be JSON in that sense; text is repaired with U+FFFD only when it is asked
//! for. So whatever is hashed or passed on are the bytes that came.
//!
//! **Invariant:** nothing here recurses: depth costs a bit on the heap, not the stack.

use std::borrow::Cow;

/// One JSON value: its bytes, without blanks around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value<'a>(&'a [u8]);

/// Not JSON, from this byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotJson {
    pub(super) at: usize,
}

/// Reads a whole document. Returns it and its shape.
pub(super) fn parse(bytes: &[u8]) -> Result<(Value<'_>, Shape), NotJson> {
    let mut scanner = Scanner { bytes, at: 0 };
    let mut shape = Shape::default();
    let value = scanner.value(&mut shape)?;
    scanner.blanks();
    if scanner.at < bytes.len() {
        return scanner.fail();
    }
    Ok((value, shape))
}

/// Whether there is nothing but blanks.
pub(super) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| BLANKS.contains(byte))
}

/// Parsers stop at 128, and an event puts its element one level deeper.
const STRICT_DEPTH: usize = 100;

const BLANKS: &[u8] = b" \t\r\n";

impl<'a> Value<'a> {
    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn is_object(self) -> bool {
        self.0.first() == Some(&b'{')
    }

    pub(super) fn is_array(self) -> bool {
        self.0.first() == Some(&b'[')
    }

    pub(super) fn is_null(self) -> bool {
        self.0 == b"null"
    }

    /// Key and value of each member, in order; none if this is no object.
    pub(super) fn members(self) -> impl Iterator<Item = (Cow<'a, str>, Value<'a>)> {
        let mut inside = Inside::new(self, self.is_object());
        std::iter::from_fn(move || {
            let scanner = inside.next()?;
            scanner.blanks();
            let key = scanner.string().ok()?;
            scanner.blanks();
            scanner.at += 1;
            Some((unescape(key), inside.value()?))
        })
    }

    /// The elements, in order; none if this is no array.
    pub(super) fn elements(self) -> impl Iterator<Item = Value<'a>> {
        let mut inside = Inside::new(self, self.is_array());
        std::iter::from_fn(move || {
            inside.next()?;
            inside.value()
        })
    }

    /// The member of that name; of several the last.
    pub(super) fn get(self, name: &str) -> Option<Value<'a>> {
        self.members().filter(|(key, _)| key == name).last().map(|(_, value)| value)
    }

    /// A string's text, or a number's or boolean's as it is written; none for null, `{}` and `[]`.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        match self.0.first()? {
            b'"' => Some(unescape(self.0)),
            b'{' | b'[' | b'n' => None,
            _ => Some(String::from_utf8_lossy(self.0)),
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(self) -> Option<bool> {
        match self.0 {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }

    /// Whether every strict parser reads these bytes, which are of this shape.
    pub(super) fn is_strict(self, shape: &Shape) -> bool {
        shape.deepest <= STRICT_DEPTH
            && !shape.beyond_double
            && std::str::from_utf8(self.0).is_ok()
            && !has_lone_surrogate(self.0)
    }

    pub(super) fn shape(self) -> Shape {
        let mut scanner = Scanner { bytes: self.0, at: 0 };
        let mut shape = Shape::default();
        // It was scanned before; only its shape is of interest now.
        scanner.value(&mut shape).map_or_else(|_| Shape::default(), |_| shape)
    }
}

/// A walk over the members or elements of one container.
struct Inside<'a> {
    scanner: Scanner<'a>,
    open: bool,
}

impl<'a> Inside<'a> {
    fn new(container: Value<'a>, open: bool) -> Self {
        Self { scanner: Scanner { bytes: container.0, at: 1 }, open }
    }

    /// Moves to the next item, if there is one.
    fn next(&mut self) -> Option<&mut Scanner<'a>> {
        if !self.open {
            return None;
        }
        self.scanner.blanks();
        match self.scanner.peek()? {
            b'}' | b']' => {
                self.open = false;
                return None;
            }
            b',' => self.scanner.at += 1,
            _ => {}
        }
        Some(&mut self.scanner)
    }

    fn value(&mut self) -> Option<Value<'a>> {
        self.scanner.value(&mut Shape::default()).ok()
    }
}

/// What of a value matters to other parsers.
#[derive(Default)]
pub(super) struct Shape {
    /// The containers that are open, a bit each: whether it is an object.
    bits: Vec<u64>,
    open: usize,
    deepest: usize,
    /// Some number is too large for 64-bit floating point.
    beyond_double: bool,
}

impl Shape {
    fn push(&mut self, object: bool) {
        let (word, bit) = (self.open / 64, self.open % 64);
        if word == self.bits.len() {
            self.bits.push(0);
        }
        self.bits[word] = self.bits[word] & !(1 << bit) | u64::from(object) << bit;
        self.open += 1;
        self.deepest = self.deepest.max(self.open);
    }

    fn in_object(&self) -> bool {
        let last = self.open - 1;
        self.bits[last / 64] >> (last % 64) & 1 == 1
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn fail<T>(&self) -> Result<T, NotJson> {
        Err(NotJson { at: self.at })
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(|byte| BLANKS.contains(&byte)) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), NotJson> {
        if self.peek() != Some(byte) {
            return self.fail();
        }
        self.at += 1;
        Ok(())
    }

    /// One value of any depth.
    fn value(&mut self, shape: &mut Shape) -> Result<Value<'a>, NotJson> {
        self.blanks();
        let start = self.at;
        loop {
            // A value begins here.
            self.blanks();
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    shape.push(true);
                    self.blanks();
                    if self.peek() != Some(b'}') {
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    shape.push(false);
                    self.blanks();
                    if self.peek() != Some(b']') {
                        continue;
                    }
                }
                Some(b'"') => drop(self.string()?),
                Some(b'-' | b'0'..=b'9') => shape.beyond_double |= !self.number()?,
                Some(b't') => self.word(b"true")?,
                Some(b'f') => self.word(b"false")?,
                Some(b'n') => self.word(b"null")?,
                _ => return self.fail(),
            }
            if !self.close(shape)? {
                return Ok(Value(&self.bytes[start..self.at]));
            }
        }
    }

    /// Behind a value: closes what ends here; true if another value follows.
    fn close(&mut self, shape: &mut Shape) -> Result<bool, NotJson> {
        while shape.open > 0 {
            self.blanks();
            let object = shape.in_object();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    if object {
                        self.blanks();
                        self.key()?;
                    }
                    return Ok(true);
                }
                Some(b'}') if object => shape.open -= 1,
                Some(b']') if !object => shape.open -= 1,
                _ => return self.fail(),
            }
            self.at += 1;
        }
        Ok(false)
    }

    fn key(&mut self) -> Result<(), NotJson> {
        self.string()?;
        self.blanks();
        self.expect(b':')
    }

    /// A string with its quotes. Any byte that is no control character may be in it.
    fn string(&mut self) -> Result<&'a [u8], NotJson> {
        let start = self.at;
        self.expect(b'"')?;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(&self.bytes[start..self.at]);
                }
                Some(b'\\') => self.escape()?,
                Some(0x20..) => self.at += 1,
                _ => return self.fail(),
            }
        }
    }

    fn escape(&mut self) -> Result<(), NotJson> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                let digits = self.bytes.get(self.at + 1..self.at + 5);
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return self.fail();
                }
                self.at += 5;
            }
            _ => return self.fail(),
        }
        Ok(())
    }

    /// Whether it fits 64-bit floating point.
    fn number(&mut self) -> Result<bool, NotJson> {
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
        let exponent = self.exponent()?;
        if !exponent && digits < 300 {
            return Ok(true);
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        Ok(text.parse::<f64>().is_ok_and(f64::is_finite))
    }

    fn exponent(&mut self) -> Result<bool, NotJson> {
        if !matches!(self.peek(), Some(b'e' | b'E')) {
            return Ok(false);
        }
        self.at += 1;
        if matches!(self.peek(), Some(b'+' | b'-')) {
            self.at += 1;
        }
        self.digits().map(|()| true)
    }

    fn digits(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { self.fail() } else { Ok(()) }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), NotJson> {
        if !self.bytes[self.at..].starts_with(word) {
            return self.fail();
        }
        self.at += word.len();
        Ok(())
    }
}

/// The text of a scanned string (with its quotes); what is no text becomes U+FFFD.
fn unescape(string: &[u8]) -> Cow<'_, str> {
    let inner = &string[1..string.len() - 1];
    if !inner.contains(&b'\\') {
        return String::from_utf8_lossy(inner);
    }
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
    Cow::Owned(text)
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

fn has_lone_surrogate(bytes: &[u8]) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &[u8]) -> Value<'_> {
        parse(json).unwrap().0
    }

    fn text(json: &[u8]) -> String {
        value(json).text().unwrap().into_owned()
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
            assert_eq!(parse(json.as_bytes()).err(), Some(NotJson { at }), "{json}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = [vec![b'['; 500_000], vec![b']'; 500_000]].concat();
        assert_eq!(parse(&deep).unwrap().1.deepest, 500_000);
        assert_eq!(value(&deep).shape().deepest, 500_000);
        assert!(parse(&vec![b'['; 1_000_000]).is_err());
    }

    #[test]
    fn members_and_elements_come_in_order_and_the_last_of_one_name_wins() {
        let json = value(b"{ \"a\" : 1 , \"b\":[ 2,{} ,\"]\"] , \"a\":null}");
        let keys: Vec<_> = json.members().map(|(key, _)| key.into_owned()).collect();
        assert_eq!(keys, ["a", "b", "a"]);
        assert!(json.get("a").unwrap().is_null());
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
            assert_eq!(value(json).is_strict(&value(json).shape()), strict, "{json:?}");
        }
        for (depth, strict) in [(100, true), (101, false)] {
            let json = [vec![b'['; depth], vec![b']'; depth]].concat();
            assert_eq!(value(&json).is_strict(&value(&json).shape()), strict, "{depth}");
        }
    }
}
