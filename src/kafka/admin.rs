//! Topics on the real cluster: whether they exist, their limits, and what puts their records at
//! risk.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use pollster::block_on;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::Consumer,
    metadata::{Metadata, MetadataPartition},
};

use super::{Blocked, Cluster as _, Code, Limits, Obstacle, Risk, Topics, librdkafka::Cluster};
use crate::{
    config::{Config, CreateTopics},
    event::Topic,
};

/// How long a question about topics may take.
pub(super) const CALL: Duration = Duration::from_secs(5);

/// A topic's configuration: Kafka's own names and values, its defaults included.
type TopicSettings = BTreeMap<String, String>;

/// A topic that exists.
#[derive(Debug, Clone, Default)]
pub(crate) struct TopicState {
    pub(crate) partitions: usize,
    /// Of the partition that has fewest.
    pub(crate) replicas: usize,
    /// The same of those that are in sync.
    pub(crate) in_sync: usize,
    /// None: they may not be read.
    pub(crate) settings: Option<TopicSettings>,
}

impl Cluster {
    pub(super) fn cluster_id(&self) -> Result<String, Obstacle> {
        // librdkafka learns the id from any metadata. Without metadata the next call only waits.
        self.metadata(&self.config.topics.position)?;
        let no_id = || Obstacle::new(Blocked::NoBroker, "no broker tells the cluster's id");
        self.unstable.client().fetch_cluster_id(CALL).ok_or_else(no_id)
    }

    /// The metadata of one topic.
    pub(super) fn metadata(&self, topic: &str) -> Result<Metadata, Obstacle> {
        self.unstable.fetch_metadata(Some(topic), CALL).map_err(|error| {
            // The connection's own error is nearer to the cause than a call's timeout. A poll serves
            // one event, and each line of the log is an event.
            (0..10).for_each(|_| drop(self.unstable.poll(Duration::from_millis(10))));
            let no_broker = || Obstacle::new(Blocked::NoBroker, error.to_string());
            self.unstable.context().take_trouble().unwrap_or_else(no_broker)
        })
    }

    /// Creates the topics that are missing. One that may not be created is an obstacle.
    pub(super) fn create_missing(&self) -> Result<(), Obstacle> {
        for (name, allowed) in self.creations() {
            if !self.partitions(name)?.is_empty() {
                continue;
            }
            let Some(allowed) = allowed else {
                let remedy = "create it, set kafka.create_topics, or route it to the dead letters";
                let detail = format!("topic {name} does not exist: {remedy}");
                return Err(Obstacle::new(Blocked::UnknownTopic, detail));
            };
            self.create(name, allowed, false)?;
        }
        Ok(())
    }

    /// The names of all topics, and how each is created if it may be.
    fn creations(&self) -> impl Iterator<Item = (&str, Option<CreateTopics>)> {
        let Config { kafka, topics, .. } = &*self.config;
        let events = Topic::ALL.map(|topic| (topics.name(topic), kafka.create_topics));
        // -1: as many replicas as the brokers give a topic by default.
        let position = CreateTopics { partitions: 1, replication_factor: -1 };
        events.into_iter().chain([(&*topics.position, Some(position))])
    }

    /// The names of all topics that the user may see, and how many brokers there are.
    pub(crate) fn inventory(&self) -> Result<(Vec<String>, usize), Obstacle> {
        let metadata = self.unstable.fetch_metadata(None, CALL)?;
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        Ok((names.collect(), metadata.brokers().len()))
    }

    /// Asks whether a missing topic could be created, if it may be. None is.
    pub(crate) fn try_creation(&self, name: &str) -> Result<(), Obstacle> {
        let create = self.creations().find(|(one, _)| *one == name).and_then(|(_, create)| create);
        create.map_or(Ok(()), |create| self.create(name, create, true))
    }

    /// The state of each topic; none for one that does not exist. librdkafka's mock cluster does not
    /// answer.
    pub(crate) fn topic_states(&self, names: &[&str]) -> Vec<Result<Option<TopicState>, Obstacle>> {
        let mut settings = self.settings(names).unwrap_or_default();
        let state = |name: &&str| -> Result<_, Obstacle> {
            let metadata = self.metadata(name)?;
            let partitions = partitions_of(&metadata)?;
            let fewest =
                |count: fn(&MetadataPartition) -> usize| partitions.iter().map(count).min();
            let Some(replicas) = fewest(|partition| partition.replicas().len()) else {
                return Ok(None);
            };
            Ok(Some(TopicState {
                partitions: partitions.len(),
                replicas,
                in_sync: fewest(|partition| partition.isr().len()).unwrap_or_default(),
                settings: settings.remove(*name),
            }))
        };
        names.iter().map(state).collect()
    }

