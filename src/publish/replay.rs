//! Dead letters into Kafka again, by today's program and topics: exactly once.
//!
//! One transaction holds what letters become and, as offsets of a group of its own, which letters
//! are done. The transactional id is that group's name: who begins fences whoever was at it before,
//! and then reads what that one committed.
//!
//! **Invariant:** a letter is done only with the commit of what it became; what is still dead, or
//! left out by the filter, is not done, and a later replay comes across it again.

mod letters;
mod progress;
mod summary;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
    types::RDKafkaErrorCode as Code,
};

pub use self::summary::{Kind, Outcome, Summary};
use self::{
    letters::{Letter, Letters, Next, Origin},
    progress::{METADATA_BYTES_MAX, Progress},
    verdict::{Judge, Outgoing, Verdict},
};
use super::{
    batch::now_ms,
    faults::{Fault, Obstacle},
    opening::{base_config, consumer_config, producer_config},
    quarantine,
    session::BATCH_BYTES,
    topics::{self, Topics},
    transaction::{Client, Context, Failure, Record, Step, label},
};
use crate::{config::Config, metrics::Metrics};

const CALL: Duration = Duration::from_secs(10);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// What one transaction takes; always at least one letter.
const TRANSACTION_RECORDS: usize = 1000;
const TRANSACTION_BYTES: usize = 4 << 20;
const TRIES: u32 = 5;
/// Quarantined files that are younger may belong to a callback that the edge has not settled yet.
const FILE_AGE_MIN: Duration = Duration::from_secs(60);
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

/// The cluster, as replaying needs it.
struct Ground<'a> {
    config: &'a Config,
    base: ClientConfig,
    group: String,
    consumer: Arc<BaseConsumer<Context>>,
    topics: Topics,
    metrics: Arc<Metrics>,
    quarantine: PathBuf,
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

impl<'a> Ground<'a> {
    fn open(config: &'a Config, may_create: bool) -> anyhow::Result<Self> {
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
        let cluster_id = topics::cluster_id(&consumer, &names.dead_letter).map_err(obstacle)?;
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

    fn client(&self) -> anyhow::Result<Client> {
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

    fn kept(&self) -> anyhow::Result<Kept> {
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
    fn ranges(&self, kept: &mut Kept) -> KafkaResult<Vec<(i32, Range<i64>)>> {
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
}

fn obstacle(obstacle: Obstacle) -> anyhow::Error {
    anyhow!("{obstacle}")
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

impl Ground<'_> {
    /// The progress as the group's offsets: of the partitions that are `touched`, and of the files.
    fn offsets(
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
    fn try_some_times(
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
    fn transact(
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
        if let Err(failure) = settled.map_err(|failure| client.hear_out(failure)) {
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

    fn refused(&self, letter: &Ready, failure: &Failure) -> anyhow::Error {
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

    fn failed(&self, failure: &Failure) -> anyhow::Error {
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
