//! Writes an event's JSON by hand into a buffer that is used again: half the time of a derived
//! serializer, and what is absent is left out.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    Channel, Contact, Conversation, Detail, ErrorDetail, Event, EventKind, From, Media, Message,
    Pricing, Recipient, Status, rfc3339_millis, rfc3339_seconds, status_rank,
};

const SCHEMA_VERSION: u32 = 1;

/// An object that is being written.
pub struct Object<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

/// The bytes of one object.
pub(super) fn object(write: impl FnOnce(&mut Object<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    Object::write(&mut out, write);
    out
}

impl Object<'_> {
    fn write(out: &mut Vec<u8>, write: impl FnOnce(&mut Object<'_>)) {
        out.push(b'{');
        let mut object = Object { out, empty: true };
        write(&mut object);
        object.out.push(b'}');
    }

    fn key(&mut self, key: &str) {
        if !std::mem::take(&mut self.empty) {
            self.out.push(b',');
        }
        // Keys are literals without anything to escape.
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Bytes that are JSON already.
    fn raw(&mut self, key: &str, json: &[u8]) {
        self.key(key);
        self.out.extend_from_slice(json);
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        // INVARIANT: text can always be written to memory as JSON.
        serde_json::to_writer(&mut *self.out, text).expect("text into memory");
    }

    fn hex(&mut self, key: &str, bytes: &[u8]) {
        self.raw(key, b"\"");
        let start = self.out.len();
        self.out.resize(start + 2 * bytes.len(), 0);
        // INVARIANT: there is room for exactly two digits a byte.
        hex::encode_to_slice(bytes, &mut self.out[start..]).expect("two digits a byte");
        self.out.push(b'"');
    }

    fn maybe(&mut self, key: &str, text: &Option<impl AsRef<str>>) {
        if let Some(text) = text {
            self.text(key, text.as_ref());
        }
    }

    fn number(&mut self, key: &str, number: impl Into<i64>) {
        let mut digits = itoa::Buffer::new();
        let number: i64 = number.into();
        self.raw(key, digits.format(number).as_bytes());
    }

    fn flag(&mut self, key: &str, flag: bool) {
        self.raw(key, if flag { b"true" } else { b"false" });
    }

    fn nested(&mut self, key: &str, write: impl FnOnce(&mut Object<'_>)) {
        self.key(key);
        Self::write(self.out, write);
    }

    /// An object, unless nothing would be in it.
    fn filled(&mut self, key: &str, write: impl FnOnce(&mut Object<'_>)) {
        let (start, empty) = (self.out.len(), self.empty);
        self.nested(key, write);
        if self.out.ends_with(b":{}") {
            self.out.truncate(start);
            self.empty = empty;
        }
    }
}

impl Event<'_> {
    /// Appends the event's JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        Object::write(out, |object| {
            self.write_envelope(object);
            match &self.detail {
                Detail::Status(status) => {
                    write_status(status, self.kind == EventKind::MessageStatus, object);
                }
                Detail::Message(message) => write_message(message, object),
                Detail::Other => {}
            }
            write_errors(&self.errors, object);
            if let Detail::Status(status) = &self.detail {
                object.maybe("callback_data", &status.callback_data);
            }
            match (self.callback.raw, self.raw_is_strict) {
                (false, _) => {}
                (true, true) => object.raw("raw", &self.raw),
                (true, false) => object.text("raw_base64", &STANDARD.encode(&self.raw)),
            }
        });
    }

    fn write_envelope(&self, object: &mut Object<'_>) {
        object.number("schema_version", SCHEMA_VERSION);
        object.hex("event_id", &self.event_id());
        object.text("event_kind", self.kind.as_str());
        object.maybe("message_id", &self.message_id);
        object.text("source", self.callback.source);
        object.text("receipt", &self.receipt);
        object.text("received_at", &rfc3339_millis(self.callback.received_at_ms));
        match self.occurred_at_seconds().and_then(rfc3339_seconds) {
            Some(time) => object.text("occurred_at", &time),
            None => {
                object.raw("occurred_at", b"null");
                let text = self.occurred.text.as_deref().filter(|text| !text.is_empty());
                object.maybe("timestamp_raw", &text);
            }
        }
        object.maybe("format", &self.place.format.map(super::Format::as_str));
        object.maybe("field", &self.place.field);
        object.text("element", &self.place.element);
        object.filled("channel", |channel| self.place.channel.write(channel));
        if let Some(contact) = &self.place.contact {
            object.filled("contact", |object| contact.write(object));
        }
    }
}

