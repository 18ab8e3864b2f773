//! The contract with consumers as types: events, dead letters, keys, headers and ids.
//!
//! Once published, this only grows: fields are added, never renamed or retyped.

mod dead_letter;
mod json;
mod kept_letter;

use std::{borrow::Cow, cell::OnceCell, fmt::Write};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::callback::Callback;

pub use self::{
    dead_letter::{DeadLetter, Reason, Stage},
    json::Object,
    kept_letter::{KeptLetter, NoLetter, header, received_at_ms},
};

/// What normalizing yields.
#[derive(Debug)]
pub enum Item<'a> {
    Event(Event<'a>),
    DeadLetter(DeadLetter<'a>),
}

/// One of the four topics; their names are the configuration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    MessageStatus,
    InboundMessage,
    ChannelEvent,
    DeadLetter,
}

impl Topic {
    pub const ALL: [Self; 4] =
        [Self::MessageStatus, Self::InboundMessage, Self::ChannelEvent, Self::DeadLetter];

    /// The contract that its records follow: the default topic's name without the prefix.
    pub fn contract(self) -> &'static str {
        match self {
            Self::MessageStatus => "message-status.v1",
            Self::InboundMessage => "inbound-message.v1",
            Self::ChannelEvent => "channel-event.v1",
            Self::DeadLetter => "dead-letter.v1",
        }
    }
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    MessageStatus,
    InboundMessage,
    Call,
    CallStatus,
    PaymentStatus,
    Echo,
    HistoryMessage,
    ChannelEvent,
}

impl EventKind {
    pub const ALL: [Self; 8] = [
        Self::MessageStatus,
        Self::InboundMessage,
        Self::Call,
        Self::CallStatus,
        Self::PaymentStatus,
        Self::Echo,
        Self::HistoryMessage,
        Self::ChannelEvent,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MessageStatus => "message_status",
            Self::InboundMessage => "inbound_message",
            Self::Call => "call",
            Self::CallStatus => "call_status",
            Self::PaymentStatus => "payment_status",
            Self::Echo => "echo",
            Self::HistoryMessage => "history_message",
            Self::ChannelEvent => "channel_event",
        }
    }

    pub fn topic(self) -> Topic {
        match self {
            Self::MessageStatus => Topic::MessageStatus,
            Self::InboundMessage => Topic::InboundMessage,
            _ => Topic::ChannelEvent,
        }
    }
}

/// The shape in which a callback came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Cloud,
    OnPremise,
}

impl Format {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::OnPremise => "on_premise",
        }
    }
}

/// Whether the same message may be sent again after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Soon, with growing pauses.
    Backoff,
    /// Not before a limit is over.
    Later,
    /// When something outside the message has been mended.
    AfterFix,
    /// Not this message; another one.
    ChangeRequest,
    Never,
    Unknown,
}

impl Retry {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backoff => "backoff",
            Self::Later => "later",
            Self::AfterFix => "after_fix",
            Self::ChangeRequest => "change_request",
            Self::Never => "never",
            Self::Unknown => "unknown",
        }
    }
}

/// Text that mostly stands in the callback.
pub type Text<'a> = Cow<'a, str>;

/// The number that a callback is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Channel<'a> {
    pub waba_id: Option<Text<'a>>,
    pub phone_number_id: Option<Text<'a>>,
    pub display_phone_number: Option<Text<'a>>,
}

/// The user whom an element is about, as the callback lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact<'a> {
    pub wa_id: Option<Text<'a>>,
    pub user_id: Option<Text<'a>>,
    pub parent_user_id: Option<Text<'a>>,
    pub username: Option<Text<'a>>,
    pub name: Option<Text<'a>>,
}

/// Where an element stands: what its event needs beside its content.
#[derive(Debug, Clone, Default)]
pub struct Place<'a> {
    pub format: Option<Format>,
    pub field: Option<Text<'a>>,
    /// JSON pointer into the callback.
    pub element: String,
    pub channel: Channel<'a>,
    pub contact: Option<Contact<'a>>,
    /// When its entry was made, for what has no timestamp of its own.
    pub entry_time: Occurred<'a>,
}

/// An element's own timestamp.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Occurred<'a> {
    /// As it was written.
    pub text: Option<Text<'a>>,
}

impl Occurred<'_> {
    /// Seconds since 1970, if the text is 1 to 11 digits.
    pub fn seconds(&self) -> Option<i64> {
        let text = self.text.as_deref()?;
        let digits = matches!(text.len(), 1..=11) && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse().ok() } else { None }
    }
}

