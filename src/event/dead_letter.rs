//! What could not be read or not be published.

use std::borrow::Cow;

use super::{Place, Topic, json, rfc3339_millis};
use crate::callback::Callback;

/// Why something is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    InvalidJson,
    Unrecognized,
    NotAnObject,
    MissingId,
    MissingStatus,
    BadEncoding,
    TooManyElements,
    Amplification,
    TooLarge,
    Refused,
    Unroutable,
    Panic,
    TooSlow,
}

impl Reason {
    pub const ALL: [Self; 13] = [
        Self::InvalidJson,
        Self::Unrecognized,
        Self::NotAnObject,
        Self::MissingId,
        Self::MissingStatus,
        Self::BadEncoding,
        Self::TooManyElements,
        Self::Amplification,
        Self::TooLarge,
        Self::Refused,
        Self::Unroutable,
        Self::Panic,
        Self::TooSlow,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::Unrecognized => "unrecognized",
            Self::NotAnObject => "not_an_object",
            Self::MissingId => "missing_id",
            Self::MissingStatus => "missing_status",
            Self::BadEncoding => "bad_encoding",
            Self::TooManyElements => "too_many_elements",
            Self::Amplification => "amplification",
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::Unroutable => "unroutable",
            Self::Panic => "panic",
            Self::TooSlow => "too_slow",
        }
    }
}

/// Who made it one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Normalize,
    Publish,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normalize => "normalize",
            Self::Publish => "publish",
        }
    }
}

/// What could not be read or not be published: the original bytes, untouched.
#[derive(Debug, Clone)]
pub struct DeadLetter<'a> {
    callback: &'a Callback<'a>,
    receipt: String,
    reason: Reason,
    stage: Stage,
    detail: String,
    value: Cow<'a, [u8]>,
    /// For an element: where it stands, and the topic that its event would have gone to.
    place: Option<(Place<'a>, Topic)>,
}

impl<'a> DeadLetter<'a> {
    /// The whole body.
    pub fn of_callback(
        callback: &'a Callback<'a>,
        reason: Reason,
        stage: Stage,
        detail: impl Into<String>,
    ) -> Self {
        let value = Cow::Borrowed(callback.body);
        let (receipt, detail) = (callback.receipt.to_string(), detail.into());
        Self { callback, receipt, reason, stage, detail, value, place: None }
    }

    /// One element of it: where it stands, and the topic that its event would have gone to.
    pub fn of_element(
        callback: &'a Callback<'a>,
        reason: Reason,
        stage: Stage,
        detail: impl Into<String>,
        value: Cow<'a, [u8]>,
        place: (Place<'a>, Topic),
    ) -> Self {
        let of_callback = Self::of_callback(callback, reason, stage, detail);
        Self { value, place: Some(place), ..of_callback }
    }

    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The receipt.
    pub fn key(&self) -> &str {
        &self.receipt
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// JSON pointer to the element, if it is not the whole body.
    pub fn element(&self) -> Option<&str> {
        self.place.as_ref().map(|(place, _)| place.element.as_str())
    }

    /// The headers of its record, in order.
    pub fn headers(&self, each: &mut dyn FnMut(&str, &[u8])) {
        let callback = self.callback;
        each("reason", self.reason.as_str().as_bytes());
        each("stage", self.stage.as_str().as_bytes());
        each("detail", self.detail.as_bytes());
        each("source", callback.source.as_bytes());
        each("receipt", self.receipt.as_bytes());
        each("received_at", rfc3339_millis(callback.received_at_ms).as_bytes());
        each("method", callback.method.as_bytes());
        for (name, value) in [
            ("content-type", callback.content_type),
            ("content-encoding", callback.content_encoding),
            ("traceparent", callback.traceparent),
        ] {
            if let Some(value) = value {
                each(name, value.as_bytes());
            }
        }
        let Some((place, topic)) = &self.place else { return };
        each("element", place.element.as_bytes());
        each("topic", topic.contract().as_bytes());
        if let Some(format) = place.format {
            each("format", format.as_str().as_bytes());
        }
        if let Some(field) = &place.field {
            each("field", field.as_bytes());
        }
        each("channel", &json::object(|object| place.channel.write(object)));
        if let Some(contact) = &place.contact {
            each("contact", &json::object(|object| contact.write(object)));
        }
        if let Some(time) = &place.entry_time.text {
            each("entry_time", time.as_bytes());
        }
    }
}
