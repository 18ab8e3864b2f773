//! Which Apache Kafka a broker is. No request asks for it, but each version offers newer versions of some
//! requests (`ApiVersions`), and librdkafka logs what is offered.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
};

use super::{admin::CALL, librdkafka::Cluster};
use crate::config::client::consumer_config;

/// Versions on which exactly once is proved (deploy/RELIABILITY.md).
pub(crate) const PROVED: [&str; 2] = ["4.1", "4.4"];

/// The newest version first, and what its brokers offer and those before do not: a request's key and its
/// highest version. From `common/message/*Request.json` of kafka-clients 3.9.1, 4.0.0, 4.1.2, 4.2.0, 4.3.0 and
/// 4.4.0.
const OFFERED_SINCE: [(&str, i16, i16); 5] =
    [("4.4", 28, 6), ("4.3", 35, 5), ("4.2", 2, 11), ("4.1", 1, 18), ("4.0", 0, 12)];
/// The highest versions that 4.4 offers.
const OFFERED_LAST: [(i16, i16); 6] = [
    (0, 13), // Produce
    (1, 18), // Fetch
    (2, 11), // ListOffsets
    (18, 5), // ApiVersions
    (28, 6), // TxnOffsetCommit
    (35, 5), // DescribeLogDirs
];

/// A request's key and the highest version that is offered.
type OfferedVersions = BTreeMap<i16, i16>;

impl Cluster {
    /// The version of the brokers; of a mixture, what all of them offer. None: they do not say.
    pub(crate) fn broker_version(&self) -> Option<&'static str> {
        let mut config = consumer_config(&self.base, &self.group);
        config.set("debug", "feature").set_log_level(RDKafkaLogLevel::Debug);
        let context = LogReader::default();
        let client = BaseConsumer::from_config_and_context(&config, context).ok()?;
        client.fetch_metadata(Some(&self.config.topics.position), CALL).ok()?;
        // Each poll ends at one event, and each line of the log is one.
        let has_grown = || client.context().has_grown.swap(false, Ordering::Relaxed);
        while client.poll(Duration::from_millis(20)).is_some() || has_grown() {}
        let offered = client.context().offered.lock();
        (!offered.is_empty()).then(|| version(&offered))
    }
}

fn version(offered: &OfferedVersions) -> &'static str {
    let highest = |key: i16| offered.get(&key).copied().unwrap_or(-1);
    if OFFERED_LAST.iter().any(|(key, last)| highest(*key) > *last) {
        return "later than 4.4";
    }
    let found = OFFERED_SINCE.iter().find(|(_, key, since)| highest(*key) >= *since);
    found.map_or("earlier than 4.0, or another product", |(version, ..)| *version)
}

/// Reads librdkafka's log.
#[derive(Default)]
struct LogReader {
    offered: Mutex<OfferedVersions>,
    /// There was a line since the last look.
    has_grown: AtomicBool,
}

impl ClientContext for LogReader {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, message: &str) {
        self.has_grown.store(true, Ordering::Relaxed);
        if let Some((key, highest)) = offered_in(message) {
            let mut offered = self.offered.lock();
            let least = offered.entry(key).or_insert(highest);
            *least = highest.min(*least);
        }
    }
}

impl ConsumerContext for LogReader {}

/// `…  ApiKey Produce (0) Versions 0..13` (librdkafka 2.12.1, `rd_kafka_handle_ApiVersion`).
fn offered_in(line: &str) -> Option<(i16, i16)> {
    let (_, request) = line.split_once("  ApiKey ")?;
    let (name_and_key, versions) = request.split_once(") Versions ")?;
    let (_, key) = name_and_key.rsplit_once('(')?;
    let (_, highest) = versions.split_once("..")?;
    Some((key.parse().ok()?, highest.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_by_what_is_offered() {
        let told = |offered: &[(i16, i16)]| version(&offered.iter().copied().collect());
        for (produce, fetch, list, directories, commit, expected) in [
            (11, 17, 9, 4, 4, "earlier than 4.0, or another product"),
            (12, 17, 10, 4, 5, "4.0"),
            (13, 18, 10, 4, 5, "4.1"),
            (13, 18, 11, 4, 5, "4.2"),
            (13, 18, 11, 5, 5, "4.3"),
            (13, 18, 11, 5, 6, "4.4"),
            (14, 18, 11, 5, 6, "later than 4.4"),
        ] {
            let offered = [(0, produce), (1, fetch), (2, list), (35, directories), (28, commit)];
            assert_eq!(told(&offered), expected);
        }
    }

    #[test]
    fn what_is_offered_is_read_from_librdkafkas_log() {
        let line = "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1:   ApiKey Produce (0) Versions 0..13";
        assert_eq!(offered_in(line), Some((0, 13)));
        let line = "[thrd:b]: b:   ApiKey Unknown-93? (93) Versions 0..0";
        assert_eq!(offered_in(line), Some((93, 0)));
        assert_eq!(offered_in("[thrd:b]: b: Broker API support:"), None);
    }
}
