//! The cluster as replaying needs it: its topics, what it keeps, and one transaction.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
    types::RDKafkaErrorCode as Code,
};

use super::{
    super::{
        batch::now_ms,
        faults::{Fault, Obstacle},
        memory::BATCH_BYTES,
        opening::{base_config, consumer_config, producer_config},
        topics::{self, Topics},
        transaction::{Client, Context, Failure, Record, Step, label},
    },
    Kept, Ready,
    progress::{METADATA_BYTES_MAX, Progress},
    verdict::Outgoing,
};
use crate::{config::Config, metrics::Metrics};

const CALL: Duration = Duration::from_secs(10);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
const TRIES: u32 = 5;

/// The cluster, as replaying needs it.
pub(super) struct Ground<'a> {
    pub(super) config: &'a Config,
    base: ClientConfig,
    group: String,
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) topics: Topics,
    metrics: Arc<Metrics>,
    pub(super) quarantine: PathBuf,
}

impl<'a> Ground<'a> {
    /// # Errors
    /// What stands in the way; topics that are missing are only created if they may be.
    pub(super) fn open(config: &'a Config, may_create: bool) -> anyhow::Result<Self> {
        let base = base_config(config);
        let names = &config.topics;
        let group = format!("weni-edge-replay.{}", names.dead_letter);
        let metrics = Arc::new(Metrics::default());
        let mut consumer = consumer_config(&base, &group);
        consumer.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
        // For each partition.
        consumer.set("queued.max.messages.kbytes", "2048");
        let context = Context::new(Arc::clone(&metrics));
        let consumer = BaseConsumer::from_config_and_context(&consumer, context)?;
        let cluster_id = topics::cluster_id(&consumer, &names.dead_letter)
            .map_err(obstacle)
            .with_context(|| format!("Kafka at {}", config.kafka.bootstrap_servers))?;
        let topics = if may_create {
            topics::check(&consumer, &base, &config.kafka, names, &metrics, &cluster_id)
        } else {
            topics::look(&consumer, &base, names, &metrics, &cluster_id)
        };
        let topics = topics.map_err(obstacle)?;
        let quarantine = config.journal.directory.join("quarantine");
        let consumer = Arc::new(consumer);
        Ok(Self { config, base, group, consumer, topics, metrics, quarantine })
    }