/// Who a status is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipient<'a> {
    pub id: Option<Text<'a>>,
    pub kind: Text<'a>,
    pub user_id: Option<Text<'a>>,
    pub parent_user_id: Option<Text<'a>>,
    pub participant_id: Option<Text<'a>>,
    pub participant_user_id: Option<Text<'a>>,
    pub participant_parent_user_id: Option<Text<'a>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation<'a> {
    pub id: Option<Text<'a>>,
    pub origin: Option<Text<'a>>,
    pub expires: Occurred<'a>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pricing<'a> {
    pub billable: Option<bool>,
    pub model: Option<Text<'a>>,
    pub kind: Option<Text<'a>>,
    pub category: Option<Text<'a>>,
}

/// One of Meta's errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorDetail<'a> {
    pub code: Option<i64>,
    /// The code as a metric's label: a closed set.
    pub label: &'static str,
    pub title: Option<Text<'a>>,
    pub message: Option<Text<'a>>,
    pub details: Option<Text<'a>>,
    pub href: Option<Text<'a>>,
    pub retry: Retry,
}

/// A status of a message, a payment or a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status<'a> {
    /// As it was written.
    pub raw: Option<Text<'a>>,
    pub recipient: Recipient<'a>,
    pub conversation: Option<Conversation<'a>>,
    pub pricing: Option<Pricing<'a>>,
    pub callback_data: Option<Text<'a>>,
}

impl Status<'_> {
    /// Trimmed and in lower case.
    pub fn normal(&self) -> Option<String> {
        self.raw.as_deref().map(|raw| raw.trim().to_lowercase())
    }
}

/// Rank of a known status of a message; within, `None` never overwrites state. `None` without: the
/// status is not known.
pub fn status_rank(status: &str) -> Option<Option<u8>> {
    match status {
        "sending" => Some(Some(5)),
        "sent" => Some(Some(10)),
        "failed" => Some(Some(15)),
        "delivered" => Some(Some(20)),
        "read" => Some(Some(30)),
        "played" => Some(Some(40)),
        "deleted" | "warning" => Some(None),
        _ => None,
    }
}

