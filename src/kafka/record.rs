//! From an item to the record that it is published as: event or dead letter, topic, size. The edge
//! and a replay both decide it here.

use super::Topics;
use crate::event::{Event, Item, Reason, Topic};

/// At most what Kafka's record format adds to key, value and headers: lengths, offsets, batch.
const RECORD_OVERHEAD_BYTES: usize = 512;
/// The same for each header.
const HEADER_OVERHEAD_BYTES: usize = 10;

/// Retention that is assumed where it cannot be read.
const RETENTION_MS: u64 = 24 * 60 * 60 * 1000;

/// The time that a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamps {
    /// When its callback was accepted.
    Accepted,
    /// When it is sent: a broker refused the time of acceptance.
    Present,
}

/// What one record is sent with.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the names are Kafka's")]
pub struct Record<'a> {
    pub topic: &'a str,
    pub key: &'a str,
    pub value: &'a [u8],
    pub headers: &'a Headers,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Names the record in [`Failure::reports`](super::Failure::reports).
    pub number: usize,
}

/// Names and values of a record's headers, in one buffer.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    bytes: Vec<u8>,
    /// Where each name and each value ends.
    ends: Vec<(usize, usize)>,
}

impl Headers {
    /// Adds one.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        self.bytes.extend_from_slice(name.as_bytes());
        let name_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((name_end, self.bytes.len()));
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        starts.zip(&self.ends).map(|(start, &(name_end, end))| {
            // INVARIANT: a name was pushed as a whole `str`.
            let name = std::str::from_utf8(&self.bytes[start..name_end]).expect("a name");
            (name, &self.bytes[name_end..end])
        })
    }
}

/// A record before it has a time and a number. [`write`](Self::write) replaces all of it.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are Kafka's")]
pub struct Draft {
    pub topic: Topic,
    pub key: String,
    pub value: Vec<u8>,
    pub headers: Headers,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            topic: Topic::DeadLetter,
            key: String::new(),
            value: Vec::new(),
            headers: Headers::default(),
        }
    }
}

impl Draft {
    /// Writes the record that an item is published as, and returns what the item was published as.
    /// An event becomes a dead letter if it was `rejected` for a reason, if its topic is routed to
    /// the dead letters, or if its topic does not take so many bytes.
    pub fn write<'a>(
        &mut self,
        item: Item<'a>,
        rejected: Option<String>,
        topics: &Topics,
    ) -> Item<'a> {
        let letter = match item {
            Item::DeadLetter(letter) => letter,
            Item::Event(event) => match self.event(&event, rejected, topics) {
                Ok(()) => return Item::Event(event),
                Err((reason, detail)) => event.into_dead_letter(reason, detail),
            },
        };
        self.begin(Topic::DeadLetter, letter.key());
        self.value.extend_from_slice(&letter.value);
        letter.headers(&mut |name, value| self.headers.push(name, value));
        Item::DeadLetter(letter)
    }

    fn event(
        &mut self,
        event: &Event<'_>,
        rejected: Option<String>,
        topics: &Topics,
    ) -> Result<(), (Reason, String)> {
        if let Some(why) = rejected {
            return Err((Reason::Refused, why));
        }
        if topics.name(event.topic()) == topics.name(Topic::DeadLetter) {
            let detail = "this kind of event is routed to the dead letters";
            return Err((Reason::Unroutable, detail.to_owned()));
        }
        self.begin(event.topic(), event.key());
        event.write_json(&mut self.value);
        event.headers(&mut |name, value| self.headers.push(name, value));
        let bytes = self.wire_bytes();
        if topics.fits(self.topic, bytes) {
            return Ok(());
        }
        Err((Reason::TooLarge, format!("{bytes} bytes are more than the topic takes")))
    }

    fn begin(&mut self, topic: Topic, key: &str) {
        self.topic = topic;
        self.key.clear();
        self.key.push_str(key);
        self.value.clear();
        self.headers.bytes.clear();
        self.headers.ends.clear();
    }

    /// An upper bound of its bytes in a request.
    pub fn wire_bytes(&self) -> usize {
        let Self { key, value, headers, .. } = self;
        let headers = headers.bytes.len() + headers.len() * HEADER_OVERHEAD_BYTES;
        RECORD_OVERHEAD_BYTES + headers + key.len() + value.len()
    }

    /// The record to be sent. Brokers delete by its timestamp, so a record older than half the retention
    /// carries the present time.
    pub fn record<'a>(
        &'a self,
        topics: &'a Topics,
        accepted_ms: u64,
        timestamps: Timestamps,
        now_ms: u64,
        number: usize,
    ) -> Record<'a> {
        let Self { topic, key, value, headers } = self;
        let retention_ms = topics.limits(*topic).retention_ms.unwrap_or(RETENTION_MS);
        let would_expire = now_ms.saturating_sub(accepted_ms) > retention_ms / 2;
        let is_present = timestamps == Timestamps::Present || would_expire;
        let timestamp_ms = (if is_present { now_ms } else { accepted_ms }) as i64;
        Record { topic: topics.name(*topic), key, value, headers, timestamp_ms, number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_pushed() {
        let mut headers = Headers::default();
        let all = [("a", &b"1"[..]), ("", b""), ("name", b"\xff\x00"), ("b", b"")];
        all.iter().for_each(|(name, value)| headers.push(name, value));
        assert_eq!(headers.iter().collect::<Vec<_>>(), all);
        assert_eq!(headers.len(), 4);
    }
}
