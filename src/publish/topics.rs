//! The topics as the cluster has them: there or not, how much they take, how risky they are.

use std::{collections::HashMap, future::Future, time::Duration};

use rdkafka::{
    ClientConfig,
    admin::{
        AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    metadata::MetadataTopic,
    types::RDKafkaErrorCode as Code,
};

use super::{
    faults::{Blocked, Fault, Obstacle, whose},
    transaction::Context,
};
use crate::{config, event::Topic, metrics::Metrics};

const CALL: Duration = Duration::from_secs(5);
/// Retention that is assumed where it cannot be read.
const RETENTION_MS: u64 = 24 * 60 * 60 * 1000;

/// The names in use, and what the cluster says of them.
#[derive(Debug)]
pub(super) struct Topics {
    names: config::Topics,
    limits: HashMap<String, Limits>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    max_message_bytes: Option<usize>,
    retention_ms: Option<u64>,
}

impl Topics {
    pub(super) fn name(&self, topic: Topic) -> &str {
        match topic {
            Topic::MessageStatus => &self.names.message_status,
            Topic::InboundMessage => &self.names.inbound_message,
            Topic::ChannelEvent => &self.names.channel_event,
            Topic::DeadLetter => &self.names.dead_letter,
        }
    }

    pub(super) fn dead_letter(&self) -> &str {
        &self.names.dead_letter
    }

    pub(super) fn names(&self) -> &config::Topics {
        &self.names
    }

    /// Whether a record of so many bytes is within the topic's limit, as far as that is known.
    pub(super) fn fits(&self, topic: &str, bytes: usize) -> bool {
        let limits = self.limits.get(topic);
        limits.and_then(|limits| limits.max_message_bytes).is_none_or(|max| bytes <= max)
    }

    /// Whether a record so old could be deleted before it is read: brokers judge by its timestamp.
    pub(super) fn would_expire(&self, topic: &str, age_ms: u64) -> bool {
        let limits = self.limits.get(topic);
        match limits.and_then(|limits| limits.retention_ms) {
            Some(retention_ms) => age_ms > retention_ms / 2,
            None => age_ms > RETENTION_MS / 2,
        }
    }

    /// The smallest limit of them all: what a batch may hold.
    pub(super) fn max_message_bytes(&self) -> Option<usize> {
        self.limits.values().filter_map(|limits| limits.max_message_bytes).min()
    }
}

/// The cluster's id.
///
/// # Errors
/// When no broker answers.
pub(super) fn cluster_id(
    consumer: &BaseConsumer<Context>,
    topic: &str,
) -> Result<String, Obstacle> {
    // Asking for metadata brings the id along; asking for the id waits for whoever asks next.
    with_metadata(consumer, topic, |_| Ok(()))?;
    let no_id = || Obstacle::new(Blocked::NoBroker, "no broker tells the cluster's id");
    consumer.client().fetch_cluster_id(CALL).ok_or_else(no_id)
}

/// Looks at all topics; creates those that are missing and may be created.
///
/// # Errors
/// What stands in the way of publishing.
pub(super) fn check(
    consumer: &BaseConsumer<Context>,
    client: &ClientConfig,
    kafka: &config::Kafka,
    names: &config::Topics,
    metrics: &Metrics,
    cluster_id: &str,
) -> Result<Topics, Obstacle> {
    let events =
        [&names.message_status, &names.inbound_message, &names.channel_event, &names.dead_letter];
    let admin: AdminClient<DefaultClientContext> = client.create().map_err(Obstacle::kafka)?;
    for name in events {
        if !exists(consumer, name)? {
            let Some(create) = kafka.create_topics else { return Err(Obstacle::missing(name)) };
            self::create(&admin, name, create)?;
        }
    }
    if !exists(consumer, &names.position)? {
        // -1: as many replicas as the brokers give a topic by default.
        let create = config::CreateTopics { partitions: 1, replication_factor: -1 };
        self::create(&admin, &names.position, create)?;
    }
    look(consumer, client, names, metrics, cluster_id)
}

/// Looks at the topics that are there.
///
/// # Errors
/// When no broker answers.
pub(super) fn look(
    consumer: &BaseConsumer<Context>,
    client: &ClientConfig,
    names: &config::Topics,
    metrics: &Metrics,
    cluster_id: &str,
) -> Result<Topics, Obstacle> {
    let events =
        [&names.message_status, &names.inbound_message, &names.channel_event, &names.dead_letter];
    let admin: AdminClient<DefaultClientContext> = client.create().map_err(Obstacle::kafka)?;
    // librdkafka's mock cluster does not answer such calls at all.
    let limits = if cluster_id.starts_with("mockCluster") {
        HashMap::new()
    } else {
        describe(&admin, &events, metrics)
    };
    for name in events {
        risk(consumer, name, "replication", metrics, |topic| {
            topic.partitions().iter().any(|partition| partition.replicas().len() < 2)
        })?;
    }
    Ok(Topics { names: names.clone(), limits })
}

/// The partitions of a topic; none if it is not there.
///
/// # Errors
/// When no broker answers.
pub(super) fn partitions(
    consumer: &BaseConsumer<Context>,
    name: &str,
) -> Result<Vec<i32>, Obstacle> {
    with_metadata(consumer, name, |topic| {
        let partitions = topic.map(MetadataTopic::partitions).unwrap_or_default();
        Ok(partitions.iter().map(|partition| partition.id()).collect())
    })
}

fn with_metadata<T>(
    consumer: &BaseConsumer<Context>,
    name: &str,
    read: impl FnOnce(Option<&MetadataTopic>) -> Result<T, Obstacle>,
) -> Result<T, Obstacle> {
    match consumer.fetch_metadata(Some(name), CALL) {
        Ok(metadata) => read(metadata.topics().first()),
        Err(error) => {
            let obstacle = Obstacle::kafka(error);
            // What the connection itself says is nearer to the cause than a call's timeout.
            // A poll ends with each error that it finds, and log lines lie between them.
            (0..10).for_each(|_| drop(consumer.poll(Duration::from_millis(10))));
            let trouble = consumer.context().take_trouble();
            Err(Obstacle { blocked: trouble.unwrap_or(Blocked::NoBroker), ..obstacle })
        }
    }
}

fn exists(consumer: &BaseConsumer<Context>, name: &str) -> Result<bool, Obstacle> {
    with_metadata(consumer, name, |topic| {
        let Some(code) = topic.and_then(MetadataTopic::error).map(Code::from) else {
            return Ok(topic.is_some_and(|topic| !topic.partitions().is_empty()));
        };
        match whose(code) {
            Fault::Everyone(Blocked::UnknownTopic) => Ok(false),
            Fault::Everyone(blocked) => {
                Err(Obstacle { blocked, detail: format!("topic {name}: {code}") })
            }
            _ => Err(Obstacle {
                blocked: Blocked::KafkaError,
                detail: format!("topic {name}: {code}"),
            }),
        }
    })
}

fn risk(
    consumer: &BaseConsumer<Context>,
    name: &str,
    risk: &str,
    metrics: &Metrics,
    risky: impl Fn(&MetadataTopic) -> bool,
) -> Result<(), Obstacle> {
    with_metadata(consumer, name, |topic| {
        let gauge = metrics.kafka_topic_risky.with_label_values(&[name, risk]);
        gauge.set(topic.is_some_and(risky).into());
        Ok(())
    })
}

fn create(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
    create: config::CreateTopics,
) -> Result<(), Obstacle> {
    let config::CreateTopics { partitions, replication_factor } = create;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication_factor));
    let failed = |code: Code| {
        let detail = format!("topic {name} is missing and cannot be created: {code}");
        Obstacle { blocked: Blocked::UnknownTopic, detail }
    };
    let options = AdminOptions::new().operation_timeout(Some(CALL)).request_timeout(Some(CALL));
    let results = wait(admin.create_topics([&topic], &options)).map_err(Obstacle::kafka)?;
    match results.into_iter().next() {
        Some(Err((_, code))) if code != Code::TopicAlreadyExists => Err(failed(code)),
        _ => {
            tracing::info!(topic = name, partitions, "topic created");
            Ok(())
        }
    }
}

