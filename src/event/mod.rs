//! The contract with consumers as types: events, dead letters, keys, headers and ids.
//!
//! After the first release the contract only grows: fields are added, never renamed or retyped.
//! `docs/events.md` describes it for consumers.

pub mod form;
mod letter;
pub mod schema;
mod write;

use std::{borrow::Cow, cell::OnceCell};

use sha2::{Digest, Sha256};

use self::write::rfc3339_millis;
use crate::callback::Callback;

pub use self::{
    form::{Channel, Contact},
    letter::{DeadLetter, KeptLetter, Reason, Stage, header, received_at_ms},
    write::{Object, Time, append_json, fragment},
};

/// What normalizing yields.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all items are events")]
pub enum Item<'a> {
    /// An event.
    Event(Event<'a>),
    /// What cannot be one.
    DeadLetter(DeadLetter<'a>),
}

/// Declares an enum whose variants have a name each, and `ALL` and `as_str` for it.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub enum $name { $(#[doc = concat!("`", $text, "`")] $(#[$of])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: [Self; [$($text,)*].len()] = [$(Self::$variant,)*];

            /// Its name in events, headers and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                // Examples and no `enum`: later versions add values.
                schemars::json_schema!({ "type": "string", "examples": [$($text,)*] })
            }
        }
    };
}
pub(crate) use named;

named! {
    /// One of the four topics, by the contract that its records follow. The topics' names are the
    /// configuration's.
    Topic {
        MessageStatus = "message-status.v1",
        InboundMessage = "inbound-message.v1",
        ChannelEvent = "channel-event.v1",
        DeadLetter = "dead-letter.v1",
    }
}

named! {
    /// What an event is about.
    EventKind {
        MessageStatus = "message_status",
        InboundMessage = "inbound_message",
        Call = "call",
        CallStatus = "call_status",
        PaymentStatus = "payment_status",
        Echo = "echo",
        HistoryMessage = "history_message",
        StandbyMessage = "standby_message",
        StandbyEcho = "standby_echo",
        StandbyStatus = "standby_status",
        ChannelEvent = "channel_event",
        /// What no other event of its callback holds.
        Remainder = "remainder",
    }
}

impl EventKind {
    /// The topic of its events.
    pub fn topic(self) -> Topic {
        match self {
            Self::MessageStatus => Topic::MessageStatus,
            Self::InboundMessage => Topic::InboundMessage,
            _ => Topic::ChannelEvent,
        }
    }
}

named! {
    /// The shape in which a callback came.
    Format {
        /// It has `entry` or `metadata`.
        Cloud = "cloud",
        OnPremise = "on_premise",
    }
}

named! {
    /// Whether the same message may be sent again after an error.
    Retry {
        /// Soon, with growing pauses.
        Backoff = "backoff",
        /// Not before a limit is over.
        Later = "later",
        /// When something outside the message has been mended.
        AfterFix = "after_fix",
        /// Not this message; another one.
        ChangeRequest = "change_request",
        Never = "never",
        Unknown = "unknown",
    }
}

named! {
    /// Who can do something about an error.
    Fault {
        /// The user: has no WhatsApp, has blocked the number, has not accepted terms.
        Recipient = "recipient",
        /// Whoever made the request.
        Sender = "sender",
        Template = "template",
        /// The business account: its payments, rights or restrictions.
        Account = "account",
        /// A limit of messages or requests.
        Rate = "rate",
        Meta = "meta",
        Unknown = "unknown",
    }
}

/// Text that mostly stands in the callback.
pub type Text<'a> = Cow<'a, str>;

/// Where an element stands: what its event needs beside its content.
#[derive(Debug, Clone, Default)]
pub struct ElementContext<'a> {
    /// The shape of its callback.
    pub format: Option<Format>,
    /// The `field` of its change.
    pub field: Option<Text<'a>>,
    /// JSON pointer into the callback.
    pub element: String,
    /// The number that its value names.
    pub channel: Channel<'a>,
    /// The contact that belongs to its user.
    pub contact: Option<Contact<'a>>,
    /// When its entry was made, as it was written: for what has no timestamp of its own.
    pub entry_time: Option<Text<'a>>,
    /// The id of the thread of a message of the history: the user's phone number.
    pub thread: Option<Text<'a>>,
}

/// What the configuration says of a source's events when they are published.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings<'a> {
    /// A JSON object, or nothing.
    pub labels: &'a [u8],
    /// Inbound messages are keyed by group or user instead of by message.
    pub key_by_conversation: bool,
}

/// Who pays what for a message, as labels of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pricing<'a> {
    /// Meta's `type`; empty if there is none.
    pub kind: Text<'a>,
    /// Empty if there is none.
    pub category: Text<'a>,
}

/// One of Meta's errors, as labels of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode {
    /// None if the code is not known.
    pub code: Option<u32>,
    /// Who can do something about it.
    pub fault: Fault,
}

/// What is left out of an event, or how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawForm {
    /// As it came.
    Json,
    /// A strict parser would refuse the bytes.
    Base64,
    /// Every member is in a typed field, and the source wants no more.
    Omitted,
}

