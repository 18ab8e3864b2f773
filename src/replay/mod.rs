//! Publishes dead letters again, by today's program and topics: exactly once.
//!
//! One transaction holds what letters become and, as offsets of the replay's own group, which
//! letters are done. The transactional id is that group's name: a replay fences an earlier one, and
//! then reads what that one committed.
//!
//! **Invariant:** a letter is done only with the commit of what it became. A letter that is still
//! dead, or left out by the filter, is not done: a later replay reads it again.

mod letters;
mod progress;
mod summary;
mod transaction;

use std::{
    collections::BTreeSet,
    io, mem,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use jiff::Timestamp;

pub use self::summary::{Outcome, ReplaySummary};
use self::{
    letters::{Letter, Letters, Origin},
    progress::{Kept, Progress},
};
use crate::{
    config::Config,
    event::{Item, KeptLetter, Reason, Topic},
    journal::{
        self, Directory, Position,
        disk::{Disk, Real},
    },
    kafka::{BATCH_BYTES, Cluster, Draft, ProducerSettings, Timestamps, Topics, View, librdkafka},
    metrics::Metrics,
    normalize,
    quarantine::QuarantinedFiles,
};

const CALL: Duration = Duration::from_secs(10);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// What one transaction takes; always at least one letter. Few bytes, so that a slow cluster takes them in time.
const TRANSACTION_RECORDS: usize = 1000;
const TRANSACTION_BYTES: usize = 512 << 10;
/// The header of a replayed record that names its letter.
const REPLAYED_FROM: &str = "replayed-from";
const UNREADABLE: &str = "the dead letters cannot be read";
const NO_QUARANTINE: &str = "the quarantine cannot be read";

/// What is to be replayed, and how. Empty means all.
#[derive(Debug, Default)]
pub struct ReplayOptions {
    /// By the header `reason`.
    pub reasons: BTreeSet<String>,
    /// By the header `source`.
    pub sources: BTreeSet<String>,
    /// Received at this time or later.
    pub since: Option<Timestamp>,
    /// Received before this time.
    pub until: Option<Timestamp>,
    /// Letters that still are dead are done as well.
    pub dismiss_dead: bool,
    /// Nothing is changed: the summary tells what a replay would do.
    pub dry_run: bool,
}

impl ReplayOptions {
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

/// Is told how many letters were read, and how many there are.
pub type Watch<'w> = &'w mut dyn FnMut(u64, u64);

/// Replays.
///
/// # Errors
/// What stands in the way. What was committed before stays so, and the next run goes on there.
pub fn run(
    config: &Config,
    options: &ReplayOptions,
    watch: Watch<'_>,
) -> anyhow::Result<ReplaySummary> {
    let metrics = Arc::new(Metrics::default());
    let cluster = librdkafka::Cluster::new(Arc::new(config.clone()), group(config), metrics)?;
    run_on(config, options, watch, cluster, &Real)
}

/// The same on any cluster and disk.
///
/// # Errors
/// As [`run`].
pub fn run_on<C: Cluster>(
    config: &Config,
    options: &ReplayOptions,
    watch: Watch<'_>,
    cluster: C,
    disk: &dyn Disk,
) -> anyhow::Result<ReplaySummary> {
    let topics = cluster.look(!options.dry_run);
    let topics = topics.with_context(|| format!("Kafka at {}", config.kafka.bootstrap_servers))?;
    let settings = ProducerSettings { timeout: TRANSACTION_TIMEOUT, batch_bytes: BATCH_BYTES };
    let open = || {
        cluster.open(&topics, settings).with_context(|| {
            format!("needs the right to write with the transactional id {}", group(config))
        })
    };
    let producer = (!options.dry_run).then(open).transpose()?;
    let journal = Directory { disk, path: &config.journal.directory };
    let mut replay = Replay {
        config,
        options,
        cluster,
        topics,
        journal,
        quarantine: QuarantinedFiles::of(journal),
        producer,
        kept: Kept::default(),
        summary: ReplaySummary::default(),
        committed: 0,
        timestamps: Timestamps::Accepted,
    };
    // After the producer was opened, no other replay can move the progress.
    replay.read_kept()?;
    replay.run(watch)
}

/// The group that keeps the progress. Its name is the transactional id too.
fn group(config: &Config) -> String {
    format!("weni-edge-replay.{}", config.topics.dead_letter)
}

/// What a letter becomes: records, none if nothing in it would be published; or why it still is dead.
type Verdict = Result<Vec<Draft>, &'static str>;

/// A letter that goes into the next transaction.
struct Ready {
    origin: Origin,
    records: Vec<Draft>,
    /// When its callback was accepted.
    accepted_ms: u64,
}

struct Replay<'a, C: Cluster> {
    config: &'a Config,
    options: &'a ReplayOptions,
    cluster: C,
    topics: Topics,
    journal: Directory<'a>,
    quarantine: QuarantinedFiles<'a>,
    /// None in a dry run.
    producer: Option<C::Producer>,
    kept: Kept,
    summary: ReplaySummary,
    committed: usize,
    timestamps: Timestamps,
}

impl<C: Cluster> Replay<'_, C> {
    fn run(mut self, watch: Watch<'_>) -> anyhow::Result<ReplaySummary> {
        let ranges = self.ranges().context(UNREADABLE)?;
        if self.summary.started_over {
            // Now: a run that commits nothing would leave the old progress, which new letters would grow past.
            self.renew()?;
        }
        let (_, files) = self.files().context(NO_QUARANTINE)?;
        let letters = ranges.iter().map(|(_, offsets)| (offsets.end - offsets.start).max(0) as u64);
        let total = letters.sum::<u64>() + files.len() as u64;
        let outcome = self.records(&ranges, total, watch).and_then(|()| {
            files.iter().try_for_each(|name| self.file(name))?;
            self.settle_files()
        });
        watch(total, total);
        let committed = self.committed;
        outcome.with_context(|| {
            format!("stopped after {committed} letters that are done; the next run goes on there")
        })?;
        Ok(self.summary)
    }

    fn dead_letter(&self) -> &str {
        self.topics.name(Topic::DeadLetter)
    }

    /// Reads the progress that Kafka keeps.
    fn read_kept(&mut self) -> anyhow::Result<()> {
        let topic = self.topics.name(Topic::DeadLetter);
        let partitions = self.cluster.partitions(topic)?;
        if partitions.is_empty() {
            bail!("topic {topic} does not exist: topics.dead_letter names it");
        }
        let mut asked: Vec<_> = partitions.iter().map(|partition| (topic, *partition)).collect();
        asked.push((&self.config.topics.position, 0));
        let offsets = self.cluster.committed(View::Stable, &asked, CALL).with_context(|| {
            let group = group(self.config);
            format!("the progress cannot be read: needs the right to read the group {group}")
        })?;
        self.summary.no_progress = offsets.is_empty();
        self.kept.partitions =
            partitions.into_iter().map(|number| (number, Progress::default())).collect();
        for kept in offsets {
            if kept.topic == topic {
                let progress = Progress::read(kept.offset, &kept.metadata).with_context(|| {
                    let text = &kept.metadata;
                    format!(
                        "{text:?} is no progress that this program can read: most likely a newer one \
                         wrote it"
                    )
                })?;
                self.kept.partitions.insert(kept.partition, progress);
            } else {
                self.kept.files = kept.metadata.split_whitespace().map(str::to_owned).collect();
            }
        }
        Ok(())
    }

    /// The offsets to be read: for each partition, from its progress to its end. If the progress of
    /// one lies beyond its end, the topic is not the one that was replayed, and all progress is
    /// dropped.
    fn ranges(&mut self) -> anyhow::Result<Vec<(i32, Range<i64>)>> {
        let topic = self.topics.name(Topic::DeadLetter);
        let partitions = &mut self.kept.partitions;
        let watermarks = |partition: &i32| self.cluster.watermarks(topic, *partition);
        let watermarks: Vec<_> = partitions.keys().map(watermarks).collect::<Result<_, _>>()?;
        let mut both = partitions.values().zip(&watermarks);
        self.summary.started_over = both.any(|(progress, there)| progress.is_beyond(there.end));
        let mut ranges = Vec::new();
        for ((partition, progress), there) in partitions.iter_mut().zip(watermarks) {
            if self.summary.started_over {
                *progress = Progress::default();
            }
            // Deleted letters cannot be replayed any more.
            progress.insert(0..there.start);
            ranges.push((*partition, progress.first()..there.end));
        }
        Ok(ranges)
    }

    fn records(
        &mut self,
        ranges: &[(i32, Range<i64>)],
        total: u64,
        watch: Watch<'_>,
    ) -> anyhow::Result<()> {
        let letters = Letters::new(&self.cluster, self.dead_letter(), ranges);
        let mut letters = letters.context(UNREADABLE)?;
        let (mut ready, mut records, mut bytes) = (Vec::new(), 0, 0);
        let mut done = 0;
        while let Some(letter) = letters.next().context(UNREADABLE)? {
            if let Origin::Record { offsets, .. } = &letter.origin {
                done += (offsets.end - offsets.start) as u64;
            }
            watch(done, total);
            if let Some(letter) = self.letter(letter) {
                records += letter.records.len();
                bytes += letter.records.iter().map(Draft::wire_bytes).sum::<usize>();
                ready.push(letter);
            }
            let full = records >= TRANSACTION_RECORDS || bytes >= TRANSACTION_BYTES;
            if full || ready.len() >= TRANSACTION_RECORDS {
                self.publish(&ready)?;
                (records, bytes) = (0, 0);
                ready.clear();
            }
        }
        self.publish(&ready)
    }

    /// Judges a letter; none if nothing is to be done about it.
    fn letter(&mut self, letter: Letter) -> Option<Ready> {
        if let Origin::Record { partition, offsets } = &letter.origin {
            let progress = self.kept.partition(*partition);
            if progress.contains(offsets.end - 1) {
                progress.insert(offsets.clone());
                self.summary.done_before += 1;
                return None;
            }
        }
        if !self.options.takes(&letter) {
            self.summary.left_out += 1;
            return None;
        }
        let verdict = self.judge(&letter);
        self.summary.count(&letter, &verdict, &self.topics);
        let records = match verdict {
            Ok(records) => records,
            Err(_) if self.options.dismiss_dead => Vec::new(),
            Err(_) => return None,
        };
        let accepted_ms = letter.received_at_ms().unwrap_or_default();
        Some(Ready { origin: letter.origin, records, accepted_ms })
    }

    /// Judges a letter by today's program, topics and settings.
    fn judge(&self, letter: &Letter) -> Verdict {
        let mut kept = KeptLetter::read(&letter.headers, &letter.value).ok_or("no_letter")?;
        // A letter does not keep its source's setting; the configuration has it if it has the source.
        let source = self.config.sources.get(kept.callback.source);
        kept.callback.raw = source.is_none_or(|source| source.raw);
        // A callback that made the edge panic may do so again.
        catch_unwind(AssertUnwindSafe(|| self.normalized(letter, &kept)))
            .unwrap_or(Err(Reason::Panic.as_str()))
    }

    fn normalized(&self, letter: &Letter, kept: &KeptLetter<'_>) -> Verdict {
        let settings = self.config.event_settings(kept.callback.source);
        let origin = letter.origin.name(self.dead_letter());
        let body = normalize::decode_letter(kept, self.config.http.max_body_bytes);
        let document = normalize::parse(&body);
        let (mut records, mut dead, mut events) = (Vec::new(), None, 0);
        for item in normalize::items_of_letter(kept, settings, &document) {
            let mut draft = Draft::default();
            match draft.write(item, None, &self.topics) {
                Item::Event(_) => events += 1,
                // A dead letter beside events becomes a letter again: the whole first letter is done.
                Item::DeadLetter(letter) => dead = dead.or(Some(letter.reason.as_str())),
            }
            draft.headers.push(REPLAYED_FROM, origin.as_bytes());
            records.push(draft);
        }
        match dead {
            Some(reason) if events == 0 => Err(reason),
            _ => Ok(records),
        }
    }

    /// The quarantined files that are done, and those to be replayed.
    fn files(&self) -> io::Result<(Vec<String>, Vec<String>)> {
        let (mut done, mut open) = (Vec::new(), Vec::new());
        // Files of later callbacks belong to an attempt of the edge that may not be committed.
        let committed = journal::committed_on_disk(self.journal).map_err(io::Error::other)?;
        for name in self.quarantine.settled_letters(committed.unwrap_or(Position::MIN))? {
            match self.kept.files.contains(&name) || self.quarantine.was_replayed(&name)? {
                true => done.push(name),
                false => open.push(name),
            }
        }
        Ok((done, open))
    }

    fn file(&mut self, name: &str) -> anyhow::Result<()> {
        let at = format!("the quarantined file {}", self.quarantine.path.join(name).display());
        let (headers, value) = match self.quarantine.read(name) {
            // Counted as a dead letter that is none.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Default::default(),
            read => read.with_context(|| at.clone())?,
        };
        let letter = Letter { origin: Origin::File(name.to_owned()), headers, value };
        let Some(letter) = self.letter(letter) else { return Ok(()) };
        if self.kept.is_full() && self.producer.is_some() {
            self.settle_files()?;
            if self.kept.is_full() {
                bail!(
                    "a replay on another edge was broken off and has {} files to rename: run it there again \
                     first",
                    self.kept.files.len()
                );
            }
        }
        self.publish(&[letter])
    }

    /// Renames the files that are done, and then forgets those that are renamed: other edges need the room. A
    /// file has to have its name as long as a broker that is killed may forget its commit, so another commit
    /// comes before; and no longer than the progress names it.
    fn settle_files(&mut self) -> anyhow::Result<()> {
        if self.producer.is_none() {
            return Ok(());
        }
        self.renew()?;
        let (done, _) = self.files().context(NO_QUARANTINE)?;
        for name in done {
            let at =
                || format!("the quarantined file {}", self.quarantine.path.join(&name).display());
            self.quarantine.mark_replayed(&name).with_context(at)?;
        }
        let known = mem::take(&mut self.kept.files);
        let count = known.len();
        for name in known {
            if !self.quarantine.was_replayed(&name).context(NO_QUARANTINE)? {
                self.kept.files.push(name);
            }
        }
        if self.kept.files.len() < count { self.renew() } else { Ok(()) }
    }
}
