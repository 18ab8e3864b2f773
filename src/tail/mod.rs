//! What `weni-edge tail` shows of records: read, selected, masked, and laid out. Pure.

mod filter;
mod mask;
mod print;
mod state;
mod stats;

pub(crate) use self::{
    filter::Filter,
    print::{Span, json, line},
    state::State,
    stats::Stats,
};
use crate::{
    event::{EventKind, form::AnyEvent, header},
    kafka::follow::Followed,
};

/// The newest version of events that this program knows.
const SCHEMA_VERSION: u64 = 1;

/// A record, and what it holds.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) record: Followed,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Event(Box<AnyEvent>),
    DeadLetter,
    /// Why the event cannot be read.
    Unreadable(String),
}

impl Item {
    pub(crate) fn read(record: Followed) -> Self {
        // A dead letter may be JSON as well. It has no event's headers.
        let content = match header(&record.headers, "ce_id") {
            Some(_) => event(&record.value).map_or_else(Content::Unreadable, Content::Event),
            None if header(&record.headers, "reason").is_some() => Content::DeadLetter,
            None => {
                Content::Unreadable("it has the headers of neither event nor dead letter".into())
            }
        };
        Self { record, content }
    }

    pub(crate) fn event(&self) -> Option<&AnyEvent> {
        match &self.content {
            Content::Event(event) => Some(event),
            _ => None,
        }
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
    fn what(&self) -> String {
        let event = match &self.content {
            Content::Event(event) => event,
            Content::DeadLetter => return format!("dead_letter {}", self.header("reason")),
            Content::Unreadable(_) => return "unreadable".to_owned(),
        };
        let (kind, details) = (event.envelope.event_kind, &event.details);
        let call = details.call.as_ref().and_then(|call| call.event.as_ref());
        let known = [details.status.status.as_ref(), details.message.r#type.as_ref(), call];
        let state = known.into_iter().flatten().chain(&event.envelope.field).next();
        let state = state.map_or("", String::as_str);
        match kind {
            EventKind::MessageStatus => state.to_owned(),
            EventKind::InboundMessage => format!("inbound {state}"),
            EventKind::ChannelEvent if !state.is_empty() => state.to_owned(),
            _ => format!("{} {state}", kind.as_str()),
        }
    }
}

fn event(value: &[u8]) -> Result<Box<AnyEvent>, String> {
    let json: serde_json::Value =
        serde_json::from_slice(value).map_err(|error| format!("it is not JSON: {error}"))?;
    match json["schema_version"].as_u64() {
        Some(version) if version > SCHEMA_VERSION => Err(format!(
            "its schema_version is {version}, and this program knows {SCHEMA_VERSION}: use a newer \
             weni-edge"
        )),
        _ => serde_json::from_value(json).map_err(|error| {
            format!("it is not as the contract says: {}", mask::text(&error.to_string()))
        }),
    }
}

#[cfg(test)]
mod tests;
