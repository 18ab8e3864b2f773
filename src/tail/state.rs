//! The current state of each message: the status with the highest rank.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde_json::Value as Json;

use super::text;

/// Message id and participant.
type Key = (String, String);
/// Rank and time.
type Level = (i64, Option<Timestamp>);

/// The states of the messages that changed last.
#[derive(Debug, Default)]
pub(crate) struct MessageStates {
    /// Bounds the memory.
    messages_max: usize,
    /// Their levels, and the change that each came with.
    messages: HashMap<Key, (Level, u64)>,
    /// By change: from the message that changed first.
    shown: BTreeMap<u64, (Key, Shown)>,
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

impl MessageStates {
    pub(crate) fn new(messages_max: usize) -> Self {
        Self { messages_max, ..Self::default() }
    }

    /// Takes an event in. Returns whether the state of its message is another one now.
    pub(crate) fn update(&mut self, event: &Json, shown: Shown) -> bool {
        let Some((key, level)) = update(event) else { return false };
        if let Some((current, change)) = self.messages.get(&key) {
            if level <= *current {
                // A repetition can have more detail.
                if level == *current {
                    self.shown.insert(*change, (key, shown));
                }
                return false;
            }
            self.shown.remove(change);
        }
        self.changes += 1;
        self.shown.insert(self.changes, (key.clone(), shown));
        self.messages.insert(key, (level, self.changes));
        if self.messages.len() > self.messages_max
            && let Some((_, (oldest, _))) = self.shown.pop_first()
        {
            self.messages.remove(&oldest);
            self.forgotten += 1;
        }
        true
    }

    /// What is to be shown of each message, the one that changed last at the end.
    pub(crate) fn shown(&self) -> impl Iterator<Item = &Shown> {
        self.shown.values().map(|(_, shown)| shown)
    }
}

/// What an event says of a message's state; nothing without a rank.
fn update(event: &Json) -> Option<(Key, Level)> {
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
