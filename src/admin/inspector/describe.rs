//! What a call was: its record in the journal, read as the publisher reads it.

use std::{borrow::Cow, panic, sync::Arc};

use http::Response;
use serde::Serialize;

use super::{Body, Inspector, Problem, json};
use crate::{
    callback::Callback,
    calls::{AcceptedCall, CallOutcome, RecentCall, Words, explain},
    config::Config,
    event::{Event, Item},
    journal::{Journal, Position},
    normalize,
    tail::{message_id, person},
};

/// Events of a call that are shown in a list, and in detail.
const LISTED: usize = 5;
const DETAILED: usize = 50;
/// Of a body, the first bytes are shown.
const BODY_SHOWN: usize = 256 << 10;
/// Of a text that the sender wrote, the first letters are shown.
const STATE_CHARS: usize = 40;

/// A call, as the list shows it.
#[derive(Serialize)]
pub(super) struct ShownCall {
    number: u64,
    at_ms: u64,
    method: &'static str,
    status: u16,
    /// Of an accepted call.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<ShownAccepted>,
    /// Of a refused call.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<Words>,
}

#[derive(Serialize)]
struct ShownAccepted {
    receipt: String,
    bytes: u32,
    /// This program called, and not Weni.
    own: bool,
    kafka: KafkaState,
    what: Described,
}

/// Whether a call's events are in Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KafkaState {
    Pending,
    Committed,
    /// It is settled without being in Kafka: in quarantine, or left out by a fork.
    Aside,
}

/// What a record holds.
#[derive(Serialize)]
pub(super) struct Described {
    /// Of the body, without its compression. 0: it was not read.
    #[serde(skip)]
    pub(super) body_bytes: usize,
    /// Events and dead letters.
    total: usize,
    /// The first of them.
    events: Vec<DescribedEvent>,
    /// Why there is nothing to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<Unread>,
}

#[derive(Serialize)]
struct DescribedEvent {
    kind: &'static str,
    /// Of a status or message; else the changed field; of a dead letter the reason.
    state: Option<String>,
    topic: String,
    /// The header `ce_id`. A dead letter has none.
    ce_id: Option<String>,
    key: String,
}

/// Why a record is not described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unread {
    /// It is in Kafka, and its segment has been recycled.
    Recycled,
    /// More was accepted at once than is worth reading for a list.
    Busy,
    /// The disk or the record is damaged.
    Damaged,
}

/// All of one call.
#[derive(Serialize)]
struct Details {
    what: Described,
    /// The first bytes of the body, without its compression.
    body: String,
    /// It has more bytes, or some that are not UTF-8.
    body_is_changed: bool,
    method: String,
    content_type: Option<String>,
}

impl Described {
    pub(super) fn unread(why: Unread) -> Self {
        Self { body_bytes: 0, total: 0, events: Vec::new(), unread: Some(why) }
    }

    /// Reads a record. In a list, the sender's ids are masked.
    pub(super) fn of(record: &[u8], config: &Config) -> Self {
        // The publisher makes a dead letter of a callback that normalizing panics on.
        let read = panic::catch_unwind(|| {
            let callback = Callback::decode(record).ok()?;
            Some(described(&callback, config, LISTED, true).0)
        });
        read.ok().flatten().unwrap_or(Self::unread(Unread::Damaged))
    }
}

fn described(
    callback: &Callback<'_>,
    config: &Config,
    events_max: usize,
    is_masked: bool,
) -> (Described, Option<(String, bool)>) {
    let body = normalize::decode(callback, config.http.max_body_bytes);
    let parsed = normalize::parse(&body);
    let items = normalize::items(callback, config.event_settings(callback.source), &parsed);
    let events = items.iter().take(events_max).map(|item| event(item, config, is_masked));
    let bytes = body.as_deref().unwrap_or(callback.body);
    let (body_bytes, total) = (bytes.len(), items.len());
    let what = Described { body_bytes, total, events: events.collect(), unread: None };
    let text = (!is_masked).then(|| shown_body(bytes));
    (what, text)
}

fn shown_body(body: &[u8]) -> (String, bool) {
    let shown = String::from_utf8_lossy(&body[..body.len().min(BODY_SHOWN)]);
    let is_changed = body.len() > BODY_SHOWN || matches!(shown, Cow::Owned(_));
    (shown.into_owned(), is_changed)
}

