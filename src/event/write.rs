//! Writes an event's JSON into a buffer that is used again.
//!
//! Normalizing writes each typed field as it reads it: there is no second form in between. What it
//! writes is what [`form`](super::form) describes, which a test holds.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Channel, Contact, Event, RawForm, Time, time::rfc3339_millis};

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
        if !matches!(self.0.last(), None | Some(b'{')) {
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

    /// Members that are JSON already.
    fn members(&mut self, members: &[u8]) {
        if !members.is_empty() {
            self.separate();
            self.0.extend_from_slice(members);
        }
    }

    /// Bytes that are JSON already.
    pub fn json(&mut self, key: &str, json: &[u8]) {
        self.key(key);
        self.0.extend_from_slice(json);
    }

    /// A text.
    pub fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        write_text(self.0, text);
    }

    /// A text, if there is one.
    pub fn maybe(&mut self, key: &str, text: Option<impl AsRef<str>>) {
        if let Some(text) = text {
            self.text(key, text.as_ref());
        }
    }

    /// A whole number.
    pub fn number(&mut self, key: &str, number: i64) {
        self.json(key, itoa::Buffer::new().format(number).as_bytes());
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, flag: bool) {
        self.json(key, if flag { b"true" } else { b"false" });
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
            if !self.0.ends_with(b"[") {
                self.0.push(b',');
            }
            Self::write(self.0, |object| write(object, one));
        }
        self.0.push(b']');
        if self.0.ends_with(b":[]") {
            self.0.truncate(start);
        }
    }
}

/// Appends text as a JSON string.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    // INVARIANT: text can always be written to memory as JSON.
    serde_json::to_writer(out, text).expect("text into memory");
}

impl Event<'_> {
    /// Appends the event's JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        Object::write(out, |object| {
            self.write_envelope(object);
            object.members(&self.typed);
            match self.raw_form {
                RawForm::Omitted => {}
                RawForm::Json => object.json("raw", &self.raw),
                RawForm::Base64 => object.text("raw_base64", &STANDARD.encode(&self.raw)),
            }
        });
    }

    fn write_envelope(&self, object: &mut Object<'_>) {
        object.number("schema_version", 1);
        object.text("event_id", self.event_id());
        object.text("event_kind", self.kind.as_str());
        object.maybe("message_id", self.message_id.as_ref());
        object.text("source", self.callback.source);
        object.text("receipt", &self.receipt);
        object.text("received_at", &rfc3339_millis(self.callback.received_at_ms));
        match self.occurred_at().and_then(Time::rfc3339) {
            Some(time) => object.text("occurred_at", &time),
            None => {
                object.json("occurred_at", b"null");
                object.maybe("timestamp_raw", self.occurred.as_ref());
            }
        }
        object.maybe("format", self.context.format.map(super::Format::as_str));
        object.maybe("field", self.context.field.as_ref());
        object.text("element", &self.context.element);
        if !self.settings.labels.is_empty() {
            object.json("labels", self.settings.labels);
        }
        object.maybe("user_key", self.user_key.as_ref());
        object.object("channel", |channel| self.context.channel.write(channel));
        if let Some(contact) = &self.context.contact {
            object.object("contact", |object| contact.write(object));
        }
    }
}

impl Channel<'_> {
    pub(super) fn write(&self, object: &mut Object<'_>) {
        object.maybe("waba_id", self.waba_id.as_ref());
        object.maybe("phone_number_id", self.phone_number_id.as_ref());
        object.maybe("display_phone_number", self.display_phone_number.as_ref());
    }
}

impl Contact<'_> {
    pub(super) fn write(&self, object: &mut Object<'_>) {
        object.maybe("wa_id", self.wa_id.as_ref());
        object.maybe("user_id", self.user_id.as_ref());
        object.maybe("parent_user_id", self.parent_user_id.as_ref());
        object.maybe("username", self.username.as_ref());
        object.maybe("name", self.name.as_ref());
        object.maybe("identity_key_hash", self.identity_key_hash.as_ref());
    }
}
