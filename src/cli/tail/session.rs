//! One run of `tail`: reads, shows, and says why it shows nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::{self, ErrorKind, IsTerminal, stdout},
    mem,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
};

use super::{
    super::{
        Output, log,
        terminal::{coloured, print_line, visible},
    },
    Args, TOPICS,
};
use crate::{
    config::Config,
    kafka::{
        Blocked, Cluster as _, Obstacle, View,
        follow::{Followed, Follower, Offsets, Point},
        librdkafka::Cluster,
    },
    tail::{Content, MessageStates, SCHEMA_VERSION, Shown, Stats, TailedRecord, json, line},
};

/// The memory of a small pod has room for so many states.
const STATES_MAX: usize = 10_000;
/// Records that wait for older ones of other partitions.
const WAITING_MAX: usize = 5_000;
const WAITING_BYTES_MAX: usize = 32 << 20;
/// An edge's transaction takes milliseconds. One that is open for so long holds the readers. After so long
/// without a line a note says why, too.
const HELD: Duration = Duration::from_secs(3);
const SECOND: Duration = Duration::from_secs(1);

pub(super) struct TailSession<'a> {
    args: &'a Args,
    cluster: &'a Cluster,
    partitions: Vec<(String, i32)>,
    follower: Follower,
    state: MessageStates,
    stats: Stats,
    is_terminal: bool,
    read: u64,
    shown: u64,
    held: Offsets,
    said: HashSet<String>,
    /// They stand below the rates on a terminal.
    notes: Vec<String>,
    next_look: Instant,
    last_rates: Instant,
}

impl<'a> TailSession<'a> {
    /// Looks at the topics and begins to read them.
    pub(super) fn open(
        args: &'a Args,
        config: &Config,
        cluster: &'a Cluster,
    ) -> anyhow::Result<Self> {
        let partitions = partitions(args, config, cluster)?;
        let ends = match args.no_follow {
            true => present_ends(cluster, &partitions)?,
            false => cluster.offsets(View::Stable, &partitions, Point::End)?,
        };
        let since = args.since.map(|time| Point::Time(time.as_millisecond()));
        let from = match since.or(args.no_follow.then_some(Point::Beginning)) {
            Some(point) => cluster.offsets(View::Stable, &partitions, point)?,
            None => ends.clone(),
        };
        let follower = cluster.follow(&from, ends, !args.no_follow)?;
        let now = Instant::now();
        let is_terminal = stdout().is_terminal();
        Ok(Self {
            state: MessageStates::new(STATES_MAX),
            stats: Stats::default(),
            is_terminal,
            read: 0,
            shown: 0,
            held: Offsets::new(),
            said: HashSet::new(),
            notes: Vec::new(),
            next_look: now + HELD,
            last_rates: now,
            args,
            cluster,
            partitions,
            follower,
        })
    }