fn event(item: &Item<'_>, config: &Config, is_masked: bool) -> DescribedEvent {
    match item {
        Item::Event(event) => DescribedEvent {
            kind: event.kind.as_str(),
            state: state(event),
            topic: config.topics.name(event.topic()).to_owned(),
            ce_id: Some(event.event_id().to_owned()),
            key: if is_masked { masked_key(event) } else { event.key().to_owned() },
        },
        Item::DeadLetter(letter) => DescribedEvent {
            kind: "dead_letter",
            state: Some(letter.reason().as_str().to_owned()),
            topic: config.topics.dead_letter.clone(),
            ce_id: None,
            key: letter.key().to_owned(),
        },
    }
}

fn state(event: &Event<'_>) -> Option<String> {
    let state = event.status.as_deref().or(event.state.as_deref());
    let state = state.or(event.context.field.as_deref())?;
    Some(state.chars().take(STATE_CHARS).collect())
}

/// The key, as much of it as tells two apart: it may be a telephone number, or hold one.
fn masked_key(event: &Event<'_>) -> String {
    let key = event.key();
    let is = |id: &Option<Cow<'_, str>>| id.as_deref() == Some(key);
    if is(&event.message_id) {
        message_id(key)
    } else if is(&event.group_id) || is(&event.user_key) {
        person(key)
    } else {
        key.to_owned()
    }
}

/// Where a record is on its way to Kafka.
pub(super) fn kafka_state(
    journal: &Journal,
    committed: Position,
    position: Position,
) -> KafkaState {
    match position < committed {
        false => KafkaState::Pending,
        true if journal.is_set_aside(position) => KafkaState::Aside,
        true => KafkaState::Committed,
    }
}

/// Shows a call in a list. `accepted` says what an accepted one was, and where it is.
pub(super) fn shown<'s>(
    call: &RecentCall,
    sources: impl Iterator<Item = &'s str> + Clone,
    accepted: impl FnOnce(&AcceptedCall) -> (KafkaState, Described),
) -> ShownCall {
    let RecentCall { number, at_ms, method, .. } = *call;
    let shown = ShownCall { number, at_ms, method, status: 200, accepted: None, why: None };
    match &call.outcome {
        CallOutcome::Accepted(call) => {
            let (kafka, what) = accepted(call);
            let (receipt, bytes, own) = (call.receipt.to_string(), call.body_bytes, call.is_own);
            ShownCall {
                accepted: Some(ShownAccepted { receipt, bytes, own, kafka, what }),
                ..shown
            }
        }
        CallOutcome::Refused(call) => {
            ShownCall { status: call.status, why: Some(explain(call, sources)), ..shown }
        }
    }
}

impl Inspector {
    /// One accepted call with its body, from the journal.
    pub(super) async fn call(&self, source: &str, number: u64) -> Result<Response<Body>, Problem> {
        let config = self.state.config.load_full();
        if !config.sources.contains_key(source) {
            return Err(Problem::NotFound);
        }
        let call = self.state.calls.ring(source).call(number).ok_or(Problem::NotFound)?;
        let CallOutcome::Accepted(AcceptedCall { position, .. }) = call.outcome else {
            return Err(Problem::NotFound);
        };
        let journal = self.state.journal.clone();
        let place = Arc::clone(&self.details).try_acquire_owned();
        let place = place.map_err(|_| Problem::TooManyDetails)?;
        let details = tokio::task::spawn_blocking(move || {
            // A browser that leaves does not end this thread.
            let _place = place;
            let mut reader = journal.reader(position);
            let record = reader.at(position).map_err(|_| Problem::Unreadable)?;
            details(record.ok_or(Problem::Recycled)?, &config).ok_or(Problem::Unreadable)
        });
        details.await.map_err(|_| Problem::Unreadable)?
    }
}

fn details(record: &[u8], config: &Config) -> Option<Response<Body>> {
    let callback = Callback::decode(record).ok()?;
    let (what, text) = described(&callback, config, DETAILED, false);
    let (body, body_is_changed) = text.unwrap_or_default();
    let (method, content_type) =
        (callback.method.to_owned(), callback.content_type.map(Into::into));
    Some(json(&Details { what, body, body_is_changed, method, content_type }))
}
