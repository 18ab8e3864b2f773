//! What `weni-edge tail` shows of records: read, selected, masked, and laid out. Pure.

mod filter;
mod mask;
mod print;
mod state;

use serde_json::Value as Json;

pub(crate) use self::{
    filter::Filter,
    mask::{message_id, person, word},
    print::{json, line},
    state::{MessageStates, Shown, Stats},
};
use crate::{event::header, kafka::follow::Followed};

/// The newest version of events that this program knows.
pub(crate) const SCHEMA_VERSION: u64 = 1;

/// A record, and what it holds.
#[derive(Debug, Clone)]
pub(crate) struct TailedRecord {
    pub(crate) record: Followed,
    pub(crate) content: Content,
    /// Key, headers and event hold only what may be shown. The value still holds all.
    is_masked: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// An object. A later edge may write members and values that this program does not know.
    Event(Json),
    DeadLetter,
    Unreadable,
}

impl TailedRecord {
    pub(crate) fn read(record: Followed) -> Self {
        // A dead letter may be JSON as well. It has no event's headers.
        let is_letter = header(&record.headers, "ce_id").is_none()
            && header(&record.headers, "reason").is_some();
        let content = match serde_json::from_slice(&record.value) {
            _ if is_letter => Content::DeadLetter,
            Ok(event @ Json::Object(_)) => Content::Event(event),
            _ => Content::Unreadable,
        };
        Self { record, content, is_masked: false }
    }

    pub(crate) fn event(&self) -> Option<&Json> {
        match &self.content {
            Content::Event(event) => Some(event),
            _ => None,
        }
    }

    /// What may be shown of it: all, or what names no person.
    pub(crate) fn shown(self, is_personal: bool) -> Self {
        if is_personal { self } else { mask::masked(self) }
    }

    fn header(&self, name: &str) -> &str {
        header(&self.record.headers, name).unwrap_or_default()
    }

    /// The hook that was called.
    fn source(&self) -> &str {
        match &self.content {
            Content::DeadLetter => self.header("source"),
            _ => self.header("ce_source").trim_start_matches("/hooks/"),
        }
    }

    /// What happened, in a word or two.
    pub(crate) fn what(&self) -> String {
        let event = match &self.content {
            Content::Event(event) => event,
            Content::DeadLetter => return format!("dead_letter {}", self.header("reason")),
            Content::Unreadable => return "unreadable".to_owned(),
        };
        let state = ["/status", "/type", "/call/event", "/field"];
        let state = state.into_iter().find_map(|at| text(event, at)).unwrap_or_default();
        match text(event, "/event_kind").unwrap_or_default() {
            "message_status" => state.to_owned(),
            "inbound_message" => format!("inbound {state}"),
            "channel_event" if !state.is_empty() => state.to_owned(),
            kind => format!("{kind} {state}"),
        }
    }
}

/// The text at a JSON pointer.
fn text<'e>(event: &'e Json, at: &str) -> Option<&'e str> {
    event.pointer(at)?.as_str()
}

fn errors(event: &Json) -> impl Iterator<Item = &Json> {
    event["errors"].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests;
