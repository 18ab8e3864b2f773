//! One run of `tail`: reads, shows, and says why it shows nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::{self, ErrorKind, IsTerminal, stdout},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    super::{
        Output, log,
        terminal::{print_line, visible},
    },
    Args,
    topics::{HELD, held_texts, partitions, present_ends},
};
use crate::{
    config::Config,
    kafka::{
        Cluster as _, Obstacle, View,
        follow::{Followed, Follower, Held, Point},
        librdkafka::Cluster,
    },
    tail::{Content, Filter, Item, State, Stats, json, line},
};

/// The memory of a small pod has room for so many states.
const STATES_MAX: usize = 10_000;
/// Records that wait for older ones of other partitions.
const WAITING_MAX: usize = 5_000;
/// After so long without a line a note says why.
const SILENCE: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
/// Between two prints of the rates where there is no terminal.
const PRINT_STATS_EVERY: u64 = 10;

pub(super) struct Session<'a> {
    args: &'a Args,
    cluster: &'a Cluster,
    partitions: Vec<(String, i32)>,
    follower: Follower,
    filter: Filter,
    state: State<Shown>,
    stats: Stats,
    /// The rates on a terminal.
    table: Option<ProgressBar>,
    is_coloured: bool,
    read: u64,
    shown: u64,
    held: Held,
    said: HashSet<String>,
    started: Instant,
    next_look: Instant,
    seconds: u64,
}

/// What is shown of a message's state.
struct Shown {
    line: String,
    status: String,
    is_wanted: bool,
}

impl<'a> Session<'a> {
    /// Looks at the topics and begins to read them.
    ///
    /// # Errors
    /// Kafka cannot be reached, or none of the topics is there and may be read.
    pub(super) fn open(
        args: &'a Args,
        config: &Config,
        cluster: &'a Cluster,
    ) -> anyhow::Result<Self> {
        let mut said = HashSet::new();
        let partitions = partitions(args, config, cluster, &mut said)?;
        let ends = match args.no_follow {
            true => present_ends(cluster, &partitions)?,
            false => cluster.offsets(View::Stable, &partitions, Point::End)?,
        };
        let from = match args.since {
            Some(time) => {
                cluster.offsets(View::Stable, &partitions, Point::Time(time.as_millisecond()))?
            }
            None if args.no_follow => {
                cluster.offsets(View::Stable, &partitions, Point::Beginning)?
            }
            None => ends.clone(),
        };
        let follower = cluster.follow(&from, ends, !args.no_follow)?;
        let is_terminal = stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let table = args.stats && is_terminal && args.output == Output::Human;
        let now = Instant::now();
        Ok(Self {
            filter: filter(args),
            state: State::new(STATES_MAX),
            stats: Stats::default(),
            table: table.then(live_table),
            is_coloured: is_terminal && !no_colour,
            read: 0,
            shown: 0,
            held: Held::default(),
            started: now,
            next_look: now + LOOK_EVERY,
            seconds: 0,
            args,
            cluster,
            partitions,
            follower,
            said,
        })
    }

