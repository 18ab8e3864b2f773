//! Opening: where to go on, and whether that is ours to say.
//!
//! The position that Kafka keeps is the truth. It is read before `init_transactions`, which would
//! fence the rightful publisher if this journal is a copy, and again behind it, when no earlier
//! client can move it any more.
//!
//! Behind it no transaction of ours can be open, unless Kafka has lost its end: a broker that is
//! killed while it ends one may, when it is back, call it ended without telling the partitions (seen
//! with 4.4: no marker in any partition, `CompleteCommit` in `__transaction_state`). Readers are held
//! then, and the position has no stable value, for ever. [`Opened::unfinished`] tells of it.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use uuid::Uuid;

use super::{
    Shared,
    faults::{Blocked, Obstacle},
    memory::Memory,
    topics::{self, Topics},
    transaction::{Client, Context},
};
use crate::{config::Config, journal::Position};

const CALL: Duration = Duration::from_secs(10);
/// How long the position's stable value may take, beside what a first answer takes: no transaction
/// is open any more. To take a slow answer for none costs a transaction that is aborted.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);
/// How long a position that went back is read again before it is believed: no transaction is open
/// any more, but brokers before 4.0 take what was committed into their account a moment later.
const DOUBT: Duration = Duration::from_secs(5);

/// Where publishing goes on, and with what.
pub(super) struct Opened {
    pub(super) client: Client,
    pub(super) topics: Topics,
    pub(super) cluster_id: String,
    pub(super) position: Position,
    /// An earlier transaction from this position on was left open by Kafka.
    pub(super) unfinished: bool,
}

/// What Kafka keeps for this journal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    position: Position,
    metadata: String,
}

/// The metadata of a position: the run that it counts in, and the last callback before it.
pub(super) fn metadata(run_id: Uuid, receipt: Uuid) -> String {
    format!("{run_id} {receipt}")
}

/// Opens a client and finds where to go on.
///
/// # Errors
/// What stands in the way; nothing has been changed then.
pub(super) fn open(shared: &Shared, memory: &Memory) -> Result<Opened, Obstacle> {
    let since = Instant::now();
    let config = shared.config.load();
    let identity = format!("{}{}", config.kafka.identity_prefix, shared.journal.id());
    let base = base_config(&config);

    let consumer = |isolation: &str| -> Result<BaseConsumer<Context>, Obstacle> {
        let mut config = consumer_config(&base, &identity);
        config.set("isolation.level", isolation);
        let context = Context::new(Arc::clone(&shared.metrics));
        BaseConsumer::from_config_and_context(&config, context).map_err(Obstacle::kafka)
    };
    let stable = consumer("read_committed")?;
    // Does not wait for the end of what a killed edge left open: opening ends that itself.
    let consumer = consumer("read_uncommitted")?;
    let cluster_id = topics::cluster_id(&consumer, &config.topics.position)?;
    let Config { kafka, topics: names, .. } = &**config;
    let topics = topics::check(&consumer, &base, kafka, names, &shared.metrics, &cluster_id)?;
    shared.beat();
    let reading = Reading { shared, cluster_id: &cluster_id, topic: &names.position };
    let asked = Instant::now();
    reading.judge(&reading.read(&consumer, CALL)?)?;
    let first_answer = asked.elapsed();
    shared.beat();
    let Memory { transaction_timeout, batch_bytes, .. } = *memory;
    let producer_config =
        producer_config(&base, &identity, &config, &topics, transaction_timeout, batch_bytes);
    let client = Client::open(
        &producer_config,
        Context::new(Arc::clone(&shared.metrics)),
        &consumer,
        &names.position,
        transaction_timeout,
    )?;
    shared.beat();
    let settles_within = SETTLES_WITHIN + 2 * first_answer;
    let (position, unfinished) = reading.settled(&stable, settles_within, &consumer)?;
    let seconds = since.elapsed().as_secs_f64();
    tracing::info!(run = position.run(), index = position.index(), seconds, "publishing from here");
    Ok(Opened { client, topics, cluster_id, position, unfinished })
}

/// The position, read and judged.
struct Reading<'a> {
    shared: &'a Shared,
    cluster_id: &'a str,
    topic: &'a str,
}

