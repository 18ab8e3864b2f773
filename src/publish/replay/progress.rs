//! Which letters of a partition are done: kept as the offset of the first that is not, and in its
//! metadata the runs of those above it.

use std::{collections::BTreeMap, ops::Range};

/// What brokers take as an offset's metadata by default (`offset.metadata.max.bytes`).
pub(super) const METADATA_BYTES_MAX: usize = 4096;
/// Before the runs: how they are written.
const VERSION: &str = "v1";

/// The offsets of one partition that are done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The first that is not.
    first: i64,
    /// Runs above it, begin and end; they do not touch each other.
    runs: BTreeMap<i64, i64>,
}

/// Why metadata is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no progress that this program can read: most likely a newer one wrote it")]
pub(super) struct Unreadable(String);

impl Progress {
    /// Everything before `first` is done.
    pub(super) fn from(first: i64) -> Self {
        Self { first, runs: BTreeMap::new() }
    }

    /// The first offset that is not done: what is committed.
    pub(super) fn first(&self) -> i64 {
        self.first
    }

    pub(super) fn contains(&self, offset: i64) -> bool {
        let run = self.runs.range(..=offset).next_back();
        offset < self.first || run.is_some_and(|(_, end)| offset < *end)
    }

    /// These are done.
    pub(super) fn insert(&mut self, offsets: Range<i64>) {
        let (mut start, mut end) = (offsets.start.max(self.first), offsets.end);
        if start >= end {
            return;
        }
        // Runs that touch it become one with it.
        while let Some((&run, &run_end)) = self.runs.range(..=end).next_back()
            && run_end >= start
        {
            self.runs.remove(&run);
            (start, end) = (start.min(run), end.max(run_end));
        }
        if start == self.first {
            self.first = end;
        } else {
            self.runs.insert(start, end);
        }
    }

    /// Nothing is at these offsets: they are done if what lies before them is, and not worth a run
    /// of their own otherwise.
    pub(super) fn insert_behind(&mut self, offsets: Range<i64>) {
        if offsets.start <= self.first || self.contains(offsets.start - 1) {
            self.insert(offsets);
        }
    }

    /// The runs, each as `<not done>+<done>`: how many offsets behind the one before.
    pub(super) fn metadata(&self) -> String {
        let mut text = VERSION.to_owned();
        let mut at = self.first;
        for (start, end) in &self.runs {
            text += &format!(" {}+{}", start - at, end - start);
            at = *end;
        }
        text
    }

    /// Reads what was committed. An offset without metadata was set by somebody by hand.
    pub(super) fn read(first: i64, metadata: &str) -> Result<Self, Unreadable> {
        let unreadable = || Unreadable(metadata.to_owned());
        let mut progress = Self::from(first);
        if metadata.is_empty() {
            return Ok(progress);
        }
        let mut words = metadata.split(' ');
        if words.next() != Some(VERSION) {
            return Err(unreadable());
        }
        let mut at = first;
        for word in words {
            let parse = |text: &str| text.parse().ok().filter(|number: &i64| *number > 0);
            let (skip, len) = word.split_once('+').ok_or_else(unreadable)?;
            let start = parse(skip).and_then(|skip| at.checked_add(skip)).ok_or_else(unreadable)?;
            at = parse(len).and_then(|len| start.checked_add(len)).ok_or_else(unreadable)?;
            progress.runs.insert(start, at);
        }
        Ok(progress)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_are_written_as_distances() {
        let mut progress = Progress::from(10);
        assert_eq!((progress.first(), progress.metadata().as_str()), (10, "v1"));
        progress.insert(12..15);
        progress.insert(20..21);
        assert_eq!((progress.first(), progress.metadata().as_str()), (10, "v1 2+3 5+1"));
        progress.insert(10..12);
        assert_eq!((progress.first(), progress.metadata().as_str()), (15, "v1 5+1"));
    }

    #[test]
    fn what_is_no_progress_is_said_to_be_none() {
        assert_eq!(Progress::read(7, ""), Ok(Progress::from(7)));
        for text in
            ["v2 1+1", "v1 1", "v1 0+1", "v1 1+0", "v1 1+-1", "v1 1+1 ", "v1 9223372036854775807+1"]
        {
            assert_eq!(Progress::read(7, text), Err(Unreadable(text.to_owned())), "{text}");
        }
    }

    proptest! {
        /// It is the set that it stands for, however it is filled, and reads back as it was written.
        #[test]
        fn it_is_a_set(first in 0..50_i64, ranges in prop::collection::vec((0..200_i64, 0..12_i64), 0..40)) {
            let mut progress = Progress::from(first);
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
            prop_assert_eq!(read, Ok(progress));
        }
    }
}
