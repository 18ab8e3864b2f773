//! The current state of each message: the status with the highest rank.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde_json::Value as Json;

use super::text;

/// Message id and participant.
type Key = (String, String);

/// The states of the messages that changed last.
#[derive(Debug)]
pub(crate) struct State {
    /// Bounds the memory.
    messages_max: usize,
    messages: HashMap<Key, Current>,
    /// From the message that changed first.
    order: BTreeMap<u64, Key>,
    changes: u64,
    pub(crate) forgotten: u64,
}

/// What is to be shown of a message's state.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) line: String,
    pub(crate) what: String,
    pub(crate) is_wanted: bool,
}

#[derive(Debug)]
struct Current {
    /// Rank and time.
    level: (i64, Option<Timestamp>),
    change: u64,
    shown: Shown,
}

impl State {
    pub(crate) fn new(messages_max: usize) -> Self {
        let (messages, order) = (HashMap::new(), BTreeMap::new());
        Self { messages_max, messages, order, changes: 0, forgotten: 0 }
    }

    /// Takes an event in. Returns whether the state of its message is another one now.
    pub(crate) fn update(&mut self, event: &Json, shown: Shown) -> bool {
        let Some((key, level)) = update(event) else { return false };
        if let Some(current) = self.messages.get_mut(&key) {
            if level <= current.level {
                // A repetition can have more detail.
                if level == current.level {
                    current.shown = shown;
                }
                return false;
            }
            self.order.remove(&current.change);
        }
        self.changes += 1;
        self.order.insert(self.changes, key.clone());
        self.messages.insert(key, Current { level, change: self.changes, shown });
        if self.messages.len() > self.messages_max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.messages.remove(&oldest);
            self.forgotten += 1;
        }
        true
    }

    /// What is to be shown of each message, the one that changed last at the end.
    pub(crate) fn shown(&self) -> impl Iterator<Item = &Shown> {
        self.order.values().filter_map(|key| Some(&self.messages.get(key)?.shown))
    }
}

/// What an event says of a message's state; nothing without a rank.
fn update(event: &Json) -> Option<(Key, (i64, Option<Timestamp>))> {
    let rank = event["status_rank"].as_i64()?;
    if event["event_kind"] != "message_status" {
        return None;
    }
    let either = |one, other| text(event, one).or(text(event, other));
    let participant = either("/recipient/participant_user_id", "/recipient/participant_id");
    let key = (text(event, "/message_id")?.to_owned(), participant.unwrap_or_default().to_owned());
    let time = either("/occurred_at", "/received_at");
    Some((key, (rank, time.and_then(|time| time.parse().ok()))))
}
