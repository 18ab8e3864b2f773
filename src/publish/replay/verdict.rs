//! What becomes of a dead letter today.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::Header;

use super::super::{batch::Headers, topics::Topics};
use super::letters::Letter;
use crate::{
    config::Config,
    event::{DeadLetter, Event, Item, KeptLetter, Reason, Stage, Topic},
    normalize::normalize_letter,
};

/// Marks what a replay wrote: where the letter is kept that it was.
const REPLAYED_FROM: &str = "replayed-from";

/// What becomes of a dead letter today.
#[derive(Debug)]
pub(super) enum Verdict {
    /// These records; none where nothing is in it that would be published.
    Records(Vec<Outgoing>),
    /// A dead letter still, and why.
    Dead(&'static str),
}

/// A record that is ready to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) topic: Topic,
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    pub(super) headers: rdkafka::message::OwnedHeaders,
    /// On the wire, generously.
    pub(super) bytes: usize,
    pub(super) received_at_ms: u64,
}

/// Judges letters by today's program, topics and settings.
pub(super) struct Judge<'a> {
    pub(super) config: &'a Config,
    pub(super) topics: &'a Topics,
}

impl Judge<'_> {
    pub(super) fn judge(&self, letter: &Letter) -> Verdict {
        let Ok(mut kept) = KeptLetter::read(&letter.headers, &letter.value) else {
            return Verdict::Dead("no_letter");
        };
        // No letter says what its source wants; who knows the source, does.
        let source = self.config.sources.get(kept.callback.source);
        kept.callback.raw = source.is_none_or(|source| source.raw);
        let mut all = All { judge: self, letter, records: Vec::new(), events: 0, dead: None };
        // What made the edge panic may do so again.
        let normalized = catch_unwind(AssertUnwindSafe(|| {
            normalize_letter(&kept, &mut |item| all.item(item));
        }));
        match (normalized, all.dead) {
            (Err(_), _) => Verdict::Dead(Reason::Panic.as_str()),
            (Ok(()), Some(reason)) if all.events == 0 => Verdict::Dead(reason),
            (Ok(()), _) => Verdict::Records(all.records),
        }
    }
}

/// The items of one letter.
struct All<'j> {
    judge: &'j Judge<'j>,
    letter: &'j Letter,
    records: Vec<Outgoing>,
    events: usize,
    /// Why the first that is dead still is.
    dead: Option<&'static str>,
}

impl All<'_> {
    fn item(&mut self, item: Item<'_>) {
        match item {
            Item::Event(event) => self.event(event),
            Item::DeadLetter(letter) => self.dead_letter(&letter),
        }
    }

    fn event(&mut self, event: Event<'_>) {
        let topics = self.judge.topics;
        let name = topics.name(event.topic());
        let dead = |reason, detail: &str, event: Event<'_>, all: &mut Self| {
            let letter = event.into_dead_letter(reason, Stage::Publish, detail.to_owned());
            all.dead_letter(&letter);
        };
        if name == topics.dead_letter() {
            let detail = "this kind of event is routed to the dead letters";
            return dead(Reason::Unroutable, detail, event, self);
        }
        let mut value = Vec::new();
        event.write_json(&mut value);
        let (topic, key) = (event.topic(), event.key().to_owned());
        let received_at_ms = event.callback.received_at_ms;
        let outgoing = self.outgoing(topic, key, value, received_at_ms, |each| event.headers(each));
        if !topics.fits(name, outgoing.bytes) {
            let detail = format!("{} bytes are more than the topic takes", outgoing.bytes);
            return dead(Reason::TooLarge, &detail, event, self);
        }
        self.events += 1;
        self.records.push(outgoing);
    }

    /// What is dead beside events has to be a letter of its own: its whole letter is done.
    fn dead_letter(&mut self, letter: &DeadLetter<'_>) {
        self.dead = self.dead.or(Some(letter.reason().as_str()));
        let (key, value) = (letter.key().to_owned(), letter.value().to_vec());
        let received_at_ms = self.letter.received_at_ms().unwrap_or(0);
        let headers = |each: &mut dyn FnMut(&str, &[u8])| letter.headers(each);
        let outgoing = self.outgoing(Topic::DeadLetter, key, value, received_at_ms, headers);
        self.records.push(outgoing);
    }

    fn outgoing(
        &self,
        topic: Topic,
        key: String,
        value: Vec<u8>,
        received_at_ms: u64,
        headers: impl FnOnce(&mut dyn FnMut(&str, &[u8])),
    ) -> Outgoing {
        let Headers { headers, bytes } = Headers::collect(headers);
        let origin = self.letter.origin.name(self.judge.topics.dead_letter());
        let header = Header { key: REPLAYED_FROM, value: Some(&origin) };
        let bytes = bytes + REPLAYED_FROM.len() + origin.len() + key.len() + value.len();
        Outgoing { topic, key, value, headers: headers.insert(header), bytes, received_at_ms }
    }
}