    /// Shows records until it is told to stop, or to the end.
    pub(super) fn run(mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        // Old records come one partition after the other. Here they wait to be put in order of time.
        let mut waiting = BTreeMap::new();
        let mut bytes = 0;
        let mut last = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match self.follower.poll()? {
                Some(record) => {
                    self.read += 1;
                    bytes += record.bytes();
                    last = Instant::now();
                    waiting.insert((record.timestamp_ms, self.read), record);
                }
                None => reader_is_there()?,
            }
            let has_caught_up = self.follower.has_caught_up();
            let room = if has_caught_up || last.elapsed() > SECOND { 0 } else { WAITING_MAX };
            while (waiting.len() > room || bytes > WAITING_BYTES_MAX)
                && let Some((_, oldest)) = waiting.pop_first()
            {
                bytes -= oldest.bytes();
                self.take(oldest)?;
            }
            if has_caught_up && self.args.no_follow {
                break;
            }
            self.look()?;
        }
        if self.args.state || self.args.stats {
            waiting.into_values().try_for_each(|record| self.take(record))?;
        }
        Ok(self.end()?)
    }

    fn take(&mut self, record: Followed) -> io::Result<()> {
        self.said.remove("trouble");
        let item = TailedRecord::read(record);
        self.say_what_is_unknown(&item);
        if !self.args.filter.is_about(&item) {
            return Ok(());
        }
        let is_wanted = self.args.filter.has_outcome(&item);
        if self.args.state {
            return self.take_state(&item, is_wanted);
        }
        if !is_wanted {
            return Ok(());
        }
        self.shown += 1;
        let shown = item.shown(self.args.show_personal);
        if self.args.stats {
            self.stats.count(&shown);
            return Ok(());
        }
        print_line(&self.text(&shown))
    }

    fn say_what_is_unknown(&mut self, item: &TailedRecord) {
        let topic = &item.record.topic;
        let is_left_out = self.args.state || self.args.stats || !self.args.filter.is_empty();
        match &item.content {
            Content::Unreadable if is_left_out => {
                let text = format!("topic {topic} has records that are no JSON object");
                self.note(&format!("unreadable {topic}"), &text);
            }
            Content::Event(event) if event["schema_version"].as_u64() > Some(SCHEMA_VERSION) => {
                let text = format!(
                    "topic {topic} has events of schema_version {}, of which this program may not \
                     know all: use a newer weni-edge",
                    event["schema_version"]
                );
                self.note(&format!("version {topic}"), &text);
            }
            _ => {}
        }
    }

    fn take_state(&mut self, item: &TailedRecord, is_wanted: bool) -> io::Result<()> {
        let Some(event) = item.event() else { return Ok(()) };
        let shown = item.clone().shown(self.args.show_personal);
        let line = self.text(&shown);
        // While it follows, a line is printed at once. The lines of all messages could take gigabytes.
        let mut kept = Shown::default();
        if self.args.no_follow {
            kept = Shown { line: line.clone(), what: shown.what(), is_wanted };
        }
        let is_changed = self.state.update(event, kept);
        if self.state.forgotten > 0 {
            let text = format!(
                "there are more than {STATES_MAX} messages: the states that changed first are forgotten"
            );
            self.note("forgotten", &text);
        }
        if self.args.no_follow || !is_changed || !is_wanted {
            return Ok(());
        }
        self.shown += 1;
        print_line(&line)
    }

    /// One line, as it is printed.
    fn text(&self, shown: &TailedRecord) -> String {
        if self.args.output == Output::Json {
            return visible(&json(shown).to_string());
        }
        let (mut columns, colour) = line(shown);
        columns.iter_mut().for_each(|column| *column = visible(column));
        columns[1] = coloured(&columns[1], colour);
        columns.join("  ")
    }

    /// What is due by time.
    fn look(&mut self) -> io::Result<()> {
        let every = if self.is_terminal { 2 * SECOND } else { 10 * SECOND };
        if self.args.stats && self.last_rates.elapsed() >= every {
            self.print_rates()?;
        }
        if Instant::now() < self.next_look {
            return Ok(());
        }
        self.next_look = Instant::now() + HELD;
        if let Some(Obstacle { detail, .. }) = self.follower.take_trouble() {
            self.note("trouble", &format!("{detail}: tail goes on when the broker is back"));
            // Each question would wait for its answer as long as the broker is away.
            self.next_look += 10 * SECOND;
            return Ok(());
        }
        self.say_what_is_held();
        if self.shown == 0 && self.follower.has_caught_up() && !self.args.no_follow {
            self.say_why_nothing();
        }
        Ok(())
    }

    fn print_rates(&mut self) -> io::Result<()> {
        let seconds = self.last_rates.elapsed().as_secs_f64();
        self.last_rates = Instant::now();
        let table = self.stats.table(seconds);
        let lines: Vec<_> = table.iter().chain(&self.notes).map(|line| visible(line)).collect();
        let home = if self.is_terminal { "\x1b[H\x1b[J" } else { "" };
        print_line(&format!("{home}{}", lines.join("\n")))
    }

    fn say_what_is_held(&mut self) {
        // Without an answer the connection's own error follows.
        let Ok(now) = self.cluster.held(&self.partitions) else { return };
        for (place, offset) in mem::replace(&mut self.held, now.clone()) {
            if now.get(&place) == Some(&offset) {
                let text = held_text(&place, offset);
                self.note(&text, &format!("{text} is shown when it ends"));
            }
        }
    }

    /// Says of each topic why it shows nothing.
    fn say_why_nothing(&mut self) {
        if self.read > 0 {
            let text = format!("{} events came, and none of them fits", self.read);
            return self.note("none fits", &text);
        }
        let ends = |point| self.cluster.offsets(View::Unstable, &self.partitions, point);
        let (Ok(beginnings), Ok(ends)) = (ends(Point::Beginning), ends(Point::End)) else { return };
        let mut topics = BTreeMap::<&str, bool>::new();
        for (place, end) in &ends {
            *topics.entry(&place.0).or_default() |= beginnings.get(place) < Some(end);
        }
        for (topic, is_filled) in topics {
            let text = match (is_filled, self.args.since) {
                (false, _) => format!("topic {topic} is empty"),
                (true, Some(since)) => format!("no event has reached topic {topic} since {since}"),
                (true, None) if self.args.no_follow => {
                    format!("topic {topic} has no event to read")
                }
                (true, None) => format!(
                    "no event has reached topic {topic} since tail began; --since 10m begins earlier"
                ),
            };
            self.note(&format!("nothing {topic}"), &text);
        }
    }

    /// Says something once.
    fn note(&mut self, about: &str, text: &str) {
        if self.said.insert(about.to_owned()) {
            match self.args.stats && self.is_terminal {
                true => self.notes.push(format!("note: {text}")),
                false => say(text),
            }
        }
    }

    /// Shows what is due at the end.
    fn end(&mut self) -> io::Result<()> {
        if self.args.stats {
            self.print_rates()?;
        }
        if self.args.state && self.args.no_follow {
            let mut counts = BTreeMap::<&str, u64>::new();
            for shown in self.state.shown().filter(|shown| shown.is_wanted) {
                print_line(&shown.line)?;
                *counts.entry(&shown.what).or_default() += 1;
            }
            self.shown = counts.values().sum();
            if self.shown > 0 {
                let counts: Vec<_> =
                    counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
                say(&format!("{} messages: {}", self.shown, counts.join(", ")));
            }
        }
        if self.shown == 0 && self.args.no_follow {
            self.say_why_nothing();
        }
        Ok(())
    }
}

