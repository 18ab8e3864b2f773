//! The topics in use: their names and their limits.

use std::collections::HashMap;

use super::{Blocked, Obstacle};
use crate::{
    config,
    event::{Topic, named},
};

/// No event is smaller, its headers included.
const EVENT_BYTES_MIN: usize = 512;

/// The topics in use.
#[derive(Debug)]
pub struct Topics {
    /// Identifies the cluster, and never changes.
    pub cluster_id: String,
    /// All configured names.
    pub names: config::Topics,
    /// By name.
    pub limits: HashMap<String, Limits>,
}

/// The limits of one topic, as far as they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// `max.message.bytes`.
    pub max_message_bytes: Option<usize>,
    /// `retention.ms`.
    pub retention_ms: Option<u64>,
    /// Of a partition that has too few replicas in sync: how many those are, and `min.insync.replicas`.
    pub too_few_in_sync: Option<(usize, usize)>,
}

named! {
    /// A setting of a topic that lets Kafka lose events.
    Risk {
        /// An event that one broker alone has counts as kept.
        MinInsync = "min_insync",
        /// A broker that lacks events may lead.
        Unclean = "unclean",
        /// Only the last event of each key stays.
        Compacted = "compacted",
    }
}

impl Risk {
    /// Whether settings, by Kafka's own names, have it.
    pub(crate) fn is_in<'a>(self, setting: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::MinInsync => setting("min.insync.replicas") == Some("1"),
            Self::Unclean => setting("unclean.leader.election.enable") == Some("true"),
            Self::Compacted => {
                setting("cleanup.policy").is_some_and(|policy| policy.contains("compact"))
            }
        }
    }
}

impl Topics {
    /// The configured name of a topic.
    pub fn name(&self, topic: Topic) -> &str {
        self.names.name(topic)
    }

    pub(super) fn limits(&self, topic: Topic) -> Limits {
        self.limits.get(self.name(topic)).copied().unwrap_or_default()
    }

    /// Whether a record of so many bytes is within the topic's limit, as far as the limit is known.
    pub fn fits(&self, topic: Topic, bytes: usize) -> bool {
        self.limits(topic).max_message_bytes.is_none_or(|max| bytes <= max)
    }

    /// A topic that takes no event, and its `max.message.bytes`.
    pub fn too_small(&self) -> Option<(&str, usize)> {
        let limit = |topic| Some((self.name(topic), self.limits(topic).max_message_bytes?));
        // What the dead letters' topic refuses goes into quarantine.
        let events = Topic::ALL.into_iter().filter(|topic| *topic != Topic::DeadLetter);
        events.filter_map(limit).find(|(_, max)| *max < EVENT_BYTES_MIN)
    }

    /// The obstacle with its cause, if the cause is a partition that takes no record because too few of
    /// its replicas are in sync. librdkafka retries, and in the end says only that time ran out. Any other
    /// error of Kafka counts as the same: the transaction before cannot be completed, and one of several
    /// codes says so.
    pub fn explain(&self, obstacle: Obstacle) -> Obstacle {
        if !matches!(obstacle.blocked, Blocked::NoBroker | Blocked::TooSlow | Blocked::KafkaError) {
            return obstacle;
        }
        let mut limits = self.limits.iter();
        let weak = limits.find_map(|(name, limits)| Some((name, limits.too_few_in_sync?)));
        let Some((name, (in_sync, min))) = weak else { return obstacle };
        let detail = format!(
            "a partition of topic {name} has {in_sync} replicas in sync, and its \
             min.insync.replicas is {min} ({})",
            obstacle.detail
        );
        Obstacle::new(Blocked::TooFewReplicas, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_replicas_explain_a_broker_that_is_away_or_slow_and_nothing_else() {
        let explained = |in_sync: Option<usize>, blocked| {
            let too_few_in_sync = in_sync.map(|in_sync| (in_sync, 2));
            let limits = Limits { too_few_in_sync, ..Limits::default() };
            let limits = HashMap::from([("statuses".to_owned(), limits)]);
            let names = config::Config::default().topics;
            let topics = Topics { cluster_id: String::new(), names, limits };
            topics.explain(Obstacle::new(blocked, "librdkafka's words")).to_string()
        };
        let said = "too_few_replicas: a partition of topic statuses has 1 replicas in sync, and its \
                    min.insync.replicas is 2 (librdkafka's words)";
        for vague in [Blocked::NoBroker, Blocked::TooSlow, Blocked::KafkaError] {
            assert_eq!(explained(Some(1), vague), said, "{vague:?}");
            assert!(explained(None, vague).ends_with(": librdkafka's words"), "{vague:?}");
        }
        assert_eq!(
            explained(Some(1), Blocked::NotAuthorized),
            "not_authorized: librdkafka's words"
        );
    }
}
