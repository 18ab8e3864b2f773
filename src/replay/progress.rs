//! Which letters are done: for each partition the offset of the first that is not, with metadata
//! that names the runs of done ones after it.

use std::{collections::BTreeMap, ops::Range};

use anyhow::bail;

use super::{Ready, letters::Origin};
use crate::{config, kafka::GroupOffset};

/// The longest metadata of an offset that brokers take by default (`offset.metadata.max.bytes`).
const METADATA_BYTES_MAX: usize = 4096;
/// Before the runs: how they are written.
const VERSION: &str = "v1";
/// Files that are remembered as committed: as many names as fit into the metadata.
const FILES_REMEMBERED: usize = 32;

/// How far replaying is.
#[derive(Clone, Default)]
pub(super) struct Kept {
    pub(super) partitions: BTreeMap<i32, Progress>,
    /// Names of quarantined files that are committed and may not be renamed yet, oldest first. All edges of
    /// the topic share them, and each has only its own files.
    pub(super) files: Vec<String>,
}

impl Kept {
    pub(super) fn partition(&mut self, partition: i32) -> &mut Progress {
        self.partitions.entry(partition).or_default()
    }

    /// Whether there is no room for the name of another file.
    pub(super) fn is_full(&self) -> bool {
        self.files.len() >= FILES_REMEMBERED
    }

    /// The progress after these letters.
    pub(super) fn with(&self, letters: &[Ready]) -> Self {
        let mut next = self.clone();
        for letter in letters {
            match &letter.origin {
                Origin::Record { partition, offsets } => {
                    next.partition(*partition).insert(offsets.clone());
                }
                Origin::File(name) => next.files.push(name.clone()),
            }
        }
        next
    }

    /// The group's offsets: of the partitions, and of the files. An error if what is done in a partition is
    /// too scattered for an offset's metadata.
    pub(super) fn offsets(&self, topics: &config::Topics) -> anyhow::Result<Vec<GroupOffset>> {
        let mut offsets = Vec::new();
        let topic = &topics.dead_letter;
        for (&partition, progress) in &self.partitions {
            let metadata = progress.metadata();
            if metadata.len() > METADATA_BYTES_MAX {
                bail!(
                    "what is done in {topic}/{partition} lies too scattered for Kafka to keep: \
                     replay once without --reason, --source, --since and --until; if letters that \
                     are still dead lie between those that are done, with --dismiss-dead"
                );
            }
            let (topic, offset) = (topic.clone(), progress.first());
            offsets.push(GroupOffset { topic, partition, offset, metadata });
        }
        let (topic, metadata) = (topics.position.clone(), self.files.join(" "));
        offsets.push(GroupOffset { topic, partition: 0, offset: 0, metadata });
        Ok(offsets)
    }
}

/// The offsets of one partition that are done: begin and end of each run. Runs do not touch each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress(BTreeMap<i64, i64>);

impl Progress {
    /// The first offset that is not done.
    pub(super) fn first(&self) -> i64 {
        self.0.get(&0).copied().unwrap_or_default()
    }

    pub(super) fn contains(&self, offset: i64) -> bool {
        let run = self.0.range(..=offset).next_back();
        run.is_some_and(|(_, end)| offset < *end)
    }

    /// These are done.
    pub(super) fn insert(&mut self, offsets: Range<i64>) {
        let Range { mut start, mut end } = offsets;
        if start >= end {
            return;
        }
        // Runs that touch it become one with it.
        while let Some((&run, &run_end)) = self.0.range(..=end).next_back()
            && run_end >= start
        {
            self.0.remove(&run);
            (start, end) = (start.min(run), end.max(run_end));
        }
        self.0.insert(start, end);
    }

    /// Whether something at or after `end` is done: the topic was made anew, or has lost its end.
    pub(super) fn is_beyond(&self, end: i64) -> bool {
        self.0.last_key_value().is_some_and(|(_, run_end)| *run_end > end)
    }

    /// The runs after [`first`](Self::first), each as `<not done>+<done>`: numbers of offsets after the
    /// run before.
    pub(super) fn metadata(&self) -> String {
        let mut text = VERSION.to_owned();
        let mut at = self.first();
        for (start, end) in self.0.range(1..) {
            text += &format!(" {}+{}", start - at, end - start);
            at = *end;
        }
        text
    }

    /// Reads what was committed; none if it is no progress. An offset without metadata was set by
    /// hand.
    pub(super) fn read(first: i64, metadata: &str) -> Option<Self> {
        let mut progress = Self::default();
        progress.insert(0..first);
        if metadata.is_empty() {
            return Some(progress);
        }
        let mut words = metadata.split(' ');
        if words.next() != Some(VERSION) {
            return None;
        }
        let positive = |text: &str| text.parse().ok().filter(|number: &i64| *number > 0);
        let mut at = first;
        for word in words {
            let (skip, len) = word.split_once('+')?;
            let start = at.checked_add(positive(skip)?)?;
            at = start.checked_add(positive(len)?)?;
            progress.0.insert(start, at);
        }
        Some(progress)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_are_written_as_distances() {
        let mut progress = Progress::read(10, "").unwrap();
        assert_eq!((progress.first(), progress.metadata().as_str()), (10, "v1"));
        progress.insert(12..15);
        progress.insert(20..21);
        assert_eq!((progress.first(), progress.metadata().as_str()), (10, "v1 2+3 5+1"));
        progress.insert(10..12);
        assert_eq!((progress.first(), progress.metadata().as_str()), (15, "v1 5+1"));
    }

    #[test]
    fn what_is_no_progress_is_said_to_be_none() {
        assert_eq!(Progress::read(7, ""), Some(Progress(BTreeMap::from([(0, 7)]))));
        for text in
            ["v2 1+1", "v1 1", "v1 0+1", "v1 1+0", "v1 1+-1", "v1 1+1 ", "v1 9223372036854775807+1"]
        {
            assert_eq!(Progress::read(7, text), None, "{text}");
        }
    }

    #[test]
    fn progress_beyond_the_end_is_seen() {
        let mut progress = Progress::read(10, "").unwrap();
        assert!(!progress.is_beyond(10), "all of it is done");
        assert!(progress.is_beyond(9));
        progress.insert(12..15);
        assert!(!progress.is_beyond(15));
        assert!(progress.is_beyond(14), "a run reaches beyond");
    }

    proptest! {
        /// It is the set that it stands for, however it is filled, and reads back as it was
        /// written.
        #[test]
        fn it_is_a_set(first in 0..50_i64, ranges in prop::collection::vec((0..200_i64, 0..12_i64), 0..40)) {
            let mut progress = Progress::read(first, "").unwrap();
            let mut set: BTreeSet<i64> = (0..first).collect();
            for (start, len) in ranges {
                progress.insert(start..start + len);
                set.extend(start..start + len);
            }
            for offset in 0..220 {
                prop_assert_eq!(progress.contains(offset), set.contains(&offset), "{}", offset);
            }
            prop_assert_eq!(progress.first(), (0..).find(|offset| !set.contains(offset)).unwrap());
            let read = Progress::read(progress.first(), &progress.metadata());
            prop_assert_eq!(read, Some(progress));
        }
    }
}
