//! The current state of each message, which is the status with the highest rank; and how many events
//! there are of each kind, and how many come in a second.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde_json::Value as Json;

use super::{TailedRecord, errors, text};

/// Statuses are text of callers, and could be any number.
const ROWS_MAX: usize = 500;

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

/// Counts by what happened and source: of all, and of those since the last table.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    rows: BTreeMap<(String, String), (u64, u64)>,
}

impl Stats {
    pub(crate) fn count(&mut self, item: &TailedRecord) {
        let faults = item.event().into_iter().flat_map(errors);
        let faults = faults.filter_map(|error| Some(format!("- fault {}", text(error, "/fault")?)));
        for what in faults.chain([item.what()]) {
            let mut key = (what, item.source().to_owned());
            if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
                key = ("all others".to_owned(), String::new());
            }
            let (total, recent) = self.rows.entry(key).or_default();
            *total += 1;
            *recent += 1;
        }
    }

    /// A heading, and a line for each row. The last table was made so many seconds ago.
    pub(crate) fn table(&mut self, seconds: f64) -> Vec<String> {
        let heading =
            format!("{:<32} {:<16} {:>12} {:>10}", "what", "source", "events", "per second");
        let row = |((what, source), (total, recent)): (&(String, String), &mut (u64, u64))| {
            let rate = std::mem::take(recent) as f64 / seconds;
            format!("{what:<32} {source:<16} {total:>12} {rate:>10.1}")
        };
        [heading].into_iter().chain(self.rows.iter_mut().map(row)).collect()
    }
}