    /// Shows records until it is told to stop, or to the end.
    ///
    /// # Errors
    /// Kafka refuses, or the reader of standard output has gone.
    pub(super) fn run(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        // What is there comes one partition after the other, and is put in the order of time.
        let mut waiting = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) {
            match self.follower.poll()? {
                Some(record) => {
                    self.read += 1;
                    waiting.insert((record.timestamp_ms, self.read), record);
                }
                None => reader_is_there()?,
            }
            let has_caught_up = self.follower.has_caught_up();
            let room = if has_caught_up { 0 } else { WAITING_MAX };
            while waiting.len() > room
                && let Some((_, oldest)) = waiting.pop_first()
            {
                self.take(oldest)?;
            }
            if has_caught_up && self.args.no_follow {
                return Ok(());
            }
            self.look()?;
        }
        waiting.into_values().try_for_each(|record| self.take(record))?;
        Ok(())
    }

    fn take(&mut self, record: Followed) -> io::Result<()> {
        self.said.remove("trouble");
        let item = Item::read(record);
        if let Content::Unreadable(why) = &item.content
            && (self.args.state || self.args.stats || !self.filter.is_empty())
        {
            let topic = &item.record.topic;
            let text =
                format!("an event of topic {topic} cannot be read, and there may be more: {why}");
            self.note(&format!("unreadable {topic}"), &text);
        }
        if !self.filter.is_about(&item) {
            return Ok(());
        }
        let is_wanted = self.filter.has_outcome(&item);
        if self.args.state {
            return self.take_state(&item, is_wanted);
        }
        if !is_wanted {
            return Ok(());
        }
        self.shown += 1;
        if self.args.stats {
            self.stats.count(&item);
            return Ok(());
        }
        print_line(&self.text(&item))
    }

    fn take_state(&mut self, item: &Item, is_wanted: bool) -> io::Result<()> {
        let Some(event) = item.event() else { return Ok(()) };
        let line = self.text(item);
        let status = event.details.status.status.clone().unwrap_or_default();
        let kept = if self.args.no_follow { line.clone() } else { String::new() };
        let is_changed = self.state.update(event, Shown { line: kept, status, is_wanted });
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
    fn text(&self, item: &Item) -> String {
        let is_personal = self.args.show_personal;
        if self.args.output == Output::Json {
            return visible(&json(item, is_personal).to_string());
        }
        let paint = |span: crate::tail::Span| match visible(&span.text) {
            text if self.is_coloured && !span.colour.is_empty() => {
                format!("\x1b[{}m{text}\x1b[0m", span.colour)
            }
            text => text,
        };
        line(item, is_personal).into_iter().map(paint).collect::<Vec<_>>().join("  ")
    }

    /// What is due by time.
    fn look(&mut self) -> io::Result<()> {
        let elapsed = self.started.elapsed();
        if elapsed.as_secs() > self.seconds {
            self.seconds += 1;
            self.stats.tick();
            self.show_rates()?;
        }
        if Instant::now() < self.next_look {
            return Ok(());
        }
        self.next_look = Instant::now() + LOOK_EVERY;
        if let Some(Obstacle { detail, .. }) = self.follower.take_trouble() {
            self.note("trouble", &format!("{detail}: tail goes on when the broker is back"));
            // Each question would wait for its answer as long as the broker is away.
            self.next_look += 10 * SECOND;
            return Ok(());
        }
        self.say_what_is_held();
        self.say_what_grew();
        let is_silent = self.shown == 0 && elapsed > SILENCE && self.follower.has_caught_up();
        if is_silent && !self.args.no_follow {
            self.say_why_nothing();
        }
        Ok(())
    }

    fn show_rates(&self) -> io::Result<()> {
        if let Some(table) = &self.table {
            table.set_message(visible_lines(&self.stats).join("\n"));
        } else if self.args.stats && self.seconds.is_multiple_of(PRINT_STATS_EVERY) {
            self.print_rates()?;
        }
        Ok(())
    }

    fn print_rates(&self) -> io::Result<()> {
        match self.args.output {
            Output::Human => {
                visible_lines(&self.stats).iter().try_for_each(|line| print_line(line))
            }
            Output::Json => print_line(&visible(&self.stats.json().to_string())),
        }
    }

    fn say_what_is_held(&mut self) {
        // Without an answer the connection's own error follows.
        let Ok(held) = self.cluster.held(&mut self.held, &self.partitions, HELD) else { return };
        self.said.retain(|about| !about.starts_with("held ") || !held.is_empty());
        for (topic, text) in held_texts(&held) {
            self.note(&format!("held {topic}"), &format!("{text} is shown when it ends"));
        }
    }

    fn say_what_grew(&mut self) {
        let topics: BTreeSet<_> = self.partitions.iter().map(|(topic, _)| topic.clone()).collect();
        for topic in topics {
            let known = self.partitions.iter().filter(|(of, _)| *of == topic).count();
            let Ok(present) = self.cluster.partitions(&topic) else { return };
            if present.len() > known {
                let text =
                    format!("topic {topic} has more partitions now: start tail again to see them");
                self.note(&format!("grown {topic}"), &text);
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
            match &self.table {
                Some(table) => table.println(format!("note: {text}")),
                None => say(text),
            }
        }
    }

    /// Shows what is due at the end.
    ///
    /// # Errors
    /// The reader of standard output has gone.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        if let Some(table) = &self.table {
            table.finish_and_clear();
        }
        if self.args.stats {
            self.print_rates()?;
        }
        if self.args.state && self.args.no_follow {
            let mut counts = BTreeMap::<&str, u64>::new();
            for shown in self.state.shown().filter(|shown| shown.is_wanted) {
                print_line(&shown.line)?;
                *counts.entry(&shown.status).or_default() += 1;
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

fn filter(args: &Args) -> Filter {
    Filter {
        messages: args.messages.clone(),
        recipients: args.recipients.clone(),
        sources: args.sources.clone(),
        statuses: args.statuses.clone(),
        codes: args.codes.clone(),
        faults: args.faults.clone(),
    }
}

pub(super) fn say(text: &str) {
    log::say(&visible(&format!("note: {text}")));
}

fn visible_lines(stats: &Stats) -> Vec<String> {
    stats.table().iter().map(|line| visible(line)).collect()
}

fn live_table() -> ProgressBar {
    // INVARIANT: the template is valid; a run on a terminal shows it.
    let style = ProgressStyle::with_template("{msg}").expect("a template");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout()).with_style(style)
}

/// Without a record there is nothing to write, and a closed pipe would not be noticed.
fn reader_is_there() -> io::Result<()> {
    let stdout = stdout();
    let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    match asked[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
        true => Err(ErrorKind::BrokenPipe.into()),
        false => Ok(()),
    }
}
