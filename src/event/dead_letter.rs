//! What could not be read or not be published.

use std::borrow::Cow;

use super::{ElementContext, Object, Topic, fragment, named, rfc3339_millis};
use crate::callback::Callback;

named! {
    /// Why something is a dead letter.
    Reason {
        InvalidJson = "invalid_json",
        Unrecognized = "unrecognized",
        NotAnObject = "not_an_object",
        MissingId = "missing_id",
        MissingStatus = "missing_status",
        BadEncoding = "bad_encoding",
        TooManyElements = "too_many_elements",
        Amplification = "amplification",
        TooLarge = "too_large",
        Refused = "refused",
        Unroutable = "unroutable",
        Panic = "panic",
        TooSlow = "too_slow",
    }
}

named! {
    /// Who made it one.
    Stage {
        Normalize = "normalize",
        Publish = "publish",
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
    context: Option<(ElementContext<'a>, Topic)>,
}

impl<'a> DeadLetter<'a> {
    /// `context`: for one element, where it stands, and the topic that its event would have gone to.
    pub fn new(
        callback: &'a Callback<'a>,
        reason: Reason,
        stage: Stage,
        detail: impl Into<String>,
        value: Cow<'a, [u8]>,
        context: Option<(ElementContext<'a>, Topic)>,
    ) -> Self {
        let (receipt, detail) = (callback.receipt.to_string(), detail.into());
        Self { callback, receipt, reason, stage, detail, value, context }
    }

    /// The whole body.
    pub fn of_callback(
        callback: &'a Callback<'a>,
        reason: Reason,
        stage: Stage,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(callback, reason, stage, detail, Cow::Borrowed(callback.body), None)
    }

    /// The original bytes.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The receipt.
    pub fn key(&self) -> &str {
        &self.receipt
    }

    /// Why it is one.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Who made it one.
    pub fn stage(&self) -> Stage {
        self.stage
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
        let mut maybe = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                each(name, value.as_bytes());
            }
        };
        maybe("content-type", callback.content_type);
        maybe("content-encoding", callback.content_encoding);
        maybe("traceparent", callback.traceparent);
        let Some((context, topic)) = &self.context else { return };
        maybe("element", Some(&context.element));
        maybe("topic", Some(topic.as_str()));
        maybe("format", context.format.map(super::Format::as_str));
        maybe("field", context.field.as_deref());
        maybe("entry_time", context.entry_time.as_deref());
        maybe("thread", context.thread.as_deref());
        each("channel", &object(|object| context.channel.write(object)));
        if let Some(contact) = &context.contact {
            each("contact", &object(|object| contact.write(object)));
        }
    }
}

/// The bytes of one object.
fn object(write: impl FnOnce(&mut Object<'_>)) -> Vec<u8> {
    [&b"{"[..], &fragment(write), b"}"].concat()
}
