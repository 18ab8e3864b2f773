//! The topics in use: their names and their limits.

use std::collections::HashMap;

use super::{Blocked, Obstacle};
use crate::{config, event::Topic};

/// Retention that is assumed where it cannot be read.
const RETENTION_MS: u64 = 24 * 60 * 60 * 1000;

/// No event is smaller, its headers included.
const EVENT_BYTES_MIN: usize = 512;

/// The topics in use.
#[derive(Debug)]
pub struct Topics {
    names: config::Topics,
    limits: HashMap<String, Limits>,
}

/// The limits of one topic, as far as they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// `max.message.bytes`.
    pub max_message_bytes: Option<usize>,
    /// `retention.ms`.
    pub retention_ms: Option<u64>,
    /// `min.insync.replicas`.
    pub min_insync: Option<usize>,
    /// The number of replicas in sync of a partition that has too few of them.
    pub too_few_in_sync: Option<usize>,
}

/// The time that a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamps {
    /// When its callback was accepted.
    Accepted,
    /// When it is sent: a broker refused the time of acceptance.
    Present,
}

impl Topics {
    /// Limits are by the topic's name.
    pub fn new(names: config::Topics, limits: HashMap<String, Limits>) -> Self {
        Self { names, limits }
    }

    /// The configured name of a topic.
    pub fn name(&self, topic: Topic) -> &str {
        self.names.name(topic)
    }

    /// All configured names.
    pub fn names(&self) -> &config::Topics {
        &self.names
    }

    /// Whether a record of so many bytes is within the topic's limit, as far as the limit is known.
    pub fn fits(&self, topic: Topic, bytes: usize) -> bool {
        let limits = self.limits.get(self.name(topic));
        limits.and_then(|limits| limits.max_message_bytes).is_none_or(|max| bytes <= max)
    }

    /// The timestamp of a record, in milliseconds since 1970. Brokers delete by it, so a record
    /// older than half the retention carries the present time.
    pub fn timestamp_ms(
        &self,
        topic: Topic,
        accepted_ms: u64,
        timestamps: Timestamps,
        now_ms: u64,
    ) -> i64 {
        let limits = self.limits.get(self.name(topic));
        let retention_ms = limits.and_then(|limits| limits.retention_ms).unwrap_or(RETENTION_MS);
        let would_expire = now_ms.saturating_sub(accepted_ms) > retention_ms / 2;
        let present = timestamps == Timestamps::Present || would_expire;
        (if present { now_ms } else { accepted_ms }) as i64
    }

    /// A topic that takes no event, and its `max.message.bytes`.
    pub fn too_small(&self) -> Option<(&str, usize)> {
        let limit = |topic| {
            let name = self.name(topic);
            Some((name, self.limits.get(name)?.max_message_bytes?))
        };
        // What the dead letters' topic refuses goes into quarantine.
        let events = Topic::ALL.into_iter().filter(|topic| *topic != Topic::DeadLetter);
        events.filter_map(limit).find(|(_, max)| *max < EVENT_BYTES_MIN)
    }

    /// The cause of a failure that names none: a partition takes no record until more of its
    /// replicas are in sync. librdkafka tries again, and says in the end only that time ran out.
    pub fn cause_of(&self, obstacle: Option<&Obstacle>) -> Option<Obstacle> {
        let blocked = obstacle.map(|obstacle| obstacle.blocked);
        if !matches!(blocked, None | Some(Blocked::NoBroker | Blocked::TooSlow)) {
            return None;
        }
        self.limits.iter().find_map(|(name, limits)| {
            let (in_sync, min) = (limits.too_few_in_sync?, limits.min_insync?);
            let detail = format!(
                "a partition of topic {name} has {in_sync} replicas in sync, and its \
                 min.insync.replicas is {min}"
            );
            Some(Obstacle::new(Blocked::TooFewReplicas, detail))
        })
    }

    /// The smallest `max.message.bytes` of all topics: what a request may hold for a partition.
    pub fn max_message_bytes(&self) -> Option<usize> {
        self.limits.values().filter_map(|limits| limits.max_message_bytes).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_replicas_explain_what_names_no_cause_and_nothing_else() {
        let limits =
            |too_few_in_sync| Limits { min_insync: Some(2), too_few_in_sync, ..Limits::default() };
        let topics = |too_few_in_sync| {
            let limits = HashMap::from([("statuses".to_owned(), limits(too_few_in_sync))]);
            Topics::new(config::Config::default().topics, limits)
        };
        let cause = |topics: &Topics, blocked: Option<Blocked>| {
            let obstacle = blocked.map(|blocked| Obstacle::new(blocked, "librdkafka's words"));
            topics.cause_of(obstacle.as_ref()).map(|cause| cause.to_string())
        };
        let weak = topics(Some(1));
        let said = "too_few_replicas: a partition of topic statuses has 1 replicas in sync, and its \
                    min.insync.replicas is 2";
        for vague in [None, Some(Blocked::NoBroker), Some(Blocked::TooSlow)] {
            assert_eq!(cause(&weak, vague).as_deref(), Some(said), "{vague:?}");
            assert_eq!(cause(&topics(None), vague), None, "{vague:?}");
        }
        assert_eq!(cause(&weak, Some(Blocked::NotAuthorized)), None);
    }
}
