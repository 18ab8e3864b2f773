//! The real cluster: librdkafka's consumers and admin client.

use std::{ops::Range, sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, Headers as _},
};

pub use super::producer::Producer;
use super::{
    Blocked, Code, Fault, Fetched, Found, GroupOffset, Obstacle, ProducerSettings, Topics, View,
    classify, context::Context,
};
use crate::{
    config::{
        Config,
        client::{base_config, consumer_config, producer_config},
    },
    metrics::Metrics,
};

const CALL: Duration = Duration::from_secs(10);

/// A cluster, as one consumer group sees it.
pub struct Cluster {
    pub(super) config: Arc<Config>,
    pub(super) group: String,
    pub(super) metrics: Arc<Metrics>,
    pub(super) base: ClientConfig,
    /// Sees offsets that a transaction holds as they were before it, and never waits for its end.
    pub(super) unstable: BaseConsumer<Context>,
    pub(super) stable: BaseConsumer<Context>,
}

impl Cluster {
    /// Makes the clients; nothing is sent.
    ///
    /// # Errors
    /// librdkafka refuses the configuration.
    pub fn new(
        config: Arc<Config>,
        group: String,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Obstacle> {
        let base = base_config(&config);
        let client = |isolation| consumer(&base, &group, &[isolation], &metrics);
        let unstable = client(("isolation.level", "read_uncommitted"))?;
        let stable = client(("isolation.level", "read_committed"))?;
        Ok(Self { config, group, metrics, base, unstable, stable })
    }

    pub(super) fn consumer(&self, view: View) -> &BaseConsumer<Context> {
        match view {
            View::Stable => &self.stable,
            View::Unstable => &self.unstable,
        }
    }
}

pub(super) fn consumer(
    base: &ClientConfig,
    group: &str,
    properties: &[(&str, &str)],
    metrics: &Arc<Metrics>,
) -> Result<BaseConsumer<Context>, Obstacle> {
    let mut config = consumer_config(base, group);
    for (name, value) in properties {
        config.set(*name, *value);
    }
    let context = Context::new(Arc::clone(metrics));
    BaseConsumer::from_config_and_context(&config, context).map_err(Obstacle::kafka)
}

impl super::Cluster for Cluster {
    type Producer = Producer;
    type Reader = Reader;

    fn look(&self, create: bool) -> Result<Found, Obstacle> {
        let cluster_id = self.cluster_id()?;
        if create {
            self.create_missing()?;
        }
        let topics = self.topics(&cluster_id)?;
        Ok(Found { cluster_id, topics })
    }

    fn partitions(&self, topic: &str) -> Result<Vec<i32>, Obstacle> {
        let metadata = self.metadata(topic)?;
        let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        Ok(partitions.iter().map(|partition| partition.id()).collect())
    }

    fn watermarks(&self, view: View, topic: &str, partition: i32) -> Result<Range<i64>, Obstacle> {
        let watermarks = self.consumer(view).fetch_watermarks(topic, partition, CALL);
        watermarks.map(|(low, end)| low..end).map_err(Obstacle::kafka)
    }

    fn committed(
        &self,
        view: View,
        partitions: &[(&str, i32)],
        within: Duration,
    ) -> Result<Vec<GroupOffset>, Obstacle> {
        let unreadable = |error: KafkaError| {
            let blocked = match error.rdkafka_error_code() {
                Some(Code::GroupAuthorizationFailed) => Blocked::GroupNotAuthorized,
                Some(Code::TopicAuthorizationFailed) => Blocked::NotAuthorized,
                _ => Blocked::PositionUnreadable,
            };
            let group = &self.group;
            Obstacle::new(blocked, format!("the offsets of group {group} cannot be read: {error}"))
        };
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in partitions {
            asked.add_partition(topic, *partition);
        }
        let answer = self.consumer(view).committed_offsets(asked, within).map_err(unreadable)?;
        let elements = answer.elements();
        if elements.len() != partitions.len() {
            let detail = "the broker left out partitions whose offsets were asked for";
            return Err(Obstacle::new(Blocked::PositionUnreadable, detail));
        }
        let mut offsets = Vec::new();
        for element in elements {
            // A missing right shows only here: the offset looks as if none were kept.
            element.error().map_err(unreadable)?;
            if let Offset::Offset(offset) = element.offset() {
                offsets.push(GroupOffset {
                    topic: element.topic().to_owned(),
                    partition: element.partition(),
                    offset,
                    metadata: element.metadata().to_owned(),
                });
            }
        }
        Ok(offsets)
    }

