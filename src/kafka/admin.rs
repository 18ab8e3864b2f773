//! Topics on the real cluster: whether they exist, their limits, and what puts their records at
//! risk.

use std::{collections::HashMap, time::Duration};

use pollster::block_on;
use rdkafka::{
    admin::{
        AdminClient, AdminOptions, ConfigResource, ConfigResourceResult, NewTopic,
        ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::Consumer,
    error::KafkaResult,
    metadata::{Metadata, MetadataPartition},
};

use super::{Blocked, Code, Limits, Obstacle, Risk, Topics, librdkafka::Cluster};
use crate::{
    config::{Config, CreateTopics},
    event::Topic,
};

const CALL: Duration = Duration::from_secs(5);

impl Cluster {
    /// # Errors
    /// No broker answers.
    pub(super) fn cluster_id(&self) -> Result<String, Obstacle> {
        // librdkafka learns the id from any metadata. Without metadata the next call only waits.
        self.metadata(&self.config.topics.position)?;
        let no_id = || Obstacle::new(Blocked::NoBroker, "no broker tells the cluster's id");
        self.unstable.client().fetch_cluster_id(CALL).ok_or_else(no_id)
    }

    /// The metadata of one topic.
    ///
    /// # Errors
    /// No broker answers.
    pub(super) fn metadata(&self, topic: &str) -> Result<Metadata, Obstacle> {
        self.unstable.fetch_metadata(Some(topic), CALL).map_err(|error| {
            // The connection's own error is nearer to the cause than a call's timeout. Each poll
            // ends at one event, and log lines are events too.
            (0..10).for_each(|_| drop(self.unstable.poll(Duration::from_millis(10))));
            let no_broker = || Obstacle::new(Blocked::NoBroker, error.to_string());
            self.unstable.context().take_trouble().unwrap_or_else(no_broker)
        })
    }

    /// Creates the topics that are missing.
    ///
    /// # Errors
    /// A topic of events is missing and may not be created.
    pub(super) fn create_missing(&self) -> Result<(), Obstacle> {
        for (name, allowed) in self.creations() {
            if self.exists(name)? {
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

    /// Asks whether a missing topic could be created, if it may be. None is.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) fn try_creation(&self, name: &str) -> Result<(), Obstacle> {
        let create = self.creations().find(|(one, _)| *one == name).and_then(|(_, create)| create);
        create.map_or(Ok(()), |create| self.create(name, create, true))
    }

    /// # Errors
    /// No broker answers, or the topic may not be looked at.
    pub fn exists(&self, name: &str) -> Result<bool, Obstacle> {
        Ok(partitions_of(&self.metadata(name)?, name)?.is_some())
    }

    fn create(&self, name: &str, create: CreateTopics, is_trial: bool) -> Result<(), Obstacle> {
        let CreateTopics { partitions, replication_factor } = create;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication_factor));
        let options = AdminOptions::new().operation_timeout(Some(CALL)).request_timeout(Some(CALL));
        let options = options.validate_only(is_trial);
        let created = block_on(self.admin()?.create_topics([&topic], &options));
        match created.map_err(Obstacle::kafka)?.pop() {
            Some(Err((_, code))) if code != Code::TopicAlreadyExists => {
                let detail = format!("topic {name} is missing and cannot be created: {code}");
                Err(Obstacle::new(Blocked::UnknownTopic, detail))
            }
            _ if is_trial => Ok(()),
            _ => {
                tracing::info!(topic = name, partitions, "a missing topic was created");
                Ok(())
            }
        }
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, Obstacle> {
        self.base.create().map_err(Obstacle::kafka)
    }

    /// Reads the topics' limits, and sets the metric of topics at risk.
    ///
    /// # Errors
    /// No broker answers.
    pub(super) fn topics(&self, cluster_id: &str) -> Result<Topics, Obstacle> {
        let names = &self.config.topics;
        let events = Topic::ALL.map(|topic| names.name(topic));
        // librdkafka's mock cluster never answers such calls.
        let mut limits = match cluster_id.starts_with("mockCluster") {
            true => HashMap::new(),
            false => self.describe(&events)?,
        };
        for name in events {
            let metadata = self.metadata(name)?;
            let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
            let alone = |partition: &MetadataPartition| partition.replicas().len() < 2;
            let gauge = self.metrics.kafka_topic_risky.with_label_values(&[name, "replication"]);
            gauge.set(partitions.iter().any(alone).into());
            if let Some(limits) = limits.get_mut(name) {
                limits.too_few_in_sync = too_few_in_sync(partitions, limits.min_insync);
            }
        }
        Ok(Topics::new(names.clone(), limits))
    }

    /// Reads the topics' configuration. Without the right to read it, there are no limits to
    /// compare.
    fn describe(&self, names: &[&str]) -> Result<HashMap<String, Limits>, Obstacle> {
        let resources = self.described(names)?.unwrap_or_else(|error| {
            tracing::warn!(%error, "the topics' configuration cannot be read: limits and risks are not checked");
            Vec::new()
        });
        let mut limits = HashMap::new();
        for (name, resource) in names.iter().zip(resources) {
            match resource {
                Ok(resource) => {
                    limits.insert((*name).to_owned(), self.limits(name, &resource));
                }
                Err(code) => {
                    tracing::warn!(topic = %name, %code, "the topic's configuration cannot be read: its limits and risks are not checked");
                }
            }
        }
        Ok(limits)
    }

    /// The topics' configurations, in the order of their names.
    ///
    /// # Errors
    /// Outside, that no client can be made; inside, that the cluster does not answer.
    pub(super) fn described(
        &self,
        names: &[&str],
    ) -> Result<KafkaResult<Vec<ConfigResourceResult>>, Obstacle> {
        let topics: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(CALL));
        Ok(block_on(self.admin()?.describe_configs(&topics, &options)))
    }

    fn limits(&self, name: &str, resource: &ConfigResource) -> Limits {
        let value = |key: &str| resource.get(key).and_then(|entry| entry.value.as_deref());
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
        Limits {
            max_message_bytes: value("max.message.bytes").and_then(|bytes| bytes.parse().ok()),
            // -1 means for ever.
            retention_ms: value("retention.ms").map(|ms| ms.parse().unwrap_or(u64::MAX)),
            min_insync: value("min.insync.replicas").and_then(|replicas| replicas.parse().ok()),
            too_few_in_sync: None,
        }
    }
}

/// None if the topic does not exist.
///
/// # Errors
/// It may not be looked at.
pub(super) fn partitions_of<'a>(
    metadata: &'a Metadata,
    name: &str,
) -> Result<Option<&'a [MetadataPartition]>, Obstacle> {
    let Some(topic) = metadata.topics().first() else { return Ok(None) };
    let Some(code) = topic.error().map(Code::from) else {
        return Ok(Some(topic.partitions()).filter(|partitions| !partitions.is_empty()));
    };
    match Blocked::by(code) {
        Blocked::UnknownTopic => Ok(None),
        blocked => Err(Obstacle::new(blocked, format!("topic {name}: {code}"))),
    }
}

/// The replicas in sync of a partition that takes no record for want of them. A partition with fewer
/// replicas than `min.insync.replicas` needs all that it has.
fn too_few_in_sync(partitions: &[MetadataPartition], min: Option<usize>) -> Option<usize> {
    let min = min?;
    let weak = partitions
        .iter()
        .filter(|partition| partition.isr().len() < min.min(partition.replicas().len()));
    weak.map(|partition| partition.isr().len()).min()
}
