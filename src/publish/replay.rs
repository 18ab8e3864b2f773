//! Dead letters into Kafka again, by today's program and topics: exactly once.
//!
//! One transaction holds what letters become and, as offsets of a group of its own, which letters
//! are done. The transactional id is that group's name: who begins fences whoever was at it before,
//! and then reads what that one committed.
//!
//! **Invariant:** a letter is done only with the commit of what it became; what is still dead, or
//! left out by the filter, is not done, and a later replay comes across it again.

mod ground;
mod letters;
mod progress;
mod summary;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
};

use anyhow::Context as _;
use jiff::Timestamp;

pub use self::summary::{Kind, Outcome, Summary};
use self::{
    ground::Ground,
    letters::{Letter, Letters, Next, Origin},
    progress::Progress,
    verdict::{Judge, Outgoing, Verdict},
};
use super::{
    faults::Fault,
    quarantine,
    transaction::{Client, Step},
};
use crate::config::Config;

/// What one transaction takes; always at least one letter.
const TRANSACTION_RECORDS: usize = 1000;
const TRANSACTION_BYTES: usize = 4 << 20;
/// Quarantined files that are younger may belong to a callback that the edge has not settled yet.
const FILE_AGE_MIN: std::time::Duration = std::time::Duration::from_secs(60);
/// Files that are remembered as committed: those whose new name a crash may have prevented.
const FILES_REMEMBERED: usize = 32;

/// Which dead letters; empty means all.
#[derive(Debug, Default)]
pub struct Filter {
    pub reasons: BTreeSet<String>,
    pub sources: BTreeSet<String>,
    /// When their callbacks were received: from the first to before the second.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl Filter {
    fn takes(&self, letter: &Letter) -> bool {
        let has =
            |set: &BTreeSet<String>, name| set.is_empty() || set.contains(letter.header(name));
        let received = letter.received_at_ms().and_then(|ms| i64::try_from(ms).ok());
        let from = |since: Timestamp| received.is_some_and(|ms| ms >= since.as_millisecond());
        has(&self.reasons, "reason")
            && has(&self.sources, "source")
            && self.since.is_none_or(from)
            && self.until.is_none_or(|until| !from(until))
    }
}

/// What is to be replayed, and how.
#[derive(Debug, Default)]
pub struct Options {
    pub filter: Filter,
    /// Letters that still are dead are done as well.
    pub dismiss_dead: bool,
}

/// Is told how many letters are behind, and how many there are.
pub type Watch<'w> = &'w mut dyn FnMut(u64, u64);

/// What a replay would do; nothing is changed.
///
/// # Errors
/// When Kafka or the quarantine cannot be read.
pub fn look(config: &Config, options: &Options, watch: Watch<'_>) -> anyhow::Result<Summary> {
    let ground = Ground::open(config, false)?;
    Replay::new(&ground, options, None)?.run(watch)
}

/// Replays.
///
/// # Errors
/// What stands in the way; what was committed before that stays so, and the next run goes on there.
pub fn run(config: &Config, options: &Options, watch: Watch<'_>) -> anyhow::Result<Summary> {
    let ground = Ground::open(config, true)?;
    // Nobody else can move the progress behind this, so it is read then.
    let client = ground.client()?;
    Replay::new(&ground, options, Some(client))?.run(watch)
}

/// How far replaying is.
#[derive(Clone, Default)]
struct Kept {
    partitions: BTreeMap<i32, Progress>,
    /// Names of the quarantined files that were committed last.
    files: VecDeque<String>,
    /// Nothing at all is kept.
    nothing: bool,
}

/// A letter that goes into the next transaction.
struct Ready {
    origin: Origin,
    /// What is done with it, beside the letter itself what lies before it.
    offsets: i64,
    records: Vec<Outgoing>,
}

/// One run.
struct Replay<'a> {
    ground: &'a Ground<'a>,
    options: &'a Options,
    /// None: nothing is to be changed.
    client: Option<Client>,
    kept: Kept,
    summary: Summary,
    committed: usize,
    /// Records carry the present time: the broker refused the time of acceptance.
    present_time: bool,
}

impl<'a> Replay<'a> {
    fn new(
        ground: &'a Ground<'a>,
        options: &'a Options,
        client: Option<Client>,
    ) -> anyhow::Result<Self> {
        let kept = ground.kept()?;
        let summary = Summary { no_progress: kept.nothing, ..Summary::default() };
        Ok(Self { ground, options, client, kept, summary, committed: 0, present_time: false })
    }

    fn run(mut self, watch: Watch<'_>) -> anyhow::Result<Summary> {
        let ranges =
            self.ground.ranges(&mut self.kept).context("the dead letters cannot be read")?;
        let files = self.files().context("the quarantine cannot be read")?;
        let letters = ranges.iter().map(|(_, offsets)| (offsets.end - offsets.start).max(0) as u64);
        let total = letters.sum::<u64>() + files.len() as u64;
        let outcome = self.records(&ranges, total, watch).and_then(|()| {
            files.iter().try_for_each(|name| self.file(name))?;
            self.renew()
        });
        watch(total, total);
        let committed = self.committed;
        outcome.with_context(|| {
            format!("stopped behind {committed} letters that are done; the next run goes on there")
        })?;
        Ok(self.summary)
    }