    fn read(&self, topic: &str, from: &[(i32, i64)]) -> Result<Reader, Obstacle> {
        let properties = [
            ("enable.partition.eof", "true"),
            ("auto.offset.reset", "earliest"),
            // For each partition.
            ("queued.max.messages.kbytes", "2048"),
        ];
        let consumer = Arc::new(consumer(&self.base, &self.group, &properties, &self.metrics)?);
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in from {
            let mut partition = assignment.add_partition(topic, *partition);
            partition.set_offset(Offset::Offset(*offset)).map_err(Obstacle::kafka)?;
        }
        consumer.assign(&assignment).map_err(Obstacle::kafka)?;
        let split = |(partition, _): &(i32, i64)| {
            Some((*partition, consumer.split_partition_queue(topic, *partition)?))
        };
        let queues = from.iter().filter_map(split).collect();
        Ok(Reader { queues, consumer })
    }

    fn open(&self, topics: &Topics, settings: ProducerSettings) -> Result<Producer, Obstacle> {
        let ProducerSettings { mut timeout, batch_bytes } = settings;
        loop {
            let limit = topics.max_message_bytes();
            let config =
                producer_config(&self.base, &self.group, &self.config, limit, timeout, batch_bytes);
            let context = Context::new(Arc::clone(&self.metrics));
            if let Some(producer) = Producer::open(&config, context, &self.unstable, timeout)? {
                return Ok(producer);
            }
            // The cluster's `transaction.max.timeout.ms` is shorter.
            timeout /= 2;
            let seconds = timeout.as_secs_f64();
            tracing::warn!(
                seconds,
                "the cluster refuses the transaction timeout: trying a shorter one"
            );
        }
    }
}

/// Reads partitions of a topic.
pub struct Reader {
    /// A queue for each partition: otherwise records of one fill the memory while those of another
    /// are due.
    queues: Vec<(i32, PartitionQueue<Context>)>,
    consumer: Arc<BaseConsumer<Context>>,
}

impl super::Reader for Reader {
    fn poll(
        &mut self,
        partition: i32,
        within: Duration,
    ) -> Result<Option<(i32, Fetched)>, Obstacle> {
        // What was fetched before the queues were split off, and the client's own events.
        let polled = self.consumer.poll(Duration::ZERO).or_else(|| {
            let mut queues = self.queues.iter();
            queues.find(|(number, _)| *number == partition)?.1.poll(within)
        });
        polled.map_or(Ok(None), fetched)
    }
}

fn fetched(polled: KafkaResult<BorrowedMessage<'_>>) -> Result<Option<(i32, Fetched)>, Obstacle> {
    match polled {
        Ok(message) => {
            let (offset, value) = (message.offset(), owned(message.payload()));
            let fetched = Fetched::Record { offset, headers: headers_of(&message), value };
            Ok(Some((message.partition(), fetched)))
        }
        Err(KafkaError::PartitionEOF(partition)) => Ok(Some((partition, Fetched::End))),
        Err(error) if is_passing(&error) => Ok(None),
        Err(error) => Err(Obstacle::kafka(error)),
    }
}

/// The client reconnects by itself.
pub(super) fn is_passing(error: &KafkaError) -> bool {
    let fault = error.rdkafka_error_code().map(classify);
    matches!(fault, Some(Fault::Time | Fault::Shared(Blocked::NoBroker)))
}

/// Names and values.
pub(super) fn headers_of(message: &BorrowedMessage<'_>) -> Vec<(String, Vec<u8>)> {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    headers.map(|header| (header.key.to_owned(), owned(header.value))).collect()
}

/// A key or a value; empty if there is none.
pub(super) fn owned(bytes: Option<&[u8]>) -> Vec<u8> {
    bytes.unwrap_or_default().to_vec()
}
