//! Writes an event's JSON into a buffer that is used again, and times.
//!
//! Normalizing writes each typed field as it reads it: there is no second form in between. What it
//! writes is what [`form`](super::form) describes, which a test holds.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde::Serialize;

use super::{Event, Format, RawForm};

/// A JSON object that is being written, at the end of these bytes.
pub struct Object<'o>(&'o mut Vec<u8>);

/// The inside of an object: its members without the braces.
pub fn fragment(write: impl FnOnce(&mut Object<'_>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    write(&mut Object(&mut out));
    out
}

impl Object<'_> {
    fn write(out: &mut Vec<u8>, write: impl FnOnce(&mut Object<'_>)) {
        out.push(b'{');
        write(&mut Object(out));
        out.push(b'}');
    }

    fn separate(&mut self) {
        if !matches!(self.0.last(), None | Some(b'{' | b'[')) {
            self.0.push(b',');
        }
    }

    /// `key` is a literal without anything to escape.
    fn key(&mut self, key: &str) {
        self.separate();
        self.0.push(b'"');
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// Bytes that are JSON already.
    pub fn json(&mut self, key: &str, json: &[u8]) {
        self.key(key);
        self.0.extend_from_slice(json);
    }

    /// A text, number or flag; null for `None`.
    pub fn value(&mut self, key: &str, value: impl Serialize) {
        self.key(key);
        append_json(self.0, &value);
    }

    /// A value, unless it is `None` or an object without members.
    pub fn maybe(&mut self, key: &str, value: Option<impl Serialize>) {
        let start = self.0.len();
        if let Some(value) = value {
            self.value(key, value);
        }
        if self.0.ends_with(b":{}") {
            self.0.truncate(start);
        }
    }

    /// An object, unless nothing would be in it.
    pub fn object(&mut self, key: &str, write: impl FnOnce(&mut Object<'_>)) {
        let start = self.0.len();
        self.key(key);
        Self::write(self.0, write);
        if self.0.ends_with(b":{}") {
            self.0.truncate(start);
        }
    }

    /// An array of objects, unless there is none.
    pub fn objects<T>(
        &mut self,
        key: &str,
        each: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Object<'_>, T),
    ) {
        let start = self.0.len();
        self.json(key, b"[");
        for one in each {
            self.separate();
            Self::write(self.0, |object| write(object, one));
        }
        self.0.push(b']');
        if self.0.ends_with(b":[]") {
            self.0.truncate(start);
        }
    }
}

/// Appends a value as JSON.
pub fn append_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    // INVARIANT: texts, numbers, flags and structures of them can always be written to memory.
    serde_json::to_writer(out, value).expect("JSON into memory");
}

impl Event<'_> {
    /// Appends the event's JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        Object::write(out, |object| {
            object.value("schema_version", 1);
            object.value("event_id", self.event_id());
            object.value("event_kind", self.kind.as_str());
            object.maybe("message_id", self.message_id.as_ref());
            object.value("source", self.callback.source);
            object.value("receipt", &self.receipt);
            object.value("received_at", rfc3339_millis(self.callback.received_at_ms));
            let occurred_at = self.occurred_at().and_then(Time::rfc3339);
            object.value("occurred_at", &occurred_at);
            object.maybe("timestamp_raw", self.occurred.as_ref().filter(|_| occurred_at.is_none()));
            object.maybe("format", self.context.format.map(Format::as_str));
            object.maybe("field", self.context.field.as_ref());
            object.value("element", &self.context.element);
            if !self.settings.labels.is_empty() {
                object.json("labels", self.settings.labels);
            }
            object.maybe("user_key", self.user_key.as_ref());
            object.maybe("channel", Some(&self.context.channel));
            object.maybe("contact", self.context.contact.as_ref());
            object.maybe("thread", self.context.thread.as_ref());
            if !self.typed.is_empty() {
                object.separate();
                object.0.extend_from_slice(&self.typed);
            }
            match self.raw_form {
                RawForm::Omitted => {}
                RawForm::Json => object.json("raw", &self.raw),
                RawForm::Base64 => object.value("raw_base64", STANDARD.encode(&self.raw)),
            }
        });
    }
}

/// Seconds or milliseconds since 1970 as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Seconds.
    Seconds(i64),
    /// Milliseconds.
    Millis(i64),
}

impl Time {
    /// Up to 11 digits are seconds, 12 and 13 are milliseconds.
    pub fn read(text: &str) -> Option<Self> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.len() {
            1..=11 if is_number => text.parse().ok().map(Self::Seconds),
            12 | 13 if is_number => text.parse().ok().map(Self::Millis),
            _ => None,
        }
    }

    /// Seconds since 1970.
    pub fn as_seconds(self) -> f64 {
        match self {
            Self::Seconds(seconds) => seconds as f64,
            Self::Millis(millis) => millis as f64 / 1000.0,
        }
    }

    /// RFC 3339; none after the year 9999.
    pub fn rfc3339(self) -> Option<String> {
        const SECONDS: DateTimePrinter = DateTimePrinter::new();
        const MILLIS: DateTimePrinter = SECONDS.precision(Some(3));
        let (printer, time) = match self {
            Self::Seconds(seconds) => (SECONDS, Timestamp::from_second(seconds)),
            Self::Millis(millis) => (MILLIS, Timestamp::from_millisecond(millis)),
        };
        Some(printer.timestamp_to_string(&time.ok()?))
    }
}

/// `2026-11-22T20:13:05.482Z`, from milliseconds since 1970.
pub(super) fn rfc3339_millis(millis: u64) -> String {
    let time = i64::try_from(millis).ok().and_then(|millis| Time::Millis(millis).rfc3339());
    time.unwrap_or_else(|| "9999-12-31T23:59:59.999Z".to_owned())
}
