//! From the journal into Kafka: read in order, normalize, one transaction for the events and the
//! journal's position behind them.
//!
//! One thread publishes, because librdkafka's calls block. A second one supervises it: a publisher
//! that panics, or that shows no sign of life for longer than any call may take, is left behind and a
//! new one opens, which fences the old. Accepting goes on whatever happens here.
//!
//! **Invariant:** a callback is settled only when the position behind it is committed in Kafka;
//! there is no second account of what was acknowledged.

mod batch;
mod faults;
mod lag;
mod memory;
mod opening;
mod quarantine;
pub mod replay;
mod session;
mod stats;
mod tally;
mod topics;
mod transaction;
mod window;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use self::{
    faults::{Blocked, Obstacle},
    memory::Memory,
    session::{Ended, Session},
    tally::Tally,
};
use crate::{
    config::Config,
    journal::{Journal, Position, fork::Forked},
    metrics::Metrics,
};

/// The longest that opening may be silent: each of its calls has a limit, and there are many.
const SILENT_OPENING: Duration = Duration::from_secs(120);
/// So many publishers replaced since the last commit page somebody.
const REPLACED_MAX: u32 = 3;
const TICK: Duration = Duration::from_millis(100);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Between two tries where no broker can be reached: Kafka's return is noticed within it.
const PAUSE_UNREACHABLE: Duration = Duration::from_millis(500);
/// Between two tries where brokers refuse.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// Between two looks at the position where an operator has to decide.
const PAUSE_OPERATOR: Duration = Duration::from_secs(10);

/// The running publisher.
pub struct Publisher {
    stop: Arc<Mutex<Option<Instant>>>,
    supervisor: JoinHandle<()>,
}

impl Publisher {
    /// Starts publishing what is in the journal. Never fails: what stands in the way is reported
    /// and waited for.
    ///
    /// # Errors
    /// Only when the operating system gives no thread.
    pub fn start(
        config: Arc<ArcSwap<Config>>,
        journal: Journal,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
        metrics.set_build_info(&librdkafka);
        let stop = Arc::new(Mutex::new(None));
        let quarantine = config.load().journal.directory.join("quarantine");
        let shared = Shared {
            config,
            journal,
            metrics,
            quarantine,
            stop: Arc::clone(&stop),
            blocked: Arc::default(),
            opened: Arc::default(),
            life: Arc::default(),
        };
        let watched = shared.clone();
        thread::Builder::new().name("kafka-lag".to_owned()).spawn(move || lag::watch(&watched))?;
        let supervisor = thread::Builder::new()
            .name("publish-watch".to_owned())
            .spawn(move || supervise(&shared))?;
        Ok(Self { stop, supervisor })
    }

    /// Publishes what is left until `deadline`, commits or aborts, and ends. Blocks until then, or
    /// a little longer if a call of librdkafka ignores its time limit; what is left stays in the
    /// journal for the next start.
    pub fn stop(self, deadline: Instant) {
        *self.stop.lock() = Some(deadline);
        let patience = deadline + Duration::from_secs(5);
        while !self.supervisor.is_finished() && Instant::now() < patience {
            thread::sleep(TICK / 10);
        }
        if !self.supervisor.is_finished() {
            tracing::warn!("the publisher did not end in time and is left behind");
        }
    }
}

/// What the publisher's threads share. A copy belongs to one publishing thread's life.
#[derive(Clone)]
struct Shared {
    config: Arc<ArcSwap<Config>>,
    journal: Journal,
    metrics: Arc<Metrics>,
    quarantine: PathBuf,
    /// The deadline, once it is to stop.
    stop: Arc<Mutex<Option<Instant>>>,
    blocked: Arc<Mutex<Option<Blocked>>>,
    /// Whether a client was opened in this process.
    opened: Arc<AtomicBool>,
    life: Arc<Life>,
}

