//! The form of a record, member by member: what the schemas are made from. What `tail` shows of events
//! are members of it.
//!
//! The edge itself writes events by hand (`write`). Tests hold that each of them reads into this form
//! without a loss.
//!
//! **Invariant:** of a record, a member that is absent is left out and never null. Only `occurred_at`
//! and `status_rank` can be null. Here a member that is absent or null is `None`.

#![expect(
    missing_docs,
    reason = "docs/events.md says what each is; here stands what its name does not say"
)]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::{EventKind, Fault, Format, Reason, Retry, Stage, Text};

/// The members that all events have, and those of one topic.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Form<D> {
    #[serde(flatten)]
    pub envelope: Envelope,
    #[serde(flatten)]
    pub details: D,
}

/// The members of all kinds.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Envelope {
    /// Stays 1: the contract only grows.
    #[schemars(extend("const" = 1))]
    pub schema_version: u32,
    /// Names the update: the same update always has the same id. Upsert by it.
    #[schemars(regex(pattern = r"^[0-9a-f]{32}$"))]
    pub event_id: String,
    pub event_kind: EventKind,
    /// The id of the message, call or other thing that the element is about, as Meta wrote it.
    #[schemars(length(min = 1))]
    pub message_id: Option<String>,
    /// The hook that was called: `/hooks/<source>`.
    pub source: String,
    /// UUID of the callback. The caller got it in the answer.
    #[schemars(extend("format" = "uuid"))]
    pub receipt: String,
    /// When the edge accepted the callback: RFC 3339 with milliseconds.
    #[schemars(extend("format" = "date-time"))]
    pub received_at: String,
    /// When it happened, by Meta's clock: RFC 3339. Null: Meta's text cannot be read, or is missing.
    #[schemars(extend("format" = "date-time"))]
    pub occurred_at: Option<String>,
    /// The text of the time that cannot be read.
    pub timestamp_raw: Option<String>,
    pub format: Format,
    /// The `field` of the change, as `messages`.
    pub field: Option<String>,
    /// JSON pointer into the callback. Empty: the whole callback.
    pub element: String,
    /// The source's labels in the edge's configuration at publication.
    pub labels: Option<BTreeMap<String, String>>,
    /// One value to join on: the user id, else the phone number.
    pub user_key: Option<String>,
    pub channel: Option<Channel<'static>>,
    pub contact: Option<Contact<'static>>,
    pub errors: Option<Vec<MetaError>>,
    /// The element as it came.
    pub raw: Option<Map<String, Json>>,
    /// The element's bytes in base64: a strict JSON parser would refuse them.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub raw_base64: Option<String>,
}

/// The business's number.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Channel<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waba_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone_number_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_phone_number: Option<Text<'a>>,
}

/// The user, as the callback lists the contact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Contact<'a> {
    /// Phone number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wa_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_user_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_key_hash: Option<Text<'a>>,
}

/// One of Meta's errors. `retry` and `fault` are the edge's judgement of its code.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct MetaError {
    pub code: Option<i64>,
    pub title: Option<String>,
    pub message: Option<String>,
    pub details: Option<String>,
    pub href: Option<String>,
    /// Whether the same message may be sent again.
    pub retry: Retry,
    /// Who can do something about it.
    pub fault: Fault,
}

/// The members of statuses.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Trimmed and in lower case.
    pub status: Option<String>,
    /// The status as it came, where that differs.
    pub status_raw: Option<String>,
    /// The edge knows this status.
    pub status_known: Option<bool>,
    /// The state of a message is the status of the highest rank. Null: not a part of the state.
    #[serde(default)]
    pub status_rank: Option<i64>,
    pub recipient: Option<Recipient>,
    pub conversation: Option<Conversation>,
    pub pricing: Option<Pricing>,
    /// `biz_opaque_callback_data`.
    pub callback_data: Option<String>,
}

/// Whom a status is about.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Recipient {
    /// Phone number, or the group's id.
    pub id: Option<String>,
    /// `individual` or `group`.
    pub r#type: String,
    pub user_id: Option<String>,
    pub parent_user_id: Option<String>,
    /// In groups: the phone number of the participant.
    pub participant_id: Option<String>,
    pub participant_user_id: Option<String>,
    pub participant_parent_user_id: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Conversation {
    pub id: Option<String>,
    pub origin: Option<String>,
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Pricing {
    /// Deprecated by Meta: count by type and category.
    pub billable: Option<bool>,
    pub model: Option<String>,
    pub r#type: Option<String>,
    pub category: Option<String>,
}

/// The members of messages.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    pub r#type: Option<String>,
    pub from: Option<Party>,
    pub to: Option<Party>,
    pub group_id: Option<String>,
    /// Also of an order, a button, a list reply or a Flow answer; a reaction's emoji; the new text of
    /// an edit.
    pub text: Option<String>,
    /// The message that a reaction, an edit or a revoke is about.
    pub related_message_id: Option<String>,
    /// The type of an edit's new content.
    pub edited_type: Option<String>,
    pub media: Option<Media>,
    pub interactive_type: Option<String>,
    /// The id of the choice; of a Flow answer its name; of a button its payload.
    pub reply_id: Option<String>,
    /// JSON as text.
    pub response_json: Option<String>,
    pub permission: Option<Permission>,
    pub system: Option<System>,
    pub context: Option<Context>,
    /// The advertisement or post that the user came from, as Meta wrote it.
    pub referral: Option<Map<String, Json>>,
}