    /// Replays what is in the dead-letter topic.
    fn records(
        &mut self,
        ranges: &[(i32, Range<i64>)],
        total: u64,
        watch: Watch<'_>,
    ) -> anyhow::Result<()> {
        let topic = self.ground.topics.dead_letter();
        let unreadable = "the dead letters cannot be read";
        let consumer = Arc::clone(&self.ground.consumer);
        let mut letters = Letters::new(consumer, topic, ranges).context(unreadable)?;
        let (mut ready, mut records, mut bytes) = (Vec::new(), 0, 0);
        let (mut behind, mut ends) = (0, Vec::new());
        while let Some(next) = letters.next().context(unreadable)? {
            match next {
                Next::End { partition, offsets } => ends.push((partition, offsets)),
                Next::Letter(letter, offsets) => {
                    behind += offsets as u64;
                    watch(behind, total);
                    if let Some(letter) = self.letter(&letter, offsets) {
                        records += letter.records.len();
                        bytes += letter.records.iter().map(|record| record.bytes).sum::<usize>();
                        ready.push(letter);
                    }
                }
            }
            let full = records >= TRANSACTION_RECORDS || bytes >= TRANSACTION_BYTES;
            if full || ready.len() >= TRANSACTION_RECORDS {
                self.publish(&ready)?;
                (records, bytes) = (0, 0);
                ready.clear();
            }
        }
        self.publish(&ready)?;
        for (partition, offsets) in ends {
            self.kept.partition(partition).insert_behind(offsets);
        }
        Ok(())
    }

    /// Judges a letter; none if nothing is to be done about it.
    fn letter(&mut self, letter: &Letter, offsets: i64) -> Option<Ready> {
        if let Origin::Record { partition, offset } = letter.origin {
            let progress = self.kept.partition(partition);
            if progress.contains(offset) {
                progress.insert(offset + 1 - offsets..offset + 1);
                self.summary.done_before += 1;
                return None;
            }
        }
        if !self.options.filter.takes(letter) {
            self.summary.left_out += 1;
            return None;
        }
        let judge = Judge { config: self.ground.config, topics: &self.ground.topics };
        let verdict = judge.judge(letter);
        self.summary.count(letter, &verdict, &self.ground.config.topics);
        let records = match verdict {
            Verdict::Records(records) => records,
            Verdict::Dead(_) if self.options.dismiss_dead => Vec::new(),
            Verdict::Dead(_) => return None,
        };
        Some(Ready { origin: letter.origin.clone(), offsets, records })
    }

    /// Commits these letters, together if Kafka takes them, else by halves, in order, up to the one
    /// that it does not take.
    fn publish(&mut self, letters: &[Ready]) -> anyhow::Result<()> {
        let Some(client) = &self.client else { return Ok(()) };
        if letters.is_empty() {
            return Ok(());
        }
        let next = self.kept.with(letters);
        let touched = |partition: &i32| letters.iter().any(|letter| letter.is_of(*partition));
        let offsets = self.ground.offsets(&next, touched)?;
        let present_time = &mut self.present_time;
        let failure = match self.ground.try_some_times(client, letters, &offsets, present_time) {
            Ok(()) => {
                self.kept = next;
                self.committed += letters.len();
                return Ok(());
            }
            Err(failure) => failure,
        };
        match (failure.fault(), letters) {
            _ if failure.step == Step::Commit => Err(self.ground.failed(&failure)),
            (Fault::Record | Fault::RecordIfTwice | Fault::Neighbour, [letter]) => {
                Err(self.ground.refused(letter, &failure))
            }
            (Fault::Record | Fault::RecordIfTwice | Fault::Neighbour, letters) => {
                let (first, second) = letters.split_at(letters.len() / 2);
                self.publish(first)?;
                self.publish(second)
            }
            _ => Err(self.ground.failed(&failure)),
        }
    }

    /// The quarantined files that are to be replayed. Those that are done get their other name.
    fn files(&self) -> std::io::Result<Vec<String>> {
        let directory = &self.ground.quarantine;
        let mut names = Vec::new();
        for name in quarantine::list(directory, FILE_AGE_MIN)? {
            let done =
                self.kept.files.contains(&name) || quarantine::was_replayed(directory, &name);
            if !done {
                names.push(name);
            } else if self.client.is_some() {
                quarantine::mark_replayed(directory, &name)?;
            }
        }
        Ok(names)
    }

    fn file(&mut self, name: &str) -> anyhow::Result<()> {
        let directory = &self.ground.quarantine;
        let at = || format!("the quarantined file {}", directory.join(name).display());
        let (headers, value) = match quarantine::read(directory, name) {
            // Judged as what it is: no letter.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Default::default(),
            read => read.with_context(at)?,
        };
        let letter = Letter { origin: Origin::File(name.to_owned()), headers, value };
        let Some(letter) = self.letter(&letter, 0) else { return Ok(()) };
        self.publish(&[letter])?;
        if self.client.is_some() {
            quarantine::mark_replayed(directory, name).with_context(at)?;
        }
        Ok(())
    }

    /// Commits the progress once more: Kafka forgets it some time after it was last committed.
    fn renew(&self) -> anyhow::Result<()> {
        let Some(client) = &self.client else { return Ok(()) };
        let offsets = self.ground.offsets(&self.kept, |_| true)?;
        self.ground
            .transact(client, &[], &offsets, false)
            .map_err(|failure| self.ground.failed(&failure))
    }
}

impl Ready {
    fn is_of(&self, partition: i32) -> bool {
        matches!(self.origin, Origin::Record { partition: own, .. } if own == partition)
    }
}

impl Kept {
    fn partition(&mut self, partition: i32) -> &mut Progress {
        self.partitions.entry(partition).or_default()
    }

    /// The same when these letters are done.
    fn with(&self, letters: &[Ready]) -> Self {
        let mut next = self.clone();
        for letter in letters {
            match &letter.origin {
                Origin::Record { partition, offset } => {
                    let end = offset + 1;
                    next.partition(*partition).insert(end - letter.offsets..end);
                }
                Origin::File(name) => {
                    next.files.push_back(name.clone());
                    if next.files.len() > FILES_REMEMBERED {
                        next.files.pop_front();
                    }
                }
            }
        }
        next
    }
}