impl Reading<'_> {
    fn read(
        &self,
        consumer: &BaseConsumer<Context>,
        timeout: Duration,
    ) -> Result<Option<Kept>, Obstacle> {
        let unreadable = |error: KafkaError| {
            let blocked = match error.rdkafka_error_code() {
                Some(Code::GroupAuthorizationFailed) => Blocked::GroupNotAuthorized,
                Some(Code::TopicAuthorizationFailed) => Blocked::NotAuthorized,
                _ => Blocked::PositionUnreadable,
            };
            Obstacle::new(blocked, format!("the position cannot be read: {error}"))
        };
        let mut asked = TopicPartitionList::new();
        asked.add_partition(self.topic, 0);
        let answer = consumer.committed_offsets(asked, timeout).map_err(unreadable)?;
        let elements = answer.elements();
        let Some(element) = elements.first() else {
            return Err(Obstacle::new(Blocked::PositionUnreadable, "an answer without partition"));
        };
        // A missing right shows only here, beside an offset that looks like none.
        element.error().map_err(unreadable)?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(Kept {
                position: Position::from_u64(offset as u64),
                metadata: element.metadata().to_owned(),
            }),
            _ => None,
        })
    }

    /// Whether this journal may publish at all.
    fn judge(&self, kept: &Option<Kept>) -> Result<(), Obstacle> {
        let journal = &self.shared.journal;
        if let Some(checkpoint) = journal.checkpoint()
            && !checkpoint.cluster_id.is_empty()
            && checkpoint.cluster_id != self.cluster_id
        {
            let detail = format!(
                "this journal published to cluster {}, this is {}: go back, or run `weni-edge journal fork`",
                checkpoint.cluster_id, self.cluster_id
            );
            return Err(Obstacle::new(Blocked::ClusterChanged, detail));
        }
        let Some(kept) = kept else { return Ok(()) };
        if kept.metadata.is_empty() {
            let detail = "somebody reset the group's offset: run `weni-edge journal fork`";
            return Err(Obstacle::new(Blocked::PositionReset, detail));
        }
        let run_id = kept.metadata.split(' ').next().and_then(|id| Uuid::parse_str(id).ok());
        if run_id.is_none_or(|id| !journal.knows_run_id(id)) {
            let detail = "another copy, or a later state, of this journal has published: stop the \
                          wrong one, or run `weni-edge journal fork`";
            return Err(Obstacle::new(Blocked::JournalDiverged, detail));
        }
        Ok(())
    }

    /// The position, now that nobody else can move it, and whether Kafka left a transaction open
    /// behind it: then only the value before that one can be read.
    fn settled(
        &self,
        stable: &BaseConsumer<Context>,
        settles_within: Duration,
        unstable: &BaseConsumer<Context>,
    ) -> Result<(Position, bool), Obstacle> {
        let journal = &self.shared.journal;
        let known = journal.committed();
        let doubted_until = Instant::now() + DOUBT;
        loop {
            let (kept, unfinished) = match self.read(stable, settles_within) {
                Err(obstacle) if obstacle.blocked == Blocked::PositionUnreadable => {
                    self.shared.beat();
                    (self.read(unstable, CALL)?, true)
                }
                kept => (kept?, false),
            };
            self.judge(&kept)?;
            if unfinished {
                tracing::error!("Kafka has not told all partitions the end of a transaction");
                // Without a position before it, it was the first.
                return Ok((kept.map_or(journal.oldest(), |kept| kept.position), true));
            }
            let Some(Kept { position, .. }) = kept else {
                if known > journal.oldest() {
                    tracing::warn!(
                        "Kafka keeps no position: going on from the journal's checkpoint"
                    );
                }
                return Ok((known, false));
            };
            if position >= known {
                return Ok((position, false));
            }
            if Instant::now() < doubted_until {
                self.shared.beat();
                thread::sleep(Duration::from_secs(1));
                continue;
            }
            let repeated = journal.count(position, known);
            self.shared.metrics.position_went_back_total.inc();
            tracing::error!(repeated, "Kafka's position went back: these callbacks are repeated");
            if position < journal.oldest() {
                tracing::error!("what lies before the oldest record cannot be published again");
            }
            return Ok((position, false));
        }
    }
}

/// What every client of the cluster is made with.
pub(super) fn base_config(config: &Config) -> ClientConfig {
    let mut base = ClientConfig::new();
    base.set("bootstrap.servers", &config.kafka.bootstrap_servers)
        .set("client.id", "weni-edge")
        // librdkafka's default of 10 s keeps an edge silent long after Kafka is back.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("retry.backoff.ms", "10");
    for (name, value) in &config.kafka.properties {
        base.set(name, value.expose());
    }
    base
}

pub(super) fn consumer_config(base: &ClientConfig, identity: &str) -> ClientConfig {
    let mut consumer = base.clone();
    consumer
        .set("group.id", identity)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false");
    consumer
}

pub(super) fn producer_config(
    base: &ClientConfig,
    identity: &str,
    config: &Config,
    topics: &Topics,
    timeout: Duration,
    batch_bytes: usize,
) -> ClientConfig {
    let timeout_ms = timeout.as_millis().to_string();
    // An event repeats what its body said and adds to it; base64 is a third longer.
    let message_bytes = 2 * config.http.max_body_bytes + 64 * 1024;
    let limit = topics.max_message_bytes().unwrap_or(message_bytes);
    let batch_bytes = batch_bytes.min(limit);
    let mut producer = base.clone();
    for (name, value) in [
        ("linger.ms", "10"),
        ("compression.codec", "lz4"),
        ("statistics.interval.ms", "5000"),
        ("queue.buffering.max.messages", "100000"),
    ] {
        // Not by copying all of the base: librdkafka's crate blots out secrets in such a listing.
        if base.get(name).is_none() {
            producer.set(name, value);
        }
    }
    producer
        .set("transactional.id", identity)
        .set("transaction.timeout.ms", &timeout_ms)
        .set("message.timeout.ms", &timeout_ms)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        // What is acknowledged is counted, not reported: a tenth of the publisher's time.
        .set("delivery.report.only.error", "true")
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", message_bytes.to_string())
        .set("batch.size", batch_bytes.to_string());
    producer
}
