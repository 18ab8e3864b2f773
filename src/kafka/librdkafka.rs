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
    Blocked, Code, Fetched, Followed, GroupOffset, Obstacle, ProducerSettings, Topics, View,
    admin::partitions_of, context::PollContext, error::code,
};
use crate::{
    config::{
        Config,
        client::{base_config, consumer_config},
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
    pub(super) unstable: BaseConsumer<PollContext>,
    pub(super) stable: BaseConsumer<PollContext>,
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
        let properties = [("isolation.level", "read_uncommitted")];
        let unstable = consumer(&base, &group, &properties, &metrics)?;
        let stable = consumer(&base, &group, &[], &metrics)?;
        Ok(Self { config, group, metrics, base, unstable, stable })
    }

    pub(super) fn consumer(&self, view: View) -> &BaseConsumer<PollContext> {
        match view {
            View::Stable => &self.stable,
            View::Unstable => &self.unstable,
        }
    }

    /// A consumer that reads partitions of a topic, each from an offset.
    pub(super) fn assigned(
        &self,
        topic: &str,
        from: &[(i32, i64)],
    ) -> Result<BaseConsumer<PollContext>, Obstacle> {
        let properties = [
            ("enable.partition.eof", "true"),
            // Records that are deleted before they are read are passed over.
            ("auto.offset.reset", "earliest"),
            // For each partition.
            ("queued.max.messages.kbytes", "2048"),
        ];
        let consumer = consumer(&self.base, &self.group, &properties, &self.metrics)?;
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in from {
            assignment.add_partition(topic, *partition).set_offset(Offset::Offset(*offset))?;
        }
        consumer.assign(&assignment)?;
        Ok(consumer)
    }
}

fn consumer(
    base: &ClientConfig,
    group: &str,
    properties: &[(&str, &str)],
    metrics: &Arc<Metrics>,
) -> Result<BaseConsumer<PollContext>, Obstacle> {
    let mut config = consumer_config(base, group);
    for (name, value) in properties {
        config.set(*name, *value);
    }
    let context = PollContext::new(Arc::clone(metrics));
    Ok(BaseConsumer::from_config_and_context(&config, context)?)
}

impl super::Cluster for Cluster {
    type Producer = Producer;
    type Reader = Reader;

    fn look(&self, create: bool) -> Result<Topics, Obstacle> {
        if create {
            self.create_missing()?;
        }
        self.topics()
    }

    fn partitions(&self, topic: &str) -> Result<Vec<i32>, Obstacle> {
        let metadata = self.metadata(topic)?;
        let partitions = partitions_of(&metadata)?.iter();
        Ok(partitions.map(|partition| partition.id()).collect())
    }

    fn watermarks(&self, topic: &str, partition: i32) -> Result<Range<i64>, Obstacle> {
        let (low, end) = self.stable.fetch_watermarks(topic, partition, CALL)?;
        Ok(low..end)
    }

    fn committed(
        &self,
        view: View,
        partitions: &[(&str, i32)],
        within: Duration,
    ) -> Result<Vec<GroupOffset>, Obstacle> {
        let unreadable = |error: KafkaError| {
            let blocked = match code(&error) {
                Code::GroupAuthorizationFailed => Blocked::GroupNotAuthorized,
                Code::TopicAuthorizationFailed => Blocked::NotAuthorized,
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
        let consumer = Arc::new(self.assigned(topic, from)?);
        let split = |(partition, _): &(i32, i64)| {
            Some((*partition, consumer.split_partition_queue(topic, *partition)?))
        };
        let queues = from.iter().filter_map(split).collect();
        Ok(Reader { queues, consumer })
    }

    fn open(&self, topics: &Topics, settings: ProducerSettings) -> Result<Producer, Obstacle> {
        Producer::open(self, topics, settings)
    }
}

/// Reads partitions of a topic.
pub struct Reader {
    /// A queue for each partition: otherwise records of one fill the memory while those of another
    /// are due.
    queues: Vec<(i32, PartitionQueue<PollContext>)>,
    consumer: Arc<BaseConsumer<PollContext>>,
}

impl super::Reader for Reader {
    fn poll(&mut self, partition: i32, within: Duration) -> Result<Option<Fetched>, Obstacle> {
        // What was fetched before the queues were split off, and the client's own events.
        let polled = self.consumer.poll(Duration::ZERO).or_else(|| {
            let mut queues = self.queues.iter();
            queues.find(|(number, _)| *number == partition)?.1.poll(within)
        });
        polled.map_or(Ok(None), fetched)
    }
}

pub(super) fn fetched(
    polled: KafkaResult<BorrowedMessage<'_>>,
) -> Result<Option<Fetched>, Obstacle> {
    let message = match polled {
        Ok(message) => message,
        Err(KafkaError::PartitionEOF(partition)) => return Ok(Some(Fetched::End(partition))),
        Err(error) => {
            let obstacle = Obstacle::from(error);
            // The client reconnects by itself.
            return if obstacle.blocked == Blocked::NoBroker { Ok(None) } else { Err(obstacle) };
        }
    };
    let owned = |bytes: Option<&[u8]>| bytes.unwrap_or_default().to_vec();
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Ok(Some(Fetched::Record(Followed {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
        key: owned(message.key()),
        headers: headers.map(|header| (header.key.to_owned(), owned(header.value))).collect(),
        value: owned(message.payload()),
    })))
}
