//! Names of the topics. The mock cluster's process creates them; on a real Kafka the edge does.

pub(crate) const PARTITIONS: i32 = 12;
pub(crate) const STATUSES: &str = "message-status";
pub(crate) const EVENTS: [&str; 4] = [STATUSES, "inbound-message", "channel-event", "dead-letter"];
pub(crate) const POSITION: &str = "edge-position";
/// A topic that the edge does not use.
pub(crate) const OUTSIDE: &str = "outside";
pub(crate) const MOCK_PREFIX: &str = "weni";

/// The full name of a topic, such as `message-status`.
pub(crate) fn topic(prefix: &str, name: &str) -> String {
    format!("{prefix}.{name}.v1")
}
