//! One run of `tail`: reads, shows, and says why it shows nothing.

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, ErrorKind, IsTerminal, stdout},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    super::{
        Output, log,
        terminal::{print_line, visible},
    },
    Args,
};
use crate::{
    config::Config,
    event::Topic,
    kafka::{
        Blocked, Cluster as _, Obstacle, View,
        follow::{Followed, Follower, Held, Offsets, Point},
        librdkafka::Cluster,
    },
    tail::{Content, Filter, Item, State, Stats, json, line},
};

/// The memory of a small pod has room for so many states.
const STATES_MAX: usize = 10_000;
/// After so long without a line a note says why.
const SILENCE: Duration = Duration::from_secs(3);
/// An edge's transaction takes milliseconds.
const HELD: Duration = Duration::from_secs(3);
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
        let mut follower = cluster.follow(&from)?;
        if args.no_follow {
            follower.until(ends, &from);
        }
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
        while !stop.load(Ordering::Relaxed) && !self.follower.is_over() {
            match self.follower.poll()? {
                Some(record) => self.take(record)?,
                None => reader_is_there()?,
            }
            self.look()?;
        }
        Ok(())
    }

    fn take(&mut self, record: Followed) -> io::Result<()> {
        self.read += 1;
        self.said.remove("trouble");
        let item = Item::read(record);
        if let Content::Unreadable(why) = &item.content
            && (self.args.state || !self.filter.is_empty())
        {
            let topic = &item.record.topic;
            self.note(why, &format!("an event of {topic} cannot be read and is left out: {why}"));
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
        let is_changed = self.state.update(event, Shown { line: line.clone(), status, is_wanted });
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
        if elapsed > SILENCE && self.shown == 0 && !self.args.no_follow {
            self.say_why_nothing();
        }
        if Instant::now() < self.next_look {
            return Ok(());
        }
        self.next_look = Instant::now() + LOOK_EVERY;
        if let Some(Obstacle { detail, .. }) = self.follower.take_trouble() {
            self.note("trouble", &format!("{detail}: tail goes on when the broker is back"));
            // Each question would wait for its answer as long as the broker is away.
            self.next_look += 10 * SECOND;
        } else {
            self.say_who_is_held();
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

    fn say_who_is_held(&mut self) {
        // Without an answer the connection's own error follows.
        let Ok(held) = self.cluster.held(&mut self.held, &self.partitions) else { return };
        for held in held.into_iter().filter(|held| held.seconds >= HELD.as_secs_f64()) {
            let place = (held.topic, held.partition);
            let text = held_text(&place, held.offset, held.seconds);
            self.note(
                &format!("{place:?}@{}", held.offset),
                &format!("{text} is shown when it ends"),
            );
        }
    }

    /// Says of each topic why it shows nothing.
    fn say_why_nothing(&mut self) {
        if self.read > 0 {
            let text = format!("{} events came, and none of them fits", self.read);
            return self.note("none fits", &text);
        }
        if self.said.contains("nothing") {
            return;
        }
        let ends = |point| self.cluster.offsets(View::Unstable, &self.partitions, point);
        let (Ok(beginnings), Ok(ends)) = (ends(Point::Beginning), ends(Point::End)) else { return };
        let mut filled = BTreeMap::<&str, bool>::new();
        for (place, end) in &ends {
            *filled.entry(&place.0).or_default() |= beginnings.get(place) < Some(end);
        }
        let text = |(topic, is_filled): (&str, bool)| match (is_filled, self.args.since) {
            (false, _) => format!("topic {topic} is empty"),
            (true, Some(since)) => format!("no event has reached topic {topic} since {since}"),
            (true, None) if self.args.no_follow => format!("topic {topic} has no event to read"),
            (true, None) => format!(
                "no event has reached topic {topic} since tail began; --since 10m begins earlier"
            ),
        };
        let texts: Vec<_> = filled.into_iter().map(text).collect();
        self.note("nothing", &texts.join("\nnote: "));
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
        if self.shown == 0 {
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

/// Those of the topics that exist.
fn partitions(
    args: &Args,
    config: &Config,
    cluster: &Cluster,
    said: &mut HashSet<String>,
) -> Result<Vec<(String, i32)>, Obstacle> {
    let mut partitions = Vec::new();
    for topic in
        Topic::ALL.into_iter().filter(|topic| args.topics.iter().any(|which| which.has(*topic)))
    {
        let name = config.topics.name(topic);
        // Two contracts may share a topic.
        if !said.insert(format!("topic {name}")) {
            continue;
        }
        if cluster.exists(name)? {
            let numbers = cluster.partitions(name)?;
            partitions.extend(numbers.into_iter().map(|number| (name.to_owned(), number)));
        } else {
            say(&format!("topic {name} does not exist"));
        }
    }
    if partitions.is_empty() {
        let detail = "none of the topics exists. Their names are those of [topics] in the edge's \
                      configuration: give it with --config";
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
        let held: Vec<_> =
            stable.iter().filter(|(place, at)| ends.get(*place) > Some(*at)).collect();
        if held.is_empty() || start.elapsed() >= HELD {
            for (place, offset) in held {
                let text = held_text(place, *offset, start.elapsed().as_secs_f64());
                say(&format!("{text} is not shown"));
            }
            return Ok(stable);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn held_text((topic, partition): &(String, i32), offset: i64, seconds: f64) -> String {
    let since = Timestamp::now().as_second() - seconds as i64;
    let since = Timestamp::from_second(since).unwrap_or_default();
    format!(
        "an open transaction has held all readers of topic {topic}, partition {partition}, at offset \
         {offset} since {since} or longer: what comes after it"
    )
}

fn say(text: &str) {
    text.lines().for_each(|line| {
        let line = visible(line);
        log::say(&if line.starts_with("note: ") { line } else { format!("note: {line}") });
    });
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
