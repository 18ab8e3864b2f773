//! What a call was: its record in the journal, read as the publisher reads it.

use std::{borrow::Cow, panic, sync::Arc};

use http::Response;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::{Body, Inspector, Problem, json_answer};
use crate::{
    callback::Callback,
    calls::{AcceptedCall, RecentCall, explain},
    config::Config,
    event::{Event, Item},
    journal::{Journal, Position, Reader},
    normalize,
    tail::{message_id, person, word},
};

/// Events of a call that are shown in a list, and in detail.
const LISTED: usize = 5;
const DETAILED: usize = 50;
/// Of a body, the first bytes are shown.
const BODY_SHOWN: usize = 256 << 10;
/// Of a text that the sender wrote, the first letters are shown.
const STATE_CHARS: usize = 40;

/// Whether a call's events are in Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KafkaState {
    Pending,
    Committed,
    /// It is settled without being in Kafka: in quarantine, or left out by a fork.
    Aside,
}

/// What a record holds, and the length of its body without its compression (0: it was not read).
pub(super) type Described = (Json, usize);

/// A record that is not described: `recycled` (it is in Kafka, and its segment has been recycled), `busy`
/// (more was accepted at once than is worth reading for a list), or `damaged` (the disk or the record).
pub(super) fn undescribed(why: &str) -> Described {
    (json!({"total": 0, "events": [], "unread": why}), 0)
}

/// Reads a record for a list, in which the sender's ids are masked.
pub(super) fn listed(reader: &mut Reader, position: Position, config: &Config) -> Described {
    let record = match reader.at(position) {
        Ok(Some(record)) => record,
        Ok(None) => return undescribed("recycled"),
        Err(_) => return undescribed("damaged"),
    };
    // The publisher makes a dead letter of a callback that normalizing panics on.
    let read = panic::catch_unwind(|| {
        let callback = Callback::decode(record).ok()?;
        let body = normalize::decode(&callback, config.http.max_body_bytes);
        let body_bytes = body.as_deref().unwrap_or(callback.body).len();
        Some((described(&callback, &body, config, LISTED, true), body_bytes))
    });
    read.ok().flatten().unwrap_or_else(|| undescribed("damaged"))
}

fn described(
    callback: &Callback<'_>,
    body: &normalize::Body<'_>,
    config: &Config,
    events_max: usize,
    is_masked: bool,
) -> Json {
    let parsed = normalize::parse(body);
    let items = normalize::items(callback, config.event_settings(callback.source), &parsed);
    let events = items.iter().take(events_max).map(|item| event(item, config, is_masked));
    // Events and dead letters, and the first of them.
    json!({"total": items.len(), "events": events.collect::<Vec<_>>()})
}

fn event(item: &Item<'_>, config: &Config, is_masked: bool) -> Json {
    match item {
        Item::Event(event) => json!({
            "kind": event.kind.as_str(),
            "state": state(event, is_masked),
            "topic": config.topics.name(event.topic()),
            "ce_id": event.event_id(),
            "key": if is_masked { masked_key(event) } else { event.key().to_owned() },
        }),
        Item::DeadLetter(letter) => json!({
            "kind": "dead_letter",
            "state": letter.reason.as_str(),
            "topic": config.topics.dead_letter,
            "key": letter.key(),
        }),
    }
}

/// Of a status or message; else the changed field. The sender may have written anything there.
fn state(event: &Event<'_>, is_masked: bool) -> Option<String> {
    let state = event.status.as_deref().or(event.state.as_deref());
    let state = state.or(event.context.field.as_deref())?;
    Some(if is_masked { word(state) } else { state.chars().take(STATE_CHARS).collect() })
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

/// A call, as the list shows it. `accepted` says what an accepted one was, and where it is.
pub(super) fn shown(
    call: &RecentCall,
    accepted: impl FnOnce(&AcceptedCall) -> (KafkaState, Json),
) -> Json {
    let RecentCall { number, at_ms, method, .. } = call;
    let mut shown = json!({"number": number, "at_ms": at_ms, "method": method, "status": 200});
    match &call.outcome {
        Ok(call) => {
            let (kafka, what) = accepted(call);
            shown["accepted"] = json!({
                "receipt": call.receipt.to_string(),
                "bytes": call.body_bytes,
                // This program called, and not Weni.
                "own": call.is_own,
                "kafka": kafka,
                "what": what,
            });
        }
        Err(call) => {
            shown["status"] = json!(call.status);
            shown["why"] = json!(explain(call));
        }
    }
    shown
}

impl Inspector {
    /// One accepted call with its body, from the journal.
    pub(super) async fn call(&self, source: &str, number: u64) -> Result<Response<Body>, Problem> {
        let config = self.state.config.load_full();
        if !config.sources.contains_key(source) {
            return Err(Problem::NOT_FOUND);
        }
        let call = self.state.calls.ring(source).call(number).ok_or(Problem::NOT_FOUND)?;
        let AcceptedCall { position, .. } = call.outcome.map_err(|_refused| Problem::NOT_FOUND)?;
        let journal = self.state.journal.clone();
        let place = Arc::clone(&self.details).try_acquire_owned();
        let place = place.map_err(|_| Problem::TOO_MANY_DETAILS)?;
        let details = tokio::task::spawn_blocking(move || {
            // A browser that leaves does not end this thread.
            let _place = place;
            let mut reader = journal.reader(position);
            let record = reader.at(position).map_err(|_| Problem::UNREADABLE)?;
            details(record.ok_or(Problem::RECYCLED)?, &config).ok_or(Problem::UNREADABLE)
        });
        details.await.map_err(|_| Problem::UNREADABLE)?
    }
}

fn details(record: &[u8], config: &Config) -> Option<Response<Body>> {
    let callback = Callback::decode(record).ok()?;
    let body = normalize::decode(&callback, config.http.max_body_bytes);
    let bytes = body.as_deref().unwrap_or(callback.body);
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(BODY_SHOWN)]);
    Some(json_answer(&json!({
        "what": described(&callback, &body, config, DETAILED, false),
        "body": shown,
        // The body has more bytes, or some that are not UTF-8.
        "body_is_changed": bytes.len() > BODY_SHOWN || matches!(shown, Cow::Owned(_)),
        "method": callback.method,
        "content_type": callback.content_type,
    })))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_text_of_the_sender_that_is_no_word_is_shown_only_in_detail() {
        let state = |body: &str, is_masked| {
            let callback = Callback {
                receipt: Uuid::nil(),
                received_at_ms: 0,
                source: "loja",
                raw: true,
                method: "POST",
                content_type: None,
                content_encoding: None,
                traceparent: None,
                body: body.as_bytes(),
            };
            let body = normalize::decode(&callback, 1000);
            described(&callback, &body, &Config::default(), LISTED, is_masked)["events"][0]["state"]
                .clone()
        };
        let phone = r#"{"messages":[{"id":"m","type":"5511999990000"}]}"#;
        assert_eq!(state(phone, true), "…");
        assert_eq!(state(phone, false), "5511999990000");
        let of_group =
            r#"{"groups":[{"id":"g","status":{"name":"Maria","phone":"5511999990000"}}]}"#;
        assert_eq!(state(of_group, true), "…");
        let usual = r#"{"messages":[{"id":"m","type":"text"}]}"#;
        assert_eq!(state(usual, true), "text");
    }
}