/// One typed event, borrowing from its callback.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// The callback that it came in.
    pub callback: &'a Callback<'a>,
    /// The settings of its source.
    pub settings: Settings<'a>,
    /// What it is about.
    pub kind: EventKind,
    /// Where its element stands.
    pub context: ElementContext<'a>,
    /// The element's own id, as it was written; never empty.
    pub message_id: Option<Text<'a>>,
    /// The group that the element is about.
    pub group_id: Option<Text<'a>>,
    /// The user's id, else the phone number.
    pub user_key: Option<Text<'a>>,
    /// The element's own `timestamp`, as it was written.
    pub timestamp: Option<Text<'a>>,
    /// The text that `occurred_at` is read from: the element's own, else its entry's.
    pub occurred: Option<Text<'a>>,
    /// The element's `status`, or an inbound message's `type`, as it was written.
    pub state: Option<Text<'a>>,
    /// Who of a group the element is about.
    pub participant: Option<Text<'a>>,
    /// The field `status`: trimmed, in lower case.
    pub status: Option<Text<'a>>,
    /// Of a status.
    pub pricing: Option<Pricing<'a>>,
    /// In the element's order.
    pub errors: Vec<ErrorCode>,
    /// The typed fields: the inside of a JSON object.
    pub typed: Vec<u8>,
    /// The element's bytes.
    pub raw: Cow<'a, [u8]>,
    /// How they are written.
    pub raw_form: RawForm,
    /// Made when it is first asked for, by when all else is set.
    event_id: OnceCell<String>,
    receipt: String,
}

impl<'a> Event<'a> {
    /// An event that says only where it stands and what it was made of.
    pub fn new(
        callback: &'a Callback<'a>,
        settings: Settings<'a>,
        kind: EventKind,
        context: ElementContext<'a>,
        raw: Cow<'a, [u8]>,
    ) -> Self {
        Self {
            callback,
            settings,
            kind,
            context,
            message_id: None,
            group_id: None,
            user_key: None,
            timestamp: None,
            occurred: None,
            state: None,
            participant: None,
            status: None,
            pricing: None,
            errors: Vec::new(),
            typed: Vec::new(),
            raw,
            raw_form: RawForm::Json,
            event_id: OnceCell::new(),
            receipt: callback.receipt.to_string(),
        }
    }

    /// The topic that it goes to.
    pub fn topic(&self) -> Topic {
        self.kind.topic()
    }

    /// What the record is keyed by; never empty.
    pub fn key(&self) -> &str {
        let Self { message_id, group_id, user_key, .. } = self;
        let by_conversation =
            self.kind == EventKind::InboundMessage && self.settings.key_by_conversation;
        let order = match by_conversation {
            true => [group_id, user_key, message_id],
            false => [message_id, group_id, user_key],
        };
        order.into_iter().flatten().next().map_or(&self.receipt, |key| &**key)
    }

    /// Names the update: the same update always has the same id. For kinds other than message status
    /// and inbound message, and where id or time is missing, the element's bytes are part of it.
    pub fn event_id(&self) -> &str {
        self.event_id.get_or_init(|| self.make_event_id())
    }

    fn make_event_id(&self) -> String {
        let is_remainder = self.kind == EventKind::Remainder;
        let timestamp = self.timestamp.as_deref().unwrap_or_default();
        let mut digits = itoa::Buffer::new();
        let time = match Time::read(timestamp) {
            Some(Time::Seconds(seconds)) => digits.format(seconds),
            _ => timestamp,
        };
        let id = self.message_id.as_deref().unwrap_or_default();
        let is_named = matches!(self.kind, EventKind::MessageStatus | EventKind::InboundMessage)
            && !id.is_empty()
            && !timestamp.is_empty();
        // The bytes name what neither id nor time does.
        let content = (!is_named && !is_remainder).then(|| Sha256::digest(&self.raw));
        let number = self.context.channel.phone_number_id.as_deref();
        let parts: [&[u8]; 9] = [
            b"wcb1",
            self.kind.as_str().as_bytes(),
            number.unwrap_or(self.callback.source).as_bytes(),
            if is_remainder { self.receipt.as_bytes() } else { id.as_bytes() },
            self.state.as_deref().unwrap_or_default().as_bytes(),
            time.as_bytes(),
            self.participant.as_deref().unwrap_or_default().as_bytes(),
            content.as_deref().unwrap_or_default(),
            b"",
        ];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part);
        }
        hex::encode(&hash.finalize()[..16])
    }

    /// When it happened, by the sender.
    pub fn occurred_at(&self) -> Option<Time> {
        self.occurred.as_deref().and_then(Time::read)
    }

    /// The headers of its record, in order.
    pub fn headers(&self, each: &mut dyn FnMut(&str, &[u8])) {
        let time = self.occurred_at().and_then(Time::rfc3339);
        let time = time.unwrap_or_else(|| rfc3339_millis(self.callback.received_at_ms));
        each("ce_specversion", b"1.0");
        each("ce_id", self.event_id().as_bytes());
        each("ce_type", ["ai.weni.", self.kind.as_str(), ".v1"].concat().as_bytes());
        each("ce_source", ["/hooks/", self.callback.source].concat().as_bytes());
        each("ce_time", time.as_bytes());
        each("ce_dataschema", schema::urn(self.topic()).as_bytes());
        each("content-type", b"application/json");
        each("receipt", self.receipt.as_bytes());
        for (name, value) in [
            ("status", self.status.as_deref()),
            ("phone_number_id", self.context.channel.phone_number_id.as_deref()),
            ("traceparent", self.callback.traceparent),
        ] {
            if let Some(value) = value {
                each(name, value.as_bytes());
            }
        }
    }

    /// What is published when this event cannot be: its element's bytes, with the reason.
    pub fn into_dead_letter(self, reason: Reason, detail: String) -> DeadLetter<'a> {
        let context = Some((self.context, self.kind.topic()));
        DeadLetter::new(self.callback, reason, detail, self.raw, context)
    }
}
