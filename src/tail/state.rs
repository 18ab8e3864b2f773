//! The current state of each message: the status with the highest rank.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use crate::event::{EventKind, form::AnyEvent};

/// Message id and participant.
type Key = (String, String);

/// The states of the messages that changed last, each with what is to be shown of it.
#[derive(Debug)]
pub(crate) struct State<T> {
    /// Bounds the memory.
    messages_max: usize,
    messages: HashMap<Key, Current<T>>,
    /// From the message that changed first.
    order: BTreeMap<u64, Key>,
    changes: u64,
    pub(crate) forgotten: u64,
}

#[derive(Debug)]
struct Current<T> {
    /// Rank and time.
    level: (i64, Option<Timestamp>),
    change: u64,
    shown: T,
}

impl<T> State<T> {
    pub(crate) fn new(messages_max: usize) -> Self {
        let (messages, order) = (HashMap::new(), BTreeMap::new());
        Self { messages_max, messages, order, changes: 0, forgotten: 0 }
    }

    /// Takes an event in. Returns whether the state of its message is another one now.
    pub(crate) fn update(&mut self, event: &AnyEvent, shown: T) -> bool {
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
    pub(crate) fn shown(&self) -> impl Iterator<Item = &T> {
        self.order.values().filter_map(|key| Some(&self.messages.get(key)?.shown))
    }
}

/// What an event says of a message's state; nothing without a rank.
fn update(event: &AnyEvent) -> Option<(Key, (i64, Option<Timestamp>))> {
    let status = &event.details.status;
    let rank = status.status_rank.flatten()?;
    if event.envelope.event_kind != EventKind::MessageStatus {
        return None;
    }
    let participant = status.recipient.as_ref().and_then(|recipient| {
        recipient.participant_user_id.as_ref().or(recipient.participant_id.as_ref())
    });
    let key = (event.envelope.message_id.clone()?, participant.cloned().unwrap_or_default());
    let time = event.envelope.occurred_at.as_ref().unwrap_or(&event.envelope.received_at);
    Some((key, (rank, time.parse().ok())))
}