/// One side of a message.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Party {
    /// Phone number.
    pub id: Option<String>,
    pub user_id: Option<String>,
    pub parent_user_id: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Media {
    pub id: Option<String>,
    pub mime_type: Option<String>,
    pub sha256: Option<String>,
    pub filename: Option<String>,
    pub caption: Option<String>,
    /// Short-lived.
    pub url: Option<String>,
    pub voice: Option<bool>,
}

/// The answer to a request to call.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Permission {
    pub response: Option<String>,
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: Option<String>,
}

/// The user has another number or id.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct System {
    pub r#type: Option<String>,
    pub new_id: Option<String>,
    pub new_user_id: Option<String>,
}

/// The message that is answered.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Context {
    pub id: Option<String>,
    pub from: Option<String>,
}

/// The members of channel events, which include those of statuses and messages.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Details {
    #[serde(flatten)]
    pub status: Status,
    #[serde(flatten)]
    pub message: Message,
    /// Of a message of the history: the id of its thread, which is the user's phone number.
    pub thread: Option<String>,
    pub call: Option<Call>,
    pub payment: Option<Payment>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Call {
    pub event: Option<String>,
    /// `USER_INITIATED` or `BUSINESS_INITIATED`.
    pub direction: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub status: Option<String>,
    #[schemars(extend("format" = "date-time"))]
    pub started_at: Option<String>,
    #[schemars(extend("format" = "date-time"))]
    pub ended_at: Option<String>,
    pub duration_seconds: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Payment {
    pub reference_id: Option<String>,
    /// JSON as Meta wrote it.
    pub amount: Option<Json>,
    pub currency: Option<String>,
    pub transaction_id: Option<String>,
    pub transaction_status: Option<String>,
}

/// The headers of an event's record. Values are text.
#[derive(Debug, JsonSchema)]
pub struct EventHeaders {
    /// CloudEvents, binary mode.
    #[schemars(extend("const" = "1.0"))]
    pub ce_specversion: String,
    /// The event's `event_id`.
    #[schemars(regex(pattern = r"^[0-9a-f]{32}$"))]
    pub ce_id: String,
    /// `ai.weni.<event_kind>.v1`.
    #[schemars(regex(pattern = r"^ai\.weni\.[a-z_]+\.v1$"))]
    pub ce_type: String,
    /// `/hooks/<source>`.
    pub ce_source: String,
    /// The event's `occurred_at`, else its `received_at`.
    #[schemars(extend("format" = "date-time"))]
    pub ce_time: String,
    /// The `$id` of the schema of the record's value.
    pub ce_dataschema: String,
    #[serde(rename = "content-type")]
    #[schemars(extend("const" = "application/json"))]
    pub content_type: String,
    #[schemars(extend("format" = "uuid"))]
    pub receipt: String,
    pub status: Option<String>,
    pub phone_number_id: Option<String>,
    /// The W3C trace context of the call.
    pub traceparent: Option<String>,
    /// After a replay: the place of the dead letter.
    #[serde(rename = "replayed-from")]
    pub replayed_from: Option<String>,
}

/// The headers of a dead letter. Its value is the original bytes: the whole body, or one element.
/// Values are text.
#[derive(Debug, JsonSchema)]
pub struct DeadLetterHeaders {
    pub reason: Reason,
    pub stage: Stage,
    /// The reason in words, for people.
    pub detail: String,
    pub source: String,
    #[schemars(extend("format" = "uuid"))]
    pub receipt: String,
    #[schemars(extend("format" = "date-time"))]
    pub received_at: String,
    pub method: String,
    #[serde(rename = "content-type")]
    pub content_type: Option<String>,
    #[serde(rename = "content-encoding")]
    pub content_encoding: Option<String>,
    /// The W3C trace context of the call.
    pub traceparent: Option<String>,
    /// JSON pointer into the callback. Absent: the value is the whole body.
    pub element: Option<String>,
    /// Contract of the topic that the event would have gone to, as `message-status.v1`.
    pub topic: Option<String>,
    pub format: Option<Format>,
    pub field: Option<String>,
    /// The time of the entry that the element stood in.
    pub entry_time: Option<String>,
    /// The id of the thread that a message of the history stood in.
    pub thread: Option<String>,
    /// As in events, compact JSON.
    pub channel: Option<String>,
    /// As in events, compact JSON.
    pub contact: Option<String>,
    /// On a letter that a replay wrote: the place of the letter before.
    #[serde(rename = "replayed-from")]
    pub replayed_from: Option<String>,
}