/// A message that a user sent, or one that is shown to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: Option<Text<'a>>,
    pub from: From<'a>,
    pub to: Option<Text<'a>>,
    pub group_id: Option<Text<'a>>,
    pub text: Option<Text<'a>>,
    pub interactive_type: Option<Text<'a>>,
    pub reply_id: Option<Text<'a>>,
    pub related_message_id: Option<Text<'a>>,
    pub context_id: Option<Text<'a>>,
    pub context_from: Option<Text<'a>>,
    /// JSON, verbatim.
    pub referral: Option<&'a [u8]>,
    pub media: Option<Media<'a>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct From<'a> {
    pub id: Option<Text<'a>>,
    pub user_id: Option<Text<'a>>,
    pub parent_user_id: Option<Text<'a>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Media<'a> {
    pub id: Option<Text<'a>>,
    pub mime_type: Option<Text<'a>>,
    pub sha256: Option<Text<'a>>,
    pub filename: Option<Text<'a>>,
    pub caption: Option<Text<'a>>,
}

/// What an element says, by what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail<'a> {
    Status(Box<Status<'a>>),
    Message(Box<Message<'a>>),
    Other,
}

/// One typed event, borrowing from its callback.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    pub callback: &'a Callback<'a>,
    pub kind: EventKind,
    pub place: Place<'a>,
    /// The element's own id, as it was written.
    pub message_id: Option<Text<'a>>,
    /// What the record is keyed by where the element has no id of its own; the receipt without it.
    pub other_key: Option<Text<'a>>,
    pub occurred: Occurred<'a>,
    /// The element's `status`, as it was written.
    pub state: Option<Text<'a>>,
    pub detail: Detail<'a>,
    pub errors: Vec<ErrorDetail<'a>>,
    /// The element's bytes.
    pub raw: Cow<'a, [u8]>,
    /// Whether every strict parser reads them.
    pub raw_is_strict: bool,
    /// Made when it is first asked for, by when all else is set.
    event_id: OnceCell<[u8; 16]>,
    receipt: String,
}

impl<'a> Event<'a> {
    /// An event that says nothing yet but where it stands and what it was made of.
    pub fn new(
        callback: &'a Callback<'a>,
        kind: EventKind,
        place: Place<'a>,
        raw: Cow<'a, [u8]>,
        raw_is_strict: bool,
    ) -> Self {
        Self {
            callback,
            kind,
            place,
            message_id: None,
            other_key: None,
            occurred: Occurred::default(),
            state: None,
            detail: Detail::Other,
            errors: Vec::new(),
            event_id: OnceCell::new(),
            raw,
            raw_is_strict,
            receipt: callback.receipt.to_string(),
        }
    }

    pub fn kind(&self) -> EventKind {
        self.kind
    }

    pub fn topic(&self) -> Topic {
        self.kind.topic()
    }

    /// What the record is keyed by; never empty.
    pub fn key(&self) -> &str {
        let own = self.message_id.as_deref().or(self.other_key.as_deref());
        own.filter(|key| !key.is_empty()).unwrap_or(&self.receipt)
    }

    /// Names the update: the same update always has the same id, whatever its bytes.
    pub fn event_id(&self) -> [u8; 16] {
        *self.event_id.get_or_init(|| self.make_event_id())
    }

    fn make_event_id(&self) -> [u8; 16] {
        let state = match &self.detail {
            Detail::Message(message) if self.kind == EventKind::InboundMessage => &message.kind,
            _ => &self.state,
        };
        let participant = match &self.detail {
            Detail::Status(status) => {
                let Recipient { participant_user_id, participant_id, .. } = &status.recipient;
                participant_user_id.as_deref().or(participant_id.as_deref())
            }
            _ => None,
        };
        let timestamp = self.occurred.text.as_deref().unwrap_or_default();
        let seconds = self.occurred.seconds().map(|seconds| seconds.to_string());
        let id = self.message_id.as_deref().unwrap_or_default();
        let named = matches!(self.kind, EventKind::MessageStatus | EventKind::InboundMessage)
            && !id.is_empty()
            && !timestamp.is_empty();
        // The bytes name what neither id nor time does.
        let content = (!named).then(|| Sha256::digest(&self.raw));
        let number = self.place.channel.phone_number_id.as_deref();
        let parts: [&[u8]; 9] = [
            b"wcb1",
            self.kind.as_str().as_bytes(),
            number.unwrap_or(self.callback.source).as_bytes(),
            id.as_bytes(),
            state.as_deref().unwrap_or_default().as_bytes(),
            seconds.as_deref().unwrap_or(timestamp).as_bytes(),
            participant.unwrap_or_default().as_bytes(),
            content.as_deref().unwrap_or_default(),
            b"",
        ];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part);
        }
        let hash: [u8; 32] = hash.finalize().into();
        hash.first_chunk().copied().unwrap_or_default()
    }

    /// The status of a message, trimmed and in lower case; none for other kinds.
    pub fn status(&self) -> Option<String> {
        match &self.detail {
            Detail::Status(status) if self.kind == EventKind::MessageStatus => status.normal(),
            _ => None,
        }
    }

    /// Labels of the codes that a failed message came with.
    pub fn failure_codes(&self) -> impl Iterator<Item = &'static str> {
        let failed = self.status().as_deref() == Some("failed");
        self.errors.iter().filter(move |_| failed).map(|error| error.label)
    }

    /// The element's own time, or its entry's where it has none, in seconds since 1970.
    pub fn occurred_at_seconds(&self) -> Option<i64> {
        let own = self.occurred.text.is_some();
        if own { self.occurred.seconds() } else { self.place.entry_time.seconds() }
    }

    /// The headers of its record, in order.
    pub fn headers(&self, each: &mut dyn FnMut(&str, &[u8])) {
        let time = self.occurred_at_seconds().and_then(rfc3339_seconds);
        let time = time.unwrap_or_else(|| rfc3339_millis(self.callback.received_at_ms));
        each("ce_specversion", b"1.0");
        each("ce_id", &hex::<16, 32>(self.event_id()));
        each("ce_type", format!("ai.weni.{}.v1", self.kind.as_str()).as_bytes());
        each("ce_source", format!("/hooks/{}", self.callback.source).as_bytes());
        each("ce_time", time.as_bytes());
        each("ce_dataschema", format!("urn:weni-edge:{}", self.topic().contract()).as_bytes());
        each("content-type", b"application/json");
        each("receipt", self.receipt.as_bytes());
        if let Some(traceparent) = self.callback.traceparent {
            each("traceparent", traceparent.as_bytes());
        }
    }

    /// What is published when this event cannot be: its element's bytes, with the reason.
    pub fn into_dead_letter(self, reason: Reason, stage: Stage, detail: String) -> DeadLetter<'a> {
        let topic = self.topic();
        DeadLetter::of_element(self.callback, reason, stage, detail, self.raw, (self.place, topic))
    }
}

/// Lower-case digits; `DIGITS` is twice `BYTES`.
fn hex<const BYTES: usize, const DIGITS: usize>(bytes: [u8; BYTES]) -> [u8; DIGITS] {
    let mut digits = [0; DIGITS];
    // INVARIANT: there is room for exactly two digits a byte.
    hex::encode_to_slice(bytes, &mut digits).expect("two digits a byte");
    digits
}

/// `2026-11-22T20:13:05Z`; none beyond the year 9999.
fn rfc3339_seconds(seconds: i64) -> Option<String> {
    Timestamp::from_second(seconds).ok().map(|time| time.to_string())
}

/// `2026-11-22T20:13:05.482Z`.
fn rfc3339_millis(millis: u64) -> String {
    let time = i64::try_from(millis).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let mut text = String::with_capacity(24);
    // INVARIANT: writing into a string does not fail.
    write!(text, "{:.3}", time.unwrap_or(Timestamp::MAX)).expect("a string");
    text
}
