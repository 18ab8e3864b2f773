//! What a topic is in the cluster, for those who look whether it is well.

use std::collections::{BTreeMap, HashMap};

use rdkafka::metadata::MetadataPartition;

use super::{Obstacle, admin::partitions_of, librdkafka::Cluster};

/// A topic that exists.
#[derive(Debug, Clone, Default)]
pub(crate) struct TopicState {
    pub(crate) partitions: usize,
    /// Of the partition that has fewest.
    pub(crate) replicas: usize,
    /// The same of those that are in sync.
    pub(crate) in_sync: usize,
    /// Kafka's own names and values, its defaults included. None: they may not be read.
    pub(crate) settings: Option<BTreeMap<String, String>>,
}

impl Cluster {
    /// The state of each topic; none for one that does not exist. librdkafka's mock cluster does not
    /// answer.
    ///
    /// # Errors
    /// No broker answers, or a topic may not be looked at.
    pub(crate) fn topic_states(&self, names: &[&str]) -> Vec<Result<Option<TopicState>, Obstacle>> {
        let mut settings = self.settings(names);
        let state = |name: &&str| {
            let metadata = self.metadata(name)?;
            let Some(partitions) = partitions_of(&metadata, name)? else { return Ok(None) };
            let fewest = |count: fn(&MetadataPartition) -> usize| {
                partitions.iter().map(count).min().unwrap_or_default()
            };
            Ok(Some(TopicState {
                partitions: partitions.len(),
                replicas: fewest(|partition| partition.replicas().len()),
                in_sync: fewest(|partition| partition.isr().len()),
                settings: settings.remove(*name),
            }))
        };
        names.iter().map(state).collect()
    }

    /// By topic. Those that may not be read are left out.
    fn settings(&self, names: &[&str]) -> HashMap<String, BTreeMap<String, String>> {
        let described = self.described(names).ok().and_then(Result::ok).unwrap_or_default();
        let named = names.iter().zip(described).filter_map(|(name, described)| {
            let entries = described.ok()?.entries.into_iter();
            let set = entries.filter_map(|entry| Some((entry.name, entry.value?)));
            Some(((*name).to_owned(), set.collect()))
        });
        named.collect()
    }
}
