//! Reads the dead-letter topic from the progress to the end that it had at the start.

use std::{collections::VecDeque, ops::Range, time::Duration};

use crate::{
    clock,
    event::{header, received_at_ms},
    kafka::{Blocked, Cluster, Fetched, Followed, Obstacle, Reader},
};

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
        /// Its own, and before it those since the letter before: transaction markers take offsets too.
        offsets: Range<i64>,
    },
    /// The name of its files.
    File(String),
}

impl Origin {
    /// The value of the header `replayed-from`.
    pub(super) fn name(&self, topic: &str) -> String {
        match self {
            Self::Record { partition, offsets } => {
                format!("{topic}/{partition}@{}", offsets.end - 1)
            }
            Self::File(name) => name.clone(),
        }
    }
}

impl Letter {
    pub(super) fn header(&self, name: &str) -> &str {
        header(&self.headers, name).unwrap_or_default()
    }

    pub(super) fn received_at_ms(&self) -> Option<u64> {
        received_at_ms(&self.headers)
    }
}

/// All partitions as one sequence: each in its order, the oldest callback first.
pub(super) struct Letters<R> {
    reader: R,
    partitions: Vec<Partition>,
}

struct Partition {
    number: i32,
    /// The offset after the last letter that was read; at least `end` if nothing more is to be read.
    next: i64,
    end: i64,
    /// Letters in order, each with when its callback was accepted, and its receipt.
    read: VecDeque<((u64, String), Letter)>,
}

impl<R: Reader> Letters<R> {
    /// Reads these partitions, each from an offset to another.
    pub(super) fn new<C: Cluster<Reader = R>>(
        cluster: &C,
        topic: &str,
        ranges: &[(i32, Range<i64>)],
    ) -> Result<Self, Obstacle> {
        let ranges = ranges.iter().filter(|(_, offsets)| !offsets.is_empty());
        let from: Vec<_> =
            ranges.clone().map(|(partition, offsets)| (*partition, offsets.start)).collect();
        let partition = |(number, offsets): &(i32, Range<i64>)| Partition {
            number: *number,
            next: offsets.start,
            end: offsets.end,
            read: VecDeque::new(),
        };
        Ok(Self {
            reader: cluster.read(topic, &from)?,
            partitions: ranges.map(partition).collect(),
        })
    }

    /// The next one; none at the end of all partitions.
    pub(super) fn next(&mut self) -> Result<Option<Letter>, Obstacle> {
        (0..self.partitions.len()).try_for_each(|at| self.fill(at))?;
        let with_letters = self.partitions.iter_mut().filter(|one| !one.read.is_empty());
        let oldest = with_letters.min_by(|one, other| one.read[0].0.cmp(&other.read[0].0));
        Ok(oldest.and_then(|oldest| oldest.read.pop_front()).map(|(_, letter)| letter))
    }

    /// Reads until a partition's next letter is there, or it has ended.
    fn fill(&mut self, at: usize) -> Result<(), Obstacle> {
        let deadline = clock::now() + PATIENCE;
        loop {
            let partition = &self.partitions[at];
            if !partition.read.is_empty() || partition.next >= partition.end {
                return Ok(());
            }
            if clock::now() >= deadline {
                let detail = "no broker gives the next letter";
                return Err(Obstacle::new(Blocked::NoBroker, detail));
            }
            let number = partition.number;
            if let Some(fetched) = self.reader.poll(number, STEP)? {
                self.take(fetched);
            }
        }
    }

    fn take(&mut self, fetched: Fetched) {
        let number = match &fetched {
            Fetched::Record(record) => record.partition,
            Fetched::End(number) => *number,
        };
        let mut partitions = self.partitions.iter_mut();
        let Some(partition) = partitions.find(|partition| partition.number == number) else {
            return;
        };
        match fetched {
            // The client may deliver a record twice.
            Fetched::Record(record) if record.offset < partition.next => {}
            Fetched::Record(Followed { offset, headers, value, .. }) if offset < partition.end => {
                let offsets = partition.next..offset + 1;
                partition.next = offsets.end;
                let origin = Origin::Record { partition: number, offsets };
                let letter = Letter { origin, headers, value };
                let receipt = letter.header("receipt").to_owned();
                let accepted = (letter.received_at_ms().unwrap_or(0), receipt);
                partition.read.push_back((accepted, letter));
            }
            _ => partition.next = partition.end,
        }
    }
}
