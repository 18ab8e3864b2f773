//! The Kafka that the edge publishes to: the mock cluster in another process, or a real one.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::{BaseProducer, BaseRecord, DeliveryResult, ProducerContext},
};
use uuid::Uuid;

use crate::{
    children::{self, Child, Conversation},
    process::Process,
    topics::{EVENTS, MOCK_PREFIX, OUTSIDE, PARTITIONS, POSITION, STATUSES, topic},
};

const CALL: Duration = Duration::from_secs(20);

/// The address of the real Kafka, if there is one.
pub(crate) fn real() -> Option<String> {
    std::env::var("WENI_EDGE_TEST_KAFKA").ok()
}

/// The broker's process, if it is on this machine.
pub(crate) fn broker(bootstrap: &str) -> Option<u32> {
    let here = ["127.0.0.1:", "localhost:"];
    let port = here.iter().find_map(|host| bootstrap.strip_prefix(host))?;
    let output = Command::new("ss").args(["-Hltnp", &format!("sport = :{port}")]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split("pid=").nth(1)?.split(',').next()?.parse().ok()
}

/// An address without a listener.
pub(crate) fn nowhere() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A cluster, and topics that no other process uses.
#[derive(Debug)]
pub(crate) struct Kafka {
    pub(crate) bootstrap: String,
    prefix: String,
    partitions: i32,
    mock: Option<(Process, Conversation)>,
}

impl Kafka {
    /// A mock cluster. It keeps 5 MiB of each partition, but its offsets count all records.
    pub(crate) fn mock() -> anyhow::Result<Self> {
        let (process, conversation, bootstrap) = children::start(Child::Kafka, "")?;
        let (prefix, mock) = (MOCK_PREFIX.to_owned(), Some((process, conversation)));
        Ok(Self { bootstrap, prefix, partitions: PARTITIONS, mock })
    }

    /// The real one. The edge creates its topics, with so many partitions. Dropping this deletes them.
    pub(crate) fn real(bootstrap: &str, partitions: i32) -> Self {
        let name = Uuid::new_v4().simple().to_string();
        let prefix = format!("bench-{}", &name[..12]);
        Self { bootstrap: bootstrap.to_owned(), prefix, partitions, mock: None }
    }

    /// Sections `kafka` and `topics` of the edge's configuration.
    pub(crate) fn section(&self) -> String {
        let mut text = format!(
            "[kafka]\nbootstrap_servers = \"{}\"\n\
             create_topics = {{ partitions = {}, replication_factor = 1 }}\n[topics]\n",
            self.bootstrap, self.partitions
        );
        for name in EVENTS {
            let key = name.replace('-', "_");
            text += &format!("{key} = \"{}\"\n", topic(&self.prefix, name));
        }
        text + &format!("position = \"{}\"\n", topic(&self.prefix, POSITION))
    }

    /// Processor time of the mock cluster's process.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.mock.as_ref().map_or(Ok(Duration::ZERO), |(process, _)| process.cpu())
    }

    /// Takes the mock cluster's broker down or up.
    pub(crate) fn set_up(&mut self, up: bool) -> anyhow::Result<()> {
        let (_, conversation) = self.mock.as_mut().context("a real Kafka is left alone")?;
        conversation.ask(if up { "up" } else { "down" })?;
        Ok(())
    }

    /// Records of all event topics. On the mock cluster the sum of the partitions' ends, because
    /// they hold nothing else. On a real Kafka, whose ends also count transaction markers, by
    /// reading the committed records.
    pub(crate) fn records(&self) -> anyhow::Result<u64> {
        let consumer = self.consumer(&[("enable.partition.eof", "true")])?;
        let mut records = 0;
        for name in EVENTS {
            let name = topic(&self.prefix, name);
            if self.mock.is_none() {
                records += self.read(&consumer, &name)?;
                continue;
            }
            for partition in 0..self.partitions {
                let (_, end) = consumer.fetch_watermarks(&name, partition, CALL)?;
                records += u64::try_from(end)?;
            }
        }
        Ok(records)
    }

    /// A consumer of another application. It stores no offsets.
    pub(crate) fn consumer(&self, more: &[(&str, &str)]) -> anyhow::Result<BaseConsumer> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", "bench")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed");
        for (key, value) in more {
            config.set(*key, *value);
        }
        Ok(config.create()?)
    }

    /// All partitions of the statuses, from `offset` on.
    pub(crate) fn statuses(&self, offset: Offset) -> anyhow::Result<TopicPartitionList> {
        self.partitions(&topic(&self.prefix, STATUSES), offset)
    }

    fn partitions(&self, topic: &str, offset: Offset) -> anyhow::Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for partition in 0..self.partitions {
            list.add_partition_offset(topic, partition, offset)?;
        }
        Ok(list)
    }

    /// Counts the committed records of a topic.
    fn read(&self, consumer: &BaseConsumer, topic: &str) -> anyhow::Result<u64> {
        consumer.assign(&self.partitions(topic, Offset::Beginning)?)?;
        let mut unread: BTreeSet<i32> = (0..self.partitions).collect();
        let mut records = 0;
        while !unread.is_empty() {
            match consumer.poll(CALL).with_context(|| format!("{topic} cannot be read"))? {
                Ok(_) => records += 1,
                Err(KafkaError::PartitionEOF(partition)) => {
                    ensure!(unread.remove(&partition), "{topic} grows while it is read");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(records)
    }

    /// How long until a new client of another application has a record acknowledged with acks=all.
    /// It tries as often as the edge does.
    pub(crate) fn first_outside_success(&self, limit: Duration) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let acknowledged = Arc::new(Mutex::new(None));
        let producer: BaseProducer<Outside> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .create_with_context(Outside(Arc::clone(&acknowledged)))?;
        let name = topic(&self.prefix, OUTSIDE);
        let record = BaseRecord::to(&name).key("outside").payload("outside");
        producer.send(record).map_err(|(error, _)| error)?;
        while start.elapsed() < limit {
            producer.poll(Duration::from_millis(1));
            if let Some(at) = *acknowledged.lock() {
                return Ok(Instant::duration_since(&at, start));
            }
        }
        bail!("an outside client had no success within {limit:?}")
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if self.mock.is_some() {
            return;
        }
        let names: Vec<_> =
            EVENTS.iter().chain([&POSITION]).map(|name| topic(&self.prefix, name)).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let deleted = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create::<AdminClient<DefaultClientContext>>()
            .and_then(|admin| {
                pollster::block_on(admin.delete_topics(&names, &AdminOptions::new()))
            });
        if let Err(error) = deleted {
            eprintln!("the topics {}.* cannot be deleted: {error}", self.prefix);
        }
    }
}

/// Notes when the first record was acknowledged.
struct Outside(Arc<Mutex<Option<Instant>>>);

impl ClientContext for Outside {}

impl ProducerContext for Outside {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.lock().get_or_insert_with(Instant::now);
        }
    }
}