/// Signs of life of one publishing thread.
#[derive(Default)]
struct Life {
    beats: AtomicU64,
    /// Ticks without a beat after which it is wedged.
    patience: AtomicU32,
    commits: AtomicU64,
    /// Left behind: it must not touch anything shared if it wakes.
    abandoned: AtomicBool,
    /// The position that is being normalized; 0 for none.
    normalizing: AtomicU64,
}

impl Shared {
    fn beat(&self) {
        self.life.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on nothing takes longer than this between two signs of life. Counted in ticks, for a
    /// process that is frozen does not tick.
    fn silent_at_most(&self, longest: Duration) {
        let longest = if cfg!(feature = "failpoints") { Duration::from_secs(5) } else { longest };
        let ticks = longest.as_millis() / TICK.as_millis();
        self.life.patience.store(ticks as u32, Ordering::Relaxed);
        self.beat();
    }

    fn normalizing(&self, position: Position) {
        self.beat();
        self.life.normalizing.store(position.as_u64(), Ordering::Relaxed);
    }

    fn normalized(&self) {
        self.life.normalizing.store(0, Ordering::Relaxed);
    }

    fn abandoned(&self) -> bool {
        self.life.abandoned.load(Ordering::Relaxed)
    }

    /// Whether no client had been opened in this process before.
    fn first_opening(&self) -> bool {
        !self.opened.swap(true, Ordering::Relaxed)
    }

    /// Whether it is time to end: asked to, and nothing is left or no time is.
    fn stopping(&self, position: Position) -> bool {
        let Some(deadline) = *self.stop.lock() else { return self.abandoned() };
        Instant::now() >= deadline || self.journal.count(position, self.journal.durable()) == 0
    }

    /// Whether it is to stop although nothing can be published.
    fn out_of_time(&self) -> bool {
        self.abandoned() || self.stop.lock().is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn block(&self, obstacle: &Obstacle) {
        if self.abandoned() {
            return;
        }
        let before = self.blocked.lock().replace(obstacle.blocked);
        if before != Some(obstacle.blocked) {
            self.show_blocked(before, false);
            self.show_blocked(Some(obstacle.blocked), true);
            tracing::error!(
                reason = obstacle.blocked.as_str(),
                detail = obstacle.detail,
                "publishing waits; accepting goes on"
            );
        }
    }

    /// Something was committed.
    fn unblock(&self) {
        self.life.commits.fetch_add(1, Ordering::Relaxed);
        if let Some(before) = self.blocked.lock().take() {
            self.show_blocked(Some(before), false);
            tracing::info!(was = before.as_str(), "publishing goes on");
        }
    }

    fn show_blocked(&self, blocked: Option<Blocked>, on: bool) {
        if let Some(blocked) = blocked {
            self.metrics.publish_blocked.with_label_values(&[blocked.as_str()]).set(on.into());
        }
    }

    /// Waits, unless something happens that is worth another try.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let topics = self.config.load().topics.clone();
        while Instant::now() < until
            && !self.out_of_time()
            && !self.journal.fork_requested()
            && self.config.load().topics == topics
        {
            self.beat();
            thread::sleep(TICK.min(pause));
        }
    }
}

/// One publishing thread: opens, publishes until the client is lost, opens again.
fn publish(shared: &Shared, panicked: BTreeSet<Position>) {
    let mut memory = Memory::new(shared, panicked);
    let mut pause = PAUSE_MIN;
    let mut commits = 0;
    while !shared.out_of_time() {
        shared.silent_at_most(SILENT_OPENING);
        take_up_fork(shared, &mut memory);
        let obstacle = match opening::open(shared, &memory) {
            Err(obstacle) => Some(obstacle),
            Ok(opened) => match Session::new(shared, &mut memory, opened).run() {
                Ended::Stopped => return,
                Ended::Again => continue,
                Ended::Lost(obstacle) => {
                    shared.metrics.producer_rebuilds_total.with_label_values(&["lost"]).inc();
                    obstacle
                }
            },
        };
        let now = shared.life.commits.load(Ordering::Relaxed);
        if std::mem::replace(&mut commits, now) != now {
            pause = PAUSE_MIN;
        }
        let longest = match obstacle.as_ref().map(|obstacle| obstacle.blocked) {
            None | Some(Blocked::NoBroker) => PAUSE_UNREACHABLE,
            Some(blocked) if blocked.needs_operator() => PAUSE_OPERATOR,
            Some(_) => PAUSE_REFUSED,
        };
        // One lost client is an ordinary failover; one after the other is not.
        let again_and_again = || {
            let detail = "client after client is lost: another edge with this identity, or Kafka";
            (pause > PAUSE_UNREACHABLE).then(|| Obstacle::new(Blocked::KafkaError, detail))
        };
        if let Some(obstacle) = obstacle.or_else(again_and_again) {
            shared.block(&obstacle);
        }
        shared.pause(pause.min(longest));
        pause = (pause * 2).min(PAUSE_REFUSED);
    }
}

fn take_up_fork(shared: &Shared, memory: &mut Memory) {
    match shared.journal.take_fork() {
        Ok(None) => {}
        Ok(Some(Forked { left_out, repeated, .. })) => {
            Tally::left_out(left_out, &shared.metrics);
            memory.window.clear();
            tracing::warn!(journal = %shared.journal.id(), left_out, repeated,
                "the journal was forked: it publishes under a new name now");
        }
        Err(error) => tracing::error!(%error, "the fork that was asked for cannot be taken up"),
    }
}

/// Starts publishing threads and replaces those that are lost.
fn supervise(shared: &Shared) {
    let mut panics: HashMap<u64, u32> = HashMap::new();
    let mut replaced = 0;
    let mut reason = "start";
    loop {
        let shared = Shared { life: Arc::default(), ..shared.clone() };
        shared.metrics.producer_rebuilds_total.with_label_values(&[reason]).inc();
        let twice = panics.iter().filter(|(_, count)| **count >= 2);
        let panicked = twice.map(|(position, _)| Position::from_u64(*position)).collect();
        reason = match live(&shared, panicked) {
            Lived::Ended => return,
            Lived::Panicked => "panic",
            Lived::Wedged => "wedged",
        };
        let normalizing = shared.life.normalizing.load(Ordering::Relaxed);
        if reason == "panic" && normalizing != 0 {
            *panics.entry(normalizing).or_default() += 1;
        }
        let moved = shared.life.commits.load(Ordering::Relaxed) > 0;
        replaced = if moved { 0 } else { replaced + 1 };
        if replaced > REPLACED_MAX {
            let detail = format!("{replaced} publishers were lost without a commit: {reason}");
            Shared { life: Arc::default(), ..shared.clone() }
                .block(&Obstacle::new(Blocked::PublisherWedged, detail));
            thread::sleep(PAUSE_REFUSED);
        }
    }
}

/// How a publishing thread ended.
enum Lived {
    Ended,
    Panicked,
    /// It did not end: it was left behind.
    Wedged,
}

/// One publishing thread from its start to its end.
fn live(shared: &Shared, panicked: BTreeSet<Position>) -> Lived {
    shared.silent_at_most(SILENT_OPENING);
    let publishing = shared.clone();
    let thread = match thread::Builder::new()
        .name("publish".to_owned())
        .spawn(move || publish(&publishing, panicked))
    {
        Ok(thread) => thread,
        Err(error) => {
            tracing::error!(%error, "no thread to publish with");
            thread::sleep(Duration::from_secs(1));
            return Lived::Wedged;
        }
    };
    let mut last_beats = 0;
    let mut silent_ticks = 0;
    loop {
        thread::sleep(TICK);
        if thread.is_finished() {
            return if thread.join().is_ok() { Lived::Ended } else { Lived::Panicked };
        }
        let beats = shared.life.beats.load(Ordering::Relaxed);
        silent_ticks = if beats == last_beats { silent_ticks + 1 } else { 0 };
        last_beats = beats;
        if silent_ticks > shared.life.patience.load(Ordering::Relaxed) {
            shared.life.abandoned.store(true, Ordering::Relaxed);
            tracing::error!("the publisher shows no sign of life: it is left behind");
            return Lived::Wedged;
        }
    }
}
