//! Reads topics as they grow: a `read_committed` consumer that joins no group and commits nothing.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};

use super::{
    Blocked, Fetched, Obstacle, View,
    admin::CALL,
    context::PollContext,
    librdkafka::{Cluster, fetched},
};

const STEP: Duration = Duration::from_millis(50);

/// An offset for each partition of each topic.
pub(crate) type Offsets = BTreeMap<(String, i32), i64>;

/// A place in all partitions.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Point {
    Beginning,
    /// The first record of this time or later, in milliseconds since 1970.
    Time(i64),
    End,
}

/// A record as it is in Kafka. An absent key or value is empty.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are Kafka's")]
pub struct Followed {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Vec<u8>,
    /// Names and values.
    pub headers: Vec<(String, Vec<u8>)>,
    pub value: Vec<u8>,
}

impl Followed {
    /// About what it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len() + 48);
        self.topic.len() + self.key.len() + self.value.len() + headers.sum::<usize>() + 128
    }
}

impl Cluster {
    /// Where a point lies in each of these partitions. After the last record it lies at the end.
    pub(crate) fn offsets(
        &self,
        view: View,
        partitions: &[(String, i32)],
        point: Point,
    ) -> Result<Offsets, Obstacle> {
        let offset = match point {
            Point::Beginning => Offset::Beginning,
            // librdkafka's mock cluster knows no times. It has only what came since it began.
            Point::Time(_) if self.cluster_id()?.starts_with("mockCluster") => Offset::Beginning,
            Point::Time(ms) => Offset::Offset(ms),
            Point::End => Offset::End,
        };
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in partitions {
            asked.add_partition_offset(topic, *partition, offset)?;
        }
        let client = self.consumer(view);
        // Its events would fill the memory.
        while client.poll(Duration::ZERO).is_some() {}
        let answer = client.offsets_for_times(asked, CALL)?;
        let mut offsets = Offsets::new();
        let mut at_end = Vec::new();
        for element in answer.elements() {
            element.error()?;
            let place = (element.topic().to_owned(), element.partition());
            match element.offset() {
                Offset::Offset(offset) => drop(offsets.insert(place, offset)),
                _ => at_end.push(place),
            }
        }
        if !at_end.is_empty() && !matches!(point, Point::End) {
            offsets.append(&mut self.offsets(view, &at_end, Point::End)?);
        }
        Ok(offsets)
    }

    /// Where open transactions hold the readers of these partitions: the last stable offsets that are
    /// below the end.
    pub(crate) fn held(&self, partitions: &[(String, i32)]) -> Result<Offsets, Obstacle> {
        if partitions.is_empty() {
            return Ok(Offsets::new());
        }
        let ends = self.offsets(View::Unstable, partitions, Point::End)?;
        let mut stable = self.offsets(View::Stable, partitions, Point::End)?;
        stable.retain(|place, at| ends.get(place) > Some(at));
        Ok(stable)
    }

    /// Reads partitions, each from an offset: up to these ends, or beyond them.
    pub(crate) fn follow(
        &self,
        from: &Offsets,
        mut ends: Offsets,
        is_beyond: bool,
    ) -> Result<Follower, Obstacle> {
        ends.retain(|place, end| from.get(place).is_some_and(|start| start < end));
        // A consumer for each topic, because rdkafka tells the end of a partition without its topic.
        let mut topics = BTreeMap::<&String, Vec<(i32, i64)>>::new();
        for ((topic, partition), offset) in from {
            topics.entry(topic).or_default().push((*partition, *offset));
        }
        let start = |(topic, from): (&String, Vec<_>)| -> Result<_, Obstacle> {
            Ok((topic.clone(), self.assigned(topic, &from)?))
        };
        let consumers = topics.into_iter().map(start).collect::<Result<_, _>>()?;
        Ok(Follower { consumers, unread: ends, is_beyond })
    }
}

/// Reads partitions of topics.
pub(crate) struct Follower {
    consumers: Vec<(String, BaseConsumer<PollContext>)>,
    /// The ends of partitions that have not been read to them.
    unread: Offsets,
    is_beyond: bool,
}

impl Follower {
    /// Whether all partitions have been read to their ends.
    pub(crate) fn has_caught_up(&self) -> bool {
        self.unread.is_empty()
    }

    /// What comes next in any partition; none after a moment. A lost connection is no error: the
    /// client reconnects.
    pub(crate) fn poll(&mut self) -> Result<Option<Followed>, Obstacle> {
        let count = self.consumers.len();
        self.consumers.rotate_left(1);
        for step in 0..=count {
            let (topic, consumer) = &self.consumers[step % count];
            let wait = if step == count { STEP } else { Duration::ZERO };
            match consumer.poll(wait).map_or(Ok(None), fetched) {
                Ok(None) => {}
                Ok(Some(Fetched::Record(record))) => {
                    if self.is_wanted(&record) {
                        return Ok(Some(record));
                    }
                }
                Ok(Some(Fetched::End(partition))) => {
                    let place = (topic.clone(), partition);
                    self.unread.remove(&place);
                }
                // librdkafka asks for the group's coordinator, which nothing here needs.
                Err(obstacle) if obstacle.blocked == Blocked::GroupNotAuthorized => {}
                Err(obstacle) => return Err(obstacle),
            }
        }
        Ok(None)
    }

    /// Whether the record is to be read. The last record before an end ends its partition.
    fn is_wanted(&mut self, record: &Followed) -> bool {
        let place = (record.topic.clone(), record.partition);
        let end = self.unread.get(&place).copied();
        if end.is_some_and(|end| record.offset + 1 >= end) {
            self.unread.remove(&place);
        }
        self.is_beyond || end.is_some_and(|end| record.offset < end)
    }

    /// The connections' own error since the last call.
    pub(crate) fn take_trouble(&self) -> Option<Obstacle> {
        let troubles = self.consumers.iter().map(|(_, consumer)| consumer.context().take_trouble());
        // A missing right to the group does not matter: nothing joins it.
        let of_connection = [Blocked::NoBroker, Blocked::NotAuthorized, Blocked::Tls];
        troubles.flatten().find(|trouble| of_connection.contains(&trouble.blocked))
    }
}
