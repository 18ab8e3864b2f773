//! Everything that speaks to a broker, behind the traits [`Cluster`], [`Producer`] and [`Reader`].
//!
//! The traits exist for the simulator, which implements them over a cluster in memory.

mod admin;
mod context;
pub mod error;
pub(crate) mod follow;
pub(crate) mod lag;
pub mod librdkafka;
mod producer;
pub mod record;
pub mod topics;
pub(crate) mod version;

use std::{
    ops::Range,
    time::{Duration, Instant},
};

pub use rdkafka::types::RDKafkaErrorCode as Code;

pub(crate) use self::admin::TopicState;
pub use self::{
    error::{Blocked, ErrorClass, Failure, Obstacle, Step, classify, label},
    follow::Followed,
    record::{Draft, Headers, Record, Timestamps},
    topics::{Limits, Risk, Topics},
};

/// A cluster, as one consumer group sees it: the edge's identity, or a replay's group.
pub trait Cluster {
    /// What [`open`](Self::open) returns.
    type Producer: Producer;
    /// What [`read`](Self::read) returns.
    type Reader: Reader;

    /// Reads the cluster's id and the topics' limits. With `create`, creates missing topics; one that
    /// the configuration does not allow to create is an obstacle.
    fn look(&self, create: bool) -> Result<Topics, Obstacle>;

    /// The numbers of a topic's partitions; none if the topic does not exist.
    fn partitions(&self, topic: &str) -> Result<Vec<i32>, Obstacle>;

    /// The offsets that a partition has before its first open transaction.
    fn watermarks(&self, topic: &str, partition: i32) -> Result<Range<i64>, Obstacle>;

    /// The offsets that the group keeps for these partitions; those without one are left out.
    ///
    /// # Errors
    /// [`Blocked::PositionUnreadable`] without a clear answer within the time; with
    /// [`View::Stable`] also while a transaction holds one of the offsets.
    fn committed(
        &self,
        view: View,
        partitions: &[(&str, i32)],
        within: Duration,
    ) -> Result<Vec<GroupOffset>, Obstacle>;

    /// Reads partitions of a topic, each from an offset, as `read_committed` consumers do.
    fn read(&self, topic: &str, from: &[(i32, i64)]) -> Result<Self::Reader, Obstacle>;

    /// Opens a producer whose transactional id is the group's name. This fences its earlier
    /// producers and aborts the transaction that one of them left open.
    fn open(&self, topics: &Topics, settings: ProducerSettings)
    -> Result<Self::Producer, Obstacle>;
}

/// A transactional producer.
pub trait Producer {
    /// Begins a transaction. After an error the producer must be dropped.
    fn begin(&mut self) -> Result<(), Failure>;

    /// Queues a copy of a record. Waits for room in the client's queue until `deadline`. An error
    /// refuses this record or an earlier one.
    fn send(&mut self, record: &Record<'_>, deadline: Instant) -> Result<(), Failure>;

    /// Serves the client's events without waiting. The error has the refusals of records so far.
    fn check(&mut self) -> Result<(), Failure>;

    /// Adds offsets of the group to the transaction, which stays open after an error.
    fn send_offsets(&mut self, offsets: &[GroupOffset]) -> Result<(), Failure>;

    /// Waits until the cluster has answered for every record. After an error, refusals or the end of
    /// the time, the transaction stays open.
    fn await_reports(&mut self, deadline: Instant) -> Result<(), Failure>;

    /// Commits. Every record must have been [reported](Self::await_reports). After an error only
    /// [`Cluster::committed`] tells whether it happened, and the producer must be dropped.
    fn commit(&mut self) -> Result<(), Failure>;

    /// Aborts the open transaction. After an error the producer must be dropped.
    fn abort(&mut self) -> Result<(), Code>;

    /// The connection's own error since the last call.
    fn take_trouble(&mut self) -> Option<Obstacle>;

    /// The time that a transaction may take.
    fn timeout(&self) -> Duration;

    /// The longest that a call takes, if the client keeps its time limits.
    fn longest_call(&self) -> Duration;
}

/// Reads partitions of a topic.
pub trait Reader {
    /// What comes next in `partition` or in another one; none within the time. A lost connection is no
    /// error: the client reconnects.
    fn poll(&mut self, partition: i32, within: Duration) -> Result<Option<Fetched>, Obstacle>;
}

/// What reading a partition brings.
#[derive(Debug)]
pub enum Fetched {
    /// A record.
    Record(Followed),
    /// The end of the partition with this number.
    End(i32),
}

/// What an open transaction does to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Only what no open transaction can change. A group's offset waits for the transaction's end.
    Stable,
    /// A group's offset before the transaction; a partition with the transaction's records.
    Unstable,
}

/// An offset that a group keeps for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Kafka's")]
pub struct GroupOffset {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// At most 4,096 bytes by the brokers' default (`offset.metadata.max.bytes`).
    pub metadata: String,
}

/// How a producer is opened.
#[derive(Debug, Clone, Copy)]
pub struct ProducerSettings {
    /// The time that a transaction may take.
    pub timeout: Duration,
    /// The most that one request carries for a partition.
    pub batch_bytes: usize,
}

/// librdkafka's default of `batch.size`.
pub const BATCH_BYTES: usize = 1_000_000;

/// The version of librdkafka.
pub(crate) fn version() -> String {
    rdkafka::util::get_rdkafka_version().1
}
