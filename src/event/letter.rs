//! Dead letters: as they are written, and as they are read back from the record or file that keeps them.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{ElementContext, Format, Topic, named, rfc3339_millis};
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

impl Reason {
    /// Who makes a dead letter for this reason.
    pub fn stage(self) -> Stage {
        match self {
            Self::InvalidJson
            | Self::Unrecognized
            | Self::NotAnObject
            | Self::MissingId
            | Self::MissingStatus
            | Self::BadEncoding
            | Self::TooManyElements
            | Self::Amplification => Stage::Normalize,
            Self::TooLarge | Self::Refused | Self::Unroutable | Self::Panic | Self::TooSlow => {
                Stage::Publish
            }
        }
    }
}

/// What could not be read or not be published: the original bytes, untouched.
#[derive(Debug, Clone)]
pub struct DeadLetter<'a> {
    callback: &'a Callback<'a>,
    receipt: String,
    /// Why it is one.
    pub reason: Reason,
    detail: String,
    /// The original bytes.
    pub value: Cow<'a, [u8]>,
    context: Option<(ElementContext<'a>, Topic)>,
}

impl<'a> DeadLetter<'a> {
    /// `context`: for one element, where it stands, and the topic that its event would have gone to.
    pub fn new(
        callback: &'a Callback<'a>,
        reason: Reason,
        detail: impl Into<String>,
        value: Cow<'a, [u8]>,
        context: Option<(ElementContext<'a>, Topic)>,
    ) -> Self {
        let (receipt, detail) = (callback.receipt.to_string(), detail.into());
        Self { callback, receipt, reason, detail, value, context }
    }

    /// The receipt.
    pub fn key(&self) -> &str {
        &self.receipt
    }

    /// The headers of its record, in order.
    pub fn headers(&self, each: &mut dyn FnMut(&str, &[u8])) {
        let callback = self.callback;
        each("reason", self.reason.as_str().as_bytes());
        each("stage", self.reason.stage().as_str().as_bytes());
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
        maybe("format", context.format.map(Format::as_str));
        maybe("field", context.field.as_deref());
        maybe("entry_time", context.entry_time.as_deref());
        maybe("thread", context.thread.as_deref());
        maybe("channel", serde_json::to_string(&context.channel).ok().as_deref());
        let contact = context.contact.as_ref().map(serde_json::to_string);
        maybe("contact", contact.and_then(Result::ok).as_deref());
    }
}

/// Names and values, as the record has them.
type Headers = [(String, Vec<u8>)];

/// A dead letter as it was kept: what [`DeadLetter::headers`] wrote.
#[derive(Debug, Clone)]
pub struct KeptLetter<'a> {
    /// What came; its body is the letter's value: of the whole callback, or of the one element.
    pub callback: Callback<'a>,
    /// Whether it was an event that could not be published.
    pub was_event: bool,
    /// Where its element stands, if it is not the whole callback.
    pub context: Option<ElementContext<'a>>,
}

impl<'a> KeptLetter<'a> {
    /// Reads it; what a later program may have added is passed over. Its events carry the element
    /// as it came: whether its source wants that, no letter says. None: a header is missing
    /// that every letter has, or one cannot be read.
    pub fn read(headers: &'a Headers, value: &'a [u8]) -> Option<Self> {
        let text = |name| header(headers, name);
        text("reason")?;
        let callback = Callback {
            receipt: Uuid::parse_str(text("receipt")?).ok()?,
            received_at_ms: received_at_ms(headers)?,
            source: text("source")?,
            raw: true,
            method: text("method")?,
            content_type: text("content-type"),
            content_encoding: text("content-encoding"),
            traceparent: text("traceparent"),
            body: value,
        };
        let field = |name| text(name).map(Cow::Borrowed);
        let mut context = None;
        if headers.iter().any(|(name, _)| name == "element") {
            let format = text("format");
            context = Some(ElementContext {
                format: Format::ALL.into_iter().find(|known| Some(known.as_str()) == format),
                field: field("field"),
                element: text("element")?.to_owned(),
                channel: texts(headers, "channel").unwrap_or_default(),
                contact: texts(headers, "contact"),
                entry_time: field("entry_time"),
                thread: field("thread"),
            });
        }
        Some(Self { callback, was_event: text("stage")? == Stage::Publish.as_str(), context })
    }
}

/// The value of a header, if it is text.
pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(key, _)| key == name)?;
    std::str::from_utf8(&found.1).ok()
}

/// When the letter's callback was received, in milliseconds since 1970.
pub fn received_at_ms(headers: &Headers) -> Option<u64> {
    let time: Timestamp = header(headers, "received_at")?.parse().ok()?;
    time.as_millisecond().try_into().ok()
}

/// The object in a header. Members that are no text are passed over.
fn texts<T: DeserializeOwned>(headers: &Headers, name: &str) -> Option<T> {
    let mut members: Map<String, Value> = serde_json::from_str(header(headers, name)?).ok()?;
    members.retain(|_, member| member.is_string());
    serde_json::from_value(Value::Object(members)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
    }

    const WHOLE: [(&str, &str); 6] = [
        ("reason", "invalid_json"),
        ("stage", "normalize"),
        ("source", "loja"),
        ("receipt", "01a2071c-c17a-7718-a073-f555e25a6040"),
        ("received_at", "2026-11-22T20:13:05.482Z"),
        ("method", "PUT"),
    ];

    #[test]
    fn what_no_letter_lacks_is_needed() {
        for (at, (name, _)) in WHOLE.iter().enumerate() {
            let mut some = WHOLE.to_vec();
            some.remove(at);
            assert!(KeptLetter::read(&headers(&some), b"").is_none(), "{name}");
        }
        let all = headers(&WHOLE);
        let letter = KeptLetter::read(&all, b"body").unwrap();
        assert_eq!(letter.callback.received_at_ms, 1_795_378_385_482);
        assert!(letter.context.is_none() && !letter.was_event);
    }

    #[test]
    fn the_root_is_an_element_too() {
        let mut all = WHOLE.to_vec();
        all.push(("element", ""));
        let all = headers(&all);
        assert_eq!(KeptLetter::read(&all, b"{}").unwrap().context.unwrap().element, "");
    }

    #[test]
    fn members_of_a_header_that_are_no_text_are_passed_over() {
        let mut all = WHOLE.to_vec();
        all.push(("element", "/statuses/0"));
        all.push(("channel", r#"{"waba_id":7,"phone_number_id":"1","later":[]}"#));
        all.push(("contact", r#"{"wa_id":"2","name":{"first":"n"}}"#));
        let all = headers(&all);
        let context = KeptLetter::read(&all, b"{}").unwrap().context.unwrap();
        assert_eq!(context.channel.waba_id, None);
        assert_eq!(context.channel.phone_number_id.as_deref(), Some("1"));
        let contact = context.contact.unwrap();
        assert_eq!((contact.wa_id.as_deref(), contact.name), (Some("2"), None));
    }
}
