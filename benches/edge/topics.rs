//! The topics, of which the mock cluster's process makes those that a real Kafka is asked for.

pub(crate) const PARTITIONS: i32 = 12;
pub(crate) const STATUSES: &str = "message-status";
pub(crate) const EVENTS: [&str; 4] = [STATUSES, "inbound-message", "channel-event", "dead-letter"];
pub(crate) const POSITION: &str = "edge-position";
/// A topic that the edge knows nothing of.
pub(crate) const OUTSIDE: &str = "outside";
pub(crate) const MOCK_PREFIX: &str = "weni";

/// `message-status` as it is called in a cluster.
pub(crate) fn topic(prefix: &str, name: &str) -> String {
    format!("{prefix}.{name}.v1")
}