    fn create(&self, name: &str, create: CreateTopics, is_trial: bool) -> Result<(), Obstacle> {
        let CreateTopics { partitions, replication_factor } = create;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication_factor));
        let options = AdminOptions::new().operation_timeout(Some(CALL)).request_timeout(Some(CALL));
        let options = options.validate_only(is_trial);
        let admin: AdminClient<DefaultClientContext> = self.base.create()?;
        let created = block_on(admin.create_topics([&topic], &options))?.pop();
        if let Some(Err((_, code))) = created
            && code != Code::TopicAlreadyExists
        {
            let detail = format!("topic {name} is missing and cannot be created: {code}");
            return Err(Obstacle::new(Blocked::UnknownTopic, detail));
        }
        if !is_trial {
            tracing::info!(topic = name, partitions, "a missing topic was created");
        }
        Ok(())
    }

    /// Reads the topics' limits, and sets the metric of topics at risk.
    pub(super) fn topics(&self) -> Result<Topics, Obstacle> {
        let cluster_id = self.cluster_id()?;
        let names = &self.config.topics;
        let events = Topic::ALL.map(|topic| names.name(topic));
        // librdkafka's mock cluster never answers such calls.
        let settings = match cluster_id.starts_with("mockCluster") {
            true => HashMap::new(),
            false => self.settings(&events)?,
        };
        let mut limits = HashMap::new();
        for name in events {
            let metadata = self.metadata(name)?;
            // Without the right to look at a topic, its risks are not known.
            let partitions = partitions_of(&metadata).unwrap_or_default();
            let alone = |partition: &MetadataPartition| partition.replicas().len() < 2;
            let gauge = self.metrics.kafka_topic_risky.with_label_values(&[name, "replication"]);
            gauge.set(partitions.iter().any(alone).into());
            if let Some(settings) = settings.get(name) {
                limits.insert(name.to_owned(), self.limits(name, settings, partitions));
            }
        }
        Ok(Topics { cluster_id, names: names.clone(), limits })
    }

    /// By topic. Those that may not be read are left out; a client that cannot be made is an obstacle.
    fn settings(&self, names: &[&str]) -> Result<HashMap<String, TopicSettings>, Obstacle> {
        let topics: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(CALL));
        let admin: AdminClient<DefaultClientContext> = self.base.create()?;
        let described = block_on(admin.describe_configs(&topics, &options));
        let described = described.unwrap_or_else(|error| {
            tracing::warn!(%error, "the topics' configuration cannot be read: limits and risks are not checked");
            Vec::new()
        });
        let mut settings = HashMap::new();
        for (name, described) in names.iter().zip(described) {
            match described {
                Ok(found) => {
                    let entries = found.entries.into_iter();
                    let set = entries.filter_map(|entry| Some((entry.name, entry.value?)));
                    settings.insert((*name).to_owned(), set.collect());
                }
                Err(code) => {
                    tracing::warn!(topic = %name, %code, "the topic's configuration cannot be read: its limits and risks are not checked");
                }
            }
        }
        Ok(settings)
    }

    fn limits(
        &self,
        name: &str,
        settings: &TopicSettings,
        partitions: &[MetadataPartition],
    ) -> Limits {
        let value = |key: &str| settings.get(key).map(String::as_str);
        for risk in Risk::ALL {
            let (risky, risk) = (risk.is_in(value), risk.as_str());
            let gauge = self.metrics.kafka_topic_risky.with_label_values(&[name, risk]);
            if risky && gauge.get() == 0 {
                tracing::warn!(
                    topic = name,
                    risk,
                    "the topic's configuration lets Kafka lose events"
                );
            }
            gauge.set(risky.into());
        }
        let min_insync = value("min.insync.replicas").and_then(|replicas| replicas.parse().ok());
        Limits {
            max_message_bytes: value("max.message.bytes").and_then(|bytes| bytes.parse().ok()),
            // -1 means for ever.
            retention_ms: value("retention.ms").map(|ms| ms.parse().unwrap_or(u64::MAX)),
            too_few_in_sync: min_insync.and_then(|min| too_few_in_sync(partitions, min)),
        }
    }
}

/// Empty if the topic does not exist. One that may not be looked at is an obstacle.
pub(super) fn partitions_of(metadata: &Metadata) -> Result<&[MetadataPartition], Obstacle> {
    let Some(topic) = metadata.topics().first() else { return Ok(&[]) };
    let Some(code) = topic.error().map(Code::from) else { return Ok(topic.partitions()) };
    match Blocked::by(code) {
        Blocked::UnknownTopic => Ok(&[]),
        blocked => Err(Obstacle::new(blocked, format!("topic {}: {code}", topic.name()))),
    }
}

/// The replicas in sync of a partition that takes no record for want of them, and how many it needs. A
/// partition with fewer replicas than `min.insync.replicas` needs all that it has.
fn too_few_in_sync(partitions: &[MetadataPartition], min: usize) -> Option<(usize, usize)> {
    let is_weak = |partition: &&MetadataPartition| {
        partition.isr().len() < min.min(partition.replicas().len())
    };
    let weak = partitions.iter().filter(is_weak).map(|partition| partition.isr().len()).min();
    weak.map(|in_sync| (in_sync, min))
}