    /// A client of its own, which fences off whoever replays.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let producer = producer_config(
            &self.base,
            &self.group,
            self.config,
            &self.topics,
            TRANSACTION_TIMEOUT,
            BATCH_BYTES,
        );
        let context = Context::new(Arc::clone(&self.metrics));
        let position = &self.config.topics.position;
        Client::open(&producer, context, &self.consumer, position, TRANSACTION_TIMEOUT)
            .map_err(obstacle)
            .with_context(|| {
                format!("needs the right to write with the transactional id {}", self.group)
            })
    }

    /// How far replaying is, as Kafka keeps it.
    pub(super) fn kept(&self) -> anyhow::Result<Kept> {
        let topic = self.topics.dead_letter();
        let partitions = topics::partitions(&self.consumer, topic).map_err(obstacle)?;
        if partitions.is_empty() {
            bail!("topic {topic} does not exist: topics.dead_letter names it");
        }
        let mut asked = TopicPartitionList::new();
        for partition in &partitions {
            asked.add_partition(topic, *partition);
        }
        asked.add_partition(&self.config.topics.position, 0);
        let needs = || {
            format!(
                "cannot read how far replaying is: needs the right to read the group {}",
                self.group
            )
        };
        let answer = self.consumer.committed_offsets(asked, CALL).with_context(needs)?;
        let mut kept = Kept { nothing: true, ..Kept::default() };
        for element in answer.elements() {
            element.error().with_context(needs)?;
            let Offset::Offset(offset) = element.offset() else { continue };
            kept.nothing = false;
            if element.topic() == topic {
                let progress = Progress::read(offset, element.metadata())?;
                kept.partitions.insert(element.partition(), progress);
            } else {
                kept.files = element.metadata().split_whitespace().map(str::to_owned).collect();
            }
        }
        for partition in partitions {
            kept.partitions.entry(partition).or_default();
        }
        Ok(kept)
    }

    /// What is there to be read: partitions, each from its progress to its end.
    pub(super) fn ranges(&self, kept: &mut Kept) -> KafkaResult<Vec<(i32, Range<i64>)>> {
        let mut ranges = Vec::new();
        for (partition, progress) in &mut kept.partitions {
            let topic = self.topics.dead_letter();
            let (low, end) = self.consumer.fetch_watermarks(topic, *partition, CALL)?;
            // What was deleted cannot be replayed any more.
            progress.insert(0..low);
            ranges.push((*partition, progress.first()..end));
        }
        Ok(ranges)
    }

    /// The progress as the group's offsets: of the partitions that are `touched`, and of the files.
    pub(super) fn offsets(
        &self,
        kept: &Kept,
        touched: impl Fn(&i32) -> bool,
    ) -> anyhow::Result<TopicPartitionList> {
        let mut offsets = TopicPartitionList::new();
        let topic = self.topics.dead_letter();
        for (partition, progress) in kept.partitions.iter().filter(|(number, _)| touched(number)) {
            let metadata = progress.metadata();
            if metadata.len() > METADATA_BYTES_MAX {
                bail!(
                    "what is done in {topic}/{partition} lies too scattered for Kafka to keep: \
                     replay once without --reason, --source, --since and --until; if letters that \
                     are still dead lie between those that are done, with --dismiss-dead"
                );
            }
            let mut element = offsets.add_partition(topic, *partition);
            element.set_offset(Offset::Offset(progress.first()))?;
            element.set_metadata(metadata);
        }
        if !kept.files.is_empty() {
            let mut element = offsets.add_partition(&self.config.topics.position, 0);
            element.set_offset(Offset::Offset(0))?;
            element
                .set_metadata(kept.files.iter().map(String::as_str).collect::<Vec<_>>().join(" "));
        }
        Ok(offsets)
    }

    /// Tries again what may pass the next time.
    pub(super) fn try_some_times(
        &self,
        client: &Client,
        letters: &[Ready],
        offsets: &TopicPartitionList,
        present_time: &mut bool,
    ) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            let Err(failure) = self.transact(client, letters, offsets, *present_time) else {
                return Ok(());
            };
            tries += 1;
            match failure.fault() {
                // It may have happened.
                _ if failure.step == Step::Commit => return Err(failure),
                Fault::Clock if !*present_time => *present_time = true,
                // The purge before an abort also takes what comes right behind it.
                Fault::Purged | Fault::RecordIfTwice if tries < TRIES => {}
                _ => return Err(failure),
            }
        }
    }

    /// One transaction, committed or, wherever that can be known, aborted.
    pub(super) fn transact(
        &self,
        client: &Client,
        letters: &[Ready],
        offsets: &TopicPartitionList,
        present_time: bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + TRANSACTION_TIMEOUT / 2;
        client.begin()?;
        // The offsets last: behind a refusal they would fail with a word that says nothing of it.
        let settled = self
            .produce(client, letters, present_time, deadline)
            .and_then(|()| client.settle(deadline))
            .and_then(|()| client.send_offsets(offsets));
        if let Err(failure) = settled.map_err(|failure| client.explain(client.hear_out(failure))) {
            if !failure.fatal
                && let Err(code) = client.abort()
            {
                // The next client's opening ends it.
                tracing::warn!(?code, "a transaction could not be aborted");
                return Err(Failure::new(Step::Commit, code));
            }
            return Err(failure);
        }
        client.commit()
    }

    fn produce(
        &self,
        client: &Client,
        letters: &[Ready],
        present_time: bool,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let now_ms = now_ms();
        for (number, record) in letters.iter().flat_map(|letter| &letter.records).enumerate() {
            let Outgoing { key, value, headers, received_at_ms, .. } = record;
            let topic = self.topics.name(record.topic);
            let age_ms = now_ms.saturating_sub(*received_at_ms);
            let present = present_time || self.topics.would_expire(topic, age_ms);
            let timestamp_ms = if present { now_ms } else { *received_at_ms } as i64;
            let headers = headers.clone();
            client
                .produce(Record { topic, key, value, headers, timestamp_ms, number }, deadline)?;
        }
        Ok(())
    }

    /// What to do about a letter that Kafka does not take.
    pub(super) fn refused(&self, letter: &Ready, failure: &Failure) -> anyhow::Error {
        let topics: BTreeSet<_> =
            letter.records.iter().map(|record| self.topics.name(record.topic)).collect();
        let code = failure.reports.first().map_or(failure.code, |(_, code)| *code);
        anyhow!(
            "Kafka refuses what the letter {} becomes ({}): {code}; mend the topic (such as its \
             max.message.bytes) and run this again, or leave the letter out by --reason, --source, \
             --since or --until",
            letter.origin.name(self.topics.dead_letter()),
            topics.into_iter().collect::<Vec<_>>().join(", "),
        )
    }

    /// What to do about anything else.
    pub(super) fn failed(&self, failure: &Failure) -> anyhow::Error {
        let fenced = [Code::Fenced, Code::ProducerFenced, Code::InvalidProducerEpoch];
        match failure.fault() {
            Fault::Client if fenced.contains(&failure.code) => anyhow!(
                "another `weni-edge replay` of {} has begun and fenced this one off: let it end",
                self.topics.dead_letter()
            ),
            Fault::Everyone(blocked) => {
                anyhow!("{}: {}", blocked.as_str(), label(failure.code))
            }
            _ => anyhow!(
                "a transaction failed ({:?}: {}): run this again, it goes on from what is committed",
                failure.step,
                label(failure.code)
            ),
        }
    }
}

fn obstacle(obstacle: Obstacle) -> anyhow::Error {
    anyhow!("{obstacle}")
}