impl Channel<'_> {
    pub(super) fn write(&self, object: &mut Object<'_>) {
        object.maybe("waba_id", &self.waba_id);
        object.maybe("phone_number_id", &self.phone_number_id);
        object.maybe("display_phone_number", &self.display_phone_number);
    }
}

impl Contact<'_> {
    pub(super) fn write(&self, object: &mut Object<'_>) {
        object.maybe("wa_id", &self.wa_id);
        object.maybe("user_id", &self.user_id);
        object.maybe("parent_user_id", &self.parent_user_id);
        object.maybe("username", &self.username);
        object.maybe("name", &self.name);
    }
}

fn write_status(status: &Status<'_>, of_message: bool, object: &mut Object<'_>) {
    let normal = status.normal();
    object.maybe("status", &normal);
    if normal.as_deref() != status.raw.as_deref() {
        object.maybe("status_raw", &status.raw);
    }
    if of_message {
        let rank = status_rank(normal.as_deref().unwrap_or_default());
        object.flag("status_known", rank.is_some());
        match rank.flatten() {
            Some(rank) => object.number("status_rank", rank),
            None => object.raw("status_rank", b"null"),
        }
    }
    let Recipient { id, kind, user_id, parent_user_id, .. } = &status.recipient;
    object.nested("recipient", |object| {
        object.maybe("id", id);
        object.text("type", kind);
        object.maybe("user_id", user_id);
        object.maybe("parent_user_id", parent_user_id);
        object.maybe("participant_id", &status.recipient.participant_id);
        object.maybe("participant_user_id", &status.recipient.participant_user_id);
        object.maybe("participant_parent_user_id", &status.recipient.participant_parent_user_id);
    });
    if let Some(Conversation { id, origin, expires }) = &status.conversation {
        object.filled("conversation", |object| {
            object.maybe("id", id);
            object.maybe("origin", origin);
            object.maybe("expires_at", &expires.seconds().and_then(rfc3339_seconds));
        });
    }
    if let Some(Pricing { billable, model, kind, category }) = &status.pricing {
        object.filled("pricing", |object| {
            if let Some(billable) = billable {
                object.flag("billable", *billable);
            }
            object.maybe("model", model);
            object.maybe("type", kind);
            object.maybe("category", category);
        });
    }
}

fn write_message(message: &Message<'_>, object: &mut Object<'_>) {
    object.maybe("type", &message.kind);
    let From { id, user_id, parent_user_id } = &message.from;
    object.filled("from", |object| {
        object.maybe("id", id);
        object.maybe("user_id", user_id);
        object.maybe("parent_user_id", parent_user_id);
    });
    object.maybe("to", &message.to);
    object.maybe("group_id", &message.group_id);
    object.maybe("text", &message.text);
    object.maybe("interactive_type", &message.interactive_type);
    object.maybe("reply_id", &message.reply_id);
    object.maybe("related_message_id", &message.related_message_id);
    object.filled("context", |object| {
        object.maybe("id", &message.context_id);
        object.maybe("from", &message.context_from);
    });
    if let Some(referral) = message.referral {
        object.raw("referral", referral);
    }
    if let Some(Media { id, mime_type, sha256, filename, caption }) = &message.media {
        object.filled("media", |object| {
            object.maybe("id", id);
            object.maybe("mime_type", mime_type);
            object.maybe("sha256", sha256);
            object.maybe("filename", filename);
            object.maybe("caption", caption);
        });
    }
}

fn write_errors(errors: &[ErrorDetail<'_>], object: &mut Object<'_>) {
    if errors.is_empty() {
        return;
    }
    object.key("errors");
    object.out.push(b'[');
    for (at, error) in errors.iter().enumerate() {
        if at > 0 {
            object.out.push(b',');
        }
        Object::write(object.out, |object| {
            if let Some(code) = error.code {
                object.number("code", code);
            }
            object.maybe("title", &error.title);
            object.maybe("message", &error.message);
            object.maybe("details", &error.details);
            object.maybe("href", &error.href);
            object.text("retry", error.retry.as_str());
        });
    }
    object.out.push(b']');
}