/// Reads the topics' configuration. Without the right to read it there are no limits to compare.
fn describe(
    admin: &AdminClient<DefaultClientContext>,
    names: &[&String],
    metrics: &Metrics,
) -> HashMap<String, Limits> {
    let topics: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let options = AdminOptions::new().request_timeout(Some(CALL));
    let resources = match wait(admin.describe_configs(&topics, &options)) {
        Ok(resources) => resources,
        Err(error) => {
            tracing::warn!(%error, "the topics' configuration cannot be read: limits and risks are not checked");
            return HashMap::new();
        }
    };
    names
        .iter()
        .zip(resources)
        .filter_map(|(name, resource)| match resource {
            Ok(resource) => Some(((*name).clone(), limits(name, &resource, metrics))),
            Err(code) => {
                tracing::warn!(topic = %name, %code, "the topic's configuration cannot be read: its limits and risks are not checked");
                None
            }
        })
        .collect()
}

fn limits(name: &str, resource: &ConfigResource, metrics: &Metrics) -> Limits {
    let value = |key: &str| resource.get(key).and_then(|entry| entry.value.as_deref());
    for (risk, risky) in [
        ("min_insync", value("min.insync.replicas").is_some_and(|least| least == "1")),
        ("unclean", value("unclean.leader.election.enable") == Some("true")),
        ("compacted", value("cleanup.policy").is_some_and(|policy| policy.contains("compact"))),
    ] {
        let gauge = metrics.kafka_topic_risky.with_label_values(&[name, risk]);
        let is_new = risky && gauge.get() == 0;
        gauge.set(risky.into());
        if is_new {
            tracing::warn!(topic = name, risk, "the topic is set up so that Kafka may lose events");
        }
    }
    Limits {
        max_message_bytes: value("max.message.bytes").and_then(|bytes| bytes.parse().ok()),
        // -1 is for ever.
        retention_ms: value("retention.ms").map(|ms| ms.parse().unwrap_or(u64::MAX)),
    }
}

/// Waits for an admin call: librdkafka answers on a thread of its own.
fn wait<T>(call: impl Future<Output = T>) -> T {
    pollster::block_on(call)
}
