//! Reads the dead-letter topic from where the progress is to where it ended at the start.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, Headers},
    types::RDKafkaErrorCode as Code,
};

use super::super::{
    faults::{Blocked, Fault, whose},
    transaction::Context,
};
use crate::event::{header, received_at_ms};

/// How long a broker may take for the next letter.
const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(100);

/// A dead letter as it is kept.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) origin: Origin,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) value: Vec<u8>,
}

/// Where a dead letter is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Record {
        partition: i32,
        offset: i64,
    },
    /// The name of its files.
    File(String),
}

impl Origin {
    /// What the header `replayed-from` says.
    pub(super) fn name(&self, topic: &str) -> String {
        match self {
            Self::Record { partition, offset } => format!("{topic}/{partition}@{offset}"),
            Self::File(name) => name.clone(),
        }
    }
}

impl Letter {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        let owned = |value: Option<&[u8]>| value.unwrap_or_default().to_vec();
        Self {
            origin: Origin::Record { partition: message.partition(), offset: message.offset() },
            headers: headers.map(|header| (header.key.to_owned(), owned(header.value))).collect(),
            value: owned(message.payload()),
        }
    }

    pub(super) fn header(&self, name: &str) -> &str {
        header(&self.headers, name).unwrap_or_default()
    }

    pub(super) fn received_at_ms(&self) -> Option<u64> {
        received_at_ms(&self.headers)
    }
}

/// What comes next in a partition.
#[derive(Debug)]
pub(super) enum Next {
    /// A letter, and how many offsets lie between the one before and the one behind it: Kafka keeps
    /// marks of its own among them.
    Letter(Letter, i64),
    /// A partition has no more letters; there is none at these offsets.
    End { partition: i32, offsets: Range<i64> },
}

/// All partitions as one sequence: each in its order, and among them the oldest callback first.
pub(super) struct Letters {
    consumer: Arc<BaseConsumer<Context>>,
    partitions: Vec<Partition>,
}

struct Partition {
    number: i32,
    queue: PartitionQueue<Context>,
    /// Behind what was given away.
    next: i64,
    end: i64,
    /// Letters in order, each with when its callback was accepted.
    read: VecDeque<(i64, (u64, String), Letter)>,
    ended: bool,
}

/// What polling brings.
enum Event {
    Letter(i32, i64, Letter),
    End(i32),
}

impl Letters {
    /// Reads these partitions, each from an offset to another.
    pub(super) fn new(
        consumer: Arc<BaseConsumer<Context>>,
        topic: &str,
        ranges: &[(i32, Range<i64>)],
    ) -> KafkaResult<Self> {
        let ranges = ranges.iter().filter(|(_, offsets)| !offsets.is_empty());
        let mut assignment = TopicPartitionList::new();
        for (partition, offsets) in ranges.clone() {
            assignment.add_partition_offset(topic, *partition, Offset::Offset(offsets.start))?;
        }
        consumer.assign(&assignment)?;
        // A queue each: one partition's letters must not fill the memory while another's are due.
        let split = |(number, offsets): &(i32, Range<i64>)| {
            let queue = consumer.split_partition_queue(topic, *number)?;
            let (next, end) = (offsets.start, offsets.end);
            Some(Partition {
                number: *number,
                queue,
                next,
                end,
                read: VecDeque::new(),
                ended: false,
            })
        };
        let partitions = ranges.filter_map(split).collect();
        Ok(Self { consumer, partitions })
    }

    /// The next one; none at the end.
    ///
    /// # Errors
    /// When Kafka does not give it.
    pub(super) fn next(&mut self) -> KafkaResult<Option<Next>> {
        for at in 0..self.partitions.len() {
            self.fill(at)?;
            let Partition { number, next, end, ref read, .. } = self.partitions[at];
            if read.is_empty() && next < end {
                self.partitions[at].next = end;
                return Ok(Some(Next::End { partition: number, offsets: next..end }));
            }
        }
        let with_letters =
            self.partitions.iter_mut().filter(|partition| !partition.read.is_empty());
        let accepted = |partition: &Partition| partition.read[0].1.clone();
        let Some(oldest) = with_letters.min_by_key(|partition| accepted(partition)) else {
            return Ok(None);
        };
        Ok(oldest.read.pop_front().map(|(offset, _, letter)| {
            let offsets = offset + 1 - oldest.next;
            oldest.next = offset + 1;
            Next::Letter(letter, offsets)
        }))
    }

    /// Sees to it that a partition's next letter is there, or that it is known to have ended.
    fn fill(&mut self, at: usize) -> KafkaResult<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let partition = &self.partitions[at];
            if !partition.read.is_empty() || partition.ended || partition.next >= partition.end {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(KafkaError::MessageConsumption(Code::OperationTimedOut));
            }
            // What was fetched before the queues were split off, and the client's own events.
            while let Some(polled) = self.consumer.poll(Duration::ZERO) {
                let event = event(polled)?;
                take(&mut self.partitions, event);
            }
            if let Some(polled) = self.partitions[at].queue.poll(STEP) {
                let event = event(polled)?;
                take(&mut self.partitions, event);
            }
        }
    }
}

fn event(polled: KafkaResult<BorrowedMessage<'_>>) -> KafkaResult<Option<Event>> {
    match polled {
        Ok(message) => {
            let letter = Letter::of(&message);
            Ok(Some(Event::Letter(message.partition(), message.offset(), letter)))
        }
        Err(KafkaError::PartitionEOF(partition)) => Ok(Some(Event::End(partition))),
        // The client connects again by itself.
        Err(error) => match error.rdkafka_error_code().map(whose) {
            Some(Fault::Time | Fault::Everyone(Blocked::NoBroker)) => Ok(None),
            _ => Err(error),
        },
    }
}

fn take(partitions: &mut [Partition], event: Option<Event>) {
    let Some(event) = event else { return };
    let (Event::Letter(number, ..) | Event::End(number)) = event;
    let Some(partition) = partitions.iter_mut().find(|partition| partition.number == number) else {
        return;
    };
    match event {
        // A repetition would be read twice.
        Event::Letter(_, offset, _) if offset < partition.next => {}
        Event::Letter(_, offset, letter) if offset < partition.end => {
            let receipt = letter.header("receipt").to_owned();
            let accepted = (letter.received_at_ms().unwrap_or(0), receipt);
            partition.read.push_back((offset, accepted, letter));
        }
        _ => partition.ended = true,
    }
}