fn say(text: &str) {
    log::say(&visible(&format!("note: {text}")));
}

/// Those of the topics that exist.
fn partitions(
    args: &Args,
    config: &Config,
    cluster: &Cluster,
) -> Result<Vec<(String, i32)>, Obstacle> {
    let is_asked = |name: &str| args.topics.iter().any(|asked| asked == name || asked == "all");
    let topics = TOPICS.into_iter().filter(|(name, ..)| is_asked(name));
    // Two contracts may share a topic.
    let names: BTreeSet<_> = topics.map(|(.., topic)| config.topics.name(topic)).collect();
    let mut partitions = Vec::new();
    for name in names {
        let numbers = cluster.partitions(name)?;
        if numbers.is_empty() {
            say(&format!("topic {name} does not exist"));
        }
        partitions.extend(numbers.into_iter().map(|number| (name.to_owned(), number)));
    }
    if partitions.is_empty() {
        let detail = "none of the topics exists. Their names are those of [topics] in the edge's \
                      configuration: give that with --config, correct it, or create them";
        return Err(Obstacle::new(Blocked::UnknownTopic, detail));
    }
    Ok(partitions)
}

/// The ends of the partitions. Waits a moment for transactions that are open, and says which remain.
fn present_ends(cluster: &Cluster, partitions: &[(String, i32)]) -> Result<Offsets, Obstacle> {
    let ends = cluster.offsets(View::Unstable, partitions, Point::End)?;
    let start = Instant::now();
    loop {
        let stable = cluster.offsets(View::Stable, partitions, Point::End)?;
        let held = || stable.iter().filter(|(place, at)| ends.get(*place) > Some(*at));
        if held().next().is_none() || start.elapsed() >= HELD {
            for (place, offset) in held() {
                say(&format!("{} is not shown", held_text(place, *offset)));
            }
            return Ok(stable);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn held_text((topic, partition): &(String, i32), offset: i64) -> String {
    format!(
        "an open transaction holds all readers of topic {topic} at {partition}@{offset} \
         (partition@offset): what comes after it"
    )
}

/// Without a record there is nothing to write, and a closed pipe would not be noticed.
fn reader_is_there() -> io::Result<()> {
    let stdout = stdout();
    let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
    retry_on_intr(|| poll(&mut asked, Some(&Timespec::default())))?;
    match asked[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
        true => Err(ErrorKind::BrokenPipe.into()),
        false => Ok(()),
    }
}
